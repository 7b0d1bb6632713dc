"""IDM from the inside, in float64: its two losses, its pool of networks, and an iteration of the released code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ddbench_matching.idm import Idm
from ddbench_networks import ConvNet
from float64 import close, four_cells, precise
from modules import module_of, numbers
from problems import begin, play
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from ddbench import Problem, Starts
from ddbench.run.spec import Request, resolve

INSTANCE, BATCH = ConvNet(width=4), ConvNet(width=4, norm="batch")
EXACT = Idm(augment=False, batch_real=1000, batch_net=1000, train_steps=3)  # whole classes, all real images at once
SITUATIONS = [
    {"frozen": f, "factor": d, "source": s} for f, d, s in [(0, 1, INSTANCE), (2, 2, INSTANCE), (1, 2, BATCH)]
]


def shown(problem: Problem, images: Tensor, label: int) -> Tensor:
    """The images of one class that students see."""
    own = four_cells(images).flatten(0, 1) if problem.decoder.factor == 2 else images
    for old in problem.frozen.sets:
        own = torch.cat([own, old.images[old.labels.argmax(1) == label]])
    return own


def losses(problem: Problem, module: nn.Module, images: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """The squared distance of class means, and torch's cross entropy."""
    made, real = shown(problem, images, label), problem.real[problem.real.members[label]].images
    mean, wanted = (sum(module.features(x)) / len(x) for x in (made, real))
    return ((mean - wanted.detach()) ** 2).sum(), cross_entropy(module(made), torch.full((len(made),), label))


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_its_losses_are_the_distance_of_mean_features_and_the_cross_entropy_in_evaluation_mode(situation):
    problem = precise(**situation)
    vector, images = problem.starts[5], torch.randn(2, *problem.real.shape).double()
    seen, wanted = (images.clone().requires_grad_() for _ in range(2))
    found = EXACT.match(problem, vector, seen, 1)
    expected = losses(problem, module_of(problem.network, vector).eval(), wanted, 1)
    for one, other in zip(found, expected, strict=True):
        assert close(one.detach(), other.detach())
        assert close(grad(one, seen)[0], grad(other, wanted)[0])


def test_an_iteration_is_that_of_the_released_code(monkeypatch):
    """Against torch.optim: a step after each class, then the network's training, whose accuracy weighs in percent."""
    problem = precise(INSTANCE)
    monkeypatch.setattr(Starts, "draw", lambda self: self[5])
    method = replace(EXACT, networks=1, trained=1, ce_weight=0.01, lr_img=0.3)
    start = begin(method, problem).images
    state, trail = play(method, problem, 3)

    module, images = module_of(problem.network, problem.starts[5]), nn.Parameter(start.clone())
    descent = torch.optim.SGD([images], lr=0.3, momentum=0.5)
    training = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    real = problem.real[torch.arange(len(problem.real))]
    accuracy = 0.0
    for k in range(3):
        total = 0.0
        for label in range(3):
            matching, calibration = losses(problem, module, images[2 * label : 2 * label + 2], label)
            loss = matching + 0.01 * accuracy * calibration
            images.grad = grad(loss, images)[0]
            descent.step()
            total += float(loss.detach())
        assert trail[k]["accuracy"] == pytest.approx(accuracy)
        assert trail[k]["loss"] == pytest.approx(total / 3, rel=1e-9)
        for _ in range(3):
            training.zero_grad()
            cross_entropy(module(real.images), real.labels.argmax(1)).backward()
            training.step()
        accuracy = 100 * float((module(real.images).argmax(1) == real.labels.argmax(1)).double().mean())
    assert accuracy > 1, "in percent"
    assert close(state.images - start, images.detach() - start)
    assert close(state.pool[0].vector, numbers(module))


def test_a_network_joins_the_pool_at_intervals_and_the_oldest_leaves():
    problem, method = precise(INSTANCE), replace(EXACT, networks=5, fresh=2, trained=0, batch_real=9)
    state = begin(method, problem)
    ages = [[m.vector for m in state.pool]]
    for k in range(6):
        with (problem.seed / k).scope():
            state, _ = method.step(problem, state, k)
        ages.append([m.vector for m in state.pool])
    assert [len(vectors) for vectors in ages] == [3, 4, 4, 5, 5, 5, 5]
    for before, after in zip(ages[4][1:], ages[5][:-1], strict=True):
        assert torch.equal(before, after)
    assert all(not torch.equal(ages[5][-1], old) for old in ages[4])


@pytest.mark.parametrize("trained", [0, 2, 9])
def test_so_many_networks_of_the_pool_train_in_an_iteration(trained):
    problem, method = precise(INSTANCE), replace(EXACT, trained=trained, batch_real=9, train_steps=1)
    state = begin(method, problem)
    before = [m.vector for m in state.pool]
    with problem.seed.scope():
        state, _ = method.step(problem, state, 1)
    assert sum(not torch.equal(a, m.vector) for a, m in zip(before, state.pool, strict=True)) == min(trained, 3)
    assert sum(m.accuracy > 0 for m in state.pool) == min(trained, 3)


@pytest.mark.parametrize(
    ("dataset", "ipc", "ce_weight", "batch_real", "fresh", "train_steps"),
    [
        ("cifar10", 1, 0.5, 5000, 5, 10),
        ("cifar10", 10, 0.5, 256, 30, 10),
        ("cifar10", 50, 0.1, 256, 30, 10),
        ("cifar100", 1, 0.5, 5000, 5, 10),
        ("cifar100", 10, 0.1, 256, 30, 50),
        ("cifar100", 50, 0.1, 256, 30, 10),
        ("tinyimagenet", 50, 0.8, 256, 30, 50),
    ],
)
def test_recipes_are_the_released_commands(dataset, ipc, ce_weight, batch_real, fresh, train_steps):
    spec = resolve(Request(dataset, "idm", ipc=ipc, device="cpu")).spec
    found = spec.matcher
    assert isinstance(found, Idm)
    assert (found.ce_weight, found.batch_real, found.fresh, found.train_steps) == (
        ce_weight,
        batch_real,
        fresh,
        train_steps,
    )
    assert (found.networks, found.trained, found.batch_net, found.lr_img, spec.decoder.factor) == (100, 2, 256, 0.2, 2)
