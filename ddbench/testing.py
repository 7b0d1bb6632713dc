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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch.autograd import grad
from torch.func import vmap

from ddbench import Curriculum, Dataset, Needs, Network, Problem, Seed, SyntheticSet, UsageError
from ddbench.cache import Cache, digest
from ddbench.checkpoint import has_nan, load_state, save_state
from ddbench.plugins import check_class, registry
from ddbench.records import describe, make
from ddbench.run import build_task
from ddbench.spec import Request, resolve
from ddbench.stage import prepared
from ddbench.tensors import load_tensors
from ddbench.training import soft_cross_entropy

STEPS = 3  # of a matcher that are taken: enough to stop after each and go on
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


def check_matcher(matcher: Any) -> None:
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
            needs = _steady(lambda p=problem: method.needs(p) if hasattr(method, "needs") else Needs(), said)
            _require(isinstance(needs, Needs), said)
            with _explained(f"making what needs() of matcher {method.name!r} names"):
                problem = prepared(problem, needs) if needs.experts else problem
            made = _Trial(method, problem, folder / "state.safetensors").check()
            done = Curriculum((*done.sets, made), scheduler.phases(len(done) + 1))


def check_scheduler(scheduler: Any) -> None:
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
    _require(stages == 1 or not outcome, said)


def check_dataset(source: Any) -> None:
    """Load a dataset twice: uint8 pixels, every class to train on, parts that do not overlap, equal bits."""
    plugin = _made("dataset", source)
    data, name = plugin.load(), f"dataset {plugin.name!r}"
    _require(isinstance(data, Dataset), f"load() of {name} must return a ddbench.Dataset; Dataset.split makes one")
    _steady(lambda: plugin.load().digest, f"{name} loads other data each time; draw from a seeded torch.Generator")
    distinct = isinstance(data.classes, tuple) and len(set(data.classes)) == len(data.classes)
    _require(distinct, f"the classes of {name} must be a tuple of names that differ, in the order of the targets")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    for part, real in parts.items():
        with _explained(f"using the {part} part of {name}"):  # split refuses what is not uint8, empty classes, ...
            both = (data.train.pixels, data.train.targets), (real.pixels, real.targets)
            Dataset.split(data.name, data.classes, *both, preprocessing=data.train.preprocessing)
        alike = real.targets.dtype == torch.int64 and real.shape == data.train.shape
        _require(alike, f"the {part} part of {name} must have int64 targets and images of shape {data.train.shape}")
        finite = real[torch.arange(min(8, len(real)))].images.isfinite().all()
        _require(finite, f"the preprocessing of the {part} part of {name} gives numbers that are not finite")
    seen = {part: {digest(image.numpy().tobytes()) for image in real.pixels} for part, real in parts.items()}
    for one, other in combinations(seen, 2):
        common, size = len(seen[one] & seen[other]), min(len(seen[one]), len(seen[other]))
        said = f"{common} images of {name} are in {one} and in {other}; keep the parts disjoint"
        _require(common <= DUPLICATES * size, said)


def check_network(source: Any, *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> None:
    """Use a network as a pure function of a flat vector: repeatable, stackable, twice differentiable."""
    plugin = _made("network", source)
    name, network, generator = f"network {plugin.name!r}", Network(plugin, shape, classes), torch.get_rng_state()
    length = network.length  # builds the template, on the meta device
    silent = torch.equal(generator, torch.get_rng_state())
    _require(silent, f"building {name} on the meta device draws random numbers; leave drawing to the modules inside")
    said = f"{name} must start as its seed says; draw from torch's global generator alone"
    vector, other = _steady(lambda: network.init(Seed(0)), said), network.init(Seed(1))
    _require(not torch.equal(vector, other), said)
    _require(len(vector) == length > 0, f"{name} has {len(vector)} numbers, but {length} on the meta device")
    with Seed(0).scope():
        x, direction = torch.randn(4, *shape), torch.randn(network.parameters)
    logits = network.apply(vector, x, train=False)
    good = logits.shape == (4, classes) and bool(logits.isfinite().all())
    _require(good, f"{name} must give finite logits (4, {classes}) for 4 images, got shape {tuple(logits.shape)}")
    said = f"{name} gives other logits for the same vector and images; draw nothing in evaluation"
    _steady(lambda: network.apply(vector, x, train=False), said)
    with _explained(f"stacking vectors of {name} with torch.func.vmap"):
        stacked = vmap(lambda v: network.apply(v, x, train=False))(torch.stack([other, vector]))
    _require(torch.allclose(stacked[1], logits, rtol=1e-3, atol=1e-4), f"{name} gives other logits under vmap")
    with suppress(UsageError):  # features are optional
        flat = network.features(vector, x, train=False).ndim == 2
        _require(flat, f"features(x) of {name} must have shape (n, f)")
    theta, images, labels = vector.clone().requires_grad_(), x.clone().requires_grad_(), torch.eye(classes)
    with Seed(0).scope(), _explained(f"differentiating {name} twice, as matchers do,"):
        loss = soft_cross_entropy(network.apply(theta, images), labels[torch.arange(4) % classes])
        first = grad(loss, theta, create_graph=True)[0][: network.parameters]
        second = grad(first @ direction, images)[0]
    _require(first.isfinite().all() and first.any(), f"no finite gradient reaches the parameters of {name}")
    _require(second.isfinite().all() and second.any(), f"{name} has no finite second derivatives by its images")


def check_metric(metric: Any) -> None:
    """Measure made-up predictions: a finite float, the same each time, and arguments left as they were."""
    measure = _made("metric", metric)
    targets, name = torch.arange(30) % 5, f"metric {measure.name!r}"
    with Seed(0).scope():
        cases = {"random": torch.randn(30, 5), "perfect": 9 * torch.eye(5)[targets], "equal": torch.ones(30, 5)}
    for case, logits in cases.items():
        given = (logits.clone(), targets.clone())
        value = measure(*given)
        number = isinstance(value, float) and math.isfinite(value)
        _require(number, f"{name} must give a finite float, got {value!r} for {case} predictions; use float(...)")
        kept = torch.equal(given[0], logits) and torch.equal(given[1], targets)
        _require(kept, f"{name} changes its arguments in place; clone them first")
        _steady(lambda given=given: measure(*given), f"{name} gives two numbers for the same {case} predictions")


def _require(holds: Any, otherwise: str) -> None:
    """An assertion that python -O keeps."""
    if not holds:
        raise AssertionError(otherwise)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever ``what`` raises into a sentence; its own traceback stays attached."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}") from error


