"""Students that train together: what one at a time gives, up to rounding; and who may."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from cohorts import CLASSES, NETWORKS, SEEDS, SHAPE, TEN_STEPS, examples, gap, network
from ddbench_networks import ConvNet
from torch import nn

from ddbench import (
    Network,
    Recipe,
    Seed,
    Student,
    fit,
)
from ddbench.train.fit import Watch
from ddbench.train.fit_together import fit_together, stackable, trains_together

RECIPES = {
    "sgd": TEN_STEPS,
    "adamw and mixing": replace(TEN_STEPS, optimizer="adamw", lr=0.003, mixing="cutmix", mix_probability=0.7),
    "whole epochs": replace(TEN_STEPS, steps=None, epochs=4, schedule="cosine"),
    "squared error": replace(TEN_STEPS, loss="mse"),
    "multistep and composed": replace(TEN_STEPS, schedule="multistep", augment="diffaug:color_crop_flip_scale_rotate"),
}


def both_ways(net: Network, recipe: Recipe, lrs: list[float | None]) -> tuple[list[Student], list[Student]]:
    begins = [Student(net.init(seed / "init")) for seed in SEEDS]
    apart = [
        fit(net, begin, examples(), recipe, seed, lr=lr) for begin, seed, lr in zip(begins, SEEDS, lrs, strict=True)
    ]
    return apart, fit_together(net, begins, examples(), recipe, SEEDS, lrs=lrs)


@pytest.mark.parametrize("name", NETWORKS)
def test_after_ten_steps_students_together_are_those_trained_one_at_a_time(name):
    apart, together = both_ways(network(name), TEN_STEPS, [None, None, None])
    assert gap(apart, together) < 1e-9
    moved = [Student(network(name).init(seed / "init")) for seed in SEEDS]
    assert gap(apart, moved) > 1e-3  # they did train


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_alike_both_ways(name):
    apart, together = both_ways(network(), RECIPES[name], [0.01, 0.02, 0.04])
    assert gap(apart, together) < 1e-9
    states = [(s, t) for a, b in zip(apart, together, strict=True) for s, t in zip(a.state, b.state, strict=True)]
    assert states
    assert all(torch.allclose(s, t, rtol=1e-9, atol=1e-12) for s, t in states)


def test_students_have_their_own_learning_rates_and_batches():
    net = network()
    begin = Student(net.init(Seed(0)))
    same = fit_together(net, [begin, begin], examples(), TEN_STEPS, [Seed(1), Seed(1)], lrs=[0.01, 0.01])
    other = fit_together(net, [begin, begin], examples(), TEN_STEPS, [Seed(1), Seed(2)], lrs=[0.01, 0.01])
    faster = fit_together(net, [begin, begin], examples(), TEN_STEPS, [Seed(1), Seed(1)], lrs=[0.01, 0.02])
    assert torch.equal(same[0].vector, same[1].vector)
    assert not torch.equal(other[0].vector, other[1].vector)
    assert not torch.equal(faster[0].vector, faster[1].vector)


def test_a_teacher_labels_the_batches_of_all():
    net = network()
    recipe = replace(TEN_STEPS, online=True, temperature=2.0, mixing="mixup", mix_probability=1.0)
    teacher = lambda images: net.apply(net.init(Seed(9)), images, train=False).detach()
    begins = [Student(net.init(seed / "init")) for seed in SEEDS]
    apart = [fit(net, b, examples(), recipe, seed, teacher=teacher) for b, seed in zip(begins, SEEDS, strict=True)]
    together = fit_together(net, begins, examples(), recipe, SEEDS, lrs=[None] * 3, teacher=teacher)
    assert gap(apart, together) < 1e-9


def test_students_together_are_seen_after_the_steps_that_were_asked_for():
    net, begins = network(), [Student(network().init(seed / "init")) for seed in SEEDS]
    seen: dict[tuple[int, int], torch.Tensor] = {}
    watches = [
        Watch(frozenset({3, 10}), lambda step, student, i=i: seen.__setitem__((i, step), student.vector))
        for i in range(2)
    ]
    ends = fit_together(net, begins, examples(), TEN_STEPS, SEEDS, lrs=[None] * 3, watches=[*watches, None])
    assert sorted(seen) == [(0, 3), (0, 10), (1, 3), (1, 10)]
    assert torch.equal(seen[1, 10], ends[1].vector)
    caught: list[torch.Tensor] = []
    fit(
        net,
        begins[0],
        examples(),
        TEN_STEPS,
        SEEDS[0],
        watch=Watch(frozenset({3}), lambda _, s: caught.append(s.vector)),
    )
    assert torch.allclose(seen[0, 3], caught[0], rtol=1e-9, atol=1e-12)


class Noisy(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(drop), nn.Linear(3 * 256, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Counting(Noisy):
    """Branches on its data, which vmap cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x if float(x.sum()) > 0 else -x)


def built(make_module: object) -> Network:
    source = SimpleNamespace(name="odd", build=lambda _shape, _classes: make_module())
    return Network(source, SHAPE, CLASSES)


def test_networks_that_draw_while_they_train_or_look_at_their_data_train_one_at_a_time():
    assert stackable(network(), TEN_STEPS)
    assert stackable(built(lambda: Noisy(0.0)), TEN_STEPS)
    assert not stackable(built(lambda: Noisy(0.5)), TEN_STEPS)
    assert not stackable(built(lambda: Counting(0.0)), TEN_STEPS)
    assert not stackable(network(), replace(TEN_STEPS, optimizer="gsam"))


def test_whether_students_can_train_together_is_tried_once_for_a_network_and_a_recipe():
    one, other, asked = network(), network(), []
    with patch("ddbench.train.fit_together._tried", lambda *given: not asked.append(given)):
        for made, recipe in (
            (one, TEN_STEPS),
            (one, replace(TEN_STEPS)),
            (one, replace(TEN_STEPS, lr=1.0)),
            (other, TEN_STEPS),
        ):
            assert stackable(made, recipe)
    assert len(asked) == 3


def test_on_a_cpu_students_train_together_only_when_asked():
    assert not trains_together(network(), TEN_STEPS, 1)
    assert trains_together(network(), TEN_STEPS, 1000, True)
    assert not trains_together(built(lambda: Noisy(0.5)), TEN_STEPS, 1, True)


def test_on_cuda_students_train_together_while_a_batch_of_one_leaves_the_device_room():
    """Measured: 256 images of the usual network are faster one student at a time, a hundred were not."""
    cuda = torch.device("cuda")
    usual, narrow = (Network(ConvNet(width=width), (3, 32, 32), 10, cuda) for width in (128, 32))
    with patch("ddbench.train.fit_together.stackable", lambda *_: True):
        for net, batch, expected in (
            (usual, 10, True),
            (usual, 100, True),
            (usual, 256, False),
            (narrow, 256, True),
            (narrow, 2560, False),
        ):
            assert trains_together(net, TEN_STEPS, batch) is expected
        assert not trains_together(usual, TEN_STEPS, 10, False)
        for asked in (replace(TEN_STEPS, launch="graph"), replace(TEN_STEPS, kernels="fused")):
            assert not trains_together(usual, asked, 10)  # which several together do not have
            assert trains_together(usual, asked, 10, True)
        assert trains_together(usual, TEN_STEPS, 256, True)


def test_asking_whether_students_can_train_together_draws_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stackable(network("batch norm"), TEN_STEPS)
    assert torch.equal(before, torch.get_rng_state())
