"""rat-bptt and frepo: their gradients against computations written here, in float64, and what their steps do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ddbench_meta.ratbptt as module_under_test
import numpy as np
import pytest
import torch
from ddbench_meta.frepo import Frepo, label_margin, readout, squared_error
from ddbench_meta.ratbptt import RatBptt, _bounded, on_simplex
from ddbench_networks import ConvNet
from float64 import close, four_cells, precise
from modules import Smooth, module_and_leaves
from problems import everything
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ddbench import Curriculum, DivergedError, Examples, Problem, Starts, SyntheticSet, UsageError
from ddbench.testing import toy_task
from ddbench.train.optimisers import Lamb
from ddbench.trajectory.student_lr import FACTOR, FIRST, SEGMENTS
from ddbench.trajectory.unroll import Gradient

RAT = {"total": 6, "window": 3, "batch_real": 500, "augment": ""}


def union(problem: Problem, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Frozen and new images with their labels."""
    if problem.decoder.factor == 2:
        images = four_cells(images).flatten(0, 1)
        labels = torch.stack([labels] * 4, 1).flatten(0, 1)
    for old in problem.frozen.sets:
        images, labels = (
            torch.cat([old.decoder(old.images), images]),
            torch.cat([old.decoder.labels(old.labels), labels]),
        )
    return images, labels


# -- rat-bptt: the gradient --------------------------------------------------------------------------------------


def truncated(problem: Problem, method: RatBptt, state: Any, start: Tensor, length: int) -> list[Tensor]:
    """Loss and gradients by autograd through the last steps of a student trained by hand, on all images at once."""
    module, theta = module_and_leaves(problem.network, start)
    images, labels = state.images.clone().requires_grad_(), state.labels.clone().requires_grad_()
    lr = state.log_lr.exp().requires_grad_()
    shown, told = union(problem, images, labels)
    first = {k: torch.zeros_like(p) for k, p in theta.items()}
    second = {k: torch.zeros_like(p) for k, p in theta.items()}
    for t in range(1, length + 1):
        loss = cross_entropy(functional_call(module, theta, (shown,)), told)
        g = dict(zip(theta, grad(loss, list(theta.values()), create_graph=True), strict=True))
        for k in theta:
            if method.optimizer == "adam":
                first[k] = 0.9 * first[k] + 0.1 * g[k]
                second[k] = 0.999 * second[k] + 0.001 * g[k] ** 2
                step = first[k] / (1 - 0.9**t) / ((second[k] / (1 - 0.999**t)) ** 0.5 + 1e-8)
            else:
                first[k] = step = 0.9 * first[k] + g[k] + 5e-4 * theta[k]
            theta[k] = theta[k] - lr * step
        if t == length - method.window:
            for kept in (theta, first, second):
                kept.update({k: v.detach().requires_grad_() for k, v in kept.items()})
    real = everything(problem.real)
    end = cross_entropy(functional_call(module, theta, (real.images,)), real.labels)
    return [end.detach(), *grad(end, [images, labels, lr])]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("length", "window"), [(3, 3), (6, 3), (7, 1)])
@pytest.mark.parametrize(("frozen", "factor"), [(0, 1), (2, 1), (2, 2)])
def test_gradient_is_that_of_autograd_through_the_window_alone(optimizer, length, window, frozen, factor):
    problem = precise(Smooth(), frozen=frozen, factor=factor, label_kind="real")
    method = RatBptt(**RAT | {"window": window, "total": 9}, optimizer=optimizer, lr_init=0.02, pix_init="real")
    state = method.init(problem)
    state.labels = torch.rand(state.labels.shape, dtype=torch.float64).softmax(1)
    with problem.seed.scope():
        seen = method._gradient(problem, state, length)
    with problem.seed.scope():
        start = problem.starts[int(torch.randint(2**31, ()))]
    loss, images, labels, lr = truncated(problem, method, state, start, length)
    assert close(seen.loss, loss)
    assert close(seen.images, images)
    assert close(seen.labels, labels)
    assert close(seen.lr, lr)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("frozen", [0, 2])
