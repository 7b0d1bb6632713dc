"""What moves the images (SGD, Adam, normalised gradients), and several segments per iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ddbench_tesla import Tesla
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.mtt import Mtt
from tiny import TRAJECTORY, spec

from ddbench import Problem, UsageError
from ddbench.run.run import build_task
from ddbench.run.stage import prepared
from ddbench.trajectory.descent import PixelState, catch_up, caught_up, descend
from ddbench.trajectory.method import advance, at_once
from ddbench.trajectory.stacking import StackedLoss
from ddbench.trajectory.unroll import Gradient

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


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_normalised_gradients_are_sgd_on_images_of_unit_root_mean_square(momentum):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, 4, 4, dtype=torch.float64, generator=generator)
    method = Tesla(outer="normalised", lr_img=0.3, momentum=momentum)  # clipping has nothing to say here
    state = PixelState.start(images.clone(), torch.zeros(7, 4), 0.01)
    dense = images.clone().requires_grad_()
    optimiser = torch.optim.SGD([dense], 0.3, momentum)
    for rows in BATCHES:
        index = torch.tensor(rows, dtype=torch.int64)
        found = torch.randn(len(rows), 3, 4, 4, dtype=torch.float64, generator=generator) * 1e-6
        catch_up(method, state, index)
        descend(method, state, index, fed(found))
        dense.grad = torch.zeros_like(dense)
        for row, one in zip(rows, found, strict=True):
            dense.grad[row] = (1 - momentum) * one / one.square().mean().sqrt()
        optimiser.step()
    torch.testing.assert_close(caught_up(method, state)[0], dense.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outer", ["adam", "normalised"])
@pytest.mark.parametrize("method", [Tesla, Mtt, Datm])
def test_a_step_size_meant_for_sgd_is_refused(method, outer):
    with pytest.raises(UsageError, match=r"at most 1, say -o matcher\.lr_img=0\.03"):
        method(outer=outer)
    assert method(outer=outer, lr_img=0.05).outer == outer


@pytest.mark.parametrize("outer", ["adam", "normalised"])
def test_a_mean_that_never_moves_is_refused(outer):
    with pytest.raises(UsageError, match="below 1"):
        Tesla(outer=outer, lr_img=0.1, momentum=1.0)


@pytest.mark.parametrize("outer", ["adam", "normalised"])
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


@pytest.mark.parametrize("outer", ["adam", "normalised"])
def test_outer_optimisers_descend_the_matching_loss(problem, outer):
    """On one segment again and again."""
    method = Tesla(**TINY | {"outer": outer, "lr_img": 0.02, "curvature": "exact", "augment": False})
    with (problem.seed / "init").scope():
        state = method.init(problem)
    losses = []
    for k in range(15):
        with (problem.seed / "step" / 0).scope():
            state, numbers = advance(method, problem, state, k, method.differentiate)
        losses.append(float(numbers["loss"]))
    assert losses[-1] < 0.97 * losses[0]


# --------------------------------------------------------------------------------- several segments


def in_float64(problem: Problem) -> Problem:
    """The same problem whose network computes, and whose experts are read, in float64."""
    network, experts = replace(problem.network, dtype=torch.float64), problem.experts
    made = replace(problem, starts=replace(problem.starts, network=network))
    double = SimpleNamespace(
        segment=lambda *where: tuple(t.double() for t in experts.segment(*where)),
        snapshot=lambda *where: experts.snapshot(*where).double(),
    )
    object.__setattr__(made, "experts", double)
    return made


def found_by(method: Any, problem: Problem) -> tuple[list[Gradient], dict[str, Any], PixelState]:
    """The gradients that one iteration asks for, its numbers, and the state that it leaves."""
    with (problem.seed / "init").scope():
        state = method.init(problem)
    state.images, state.labels = state.images.double(), state.labels.double()
    state.images_momentum = state.images_momentum.double()
    state.labels_momentum = state.labels_momentum.double()
    made = []

    def differentiate(*task: Any) -> Gradient:
        made.append(method.differentiate(*task))
        return made[-1]

    threshold = getattr(method, "threshold", None)
    with (problem.seed / "step" / 0).scope():
        state, numbers = advance(method, problem, state, 0, differentiate, None, threshold)
    return made, numbers, state


@pytest.mark.parametrize("options", [{}, {"batch_syn": 2}, {"labels": "learned", "batch_syn": 3}], ids=str)
def test_an_iteration_descends_the_mean_gradient_of_its_segments(problem, options):
    method = Tesla(**TINY | {"segments": 3, "momentum": 0.0, "clip": None, "lr_img": 2.0} | options)
    made, numbers, after = found_by(method, in_float64(problem))
    assert len(made) == 3
    assert len({float(g.loss) for g in made}) == 3, "three different segments"
    assert float(numbers["loss"]) == pytest.approx(sum(float(g.loss) for g in made) / 3, rel=1e-12)
    with (problem.seed / "init").scope():
        before = method.init(problem)
    moved = torch.nonzero(after.seen == 1).flatten()
    mean = sum(g.images for g in made) / 3
    expected = before.images.double()[moved] - 2.0 * mean
    torch.testing.assert_close(after.images[moved], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [Tesla, Mtt])
@pytest.mark.parametrize(
    "options",
    [{}, {"curvature": "exact"}, {"batch_syn": 4}, {"labels": "learned", "batch_syn": 4, "window": 2}],
    ids=str,
)
def test_stacked_segments_are_the_same_as_one_after_the_other(problem, method, options):
    if method is Mtt:
        options = {name: value for name, value in options.items() if name not in ("curvature", "window")}
    common = TINY | {"segments": 3, "syn_steps": 3} | options
    apart, told, left = found_by(method(**common, stacked=False), in_float64(problem))
    together, said, right = found_by(method(**common, stacked=True), in_float64(problem))
    assert (len(apart), len(together)) == (3, 1)
    for name in ("images", "labels", "lr", "loss"):
        expected = sum(getattr(g, name) for g in apart)
        torch.testing.assert_close(getattr(together[0], name), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(right.images, left.images, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(right.labels, left.labels, rtol=1e-9, atol=1e-12)
    assert float(said["loss"]) == pytest.approx(float(told["loss"]), rel=1e-9)


def test_one_segment_is_never_stacked(problem):
    seen = []
    method = Tesla(**TINY, stacked=True)
    with (problem.seed / "init").scope():
        state = method.init(problem)
    with (problem.seed / "step" / 0).scope():
        advance(method, problem, state, 0, lambda *task: (seen.append(task[0]), method.differentiate(*task))[1])
    assert not isinstance(seen[0], StackedLoss)


def test_segments_are_stacked_on_a_gpu_or_when_asked_to_be(problem):
    assert at_once(Tesla(segments=3), problem) == 1, "this is a CPU"
    assert at_once(Tesla(segments=3, stacked=True), problem) == 3
    assert at_once(Tesla(stacked=True), problem) == 1


@pytest.mark.parametrize(
    ("method", "options"),
    [(Tesla, {"relabel": True}), (Datm, {}), (Tesla, {"precision": "tf32"}), (Tesla, {"engine": "compiled"})],
    ids=str,
)
def test_what_one_vectorised_unroll_cannot_do_takes_segments_apart(problem, method, options):
    """And an option that asks for both is refused instead of ignored."""
    with patch("ddbench.trajectory.method.trains_together", lambda *_: True):  # as on a GPU
        apart = replace(problem)
        assert at_once(method(segments=3, **options), apart) == 1
        assert at_once(Tesla(segments=3), apart) == 3
    with pytest.raises(UsageError, match=r"cannot be stacked with matcher\.\w+.*; leave matcher\.stacked alone"):
        method(segments=3, stacked=True, **options)
    assert method(segments=1, stacked=True, **options).segments == 1


def test_segments_above_the_threshold_are_left_out_of_the_mean(problem):
    common = {k: v for k, v in TINY.items() if k != "labels"} | {"segments": 4, "lr_img": 1.0}
    common |= {"momentum": 0.0, "clip": None, "labels": "hard", "pix_init": "real"}
    made, _, _ = found_by(Datm(**common, threshold=1e9), in_float64(problem))
    losses = sorted(float(g.loss) for g in made)
    between = (losses[1] + losses[2]) / 2
    made, numbers, after = found_by(Datm(**common, threshold=between), in_float64(problem))
    assert numbers["skipped"] == pytest.approx(0.5)
    kept = [g for g in made if float(g.loss) <= between]
    assert len(kept) == 2
    with (problem.seed / "init").scope():
        before = Datm(**common).init(problem)
    expected = before.images.double() - (kept[0].images + kept[1].images) / 2
    torch.testing.assert_close(after.images, expected, rtol=1e-12, atol=1e-12)
    _, numbers, after = found_by(Datm(**common, threshold=losses[0] / 2), in_float64(problem))
    assert numbers["skipped"] == 1.0
    torch.testing.assert_close(after.images, before.images.double(), rtol=0, atol=0)
    assert after.steps == 0


def test_teacher_labels_of_every_iteration_are_those_of_each_segment(problem):
    """Then pools differ, and segments are not stacked."""
    method = Tesla(**TINY | {"labels": "teacher", "relabel": True, "segments": 3})
    with (problem.seed / "init").scope():
        state = method.init(problem)
    pools = []
    with (problem.seed / "step" / 0).scope():
        advance(method, problem, state, 0, lambda *task: (pools.append(task[3]), method.differentiate(*task))[1])
    assert len(pools) == 3
    assert len({float(pool.new.labels.square().sum()) for pool in pools}) > 1
