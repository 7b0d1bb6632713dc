"""Students that train together: what one at a time gives, up to rounding; and who may."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from ddbench import (
    Curriculum,
    Examples,
    Experts,
    Network,
    Recipe,
    Seed,
    Starts,
    Student,
    SyntheticSet,
    Teaching,
    fit,
    teach,
)  # fmt: skip
from ddbench.base.cache import Cache
from ddbench.base.options import make
from ddbench.base.progress import Event, listening
from ddbench.errors import InterruptedRun
from ddbench.grade.student import Pupil, taught
from ddbench.plugins import registry
from ddbench.problem.starts import teach_together
from ddbench.train.fit import Watch
from ddbench.train.fit_together import MOST, fit_together, stackable, trains_together

SHAPE, CLASSES = (3, 16, 16), 4
SEEDS = [Seed(3) / i for i in range(3)]
AUGMENT = "color_crop_cutout_flip_scale_rotate"
RECIPE = Recipe(steps=10, batch=5, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="step-restart", augment=AUGMENT)
NETWORKS = {
    "instance norm": ("convnet", {"width": 4, "depth": 2}),
    "batch norm": ("convnet", {"width": 4, "depth": 2, "norm": "batch"}),
    "no norm": ("convnet", {"width": 4, "depth": 2, "norm": "none", "pooling": "max"}),
    "mlp": ("mlp", {}),
    "resnet": ("resnet18", {"width": 2}),
    "vit": ("vit", {"dim": 12, "depth": 1, "heads": 2}),
}
RECIPES = {
    "sgd": RECIPE,
    "adamw and mixing": replace(RECIPE, optimizer="adamw", lr=0.003, mixing="cutmix", mix_probability=0.7),
    "whole epochs": replace(RECIPE, steps=None, epochs=4, schedule="cosine"),
    "squared error": replace(RECIPE, loss="mse"),
    "multistep and composed": replace(RECIPE, schedule="multistep", augment="diffaug:color_crop_flip_scale_rotate"),
}


def network(name: str = "instance norm") -> Network:
    plugin, options = NETWORKS[name]
    return Network(make(registry().get("network", plugin).cls, options, "network"), SHAPE, CLASSES, dtype=torch.float64)


def examples(count: int = 12, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    return Examples(torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64), labels)


def both_ways(net: Network, recipe: Recipe, lrs: list[float | None]) -> tuple[list[Student], list[Student]]:
    begins = [Student(net.init(seed / "init")) for seed in SEEDS]
    apart = [
        fit(net, begin, examples(), recipe, seed, lr=lr) for begin, seed, lr in zip(begins, SEEDS, lrs, strict=True)
    ]
    return apart, fit_together(net, begins, examples(), recipe, SEEDS, lrs=lrs)


def gap(apart: list[Student], together: list[Student]) -> float:
    """The largest relative difference of two vectors."""
    pairs = zip(apart, together, strict=True)
    return max(float((a.vector - b.vector).norm() / a.vector.norm()) for a, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_after_ten_steps_students_together_are_those_trained_one_at_a_time(name):
    apart, together = both_ways(network(name), RECIPE, [None, None, None])
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
    same = fit_together(net, [begin, begin], examples(), RECIPE, [Seed(1), Seed(1)], lrs=[0.01, 0.01])
    other = fit_together(net, [begin, begin], examples(), RECIPE, [Seed(1), Seed(2)], lrs=[0.01, 0.01])
    faster = fit_together(net, [begin, begin], examples(), RECIPE, [Seed(1), Seed(1)], lrs=[0.01, 0.02])
    assert torch.equal(same[0].vector, same[1].vector)
    assert not torch.equal(other[0].vector, other[1].vector)
    assert not torch.equal(faster[0].vector, faster[1].vector)


def test_a_teacher_labels_the_batches_of_all():
    net = network()
    recipe = replace(RECIPE, online=True, temperature=2.0, mixing="mixup", mix_probability=1.0)
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
    ends = fit_together(net, begins, examples(), RECIPE, SEEDS, lrs=[None] * 3, watches=[*watches, None])
    assert sorted(seen) == [(0, 3), (0, 10), (1, 3), (1, 10)]
    assert torch.equal(seen[1, 10], ends[1].vector)
    caught: list[torch.Tensor] = []
    fit(net, begins[0], examples(), RECIPE, SEEDS[0], watch=Watch(frozenset({3}), lambda _, s: caught.append(s.vector)))
    assert torch.allclose(seen[0, 3], caught[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("carry", [False, True])
def test_whole_curricula_are_taught_alike_both_ways(carry):
    net = network()
    sets = tuple(
        SyntheticSet(examples(6, j).images, examples(6, j).labels, lr=0.01 * (j + 1), label_type="soft")
        for j in range(2)
    )
    plan = Curriculum(sets, ((0,), (0, 1)))
    teaching = Teaching(replace(RECIPE, steps=None, carry=carry), steps=11, phases=2)
    begins = [Student(net.init(seed / "init")) for seed in SEEDS]
    apart = [teach(net, begin, plan, teaching, seed) for begin, seed in zip(begins, SEEDS, strict=True)]
    together = teach_together(net, begins, [plan] * 3, teaching, SEEDS)
    assert gap(apart, together) < 1e-9


def test_a_watch_counts_the_steps_of_all_phases():
    net = network()
    sets = tuple(SyntheticSet(examples(6, j).images, examples(6, j).labels, lr=0.01) for j in range(2))
    plan, teaching = Curriculum(sets, ((0,), (0, 1))), Teaching(replace(RECIPE, steps=None), steps=11, phases=2)
    for way in ("apart", "together"):
        seen: list[int] = []
        watch = Watch(frozenset({6, 7, 11}), lambda step, _, seen=seen: seen.append(step))
        begin = Student(net.init(Seed(0)))
        if way == "apart":
            teach(net, begin, plan, teaching, Seed(0), watch=watch)
        else:
            teach_together(net, [begin], [plan], teaching, [Seed(0)], watches=[watch])
        assert seen == [6, 7, 11]
    assert teaching.total(plan) == 11
    assert (teaching.steps_of(0, plan), teaching.steps_of(1, plan)) == (6, 5)


def test_more_students_than_fit_at_once_are_taught_in_groups():
    net, plan = network("mlp"), Curriculum((SyntheticSet(examples().images, examples().labels, lr=0.01),), ((0,),))
    teaching = Teaching(replace(RECIPE, steps=2))
    pupils = [Pupil(Student(net.init(Seed(i))), plan, Seed(i)) for i in range(MOST + 2)]
    apart = list(taught(net, pupils, teaching, together=False))
    assert gap(apart, list(taught(net, pupils, teaching, together=True))) < 1e-9


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
    assert stackable(network(), RECIPE)
    assert stackable(built(lambda: Noisy(0.0)), RECIPE)
    assert not stackable(built(lambda: Noisy(0.5)), RECIPE)
    assert not stackable(built(lambda: Counting(0.0)), RECIPE)
    assert not stackable(network(), replace(RECIPE, optimizer="gsam"))


def test_on_a_cpu_students_train_together_only_when_asked():
    assert not trains_together(network(), RECIPE)
    assert trains_together(network(), RECIPE, True)
    assert not trains_together(built(lambda: Noisy(0.5)), RECIPE, True)
    on_cuda = SimpleNamespace(device=torch.device("cuda"))
    with patch("ddbench.train.fit_together.stackable", lambda *_: True):
        assert trains_together(on_cuda, RECIPE)
        assert not trains_together(on_cuda, RECIPE, False)


def test_asking_whether_students_can_train_together_draws_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stackable(network("batch norm"), RECIPE)
    assert torch.equal(before, torch.get_rng_state())


# --------------------------------------------------------------------------------- experts


class Doubles(Examples):
    """Real data in float64, by what an expert's key calls them."""

    digest = "doubles"


