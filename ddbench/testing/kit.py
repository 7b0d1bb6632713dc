"""The kit that plugin authors run on their own classes: ``check_matcher(MyMatcher(experts=2))``, and so on.

A check takes a class (with its default options) or an instance (small options make it quick), and raises
an AssertionError that says what is wrong and what mends it.
"""

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch.autograd import grad
from torch.func import vmap

from ddbench import Curriculum, Dataset, Examinee, Network, Problem, Seed, SyntheticSet, UsageError, predict
from ddbench.base.cache import Cache, digest
from ddbench.base.options import describe, make
from ddbench.hookspecs import DatasetSource, Examining, Marking, Matcher, Metric, NetworkSource, Scheduler
from ddbench.plugins import check_class, needs_of, registry
from ddbench.problem.synthetic import first_with
from ddbench.run.prepare import prepared
from ddbench.run.run import build_task
from ddbench.run.spec import Request, resolve
from ddbench.testing.trial import Trial, explained, require
from ddbench.train.fit import soft_cross_entropy

DUPLICATES = 0.01  # real data repeat themselves a little; a wrong split repeats much more


def toy_task(*, ipc: int = 2, seed: int = 0, folder: Path | None = None) -> Problem:
    """The toy dataset (3 classes, grey 8x8 images) for a tiny ConvNet, as ``ddbench run`` would build it.

    Experts and taught networks go to ``folder``, by default one that vanishes with the process.
    """
    flags = {"network.width": "4", "experts.batch": "36", "protocol.steps": "8", "scheduler.stages": "2"}
    request = Request("toy", "random", "pdd", ipc=ipc, seed=seed, device="cpu", flags=tuple(flags.items()))
    spec = resolve(request).spec
    task = build_task(spec, spec.dataset.load())
    return replace(task, starts=replace(task.starts, cache=Cache(folder or _scratch())))


def check_matcher(matcher: type | Matcher[object]) -> None:
    """Drive a matcher through two stages of ``pdd`` on the toy task, a few steps each, as the harness does.

    ``needs`` names every snapshot that is read; ``init``, ``step`` and ``result`` depend on the problem and
    the seed alone; a checkpoint after any step leads to the same bits; the result is balanced, finite and
    has memory of its own; frozen sets and real data stay as they were.
    """
    method = _made("matcher", matcher, steps=0)
    with tempfile.TemporaryDirectory(prefix="ddbench-") as name:  # no experts in it but those that needs() names
        folder, done = Path(name), Curriculum()
        task, scheduler = toy_task(ipc=3, folder=folder), registry().get("scheduler", "pdd").cls(stages=2)
        while (problem := scheduler.next(task, done)) is not None:
            said = f"needs() of matcher {method.name!r} must return the same ddbench.Needs whenever it is asked"
            with explained(said):
                wanted = _steady(lambda p=problem: needs_of(method, p), said)
            with explained(f"making what needs() of matcher {method.name!r} names"):
                problem = prepared(problem, wanted)
            made = Trial(method, problem, folder / "state.safetensors").check()
            done = Curriculum((*done.sets, made), scheduler.phases(len(done) + 1))


def check_scheduler(scheduler: type | Scheduler) -> None:
    """Walk a scheduler through all its stages: no image is lost, what is done stays, phases only grow."""
    plan = _made("scheduler", scheduler, stages=1)
    task, stages, outcome = toy_task(), plan.stages, "returns a problem"
    for ipc in (stages, 2 * stages + 1):
        _walk(plan, replace(task, ipc=ipc))
    try:
        plan.next(replace(task, ipc=stages - 1), Curriculum())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is named below
        outcome = "" if isinstance(error, UsageError) else f"raises {error!r}"
    said = f"{plan.name!r} {outcome} for ipc {stages - 1} in {stages} stages; raise a ddbench.UsageError with a way out"
    require(stages == 1 or not outcome, said)


