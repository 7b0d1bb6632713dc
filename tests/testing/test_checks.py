"""The checks of the kit by name: what is sound passes all of them, and every planted fault fails the one it is of."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddbench import Curriculum, Dataset, DivergedError, Needs, SyntheticSet, share
from ddbench.testing.findings import CHECKS, PASSED, UNREACHED, Findings
from ddbench.testing.kit import examine


@dataclass
class Pixels:
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Drift:
    """Real images under noise that torch, NumPy and ``random`` draw."""

    name = "drift"
    steps: int = 4
    size: float = 0.1

    def init(self, problem):
        examples = problem.sample()
        return Pixels(examples.images, examples.labels)

    def step(self, problem, state, k):
        noise = torch.randn_like(state.images) + float(np.random.rand()) + random.random()
        state.images += self.size * noise
        return state, {"loss": state.images.square().mean()}

    def result(self, problem, state):
        return SyntheticSet(state.images.clone(), state.labels.clone())


@dataclass(frozen=True)
class Halves:
    name = "halves"
    stages: int = 2

    def next(self, task, done):
        if len(done) == self.stages:
            return None
        ipc = share(task.ipc, self.stages, len(done))
        return replace(task, ipc=ipc, frozen=done, starts=replace(task.starts, taught=done))

    def phases(self, n):
        return tuple((i,) for i in range(n))


@dataclass(frozen=True)
class Noise:
    name = "noise"

    def load(self):
        return made_data(torch.Generator().manual_seed(0))


def made_data(generator: torch.Generator | None) -> Dataset:
    pixels = torch.randint(256, (60, 1, 6, 6), generator=generator, dtype=torch.uint8)
    targets = torch.arange(60) % 3
    return Dataset.split("noise", ("a", "b", "c"), (pixels[:40], targets[:40]), (pixels[40:], targets[40:]))


class Net(nn.Module):
    def __init__(self, size: int, classes: int, change: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, classes))
        self.change = change

    def forward(self, x):
        return self.change(self, x)


def net(change):
    return lambda self, shape, classes: Net(shape[0] * shape[1] * shape[2], classes, change)


@dataclass(frozen=True)
class Linear:
    name = "linear"
    build = net(lambda module, x: module.body(x))


@dataclass(frozen=True)
class Errors:
    name = "errors"
    bounds = (0.0, 1.0)

    def __call__(self, logits, targets):
        return float((logits.argmax(1) != targets).double().mean())


SOUND = {"matcher": Drift, "scheduler": Halves, "dataset": Noise, "network": Linear, "metric": Errors}


@pytest.mark.parametrize("kind", CHECKS)
def test_what_is_sound_passes_every_check(kind):
    assert examine(kind, SOUND[kind]).outcomes() == dict.fromkeys(CHECKS[kind], PASSED)


def planted(kind: str, **changes: Any) -> Findings:
    """What the checks find in the sound plugin of a kind with some attributes replaced."""
    return examine(kind, make_dataclass("Faulty", [], bases=(SOUND[kind],), namespace=changes, frozen=True))


# Faults of matchers: a step, or a result, that does something besides


def stepping(work):
    def step(self, problem, state, k):
        work(problem, state, k)
        return Drift.step(self, problem, state, k)

    return {"step": step}


def resulting(images=lambda x: x, labels=lambda y: y, **more):
    def result(self, problem, state):
        return SyntheticSet(images(state.images.clone()), labels(state.labels.clone()), **more)

    return {"result": result}


def draws_lazily(problem, state, k):
    if "direction" not in problem.workspace:
        problem.workspace["direction"] = torch.randn(state.images.shape)
    state.images += problem.workspace["direction"]


def draws_unseeded(problem, state, k):
    state.images += float(np.random.default_rng().random())


def changes_frozen_images(problem, state, k):
    for made in problem.frozen.sets:
        made.images.mul_(2)


def changes_real_data(problem, state, k):
    problem.real.pixels.store.array.zero_()


def sets_a_dtype(problem, state, k):
    torch.set_default_dtype(torch.float64)


def always_the_same(self, problem):
    generator = torch.Generator().manual_seed(0)
    labels = torch.eye(problem.classes).repeat_interleave(problem.ipc, 0)
    return Pixels(torch.randn(len(labels), *problem.real.shape, generator=generator), labels)


def reads_what_it_does_not_name(self, problem):
    problem.experts.snapshot(0, 2)
    return Drift.init(self, problem)


def diverges(problem, state, k):
    raise DivergedError("the loss exploded")


def labelled_anew(self, problem):
    return replace(Drift.init(self, problem), labels={"a set": {1, 2}})


FAULTY_MATCHERS = {
    "is not deterministic": ("repeat", stepping(draws_unseeded)),
    "ignores its seed": ("seed", {"init": always_the_same, "step": lambda self, p, s, k: (s, {})}),
    "seeds torch": ("generators", stepping(lambda p, s, k: torch.manual_seed(0))),
    "seeds torch's generator itself": ("generators", stepping(lambda p, s, k: torch.default_generator.manual_seed(0))),
    "seeds NumPy": ("generators", stepping(lambda p, s, k: np.random.seed(0))),
    "seeds Python": ("generators", stepping(lambda p, s, k: random.seed(0))),
    "changes frozen images": ("lent", stepping(changes_frozen_images)),
    "changes real data": ("lent", stepping(changes_real_data)),
    "loses an image": ("shape", resulting(lambda x: x[1:], lambda y: y[1:])),
    "makes larger images": ("shape", resulting(lambda x: torch.cat([x, x], 3))),
    "makes doubles": ("dtype", resulting(torch.Tensor.double)),
    "makes whole numbers": ("dtype", resulting(torch.Tensor.long)),
    "makes not-a-number": ("finite", resulting(lambda x: x * torch.nan)),
    "recommends no learning": ("finite", resulting(lr=0.0)),
    "reports not-a-number": ("finite", {"step": lambda self, p, s, k: (s, {"loss": torch.nan})}),
    "mixes up its classes": ("labels", resulting(labels=lambda y: y.flip(0))),
    "calls logits probabilities": ("labels", resulting(labels=lambda y: 10 * y, label_type="learned")),
    "sets the default dtype": ("process", stepping(sets_a_dtype)),
    "changes the working folder": ("process", stepping(lambda p, s, k: os.chdir("/"))),
    "writes where it is": ("folder", stepping(lambda p, s, k: Path("notes.txt").write_text("here"))),
    "saves where it is": ("folder", stepping(lambda p, s, k: torch.save(s.images, "images.pt"))),
    "makes a folder where it is": ("folder", stepping(lambda p, s, k: Path("made").mkdir(exist_ok=True))),
    "resumes to other bits": ("resume", stepping(draws_lazily)),
    "shares memory": ("memory", {"result": lambda self, p, s: SyntheticSet(s.images, s.labels.clone())}),
    "keeps a set in its state": ("state", {"init": labelled_anew, "steps": 0}),
    "returns the state alone": ("returns", {"step": lambda self, p, s, k: s}),
    "returns a tuple as its set": ("returns", {"result": lambda self, p, s: (s.images, s.labels)}),
    "reports words": ("returns", {"step": lambda self, p, s, k: (s, {"loss": "low"})}),
    "takes no step number": ("signature", {"step": lambda self, problem, state: (state, {})}),
    "takes more than it is given": ("signature", {"init": lambda self, problem, more: None}),
    "reads an expert that it does not name": (
        "runs",
        {"init": reads_what_it_does_not_name, "needs": lambda self, problem: Needs(1, (0, 1))},
    ),
    "diverges": ("runs", stepping(diverges)),
    "leaves": ("runs", stepping(lambda p, s, k: exit())),
    "needs something else each time": ("needs", {"needs": lambda self, p: Needs(int(torch.randint(1, 99, ())), (0,))}),
    "cannot be hashed": ("options", {"__hash__": None}),
    "has no name": ("options", {"name": None}),
}


FAIL_OTHERS = ("is not deterministic", "seeds torch", "seeds torch's generator itself")


@pytest.mark.parametrize("fault", FAULTY_MATCHERS)
def test_a_fault_of_a_matcher_fails_its_check(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check, changes = FAULTY_MATCHERS[fault]
    found = planted("matcher", **changes)
    assert check in found.failed, found.failed
    assert len(found.failed) == 1 or fault in FAIL_OTHERS, found.failed
    with pytest.raises(AssertionError) as caught:
        found.require()
    assert str(caught.value) in found.failed.values()
    assert torch.get_default_dtype() == torch.float32
    assert Path.cwd() == tmp_path


def test_options_that_are_not_frozen_fail_their_check():
    thawed = dataclass(type("Thawed", (), {"name": "thawed", "steps": 1} | {n: getattr(Drift, n) for n in METHODS}))
    listed = make_dataclass("Listed", [("sizes", list, None)], bases=(Drift,), frozen=True)
    assert list(examine("matcher", thawed).failed) == ["options"]
    assert "cannot be hashed" in examine("matcher", listed(sizes=[1, 2])).failed["options"]


METHODS = ("init", "step", "result")


def test_what_follows_a_vital_check_is_not_reached():
    outcomes = planted("matcher", **resulting(torch.Tensor.double)).outcomes()
    assert (outcomes["repeat"], outcomes["dtype"], outcomes["memory"]) == (PASSED, "failed", UNREACHED)


def test_several_faults_are_all_found():
    several = stepping(lambda p, s, k: (np.random.seed(0), draws_unseeded(p, s, k), torch.set_num_threads(7)))
    shared = {"result": lambda self, p, s: SyntheticSet(s.images, s.labels.clone())}
    assert {"generators", "repeat", "process", "memory"} <= set(planted("matcher", **several, **shared).failed)


def test_caches_and_temporary_folders_may_be_written_to(tmp_path, monkeypatch):
    from tempfile import TemporaryDirectory

    from ddbench.base.cache import data_home, home

    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))

    def writes(problem, state, k):
        for place in (home() / "mine", data_home() / "mine"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "notes").write_text("x")
        with TemporaryDirectory() as name:
            torch.save(state.images, f"{name}/images.pt")

    assert planted("matcher", **stepping(writes)).failed == {}


# Faults of schedulers


def problems(ipc=None, **more):
    def next_(self, task, done):
        if len(done) == self.stages:
            return None
        values = {"ipc": ipc(task.ipc, len(done)) if ipc else share(task.ipc, self.stages, len(done)), "frozen": done}
        return replace(task, **(values | {name: value(task, done) for name, value in more.items()}))

    return {"next": next_}


FAULTY_SCHEDULERS = {
    "hands out a wrong budget": ("budget", problems(lambda ipc, j: max(ipc // 2, 1))),
    "hands out nothing": ("problems", problems(lambda ipc, j: 0)),
    "gives up early": ("problems", {"next": lambda self, task, done: None}),
    "returns a number": ("problems", {"next": lambda self, task, done: 3}),
    "never stops": (
        "stops",
        {"next": lambda self, task, done: replace(task, ipc=share(task.ipc, 2, len(done) % 2), frozen=done)},
    ),
    "forgets what is done": ("done", problems(frozen=lambda task, done: Curriculum())),
    "draws its sizes": ("repeat", problems(lambda ipc, j: int(torch.randint(1, 1000, ())))),
    "leaves out the newest set": ("phases", {"phases": lambda self, n: ((0,),) * n}),
    "takes any number of images": ("refuses", problems(lambda ipc, j: ipc // 2 + (j < ipc % 2) or 1)),
    "fails": ("problems", {"next": lambda self, task, done: 1 // 0}),
    "takes no curriculum": ("signature", {"next": lambda self, task: None}),
    "seeds generators": ("generators", {"phases": lambda self, n: (random.seed(0), Halves.phases(self, n))[1]}),
}


@pytest.mark.parametrize("fault", FAULTY_SCHEDULERS)
def test_a_fault_of_a_scheduler_fails_its_check(fault):
    check, changes = FAULTY_SCHEDULERS[fault]
    assert check in planted("scheduler", **changes).failed


# Faults of datasets


def altered(**parts):
    def load(self):
        data = Noise().load()
        return replace(data, **{name: change(data) for name, change in parts.items()})

    return {"load": load}


FAULTY_DATASETS = {
    "has another digest at each load": ("repeat", {"load": lambda self: made_data(None)}),
    "tests on what it trains on": ("disjoint", altered(test=lambda d: d.train)),
    "holds floats": ("pixels", altered(test=lambda d: replace(d.test, pixels=d.test.pixels[:].float()))),
    "lacks a class": ("pixels", altered(train=lambda d: d.train.subset(d.train.targets > 0))),
    "has narrow targets": ("pixels", altered(test=lambda d: replace(d.test, targets=d.test.targets.int()))),
    "has tests of another size": (
        "shape",
        altered(test=lambda d: replace(d.test, pixels=d.test.pixels[..., 1:].contiguous())),
    ),
    "names a class twice": ("classes", altered(classes=lambda d: ("a", "b", "a"))),
    "is no Dataset": ("loads", {"load": lambda self: {"train": None}}),
    "fails": ("loads", {"load": lambda self: 1 // 0}),
    "seeds NumPy": ("generators", {"load": lambda self: (np.random.seed(0), Noise.load(self))[1]}),
    "leaves notes": ("folder", {"load": lambda self: (Path("notes").write_text("x"), Noise.load(self))[1]}),
}


@pytest.mark.parametrize("fault", FAULTY_DATASETS)
def test_a_fault_of_a_dataset_fails_its_check(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check, changes = FAULTY_DATASETS[fault]
    assert list(planted("dataset", **changes).failed) == [check]


# Faults of networks


def drawn_on_meta(self, shape, classes):
    torch.rand(1, device="cpu")
    return Linear().build(shape, classes)


def by_rank(module, x):
    return module.body(x) + torch.arange(len(x))[:, None]


FAULTY_NETWORKS = {
    "depends on the order of its batch": ("order", net(by_rank)),
    "depends on the rest of its batch": ("order", net(lambda m, x: m.body(x - x.mean(0)))),
    "drops out in evaluation": ("repeat", net(lambda m, x: nn.functional.dropout(m.body(x), 0.5, training=True))),
    "forgets a class": ("logits", net(lambda m, x: m.body(x)[:, 1:])),
    "gives not-a-number": ("logits", net(lambda m, x: m.body(x) * torch.nan)),
    "looks at values": ("vmap", net(lambda m, x: m.body(x) * (1.0 if float(m.body[1].weight.sum()) > 0 else 2.0))),
    "has no gradient": ("gradients", net(lambda m, x: m.body(x).detach())),
    "draws while its template is built": ("template", drawn_on_meta),
    "takes no classes": ("signature", lambda self, shape: None),
    "seeds generators": ("generators", net(lambda m, x: (torch.manual_seed(0), m.body(x))[1])),
}


@pytest.mark.parametrize("fault", FAULTY_NETWORKS)
def test_a_fault_of_a_network_fails_its_check(fault):
    check, build = FAULTY_NETWORKS[fault]
    assert check in planted("network", build=build).failed


# Faults of metrics

FAULTY_METRICS = {
    "leaves its range": (
        "range",
        {"__call__": lambda self, logits, targets: 1 + Errors.__call__(self, logits, targets)},
    ),
    "has bounds that are none": ("range", {"bounds": 1.0}),
    "returns a tensor": ("number", {"__call__": lambda self, logits, targets: logits.mean()}),
    "returns not-a-number": ("number", {"__call__": lambda self, logits, targets: float("nan")}),
    "writes into logits": ("arguments", {"__call__": lambda self, logits, targets: float(logits.zero_().sum())}),
    "draws": ("repeat", {"__call__": lambda self, logits, targets: float(torch.rand(()))}),
    "takes no targets": ("signature", {"__call__": lambda self, logits: 0.0}),
    "examines out of range": ("range", {"examine": lambda self, student: {"share": 2.0}}),
}


@pytest.mark.parametrize("fault", FAULTY_METRICS)
def test_a_fault_of_a_metric_fails_its_check(fault):
    check, changes = FAULTY_METRICS[fault]
    assert list(planted("metric", **changes).failed) == [check]


def test_every_check_is_failed_by_some_fault_here_or_beside():
    named = {kind: set() for kind in CHECKS}
    for kind, faults in (
        ("matcher", FAULTY_MATCHERS),
        ("scheduler", FAULTY_SCHEDULERS),
        ("dataset", FAULTY_DATASETS),
        ("network", FAULTY_NETWORKS),
        ("metric", FAULTY_METRICS),
    ):
        named[kind] = {check for check, _ in faults.values()}
    beside = {"options", "process", "folder", "generators", "signature"}  # of all kinds by the same code
    beside |= {"taught", "finite", "starts", "training", "features"}  # tests/testing/test_kit.py
    assert all(set(CHECKS[kind]) - named[kind] <= beside for kind in CHECKS)
