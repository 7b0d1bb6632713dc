"""The whole extension API. A plugin is a module (or object) with some of these six functions.

    from dataclasses import dataclass
    from ddbench import SyntheticSet, hookimpl

    @dataclass(frozen=True)
    class Fresh:
        "Real images that no earlier stage took."
        name = "fresh"
        steps = 0
        def init(self, problem): return problem.sample()
        def step(self, problem, state, k): return state, {}
        def result(self, problem, state): return SyntheticSet(state.images, state.labels)

    @hookimpl
    def register_matchers(register): register(Fresh)

and an entry point in its package: ``[project.entry-points.ddbench]  fresh = "my_package"``.

What is registered is the class. Its dataclass fields are its options, ``-o matcher.field=value``, with
types and bounds (``Annotated[int, Ge(1), "what it is"]``) checked by the harness. ``recipes`` is the path
of a TOML file of hyperparameters per dataset and ipc, see docs/writing-a-plugin.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

import pluggy

from ddbench.train.source import NetworkSource as NetworkSource  # a trainer knows it, too

if TYPE_CHECKING:
    from torch import Tensor

    from ddbench.base.process import Job
    from ddbench.data.dataset import Dataset as LoadedDataset
    from ddbench.data.dataset import RealData
    from ddbench.problem.problem import Memory, Needs, Problem
    from ddbench.problem.synthetic import Curriculum, SyntheticSet
    from ddbench.train.network import Network
    from ddbench.trajectory.unroll import Gradient, Task

hookspec = pluggy.HookspecMarker("ddbench")
hookimpl = pluggy.HookimplMarker("ddbench")

State = TypeVar("State")
KINDS = ("dataset", "matcher", "scheduler", "network", "metric", "executor")
HOOKS = tuple(f"register_{kind}s" for kind in KINDS)


class Register(Protocol):
    """``register(cls)`` or ``register(cls, recipes=path)``."""

    def __call__(self, cls: type, *, recipes: Path | None = None) -> None: ...


@hookspec
def register_datasets(register: Register) -> None:
    """Call ``register(MyDataset)`` for each dataset source this plugin brings."""


@hookspec
def register_matchers(register: Register) -> None:
    """Call ``register(MyMatcher)`` for each distillation method this plugin brings."""


@hookspec
def register_schedulers(register: Register) -> None:
    """Call ``register(MyScheduler)`` for each scheduler this plugin brings."""


@hookspec
def register_networks(register: Register) -> None:
    """Call ``register(MyNetwork)`` for each network architecture this plugin brings."""


@hookspec
def register_metrics(register: Register) -> None:
    """Call ``register(MyMetric)`` for each evaluation metric this plugin brings."""


@hookspec
def register_executors(register: Register) -> None:
    """Call ``register(MyExecutor)`` for each way this plugin brings to carry out the cells of a suite."""


class Matcher(Protocol[State]):
    """A frozen dataclass: its fields are the method's hyperparameters. It holds no state of its own.

    The harness owns the loop. It seeds torch, NumPy and ``random`` around every call, saves ``State`` (a
    dataclass, dict, list or tuple of tensors and numbers) in checkpoints, and calls ``result`` when it
    selects on validation data. ``step`` may change ``State`` in place; its metrics may be tensors;
    ``loss`` and ``lr`` are shown while it runs. ``steps = 0`` is a coreset: ``init`` does it all.
    Raise ``ddbench.DivergedError`` with advice when a step cannot go on.

    What a matcher may offer besides, each on its own: :class:`Needing`, :class:`Staging`, :class:`Forecasting`,
    :class:`Noting`, :class:`Watching`, :class:`Pricing`, :class:`Differentiating`; and the class attribute or option

    - ``version``: of what it computes, a short text that keys hold ("1" without one); so for every kind of plugin;
    - ``paper``: authors, venue and year in a few words, for lists; ``paper_url``: its address, for pages;
    - ``published``: the names, :class:`Published`, that its numbers stand under in the table of published accuracies;
    - ``decodes = True``: it matches ``problem.decoder(images)``, so that it can be run with a decoder;
    - ``divides = True``: its gradients are those of :mod:`ddbench.trajectory.unroll`, whose student steps are divided
      over the ranks of ``--devices`` and torchrun; others are refused there;
    - ``teachers``: names of networks that :func:`ddbench.networks_named` makes; their code counts as the run's own;
    - ``labels``: what its images are labelled with; beside a run with other than ``hard`` ones stand random images with
      soft ones, too.
    """

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...

    def init(self, problem: Problem) -> State: ...
    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]: ...
    def result(self, problem: Problem, state: State) -> SyntheticSet: ...


@dataclass(frozen=True)
class Published:
    """A name that a method has in the table of published accuracies, and what its numbers there are of.

    ``labels`` is the kind that the images must have (None: whichever they have), ``factor`` that of the decoder. The
    numbers of a ``variant`` are of another setting: they are never beside a run, and shown on request.
    """

    name: str
    labels: Literal["hard", "soft"] | None = None
    factor: int = 1
    variant: bool = False


@runtime_checkable
class Needing(Protocol):
    """A matcher that wants experts or teachers made before ``init``; without it nothing is made."""

    def needs(self, problem: Problem) -> Needs: ...


@runtime_checkable
class Staging(Protocol):
    """A matcher whose options differ from stage to stage: ``staged`` is what solves this problem."""

    def staged(self, problem: Problem) -> Matcher[object]: ...


@runtime_checkable
class Forecasting(Protocol):
    """A matcher that tells what it will take on the device; without it, its set with one momentum is assumed."""

    def memory(self, problem: Problem) -> Memory: ...


@runtime_checkable
class Pricing(Protocol):
    """A matcher that tells the work of an iteration: images that go forwards and backwards through the network.

    From it, and from this machine's speed, follows how long a run will take before it starts.
    """

    def passes(self, problem: Problem) -> float: ...


@runtime_checkable
class Noting(Protocol):
    """A matcher that notes, as JSON by a key of each, how it works in a stage: what was compiled, say.

    ``resume`` is called when a stage begins, with what an interrupted one noted before it was stopped (else with
    nothing), and what it began with it should end with. ``notes`` go into checkpoints and the stage's record.
    """

    def notes(self) -> dict[str, dict[str, object]]: ...
    def resume(self, notes: dict[str, dict[str, object]]) -> None: ...


@runtime_checkable
class Watching(Protocol):
    """A matcher that can tell, after a tenth of its iterations, that they lead nowhere.

    ``rows`` are the metrics of the stage's iterations so far. What it returns is said once, with the numbers and what
    to change; None where all is well. Nothing is stopped by it.
    """

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None: ...


@runtime_checkable
class Differentiating(Protocol):
    """A matcher whose gradient is that of an unroll: ``ddbench check-grad`` compares it with plain autograd."""

    def differentiate(self, task: Task) -> Gradient: ...


class Scheduler(Protocol):
    """Splits one task into problems, looking only at what is already solved.

    ``next`` returns the problem after the sets in ``done``, or None when there are ``stages`` of them;
    ``phases(n)`` tells which of n sets a student sees, phase by phase. ``published`` is optional: the name that it has,
    with its options, in the table of published accuracies; so are ``paper`` and ``paper_url``.
    """

    @property
    def name(self) -> str: ...
    @property
    def stages(self) -> int: ...

    def next(self, task: Problem, done: Curriculum) -> Problem | None: ...
    def phases(self, n: int) -> tuple[tuple[int, ...], ...]: ...


class DatasetSource(Protocol):
    """A frozen dataclass that loads a dataset; ``Dataset.split`` does the work common to all.

    ``load`` gets what is missing, reporting progress with ``ddbench.report``, or raises ``ddbench.DataError``
    with what is missing, where it was looked for, and what mends it.

    Two optional things serve ``ddbench info`` and ``ddbench prepare``. ``about`` is a class attribute, a
    dictionary of short texts that hold without the data: ``licence``, ``licence_url``, ``homepage``, ``citation``,
    ``images`` (published sizes). The other is :class:`Telling`. A third, the class attribute ``argument``, names the
    option that ``--dataset NAME:VALUE`` sets; with ``remote = True`` a file that names this dataset is not taken at its
    word, since that option may name any place on the network.
    """

    @property
    def name(self) -> str: ...

    def load(self) -> LoadedDataset: ...


@runtime_checkable
class Telling(Protocol):
    """A dataset source that says in one sentence what ``load`` would have to download or decode first, if anything."""

    def missing(self) -> str | None: ...


@dataclass(frozen=True, eq=False)
class Examinee:
    """A trained student as metrics see it: its vector ``(p,)``, the test data, its ``logits`` ``(n, k)`` on them.

    ``test`` passes through the set's own preprocessing. ``trail`` holds the vectors after the optimiser steps, of
    ``steps`` in all, that the metric's ``marks`` asked for, ascending.
    """

    network: Network
    vector: Tensor
    test: RealData
    logits: Tensor
    targets: Tensor
    trail: tuple[tuple[int, Tensor], ...] = ()
    steps: int = 0


class Metric(Protocol):
    """A frozen dataclass that measures a student; which of :class:`Scoring` and :class:`Examining` it is, it chooses.

    A class attribute ``bounds = (least, most)`` says between which numbers it lies, for the kit. One with the class
    attribute ``costly = True`` is computed only when asked for (``ddbench eval --metrics``). Its options are
    ``-o metric.<name>.<option>=VALUE``.
    """

    @property
    def name(self) -> str: ...


@runtime_checkable
class Scoring(Protocol):
    """A metric that turns logits ``(n, k)`` and targets ``(n,)`` into a number."""

    def __call__(self, logits: Tensor, targets: Tensor) -> float: ...


@runtime_checkable
class Examining(Protocol):
    """A metric that sees all of a student and names several numbers: its ``mean`` is recorded as ``<name>.mean``."""

    def examine(self, student: Examinee) -> dict[str, float]: ...


@runtime_checkable
class Marking(Protocol):
    """An examining metric that wants a student's vectors after some of its ``steps``, in ``student.trail``."""

    def marks(self, steps: int) -> Iterable[int]: ...


