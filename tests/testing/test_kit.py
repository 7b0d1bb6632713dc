"""Every registered plugin passes the kit that third parties run, and every check of the kit can fail."""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import miniature
import numpy as np
import pictures
import pytest
import torch
from annotated_types import Ge
from torch import Tensor, nn

from ddbench import Curriculum, Dataset, DivergedError, Needs, Preprocessing, SyntheticSet, hookspecs, share
from ddbench import testing as kit
from ddbench.base.options import make
from ddbench.plugins import registry
from ddbench.testing.check import found
from ddbench.testing.findings import CHECKS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "writing-a-plugin.md"
SKELETONS, EXAMPLES = ROOT / "ddbench" / "testing" / "skeletons", ROOT / "examples"

# Options with which a plugin is quick; plugins that are not named here are checked with their defaults.
QUICK = {"experts": 2, "syn_steps": 3, "max_start": 2, "span": 1}
OPTIONS = {
    ("matcher", "tesla"): [
        QUICK,
        QUICK | {"curvature": "exact", "labels": "learned", "batch_syn": 2, "clip": 2.0, "pix_init": "noise"},
        QUICK | {"labels": "hard", "window": 2, "augment": False},
    ],
    ("matcher", "mtt"): [QUICK, QUICK | {"labels": "teacher"}],
    ("matcher", "ftd"): [QUICK, QUICK | {"flat": False, "decay": 0.0, "labels": "teacher", "batch_syn": 2}],
    ("matcher", "att"): [
        QUICK | {"max_start": 3},
        QUICK | {"decay": 0.0, "curvature": "zero", "batch_syn": 2, "labels": "teacher", "pix_init": "noise"},
    ],
    ("matcher", "datm"): [
        QUICK | {"max_start": 3, "cur_max": 1, "expansion_end": 2},
        QUICK | {"flat": True, "pix_init": "real", "curvature": "zero", "batch_syn": 2, "min_start": 1},
        QUICK | {"labels": "hard", "pix_init": "noise", "threshold": 0.9},
    ],
    ("matcher", "pad"): [
        QUICK | {"threshold": 100.0},
        QUICK | {"select": "loss", "all_after": 1, "drop_after": (1,), "drop": (0.5,), "labels": "hard"},
        QUICK | {"flat": True, "ratio": 0.0, "pix_init": "real", "curvature": "zero", "threshold": 100.0},
    ],
    ("matcher", "selmatch"): [
        QUICK | {"judges": 1},
        QUICK | {"alpha": 1.0, "score": "forgetting", "beta": 1.5, "batch_syn": 2, "curvature": "zero"},
        QUICK | {"pix_init": "real", "alpha": 0.1},
    ],
    ("matcher", "random"): [{}, {"labels": "teacher", "teacher_epochs": 1}],
    ("matcher", "herding"): [{"experts": 2, "epochs": 1}, {"experts": 1, "epochs": 1, "labels": "teacher"}],
    ("matcher", "k-center"): [{"experts": 2, "epochs": 1}],
    ("matcher", "k-means"): [{"experts": 2, "epochs": 1}],
    ("matcher", "forgetting"): [{"experts": 2, "epochs": 3}, {"experts": 2, "epochs": 2, "order": "moderate"}],
    ("matcher", "el2n"): [{"experts": 2, "epochs": 1}, {"experts": 1, "order": "hardest", "labels": "teacher"}],
    ("matcher", "ssp"): [{"epochs": 1}, {"epochs": 1, "order": "hardest", "prototypes": 4, "restarts": 1}],
    ("matcher", "rat-bptt"): [
        {"total": 4, "window": 2, "batch_real": 9},
        {"total": 3, "window": 3, "batch_real": 9, "labels": "learned", "optimizer": "sgd", "lr_lr": 0.1},
    ],
    ("matcher", "at-bptt"): [
        {"total": 4, "window": 2, "spread": 1, "batch_real": 60},
        {"total": 3, "window": 3, "spread": 0, "batch_real": 200, "labels": "learned", "optimizer": "sgd"},
    ],
    ("matcher", "frepo"): [{"batch_real": 9, "max_online": 2}, {"batch_real": 9, "flip": True, "batch_syn": 4}],
    ("matcher", "dc"): [{"batch_real": 9, "outer": 2, "inner": 1}, {"batch_real": 9, "metric": "mse", "momentum": 0.0}],
    ("matcher", "dsa"): [{"batch_real": 9, "sampling": "k-means"}, {"batch_real": 9, "metric": "cos", "outer": 1}],
    ("matcher", "dm"): [
        {"batch_real": 9, "sampling": "k-means", "cluster_every": 2, "pix_init": "k-means"},
        {"pix_init": "noise", "augment": False, "momentum": 0.0},
    ],
    ("matcher", "idc"): [
        {"inner": 2, "n_data": 60, "batch_real": 9},
        {"inner": 1, "n_data": 9, "metric": "l1", "batch_syn": 2, "early": 1, "mix_probability": 0.0},
        {"n_data": 0, "momentum": 0.0, "augment": ""},
    ],
    ("matcher", "dance"): [
        {"models": 2, "epochs": 1, "batch_real": 9},
        {"models": 1, "epochs": 2, "calibration": 0.0, "augment": "", "batch_syn": 2, "momentum": 0.0},
    ],
    ("matcher", "tgdd"): [
        {"models": 2, "epochs": 1, "batch_real": 9},
        {"models": 1, "epochs": 2, "interval": 1, "constraint": 0.0, "augment": "", "batch_syn": 2, "momentum": 0.0},
    ],
    ("matcher", "dream"): [
        {"inner": 3, "n_data": 9, "batch_real": 5, "cluster_every": 2},
        {"inner": 2, "n_data": 0, "batch_real": 500, "sampling": "random"},
    ],
    ("matcher", "idm"): [
        {"networks": 4, "fresh": 1, "train_steps": 2, "batch_net": 9, "batch_real": 9},
        {"networks": 1, "trained": 0, "ce_weight": 0.0, "pix_init": "noise", "augment": False, "momentum": 0.0},
    ],
    ("matcher", "ncfm"): [
        {"models": 2, "epochs": 1, "frequencies": 16},
        {"models": 1, "epochs": 2, "frequencies": 8, "alpha": 0.3, "calibration": 0.0, "patience": 1, "augment": ""},
    ],
    ("matcher", "rded"): [
        {"teacher_epochs": 1, "candidates": 9},
        {"teacher_epochs": 1, "factor": 2, "crops": 1, "temperature": 4.0, "teacher_norm": "same"},
        {"teacher_epochs": 1, "smallest": 1.0, "labels": "hard"},
    ],
    ("matcher", "sre2l"): [
        {"teacher_epochs": 1},
        {"teacher_epochs": 1, "pix_init": "real", "batch": 2, "jitter": 0, "labels": "hard"},
        {"teacher_epochs": 1, "curriculum": "cosine", "milestone": 0.5},
    ],
    ("matcher", "g-vbsm"): [
        {"teacher_epochs": 1, "teachers": ("own", "convnet(width=3,depth=2,norm=batch)")},
        {"teacher_epochs": 1, "teachers": (), "pix_init": "real", "batch": 2, "drop": 0.0, "labels": "hard"},
    ],
    ("matcher", "edc"): [
        {"teacher_epochs": 1, "teachers": ("own", "convnet(width=3,depth=2,norm=batch)"), "flatness": 1.0},
        {"teacher_epochs": 1, "teachers": (), "pix_init": "noise", "batch": 2, "drop": 0.4, "labels": "hard"},
    ],
    ("matcher", "ccfs"): [
        {"teacher_epochs": 1, "experts": 2, "epochs": 2, "recover": 2, "filter_epochs": 1, "phases": 1},
        {"teacher_epochs": 1, "score": "logits", "recover": 2, "filter_epochs": 1, "order": "random", "labels": "hard"},
    ],
    ("scheduler", "pdd"): [{}, {"stages": 1}, {"stages": 7}, {"chain": False}, {"stages": 2, "drop": "correct"}],
    ("scheduler", "seqmatch"): [{}, {"stages": 3}],
    ("network", "convnet"): [{"width": 8}, {"width": 8, "norm": "batch"}, {"width": 8, "norm": "none"}],
    ("network", "alexnet"): [{"width": 8}],
    ("network", "vgg11"): [{"width": 4}, {"width": 4, "norm": "batch"}],
    ("network", "resnet18"): [{"width": 4}, {"width": 4, "norm": "batch"}],
    ("network", "resnet18-ap"): [{"width": 4}],
    ("network", "vit"): [{"dim": 24, "heads": 2, "depth": 3}],
    ("dataset", "toy"): [{}, {"channels": 3, "zca": True, "limit": 60}],
}
CASES = [
    pytest.param(kind, name, options, id=f"{kind}-{name}-{number}")
    for kind in CHECKS
    for name in registry().names(kind)
    for number, options in enumerate(OPTIONS.get((kind, name), [{}]))
]


