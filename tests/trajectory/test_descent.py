"""What moves the images: SGD and Adam, row by row; and options that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ddbench_tesla import Tesla
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.mtt import Mtt
from tiny import TRAJECTORY, spec

from ddbench import Problem, UsageError
from ddbench.base.options import make, options
from ddbench.run.run import build_task
from ddbench.run.stage import prepared
from ddbench.trajectory.descent import PixelState, catch_up, caught_up, descend
from ddbench.trajectory.unroll import Gradient, Task, reverse

TINY = {name.removeprefix("matcher."): value for name, value in TRAJECTORY.items()} | {"labels": "hard"}
BATCHES = ([0, 1, 2], [2, 5], [], [1], [1], [6, 0], [5], [3])  # rows come and go, are empty, or wait for many steps


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[str]:
    folder = str(tmp_path_factory.mktemp("home"))
    with patch.dict("os.environ", {"DDBENCH_HOME": folder}):
        yield folder


@pytest.fixture(scope="module", params=["group", "batch"])
def problem(home, request) -> Problem:
    """Toy images, two per class, with two experts, in float64, on networks without and with buffers."""
    made = spec("tesla", ipc=2, **{"network.norm": request.param})
    task = build_task(made, made.dataset.load())
    return prepared(task, made.matcher.needs(task))


def fed(images: torch.Tensor) -> Gradient:
    return Gradient(torch.tensor(0.0), images, torch.zeros(len(images), 4), torch.tensor(0.0), torch.zeros(1))


# --------------------------------------------------------------------------------- outer optimisers


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.9999])
def test_row_wise_adam_equals_dense_adam(beta1):
    """Against torch.optim.Adam on all rows, in float64: rows without a gradient go on moving there, too."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 3, 3, dtype=torch.float64, generator=generator)
    method = Tesla(outer="adam", lr_img=0.3, momentum=beta1, clip=None)
    state = PixelState.start(images.clone(), torch.zeros(7, 4), 0.01, outer="adam")
    dense = images.clone().requires_grad_()
    optimiser = torch.optim.Adam([dense], 0.3, (beta1, 0.999), eps=1e-16)
    for rows in BATCHES:
        index = torch.tensor(rows, dtype=torch.int64)
        weights = torch.randn(len(rows), 1, 3, 3, dtype=torch.float64, generator=generator)
        catch_up(method, state, index)
        torch.testing.assert_close(state.images[index], dense.detach()[index], rtol=1e-10, atol=1e-10)
        descend(method, state, index, fed(state.images[index] * weights))
        dense.grad = torch.zeros_like(dense)
        dense.grad[index] = dense.detach()[index] * weights
        optimiser.step()
    late = caught_up(method, state)[0]
    catch_up(method, state, torch.arange(7))
    torch.testing.assert_close(state.images, dense.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(late, state.images, rtol=0, atol=0)


def test_adam_does_not_care_how_large_gradients_are():
    """They are 1e-7 in real runs, where the usual eps of 1e-8 would decide."""
    moved = []
    for size in (1.0, 1e-8):
        method = Tesla(outer="adam", lr_img=0.1, clip=None)
        state = PixelState.start(torch.zeros(2, 1, 2, 2), torch.eye(2), 0.01, outer="adam")
        for k in range(3):
            descend(method, state, torch.arange(2), fed(torch.arange(8.0).view(2, 1, 2, 2) * size * (k + 1)))
        moved.append(state.images)
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0].flatten()[0] == 0  # no gradient: no step, and no division of zeros
    assert torch.isfinite(moved[0]).all()


