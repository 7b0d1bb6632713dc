"""ATT: where its student stops, and the gradient from there, against autograd through the unroll in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from ddbench_trajectories.att import Att, nearest
from ddbench_trajectories.ftd import Ftd
from problems import TINY, play, task_of
from tiny import spec
from unrolls import FULL, Case, assert_same, case, unrolled

from ddbench import Problem
from ddbench.run.prepare import prepared
from ddbench.run.spec import Request, resolve
from ddbench.trajectory.unroll import Plan, Task


def until(c: Case, steps: int) -> Case:
    """The case with the first ``steps`` of its student's steps."""
    return replace(c, plan=Plan(c.plan.batches[:steps], c.plan.draws[:steps]))


def passing(steps: int, near: int) -> Case:
    """A student that passes by its target at step ``near``."""
    c = case(steps, frozen=2, augment=FULL)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(c.theta), generator=generator).double()
    return replace(c, target=unrolled(until(c, near)).end + 1e-3 * noise)


def task_in(c: Case) -> Task:
    return Task(c.loss, c.terminal, c.theta, c.pool, c.lr, c.plan)


@pytest.mark.parametrize("near", [1, 3, 5])
def test_the_student_stops_at_the_least_l1_distance_and_is_differentiated_from_there(near):
    """As the released code: t* by the L1 distance of every step, then the squared L2 loss of theta_t*."""
    c = passing(5, near)
    distances = [float((unrolled(until(c, t)).end - c.target).abs().sum()) for t in range(1, 6)]
    stop = 1 + distances.index(min(distances))
    seen, found = Att().followed(task_in(c), c.target)
    assert found == stop == near
    assert_same(seen, unrolled(until(c, stop)))


def test_the_window_counts_back_from_where_the_student_stops():
    c = passing(5, 4)
    seen, _ = Att(window=2).followed(task_in(c), c.target)
    assert_same(seen, unrolled(until(c, 4), detach_first=2))


def test_zero_curvature_leaves_the_hessians_out():
    c = passing(5, 3)
    seen, _ = Att(curvature="zero").followed(task_in(c), c.target)
    assert_same(seen, unrolled(until(c, 3), detach_theta=True))


def test_the_nearest_step_is_by_l1_the_last_of_equals_and_never_one_that_is_no_number():
    target = torch.zeros(2)
    path = [torch.tensor(p) for p in ([3.0, 0.0], [2.0, 2.0], [0.0, 3.0], [math.nan, 0.0])]
    assert nearest(path, target) == 3  # |.|_2 would have chosen the second
    assert nearest(path[:2], target) == 1
    assert nearest(path[::-1], target) == 4


@pytest.fixture(scope="module")
def problem(module_home) -> Problem:
    task = task_of(spec("tesla", ipc=2))
    return prepared(task, Att(**TINY).needs(task))


def test_its_images_move_as_those_of_ftd_where_the_last_step_is_the_nearest(problem, monkeypatch):
    small = TINY | {"lr_init": 1e-4, "syn_steps": 3}  # every step leads nearer
    monkeypatch.setattr("ddbench_trajectories.att.nearest", lambda path, target: len(path))
    att, trail = play(Att(**small), problem, 3)
    ftd, other = play(Ftd(**small), problem, 3)
    assert torch.equal(att.average, ftd.average)
    assert [numbers["loss"] for numbers in trail] == [numbers["loss"] for numbers in other]
    assert [numbers["matched"] for numbers in trail] == [3.0] * 3


@pytest.mark.parametrize(
    ("dataset", "ipc", "options"),
    [
        ("cifar10", 1, (6000, 80, 4, 2, 100.0, 0.9999)),
        ("cifar10", 10, (60000, 30, 2, 20, 10000.0, 0.9999)),
        ("cifar10", 50, (1000000, 50, 2, 40, 100.0, 0.999)),
        ("cifar100", 1, (3000, 50, 4, 20, 500.0, 0.9995)),
        ("cifar100", 10, (200000, 20, 2, 40, 1000.0, 0.9995)),
        ("cifar100", 50, (100000, 80, 2, 40, 1000.0, 0.999)),
    ],
)
def test_recipes_are_the_released_commands(dataset, ipc, options):
    found = resolve(Request(dataset, "att", ipc=ipc, device="cpu")).spec
    m = found.matcher
    assert isinstance(m, Att)
    assert (m.steps, m.syn_steps, m.span, m.max_start, m.lr_img, m.decay) == options
    assert (found.experts.optimizer, found.experts.batch, found.experts.epochs) == ("sgd", 512, 50)
