"""EDC from the inside: statistics of classes, flatness, the images' mean, and an iteration in plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_decoupled.edc import Edc, flatness, of_batch
from ddbench_networks import ConvNet
from problems import begin, pixels, play, solve, solve_in_stages, toy
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from ddbench import Problem
from ddbench.run.prepare import prepared

QUICK: dict[str, Any] = {"teacher_epochs": 2, "teacher_batch": 20}
BATCH = "convnet(width=3,depth=2,norm=batch)"
EDC = Edc(**QUICK, teachers=("own", BATCH), steps=6, flatness=1.0)


def ready(method: Any, ipc: int = 2, **more: Any) -> Problem:
    """The toy task with the teachers that a method asks for."""
    problem = toy(ipc, **more)
    return prepared(problem, method.needs(problem))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_statistics_of_classes_are_averaged_over_the_labels_of_a_batch():
    classes, labels = [(noise(4, 5), noise(4, 3, seed=1)), (noise(4, 2, seed=2),)], [0, 2, 2, 3, 1, 2]
    found = of_batch(classes, torch.eye(4, dtype=torch.float64)[labels])
    for layer, own in zip(classes, found, strict=True):
        for part, mean in zip(layer, own, strict=True):
            np.testing.assert_allclose(mean.numpy(), sum(part[y].numpy() for y in labels) / len(labels), rtol=1e-12)


def test_flatness_is_torch_s_divergence_of_softened_predictions():
    logits, smooth = 5 * noise(6, 4), 5 * noise(6, 4, seed=1)
    total = 0.0
    for a, b in zip(logits.numpy() / 4, smooth.numpy() / 4, strict=True):
        p, q = np.exp(b) / np.exp(b).sum(), np.exp(a) / np.exp(a).sum()
        total += float((p * np.log(p / q)).sum())
    assert float(flatness(logits, smooth)) == pytest.approx(total / 24, rel=1e-12)  # kl_div's mean is over all numbers
    assert float(flatness(smooth, smooth)) == pytest.approx(0, abs=1e-15)


def test_it_starts_at_real_images_that_no_stage_took():
    problem = ready(EDC)
    state = begin(EDC, problem)
    assert torch.equal(state.images, problem.sample().images)
    assert torch.equal(state.mean, state.images)
    noisy = begin(replace(EDC, pix_init="noise"), problem)
    assert not torch.equal(noisy.images, state.images)


@pytest.mark.parametrize(("alpha", "weight"), [(0.5, 1.0), (0.8, 0.0)])
def test_an_iteration_is_adam_on_the_loss_of_its_own_teacher(alpha, weight):
    """Everything but layers and their statistics, which have tests of their own, in plain torch."""
    method = Edc(
        **QUICK,
        teachers=("own", BATCH),
        steps=5,
        momentum=0.6,
        batch=6,
        r_stat=0.3,
        alpha=alpha,
        flatness=weight,
        decay=0.7,
        smallest=0.4,
    )
    problem = ready(method)
    state = begin(method, problem)
    images, targets = state.images.clone().requires_grad_(), state.targets.argmax(1)
    adam = torch.optim.Adam([images], lr=0.05, betas=(0.5, 0.9))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 5)
    mean, memory = images.detach().clone(), [[], []]
    for k in range(4):
        observed, data, classes = method._asked(problem)[k % 2]
        torch.manual_seed(k)
        box = v2.RandomResizedCrop(8, scale=(0.4, 1)).make_params([images])
        place = [box[n] for n in ("top", "left", "height", "width")]
        shown, smooth = (v2.functional.resized_crop(x, *place, size=[8, 8]) for x in (images, mean))
        logits, found = observed(shown)
        before = memory[k % 2] or [[s.detach() for s in layer] for layer in found]
        memory[k % 2] = [
            [0.6 * b + 0.4 * s.detach() for b, s in zip(*pair, strict=True)] for pair in zip(before, found, strict=True)
        ]
        loss = functional.cross_entropy(logits, targets)
        for layer, (want, seen, kept) in enumerate(zip(data, found, memory[k % 2], strict=True)):
            for part, (w, s, m) in enumerate(zip(want, seen, kept, strict=True)):
                value, of_class = m + s - s.detach(), classes[layer][part][targets].mean(0)
                far = alpha * (w - value).norm() + (1 - alpha) * (of_class - value).norm()
                loss = loss + 0.3 * (10 if layer == 0 else 1) * far
        if weight:
            with torch.no_grad():
                wanted = (observed(smooth)[0] / 4).softmax(1)
            loss = (
                loss + weight * functional.kl_div((logits / 4).log_softmax(1), wanted, reduction="sum") / wanted.numel()
            )
        mean = 0.7 * mean + 0.3 * images.detach()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            images.copy_(problem.real.preprocessing.clamp(images))
        cosine.step()
        torch.manual_seed(k)
        state, numbers = method.step(problem, state, k)
        assert float(numbers["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
        if weight:
            torch.testing.assert_close(state.mean, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.images, images.detach(), rtol=1e-3, atol=1e-4)


def test_statistics_come_nearer_to_those_wanted_and_pixels_stay_in_range():
    method = Edc(teacher_epochs=20, teacher_batch=20, teachers=("own",), steps=60, smallest=1.0)
    problem = ready(method)
    state, trail = play(method, problem, 60)
    assert trail[-1]["statistics"] < trail[0]["statistics"]
    assert trail[-1]["loss"] < trail[0]["loss"]
    shown = pixels(problem, state.images)
    assert float(shown.min()) >= -1e-6
    assert float(shown.max()) <= 1 + 1e-6


def test_all_teachers_label_and_come_along_through_the_stages():
    made = solve(EDC, ready(EDC), 1)
    assert made.teacher is not None
    assert [m.source for m in made.teacher.members][1] == ConvNet(width=3, depth=2, norm="batch")
    found = solve_in_stages(EDC, ready(EDC, ipc=3), "pdd", 2)
    assert [len(s) for s in found] == [6, 3]
    vectors = [[m.vector for m in s.teacher.members] for s in found if s.teacher is not None]
    assert all(torch.equal(a, b) for a, b in zip(*vectors, strict=True))