@pytest.mark.parametrize("beta1", [0.9, 0.99, 0.999])
def test_a_row_that_waits_for_thousands_of_steps_is_where_dense_adam_has_it(beta1):
    method = Tesla(outer="adam", lr_img=0.1, momentum=beta1, clip=None)
    state = PixelState.start(torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.eye(2), 0.01, outer="adam")
    dense = torch.zeros(2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([dense], 0.1, (beta1, 0.999), eps=1e-16)
    for k in range(2000):
        rows = torch.tensor([0, 1] if k == 10 else [1])
        catch_up(method, state, rows)
        descend(method, state, rows, fed(torch.ones(len(rows), 1, 1, 1, dtype=torch.float64)))
        dense.grad = torch.zeros_like(dense)
        dense.grad[rows] = 1.0
        optimiser.step()
    torch.testing.assert_close(caught_up(method, state)[0], dense.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outer", ["adam"])
@pytest.mark.parametrize("method", [Tesla, Mtt, Datm])
def test_a_step_size_meant_for_sgd_is_refused(method, outer):
    with pytest.raises(UsageError, match=r"at most 1, say -o matcher\.lr_img=0\.03"):
        method(outer=outer)
    assert method(outer=outer, lr_img=0.05).outer == outer


@pytest.mark.parametrize("outer", ["adam"])
def test_a_mean_that_never_moves_is_refused(outer):
    with pytest.raises(UsageError, match="below 1"):
        Tesla(outer=outer, lr_img=0.1, momentum=1.0)


@pytest.mark.parametrize("outer", ["adam"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_step_size_is_how_far_a_pixel_moves(outer, momentum):
    method = Tesla(outer=outer, lr_img=0.02, momentum=momentum, clip=None)
    state = PixelState.start(torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.eye(2), 0.01, outer=outer)
    for _ in range(200):
        before = state.images.clone()
        descend(method, state, torch.arange(2), fed(torch.full((2, 1, 2, 2), 1e-5, dtype=torch.float64)))
    torch.testing.assert_close(state.images, before - 0.02, rtol=0, atol=1e-6)


def test_a_state_whose_running_norm_was_a_float_goes_on():
    """So earlier versions stored it."""
    made = PixelState.start(torch.zeros(2, 1, 2, 2), torch.eye(2), 0.01)
    old = PixelState(**vars(made) | {"size": 0.5})
    descend(Tesla(lr_img=1.0, momentum=0.0), old, torch.arange(2), fed(torch.full((2, 1, 2, 2), 10.0)))
    assert float(old.images.norm()) == pytest.approx(1.0)
    assert float(old.size) == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)


@pytest.mark.parametrize("outer", ["adam"])
def test_outer_optimisers_descend_the_matching_loss(problem, outer):
    """On one segment again and again."""
    method = Tesla(**TINY | {"outer": outer, "lr_img": 0.02, "curvature": "exact", "augment": False})
    with (problem.seed / "init").scope():
        state = method.init(problem)
    losses = []
    for k in range(15):
        with (problem.seed / "step" / 0).scope():
            state, numbers = method.step(problem, state, k)
        losses.append(float(numbers["loss"]))
    assert losses[-1] < 0.97 * losses[0]


# --------------------------------------------------------------------------------- options that are gone


@pytest.mark.parametrize("method", [Tesla, Mtt, Datm])
def test_options_that_are_gone_are_left_out_of_old_records_at_their_defaults(method):
    old = options(method()) | {"segments": 1, "stacked": None}
    assert make(method, old, "matcher") == method()
    assert make(method, {"segments": "1", "stacked": "none"}, "matcher") == method()


@pytest.mark.parametrize(("name", "value"), [("segments", 4), ("stacked", True), ("outer", "normalised")])
def test_an_option_that_is_gone_names_the_last_version_that_had_it(name, value):
    with pytest.raises(UsageError, match=rf"matcher\.{name}={value} is no longer there .*; ddbench 0\.1\.0 .* last"):
        make(Tesla, {name: value}, "matcher")


def test_teacher_labels_of_every_iteration_are_those_of_its_segment(problem):
    method = Tesla(**TINY | {"labels": "teacher", "relabel": True})
    with (problem.seed / "init").scope():
        state = method.init(problem)
    pools = []

    def seen(*task: Any, **how: Any) -> Gradient:
        pools.append(Task(*task).pool)
        return reverse(*task, **how)

    for k in range(3):
        with (problem.seed / "step" / k).scope(), patch("ddbench_tesla.tesla.reverse", seen):
            method.step(problem, state, k)
    assert len(pools) == 3
    assert len({float(pool.new.labels.square().sum()) for pool in pools}) > 1
