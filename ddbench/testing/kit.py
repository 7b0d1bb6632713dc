"""The kit that plugin authors run on their own classes: ``check_matcher(MyMatcher(experts=2))``, and so on.

A check takes a class (with its default options) or an instance (small options make it quick), and raises
an AssertionError that says what is wrong and what mends it. ``examine`` tells the outcome of each check by its name.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from ddbench import Curriculum, Dataset, Problem, SyntheticSet, UsageError
from ddbench.base.cache import Cache, digest
from ddbench.base.options import describe, make
from ddbench.base.signatures import methods_flaw
from ddbench.hookspecs import DatasetSource, Matcher, Metric, NetworkSource, Scheduler
from ddbench.plugins import EITHER, METHODS, check_class, needs_of, registry
from ddbench.problem.synthetic import first_with
from ddbench.run.prepare import prepared
from ddbench.run.run import build_task
from ddbench.run.spec import Request, resolve
from ddbench.testing.findings import FailedCheck, Findings, Unreached, explained, require
from ddbench.testing.metrics import examine_metric
from ddbench.testing.networks import examine_network
from ddbench.testing.trial import Trial
from ddbench.testing.watch import kept, steady, temporary, watched

DUPLICATES = 0.01  # real data repeat themselves a little; a wrong split repeats much more
COUNTS = {"matcher": {"steps": 0}, "scheduler": {"stages": 1}}  # options that are whole numbers, and their least


def toy_task(*, ipc: int = 2, seed: int = 0, folder: Path | None = None) -> Problem:
    """The toy dataset (3 classes, grey 8x8 images) for a tiny ConvNet, as ``ddbench run`` would build it.

    Experts and taught networks go to ``folder``, by default one that vanishes with the process.
    """
    flags = {"network.width": "4", "experts.batch": "36", "protocol.steps": "8", "scheduler.stages": "2"}
    request = Request("toy", "random", "pdd", ipc=ipc, seed=seed, device="cpu", flags=tuple(flags.items()))
    spec = resolve(request).spec
    task = build_task(spec, spec.dataset.load())
    return replace(task, starts=replace(task.starts, cache=Cache(folder or kept())))


def examine(kind: str, given: Any, **more: Any) -> Findings:
    """The outcome of all checks of a plugin of a kind: a class, or an instance."""
    found = Findings(kind)
    with suppress(Unreached), temporary():
        plugin = _made(found, kind, given)
        {
            "matcher": _examine_matcher,
            "scheduler": _examine_scheduler,
            "dataset": _examine_dataset,
            "network": examine_network,
            "metric": lambda found, plugin: examine_metric(found, plugin, toy_task()),
        }[kind](found, plugin, **more)
    return found


def check_matcher(matcher: type | Matcher[object]) -> None:
    """Drive a matcher through two stages of ``pdd`` on the toy task, a few steps each, as the harness does.

    ``needs`` names every snapshot that is read; ``init``, ``step`` and ``result`` depend on the problem and
    the seed alone; a checkpoint after any step leads to the same bits; the result is balanced, finite and
    has memory of its own; frozen sets, real data and the process stay as they were.
    """
    examine("matcher", matcher).require()


def check_scheduler(scheduler: type | Scheduler) -> None:
    """Walk a scheduler through all its stages: no image is lost, what is done stays, phases only grow."""
    examine("scheduler", scheduler).require()


def check_dataset(source: type | DatasetSource) -> None:
    """Load a dataset twice: uint8 pixels, every class to train on, parts that do not overlap, equal bits."""
    examine("dataset", source).require()


def check_network(
    source: type | NetworkSource, *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10
) -> None:
    """Use a network as a pure function of a flat vector: repeatable, stackable, twice differentiable.

    In evaluation, an image is by itself. Stacking is tried in evaluation and in training, and ``features`` and
    ``activations`` where there are any.
    """
    examine("network", source, shape=shape, classes=classes).require()


def check_metric(metric: type | Metric) -> None:
    """Measure made-up predictions: finite floats within ``bounds``, the same each time; arguments stay as they were.

    A metric with ``examine`` is shown a network of the toy task, with the marks that it asks for.
    """
    examine("metric", metric).require()


def _made(found: Findings, kind: str, given: Any) -> Any:
    """An instance: a frozen dataclass whose options survive JSON, with whole numbers where they count something."""
    cls = given if isinstance(given, type) else type(given)
    with found.checking("signature", vital=True):
        if (flaw := methods_flaw(cls, METHODS[kind], EITHER.get(kind, {}))) and not flaw.startswith("no method"):
            raise FailedCheck(f"{cls.__name__} has {flaw}")
    with found.checking("options", vital=True):
        try:
            check_class(kind, cls)
            plugin = cls() if isinstance(given, type) else given
            copy = make(cls, json.loads(json.dumps(describe(plugin)["options"], allow_nan=False)), kind)
        except (TypeError, ValueError) as error:
            hint = "options are fields with defaults that JSON can hold and that keep their own bounds"
            raise FailedCheck(f"{cls.__name__} cannot be a {kind}: {error}; {hint}") from error
        told = f"{plugin!r} comes back from JSON as {copy!r}; use numbers, text, None, or tuples of them"
        require(copy == plugin, told)
        require(_hashable(plugin), f"{plugin!r} cannot be hashed; use tuples where options are lists")
        for name, least in COUNTS.get(kind, {}).items():
            value = getattr(plugin, name, None)
            whole = type(value) is int and value >= least
            require(whole, f"{cls.__name__}.{name} must be a whole number of at least {least}, got {value!r}")
    return plugin


def _hashable(plugin: Any) -> bool:
    try:
        hash(plugin)
    except TypeError:
        return False
    return True


def _examine_matcher(found: Findings, method: Matcher[object]) -> None:
    with temporary() as folder:  # no experts in it but those that needs() names
        done, scheduler = Curriculum(), registry().get("scheduler", "pdd").cls(stages=2)
        task = toy_task(ipc=3, folder=folder)
        while (problem := scheduler.next(task, done)) is not None:
            with found.checking("needs", vital=True):
                said = f"needs() of matcher {method.name!r} must return the same ddbench.Needs whenever it is asked"
                with explained(said):
                    wanted = steady(lambda p=problem: needs_of(method, p), said)
                with explained(f"making what needs() of matcher {method.name!r} names"):
                    problem = prepared(problem, wanted)
            made = Trial(method, problem, folder / "state.safetensors", found).check()
            done = Curriculum((*done.sets, made), scheduler.phases(len(done) + 1))


def _examine_scheduler(found: Findings, plan: Scheduler) -> None:
    task, stages, outcome = toy_task(), plan.stages, "returns a problem"
    with found.checking("problems", "repeat", "done", "taught", "phases", "budget", "stops"):
        for ipc in (stages, 2 * stages + 1):
            _walk(found, plan, replace(task, ipc=ipc))
    with found.checking("refuses"):
        try:
            plan.next(replace(task, ipc=stages - 1), Curriculum())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is named below
            outcome = "" if isinstance(error, UsageError) else f"raises {error!r}"
        said = f"{plan.name!r} {outcome} for ipc {stages - 1} in {stages} stages"
        require(stages == 1 or not outcome, f"{said}; raise a ddbench.UsageError with a way out")


def _walk(found: Findings, plan: Scheduler, task: Problem) -> None:
    """Play all stages with blank sets."""
    done, name, spent = Curriculum(), f"next() of {plan.name!r}", 0
    for stage in range(plan.stages):
        said = f"{name} must give {plan.stages} problems of ipc 1 or more, not {stage}"
        with watched(found, name):
            problem = _problem(plan, task, done, said)
        again = f"{name} must give the same problem when a resumed run asks again"
        steady(lambda done=done, said=said: _problem(plan, task, done, said).ipc, again, "repeat")
        kept = problem.frozen.sets == done.sets and problem.frozen.phases == done.phases
        require(kept, f"{name} must pass on what is done: replace(task, ipc=..., frozen=done)", "done")
        taught = set(problem.starts.taught.sets) <= set(done.sets)
        require(taught, f"{name} teaches sets that are not in `done`", "taught")
        spent += problem.ipc
        labels = torch.eye(task.classes).repeat_interleave(problem.ipc, 0)
        blank = SyntheticSet(torch.zeros(len(labels), *task.real.shape), labels)
        grows = bool(problem.starts.taught.sets) or stage == 0
        with watched(found, f"phases() of {plan.name!r}"):
            phases = _phases(plan, stage + 1, grows=grows)
        done = Curriculum((*done.sets, blank), phases)
    said = f"{plan.name!r} spends {spent} of {task.ipc} images per class; ddbench.share divides"
    require(spent == task.ipc, said, "budget")
    require(plan.next(task, done) is None, f"{name} must give None when there are {plan.stages} sets", "stops")


def _problem(plan: Scheduler, task: Problem, done: Curriculum, otherwise: str) -> Problem:
    problem = plan.next(task, done)
    if not isinstance(problem, Problem) or problem.ipc < 1:
        raise FailedCheck(otherwise, "problems")
    return problem


def _phases(plan: Scheduler, n: int, *, grows: bool) -> tuple[tuple[int, ...], ...]:
    """The phases of n sets, checked; ``grows`` where start networks are students of the phases before."""
    phases, what = plan.phases(n), f"phases({n}) of {plan.name!r}"
    plain = isinstance(phases, tuple) and all(isinstance(phase, tuple) and phase for phase in phases)
    require(plain and phases, f"{what} must be a tuple of tuples, none of them empty; got {phases!r}", "phases")
    inside = all(0 <= i < n and phase.count(i) == 1 for phase in phases for i in phase)
    require(inside, f"{what} must name sets 0..{n - 1}, each at most once in a phase; got {phases}", "phases")
    require(
        n - 1 in phases[-1], f"{what} must end with a phase that holds the newest set, {n - 1}; got {phases}", "phases"
    )
    grown = not grows or phases[: first_with(n - 1, phases)] == tuple(plan.phases(n - 1))
    require(
        grown,
        f"{what} must be phases({n - 1}) and one more, since stages start from its students; got {phases}",
        "phases",
    )
    return phases


def _examine_dataset(found: Findings, plugin: DatasetSource) -> None:
    name = f"dataset {plugin.name!r}"

    def load() -> Dataset:
        with explained(f"load() of {name}", "loads"), watched(found, f"load() of {name}"):
            return plugin.load()

    with found.checking("loads", vital=True):
        data = load()
        require(isinstance(data, Dataset), f"load() of {name} must return a ddbench.Dataset; Dataset.split makes one")
    with found.checking("repeat"):
        steady(lambda: load().digest, f"{name} loads other data each time; draw from a seeded torch.Generator")
    with found.checking("classes"):
        distinct = isinstance(data.classes, tuple) and len(set(data.classes)) == len(data.classes)
        require(distinct, f"the classes of {name} must be a tuple of names that differ, in the order of the targets")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    with found.checking("pixels", "shape", "finite", vital=True):
        for part in parts:
            _check_part(name, part, data)
    with found.checking("disjoint"):
        seen = {part: {digest(image.numpy().tobytes()) for image in real.pixels} for part, real in parts.items()}
        for one, other in combinations(seen, 2):
            common, size = len(seen[one] & seen[other]), min(len(seen[one]), len(seen[other]))
            said = f"{common} images of {name} are in {one} and in {other}; keep the parts disjoint"
            require(common <= DUPLICATES * size, said)


def _check_part(name: str, part: str, data: Dataset) -> None:
    real = getattr(data, part)
    with explained(f"using the {part} part of {name}", "pixels"):  # split refuses what is not uint8, empty classes, ...
        both = (data.train.pixels, data.train.targets), (real.pixels, real.targets)
        Dataset.split(data.name, data.classes, *both, preprocessing=data.train.preprocessing)
    alike = real.targets.dtype == torch.int64 and real.shape == data.train.shape
    require(alike, f"the {part} part of {name} must have int64 targets and images of shape {data.train.shape}", "shape")
    finite = real[torch.arange(min(8, len(real)))].images.isfinite().all()
    require(finite, f"the preprocessing of the {part} part of {name} gives numbers that are not finite", "finite")
