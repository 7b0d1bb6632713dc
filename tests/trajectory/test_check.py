"""The comparison of a method's gradient with autograd: what its numbers mean."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from ddbench_networks import ConvNet

from ddbench.trajectory.check import compare_gradients
from ddbench.trajectory.unroll import Gradient, Task, autograd_unroll


@pytest.mark.parametrize("factor", [1.0, 1.5, -3.0])
def test_a_gradient_that_is_a_multiple_of_the_right_one_is_off_by_that(factor):
    def multiple(task: Task) -> Gradient:
        right = autograd_unroll(*task)
        return replace(right, **{name: factor * getattr(right, name) for name in ("images", "labels", "lr")})

    rows = compare_gradients(multiple, ConvNet(width=4, depth=2), steps=3, lr=0.1, seed=2)
    assert [row["gradient"] for row in rows] == ["images", "labels", "lr"]
    for row in rows:
        assert row["relative_error"] == pytest.approx(abs(factor - 1), abs=1e-12)
        assert row["cosine"] == pytest.approx(math.copysign(1, factor), abs=1e-12)
        assert row["norm_ratio"] == pytest.approx(abs(factor), abs=1e-12)
