"""Random images, and their labels."""

from __future__ import annotations

from dataclasses import replace

import torch
from ddbench_coresets.sampled import Random
from problems import assert_frozen


def test_random_images_need_experts_only_to_be_labelled(problem):
    assert Random().needs(problem).experts == 0
    found = Random(labels="teacher", experts=3, teacher_epochs=5).needs(problem)
    assert (found.experts, found.snapshots) == (3, (5,))


def test_random_images_are_in_class_order_with_their_labels(problem):
    made = Random().result(problem, Random().init(problem))
    assert made.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(made.labels, torch.eye(3)[made.labels.argmax(1)])
    assert made.lr is None
    assert made.label_type == "hard"


def test_random_images_depend_on_the_seed_of_the_run_only(problem):
    one = Random().init(problem)
    torch.manual_seed(1)
    assert torch.equal(Random().init(problem).images, one.images)
    other = replace(problem, seed=replace(problem.seed, root=1))
    assert not torch.equal(Random().init(other).images, one.images)


def test_teacher_labels_of_random_images_are_the_mean_prediction_of_the_experts(problem):
    method = Random(labels="teacher", experts=2, teacher_epochs=1)
    made = method.result(problem, method.init(problem))
    parts = [problem.network.apply(problem.experts.snapshot(i, 1), made.images, train=False) for i in (0, 1)]
    expected = (parts[0].softmax(1) + parts[1].softmax(1)) / 2
    assert torch.allclose(made.labels, expected, atol=1e-6)
    assert made.label_type == "teacher"
    assert torch.equal(made.images, Random().init(problem).images)


def test_random_images_are_their_frozen_hyperparameters():
    assert_frozen(Random())