def check_dataset(source: type | DatasetSource) -> None:
    """Load a dataset twice: uint8 pixels, every class to train on, parts that do not overlap, equal bits."""
    plugin = _made("dataset", source)
    data, name = plugin.load(), f"dataset {plugin.name!r}"
    require(isinstance(data, Dataset), f"load() of {name} must return a ddbench.Dataset; Dataset.split makes one")
    _steady(lambda: plugin.load().digest, f"{name} loads other data each time; draw from a seeded torch.Generator")
    distinct = isinstance(data.classes, tuple) and len(set(data.classes)) == len(data.classes)
    require(distinct, f"the classes of {name} must be a tuple of names that differ, in the order of the targets")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    for part, real in parts.items():
        with explained(f"using the {part} part of {name}"):  # split refuses what is not uint8, empty classes, ...
            both = (data.train.pixels, data.train.targets), (real.pixels, real.targets)
            Dataset.split(data.name, data.classes, *both, preprocessing=data.train.preprocessing)
        alike = real.targets.dtype == torch.int64 and real.shape == data.train.shape
        require(alike, f"the {part} part of {name} must have int64 targets and images of shape {data.train.shape}")
        finite = real[torch.arange(min(8, len(real)))].images.isfinite().all()
        require(finite, f"the preprocessing of the {part} part of {name} gives numbers that are not finite")
    seen = {part: {digest(image.numpy().tobytes()) for image in real.pixels} for part, real in parts.items()}
    for one, other in combinations(seen, 2):
        common, size = len(seen[one] & seen[other]), min(len(seen[one]), len(seen[other]))
        said = f"{common} images of {name} are in {one} and in {other}; keep the parts disjoint"
        require(common <= DUPLICATES * size, said)


def check_network(
    source: type | NetworkSource, *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10
) -> None:
    """Use a network as a pure function of a flat vector: repeatable, stackable, twice differentiable.

    Stacking is tried in evaluation and in training, and ``features`` and ``activations`` where there are any.
    """
    plugin = _made("network", source)
    name, network, generator = f"network {plugin.name!r}", Network(plugin, shape, classes), torch.get_rng_state()
    with torch.device("meta"), explained(f"building {name} on the meta device"):
        plugin.build(shape, classes)
    length = network.length
    silent = torch.equal(generator, torch.get_rng_state())
    require(silent, f"building {name} on the meta device draws random numbers; leave drawing to the modules inside")
    said = f"{name} must start as its seed says; draw from torch's global generator alone"
    vector, other = _steady(lambda: network.init(Seed(0)), said), network.init(Seed(1))
    require(not torch.equal(vector, other), said)
    require(len(vector) == length > 0, f"{name} has {len(vector)} numbers, but {length} on the meta device")
    with Seed(0).scope():
        x, direction = torch.randn(4, *shape), torch.randn(network.parameters)
    logits = network.apply(vector, x, train=False)
    good = logits.shape == (4, classes) and bool(logits.isfinite().all())
    require(good, f"{name} must give finite logits (4, {classes}) for 4 images, got shape {tuple(logits.shape)}")
    said = f"{name} gives other logits for the same vector and images; draw nothing in evaluation"
    _steady(lambda: network.apply(vector, x, train=False), said)
    with explained(f"stacking vectors of {name} with torch.func.vmap"):
        stacked = vmap(lambda v: network.apply(v, x, train=False))(torch.stack([other, vector]))
    require(torch.allclose(stacked[1], logits, rtol=1e-3, atol=1e-4), f"{name} gives other logits under vmap")
    _check_training(network, torch.stack([other, vector]), x)
    with suppress(UsageError):  # features are optional
        flat = network.features(vector, x, train=False).ndim == 2
        require(flat, f"features(x) of {name} must have shape (n, f)")
    with suppress(UsageError):  # activations too
        maps = network.activations(vector, x, train=False)
        plain = isinstance(maps, tuple) and maps and all(isinstance(m, torch.Tensor) for m in maps)
        said = f"activations(x) of {name} must be a tuple of finite tensors (n, ...), the map after each block"
        require(plain and all(len(m) == len(x) and m.isfinite().all() for m in maps), said)
    theta, images, labels = vector.clone().requires_grad_(), x.clone().requires_grad_(), torch.eye(classes)
    with Seed(0).scope(), explained(f"differentiating {name} twice, as matchers do,"):
        loss = soft_cross_entropy(network.apply(theta, images), labels[torch.arange(4) % classes])
        first = grad(loss, theta, create_graph=True)[0][: network.parameters]
        second = grad(first @ direction, images)[0]
    require(first.isfinite().all() and first.any(), f"no finite gradient reaches the parameters of {name}")
    require(second.isfinite().all() and second.any(), f"{name} has no finite second derivatives by its images")


