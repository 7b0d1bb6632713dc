"""The whole extension API. A plugin is a module (or object) with some of these five functions.

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

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import pluggy

from ddbench.train.source import NetworkSource as NetworkSource  # a trainer knows it, too

if TYPE_CHECKING:
    from torch import Tensor

    from ddbench.data.dataset import Dataset as LoadedDataset
    from ddbench.data.dataset import RealData
    from ddbench.problem.problem import Needs, Problem
    from ddbench.problem.synthetic import Curriculum, SyntheticSet
    from ddbench.train.network import Network

hookspec = pluggy.HookspecMarker("ddbench")
hookimpl = pluggy.HookimplMarker("ddbench")

State = TypeVar("State")
HOOKS = ("register_datasets", "register_matchers", "register_schedulers", "register_networks", "register_metrics")


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


class Matcher(Protocol[State]):
    """A frozen dataclass: its fields are the method's hyperparameters. It holds no state of its own.

    The harness owns the loop. It seeds torch, NumPy and ``random`` around every call, saves ``State`` (a
    dataclass, dict, list or tuple of tensors and numbers) in checkpoints, and calls ``result`` when it
    selects on validation data. ``step`` may change ``State`` in place; its metrics may be tensors;
    ``loss`` and ``lr`` are shown while it runs. ``steps = 0`` is a coreset: ``init`` does it all.
    ``needs`` is optional. Raise ``ddbench.DivergedError`` with advice when a step cannot go on.
    """

    name: str
    steps: int

    def needs(self, problem: Problem) -> Needs: ...
    def init(self, problem: Problem) -> State: ...
    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]: ...
    def result(self, problem: Problem, state: State) -> SyntheticSet: ...


class Scheduler(Protocol):
    """Splits one task into problems, looking only at what is already solved.

    ``next`` returns the problem after the sets in ``done``, or None when there are ``stages`` of them;
    ``phases(n)`` tells which of n sets a student sees, phase by phase.
    """

    name: str
    stages: int

    def next(self, task: Problem, done: Curriculum) -> Problem | None: ...
    def phases(self, n: int) -> tuple[tuple[int, ...], ...]: ...


class DatasetSource(Protocol):
    """A frozen dataclass that loads a dataset; ``Dataset.split`` does the work common to all.

    ``load`` gets what is missing, reporting progress with ``ddbench.report``, or raises ``ddbench.DataError``
    with what is missing, where it was looked for, and what mends it.

    Two optional things serve ``ddbench info`` and ``ddbench prepare``. ``about`` is a class attribute, a
    dictionary of short texts that hold without the data: ``licence``, ``licence_url``, ``homepage``, ``citation``,
    ``images`` (published sizes). ``missing()`` says in one sentence what ``load`` would have to download
    or decode first; None when it can begin at once. A third, the class attribute ``argument``, names the option
    that ``--dataset NAME:VALUE`` sets.
    """

    name: str

    def load(self) -> LoadedDataset: ...
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
    """A frozen dataclass that measures a student: logits ``(n, k)`` and targets ``(n,)`` to a number.

    Instead of ``__call__`` it may have ``examine``, which sees all of an examinee and names several numbers: its
    ``mean`` is recorded as ``<name>.mean``. With ``marks(steps)`` it names optimiser steps, of the ``steps`` that a
    student takes, whose vectors it wants in ``student.trail``. One that is ``costly`` is computed only when asked for
    (``ddbench eval --metrics``). Its options are ``-o metric.<name>.<option>=VALUE``.
    """

    name: str
    costly: bool = False

    def __call__(self, logits: Tensor, targets: Tensor) -> float: ...
    def examine(self, student: Examinee) -> dict[str, float]: ...
    def marks(self, steps: int) -> Iterable[int]: ...
