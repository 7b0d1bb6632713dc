"""Predicted memory, against what the allocator does on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ddbench_networks import ConvNet
from ddbench_tesla import Tesla
from ddbench_trajectories.mtt import Mtt
from problems import toy

from ddbench import DSA, Examples, Network, Pool, Seed
from ddbench.problem.problem import state_bytes
from ddbench.trajectory.memory import unroll_bytes
from ddbench.trajectory.unroll import Plan, Task, matching, student_loss

STRATEGY = "color_crop_cutout_flip_scale_rotate"
METHODS = {"tesla": Tesla(), "exact": Tesla(curvature="exact"), "mtt": Mtt()}


def network(norm: str = "instance") -> Network:
    return Network(ConvNet(width=16, depth=2, norm=norm), (3, 16, 16), 10)


def unroll(method: str, steps: int, batch: int, norm: str) -> Callable[[], object]:
    """One unroll, with the images that it is of."""
    net = network(norm)
    vectors = [net.init(Seed(0) / end) for end in ("start", "target")]
    start, target = (v[: net.parameters] for v in vectors)
    with Seed(0).scope():
        plan = Plan.draw(batch, steps, None, DSA(STRATEGY))
    loss = student_loss(net, vectors[0][net.parameters :])

    def work() -> object:
        pool = Pool(Examples(torch.randn(batch, *net.shape), torch.randn(batch, 10).softmax(1)))
        return METHODS[method].differentiate(Task(loss, matching(start, target), start, pool, torch.tensor(0.01), plan))

    return work


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    ("method", "steps", "batch"), [("tesla", 4, 32), ("exact", 4, 32), ("mtt", 4, 32), ("tesla", 30, 8)]
)
def test_predicted_memory_of_an_unroll_is_what_is_allocated(peak_bytes, method, steps, batch, norm):
    predicted = unroll_bytes(METHODS[method].differentiate, network(norm), STRATEGY, batch, steps)
    assert predicted == pytest.approx(peak_bytes(unroll(method, steps, batch, norm)), rel=0.15)


def test_predicted_memory_of_tesla_grows_with_steps_by_parameter_vectors_alone():
    net = network()
    few, many = (unroll_bytes(METHODS["exact"].differentiate, net, "crop", 64, t) for t in (5, 105))
    assert many - few == pytest.approx(100 * net.length * 4, rel=0.01)


def test_predicted_memory_grows_in_proportion_to_the_batch():
    a, b, c = (unroll_bytes(METHODS["tesla"].differentiate, network(), "rotate", n, 3) for n in (50, 100, 150))
    assert c - b == pytest.approx(b - a, rel=0.05)


def test_memory_of_imagenet_at_fifty_images_per_class_is_known_without_allocating_it():
    """50,000 images of 3x64x64 with momentum and labels: 5.1 GB; one iteration at any length."""
    assert state_bytes(50_000, 3 * 64 * 64, 1000) == 50_000 * (2 * 12_288 + 1000) * 4
    assert state_bytes(50_000, 3 * 64 * 64, 1000, moments=2) == 50_000 * (3 * 12_288 + 1000) * 4
    net = Network(ConvNet(), (3, 64, 64), 1000)
    peak = unroll_bytes(METHODS["tesla"].differentiate, net, "flip", 100, 5)
    assert 1e9 < peak < 4e9


@pytest.mark.parametrize(("batch_syn", "batch"), [(None, 24), (100, 24), (24, 24), (5, 5)])
def test_an_iteration_is_of_the_decoded_images_or_of_as_many_as_a_batch_has(batch_syn, batch):
    """Two stored images of each of three classes are 24 that a student sees."""
    problem = toy(2, **{"decoder.factor": 2})
    method = Tesla(batch_syn=batch_syn, syn_steps=3)
    assert problem.ipc * problem.classes == 6
    predicted = method.memory(problem)
    assert predicted.iteration == unroll_bytes(method.differentiate, problem.network, problem.augment, batch, 3)
    assert predicted.state == state_bytes(6, 64, 3)


def squares(task: Task) -> None:
    """4 MB times the square of the steps."""
    torch.empty(len(task.plan.batches) ** 2, 1_000_000)


def lines(task: Task) -> None:
    """4 MB for each step."""
    torch.empty(len(task.plan.batches), 1_000_000)


def test_few_steps_are_played_and_many_take_what_their_number_adds():
    few = [unroll_bytes(squares, network(), "flip", 4, steps) for steps in (2, 3, 7)]
    assert [few[1] - few[0], few[2] - few[1]] == [4_000_000 * (9 - 4), 4_000_000 * (49 - 9)]
    some, many = (unroll_bytes(lines, network(), "flip", 4, steps) for steps in (10, 137))
    assert many - some == 127 * 4_000_000
