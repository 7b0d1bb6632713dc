"""Labels that trained networks give."""

from __future__ import annotations

import pytest
import torch
from problems import toy_with_experts

from ddbench import Problem
from ddbench.problem.labels import teacher_labels


@pytest.fixture(scope="module")
def problem(module_home) -> Problem:
    return toy_with_experts()


def test_teacher_labels_do_not_depend_on_how_many_images_are_labelled_at_once(problem):
    images = problem.sample().images
    vector = problem.experts.snapshot(0, 2)
    together = teacher_labels(problem, images, vector)
    assert torch.allclose(teacher_labels(problem, images, vector, batch=2), together, atol=1e-6)
    assert not together.requires_grad