def test_the_student_lr_that_is_found_is_that_of_least_loss_on_a_grid(monkeypatch, optimizer, frozen):
    problem = precise(Smooth(), frozen=frozen, label_kind="real")
    method = RatBptt(**RAT | {"window": 6}, optimizer=optimizer, lr_init="auto", pix_init="real")
    starts: list[Tensor] = []
    draw = Starts.draw
    monkeypatch.setattr(Starts, "draw", lambda self: starts.append(draw(self)) or starts[-1])
    state = method.init(problem)
    assert len(starts) == SEGMENTS

    def mean_loss(lr: float) -> float:
        at = replace(state, log_lr=torch.tensor(lr, dtype=torch.float64).log())
        return sum(float(truncated(problem, method, at, start, method.total)[0]) for start in starts) / SEGMENTS

    losses = {lr: mean_loss(lr) for lr in (FIRST * FACTOR**k for k in range(-5, 7))}
    assert state.lr_start == pytest.approx(min(losses, key=losses.__getitem__))
    assert float(state.log_lr.exp()) == pytest.approx(state.lr_start)
    recommended = method.result(problem, state).lr
    assert recommended == (state.lr_start if optimizer == "sgd" else None)
    shown = [method.step(problem, state, k)[1] for k in range(2)]
    assert shown[0]["lr_init"] == state.lr_start
    assert "lr_init" not in shown[1]


def test_noise_has_no_student_lr_to_be_found():
    with pytest.raises(UsageError, match=r"lr_init=auto.*pix_init=real"):
        RatBptt(lr_init="auto")


def test_truncation_is_no_small_matter():
    problem, whole = precise(Smooth()), RatBptt(**RAT | {"window": 6}, lr_init=0.02, pix_init="real")
    state = whole.init(problem)
    found = []
    for method in (whole, replace(whole, window=2)):
        with problem.seed.scope():
            found.append(method._gradient(problem, state, 6))
    assert torch.equal(found[0].loss, found[1].loss)
    assert not close(found[1].images, found[0].images, 0.05)


def test_steps_before_the_window_leave_no_graph(peak_bytes):
    problem = toy_task(ipc=30)
    method = RatBptt(total=100, window=2, batch_real=9, pix_init="real", augment="")
    state = method.init(problem)
    vectors = 3 * 4 * problem.network.parameters  # bytes of theta and Adam's two moments
    rows = 2 * 8 * 90  # bytes of the rows that a step takes, when they are drawn and as they are kept

    def peak(length: int) -> int:
        return peak_bytes(lambda: method._gradient(problem, state, length))

    short = peak(5)
    assert short > 3 * 40 * (vectors + rows)  # or the claim would be about something else
    assert peak(45) - short < 40 * (vectors + rows)


# -- rat-bptt: a step --------------------------------------------------------------------------------------------


def flat_gradient(state: Any, value: float = 1.0) -> Gradient:
    """A made-up result of an unroll: the same gradient for every pixel."""
    images, labels = torch.full_like(state.images, value), torch.full_like(state.labels, value)
    return Gradient(torch.tensor(2.0), images, labels, torch.tensor(0.0), torch.zeros(1))


