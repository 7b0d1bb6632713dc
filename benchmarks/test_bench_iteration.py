"""The time of one iteration: TESLA's reverse sweep, and MTT's autograd through the whole unroll."""

from __future__ import annotations

import os

import pytest
import torch
from memory import METHODS, iteration

from ddbench.trajectory.unroll import Gradient

DEVICE = os.environ.get("DDBENCH_DEVICE", "cpu")


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("method", METHODS)
def test_one_iteration(benchmark, method, steps):
    benchmark.group = f"one iteration of {steps} student steps"
    benchmark.extra_info |= {"method": method, "syn_steps": steps}
    work = iteration(method, steps, DEVICE)

    def timed() -> Gradient:
        made = work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return made

    gradient = benchmark.pedantic(timed, rounds=3, warmup_rounds=1)
    assert gradient.images.isfinite().all()
