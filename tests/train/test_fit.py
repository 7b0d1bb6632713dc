"""The one trainer against torch.optim loops over ordinary modules, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from modules import module_of, numbers
from sets import some_set, some_teacher
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from ddbench import DSA, Examples, Network, Preprocessing, RealData, Recipe, Seed, UsageError, fit
from ddbench.base.options import make
from ddbench.base.progress import Event, listening
from ddbench.data.mixing import Mixing
from ddbench.train.fit import Lessons, Student, flat_gradient, predict, soft_cross_entropy, squared_error

SHAPE, CLASSES = (3, 8, 8), 3
SEED = Seed(5) / "here"
FULL = "color_crop_cutout_flip_scale_rotate"


def network(norm: str = "instance") -> Network:
    return Network(ConvNet(width=4, depth=2, norm=norm), SHAPE, CLASSES, dtype=torch.float64)


def source(n: int = 11, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)
    return Examples(images, torch.randn(n, CLASSES, dtype=torch.float64, generator=generator).softmax(1))


def batches_of(n: int, batch: int, epoch: int, augment: str = "") -> list:
    """(rows, draw) of one epoch: all that the trainer draws there, in its order, from the epoch's address."""
    before = torch.get_rng_state()
    torch.manual_seed((SEED / "epoch" / epoch).integer)
    chunks = torch.randperm(n).split(batch)
    drawn = [(rows, DSA(augment).draw(len(rows))) for rows in chunks]
    torch.set_rng_state(before)
    return drawn


def trained_by_torch(
    module: nn.Module, optimiser, data: Examples, steps: int, batch: int, *, augment="", rate=None, at=None
) -> nn.Module:
    """``steps`` optimiser steps; ``rate(step)`` sets the rate, ``at[step]()`` makes a new optimiser there."""
    module.train()
    step = epoch = 0
    while step < steps:
        for rows, draw in batches_of(len(data), batch, epoch, augment)[: steps - step]:
            optimiser = at[step]() if at and step in at else optimiser
            if rate:
                optimiser.param_groups[0]["lr"] = rate(step)
            optimiser.zero_grad()
            cross_entropy(module(draw(data.images[rows])), data.labels[rows]).backward()
            optimiser.step()
            step += 1
        epoch += 1
    return module


def assert_close(seen: Tensor, expected: Tensor) -> None:
    assert error(seen, expected) < 1e-11


def grouped(parameters) -> list[dict]:
    """Biases and scales of norms in a group without weight decay, as RDED's script has it."""
    kinds: dict[bool, list] = {True: [], False: []}
    for parameter in parameters:
        kinds[parameter.ndim > 1].append(parameter)
    assert all(kinds.values())
    return [{"params": kinds[True]}, {"params": kinds[False], "weight_decay": 0.0}]


OPTIMISERS = {
    "sgd": (Recipe("sgd"), lambda p, lr: torch.optim.SGD(p, lr)),
    "weight decay": (Recipe("sgd", weight_decay=0.05), lambda p, lr: torch.optim.SGD(p, lr, weight_decay=0.05)),
    "momentum": (
        Recipe("sgd", momentum=0.9, weight_decay=5e-3),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=5e-3),
    ),
    "adam": (Recipe("adam", weight_decay=0.01), lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.01)),
    "adamw of weights": (
        Recipe("adamw", weight_decay=0.3, decay="weights"),
        lambda p, lr: torch.optim.AdamW(grouped(p), lr, weight_decay=0.3),
    ),
    "sgd of weights": (
        Recipe("sgd", weight_decay=0.3, decay="weights"),
        lambda p, lr: torch.optim.SGD(grouped(p), lr, weight_decay=0.3),
    ),
    "adamw": (Recipe("adamw", weight_decay=0.3), lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.3)),
}


def recipe(name: str, **changes) -> Recipe:
    return replace(OPTIMISERS[name][0], **({"epochs": 4, "batch": 4, "lr": 0.05, "augment": ""} | changes))


# -- against torch.optim -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("augment", ["", FULL, f"diffaug:{FULL}"])
def test_fit_is_a_loop_over_torchs_own_optimiser(name, augment):
    # without a norm every parameter has a gradient; behind one, biases have none but rounding, which Adam amplifies
    net, data = network("none" if "adam" in name else "instance"), source()
    start = net.init(Seed(1))
    module = module_of(net, start)
    trained_by_torch(module, OPTIMISERS[name][1](module.parameters(), 0.05), data, 12, 4, augment=augment)
    after = fit(net, Student(start), data, recipe(name, augment=augment), SEED)
    assert_close(after.vector, numbers(module))
    assert (after.vector - start).norm() > 1e-2