def test_unroll_is_a_new_network_and_a_new_length_every_time(monkeypatch):
    problem, seen = toy_task(), []
    method = RatBptt(**RAT | {"total": 5})
    state = method.init(problem)

    def spy(loss, terminal, start, pool, lr, plan, *, optimiser, window, engine):
        assert (window, engine.steps) == (3, method.steps * (3 + method.total) // 2)
        seen.append((len(plan.batches), float(start.sum())))
        return flat_gradient(state)

    monkeypatch.setattr(module_under_test, "reverse", spy)
    with problem.seed.scope():
        for k in range(60):
            state, _ = method.step(problem, state, k)
    lengths = [length for length, _ in seen]
    assert {n: lengths.count(n) > 8 for n in (3, 4, 5)} == {3: True, 4: True, 5: True}
    assert len(lengths) == 60
    assert len({start for _, start in seen}) == 60


def test_images_and_labels_move_as_torchs_adam_moves_them(monkeypatch):
    problem = toy_task()
    method = RatBptt(**RAT, clip=None, lr_img=0.02, lr_label=0.0, labels="learned")
    state = method.init(problem)
    images = nn.Parameter(state.images.clone())
    torch_adam = torch.optim.Adam([images], lr=0.02)
    for k in range(4):
        made = flat_gradient(state)
        made.images.normal_()
        monkeypatch.setattr(RatBptt, "unrolled", lambda *_, made=made: made)
        state, _ = method.step(problem, state, k)
        images.grad = made.images
        torch_adam.step()
    assert torch.allclose(state.images, images, atol=1e-6)


def test_descent_goes_against_the_gradient(monkeypatch):
    problem = toy_task()
    method = RatBptt(**RAT, labels="learned", lr_label=0.1)
    state = method.init(problem)
    before, made = state.images.clone(), flat_gradient(state)
    made.labels[:, 1] = -1
    monkeypatch.setattr(RatBptt, "unrolled", lambda *_: made)
    state, _ = method.step(problem, state, 0)
    assert torch.allclose(state.images, before - method.lr_img, atol=1e-5)
    assert torch.allclose(state.labels[0], torch.tensor([0.9, 0.1, 0.0]), atol=1e-6)


def test_norm_is_bounded_by_twice_its_running_mean():
    g, mean = torch.tensor([3.0, 4.0]), torch.tensor(0.0)
    first, mean = _bounded(g, mean, 2.0)
    assert torch.equal(first, g)
    assert mean == 5
    huge, mean = _bounded(1000 * g, mean, 2.0)
    assert huge.norm().item() == pytest.approx(10)
    assert torch.allclose(huge / huge.norm(), g / 5)
    assert mean.item() == pytest.approx(0.9 * 5 + 0.1 * 10)  # of bounded norms: one outlier does not lift the bound
    small, mean = _bounded(g, mean, 2.0)
    assert torch.allclose(small, g)
    assert mean.item() == pytest.approx(0.9 * 5.5 + 0.1 * 5)
    assert torch.equal(_bounded(0 * g, mean, 2.0)[0], 0 * g)
    assert torch.equal(_bounded(1000 * g, mean, None)[0], 1000 * g)


def test_images_begin_as_noise_of_norm_one_or_as_real_ones():
    problem = toy_task()
    with problem.seed.scope():
        one, other = (RatBptt(**RAT).init(problem).images for _ in range(2))
    assert torch.allclose(one.flatten(1).norm(dim=1), torch.ones(6))
    assert not torch.allclose(one, other)
    assert torch.equal(RatBptt(**RAT, pix_init="real").init(problem).images, problem.sample().images)


def nearest_probabilities(row: np.ndarray) -> np.ndarray:
    """max(row - t, 0) with the t for which it sums to 1, by bisection."""
    low, high = row.min() - 1, row.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(row - low, 0)


def test_learned_labels_are_the_nearest_probabilities():
    generator = torch.Generator().manual_seed(0)
    rows = 2 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    expected = np.stack([nearest_probabilities(row) for row in rows.numpy()])
    assert np.allclose(on_simplex(rows).numpy(), expected, atol=1e-12)
    assert torch.allclose(on_simplex(-9 - rows.abs()).sum(1), torch.ones(40).double())
    assert torch.allclose(on_simplex(torch.eye(5)), torch.eye(5))


def test_hard_labels_stay_and_learned_ones_do_not():
    problem = toy_task()
    for labels in ("hard", "learned"):
        method = RatBptt(**RAT, labels=labels)
        state, _ = method.step(problem, method.init(problem), 0)
        made = method.result(problem, state)
        assert made.label_type == labels
        assert torch.equal(made.labels, problem.sample().labels) == (labels == "hard")
        assert torch.allclose(made.labels.sum(1), torch.ones(6))


def test_student_lr_is_recommended_for_sgd_alone_and_moves_only_when_learned(monkeypatch):
    problem = toy_task()
    adam, sgd = (RatBptt(**RAT, optimizer=name, lr_init=0.02) for name in ("adam", "sgd"))
    state = sgd.step(problem, sgd.init(problem), 0)[0]
    assert adam.result(problem, state).lr is None
    assert sgd.result(problem, state).lr == 0.02  # to the last bit, or the grid would try it twice
    learning = replace(sgd, lr_lr=0.1)
    state = learning.init(problem)
    monkeypatch.setattr(RatBptt, "unrolled", lambda *_: replace(flat_gradient(state), lr=torch.tensor(5.0)))
    state, numbers = learning.step(problem, state, 0)
    assert float(numbers["lr"]) == pytest.approx(0.02)
    assert learning.result(problem, state).lr == pytest.approx(0.02 * np.exp(-0.1))
    state.log_lr -= 10
    with pytest.raises(DivergedError, match=r"went from 0\.02 to .*matcher\.lr_lr"):
        learning.step(problem, state, 9)


def test_a_window_longer_than_the_unroll_is_refused():
    with pytest.raises(UsageError, match=r"a window of 20 steps .* set matcher\.total to 20 or more"):
        RatBptt(total=10, window=20)


def test_loss_of_a_student_falls_when_it_is_always_the_same(monkeypatch):
    problem = toy_task(ipc=1)
    monkeypatch.setattr(Starts, "__getitem__", lambda self, index: self.student(0).vector)
    for optimizer, lr in (("adam", 0.02), ("sgd", 0.1)):
        method = RatBptt(total=6, window=6, batch_real=200, optimizer=optimizer, lr_init=lr, augment="")
        losses = trail(method, problem, 25)
        assert losses[-1] < 0.8 * losses[0]


def trail(method: Any, problem: Problem, steps: int) -> list[float]:
    with problem.seed.scope():
        state, losses = method.init(problem), []
        for k in range(steps):
            state, numbers = method.step(problem, state, k)
            losses.append(float(numbers["loss"]))
    return losses


# -- frepo: the gradient -----------------------------------------------------------------------------------------


def ridge_by_hand(
    problem: Problem, vector: Tensor, state: Any, real: Examples, ridge: float, flip: bool
) -> list[Tensor]:
    """Error, margin, and the gradients of error - margin, with an explicit inverse and loops over entries."""
    module, theta = module_and_leaves(problem.network, vector)
    theta = {f"net.{k}": v.detach() for k, v in theta.items()}

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, x: Tensor) -> Tensor:
            return self.net.features(x)

    images, labels = state.images.clone().requires_grad_(), state.labels.clone().requires_grad_()
    x, y = union(problem, images, labels)
    if flip:
        x, y = torch.cat([x, x[..., torch.arange(x.shape[-1] - 1, -1, -1)]]), torch.cat([y, y])
    f_s, f_t = (functional_call(Features(), theta, (z,)) for z in (x, real.images))
    k_ss = torch.stack([torch.stack([(a * b).sum() for b in f_s]) for a in f_s])
    k_ts = torch.stack([torch.stack([(a * b).sum() for b in f_s]) for a in f_t])
    lam = ridge * sum(k_ss[i, i] for i in range(len(x))) / len(x)
    predicted = k_ts @ torch.linalg.inv(k_ss + lam * torch.eye(len(x)).double()) @ y
    targets = real.labels - 1 / 3
    error = sum(0.5 * ((p - t) ** 2).sum() for p, t in zip(predicted, targets, strict=True)) / len(targets)
    margins = []
    for row in labels:
        best, second = sorted(row, reverse=True)[:2]
        margins.append(best - second if best - second < 1 / 3 else torch.tensor(1 / 3, dtype=torch.float64))
    margin = sum(margins) / len(labels)
    return [error.detach(), margin.detach(), *grad(error - margin, [images, labels])]


