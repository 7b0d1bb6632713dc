"""Several segments per iteration: the mean of their gradients, one after the other or stacked in one unroll."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ddbench_tesla import Tesla
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.mtt import Mtt
from problems import TINY, begin, toy_with_experts, with_experts

from ddbench import Problem, UsageError
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.method import advance, at_once
from ddbench.trajectory.stacking import StackedLoss
from ddbench.trajectory.unroll import Gradient

HARD = TINY | {"labels": "hard"}


@pytest.fixture(scope="module", params=["group", "batch"])
def problem(module_home, request) -> Problem:
    """On networks without and with buffers."""
    return toy_with_experts(**{"network.norm": request.param})


def in_float64(problem: Problem) -> Problem:
    """The same problem whose network computes, and whose experts are read, in float64."""
    network, experts = replace(problem.network, dtype=torch.float64), problem.experts
    double = SimpleNamespace(
        segment=lambda *where: tuple(t.double() for t in experts.segment(*where)),
        snapshot=lambda *where: experts.snapshot(*where).double(),
    )
    return with_experts(problem, double, starts=replace(problem.starts, network=network))


def found_by(method: Any, problem: Problem) -> tuple[list[Gradient], dict[str, Any], PixelState]:
    """The gradients that one iteration asks for, its numbers, and the state that it leaves."""
    state = begin(method, problem)
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
    method = Tesla(**HARD | {"segments": 3, "momentum": 0.0, "clip": None, "lr_img": 2.0} | options)
    made, numbers, after = found_by(method, in_float64(problem))
    assert len(made) == 3
    assert len({float(g.loss) for g in made}) == 3, "three different segments"
    assert float(numbers["loss"]) == pytest.approx(sum(float(g.loss) for g in made) / 3, rel=1e-12)
    before = begin(method, problem)
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
    common = HARD | {"segments": 3, "syn_steps": 3} | options
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
    method = Tesla(**HARD, stacked=True)
    state = begin(method, problem)
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
    common = {k: v for k, v in HARD.items() if k != "labels"} | {"segments": 4, "lr_img": 1.0}
    common |= {"momentum": 0.0, "clip": None, "labels": "hard", "pix_init": "real"}
    made, _, _ = found_by(Datm(**common, threshold=1e9), in_float64(problem))
    losses = sorted(float(g.loss) for g in made)
    between = (losses[1] + losses[2]) / 2
    made, numbers, after = found_by(Datm(**common, threshold=between), in_float64(problem))
    assert numbers["skipped"] == pytest.approx(0.5)
    kept = [g for g in made if float(g.loss) <= between]
    assert len(kept) == 2
    before = begin(Datm(**common), problem)
    expected = before.images.double() - (kept[0].images + kept[1].images) / 2
    torch.testing.assert_close(after.images, expected, rtol=1e-12, atol=1e-12)
    _, numbers, after = found_by(Datm(**common, threshold=losses[0] / 2), in_float64(problem))
    assert numbers["skipped"] == 1.0
    torch.testing.assert_close(after.images, before.images.double(), rtol=0, atol=0)
    assert after.steps == 0


def test_teacher_labels_of_every_iteration_are_those_of_each_segment(problem):
    """Then pools differ, and segments are not stacked."""
    method = Tesla(**HARD | {"labels": "teacher", "relabel": True, "segments": 3})
    state = begin(method, problem)
    pools = []
    with (problem.seed / "step" / 0).scope():
        advance(method, problem, state, 0, lambda *task: (pools.append(task[3]), method.differentiate(*task))[1])
    assert len(pools) == 3
    assert len({float(pool.new.labels.square().sum()) for pool in pools}) > 1