def files_of(name: str, folder: Path, monkeypatch) -> dict[str, str]:
    """Write what the dataset ``name`` reads, if it reads files; the options that lead there."""
    if name in miniature.WRITERS:
        miniature.write(name, monkeypatch)
    elif name in ("images", "hf"):
        return {"root" if name == "images" else "path": pictures.folder(folder, pictures.tree())}
    elif name == "tinyimagenet":
        return {"root": pictures.folder(folder, pictures.tiny_imagenet())}
    elif name == "imagenet":
        return {"root": pictures.folder(folder, pictures.imagenet())}
    return {}


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_every_registered_plugin_keeps_its_contract(kind, name, options, tmp_path, monkeypatch):
    if name == "hf":
        pytest.importorskip("datasets", reason="the extra hf is not installed")
    if kind == "dataset":
        monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
        options = options | files_of(name, tmp_path / "files", monkeypatch)
    plugin = make(registry().get(kind, name).cls, options, kind)
    getattr(kit, f"check_{kind}")(plugin)


def test_toy_task_is_the_task_of_the_harness(tmp_path):
    task = kit.toy_task(ipc=3, seed=5, folder=tmp_path)
    assert (task.ipc, task.classes, task.real.shape, task.seed.root) == (3, 3, (1, 8, 8), 5)
    assert task.starts.cache.root == tmp_path
    assert not task.frozen.sets
    assert len(task.starts[0]) == task.network.length


