"""Labels that trained networks give."""

from __future__ import annotations

import torch

from ddbench.problem.labels import teacher_labels


def test_teacher_labels_do_not_depend_on_how_many_images_are_labelled_at_once(problem):
    images = problem.sample().images
    vector = problem.experts.snapshot(0, 2)
    together = teacher_labels(problem, images, vector)
    assert torch.allclose(teacher_labels(problem, images, vector, batch=2), together, atol=1e-6)
    assert not together.requires_grad