class Executor(Protocol):
    """A frozen dataclass that has the jobs of a suite carried out: by an engine that exists, such as Ray or Slurm.

    ``opened`` reaches the engine, and gives what places jobs until the block ends; then nothing of it is left running.
    ``folder`` is for the engine's own files. With the class attribute ``remote = True`` jobs may run on other machines,
    which share a file system with this one: experts are then jobs of their own, and every job looks first whether it
    finds the same code and the same files there. Its options are ``-o executor.<option>=VALUE``.
    """

    @property
    def name(self) -> str: ...

    def opened(self, folder: Path) -> AbstractContextManager[Placing]: ...


class Placing(Protocol):
    """Where jobs are placed. ``start`` returns one :class:`Placed` for each; None where there is no room as yet."""

    def start(self, jobs: Sequence[Job]) -> Sequence[Placed | None]: ...


class Placed(Protocol):
    """A job that waits or is at work: ``ddbench.base.process.carry(job)`` in a process of the engine, say.

    ``poll`` is its exit code (negative for a signal), None until there is one. It raises ``ddbench.LostError`` when
    what carried the job is gone, so that it is placed again, and ``ddbench.DataError`` with the reason when it cannot
    be carried out. ``stop`` asks it to write a checkpoint and end, ``kill`` ends it at once.
    """

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