def test_classes_are_checked_with_their_defaults():
    kit.check_matcher(Drift)
    kit.check_scheduler(Halves)


# Good plugins, from which the broken ones below differ in one respect.


@dataclass
class Pixels:
    images: Tensor
    labels: Tensor
    extra: Any = None


@dataclass(frozen=True)
class Drift:
    """Real images under a growing noise."""

    name = "drift"
    steps: int = 5
    size: Annotated[float, Ge(0)] = 0.1

    def init(self, problem):
        examples = problem.sample()
        return Pixels(examples.images, examples.labels)

    def step(self, problem, state, k):
        state.images += self.size * torch.randn_like(state.images)
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
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (60, 1, 6, 6), generator=generator, dtype=torch.uint8)
        targets = torch.arange(60) % 3
        return Dataset.split("noise", ("a", "b", "c"), (pixels[:40], targets[:40]), (pixels[40:], targets[40:]))


@dataclass(frozen=True)
class Linear:
    name = "linear"

    def build(self, shape, classes):
        size = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, classes))


@dataclass(frozen=True)
class Errors:
    name = "errors"

    def __call__(self, logits, targets):
        return float((logits.argmax(1) != targets).sum())


GOOD = {"matcher": Drift, "scheduler": Halves, "dataset": Noise, "network": Linear, "metric": Errors}


@pytest.mark.parametrize("kind", CHECKS)
def test_good_examples_pass(kind):
    getattr(kit, f"check_{kind}")(GOOD[kind])


def refusal(kind: str, **changes: Any) -> str:
    """What the kit says of the good plugin of a kind with some attributes replaced."""
    broken = make_dataclass("Broken", [], bases=(GOOD[kind],), namespace=changes, frozen=True)
    with pytest.raises(AssertionError) as caught:
        getattr(kit, f"check_{kind}")(broken)
    return str(caught.value)


# Broken matchers


def step_from_a_generator_on_the_class(self, problem, state, k):
    state.images += torch.randn(state.images.shape, generator=self.generator)
    return state, {}


def step_that_counts_its_calls(self, problem, state, k):
    self.calls.append(k)
    state.images += len(self.calls)
    return state, {}


def step_with_a_generator_of_its_own(self, problem, state, k):
    state.images += float(np.random.default_rng().random())
    return state, {}