@pytest.mark.parametrize(("frozen", "factor", "flip"), [(0, 1, False), (2, 1, True), (1, 2, False)])
def test_gradient_is_that_of_autograd_through_an_explicit_inverse(frozen, factor, flip, monkeypatch):
    problem = precise(Smooth(), frozen=frozen, factor=factor, label_kind="real")
    method = Frepo(networks=1, batch_real=20, flip=flip, ridge=1e-4)
    with problem.seed.scope():
        state = method.init(problem)
        state.labels = torch.randn(state.labels.shape, dtype=torch.float64) / 3
    before, taken = replace(state, images=state.images.clone(), labels=state.labels.clone()), []
    rule = Lamb()

    def spy(self, x, moments, gradient, lr):
        taken.append(gradient)
        return x, moments

    monkeypatch.setattr(Lamb, "update", spy)
    vector = state.vectors[0].clone()
    with problem.seed.scope():
        _, numbers = method.step(problem, state, 0)
    with problem.seed.scope():
        assert int(torch.randint(1, ())) == 0
        real = problem.real[torch.randperm(len(problem.real))[:20]]
    error, margin, images, labels = ridge_by_hand(problem, vector, before, real, 1e-4, flip)
    assert close(numbers["loss"], error)
    assert close(numbers["margin"], margin)
    assert close(taken[0], images, 1e-7)
    assert close(taken[1], labels, 1e-7)
    assert rule == Lamb()