def test_gradient_steps_of_hard_labels_are_those_of_class_numbers():
    net, data = network(), source()
    hard = data.labels.argmax(1)
    module = module_of(net, net.init(Seed(1)))
    trained_by_torch(module, torch.optim.SGD(module.parameters(), 0.05), Examples(data.images, hard), 12, 4)
    one_hot = Examples(data.images, torch.eye(CLASSES, dtype=torch.float64)[hard])
    assert_close(fit(net, Student(net.init(Seed(1))), one_hot, recipe("sgd"), SEED).vector, numbers(module))


def test_soft_cross_entropy_is_the_mean_of_the_written_out_sums():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)  # real-valued labels too
    expected = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(v) for v in z))
        expected -= sum(b * (a - normaliser) for a, b in zip(z, y, strict=True)) / 4
    assert soft_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("total", [12, 7, 2])
@pytest.mark.parametrize("restart", [False, True])
def test_step_schedule_drops_tenfold_at_half_time_with_the_momentum_kept_or_restarted(total, restart):
    net, data = network(), source()
    module = module_of(net, net.init(Seed(1)))

    def make(lr: float):
        return torch.optim.SGD(module.parameters(), lr, momentum=0.9, weight_decay=5e-3)

    if restart:  # as the published code does: a new optimiser
        trained_by_torch(module, make(0.05), data, total, 4, at={total // 2: lambda: make(0.005)})
    else:
        trained_by_torch(module, make(0.05), data, total, 4, rate=lambda step: 0.05 if step < total // 2 else 0.005)
    schedule = "step-restart" if restart else "step"
    after = fit(
        net, Student(net.init(Seed(1))), data, recipe("momentum", epochs=None, steps=total, schedule=schedule), SEED
    )
    assert_close(after.vector, numbers(module))


def test_restarting_the_momentum_at_the_drop_makes_a_difference():
    net, data = network(), source()
    kept, restarted = (
        fit(net, Student(net.init(Seed(1))), data, recipe("momentum", schedule=schedule), SEED).vector
        for schedule in ("step", "step-restart")
    )
    assert (kept - restarted).norm() / kept.norm() > 1e-4


@pytest.mark.parametrize("schedule", ["step", "step-restart"])
def test_single_step_of_a_step_schedule_is_taken_at_the_full_rate(schedule):
    net, data = network(), source()
    module = module_of(net, net.init(Seed(1)))
    trained_by_torch(module, torch.optim.SGD(module.parameters(), 0.05), data, 1, 4)
    given = recipe("sgd", epochs=None, steps=1, schedule=schedule)
    assert_close(fit(net, Student(net.init(Seed(1))), data, given, SEED).vector, numbers(module))


def test_cosine_schedule_is_torchs_annealing_to_zero():
    net, data = network(), source()
    module = module_of(net, net.init(Seed(1)))
    optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], 0.05), 12)
    rates = []
    for _ in range(12):
        rates.append(annealing.get_last_lr()[0])
        annealing.optimizer.step()
        annealing.step()
    trained_by_torch(module, optimiser, data, 12, 4, rate=lambda step: rates[step])
    given = recipe("momentum", weight_decay=0.0, schedule="cosine")
    assert_close(fit(net, Student(net.init(Seed(1))), data, given, SEED).vector, numbers(module))


def test_the_multistep_rate_falls_by_five_after_two_thirds_and_after_five_sixths():
    recipe = Recipe(steps=60, schedule="multistep")
    rates = [recipe.rate(step, 60, 1.0) for step in range(60)]
    assert rates == pytest.approx([1.0] * 40 + [0.2] * 10 + [0.04] * 10)


@pytest.mark.parametrize(
    ("schedule", "falls", "gamma"), [("fifths", [4, 8, 12, 16], 0.5), ("quarters", [5, 10, 15], 0.3)]
)
def test_rates_that_fall_in_equal_parts_are_those_of_torchs_multistep_schedule(schedule, falls, gamma):
    descent = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.MultiStepLR(descent, falls, gamma=gamma)
    recipe, rates = Recipe(steps=20, schedule=schedule), []
    for _ in range(20):
        rates.append(descent.param_groups[0]["lr"])
        descent.step()
        torchs.step()
    assert [recipe.rate(step, 20, 1.0) for step in range(20)] == pytest.approx(rates)