def step_that_draws_lazily(self, problem, state, k):
    if "direction" not in problem.workspace:
        problem.workspace["direction"] = torch.randn(state.images.shape)
    return Drift.step(self, problem, state, k)


def step_on_shared_memory(self, problem, state, k):
    state.images += 1
    state.extra *= 2
    return state, {}


def step_that_differentiates_its_state(self, problem, state, k):
    gradient = torch.autograd.grad(state.images.square().sum(), state.images)[0]
    return replace(state, images=(state.images - gradient).detach().requires_grad_()), {}


def step_that_changes_frozen_images(self, problem, state, k):
    for s in problem.frozen.sets:
        s.images.mul_(2)
    return state, {}


def step_that_changes_the_frozen_pool(self, problem, state, k):
    if problem.frozen.frozen_examples:
        problem.frozen.frozen_examples.images.mul_(2)
    return state, {}


def step_that_changes_real_data(self, problem, state, k):
    problem.real.pixels.store.array.zero_()
    return state, {}


def step_that_diverges(self, problem, state, k):
    raise DivergedError("the loss exploded; try a smaller size")


def init_in_a_local_class(self, problem):
    @dataclass
    class Local:
        images: Tensor
        labels: Tensor

    examples = problem.sample()
    return Local(examples.images, examples.labels)


def init_reading_an_expert(self, problem):
    problem.experts.snapshot(0, 2)
    return Drift.init(self, problem)


def init_sharing_memory(self, problem):
    state = Drift.init(self, problem)
    return replace(state, extra=state.images)


def init_wanting_gradients(self, problem):
    state = Drift.init(self, problem)
    return replace(state, images=state.images.requires_grad_())


def result_that_changes_the_state(self, problem, state):
    state.images.clamp_(-0.5, 0.5)
    return Drift.result(self, problem, state)


def made(images=lambda x: x, labels=lambda y: y, **more):
    def result(self, problem, state):
        return SyntheticSet(images(state.images.clone()), labels(state.labels.clone()), **more)

    return result


BROKEN_MATCHERS = {
    "draws from a generator on the class": (
        {"generator": torch.Generator(), "step": step_from_a_generator_on_the_class},
        r"step\(\) 0 of matcher 'drift' gives other bits .* again.*draw from torch's global generator alone",
    ),
    "counts its calls on the class": (
        {"calls": [], "step": step_that_counts_its_calls},
        r"step\(\) 0 .* keep nothing on the class",
    ),
    "has an unseeded generator": ({"step": step_with_a_generator_of_its_own}, r"step\(\) 0 .* gives other bits"),
    "draws lazily": ({"step": step_that_draws_lazily}, r"step\(\) 1 .* from checkpoints; .*draw nothing lazily"),
    "shares memory in its state": (
        {"init": init_sharing_memory, "step": step_on_shared_memory},
        r"step\(\) 0 .* from checkpoints; .*let no two tensors share memory",
    ),
    "needs gradients in its state": (
        {"init": init_wanting_gradients, "step": step_that_differentiates_its_state},
        r"step\(\) of matcher 'drift', driven again, from checkpoints.* raised RuntimeError: .*does not require grad",
    ),
    "keeps a set in its state": (
        {"init": lambda self, problem: replace(Drift.init(self, problem), extra={1, 2})},
        r"saving the state of matcher 'drift' .*raised UsageError: a matcher's state may hold",
    ),
    "has a local state class": ({"init": init_in_a_local_class}, r"dataclasses from the top of a module.* is loaded"),
    "result changes the state": ({"result": result_that_changes_the_state}, r"change nothing in result\(\)"),
    "result shares memory with the state": (
        {"result": lambda self, problem, state: SyntheticSet(state.images, state.labels.clone())},
        r"result\(\) of matcher 'drift' returns memory of its state.*return clones",
    ),
    "result shares labels with the state": (
        {"result": lambda self, problem, state: SyntheticSet(state.images.clone(), state.labels)},
        r"returns memory of its state",
    ),
    "changes frozen sets": ({"step": step_that_changes_frozen_images}, r"changes frozen sets or real data in place"),
    "changes the frozen pool": ({"step": step_that_changes_the_frozen_pool}, r"changes frozen sets or real data"),
    "changes real data": ({"step": step_that_changes_real_data}, r"changes frozen sets or real data in place"),
    "loses an image": ({"result": made(lambda x: x[1:], lambda y: y[1:])}, r"must make images and labels of shapes"),
    "makes larger images": ({"result": made(lambda x: torch.cat([x, x], 3))}, r"shapes \(\(6, 1, 8, 8\), \(6, 3\)\)"),
    "makes whole numbers": ({"result": made(torch.Tensor.long)}, r"must make finite floats"),
    "makes NaN": ({"result": made(lambda x: x * torch.nan)}, r"must make finite floats"),
    "recommends no learning": ({"result": made(lr=0.0)}, r"an lr above 0 or None"),
    "mixes up its classes": ({"result": made(labels=lambda y: y.flip(0))}, r"must order its hard labels by class"),
    "calls soft labels hard": (
        {"result": made(labels=lambda y: 0.9 * y + 0.1 / 3)},
        r"give soft ones another label_type than 'hard'",
    ),
    "calls logits probabilities": (
        {"result": made(labels=lambda y: 10 * y, label_type="learned")},
        r"must have label rows that sum to 1; call others label_kind='logit'",
    ),
    "reads an expert that it does not name": (
        {"init": init_reading_an_expert, "needs": lambda self, problem: Needs(1, (0, 1))},
        r"init\(\) of matcher 'drift'.* raised Absent: expert 0 has no snapshot 2; .*needs\(\).*\[0, 1\]",
    ),
    "needs something else each time": (
        {"needs": lambda self, problem: Needs(int(torch.randint(1, 1000, ())), (0,))},
        r"needs\(\) of matcher 'drift' must return the same ddbench.Needs",
    ),
    "needs no Needs": ({"needs": lambda self, problem: None}, r"must return the same ddbench.Needs"),
    "returns the state alone": ({"step": lambda self, problem, state, k: state}, r"must return \(state, metrics\)"),
    "reports NaN": ({"step": lambda self, p, s, k: (s, {"loss": torch.nan})}, r"reports a loss of nan on the toy task"),
    "diverges": ({"step": step_that_diverges}, r"raised DivergedError: the loss exploded; try a smaller size"),
}


