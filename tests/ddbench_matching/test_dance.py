"""DANCE from the inside, in float64: its two losses, and an iteration as the released code has it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ddbench_matching.dance import Dance
from ddbench_networks import ConvNet
from float64 import close, four_cells, precise
from modules import module_of
from problems import begin, pixels, play, with_experts
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from ddbench import Problem
from ddbench.run.spec import Request, resolve

EXACT = Dance(models=3, epochs=4, batch_real=1000, augment="")  # whole classes, as they are


def losses(problem: Problem, modules: list[nn.Module], images: Tensor, label: int) -> list[Tensor]:
    """inner-class view in the first module, inter-class view in the second."""
    own = four_cells(images).flatten(0, 1) if problem.decoder.factor == 2 else images
    for old in problem.frozen.sets:
        own = torch.cat([own, old.images[old.labels.argmax(1) == label]])
    real = problem.real[problem.real.members[label]].images
    mean, wanted = (sum(modules[0].features(x)) / len(x) for x in (own, real))
    return [((mean - wanted.detach()) ** 2).sum(), cross_entropy(modules[1](own), torch.full((len(own),), label))]


@pytest.mark.parametrize(("frozen", "factor"), [(0, 1), (2, 2)])
def test_its_losses_are_the_distance_of_mean_features_and_the_weighted_cross_entropy(frozen, factor):
    problem = precise(ConvNet(width=4), frozen=frozen, factor=factor)
    vector, images = problem.starts[5], torch.randn(2, *problem.real.shape).double()
    seen, wanted = (images.clone().requires_grad_() for _ in range(2))
    method = replace(EXACT, calibration=0.25)
    found = [take(problem, vector, seen, 1) for take in (method.match, method.calibrate)]
    module = module_of(problem.network, vector)
    matching, calibration = losses(problem, [module, module], wanted, 1)
    for one, other in zip(found, [matching, 0.25 * calibration], strict=True):
        assert close(one.detach(), other.detach())
        assert close(grad(one, seen)[0], grad(other, wanted)[0])


def test_an_iteration_is_that_of_the_released_code():
    """Against torch.optim on pixels in [0, 1]: a middle encoder, a step after each class, then the trained model."""
    problem = precise(ConvNet(width=4))
    ends = SimpleNamespace(snapshot=lambda i, epoch: problem.starts[10 * i + epoch])
    problem = with_experts(problem, ends)
    method = replace(EXACT, lr_img=0.5, momentum=0.5)
    start = begin(method, problem).images
    state, trail = play(method, problem, 2)

    std = problem.real.preprocessing.std
    assert std is not None
    leaf = nn.Parameter(pixels(problem, start))
    descent = torch.optim.SGD([leaf], lr=0.5 * 2, momentum=0.5)  # two images per class
    outside = 0
    for k in range(2):
        with (problem.seed / "step" / k).scope():
            which, share = int(torch.randint(3, ())), float(torch.rand(()))
        first, last = problem.starts[10 * which], problem.starts[10 * which + 4]
        modules = [module_of(problem.network, v) for v in (share * first + (1 - share) * last, last)]
        outside += int(((leaf < 0) | (leaf > 1)).sum())
        leaf.data.clamp_(0, 1)
        means = []
        for view in (0, 1):
            total = 0.0
            for label in range(3):
                images = (leaf - problem.real.preprocessing.mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
                loss = losses(problem, modules, images[2 * label : 2 * label + 2], label)[view]
                leaf.grad = grad(loss, leaf)[0]
                descent.step()
                total += float(loss.detach())
            means.append(total / 3)
        assert trail[k]["matching"] == pytest.approx(means[0], rel=1e-6)
        assert trail[k]["calibration"] == pytest.approx(means[1], rel=1e-6)
    assert outside > 0
    assert close(pixels(problem, state.images), leaf.detach(), 1e-6)
    result = method.result(problem, state).images
    assert close(pixels(problem, result), leaf.detach().clamp(0, 1), 1e-6)


def test_it_needs_networks_at_their_start_and_after_their_last_epoch():
    problem = precise(ConvNet(width=4))
    needs = Dance(models=7, epochs=9).needs(problem)
    assert (needs.experts, needs.snapshots) == (7, (0, 9))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_recipes_are_the_released_settings(dataset):
    spec = resolve(Request(dataset, "dance", ipc=10, device="cpu")).spec
    m = spec.matcher
    assert isinstance(m, Dance)
    assert (m.steps, m.models, m.epochs, m.batch_real, m.batch_syn, m.lr_img) == (10000, 5, 60, 128, 200, 0.01)
    assert (spec.experts.batch, spec.experts.schedule, spec.experts.mixing) == (64, "multistep", "cutmix")
    assert spec.decoder.factor == 2