@pytest.mark.parametrize(("n", "f"), [(6, 20), (20, 6)])
def test_readout_is_ridge_regression_even_where_the_kernel_is_singular(n, f):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, f, generator=generator, dtype=torch.float64)
    labels = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    lam = 1e-6 * float((features**2).sum()) / n
    primal = np.linalg.solve(
        features.T.numpy() @ features.numpy() + lam * np.eye(f), features.T.numpy() @ labels.numpy()
    )
    assert close(readout(features, labels, 1e-6), torch.from_numpy(primal), 1e-6)


def test_features_of_nothing_are_a_divergence_with_advice():
    with pytest.raises(DivergedError, match=r"cannot be factorised.*matcher\.ridge"):
        readout(torch.zeros(4, 5).double(), torch.zeros(4, 3).double(), 1e-6)


def test_kernel_is_in_float64_for_a_network_in_float32():
    problem, method = toy_task(), Frepo(networks=1)
    state = method.init(problem)
    seen = method.predict(problem, state.vectors[0], state.images, state.labels, state.images)
    assert seen.dtype == torch.float64
    # with a ridge of 1e-6 the training labels themselves come back, more exactly than float32 could solve for
    assert (seen - state.labels).abs().max() < 1e-4


def test_margin_counts_up_to_one_in_k():
    labels = torch.tensor([[0.9, 0.0, 0.0], [0.2, 0.1, 0.0], [0.0, 0.3, 0.3]])
    assert label_margin(labels).item() == pytest.approx((1 / 3 + 0.1 + 0) / 3)


def test_squared_error_is_half_the_mean_distance_of_rows():
    assert squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == pytest.approx(5 / 4)


# -- frepo: a step -----------------------------------------------------------------------------------------------


def lamb_by_hand(x: np.ndarray, gradients: list[np.ndarray], lrs: list[float], decay: float = 0.0) -> np.ndarray:
    """You et al., algorithm 2, the whole tensor being one layer and phi the identity; moments as explicit sums."""
    for t in range(1, len(gradients) + 1):
        m = sum(0.1 * 0.9 ** (t - s) * g for s, g in enumerate(gradients[:t], 1)) / (1 - 0.9**t)
        v = sum(0.001 * 0.999 ** (t - s) * g**2 for s, g in enumerate(gradients[:t], 1)) / (1 - 0.999**t)
        u = m / (np.sqrt(v) + 1e-6) + decay * x
        x = x - lrs[t - 1] * np.linalg.norm(x) / np.linalg.norm(u) * u
    return x


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_is_that_of_its_paper(decay):
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=(4, 3)), [rng.normal(size=(4, 3)) for _ in range(5)]
    rule, at = Lamb(weight_decay=decay), torch.from_numpy(x)
    state = rule.init(at)
    for g in gradients:
        at, state = rule.update(at, state, torch.from_numpy(g), 0.1)
    assert np.allclose(at.numpy(), lamb_by_hand(x, gradients, [0.1] * 5, decay), rtol=1e-12)


def test_lamb_moves_what_is_zero_by_adams_step_and_nothing_without_a_gradient():
    rule, zero, ones = Lamb(), torch.zeros(3), torch.ones(3)
    assert torch.allclose(rule.update(zero, rule.init(zero), ones, 0.5)[0], -0.5 * ones, atol=1e-5)
    assert torch.equal(rule.update(ones, rule.init(ones), zero, 0.5)[0], ones)


def test_images_and_labels_move_by_lamb_with_cosine_decay(monkeypatch):
    problem, method = precise(Smooth()), Frepo(steps=4, networks=1, lr_img=0.2, lr_label=0.1)
    state, taken = method.init(problem), []
    images, labels = state.images.numpy().copy(), state.labels.numpy().copy()
    update = Lamb.update

    def spy(self, x, moments, gradient, lr):
        taken.append(gradient.numpy().copy())
        return update(self, x, moments, gradient, lr)

    monkeypatch.setattr(Lamb, "update", spy)
    for k in range(4):
        state, _ = method.step(problem, state, k)
    shares = [0.1 + 0.9 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)]
    assert shares[0] == 1
    assert np.allclose(state.images.numpy(), lamb_by_hand(images, taken[::2], [0.2 * s for s in shares]))
    assert np.allclose(state.labels.numpy(), lamb_by_hand(labels, taken[1::2], [0.1 * s for s in shares]))