@pytest.mark.parametrize("flaw", BROKEN_MATCHERS)
def test_kit_refuses_a_matcher_that(flaw):
    changes, said = BROKEN_MATCHERS[flaw]
    assert re.search(said, refusal("matcher", **changes))


def test_matchers_that_never_step_may_return_their_state():
    """As the harness copies what it keeps, sharing memory harms only where a later step writes."""
    shared = lambda self, problem, state: SyntheticSet(state.images, state.labels)
    kit.check_matcher(make_dataclass("Shared", [], bases=(Drift,), namespace={"result": shared}, frozen=True)(steps=0))


def test_kit_sees_what_happens_on_the_second_stage_alone():
    def result(self, problem, state):
        return SyntheticSet(state.images.clone() / len(problem.frozen), state.labels.clone())

    assert re.search("ZeroDivisionError|finite floats", refusal("matcher", result=result))

    def fails_later(self, problem, state):
        assert not problem.frozen.sets, "I know nothing of frozen sets"
        return Drift.result(self, problem, state)

    assert "raised AssertionError: I know nothing of frozen sets" in refusal("matcher", result=fails_later)


# Broken options


@dataclass
class Thawed:
    name = "thawed"
    steps: int = 1
    init, step, result = Drift.init, Drift.step, Drift.result


@dataclass(frozen=True)
class OutOfBounds(Drift):
    size: Annotated[float, Ge(0)] = -1.0


@dataclass(frozen=True)
class Listed(Drift):
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class WithTensor(Drift):
    weight: Any = torch.zeros(1)  # noqa: RUF009


@dataclass(frozen=True)
class Forgetful(Drift):
    ratio: float = 0.5

    def __eq__(self, other):
        return self is other

    __hash__ = None


