"""Steps on tensors that stay where they are: to the bit what steps apart compute, so that a graph may replay them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from cohorts import CLASSES, SHAPE, TEN_STEPS, examples, network
from ddbench_networks import ConvNet
from gpus import nothing_waits
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddbench import Examples, Network, Preprocessing, RealData, Recipe, Seed, Student, UsageError, fit
from ddbench.data.dataset import Resident
from ddbench.train import fit_together as together
from ddbench.train import steps
from ddbench.train.fit import Lessons, Watch
from ddbench.train.optimisers import optimiser
from ddbench.train.steps import InPlace, Recorded, in_place

SEED = Seed(7)
RECIPES = {
    "momentum that restarts": TEN_STEPS,
    "plain descent": Recipe(steps=7, batch=5, lr=0.05, augment=""),
    "adamw": replace(TEN_STEPS, optimizer="adamw", lr=0.003, weight_decay=0.01, schedule="cosine"),
    "gsam": replace(TEN_STEPS, optimizer="gsam"),
    "whole epochs with a short batch": replace(TEN_STEPS, steps=None, epochs=3, schedule="multistep"),
    "composed": replace(TEN_STEPS, augment="diffaug:color_crop_flip_scale_rotate_cutout"),
    "squared error, parts of a pass": replace(TEN_STEPS, loss="mse", epoch_steps=2),
}


def both(net: Network, source, recipe: Recipe, **more) -> list[Student]:
    begin = Student(net.init(Seed(0)))
    return [
        fit(net, begin, source, replace(recipe, launch=launch), SEED, what=None, **more)
        for launch in ("eager", "graph")
    ]


def same(one: Student, other: Student) -> bool:
    assert len(one.state) == len(other.state)
    pairs = zip((one.vector, *one.state), (other.vector, *other.state), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def stepped(monkeypatch) -> list[int]:
    """A list that grows with every step on tensors that stay."""
    seen, inner = [], InPlace.step

    def step(self, rows, drawn, rate):
        seen.append(len(rows))
        inner(self, rows, drawn, rate)

    monkeypatch.setattr(InPlace, "step", step)
    return seen


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_steps_in_place_are_steps_apart_to_the_last_bit(recipe, stepped):
    apart, in_one = both(network(), examples(), recipe)
    assert len(stepped) >= 7
    assert not torch.equal(apart.vector, network().init(Seed(0)))
    assert same(apart, in_one)


@pytest.mark.parametrize("name", ["batch norm", "mlp", "vit"])
def test_other_networks_too_and_in_float32(name, stepped):
    double = network(name)
    net = Network(double.source, SHAPE, CLASSES)
    found = examples()
    apart, in_one = both(net, Examples(found.images.float(), found.labels.float()), TEN_STEPS)
    assert stepped
    assert same(apart, in_one)


def test_real_data_as_it_lies_on_a_gpu(stepped):
    """Batches gathered from bytes, by rows that are on the device already."""
    pixels = torch.randint(0, 256, (12, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(12) % CLASSES
    real = RealData(pixels, targets, Preprocessing.fit(pixels), CLASSES)
    resident = Resident(pixels, targets, real.preprocessing, CLASSES)
    net = Network(ConvNet(width=4, depth=2), SHAPE, CLASSES)
    apart, in_one = both(net, real, TEN_STEPS)
    assert same(apart, in_one)
    assert same(apart, both(net, resident, TEN_STEPS)[1])
    assert len(stepped) == 20


def test_what_is_seen_on_the_way_does_not_change_afterwards():
    recipe, seen = replace(TEN_STEPS, steps=None, epochs=3), {"eager": [], "graph": []}
    for launch, kept in seen.items():
        asked, watch = replace(recipe, launch=launch), Watch(frozenset({2, 5}), lambda _, s, kept=kept: kept.append(s))
        note = lambda _, student, kept=kept: kept.append(student)
        begin = Student(network().init(Seed(0)))
        fit(network(), begin, examples(), asked, SEED, what=None, watch=watch, on_epoch=note)
    assert len(seen["graph"]) == 5
    assert all(same(a, b) for a, b in zip(*seen.values(), strict=True))
    assert not torch.equal(seen["graph"][0].vector, seen["graph"][1].vector)


def test_a_training_that_stops_goes_on_to_the_same_bits():
    recipe = replace(TEN_STEPS, steps=None, epochs=4, launch="graph")
    begin = Student(network().init(Seed(0)))
    half = fit(network(), begin, examples(), recipe, SEED, stop_epoch=2, what=None)
    assert same(
        fit(network(), half, examples(), recipe, SEED, first_epoch=2, what=None),
        fit(network(), begin, examples(), recipe, SEED, what=None),
    )


@dataclass(frozen=True)
class Dropping:
    name = "dropping"

    def build(self, shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(torch.Size(shape).numel(), classes))


def test_what_a_recording_would_freeze_is_stepped_apart():
    asked, net = replace(TEN_STEPS, launch="graph"), network()
    assert in_place(asked, net, examples(), 10)
    assert not in_place(replace(asked, mixing="cutmix"), net, examples(), 10)
    assert not in_place(replace(asked, online=True), net, examples(), 10)
    assert not in_place(asked, Network(Dropping(), SHAPE, CLASSES), examples(), 10)
    cuda = SimpleNamespace(device=torch.device("cuda"))
    with patch.object(steps, "_draws", lambda network: False):
        assert not in_place(asked, cuda, examples(), 10)  # images that are not there
        assert in_place(asked, cuda, Resident(*[None] * 4), 10)


def test_a_network_that_draws_trains_alike_whatever_was_asked_for(stepped):
    apart, asked = both(Network(Dropping(), SHAPE, CLASSES, dtype=torch.float64), examples(), TEN_STEPS)
    assert not stepped
    assert same(apart, asked)


def test_graphs_are_not_the_default_before_they_are_measured_nor_on_a_cpu(monkeypatch):
    cuda, there = SimpleNamespace(device=torch.device("cuda")), Resident(*[None] * 4)
    monkeypatch.setattr(steps, "_draws", lambda network: False)
    for gain, expected in ((None, False), (1.02, False), (2.0, True)):
        monkeypatch.setattr(steps, "GAIN", gain)
        assert in_place(Recipe(), cuda, there, 1000) is expected
        assert not in_place(Recipe(), network(), examples(), 1000)
        assert not in_place(Recipe(), cuda, there, 10)  # too short to record
        assert not in_place(Recipe(launch="eager"), cuda, there, 1000)


def test_a_shape_runs_once_as_it_is_is_recorded_once_and_replayed_from_then_on(monkeypatch):
    """Of CUDA only the calls, which are made by a stand-in: a recording executes nothing."""
    log, capturing = [], []

    class Graph:
        def replay(self):
            log.append("replay")

        def pool(self):
            return "pool"

    class Capture:
        def __init__(self, graph, pool, stream, capture_error_mode):
            assert stream is aside
            log.append(f"record in {pool}")

        def __enter__(self):
            capturing.append(True)

        def __exit__(self, *error):
            capturing.pop()

    current, aside = (SimpleNamespace(wait_stream=lambda other: None) for _ in range(2))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: aside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    recorded = Recorded(torch.device("cuda", 0))
    for key in "aabaab":
        recorded(key, lambda key=key: None if capturing else log.append(f"run {key}"))
    expected = ["run a", "record in None", "replay", "run b", "replay", "replay", "record in pool", "replay"]
    assert log == expected


class Elsewhere(TorchDispatchMode):
    """Notes operations that touch more than one kind of device, or another one than ``place``."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.calls, self.found = place, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.calls += 1
        self.found += [str(func)] * ({t.device.type for t in tensors} != {self.place})
        return out


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "gsam"])
@pytest.mark.parametrize("place", ["meta", "cuda"])
def test_a_step_asks_the_device_for_no_number_and_sends_it_none(place, optimizer, monkeypatch):
    """What a recording must not do, without a GPU: tensors there are shapes alone, and to read one is an error."""
    device, shape = torch.device(place), (3, 32, 32)
    if place == "cuda":  # the branches for CUDA, but for autograd's engine, which wants a driver
        monkeypatch.setattr(Lessons, "gradient", lambda _, network, p, buffers, shown: (torch.empty_like(p), buffers))
        monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # its sampler knows no shapes
    with FakeTensorMode() if place == "cuda" else nullcontext(), torch.device(place):
        net = Network(ConvNet(width=8), shape, 10, device)
        real = Resident(
            torch.empty(20, *shape, dtype=torch.uint8),
            torch.empty(20, dtype=torch.int64),
            Preprocessing(torch.empty(3), torch.empty(3)),
            10,
        )
        recipe = Recipe(optimizer=optimizer, momentum=0.9, weight_decay=1e-4, augment="")
        rule = optimiser(optimizer, 0.9, 1e-4)
        at = InPlace(net, torch.empty(net.length), (), real, Lessons(recipe, None), rule)
        rows, widths = torch.empty(16, dtype=torch.int64), {"color": 3, "crop": 2, "cutout": 2, "scale": 2}
        for operation in ("none", *TEN_STEPS.augment.split("_")):
            drawn = torch.empty(16, widths.get(operation, 1))
            with Elsewhere(place) as seen:
                at._step(rows, drawn, operation)
            assert seen.calls > 20
            assert not seen.found


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_bfloat16_trains_near_float32_and_keeps_its_vector_in_float32(optimizer):
    net, found = Network(ConvNet(width=8, depth=2), SHAPE, CLASSES), examples()
    data = Examples(found.images.float(), found.labels.float())
    begin = Student(net.init(Seed(0)))
    recipe = Recipe(steps=4, batch=6, lr=0.01, optimizer=optimizer, augment="")
    exact, asked, lower = (
        fit(net, begin, data, replace(recipe, precision=precision), SEED, what=None).vector
        for precision in ("device", "float32", "bf16")
    )
    assert torch.equal(exact, asked)
    assert lower.dtype == torch.float32
    assert 1e-4 < float((lower - exact).norm() / (exact - begin.vector).norm()) < 0.3
    pair = together.fit_together(
        net, [begin, begin], data, replace(recipe, precision="bf16"), [SEED, SEED], lrs=[None] * 2, what=None
    )
    assert 1e-4 < float((pair[0].vector - exact).norm() / (exact - begin.vector).norm()) < 0.3


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(UsageError, match="precision=tf32 is for training on CUDA"):
        fit(network(), Student(network().init(Seed(0))), examples(), replace(TEN_STEPS, precision="tf32"), SEED)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_replayed_steps_on_a_gpu_are_eager_ones_and_wait_for_nothing(kernels, monkeypatch):
    pixels = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    real = RealData(pixels, torch.arange(300) % 10, Preprocessing.fit(pixels), 10).to("cuda")
    net = Network(ConvNet(width=32), (3, 32, 32), 10, torch.device("cuda"))
    recipe = replace(TEN_STEPS, steps=None, epochs=20, batch=125, lr=0.01, precision="float32", kernels=kernels)
    replayed, inner = [], InPlace.step

    def step(self, rows, drawn, rate):
        known = self._recorded._graphs.get((len(rows), drawn[0].operation)) is not None
        replayed.append(known)
        with nothing_waits() if known else nullcontext():
            inner(self, rows, drawn, rate)

    monkeypatch.setattr(InPlace, "step", step)
    apart, in_one = both(net, real, recipe)
    assert sum(replayed) > 30  # of 60 steps, in two sizes of batches and six operations
    assert float((apart.vector - in_one.vector).norm() / (apart.vector - net.init(Seed(0))).norm()) < 1e-3