def _check_training(network: Network, vectors: torch.Tensor, x: torch.Tensor) -> None:
    """In training mode, calls are repeatable, and vectors stacked give what each gives alone, unless it draws."""
    name = f"network {network.source.name!r}"

    def play(seed: int) -> torch.Tensor:
        with Seed(seed).scope():
            return torch.stack([network.apply(v, x) for v in vectors])

    one, other = play(0), play(1)
    again = f"{name} gives other logits in training mode for the same seed; keep nothing between calls"
    require(torch.equal(play(0), one), again)
    with explained(f"stacking vectors of {name} in training mode"), Seed(0).scope():
        stacked = network.stacked(vectors, x)
    # batch norm over maps of one pixel, four numbers per channel, lets rounding errors grow
    alike = (stacked - one).norm() <= 1e-2 * one.norm() or not torch.equal(one, other)
    require(alike and stacked.isfinite().all(), f"{name} gives other logits in training mode when vectors are stacked")


def check_metric(metric: type | Metric) -> None:
    """Measure made-up predictions: finite floats, the same each time, and arguments left as they were.

    A metric with ``examine`` is shown a network of the toy task, with the marks that it asks for.
    """
    measure = _made("metric", metric)
    name = f"metric {measure.name!r}"
    if isinstance(measure, Examining):
        _check_examination(measure, name)
        return
    targets = torch.arange(30) % 5
    with Seed(0).scope():
        cases = {"random": torch.randn(30, 5), "perfect": 9 * torch.eye(5)[targets], "equal": torch.ones(30, 5)}
    for case, logits in cases.items():
        given = (logits.clone(), targets.clone())
        value = measure(*given)
        number = isinstance(value, float) and math.isfinite(value)
        require(number, f"{name} must give a finite float, got {value!r} for {case} predictions; use float(...)")
        kept = torch.equal(given[0], logits) and torch.equal(given[1], targets)
        require(kept, f"{name} changes its arguments in place; clone them first")
        _steady(lambda given=given: measure(*given), f"{name} gives two numbers for the same {case} predictions")


def _marks(measure: object, steps: int) -> list[int]:
    """The steps that a metric asks for, as it names them."""
    return sorted(measure.marks(steps)) if isinstance(measure, Marking) else []


def _check_examination(measure: Examining, name: str) -> None:
    problem, steps = toy_task(), 20
    vectors = [problem.starts[i] for i in range(steps + 1)]
    marks = _marks(measure, steps)
    require(all(isinstance(m, int) for m in marks), f"{name} must mark optimiser steps by whole numbers, got {marks}")
    trail = tuple((m, vectors[m]) for m in marks if 0 < m <= steps)
    logits, targets = predict(problem.network, vectors[-1], problem.real)
    student = Examinee(problem.network, vectors[-1], problem.real, logits, targets, trail, steps)
    before = [student.vector.clone(), logits.clone(), targets.clone()]
    found = measure.examine(student)
    numbers = isinstance(found, dict) and all(isinstance(v, float) and math.isfinite(v) for v in found.values())
    require(numbers and found, f"{name} must give a dictionary of finite floats, got {found!r}; use float(...)")
    after = [student.vector, logits, targets]
    kept = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    require(kept, f"{name} changes its arguments in place; clone them first")
    _steady(lambda: measure.examine(student), f"{name} gives two answers for the same student")