@dataclass(frozen=True, kw_only=True)
class Required(Drift):
    ratio: float


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Thawed, r"Thawed cannot be a matcher: register a class decorated with @dataclass\(frozen=True\)"),
        (OutOfBounds, r"matcher\.size: Input should be greater than or equal to 0, got -1\.0; options are fields"),
        (WithTensor, r"cannot be a matcher: Object of type Tensor is not JSON serializable"),
        (Forgetful, r"comes back from JSON as"),
        (Required, r"missing 1 required.* argument: 'ratio'; options are fields with defaults"),
        (replace(Drift(), size=float("nan")), r"not JSON compliant"),
        (make_dataclass("B", [], bases=(Drift,), namespace={"name": "Has Spaces"}, frozen=True), r"name must match"),
        (make_dataclass("B", [], bases=(Drift,), namespace={"step": None}, frozen=True), r"has no method step\(\)"),
        (Drift(steps=-1), r"Drift\.steps must be a whole number of at least 0, got -1"),
    ],
)
def test_options_must_survive_json(cls, said):
    with pytest.raises(AssertionError, match=said):
        kit.check_matcher(cls)


def test_option_that_changes_on_the_way_through_json_is_refused():
    with pytest.raises(AssertionError, match=r"cannot be hashed; use tuples where options are lists"):
        kit.check_matcher(Listed)
    sets = make_dataclass("Sets", [("sizes", Any, (1, 2))], bases=(Drift,), frozen=True)
    with pytest.raises(AssertionError, match=r"comes back from JSON as .*\[1, 2\]"):
        kit.check_matcher(sets)


# Broken schedulers


def problem_of(ipc=None, **more):
    def next_(self, task, done):
        if len(done) == self.stages:
            return None
        values = {"ipc": ipc(task.ipc, len(done)) if ipc else share(task.ipc, self.stages, len(done)), "frozen": done}
        return replace(task, **(values | {name: value(task, done) for name, value in more.items()}))

    return next_


def fresh_set(task):
    return SyntheticSet(torch.zeros(3, *task.real.shape), torch.eye(3))


def refuses_with_a_value_error(self, task, done):
    if task.ipc < self.stages:
        raise ValueError("too small")
    return Halves.next(self, task, done)


def rows(*phases):
    return lambda self, n: tuple(phases[:n])