def test_labels_begin_centred_and_scaled_and_are_real_valued():
    problem, method = toy_task(ipc=1), Frepo()
    state = method.init(problem)
    expected = [[(float(i == j) - 1 / 3) / (3 / 10) ** 0.5 for j in range(3)] for i in range(3)]
    assert torch.allclose(state.labels, torch.tensor(expected))
    made = method.result(problem, state)
    assert (made.label_kind, made.label_type, made.lr) == ("real", "learned", None)
    assert torch.equal(made.images, problem.sample().images)


def test_online_networks_begin_at_different_ages():
    state = Frepo(networks=4, max_online=10).init(toy_task())
    assert state.ages == [0, 2, 4, 6]
    assert len({float(v.sum()) for v in state.vectors}) == 4


def test_an_online_network_learns_the_set_by_torchs_adam_and_is_drawn_anew_in_time(monkeypatch):
    problem, method = (
        precise(Smooth(), frozen=1, label_kind="real"),
        Frepo(networks=1, max_online=3, lr_net=0.01, batch_real=9),
    )
    state = method.init(problem)
    start = state.vectors[0].clone()
    module, theta = module_and_leaves(problem.network, start)
    module.load_state_dict(theta)
    adam = torch.optim.Adam(module.parameters(), lr=0.01)
    for k in range(3):
        state, _ = method.step(problem, state, k)
        x, y = union(problem, state.images, state.labels)  # as it is after this step
        adam.zero_grad()
        (0.5 * (module(x) - y) ** 2).sum(1).mean().backward()
        adam.step()
        assert close(state.vectors[0], torch.cat([p.detach().flatten() for p in module.parameters()]), 1e-7)
    assert state.ages == [3]
    state, _ = method.step(problem, state, 3)
    assert state.ages == [0]
    assert not state.first.any()
    assert not state.second.any()
    assert state.updates.tolist() == [0]
    fresh = [problem.starts[i] for i in range(2)]
    assert not close(state.vectors[0], start, 0.1)
    assert state.vectors[0].norm() == pytest.approx(float(fresh[0].norm()), rel=0.3)


def test_only_the_chosen_network_learns():
    problem, method = toy_task(), Frepo(networks=5)
    state = method.init(problem)
    before = state.vectors.clone()
    state, _ = method.step(problem, state, 0)
    assert (state.vectors != before).any(1).sum() == 1
    assert sum(state.ages) == sum(i * 20 for i in range(5)) + 1


def test_batch_norm_embeds_by_statistics_that_online_steps_move():
    problem = precise(ConvNet(width=4, depth=2, norm="batch"))
    method = Frepo(networks=1, max_online=50)
    state, p = method.init(problem), problem.network.parameters
    both = everything(problem.real).images[:8]
    pair = [method.predict(problem, state.vectors[0], state.images, state.labels, part) for part in (both, both[:4])]
    assert torch.allclose(pair[0][:4], pair[1])  # an image's features do not depend on its batch
    before = state.vectors[0, p:].clone()
    state, _ = method.step(problem, state, 0)
    assert not torch.equal(state.vectors[0, p:], before)


def test_ridge_regression_on_distilled_images_predicts_better():
    losses = trail(Frepo(networks=3, lr_img=0.03, lr_label=0.03), toy_task(ipc=1), 60)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


# -- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [RatBptt(**RAT), Frepo(networks=2, batch_real=9)])
def test_frozen_images_stay_and_count(method):
    task = toy_task(ipc=1)
    kind = {"label_kind": "real"} if method.name == "frepo" else {}
    moved = []
    for shift in (0.0, 1.0):
        sample = task.sample()
        old = SyntheticSet(sample.images + shift, sample.labels, **kind)
        problem = replace(task, frozen=Curriculum((old,), ((0,),)))
        with task.seed.scope():
            state, numbers = method.step(problem, method.init(problem), 0)
        assert torch.equal(old.images, sample.images + shift)
        moved.append(float(numbers["loss"]))
        assert method.result(problem, state).images.shape == (3, *task.real.shape)
    assert moved[0] != moved[1]
