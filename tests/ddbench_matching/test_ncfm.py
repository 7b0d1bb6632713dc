"""NCFM from the inside: the discrepancy of characteristic functions, in what, and how images move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_matching.ncfm import SCALE, Ncfm, discrepancy
from problems import pixels, play, second_stage
from torch import Tensor, nn

from ddbench import Preprocessing, Problem
from ddbench.problem.decode import Decoder
from ddbench.run.prepare import prepared
from ddbench.run.spec import Request, resolve
from ddbench.testing import toy_task

SMALL = Ncfm(models=2, epochs=2, frequencies=16)
EXACT = replace(SMALL, batch_real=1000, augment="")  # the whole class, as it is


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Problem:
    task = toy_task(ipc=2, folder=tmp_path_factory.mktemp("cache"))
    return prepared(task, SMALL.needs(task))


@pytest.fixture
def problem(made) -> Problem:
    return replace(made)


def samples(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two samples of unequal size and 30 frequencies, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(7, 4, generator=generator), 1 + torch.randn(5, 4, generator=generator)
    return x.double(), y.double(), torch.randn(30, 4, generator=generator).double()


# --------------------------------------------------------------------------------- the discrepancy


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, 0.7), (0.9, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_the_discrepancy_is_that_of_complex_numbers(alpha, beta):
    """By NumPy, with moduli and angles, as the paper writes it."""
    x, y, t = (v.numpy() for v in samples())
    total = 0.0
    for frequency in t:
        one = np.mean([np.exp(1j * np.dot(frequency, row)) for row in x])
        other = np.mean([np.exp(1j * np.dot(frequency, row)) for row in y])
        amplitude = (abs(one) - abs(other)) ** 2
        phase = 2 * abs(one) * abs(other) * (1 - np.cos(np.angle(one) - np.angle(other)))
        total += np.sqrt(alpha * amplitude + beta * phase)
    assert total > 1
    assert float(discrepancy(*samples(), alpha, beta)) == pytest.approx(total / len(t), rel=1e-9)


def test_with_both_weights_one_it_is_the_mean_distance_of_the_characteristic_functions():
    x, y, t = samples(1)
    phi = [torch.exp(1j * (v @ t.T)).mean(0) for v in (x, y)]
    expected = (phi[0] - phi[1]).abs().mean()
    assert float(discrepancy(x, y, t, 1.0, 1.0)) == pytest.approx(float(expected), rel=1e-12)
    halved = discrepancy(x, y, t, 0.5, 0.5)
    assert float(halved) == pytest.approx(float(expected) / 2**0.5, rel=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.2, 0.8])
def test_equal_samples_have_no_discrepancy_and_a_finite_gradient(beta):
    x, y, t = samples()
    again = torch.cat([x, x]).flip(0).requires_grad_()  # the same distribution, of twice as many
    value = discrepancy(x, again, t, 1 - beta, beta)
    assert float(value.detach()) < 1e-5 < 1e-2 < float(discrepancy(x, y, t, 1 - beta, beta))
    assert torch.autograd.grad(value, again)[0].isfinite().all()
    single = x.float().requires_grad_()
    near = discrepancy(x.float(), single, t.float(), 1 - beta, beta)
    assert float(near.detach()) < 1e-5  # nothing cancels in float32 either
    assert torch.autograd.grad(near, single)[0].isfinite().all()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.2, 0.8), (0.8, 0.2)])
def test_its_gradient_is_that_of_finite_differences(alpha, beta):
    x, y, t = samples()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: discrepancy(x, v, t, alpha, beta), y)


# --------------------------------------------------------------------------------- where it is taken


def test_it_needs_networks_at_their_start_and_after_their_last_epoch(problem):
    needs = Ncfm(models=7, epochs=9).needs(problem)
    assert (needs.experts, needs.snapshots) == (7, (0, 9))


def test_features_have_length_one_and_the_discrepancy_is_scaled(problem, monkeypatch):
    seen: list[tuple[Tensor, ...]] = []

    def spy(x, y, t, alpha, beta):
        seen.append((x, y, t))
        return discrepancy(x, y, t, alpha, beta)

    monkeypatch.setattr("ddbench_matching.ncfm.discrepancy", spy)
    images, vector = problem.sample().images[:2], problem.experts.snapshot(0, 2)
    with problem.seed.scope():
        loss = EXACT.match(problem, vector, images, 0)
    ((real, synthetic, t),) = seen
    assert (len(real), len(synthetic), len(t)) == (len(problem.real.members[0]), 2, 16)
    assert not real.requires_grad
    assert torch.allclose(real.norm(dim=1), torch.ones(len(real)), atol=1e-5)
    features = problem.network.features(vector, images)
    assert torch.allclose(synthetic, features / features.norm(dim=1, keepdim=True), atol=1e-5)
    assert float(loss) == pytest.approx(300 * float(discrepancy(real, synthetic, t, 0.5, 0.5)), rel=1e-5)
    assert 0.5 < float(t.std()) < 1.5


def test_an_iteration_matches_between_start_and_end_of_a_network_and_calibrates_at_the_end(problem, monkeypatch):
    matched, calibrated = [], []

    def match(self, problem, vector, images, label):
        matched.append(vector)
        return images.sum()

    def calibrate(self, problem, vector, images, label):
        calibrated.append(vector)
        return images.sum()

    monkeypatch.setattr(Ncfm, "match", match)
    monkeypatch.setattr(Ncfm, "calibrate", calibrate)
    play(SMALL, problem, 4)
    ends = [(problem.experts.snapshot(i, 0), problem.experts.snapshot(i, 2)) for i in range(2)]
    shares = []
    for k in range(0, 12, 3):
        assert all(torch.equal(matched[k], v) for v in matched[k : k + 3])  # one network for all classes
        (which,) = [i for i in range(2) if torch.equal(calibrated[k], ends[i][1])]
        first, last = ends[which]
        share = float((matched[k] - last) @ (first - last) / (first - last).square().sum())
        assert torch.allclose(matched[k], share * first + (1 - share) * last, atol=1e-6)
        assert 0 <= share <= 1
        shares.append(share)
    assert len(set(shares)) == 4


@pytest.mark.parametrize("factor", [1, 2])
def test_calibration_is_the_trained_networks_loss_on_what_students_see(problem, factor):
    task = second_stage(replace(problem, decoder=Decoder(factor)))
    images, vector = task.sample().images, problem.experts.snapshot(0, 2)
    loss = replace(EXACT, calibration=0.25).calibrate(task, vector, images[4:6], 2)
    shown = torch.cat([task.decoder(task.frozen.sets[0].images[4:6]), task.decoder(images[4:6])])
    targets = torch.full((4 * factor**2,), 2)
    expected = 0.25 * nn.CrossEntropyLoss()(task.network.apply(vector, shown), targets)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_frozen_and_decoded_images_are_matched_together(problem, monkeypatch):
    seen = []
    monkeypatch.setattr("ddbench_matching.ncfm.discrepancy", lambda x, y, t, a, b: seen.append(y) or y.sum())
    task = second_stage(replace(problem, decoder=Decoder(2)))
    images, vector = task.sample().images[:2], problem.experts.snapshot(0, 2)
    EXACT.match(task, vector, images, 0)
    shown = torch.cat([task.decoder(task.frozen.sets[0].images[:2]), task.decoder(images)])
    expected = nn.functional.normalize(task.network.features(vector, shown))
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_without_calibration_only_the_discrepancy_counts(problem):
    _, trail = play(replace(SMALL, calibration=0.0), problem, 1)
    assert set(trail[0]) == {"loss", "matching"}
    _, trail = play(SMALL, problem, 1)
    assert trail[0]["loss"] == pytest.approx(trail[0]["matching"] + trail[0]["calibration"], rel=1e-5)


# --------------------------------------------------------------------------------- how images move


@pytest.mark.parametrize(
    ("method", "optimiser"),
    [
        (replace(SMALL, lr_img=0.02), lambda pixels: torch.optim.Adam(pixels, lr=0.02)),
        (replace(SMALL, lr_img=0.01, outer="sgd"), lambda pixels: torch.optim.SGD(pixels, lr=0.01, momentum=0.5)),
    ],
    ids=["adam", "sgd"],
)
def test_images_move_as_pixels_do_under_one_optimiser_that_steps_after_each_class(
    problem, monkeypatch, method, optimiser
):
    """Against torch.optim on pixels in [0, 1], clamped before every iteration."""
    generator = torch.Generator().manual_seed(0)
    pushes = [torch.randn(2, *problem.real.shape, generator=generator) for _ in range(18)]
    given = iter(pushes)

    def loss(self: Any, problem: Problem, vector: Tensor, images: Tensor, label: int) -> Tensor:
        return (images * next(given)).sum()

    monkeypatch.setattr(Ncfm, "match", loss)
    monkeypatch.setattr(Ncfm, "calibrate", loss)
    start = method.init(problem).images
    state, _ = play(method, problem, 3)

    parameter = nn.Parameter(pixels(problem, start))
    descent = optimiser([parameter])
    std = problem.real.preprocessing.std
    assert std is not None
    outside = 0
    for k, push in enumerate(pushes):
        if k % 6 == 0:
            outside += int(((parameter < 0) | (parameter > 1)).sum())
            parameter.data.clamp_(0, 1)
        gradient = torch.zeros_like(parameter)
        gradient[2 * (k % 3) : 2 * (k % 3) + 2] = push / std.view(1, -1, 1, 1)
        parameter.grad = gradient
        descent.step()
    assert (state.images - start).abs().max() > 0.1
    assert outside > 0
    assert torch.allclose(pixels(problem, state.images), parameter.detach(), atol=1e-5)
    assert torch.allclose(
        pixels(problem, method.result(problem, state).images), parameter.detach().clamp(0, 1), atol=1e-5
    )


def test_whitened_images_move_by_the_learning_rate_itself(problem, monkeypatch):
    zca = Preprocessing.fit(problem.real.pixels, zca=True)
    task = replace(problem, real=replace(problem.real, preprocessing=zca))
    object.__setattr__(task, "experts", problem.experts)
    loss = lambda self, problem, vector, images, label: 1e3 * images.sum() if label == 2 else 0 * images.sum()
    monkeypatch.setattr(Ncfm, "match", loss)
    method = replace(SMALL, calibration=0.0, lr_img=5.0)
    state, _ = play(method, task, 1)
    moved = state.images[4:] - method.init(task).images[4:]
    # the third of three steps, and the only one with a gradient: Adam's corrected moments are 0.1 / 0.271 and
    # 0.001 / 0.002997 of it and its square
    expected = -5.0 * (0.1 / 0.271) / (0.001 / 0.002997001) ** 0.5
    assert torch.allclose(moved, torch.full_like(moved, expected), rtol=1e-4)


def test_patience_is_that_of_reduce_lr_on_plateau(problem):
    method, state = replace(SMALL, patience=2), SMALL.init(problem)
    descent = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(descent, factor=0.5, patience=2)
    losses = 3 + torch.rand(40, generator=torch.Generator().manual_seed(0))
    losses[20] = float(losses[:20].min()) * (1 - 5e-5)  # lower, but not by enough
    for loss in losses:
        method._wait(state, loss)
        plateau.step(float(loss))
        assert state.share == pytest.approx(descent.param_groups[0]["lr"])
    assert state.share < 1e-2
    kept = SMALL.init(problem)
    for loss in losses:
        replace(SMALL, patience=None)._wait(kept, loss)
    assert kept.share == 1.0


def test_descent_brings_characteristic_functions_together(problem):
    method = replace(EXACT, models=1, calibration=0.0, lr_img=0.02, frequencies=256)
    state, trail = play(method, problem, 15)
    vector = problem.experts.snapshot(0, 2)
    before, after = method.init(problem).images, method.result(problem, state).images

    def apart(images: Tensor) -> float:
        with problem.seed.scope():
            return sum(float(method.match(problem, vector, images[2 * c : 2 * c + 2], c)) for c in range(3))

    assert apart(after) < 0.85 * apart(before)
    assert trail[0]["matching"] < SCALE


def test_the_same_seed_gives_the_same_iterations(problem):
    (one, trail), (other, again) = play(SMALL, problem, 3), play(SMALL, problem, 3)
    assert trail == again
    assert torch.equal(one.images, other.images)
    assert play(SMALL, replace(problem, seed=problem.seed / "other"), 3)[1] != trail


@pytest.mark.parametrize(
    ("dataset", "ipc", "outer", "lr_img"),
    [
        *(("cifar10", ipc, "adam", 0.001) for ipc in (1, 10, 50)),
        *(("cifar100", 1, "adam", 0.001), ("cifar100", 10, "sgd", 0.01), ("cifar100", 50, "adam", 0.001)),
    ],
)
def test_recipes_are_the_released_settings_as_the_released_script_uses_them(dataset, ipc, outer, lr_img):
    """Its lr_img of 0.01 is multiplied by lr_scale_adam = 0.1 for every optimiser but SGD."""
    spec = resolve(Request(dataset, "ncfm", ipc=ipc, device="cpu")).spec
    assert isinstance(spec.matcher, Ncfm)
    assert (spec.matcher.outer, spec.matcher.lr_img, spec.matcher.momentum) == (outer, lr_img, 0.5)
    assert (spec.experts.batch, spec.experts.schedule, spec.experts.epochs) == (128, "multistep", 60)