def test_half_a_cosine_ends_at_half_the_rate():
    recipe = Recipe(schedule="cosine-half", lr=2.0, steps=10)
    assert [recipe.rate(step, 10, 2.0) for step in (0, 5, 10)] == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0])


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_steps_count_optimiser_steps_and_may_end_within_an_epoch(steps):
    net, data = network(), source()
    module = module_of(net, net.init(Seed(1)))
    trained_by_torch(module, torch.optim.SGD(module.parameters(), 0.05), data, steps, 4)
    after = fit(net, Student(net.init(Seed(1))), data, recipe("sgd", epochs=None, steps=steps), SEED)
    assert_close(after.vector, numbers(module))


def test_given_learning_rate_replaces_the_recipes():
    net, data = network(), source()
    given = fit(net, Student(net.init(Seed(1))), data, recipe("sgd", lr=0.7), SEED, lr=0.02)
    assert torch.equal(given.vector, fit(net, Student(net.init(Seed(1))), data, recipe("sgd", lr=0.02), SEED).vector)


def test_batches_larger_than_the_data_are_all_of_it():
    net, data = network(), source()
    module = module_of(net, net.init(Seed(1)))
    trained_by_torch(module, torch.optim.SGD(module.parameters(), 0.05), data, 3, 11)
    assert_close(
        fit(net, Student(net.init(Seed(1))), data, recipe("sgd", epochs=3, batch=256), SEED).vector, numbers(module)
    )


# -- mixing --------------------------------------------------------------------------------------------------


def mixed_by_hand(mix, images: Tensor) -> tuple[Tensor, float]:
    """The mixed images of one batch, pixel by pixel, and the share of their own pixels that they keep."""
    if mix.kind == "none":
        return images, 1.0
    if mix.kind == "mixup":
        return mix.share * images + (1 - mix.share) * images[mix.partner], mix.share
    half = int(8 * (1 - mix.share) ** 0.5) // 2
    y, x = int(8 * mix.centre[0]), int(8 * mix.centre[1])
    box = [(i, j) for i in range(8) for j in range(8) if -half <= i - y < half and -half <= j - x < half]
    out = images.clone()
    for i, j in box:
        out[:, :, i, j] = images[mix.partner, :, i, j]
    return out, 1 - len(box) / 64


@pytest.mark.parametrize("given", [("cutmix", 0.5, 1.0), ("cutmix", 1.0, 0.4), ("mixup", 0.7, 0.8)])
def test_mixing_trains_augmented_batches_by_the_published_sum_of_two_losses(given):
    net, data = network(), source()
    data = Examples(data.images, data.labels.argmax(1))
    module = module_of(net, net.init(Seed(1))).train()
    optimiser, kinds = torch.optim.SGD(module.parameters(), 0.05), []
    for epoch in range(4):
        with (SEED / "epoch" / epoch).scope():
            for rows in torch.randperm(11).split(4):
                images, labels = DSA(FULL).draw(len(rows))(data.images[rows]), data.labels[rows]
                mix = Mixing(*given).draw(len(rows))
                mixed, share = mixed_by_hand(mix, images)
                optimiser.zero_grad()
                logits, partner = module(mixed), mix.partner if len(mix.partner) else slice(None)
                loss = share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(logits, labels[partner])
                loss.backward()
                optimiser.step()
                kinds.append(mix.kind)
    assert set(kinds) == {given[0]} | ({"none"} if given[1] < 1 else set())
    changes = dict(zip(("mixing", "mix_probability", "mix_alpha"), given, strict=True))
    one_hot = Examples(data.images, torch.eye(CLASSES, dtype=torch.float64)[data.labels])
    after = fit(net, Student(net.init(Seed(1))), one_hot, recipe("sgd", augment=FULL, **changes), SEED)
    assert_close(after.vector, numbers(module))


