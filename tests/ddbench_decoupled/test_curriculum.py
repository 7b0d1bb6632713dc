"""CDA's curriculum: the least area of crops over the iterations, and what a batch looks like through one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_decoupled.curriculum import cropped, least_area
from ddbench_decoupled.sre2l import Squeezed, Sre2l
from problems import begin, toy
from torchvision.transforms import v2

from ddbench.run.prepare import prepared

QUICK: dict[str, Any] = {"teacher_epochs": 1, "teacher_batch": 20}


@pytest.mark.parametrize("milestone", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("mode", ["step", "linear", "cosine"])
def test_the_least_area_falls_as_in_the_released_schedule(mode, milestone):
    """Written out anew from the formulas of the paper, iteration by iteration, in NumPy."""
    for k in range(40):
        wanted, end = 0.08, milestone * 40
        if k < end:
            if mode == "step":
                wanted = 1.0
            elif mode == "linear":
                wanted = 0.08 + 0.92 * (1 - k / end)
            else:
                wanted = 0.08 + 0.92 * (1 + np.cos(np.pi * k / end)) / 2
        assert least_area(mode, k, 40, milestone, 0.08) == pytest.approx(wanted, rel=1e-12)


def test_a_batch_is_seen_through_one_crop_of_torchvision_s():
    problem = toy(2)
    assert "flip" not in problem.dsa.operations
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        torch.manual_seed(seed)
        shown = cropped(problem, images, 0.3)
        torch.manual_seed(seed)
        box = v2.RandomResizedCrop(8, scale=(0.3, 1)).make_params([images])
        wanted = v2.functional.resized_crop(images, *(box[n] for n in ("top", "left", "height", "width")), size=[8, 8])
        torch.testing.assert_close(shown, wanted)


def test_a_crop_of_everything_is_the_image_and_gradients_reach_what_it_shows():
    problem = toy(2)
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64).requires_grad_()
    assert torch.equal(cropped(problem, images, 1.0), images)
    torch.manual_seed(1)
    assert torch.autograd.gradcheck(lambda x: (torch.manual_seed(1), cropped(problem, x, 0.2))[1], images)


def test_only_datasets_that_mirror_have_mirrored_crops():
    problem = replace(toy(2), augment="flip")
    images = torch.randn(2, 1, 8, 8)
    seen = [cropped(problem, images, 1.0) for _ in range(20)]
    assert {torch.equal(s, images) for s in seen} == {True, False}
    assert all(torch.equal(s, images) or torch.equal(s, images.flip(3)) for s in seen)


def test_the_curriculum_is_what_the_teacher_sees_and_off_it_changes_nothing():
    plain, method = (
        Sre2l(**QUICK, steps=8, jitter=0),
        Sre2l(**QUICK, steps=8, jitter=0, curriculum="step", milestone=0.5),
    )
    problem = toy(2)
    problem = prepared(problem, plain.needs(problem))
    squeezed, seen = Squeezed(problem.teacher(0), problem.real.shape, problem.classes), []
    problem.workspace["sre2l"] = lambda x: (seen.append(x.detach()), squeezed(x))[1]
    for chosen, k, whole in ((plain, 7, True), (method, 3, True), (method, 4, False)):
        state = begin(plain, problem)
        before = state.images.clone()
        seen.clear()
        torch.manual_seed(0)
        chosen.step(problem, state, k)
        assert all(torch.equal(s, before[i::2]) for i, s in enumerate(seen)) == whole