def _steady(work: Callable[[], Any], otherwise: str) -> Any:
    """What ``work`` gives, twice the same whatever torch, NumPy and ``random`` were seeded with before."""
    with Seed(1).scope():
        first = work()
    with Seed(2).scope():
        second = work()
    _require(torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, otherwise)
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
    _require(copy == plugin, f"{plugin!r} comes back from JSON as {copy!r}; use numbers, text, None, or tuples of them")
    for name, least in counts.items():
        value = getattr(plugin, name, None)
        whole = type(value) is int and value >= least
        _require(whole, f"{cls.__name__}.{name} must be a whole number of at least {least}, got {value!r}")
    return plugin


def _walk(plan: Any, task: Problem) -> None:
    """Play all stages with blank sets."""
    done, name, spent = Curriculum(), f"next() of {plan.name!r}", 0
    for stage in range(plan.stages):
        problem = plan.next(task, done)
        _require(problem and problem.ipc >= 1, f"{name} must give {plan.stages} problems of ipc 1 or more, not {stage}")
        said = f"{name} must give the same problem when a resumed run asks again"
        _steady(lambda done=done: plan.next(task, done).ipc, said)
        kept = problem.frozen.sets == done.sets and problem.frozen.phases == done.phases
        _require(kept, f"{name} must pass on what is done: replace(task, ipc=..., frozen=done)")
        _require(set(problem.starts.taught.sets) <= set(done.sets), f"{name} teaches sets that are not in `done`")
        spent += problem.ipc
        labels = torch.eye(task.classes).repeat_interleave(problem.ipc, 0)
        blank = SyntheticSet(torch.zeros(len(labels), *task.real.shape), labels)
        done = Curriculum((*done.sets, blank), _phases(plan, stage + 1))
    _require(spent == task.ipc, f"{plan.name!r} spends {spent} of {task.ipc} images per class; ddbench.share divides")
    _require(plan.next(task, done) is None, f"{name} must give None when there are {plan.stages} sets")


def _phases(plan: Any, n: int) -> tuple[tuple[int, ...], ...]:
    phases, what = plan.phases(n), f"phases({n}) of {plan.name!r}"
    plain = isinstance(phases, tuple) and all(isinstance(phase, tuple) and phase for phase in phases)
    _require(plain and phases, f"{what} must be a tuple of tuples, none of them empty; got {phases!r}")
    inside = all(0 <= i < n and phase.count(i) == 1 for phase in phases for i in phase)
    _require(inside, f"{what} must name sets 0..{n - 1}, each at most once in a phase; got {phases}")
    _require(n - 1 in phases[-1], f"{what} must end with a phase that holds the newest set, {n - 1}; got {phases}")
    grown = phases[:-1] == tuple(plan.phases(n - 1))
    _require(grown, f"{what} must be phases({n - 1}) and one more, since stages start from its students; got {phases}")
    return phases


# The ways in which the harness may drive a matcher, and what makes it give other bits than straight on.
MODES = {
    "straight on": "",
    "again, with result() after every step": "draw from torch's global generator alone, keep nothing on the class, "
    "and change nothing in result()",
    "again, from checkpoints": "put all that changes in the state, let no two tensors share memory, and draw nothing "
    "lazily; restored workspaces are empty, and restored tensors are contiguous and want no gradients",
}


