"""Labels that trained networks give."""

from __future__ import annotations

import pytest
import torch
from problems import toy_with_experts

from ddbench.problem.labels import teacher_labels


def test_teacher_labels_do_not_depend_on_how_many_images_are_labelled_at_once(problem):
    images = problem.sample().images
    vector = problem.experts.snapshot(0, 2)
    together = teacher_labels(problem, images, vector)
    assert torch.allclose(teacher_labels(problem, images, vector, batch=2), together, atol=1e-6)
    assert not together.requires_grad


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_each_image_is_labelled_by_itself_as_a_trained_network_sees_it(module_home, norm):
    """With the statistics that the network has, not those of a batch; and no gradient goes through labels."""
    problem = toy_with_experts(**{"network.norm": norm})
    images, vector = problem.sample().images, problem.experts.snapshot(0, 2)
    together = teacher_labels(problem, images.requires_grad_(), vector.requires_grad_())
    assert not together.requires_grad
    alone = torch.cat([teacher_labels(problem, image[None], vector) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(len(images)))
    assert together.std(0).max() > 1e-4