BROKEN_SCHEDULERS = {
    "loses an image": ({"next": problem_of(lambda ipc, j: max(ipc // 2, 1))}, r"spends 4 of 5 images per class"),
    "asks for nothing": ({"next": problem_of(lambda ipc, j: 0)}, r"must give 2 problems of ipc 1 or more"),
    "gives up early": ({"next": lambda self, task, done: None}, r"must give 2 problems .*, not 0"),
    "never stops": (
        {"next": lambda self, task, done: replace(task, ipc=share(task.ipc, 2, len(done) % 2), frozen=done)},
        r"must give None when there are 2 sets",
    ),
    "forgets what is done": ({"next": problem_of(frozen=lambda t, done: Curriculum())}, r"must pass on what is done"),
    "changes what is done": (
        {"next": problem_of(frozen=lambda task, done: Curriculum(done.sets, done.phases[:0]))},
        r"must pass on what is done: replace\(task, ipc=\.\.\., frozen=done\)",
    ),
    "teaches something else": (
        {"next": problem_of(starts=lambda t, done: replace(t.starts, taught=Curriculum((fresh_set(t),), ((0,),))))},
        r"teaches sets that are not in `done`",
    ),
    "draws its sizes": (
        {"next": problem_of(lambda ipc, j: int(torch.randint(1, 1000, ())))},
        r"must give the same problem when a resumed run asks again",
    ),
    "takes any ipc": (
        {"next": problem_of(lambda ipc, j: ipc // 2 + (j < ipc % 2) or 1)},
        r"'halves' returns a problem for ipc 1 in 2 stages; raise a ddbench\.UsageError",
    ),
    "raises its own error": ({"next": refuses_with_a_value_error}, r"raises ValueError\('too small'\) .*UsageError"),
    "returns lists": ({"phases": lambda self, n: [[0], [1]][:n]}, r"phases\(1\) of 'halves' must be a tuple of tuples"),
    "has an empty phase": ({"phases": rows((), (1,))}, r"none of them empty"),
    "has no phases": ({"phases": lambda self, n: ()}, r"must be a tuple of tuples"),
    "looks ahead": ({"phases": rows((0, 1), (0, 1))}, r"phases\(1\) .* must name sets 0\.\.0"),
    "sees a set twice": ({"phases": rows((0,), (1, 1))}, r"each at most once in a phase"),
    "leaves out the newest set": ({"phases": rows((0,), (0,))}, r"must end with a phase that holds the newest set, 1"),
    "rewrites the past": (
        {"phases": lambda self, n: (tuple(range(n)),) if n else ()},
        r"phases\(2\) of 'halves' must be phases\(1\) and one more",
    ),
}


@pytest.mark.parametrize("flaw", BROKEN_SCHEDULERS)
def test_kit_refuses_a_scheduler_that(flaw):
    changes, said = BROKEN_SCHEDULERS[flaw]
    assert re.search(said, refusal("scheduler", **changes))


@pytest.mark.parametrize("stages", [0, True])
def test_stages_must_be_a_number_from_one(stages):
    with pytest.raises(AssertionError, match=r"stages must be a whole number of at least 1|comes back from JSON"):
        kit.check_scheduler(Halves(stages))


# Broken datasets


def altered(**parts):
    """``load`` with some parts of the dataset changed: ``train=lambda dataset: ...``."""

    def load(self):
        data = Noise().load()
        return replace(data, **{name: change(data) for name, change in parts.items()})

    return load


def drawn_anew(data):
    return replace(data.train, pixels=torch.randint(256, data.train.pixels.shape, dtype=torch.uint8))


BLANK = Preprocessing(torch.zeros(1), torch.zeros(1))
BROKEN_DATASETS = {
    "draws from the global generator": (altered(train=drawn_anew), r"loads other data each time"),
    "tests on what it trains on": (altered(test=lambda d: d.train), r"36 images of .* are in train and in test"),
    "selects on what it trains on": (altered(validation=lambda d: d.train), r"are in train and in validation"),
    "selects on what it tests on": (altered(validation=lambda d: d.test), r"are in validation and in test"),
    "holds floats": (
        altered(test=lambda d: replace(d.test, pixels=d.test.pixels[:].float())),
        r"using the test part of dataset 'noise' raised DataError: .*must be uint8",
    ),
    "lacks a class": (
        altered(train=lambda d: d.train.subset(d.train.targets > 0)),
        r"class 0 has no train images",
    ),
    "has targets out of range": (
        altered(test=lambda d: replace(d.test, targets=d.test.targets + 1)),
        r"test targets must lie in 0\.\.2",
    ),
    "has narrow targets": (
        altered(test=lambda d: replace(d.test, targets=d.test.targets.int())),
        r"targets must be int64",
    ),
    "has tests of another size": (
        altered(test=lambda d: replace(d.test, pixels=d.test.pixels[..., 1:].contiguous())),
        r"images of shape \(1, 6, 6\)",
    ),
    "divides by zero": (
        altered(test=lambda d: replace(d.test, preprocessing=BLANK)),
        r"preprocessing of the test part of dataset 'noise' gives numbers that are not finite",
    ),
    "names a class twice": (altered(classes=lambda d: ("a", "b", "a")), r"must be a tuple of names that differ"),
    "is not a Dataset": (lambda self: {"train": None}, r"must return a ddbench\.Dataset; Dataset\.split makes one"),
}


@pytest.mark.parametrize("flaw", BROKEN_DATASETS)
def test_kit_refuses_a_dataset_that(flaw):
    load, said = BROKEN_DATASETS[flaw]
    assert re.search(said, refusal("dataset", load=load))


# Broken networks


class Around(nn.Module):
    """A linear network with something done to its output."""

    def __init__(self, shape, classes, change):
        super().__init__()
        self.inner = Linear().build(shape, classes)
        self.change = change

    def forward(self, x):
        return self.change(self, x)


def around(change):
    return lambda self, shape, classes: Around(shape, classes, change)


def build_drawing(self, shape, classes):
    torch.rand(1, device="cpu")
    return Linear().build(shape, classes)


def build_alike(self, shape, classes):
    module = Linear().build(shape, classes)
    for p in module.parameters():
        nn.init.constant_(p, 0.1)
    return module


def build_unseeded(self, shape, classes):
    module = Linear().build(shape, classes)
    nn.init.normal_(module[1].weight, generator=torch.Generator().manual_seed(len(CALLS)))
    CALLS.append(1)
    return module


CALLS: list[int] = []
BROKEN_NETWORKS = {
    "draws while its template is built": (build_drawing, r"on the meta device draws random numbers"),
    "starts alike from every seed": (build_alike, r"must start as its seed says"),
    "starts from its own generator": (build_unseeded, r"must start as its seed says; draw from torch's global"),
    "drops out in evaluation": (
        around(lambda m, x: nn.functional.dropout(m.inner(x), 0.5, training=True)),
        r"gives other logits for the same vector and images",
    ),
    "forgets the classes": (around(lambda m, x: m.inner(x)[:, 1:]), r"must give finite logits \(4, 10\) .*\(4, 9\)"),
    "gives NaN": (around(lambda m, x: m.inner(x) * torch.nan), r"must give finite logits"),
    "looks at values": (
        around(lambda m, x: m.inner(x) * (1.0 if float(m.inner[1].weight.sum()) > 0 else 2.0)),
        r"stacking vectors of network 'linear' with torch\.func\.vmap raised RuntimeError",
    ),
    "is cut off": (
        around(lambda m, x: m.inner(x).detach()),
        r"differentiating network 'linear' twice, as matchers do, raised RuntimeError: .*does not require grad",
    ),
    "is flat": (around(lambda m, x: m.inner(x) * 0), r"no finite gradient reaches the parameters"),
    "has features that are not flat": (
        lambda self, shape, classes: Featured(shape, classes, lambda m, x: m.inner(x)),
        r"features\(x\) of network 'linear' must have shape \(n, f\)",
    ),
}


class Featured(Around):
    def features(self, x):
        return x


@pytest.mark.parametrize("flaw", BROKEN_NETWORKS)
def test_kit_refuses_a_network_that(flaw):
    build, said = BROKEN_NETWORKS[flaw]
    assert re.search(said, refusal("network", build=build))


# Broken metrics

BROKEN_METRICS = {
    "returns a tensor": (lambda self, logits, targets: logits.mean(), r"must give a finite float, got tensor"),
    "returns NaN": (lambda self, logits, targets: float("nan"), r"must give a finite float, got nan"),
    "writes into logits": (
        lambda self, logits, targets: float(logits.zero_().sum()),
        r"changes its arguments in place",
    ),
    "draws": (
        lambda self, logits, targets: float(torch.rand(())),
        r"gives two numbers for the same random predictions",
    ),
}


@pytest.mark.parametrize("flaw", BROKEN_METRICS)
def test_kit_refuses_a_metric_that(flaw):
    call, said = BROKEN_METRICS[flaw]
    assert re.search(said, refusal("metric", __call__=call))


# The guide


def test_code_of_the_guide_is_that_of_packages_which_are_tested():
    """Of what `plugins new` writes (tests/testing/test_new.py), and of the examples (tests/testing/test_check.py)."""
    texts = [path.read_text() for path in SKELETONS.glob("*.py.txt")]
    names = {"sharp-means": "SharpMeans", "mine": "Mine"}
    texts = [text.replace("my-name", n).replace("MyName", c) for text in texts for n, c in names.items()]
    texts += [path.read_text() for path in EXAMPLES.rglob("*.toml")]
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        assert any(block.rstrip() in text for text in texts), block


def test_every_check_stands_in_the_guide():
    guide = GUIDE.read_text()
    for kind, checks in CHECKS.items():
        for name, what in checks.items():
            assert re.search(rf"^\| `{name}` \| (all|.*\b{kind}\b.*) \| {re.escape(what)} \|$", guide, re.MULTILINE), (
                name
            )


def test_recipes_of_the_example_fit_where_they_say(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (plugin,) = found("ddbench-class-means")
    expected = {
        ("cifar10", 1, "single"): {"lr": 1.0},
        ("digits", 9, "single"): {"steps": 300, "lr": 0.5},
        ("digits", 10, "single"): {"lr": 1.0},
        ("toy", 10, "pdd"): {"steps": 100},
    }
    for (dataset, ipc, scheduler), options in expected.items():
        entry = plugin.recipe({"dataset": dataset, "ipc": ipc, "scheduler": scheduler})
        assert entry.options["matcher"] == options


def test_example_of_the_extension_api_keeps_the_contract():
    example = hookspecs.__doc__.split("functions.\n", 1)[1].split("and an entry point")[0]
    scope = {"torch": torch, "__name__": __name__}
    exec(textwrap.dedent(example), scope)
    kit.check_matcher(scope["Fresh"])
