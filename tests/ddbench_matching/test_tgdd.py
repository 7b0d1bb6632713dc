"""TGDD from the inside, in float64: its stages, its loss, and an iteration as the released code has it."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ddbench_matching.tgdd import Tgdd
from ddbench_networks import ConvNet
from float64 import close, four_cells, precise
from modules import module_of
from problems import begin, pixels, play, with_experts
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from ddbench import Problem
from ddbench.run.spec import Request, resolve

EXACT = Tgdd(models=3, epochs=4, interval=3, batch_real=1000, augment="")  # whole classes, as they are


def terms(problem: Problem, model_init: nn.Module, model_final: nn.Module, images: Tensor, label: int) -> list[Tensor]:
    """matchloss and consloss of TGDD.py, on the images that are stored, packed or not, and on those of earlier sets."""
    syn = four_cells(images).flatten(0, 1) if problem.decoder.factor == 2 else images
    for old in problem.frozen.sets:
        syn = torch.cat([old.images[old.labels.argmax(1) == label], syn])
    real = problem.real[problem.real.members[label]].images
    feat, feat_tg = model_init.features(syn), model_init.features(real).detach()
    loss_match = torch.sum((feat.mean(0) - feat_tg.mean(0)) ** 2)
    return [loss_match, cross_entropy(model_final(syn), torch.full((len(syn),), label))]


@pytest.mark.parametrize(("frozen", "factor"), [(0, 1), (2, 2)])
def test_its_loss_is_the_distance_of_mean_features_and_the_weighted_cross_entropy(frozen, factor):
    problem = precise(ConvNet(width=4), frozen=frozen, factor=factor)
    matched, known = problem.starts[5], problem.starts[6]
    seen, wanted = (torch.randn(2, *problem.real.shape).double().requires_grad_() for _ in range(2))
    wanted.data.copy_(seen.data)
    told: list[Tensor] = []
    found = replace(EXACT, constraint=0.25).loss(problem, matched, seen, 1, known=known, terms=told)
    pair = terms(problem, *(module_of(problem.network, v) for v in (matched, known)), wanted, 1)
    expected = pair[0] + 0.25 * pair[1]
    assert close(found.detach(), expected.detach())
    assert close(told[0], torch.stack(pair).detach())
    assert close(grad(found, seen)[0], grad(expected, wanted)[0])


def test_stages_are_drawn_as_in_the_released_code():
    """slkt_epoch_id_start and _final: every pair that random.randint can give there, and as often."""
    method = replace(EXACT, models=2, epochs=5, interval=3)
    random.seed(0)
    torch.manual_seed(0)
    counts: dict[tuple[int, int], list[int]] = {}
    for _ in range(6000):
        start = random.randint(0, 5)
        end_epoch = min(start + 3 - 1, 5)
        counts.setdefault((start, random.randint(start, end_epoch)), [0, 0])[0] += 1
        _, s, f = method.stage()
        counts.setdefault((s, f), [0, 0])[1] += 1
    assert len(counts) == 4 * 3 + 2 + 1
    assert all(abs(a - b) < 6 * (2 * max(a, b)) ** 0.5 for a, b in counts.values())
    assert {method.stage()[0] for _ in range(50)} == {0, 1}
    always = [replace(method, interval=1).stage() for _ in range(50)]
    assert all(s == f for _, s, f in always)


def test_an_iteration_is_that_of_the_released_code():
    """Against torch.optim on pixels in [0, 1]: one stage, and a step on both terms after each class."""
    problem = precise(ConvNet(width=4))
    trained = SimpleNamespace(snapshot=lambda i, epoch: problem.starts[10 * i + epoch])
    problem = with_experts(problem, trained)
    method = replace(EXACT, lr_img=0.5, momentum=0.5, constraint=2.0)
    start = begin(method, problem).images
    state, trail = play(method, problem, 2)

    p = problem.real.preprocessing
    assert p.std is not None
    data = nn.Parameter(pixels(problem, start))
    optim_img = torch.optim.SGD([data], lr=0.5 * 2, momentum=0.5)  # lr_img ipc
    outside = 0
    for k in range(2):
        with (problem.seed / "step" / k).scope():
            which, s = int(torch.randint(3, ())), int(torch.randint(5, ()))
            f = int(torch.randint(s, min(s + 2, 4) + 1, ()))
        model_init, model_final = (module_of(problem.network, problem.starts[10 * which + e]) for e in (s, f))
        outside += int(((data < 0) | (data > 1)).sum())
        data.data.clamp_(0, 1)
        seen = []
        for c in range(3):
            img_syn = ((data - p.mean.view(1, -1, 1, 1)) / p.std.view(1, -1, 1, 1))[2 * c : 2 * c + 2]
            pair = terms(problem, model_init, model_final, img_syn, c)
            data.grad = grad(pair[0] + 2.0 * pair[1], data)[0]
            optim_img.step()
            seen.append(torch.stack(pair).detach())
        matching, constraint = torch.stack(seen).mean(0).tolist()
        assert trail[k]["matching"] == pytest.approx(matching, rel=1e-6)
        assert trail[k]["constraint"] == pytest.approx(constraint, rel=1e-6)
        assert trail[k]["loss"] == pytest.approx(matching + 2 * constraint, rel=1e-6)
        assert trail[k]["epoch"] == s
    assert outside > 0
    assert close(pixels(problem, state.images), data.detach(), 1e-6)
    result = method.result(problem, state).images
    assert close(pixels(problem, result), data.detach().clamp(0, 1), 1e-6)


def test_it_needs_every_snapshot_of_its_models():
    needs = Tgdd(models=7, epochs=3).needs(precise(ConvNet(width=4)))
    assert (needs.experts, needs.snapshots) == (7, (0, 1, 2, 3))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tinyimagenet"])
def test_recipes_are_the_defaults_of_the_released_parsers(dataset):
    spec = resolve(Request(dataset, "tgdd", ipc=10, device="cpu")).spec
    m = spec.matcher
    assert isinstance(m, Tgdd)
    assert (m.steps, m.models, m.epochs, m.interval, m.constraint) == (10000, 5, 60, 7, 1.0)
    assert (m.batch_real, m.batch_syn, m.lr_img, m.momentum) == (128, 200, 0.01, 0.5)
    assert (spec.experts.batch, spec.experts.schedule, spec.experts.mixing) == (64, "multistep", "cutmix")
    assert spec.decoder.factor == 1
