"""G-VBSM from the inside: statistics of layers and patches, their memory, densification, and labels of all teachers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_decoupled.gvbsm import Gvbsm, densification
from ddbench_decoupled.observed import (
    Observed,
    batches_of,
    dropped,
    followed,
    gap,
    gaps_of,
    of_classes,
    of_data,
    statistics,
)
from ddbench_networks import ConvNet, ResNet18
from problems import begin, pixels, play, solve, solve_in_stages, toy
from torch import Tensor, nn
from torch.nn import functional

from ddbench import Network, Problem, Seed, Teacher, UsageError
from ddbench.plugins import registry
from ddbench.run.prepare import prepared

QUICK: dict[str, Any] = {"teacher_epochs": 2, "teacher_batch": 20}
BATCH = "convnet(width=3,depth=2,norm=batch)"
GVBSM = Gvbsm(**QUICK, teachers=("own", BATCH), steps=6)


def ready(method: Any, ipc: int = 2, **more: Any) -> Problem:
    """The toy task with the teachers that a method asks for."""
    problem = toy(ipc, **more)
    return prepared(problem, method.needs(problem))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sides", [(8, 8), (12, 4), (5, 6), (2, 2), (1, 1)])
def test_statistics_are_those_of_the_released_code_in_numpy(sides):
    """Channels over images and pixels; patches u, v of 4x4 pixels over images, channels and their own pixels."""
    maps = noise(3, 5, *sides)
    mean, variance, patch_mean, patch_variance = (s.numpy() for s in statistics(maps, patches=True))
    for c in range(5):
        values = [float(v) for image in maps for v in image[c].flatten()]
        assert mean[c] == pytest.approx(np.mean(values), abs=1e-12)
        assert variance[c] == pytest.approx(np.var(values), abs=1e-12)
    whole = [4 * (-(-side // 4)) for side in sides]
    resized = functional.interpolate(maps, whole, mode="bilinear").numpy()
    place = 0
    for u in range(0, whole[0], 4):
        for v in range(0, whole[1], 4):
            patch = resized[:, :, u : u + 4, v : v + 4]
            assert patch_mean[place] == pytest.approx(patch.mean(), abs=1e-12)
            assert patch_variance[place] == pytest.approx(patch.var(), abs=1e-12)
            place += 1
    assert len(patch_mean) == len(patch_variance) == place
    assert len(statistics(maps, patches=False)) == 2
    apart = statistics(maps, patches=True, each=True)
    for i in range(3):
        for own, one in zip(apart, statistics(maps[i : i + 1], patches=True), strict=True):
            torch.testing.assert_close(own[i], one, rtol=1e-12, atol=1e-12)


def test_memory_moves_the_value_and_not_the_gradient():
    leaf, kept = noise(4).requires_grad_(), noise(4, seed=1)
    (value,), (after,) = followed((kept,), (2 * leaf,), 0.8)
    torch.testing.assert_close(value, 0.8 * kept + 0.2 * 2 * leaf)
    torch.testing.assert_close(after, value.detach())
    assert not after.requires_grad
    assert torch.autograd.grad(value.sum(), leaf)[0].tolist() == [2.0] * 4
    (first,), _ = followed((), (leaf,), 0.8)
    torch.testing.assert_close(first, leaf)


def test_layers_that_do_not_count_have_no_gap_and_keep_what_they_remember():
    wanted = [(noise(3, seed=s), noise(3, seed=s + 9)) for s in range(3)]
    found = [(noise(3, seed=s + 20), noise(3, seed=s + 30)) for s in range(3)]
    gaps, memory = gaps_of([(1.0, wanted)], found, [], torch.tensor([True, False, True]), 0.5)
    for layer in (0, 2):
        assert float(gaps[layer]) == pytest.approx(
            sum(np.linalg.norm((a - b).numpy()) for a, b in zip(wanted[layer], found[layer], strict=True)), rel=1e-12
        )
    assert float(gaps[1]) == 0
    assert memory[1] == ()
    again, _ = gaps_of([(1.0, wanted)], found[::-1], memory, torch.tensor([True, True, True]), 0.5)
    half = tuple((a + b) / 2 for a, b in zip(found[0], found[2], strict=True))
    assert float(again[0]) == pytest.approx(float(gap(wanted[0], half)), rel=1e-12)
    assert float(again[1]) == pytest.approx(float(gap(wanted[1], found[1])), rel=1e-12)


def test_convolutions_are_left_out_and_batch_norms_never():
    observed = Observed(teacher_of(ConvNet(width=3, depth=2, norm="batch")), (1, 8, 8), 3)
    kinds = [type(layer) for layer in observed.layers]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d] * 2
    torch.manual_seed(0)
    drawn = torch.stack([dropped([()] * 4, observed, 0.4) for _ in range(2000)]).double().mean(0)
    assert drawn[1::2].tolist() == [1.0, 1.0]
    assert drawn[::2].tolist() == pytest.approx([0.6, 0.6], abs=0.04)


def test_densification_is_the_divergence_of_the_eigenvalues_in_numpy():
    rows, classes = 0.5 * noise(7, 6), torch.tensor([0, 1, 0, 2, 1, 1, 0])
    total = 0.0
    for label in range(3):
        x = rows[classes == label].numpy()
        s = np.linalg.svd(x @ x.T)[1]  # of a symmetric positive matrix the eigenvalues
        p, q = np.exp(s / 4) / np.exp(s / 4).sum(), np.exp(s) / np.exp(s).sum()
        total += (p * np.log(p / q)).sum()
    leaf = rows.clone().requires_grad_()
    assert float(densification(rows, classes, 4.0)) == pytest.approx(total, rel=1e-10)
    alone = densification(rows[:1], classes[:1], 4.0)
    assert float(alone) == 0
    # the wanted distribution has no gradient: softmax minus wanted is that of the eigenvalues, 2 v (v.x) that of x
    x = rows[classes == 1]
    s, v = np.linalg.eigh((x @ x.T).numpy())
    p, q = np.exp(s / 4) / np.exp(s / 4).sum(), np.exp(s) / np.exp(s).sum()
    expected = sum(2 * (q[i] - p[i]) * np.outer(v[:, i], v[:, i] @ x.numpy()) for i in range(3))
    found = torch.autograd.grad(densification(leaf, classes, 4.0), leaf)[0][classes == 1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


def teacher_of(source: Any, shape: tuple[int, int, int] = (1, 8, 8)) -> Teacher:
    network = Network(source, shape, 3, dtype=torch.float64)
    vector = network.init(Seed(3))
    with Seed(4).scope():
        for name, layer in network.layers(vector).items():
            if "running" in name:
                layer.add_(torch.rand_like(layer))
    return Teacher(source, vector)


@pytest.mark.parametrize("source", [ConvNet(width=3, depth=2, norm="batch"), ResNet18(width=2, norm="batch")])
def test_what_is_observed_enters_the_layers(source):
    teacher = teacher_of(source)
    observed, images = Observed(teacher, (1, 8, 8), 3), noise(4, 1, 8, 8)
    logits, found = observed(images)
    torch.testing.assert_close(logits, teacher.network((1, 8, 8), 3).apply(teacher.vector, images, train=False))
    assert len(found) == len(observed.layers)
    assert [len(s) for s in found] == [4 if isinstance(m, nn.Conv2d) else 2 for m in observed.layers]
    torch.testing.assert_close(found[0][0], images.mean((0, 2, 3)))  # the first convolution sees the images
    (first, norm) = observed.layers[:2]
    maps = first(images)
    torch.testing.assert_close(found[1][1], maps.var((0, 2, 3), unbiased=False))
    assert isinstance(norm, nn.BatchNorm2d)


def test_what_is_wanted_are_running_statistics_and_means_over_batches_of_real_images():
    problem = ready(GVBSM)
    for member in (problem.teacher(0), problem.teacher(1)):
        observed = Observed(member, problem.real.shape, problem.classes)
        wanted, by_class = of_data(problem, observed), of_classes(problem, observed)
        batches = list(batches_of(problem))
        assert sum(len(images) for images, _ in batches) == len(problem.real)
        for layer, (module, own) in enumerate(zip(observed.layers, wanted, strict=True)):
            if isinstance(module, nn.BatchNorm2d):
                assert torch.equal(own[0], module.running_mean)
                assert torch.equal(own[1], module.running_var)
                continue
            for part in range(4):
                mean = sum(len(i) * observed(i)[1][layer][part].double() for i, _ in batches) / len(problem.real)
                torch.testing.assert_close(own[part].double(), mean, rtol=1e-4, atol=1e-5)
        images, labels = (torch.cat([b[i] for b in batches]) for i in (0, 1))
        for label in range(3):
            members = images[labels.argmax(1) == label]
            singles = [observed(image[None])[1] for image in members]
            for layer, own in enumerate(by_class):
                for part, values in enumerate(own):
                    mean = sum(s[layer][part].double() for s in singles) / len(singles)
                    torch.testing.assert_close(values[label].double(), mean, rtol=1e-3, atol=1e-4)


def test_statistics_draw_nothing_of_the_run():
    problem = ready(GVBSM)
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    GVBSM._asked(problem)
    assert torch.equal(torch.get_rng_state(), expected)


def test_an_iteration_is_adam_on_the_loss_of_its_own_teacher():
    """Everything but layers, statistics and eigenvalues, which have tests of their own, in plain torch."""
    method = Gvbsm(**QUICK, teachers=("own", BATCH), steps=5, jitter=0, drop=0.0, momentum=0.6, batch=6, r_stat=0.3)
    problem = replace(ready(method), augment="")
    state = begin(method, problem)
    images, targets = state.images.clone().requires_grad_(), state.targets.argmax(1)
    adam = torch.optim.Adam([images], lr=0.05, betas=(0.5, 0.9))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 5)
    asked, memory = method._asked(problem), [[], []]
    for k in range(4):
        observed, wanted = asked[k % 2]
        logits, found = observed(images)
        before = memory[k % 2] or [[s.detach() for s in layer] for layer in found]
        memory[k % 2] = [
            [0.6 * b + 0.4 * s.detach() for b, s in zip(*pair, strict=True)] for pair in zip(before, found, strict=True)
        ]
        loss = functional.cross_entropy(logits, targets) + densification(images.flatten(1), targets, 4.0)
        for layer, (want, seen, kept) in enumerate(zip(wanted, found, memory[k % 2], strict=True)):
            for w, s, m in zip(want, seen, kept, strict=True):
                loss = loss + 0.3 * (10 if layer == 0 else 1) * (w - (m + s - s.detach())).norm()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            images.copy_(problem.real.preprocessing.clamp(images))
        cosine.step()
        state, numbers = method.step(problem, state, k)
        assert float(numbers["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    torch.testing.assert_close(state.images, images.detach(), rtol=1e-3, atol=1e-4)


def test_recovering_lowers_the_loss_and_keeps_pixels_in_range():
    method = Gvbsm(teacher_epochs=20, teacher_batch=20, teachers=("own", BATCH), steps=60, lr_img=0.1, drop=0.0)
    problem = ready(method)
    state, trail = play(method, problem, 60)
    assert min(trail[-1]["loss"], trail[-2]["loss"]) < max(trail[0]["loss"], trail[1]["loss"]) / 2
    shown = pixels(problem, state.images)
    assert float(shown.min()) >= -1e-6
    assert float(shown.max()) <= 1 + 1e-6


def test_labels_are_the_mean_logits_of_all_teachers_and_all_come_along():
    method = replace(GVBSM, temperature=3.0)
    problem = ready(method)
    made = solve(method, problem, 1)
    assert made.teacher is not None
    assert [m.source for m in made.teacher.members] == [problem.network.source, ConvNet(width=3, depth=2, norm="batch")]
    logits = [m.logits(made.images, 3).double() for m in (problem.teacher(0), problem.teacher(1))]
    torch.testing.assert_close(made.labels.double(), ((logits[0] + logits[1]) / 6).softmax(1), rtol=1e-4, atol=1e-5)


def test_one_set_of_teachers_serves_all_stages():
    whole = ready(GVBSM, ipc=3)
    found = solve_in_stages(GVBSM, whole, "pdd", 2)
    assert [len(s) for s in found] == [6, 3]
    vectors = [[m.vector for m in s.teacher.members] for s in found if s.teacher is not None]
    assert len(vectors) == 2
    assert all(torch.equal(a, b) for a, b in zip(*vectors, strict=True))


def test_a_network_without_layers_to_match_is_refused():
    source = registry().get("network", "mlp").cls()
    teacher = Teacher(source, Network(source, (1, 8, 8), 3).init(Seed(0)))
    with pytest.raises(UsageError, match="'mlp' has neither convolutions nor batch norms"):
        Observed(teacher, (1, 8, 8), 3)