@dataclass(frozen=True, eq=False)
class _Trial:
    """A matcher at work on one problem."""

    method: Any
    problem: Problem
    file: Path
    mode: str = "straight on"

    def check(self) -> SyntheticSet:
        """The set that the matcher makes."""
        name, around = f"matcher {self.method.name!r}", self._around()
        plays = {mode: replace(self, mode=mode)._play() for mode in MODES}
        _require(self._around() == around, f"{name} changes frozen sets or real data in place; clone them first")
        state, made, trail = plays[self.mode]
        for mode, play in plays.items():
            for call, bits in play[2].items():
                said = f"{call} of {name} gives other bits when it is driven {mode}; {MODES[mode]}"
                _require(bits == trail[call], said)
        result = made.detached()
        _check_set(name, self.problem, result)
        for tensor in (made.images, made.labels):
            torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(1)
        apart = not self.method.steps or self._bits(state) == list(trail.values())[-2]  # no step follows a coreset
        _require(apart, f"result() of {name} returns memory of its state, which later steps change; return clones")
        return result

    def _play(self) -> tuple[Any, SyntheticSet, dict[str, Any]]:
        """The last state, the result, and the bits after every call."""
        problem, trail, state = replace(self.problem), {}, None
        for k in range(-1, min(self.method.steps, STEPS)):
            state = self._call("init", problem) if k < 0 else self._step(problem, state, k)
            call = "init()" if k < 0 else f"step() {k}"
            trail[call] = self._bits(state)
            _require(not has_nan(state), f"{call} of matcher {self.method.name!r} leaves not-a-number in the state")
            if "result()" in self.mode:
                self._call("result", problem, state)
            if "checkpoints" in self.mode:
                problem, state = replace(self.problem), load_state(self.file, torch.device("cpu"))[0]
        made = self._call("result", problem, state)
        return state, made, trail | {"result()": self._bits(made)}

    def _step(self, problem: Problem, state: Any, k: int) -> Any:
        returned, name = self._call("step", problem, state, k), f"step() of matcher {self.method.name!r}"
        pair = isinstance(returned, tuple) and len(returned) == 2
        _require(pair, f"{name} must return (state, metrics), metrics being a dictionary of numbers")
        for metric, value in returned[1].items():
            _require(math.isfinite(float(value)), f"{name} reports a {metric} of {float(value)} on the toy task")
        return returned[0]

    def _call(self, hook: str, problem: Problem, *arguments: Any) -> Any:
        """Call the matcher with all generators seeded by the address of the call, as the harness does."""
        what = f"{hook}() of matcher {self.method.name!r}, driven {self.mode},"
        with (Seed(0) / hook / repr(arguments[1:])).scope(), _explained(what):
            return getattr(self.method, hook)(problem, *arguments)

    def _bits(self, value: Any) -> list[Any]:
        """What a checkpoint holds of a value: equal for bit-identical ones."""
        advice = "make it of tensors, numbers and text, in dataclasses from the top of a module"
        with _explained(f"saving the state of matcher {self.method.name!r} ({advice})"):
            save_state(self.file, value, {})
            load_state(self.file, torch.device("cpu"))
        tensors, metadata = load_tensors(self.file)
        raw = {name: digest(t.reshape(-1).view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}
        return [metadata["state"], {name: (t.dtype, t.shape, raw[name]) for name, t in tensors.items()}]

    def _around(self) -> list[Any]:
        """What a matcher must leave alone."""
        frozen, real = self.problem.frozen, self.problem.real
        return self._bits([*frozen.sets, frozen.frozen_examples, real.pixels, real.targets])


def _check_set(name: str, problem: Problem, made: SyntheticSet) -> None:
    """A balanced set of the data's shape with labels that are what they are called."""
    hard = torch.eye(problem.classes).repeat_interleave(problem.ipc, 0)  # (n, k), class by class
    wanted = (len(hard), *problem.real.shape), tuple(hard.shape)
    got = tuple(made.images.shape), tuple(made.labels.shape)
    _require(got == wanted, f"{name} must make images and labels of shapes {wanted} (ipc of each class), got {got}")
    floats = made.images.is_floating_point() and made.labels.is_floating_point()
    _require(floats and made.finite(), f"{name} must make finite floats, and an lr above 0 or None")
    rows = made.labels.min() >= 0 and torch.allclose(made.labels.sum(1), torch.ones(len(hard)), atol=1e-4)
    said = "must have label rows that sum to 1; call others label_kind='logit' or 'real'"
    _require(made.label_kind != "probability" or rows, f"{name} {said}")
    said = "must order its hard labels by class, ipc of each; give soft ones another label_type than 'hard'"
    _require(made.label_type != "hard" or torch.equal(made.labels, hard), f"{name} {said}")