@pytest.mark.parametrize("mixing", ["cutmix", "mixup"])
def test_mixing_with_probability_zero_still_draws_but_mixes_nothing(mixing):
    net, data = network(), source(4)  # one batch an epoch: nothing is drawn after whether it is mixed
    plain, never, always = (
        fit(net, Student(net.init(Seed(1))), data, recipe("sgd", augment=FULL, **changes), SEED).vector
        for changes in ({}, {"mixing": mixing, "mix_probability": 0.0}, {"mixing": mixing, "mix_probability": 1.0})
    )
    assert torch.equal(plain, never)
    assert not torch.equal(plain, always)


@pytest.mark.parametrize("changes", [{"mix_probability": 1.1}, {"mix_probability": -0.1}, {"mix_alpha": 0.0}])
def test_probability_and_alpha_of_mixing_have_bounds(changes):
    with pytest.raises(UsageError, match=f"experts.{next(iter(changes))}: Input should be"):
        make(Recipe, changes, "experts")


# -- batch norm ----------------------------------------------------------------------------------------------


def test_batch_norm_statistics_follow_training_as_in_the_module():
    net, data = network("batch"), source(12)
    start = net.init(Seed(1))
    module = module_of(net, start)
    optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=5e-3)
    trained_by_torch(module, optimiser, data, 12, 4, augment=FULL)
    after = fit(net, Student(start), data, recipe("momentum", augment=FULL), SEED)
    assert_close(after.vector[: net.parameters], numbers(module)[: net.parameters])
    assert_close(after.vector[net.parameters :], numbers(module)[net.parameters :])
    assert (after.vector - start)[net.parameters :].norm() > 0.1


# -- stopping and going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        recipe("momentum", augment=FULL),
        recipe("momentum", schedule="step-restart", augment=FULL),
        recipe("adam", schedule="cosine"),
        recipe("momentum", epochs=None, steps=11, schedule="step"),
        recipe("momentum", augment=f"diffaug:{FULL}", mixing="cutmix"),
        recipe("sgd", augment=FULL, mixing="mixup", mix_alpha=0.8),
    ],
    ids=["momentum", "restart", "adam cosine", "steps", "cutmix", "mixup"],
)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_training_may_stop_after_any_epoch_and_go_on_to_the_same_bits(given, norm):
    net, data = network(norm), source(12)
    whole, start = {}, Student(net.init(Seed(1)))
    end = fit(net, start, data, given, SEED, on_epoch=lambda e, s: whole.__setitem__(e, s))
    assert list(whole) == [1, 2, 3, 4]
    assert torch.equal(whole[4].vector, end.vector)
    for stop in (1, 2, 3):
        first = fit(net, start, data, given, SEED, stop_epoch=stop)
        assert torch.equal(first.vector, whole[stop].vector)
        torch.rand(7)
        then = fit(net, Student(first.vector.clone(), first.state), data, given, SEED, first_epoch=stop)
        assert torch.equal(then.vector, end.vector)
        for a, b in zip(then.state, end.state, strict=True):
            assert torch.equal(a, b)


def test_stopping_before_the_first_epoch_trains_nothing():
    net = network()
    start = net.init(Seed(1))
    assert torch.equal(fit(net, Student(start), source(), recipe("sgd"), SEED, stop_epoch=0).vector, start)


def test_going_on_after_the_last_epoch_changes_nothing():
    net = network()
    start = net.init(Seed(1))
    assert torch.equal(fit(net, Student(start), source(), recipe("sgd"), SEED, first_epoch=4).vector, start)


def test_students_of_different_epochs_do_not_share_memory():
    net, seen = network(), []
    start = Student(net.init(Seed(1)))
    fit(
        net,
        start,
        source(),
        recipe("momentum"),
        SEED,
        on_epoch=lambda e, s: seen.append((s, s.vector.clone(), s.state[0].clone())),
    )
    for student, vector, momentum in seen:
        assert torch.equal(student.vector, vector)
        assert torch.equal(student.state[0], momentum)
        assert not student.vector.requires_grad
    assert torch.equal(start.vector, net.init(Seed(1)))


def test_optimiser_state_that_is_given_goes_on():
    net, data = network(), source()
    module = module_of(net, net.init(Seed(1)))
    first = fit(net, Student(net.init(Seed(1))), data, recipe("momentum"), SEED)
    again = fit(net, first, data, recipe("momentum"), SEED)
    optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=5e-3)
    for _ in range(2):
        trained_by_torch(module, optimiser, data, 12, 4)
    assert_close(again.vector, numbers(module))