def expert_pool(tmp_path, *, together: bool) -> Experts:
    shown = examples(20)
    recipe = Recipe(batch=6, lr=0.02, momentum=0.5, augment=AUGMENT)
    starts = Starts(network(), Seed(7), Teaching(RECIPE), Cache(tmp_path), 1)
    return Experts(starts, Doubles(shown.images, shown.labels), recipe, together=together)


def test_experts_that_train_together_are_those_trained_one_at_a_time(tmp_path):
    apart, together = (expert_pool(tmp_path, together=way) for way in (False, True))
    for pool in (apart, together):
        pool.build(3, (0, 1, 3))
    assert apart.folder != together.folder  # their last bits differ, so each has its own key
    for index in range(3):
        for epoch in (0, 1, 3):
            one, other = apart.snapshot(index, epoch), together.snapshot(index, epoch)
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(together.snapshot(index, 3), together.snapshot(index, 1), atol=1e-4)
    assert together.seconds(3) > 0


def test_experts_that_train_together_go_on_where_they_were_interrupted(tmp_path):
    whole, stopped = (expert_pool(tmp_path / part, together=True) for part in ("whole", "stopped"))
    whole.build(3, (0, 2, 4))
    stop = 2 * 4  # optimiser steps: after two epochs of four

    def interrupt(event: Event) -> None:
        if event.what == "3 experts" and event.done == stop:
            raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun), listening(interrupt):
        stopped.build(3, (0, 2, 4))
    assert stopped.missing(3, (0,)) == [0, 1, 2]  # nothing is there under its own name yet
    seen: list[int] = []
    with listening(lambda event: seen.append(event.done) if event.what == "3 experts" else None):
        stopped.build(3, (0, 2, 4))
    assert min(seen) == 3 * 4  # from the third epoch on
    for index in range(3):
        for epoch in (0, 2, 4):
            assert torch.equal(stopped.snapshot(index, epoch), whole.snapshot(index, epoch))
    leftover = [p for p in stopped.folder.iterdir() if p.suffix in (".partial", ".rows")]
    assert leftover == []
