"""What moves images, labels and the student lr: SGD and Adam on the rows of a batch; and options that are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ddbench_tesla import Tesla
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.mtt import Mtt
from problems import TINY, begin, gradient_of_ones, step_along, toy_with_experts

from ddbench import DivergedError, Problem, UsageError
from ddbench.base.options import make, options
from ddbench.trajectory.descent import PixelState, at_end, catch_up, caught_up, check_lr, descend, softmax_pullback
from ddbench.trajectory.unroll import Gradient, Task, reverse

HARD = TINY | {"labels": "hard"}
BATCHES = ([0, 1, 2], [2, 5], [], [1], [1], [6, 0], [5], [3])  # rows come and go, are empty, or wait for many steps


@pytest.fixture(scope="module", params=["group", "batch"])
def problem(module_home, request) -> Problem:
    """On networks without and with buffers."""
    return toy_with_experts(**{"network.norm": request.param})


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


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("outer", ["sgd", "adam", "adam-mini"])
def test_a_cosine_of_the_step_size_is_that_of_torch(outer, momentum):
    """Against dense torch under CosineAnnealingLR, in float64, on images of one pixel, where both Adams agree."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 1, 1, dtype=torch.float64, generator=generator)
    method = Tesla(outer=outer, lr_img=0.3, momentum=momentum, clip=None, schedule="cosine", steps=len(BATCHES))
    state = PixelState.start(images.clone(), torch.zeros(7, 4), 0.01, outer=outer)
    dense = images.clone().requires_grad_()
    adam = torch.optim.Adam([dense], 0.3, (momentum, 0.999), eps=1e-16)
    optimiser = torch.optim.SGD([dense], 0.3, momentum) if outer == "sgd" else adam
    annealed = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(BATCHES))
    for rows in BATCHES:
        index = torch.tensor(rows, dtype=torch.int64)
        weights = torch.randn(len(rows), 1, 1, 1, dtype=torch.float64, generator=generator)
        catch_up(method, state, index)
        torch.testing.assert_close(state.images[index], dense.detach()[index], rtol=1e-10, atol=1e-10)
        descend(method, state, index, fed(state.images[index] * weights))
        dense.grad = torch.zeros_like(dense)
        dense.grad[index] = dense.detach()[index] * weights
        optimiser.step()
        annealed.step()
    assert annealed.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(caught_up(method, state)[0], dense.detach(), rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_adam_mini_has_one_second_moment_for_each_image(beta1):
    """Against a plain loop over all rows in float64, in which rows without a gradient go on moving, too."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 2, 3, 3, dtype=torch.float64, generator=generator)
    method = Tesla(outer="adam-mini", lr_img=0.3, momentum=beta1, clip=None)
    state = PixelState.start(images.clone(), torch.zeros(7, 4), 0.01, outer="adam-mini")
    dense, first = images.clone().numpy(), np.zeros(images.shape)
    second = np.zeros(7)
    for t, rows in enumerate(BATCHES, 1):
        index = torch.tensor(rows, dtype=torch.int64)
        weights = torch.randn(len(rows), 2, 3, 3, dtype=torch.float64, generator=generator)
        catch_up(method, state, index)
        np.testing.assert_allclose(state.images[index].numpy(), dense[rows], rtol=1e-10, atol=1e-10)
        descend(method, state, index, fed(state.images[index] * weights))
        found = np.zeros(images.shape)
        found[rows] = dense[rows] * weights.numpy()
        first = beta1 * first + (1 - beta1) * found
        second = 0.999 * second + 0.001 * (found**2).mean((1, 2, 3))
        root = np.sqrt(second / (1 - 0.999**t))[:, None, None, None]
        dense = dense - 0.3 * (first / (1 - beta1**t)) / np.where(root > 0, root, 1)
    np.testing.assert_allclose(caught_up(method, state)[0].numpy(), dense, rtol=1e-10, atol=1e-10)


def test_pixels_without_signal_stay_where_they_are_under_adam_mini_alone():
    """A millionth of the others' gradient, as in a black border: Adam moves such pixels as far as the others."""
    gradient = torch.full((1, 1, 2, 2), 1e-3)
    gradient[..., 0, 0] = 1e-9
    moved = {}
    for outer in ("adam", "adam-mini"):
        method = Tesla(outer=outer, lr_img=0.1, momentum=0.0, clip=None)
        state = PixelState.start(torch.zeros(1, 1, 2, 2), torch.eye(1), 0.01, outer=outer)
        descend(method, state, torch.arange(1), fed(gradient))
        moved[outer] = state.images.abs().flatten()
    torch.testing.assert_close(moved["adam"], torch.full((4,), 0.1))
    assert moved["adam-mini"][0] < 1e-6
    assert (moved["adam-mini"][1:] > 0.1).all()


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


@pytest.mark.parametrize("outer", ["adam", "adam-mini"])
@pytest.mark.parametrize("method", [Tesla, Mtt, Datm])
def test_a_step_size_meant_for_sgd_is_refused(method, outer):
    with pytest.raises(UsageError, match=r"at most 1, say -o matcher\.lr_img=0\.03"):
        method(outer=outer)
    assert method(outer=outer, lr_img=0.05).outer == outer


@pytest.mark.parametrize("outer", ["adam", "adam-mini"])
def test_a_mean_that_never_moves_is_refused(outer):
    with pytest.raises(UsageError, match="below 1"):
        Tesla(outer=outer, lr_img=0.1, momentum=1.0)


@pytest.mark.parametrize("outer", ["adam", "adam-mini"])
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


@pytest.mark.parametrize("outer", ["adam", "adam-mini"])
def test_outer_optimisers_descend_the_matching_loss(problem, outer):
    """On one segment again and again."""
    method = Tesla(**HARD | {"outer": outer, "lr_img": 0.02, "curvature": "exact", "augment": False})
    state = begin(method, problem)
    losses = []
    for k in range(15):
        with (problem.seed / "step" / 0).scope():
            state, numbers = method.step(problem, state, k)
        losses.append(float(numbers["loss"]))
    assert losses[-1] < 0.97 * losses[0]


# --------------------------------------------------------------------------------- sgd, lazily, and the student lr


ALL = torch.arange(2)  # the rows of ``start()``


def start(labels: torch.Tensor | None = None) -> PixelState:
    labels = torch.eye(2) if labels is None else labels
    return PixelState.start(torch.zeros(2, 1, 4, 4), labels.clone(), 0.01, learn_labels=True)


def test_the_gradient_of_logits_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    (expected,) = torch.autograd.grad((logits.softmax(1) * upstream).sum(), logits)
    assert torch.allclose(softmax_pullback(logits.detach(), upstream), expected, atol=1e-14)


def test_descent_on_images_has_momentum():
    method, state = Tesla(lr_img=2.0, momentum=0.5), start()
    for expected in (-2.0, -5.0, -8.5):  # velocities 1, 1.5, 1.75
        descend(method, state, ALL, gradient_of_ones(state))
        assert torch.allclose(state.images, torch.full_like(state.images, expected))


@pytest.mark.parametrize("push", [1e12, -1e12, 1.0, -1.0])
def test_the_student_lr_cannot_leave_the_positive_numbers(push):
    method, state = Tesla(lr_lr=1.0, momentum=0.9), start()
    for _ in range(200):
        before = float(state.lr)
        descend(method, state, ALL, gradient_of_ones(state, 0.0, push))
        after = float(state.lr)
        assert after > 0
        assert 1 / 3 < after / before < 3


def test_a_small_step_of_the_student_lr_is_the_published_one():
    method, state = Tesla(lr_lr=1e-7, momentum=0.5), start()
    descend(method, state, ALL, gradient_of_ones(state, 0.0, 3.0))
    assert float(state.lr) == pytest.approx(0.01 - 1e-7 * 3.0, rel=1e-9)


def test_a_dead_or_runaway_student_lr_ends_the_run_with_advice():
    check_lr(0.01, 0.01)
    for lr in (1e-7, 1e2, float("nan"), float("inf")):
        with pytest.raises(DivergedError, match=r"try a smaller matcher\.lr_lr"):
            check_lr(lr, 0.01)


@pytest.mark.parametrize("first", [0.01, 5.0])
def test_a_student_lr_may_shrink_ten_thousandfold_and_grow_a_thousandfold(first):
    for share in (1.001e-4, 999.0):
        check_lr(share * first, first)
    for share in (0.999e-4, 1001.0):
        with pytest.raises(DivergedError, match="the learned student lr went from"):
            check_lr(share * first, first)


@pytest.mark.parametrize("outer", ["sgd", "adam"])
@pytest.mark.parametrize("count", [100, 101, 1000, 1001, 2345])
def test_more_rows_than_are_brought_up_to_date_at_once_are_all_where_a_dense_optimiser_has_them(outer, count):
    """In float64: all rows move once, the even ones three times more, and then all are read."""
    images = torch.linspace(-1, 1, count, dtype=torch.float64).view(-1, 1, 1, 1)
    options = {"lr_img": 0.03, "momentum": 0.8, "clip": None, "labels": "learned", "lr_label": 0.2}
    method = Tesla(outer=outer, **options)
    logits = images.view(-1, 1) * torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    state = PixelState.start(images.clone(), logits.clone(), 0.01, learn_labels=True, outer=outer)
    dense, soft = images.clone().requires_grad_(), logits.clone().requires_grad_()
    adam = torch.optim.Adam([dense], 0.03, (0.8, 0.999), eps=1e-300)
    optimisers = [adam if outer == "adam" else torch.optim.SGD([dense], 0.03, 0.8), torch.optim.SGD([soft], 0.2, 0.9)]
    weights = torch.linspace(0.5, 2, count, dtype=torch.float64)
    for rows in (torch.arange(count), *[torch.arange(0, count, 2)] * 3):
        catch_up(method, state, rows)
        pushed = weights[rows].view(-1, 1, 1, 1)
        upstream = weights[rows].view(-1, 1) * torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        descend(method, state, rows, Gradient(torch.tensor(0.0), pushed, upstream, torch.tensor(0.0), torch.zeros(1)))
        dense.grad, soft.grad = torch.zeros_like(dense), torch.zeros_like(soft)
        dense.grad[rows] = pushed
        soft.grad[rows] = torch.autograd.grad((soft[rows].softmax(1) * upstream).sum(), soft)[0][rows]
        for optimiser in optimisers:
            optimiser.step()
    for found, expected in zip(caught_up(method, state), (dense, soft), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
    catch_up(method, state, torch.arange(count))
    torch.testing.assert_close(state.images, dense.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.labels, soft.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_row_wise_descent_with_lazy_momentum_equals_dense_sgd(momentum, labels):
    """Against torch.optim.SGD on all rows, in float64: rows come and go, are empty, or wait for many steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 3, 3, dtype=torch.float64, generator=generator)
    logits = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    method = Tesla(lr_img=0.3, lr_label=0.2, momentum=momentum, labels=labels, clip=None)
    state = PixelState.start(images.clone(), logits.clone(), 0.01, learn_labels=labels == "learned")
    dense, soft = images.clone().requires_grad_(), logits.clone().requires_grad_()
    optimisers = [torch.optim.SGD([dense], 0.3, momentum), torch.optim.SGD([soft], 0.2, 0.9)]
    for rows in ([0, 1, 2], [2, 5], [], [1], [1], [6, 0], [5], [3]):
        index = torch.tensor(rows, dtype=torch.int64)
        weights = torch.randn(len(rows), 9, dtype=torch.float64, generator=generator)
        catch_up(method, state, index)
        seen = state.images[index]
        torch.testing.assert_close(seen, dense.detach()[index], rtol=1e-12, atol=1e-12)
        # a gradient that depends on the values, as a real one does
        upstream = torch.randn(len(rows), 4, dtype=torch.float64, generator=generator)
        made = Gradient(torch.tensor(0.0), seen * weights.view_as(seen), upstream, torch.tensor(0.0), torch.zeros(1))
        descend(method, state, index, made)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=False)
        dense.grad, soft.grad = torch.zeros_like(dense), torch.zeros_like(soft)
        dense.grad[index] = dense.detach()[index] * weights.view_as(seen)
        soft.grad[index] = torch.autograd.grad((soft[index].softmax(1) * upstream).sum(), soft)[0][index]
        for optimiser in optimisers:
            optimiser.step()
    catch_up(method, state, torch.arange(7))
    torch.testing.assert_close(state.images, dense.detach(), rtol=1e-12, atol=1e-12)
    expected = soft.detach() if labels == "learned" else logits
    torch.testing.assert_close(state.labels, expected, rtol=1e-12, atol=1e-12)


def test_clipping_bounds_a_gradient_by_the_running_mean_of_norms():
    method, state = Tesla(lr_img=1.0, momentum=0.0, clip=2.0), start()
    size = float(torch.ones_like(state.images).norm())
    descend(method, state, ALL, gradient_of_ones(state, 1.0))
    assert torch.allclose(state.images, -torch.ones_like(state.images))
    descend(method, state, ALL, gradient_of_ones(state, 1000.0))
    moved = float((state.images + 1).norm())
    assert moved == pytest.approx(2 * size, rel=1e-5)
    before = state.images.clone()
    descend(method, state, ALL, gradient_of_ones(state, 0.5))
    assert float((state.images - before).norm()) == pytest.approx(0.5 * size, rel=1e-5)


def test_a_zero_gradient_with_clipping_is_no_division_by_zero():
    method, state = Tesla(lr_img=1.0, clip=2.0), start()
    descend(method, state, ALL, gradient_of_ones(state, 0.0))
    descend(method, state, ALL, gradient_of_ones(state, 0.0))
    assert torch.equal(state.images, torch.zeros_like(state.images))


def test_labels_move_only_when_they_are_learned():
    for labels in ("hard", "teacher", "learned"):
        method, state = Tesla(labels=labels, lr_label=1.0), start(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        before = state.labels.clone()
        made = gradient_of_ones(state)
        made.labels[:, 0] = 5.0
        descend(method, state, ALL, made)
        assert torch.equal(state.labels, before) is (labels != "learned")


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
    method = Tesla(**HARD | {"labels": "teacher", "relabel": True})
    state, pools = begin(method, problem), []

    def seen(task: Task) -> Gradient:
        pools.append(task.pool)
        return reverse(*task)

    for k in range(3):
        with (problem.seed / "step" / k).scope():
            step_along(method, problem, state, k, seen)
    assert len(pools) == 3
    assert len({float(pool.new.labels.square().sum()) for pool in pools}) > 1


# --------------------------------------------------------------------------------- clipping, and large sets


def test_a_gradient_is_bounded_by_a_multiple_of_the_running_mean_of_bounded_norms():
    """The first goes through; then mean <- 0.9 mean + 0.1 bounded norm, by hand in Python's floats."""
    method = Tesla(**HARD | {"momentum": 0.0, "lr_img": 1.0, "clip": 2.0})
    state = PixelState.start(torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.eye(4)[:1], 0.01)
    direction, mean = torch.tensor([[[[0.6, 0.8]]]], dtype=torch.float64), 0.0
    for norm in (3.0, 1.0, 100.0, 0.0, 4.5, 1e-3, 7.0):
        before = state.images.clone()
        descend(method, state, torch.arange(1), fed(norm * direction))
        bounded = min(norm, 2 * mean) if mean else norm
        mean = 0.9 * mean + 0.1 * bounded if mean else bounded
        torch.testing.assert_close(before - state.images, bounded * direction, rtol=1e-12, atol=1e-12)


def test_thousands_of_rows_that_waited_are_where_sgd_with_momentum_has_them():
    """Images and logits, against all rows moving in every step, in float64."""
    n = 2003
    method = Tesla(**TINY | {"labels": "learned", "momentum": 0.5, "lr_img": 0.3, "lr_label": 0.2, "clip": None})
    generator = torch.Generator().manual_seed(1)
    images, logits, fall, pull = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for _ in range(4))
    state = PixelState.start(images.view(n, 1, 2, 2).clone(), logits.clone(), 0.01, learn_labels=True)
    everything = torch.arange(n)
    momenta = torch.zeros(2, n, 4, dtype=torch.float64)
    for rows in (everything, torch.tensor([7]), torch.tensor([7, 1500])):
        catch_up(method, state, rows)
        descend(method, state, rows, replace(fed(fall.view(n, 1, 2, 2)[rows]), labels=pull[rows]))
        found, pulled = torch.zeros(n, 4, dtype=torch.float64), torch.zeros(n, 4, dtype=torch.float64)
        p = logits[rows].exp() / logits[rows].exp().sum(1, keepdim=True)
        found[rows], pulled[rows] = fall[rows], p * (pull[rows] - (p * pull[rows]).sum(1, keepdim=True))
        momenta = torch.stack([0.5 * momenta[0] + found, 0.9 * momenta[1] + pulled])
        images, logits = images - 0.3 * momenta[0], logits - 0.2 * momenta[1]
    late = caught_up(method, state)
    catch_up(method, state, everything)
    for moved, expected in zip((state.images.view(n, 4), state.labels), (images, logits), strict=True):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)
    for moved, expected in zip((state.images_momentum.view(n, 4), state.labels_momentum), momenta, strict=True):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(late[0], state.images)
    assert torch.equal(late[1], state.labels)


def test_hundreds_of_rows_that_waited_are_where_adam_has_them():
    n = 203
    method = Tesla(**HARD | {"outer": "adam", "lr_img": 0.3, "momentum": 0.5, "clip": None})
    state = PixelState.start(torch.zeros(n, 1, 1, 1, dtype=torch.float64), torch.eye(n), 0.01, outer="adam")
    dense = torch.zeros(n, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([dense], 0.3, (0.5, 0.999), eps=1e-16)
    for rows in (torch.arange(n), torch.tensor([7]), torch.tensor([7, 150])):
        catch_up(method, state, rows)
        descend(method, state, rows, fed((rows + 1.0).double().view(-1, 1, 1, 1)))
        dense.grad = torch.zeros_like(dense)
        dense.grad[rows] = (rows + 1.0).double().view(-1, 1, 1, 1)
        optimiser.step()
    torch.testing.assert_close(caught_up(method, state)[0], dense.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("labels", ["hard", "learned"])
@pytest.mark.parametrize("outer", ["sgd", "adam", "adam-mini"])
def test_at_its_end_a_state_gives_what_a_copy_would_have_and_lets_momentum_go(outer, labels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 3, 3, generator=generator)
    method = Tesla(steps=len(BATCHES), outer=outer, lr_img=0.3, momentum=0.5, labels=labels)
    start = torch.randn(7, 4, generator=generator)
    state = PixelState.start(images, start, 0.01, learn_labels=labels == "learned", outer=outer)
    for rows in BATCHES:
        index = torch.tensor(rows, dtype=torch.int64)
        catch_up(method, state, index)
        found = torch.randn(len(rows), 1, 3, 3, generator=generator)
        slopes = torch.randn(len(rows), 4, generator=generator)
        descend(method, state, index, replace(fed(found), labels=slopes))
    copies = caught_up(method, state)
    assert not torch.equal(copies[0], state.images)  # some rows waited
    for _ in range(2):  # and again, from the checkpoint that is written then
        given = at_end(method, state)
        assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
        assert given[0] is state.images
        assert not state.images_momentum.numel()