# -- randomness and progress ---------------------------------------------------------------------------------


def test_training_is_a_function_of_its_seed_and_disturbs_no_other_draw():
    net, data, given = network(), source(), recipe("sgd", augment=FULL)
    state = torch.get_rng_state()
    vectors = [fit(net, Student(net.init(Seed(1))), data, given, seed).vector for seed in (SEED, SEED, SEED / 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_progress_is_reported_in_steps_after_every_epoch():
    events: list[Event] = []
    with listening(events.append):
        fit(network(), Student(network().init(Seed(1))), source(), recipe("sgd", epochs=None, steps=8), SEED, what="w")
    assert [(e.what, e.done, e.total) for e in events] == [("w", 3, 8), ("w", 6, 8), ("w", 8, 8)]


def test_progress_of_training_that_stops_early_ends_where_it_stops():
    events: list[Event] = []
    with listening(events.append):
        fit(network(), Student(network().init(Seed(1))), source(), recipe("sgd"), SEED, stop_epoch=2)
    assert [(e.done, e.total) for e in events] == [(3, 6), (6, 6)]


# -- prediction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_predictions_are_those_of_the_module_in_evaluation_mode(norm):
    net = Network(ConvNet(width=4, depth=2, norm=norm), SHAPE, CLASSES)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (23, *SHAPE), generator=generator).to(torch.uint8)
    fitted = Preprocessing.fit(pixels)
    real = RealData(pixels, torch.arange(23) % CLASSES, fitted, CLASSES)
    vector = net.init(Seed(1))
    vector[net.parameters :] += torch.rand(net.length - net.parameters, generator=generator)
    module = module_of(net, vector).eval()
    images = (pixels / 255 - fitted.mean.view(1, 3, 1, 1)) / fitted.std.view(1, 3, 1, 1)
    for size in (5, 23, 1000):
        logits, targets = predict(net, vector, real, size)
        torch.testing.assert_close(logits, module(images).detach(), rtol=1e-5, atol=1e-5)
        assert torch.equal(targets, real.targets)
        assert not logits.requires_grad


# -- flat minima, squared errors, labels made online ---------------------------------------------------------


def numpy_gsam(theta: np.ndarray, gradient, rho: float, alpha: float) -> np.ndarray:
    """FTD's step, coordinate by coordinate, as its description says."""
    g = gradient(theta)
    scale = math.sqrt(sum((abs(t) * v) ** 2 for t, v in zip(theta, g, strict=True)))
    there = np.array([t + rho * t * t * v / (scale + 1e-12) for t, v in zip(theta, g, strict=True)])
    worst = gradient(there)
    unit = worst / math.sqrt(float((worst**2).sum()))
    along = float((g * unit).sum())
    return np.array([w - alpha * (v - along * u) for w, v, u in zip(worst, g, unit, strict=True)])


@pytest.mark.parametrize(("rho", "alpha"), [(0.01, 0.3), (0.5, 1.0), (0.1, 0.0)])
def test_the_flat_gradient_is_adaptive_gsam(rho, alpha):
    with Seed(1).scope():
        a, theta = torch.randn(7, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        return grad(((a @ leaf).tanh() ** 2).sum(), leaf)[0]

    found = flat_gradient(theta, gradient(theta), gradient, rho, alpha)
    expected = numpy_gsam(theta.numpy(), lambda t: gradient(torch.from_numpy(t)).numpy(), rho, alpha)
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_experts_trained_by_gsam_take_two_gradients_of_the_same_batch():
    net, data = network(), source(6)
    start = net.init(Seed(0)).double()
    recipe = Recipe(optimizer="gsam", steps=1, batch=6, lr=0.1, augment="", rho=0.2, alpha=0.7)
    after = fit(net, Student(start), data, recipe, Seed(3)).vector
    with (Seed(3) / "epoch" / 0).scope():
        batch = data[torch.randperm(6)]

    def gradient(at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        return grad(soft_cross_entropy(net.apply(leaf, batch.images), batch.labels), leaf)[0]

    expected = start - 0.1 * flat_gradient(start, gradient(start), gradient, 0.2, 0.7)
    assert torch.allclose(after, expected, rtol=1e-10, atol=1e-12)
    plain = fit(net, Student(start), data, Recipe(steps=1, batch=6, lr=0.1, augment=""), Seed(3)).vector
    assert not torch.allclose(after, plain, atol=1e-6)


def test_gsam_of_no_size_is_plain_descent():
    net, data = network(), source(6)
    common = {"steps": 5, "batch": 4, "lr": 0.1, "augment": "color_crop"}
    flat = fit(net, Student(net.init(Seed(0))), data, Recipe(optimizer="gsam", rho=0, alpha=0, **common), Seed(3))
    plain = fit(net, Student(net.init(Seed(0))), data, Recipe(**common), Seed(3))
    assert torch.allclose(flat.vector, plain.vector, atol=1e-12)


def test_squared_error_is_half_the_mean_squared_distance():
    logits, labels = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, -2.0]])
    assert float(squared_error(logits, labels)) == pytest.approx(((1 + 4) + 4) / 2 / 2)


