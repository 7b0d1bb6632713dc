"""TESLA: its two gradients, and windows."""

from __future__ import annotations

import pytest
import torch
from ddbench_tesla import Tesla
from ddbench_trajectories.mtt import Mtt
from problems import TINY, assert_frozen, play


def test_a_matcher_is_its_frozen_hyperparameters():
    assert_frozen(Tesla())
    assert Tesla(span=3) != Tesla()


@pytest.mark.parametrize("labels", ["teacher", "learned", "hard"])
def test_tesla_with_the_exact_gradient_and_mtt_agree_on_every_number(problem, labels):
    common = TINY | {"labels": labels, "syn_steps": 5, "batch_syn": 4, "lr_lr": 1e-3}
    (a, one), (b, other) = (play(m, problem, 4) for m in (Tesla(**common, curvature="exact"), Mtt(**common)))
    begun = Tesla(**common).init(problem)
    for name in ("images", "labels"):
        got, expected, before = getattr(a, name), getattr(b, name), getattr(begun, name)
        assert (got - expected).norm() <= 1e-5 * (expected - before).norm(), name
    assert float(a.lr) == pytest.approx(float(b.lr), rel=1e-6)
    assert float(b.lr) != 0.01
    for x, y in zip(one, other, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)


def test_zero_curvature_is_another_gradient_unless_there_is_one_step(problem):
    def images(curvature: str, steps: int) -> torch.Tensor:
        method = Tesla(**TINY | {"syn_steps": steps, "lr_init": 0.1, "labels": "hard"}, curvature=curvature)
        return play(method, problem, 1)[0].images

    assert torch.equal(images("zero", 1), images("exact", 1))
    assert not torch.allclose(images("zero", 6), images("exact", 6), rtol=1e-3)


def test_a_window_as_long_as_the_unroll_changes_nothing_and_a_shorter_one_does(problem):
    def images(window: int | None) -> torch.Tensor:
        return play(Tesla(**TINY, labels="hard", window=window), problem, 1)[0].images

    assert torch.equal(images(None), images(3))
    assert not torch.equal(images(None), images(1))