def _steady(work: Callable[[], Any], otherwise: str) -> Any:
    """What ``work`` gives, twice the same whatever torch, NumPy and ``random`` were seeded with before."""
    with Seed(1).scope():
        first = work()
    with Seed(2).scope():
        second = work()
    require(torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, otherwise)
    return first


@cache
def _scratch() -> Path:
    folder = tempfile.mkdtemp(prefix="ddbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _made(kind: str, given: Any, **counts: int) -> Any:
    """An instance: a frozen dataclass whose options survive JSON, with whole numbers for ``counts`` or more."""
    cls = given if isinstance(given, type) else type(given)
    try:
        check_class(kind, cls)
        plugin = cls() if isinstance(given, type) else given
        copy = make(cls, json.loads(json.dumps(describe(plugin)["options"], allow_nan=False)), kind)
    except (TypeError, ValueError) as error:
        hint = "options are fields with defaults that JSON can hold and that keep their own bounds"
        raise AssertionError(f"{cls.__name__} cannot be a {kind}: {error}; {hint}") from error
    require(copy == plugin, f"{plugin!r} comes back from JSON as {copy!r}; use numbers, text, None, or tuples of them")
    for name, least in counts.items():
        value = getattr(plugin, name, None)
        whole = type(value) is int and value >= least
        require(whole, f"{cls.__name__}.{name} must be a whole number of at least {least}, got {value!r}")
    return plugin


def _walk(plan: Scheduler, task: Problem) -> None:
    """Play all stages with blank sets."""
    done, name, spent = Curriculum(), f"next() of {plan.name!r}", 0
    for stage in range(plan.stages):
        said = f"{name} must give {plan.stages} problems of ipc 1 or more, not {stage}"
        problem = _problem(plan, task, done, said)
        again = f"{name} must give the same problem when a resumed run asks again"
        _steady(lambda done=done, said=said: _problem(plan, task, done, said).ipc, again)
        kept = problem.frozen.sets == done.sets and problem.frozen.phases == done.phases
        require(kept, f"{name} must pass on what is done: replace(task, ipc=..., frozen=done)")
        require(set(problem.starts.taught.sets) <= set(done.sets), f"{name} teaches sets that are not in `done`")
        spent += problem.ipc
        labels = torch.eye(task.classes).repeat_interleave(problem.ipc, 0)
        blank = SyntheticSet(torch.zeros(len(labels), *task.real.shape), labels)
        phases = _phases(plan, stage + 1, grows=bool(problem.starts.taught.sets) or stage == 0)
        done = Curriculum((*done.sets, blank), phases)
    require(spent == task.ipc, f"{plan.name!r} spends {spent} of {task.ipc} images per class; ddbench.share divides")
    require(plan.next(task, done) is None, f"{name} must give None when there are {plan.stages} sets")


def _problem(plan: Scheduler, task: Problem, done: Curriculum, otherwise: str) -> Problem:
    problem = plan.next(task, done)
    if problem is None or problem.ipc < 1:
        raise AssertionError(otherwise)
    return problem


def _phases(plan: Scheduler, n: int, *, grows: bool) -> tuple[tuple[int, ...], ...]:
    """The phases of n sets, checked; ``grows`` where start networks are students of the phases before."""
    phases, what = plan.phases(n), f"phases({n}) of {plan.name!r}"
    plain = isinstance(phases, tuple) and all(isinstance(phase, tuple) and phase for phase in phases)
    require(plain and phases, f"{what} must be a tuple of tuples, none of them empty; got {phases!r}")
    inside = all(0 <= i < n and phase.count(i) == 1 for phase in phases for i in phase)
    require(inside, f"{what} must name sets 0..{n - 1}, each at most once in a phase; got {phases}")
    require(n - 1 in phases[-1], f"{what} must end with a phase that holds the newest set, {n - 1}; got {phases}")
    grown = not grows or phases[: first_with(n - 1, phases)] == tuple(plan.phases(n - 1))
    require(grown, f"{what} must be phases({n - 1}) and one more, since stages start from its students; got {phases}")
    return phases