def test_a_teacher_labels_batches_after_augmentation_and_mixing_at_the_temperature():
    net = Network(ConvNet(width=4, depth=2), (1, 8, 8), 3)
    data, expert, seen = some_set(6, shape=(1, 8, 8)).examples(), some_teacher(), []
    recipe = Recipe(
        steps=1, batch=6, lr=0.1, augment="flip", mixing="mixup", mix_probability=1.0, online=True, temperature=4.0
    )

    def label(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return expert.logits(images, 3)

    start = net.init(Seed(0))
    after = fit(net, Student(start), data, recipe, Seed(3), teacher=label).vector
    (images,) = seen
    plain = [image for image in images if any(torch.equal(image, real) for real in data.images)]
    assert len(plain) < 3  # an image may be its own partner
    wanted = (expert.logits(images, 3) / 4).softmax(1)
    leaf = start.clone().requires_grad_()
    loss = nn.functional.kl_div((net.apply(leaf, images) / 4).log_softmax(1), wanted, reduction="batchmean")
    assert torch.allclose(after, start - 0.1 * grad(loss, leaf)[0], atol=1e-6)


@pytest.mark.parametrize("unmixed", [False, True])
def test_logits_of_a_teacher_are_learned_by_squared_error_beside_the_labels_of_the_set(unmixed):
    """As G-VBSM's released loss: torch's mse_loss over images and classes, and 0.15 times the cross entropy."""
    net = Network(ConvNet(width=4, depth=2), (1, 8, 8), 3)
    data, expert, seen = some_set(6, shape=(1, 8, 8), labels="hard").examples(), some_teacher(), []
    recipe = Recipe(
        steps=1,
        batch=6,
        lr=0.1,
        augment="",
        mixing="mixup",
        mix_probability=1.0,
        online=True,
        loss="logits",
        truth=0.15,
    )

    def label(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return expert.logits(images, 3)

    lessons = Lessons(replace(recipe, unmixed=unmixed), label)
    torch.manual_seed(0)
    batch = lessons.shown(data, lessons.draw(6))
    assert not torch.equal(batch.images, data.images)
    (labelled,) = seen
    assert torch.equal(labelled, data.images if unmixed else batch.images)
    logits = net.apply(net.init(Seed(0)), batch.images)
    wanted = nn.functional.mse_loss(logits, expert.logits(labelled, 3))
    wanted = wanted + 0.15 * cross_entropy(logits, data.labels.argmax(1))
    torch.testing.assert_close(lessons.loss(logits, batch.labels), wanted)
    plain = Lessons(replace(recipe, online=False), None)  # the whole training set, which needs no teacher
    torch.testing.assert_close(plain.loss(logits, data.labels), cross_entropy(logits, data.labels.argmax(1)))


@pytest.mark.parametrize(("count", "steps"), [(10, 2), (10, 3), (10, 7), (3, 5)])
def test_an_epoch_of_so_many_steps_is_a_part_of_a_pass_or_several(count, steps):
    recipe = Recipe(epochs=2, batch=4, epoch_steps=steps)
    torch.manual_seed(0)
    batches = recipe.batches(count)
    assert len(batches) == recipe.per_epoch(count) == steps
    passes = math.ceil(count / 4)
    for first in range(0, steps, passes):
        rows = torch.cat(batches[first : first + passes])
        assert len(rows.unique()) == len(rows), "no image twice within a pass"
        assert first + passes > steps or len(rows) == count
    torch.manual_seed(0)
    assert [len(b) for b in Recipe(epochs=1, batch=4).batches(count)] == [4] * (count // 4) + [count % 4]
