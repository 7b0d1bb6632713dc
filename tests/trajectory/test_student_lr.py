"""The first student lr, found before the first iteration."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ddbench_networks.convnet import ConvNet
from ddbench_tesla import Tesla
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.ftd import Ftd
from ddbench_trajectories.mtt import Mtt
from float64 import precise
from problems import TINY, begin, play, second_stage, with_experts
from torch.nn.functional import cross_entropy

from ddbench import UsageError
from ddbench.base.options import make
from ddbench.trajectory.method import Segment, Shown, following
from ddbench.trajectory.student_lr import FACTOR, FIRST, LEAST, MOST, SEGMENTS, least

AUTO = TINY | {"lr_init": "auto"}


def test_it_is_that_of_least_loss_on_a_grid_also_far_from_where_the_search_begins():
    grid = [FIRST * FACTOR**k for k in range(-10, 9)]
    for best in (1.3e-4, 0.002, 0.02, 0.11, 3.0):
        loss = lambda beta, best=best: math.log(beta / best) ** 2
        assert least(loss) == pytest.approx(min(grid, key=loss))


def test_it_stays_within_its_bounds_and_looks_at_few_more_than_it_has_to():
    tried: list[float] = []

    def falling(beta: float) -> float:
        tried.append(beta)
        return -beta

    assert MOST / FACTOR < least(falling) <= MOST
    assert len(tried) == len(set(tried)) <= 11
    assert LEAST <= least(lambda beta: beta) < LEAST * FACTOR


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_students_that_run_away_are_not_chosen(lost):
    assert least(lambda beta: lost if beta > 0.006 else -beta) == pytest.approx(0.005)
    assert least(lambda _: lost) == FIRST, "none is better than another"


def test_the_loss_that_decides_is_the_mean_over_segments_of_students_in_float64():
    """Against students written out step by step, on the same segments, batches and augmentations."""
    task = precise(ConvNet(width=2, depth=1))
    walk = torch.Generator().manual_seed(3)
    points = torch.randn(4, task.network.length, generator=walk).double() * 0.1
    experts = SimpleNamespace(
        segment=lambda _, epoch, span: (points[epoch], points[epoch + span]), snapshot=lambda _, epoch: points[epoch]
    )
    problem = with_experts(task, experts)
    method = Tesla(**AUTO | {"span": 1, "max_start": 3, "syn_steps": 4, "batch_syn": 3, "labels": "hard"})
    state = method_state(method, problem)
    with (problem.seed / "segments").scope():
        mean_loss = following(method, problem, state)
    with (problem.seed / "segments").scope():
        drawn = [(Segment.draw(method, problem), Shown.draw(method, problem, state)) for _ in range(SEGMENTS)]
    for beta in (0.003, 0.02, 0.3):
        expected = 0.0
        for segment, shown in drawn:
            theta = segment.start.clone()
            for rows, draw in zip(shown.plan.batches, shown.plan.draws, strict=True):
                leaf = theta.requires_grad_()
                loss = cross_entropy(problem.network.apply(leaf, draw(shown.images[rows])), shown.labels[rows])
                theta = (theta - beta * torch.autograd.grad(loss, leaf)[0]).detach()
            target = segment.target
            expected += float((theta - target).pow(2).sum() / (segment.start - target).pow(2).sum()) / SEGMENTS
        assert mean_loss(beta) == pytest.approx(expected, rel=1e-12)


def method_state(method, problem):
    """The first state, with a student lr that is given."""
    return begin(replace(method, lr_init=0.01), problem)


@pytest.mark.parametrize("cls", [Tesla, Mtt, Datm, Ftd])
def test_every_method_can_look_for_it_and_says_what_it_found_in_its_first_iteration(problem, cls):
    flat = {"flat": False} if cls is Ftd else {}
    method = cls(**AUTO, labels="hard", pix_init="real", **flat)
    state, trail = play(method, problem, 2)
    pixels = getattr(state, "pixels", state)
    assert trail[0]["lr_init"] == pixels.lr_start
    assert "lr_init" not in trail[1]
    assert math.log2(pixels.lr_start / FIRST) == pytest.approx(round(math.log2(pixels.lr_start / FIRST)))
    assert trail[0]["loss"] < 1.5


def test_it_is_the_same_whenever_it_is_looked_for_and_it_moves_no_image(problem):
    method = Tesla(**AUTO, labels="hard")
    one, other = begin(method, problem), begin(method, problem)
    assert float(one.lr) == float(other.lr) == one.lr_start
    assert torch.equal(one.images, begin(method_given(method), problem).images)
    assert one.steps == 0


def method_given(method):
    return replace(method, lr_init=0.03)


def test_a_later_stage_looks_with_the_frozen_images_in_the_student_s_batches(problem):
    later = second_stage(problem)
    state = begin(Tesla(**AUTO, labels="hard"), later)
    with (later.seed / "x").scope():
        loss = following(Tesla(**AUTO, labels="hard"), later, state)
    with (later.seed / "x").scope():
        alone = following(Tesla(**AUTO, labels="hard"), problem, state)
    assert loss(0.02) != alone(0.02)


def test_what_is_neither_a_number_nor_auto_is_refused():
    assert make(Tesla, {"lr_init": "auto"}, "matcher").lr_init == "auto"
    assert make(Tesla, {"lr_init": "0.02"}, "matcher").lr_init == 0.02
    for wrong in ("best", "-1", "0", "nan"):
        with pytest.raises(UsageError, match=r"matcher\.lr_init.*(auto|greater than 0|finite)"):
            make(Tesla, {"lr_init": wrong}, "matcher")


def test_larger_steps_than_one_that_ran_away_are_not_tried():
    tried: list[float] = []

    def lost(beta: float) -> float:
        tried.append(beta)
        return math.inf if beta > 0.002 else abs(beta - 0.001)

    assert least(lost) == pytest.approx(FIRST / 16)
    assert max(tried) == FIRST * FACTOR
