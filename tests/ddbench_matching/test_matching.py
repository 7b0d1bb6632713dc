"""dc, dsa and dm: their losses and gradients against computations written here, in float64, and what a step does."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import ddbench_matching
import numpy as np
import pytest
import torch
from ddbench_matching import dm as dm_module
from ddbench_matching import gradient as gradient_module
from ddbench_matching.common import augmented, distance, siamese
from ddbench_matching.dm import Dm
from ddbench_matching.gradient import LOOPS, Dc, Dsa, frozen_statistics, loops, match
from ddbench_networks import ConvNet
from float64 import TIGHT, close, four_cells, precise
from modules import Bare, module_of
from problems import play
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from ddbench import DSA, Curriculum, Network, Problem, Starts, UsageError
from ddbench.data.augment import Draw
from ddbench.testing import toy_task

CLASS = 36  # real images of each class on the toy task
INSTANCE, BATCH = ConvNet(width=4), ConvNet(width=4, norm="batch")
QUICK = {"batch_real": 9, "outer": 2, "inner": 1}


SITUATIONS = [{"frozen": f, "factor": d, "source": s} for f in (0, 2) for d in (1, 2) for s in (INSTANCE, BATCH)]


def shown(problem: Problem, images: Tensor, label: int) -> Tensor:
    """The images of one class that students see."""
    own = images[label * problem.ipc : (label + 1) * problem.ipc]
    if problem.decoder.factor == 2:
        own = four_cells(own).transpose(0, 1).flatten(0, 1)
    for old in problem.frozen.sets:
        own = torch.cat([own, old.images[old.labels.argmax(1) == label]])
    return own


def real_of(problem: Problem, label: int) -> Tensor:
    return problem.real[problem.real.members[label]].images


def leaf_images(problem: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3 * problem.ipc, *problem.real.shape, generator=generator).double()


def apart(dsa: DSA, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """What ``siamese`` must not be: a draw for each batch."""
    return dsa.draw(1, siamese=True)(real), dsa.draw(1, siamese=True)(synthetic)


# --------------------------------------------------------------------------------- dm


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_dm_is_the_squared_distance_of_class_means_of_features(situation):
    """One module, all classes in one batch, real and synthetic apart: what batch norm must see."""
    problem = precise(**situation)
    vector, images = problem.starts[5], leaf_images(problem)
    seen, gradient = Dm(augment=False, batch_real=1000).match(problem, vector, images)

    module, leaf = module_of(problem.network, vector).train(), images.clone().requires_grad_()
    parts = [shown(problem, leaf, c) for c in range(3)]
    synthetic = module.features(torch.cat(parts))
    with torch.no_grad():
        real = module.features(torch.cat([real_of(problem, c) for c in range(3)]))
    expected, first = torch.tensor(0.0).double(), 0
    for c in range(3):
        mean = sum(synthetic[first + i] for i in range(len(parts[c]))) / len(parts[c])
        wanted = sum(real[c * CLASS + i] for i in range(CLASS)) / CLASS
        expected = expected + sum((mean[j] - wanted[j]) ** 2 for j in range(len(mean)))
        first += len(parts[c])
    assert close(seen, expected.detach())
    assert close(gradient, grad(expected, leaf)[0])


def test_dm_gives_the_same_numbers_for_any_grouping_of_classes(monkeypatch):
    problem = precise(INSTANCE, ipc=3)
    found = []
    for numbers in (1, 2 * 9 * 64, 10**9):  # one class at a time, two, all
        monkeypatch.setattr(dm_module, "NUMBERS_AT_ONCE", numbers)
        state, trail = play(Dm(batch_real=9), problem, 2)
        found.append((state.images, [numbers["loss"] for numbers in trail]))
    for images, losses in found[1:]:
        assert losses == pytest.approx(found[0][1], rel=TIGHT)
        assert close(images, found[0][0])


def test_dm_groups_classes_unless_there_is_batch_norm(monkeypatch):
    monkeypatch.setattr(dm_module, "NUMBERS_AT_ONCE", 2 * 9 * 64)
    groups = {s.norm: [list(g) for g in dm_module._groups(precise(source=s), 9)] for s in (INSTANCE, BATCH)}
    assert groups == {"instance": [[0, 1], [2]], "batch": [[0, 1, 2]]}


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_dm_augments_real_and_synthetic_images_of_a_class_alike(operation, monkeypatch):
    """When a class's synthetic images are all its real ones, the two means agree under one draw, and no other."""
    problem = replace(precise(INSTANCE, ipc=CLASS), augment=operation)
    images = torch.cat([real_of(problem, c) for c in range(3)])
    vector = problem.starts[0]
    with problem.seed.scope():
        loss, _ = Dm(batch_real=CLASS).match(problem, vector, images)
    assert loss < 1e-20
    monkeypatch.setattr(dm_module, "augmented", lambda batches, _: [DSA(operation).draw(1)(b) for b in batches])
    with problem.seed.scope():
        losses = [float(Dm(batch_real=CLASS).match(problem, vector, images)[0]) for _ in range(4)]
    assert max(losses) > 1e-6


def test_a_siamese_draw_is_one_operation_with_one_set_of_parameters_for_both_batches():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 8, 8, generator=generator)
    real, synthetic = image.expand(5, -1, -1, -1), image.expand(2, -1, -1, -1)
    torch.manual_seed(0)
    changed = 0
    for _ in range(20):
        a, b = siamese(DSA("color_crop_cutout_scale_rotate"), real, synthetic)
        for other in (*a, *b):
            assert torch.allclose(other, a[0], atol=1e-6)
        changed += not torch.equal(a[0], image[0])
    assert changed > 10


def test_dm_draws_an_augmentation_for_each_class(monkeypatch):
    drawn = []

    def counted(batches: list[Tensor], draws: list[Draw]) -> list[Tensor]:
        drawn.append(([len(batch) for batch in batches], [len(draw.parameters) for draw in draws]))
        return augmented(batches, draws)

    monkeypatch.setattr(dm_module, "augmented", counted)
    problem = precise(INSTANCE, frozen=1)
    play(Dm(batch_real=9), problem, 2)
    assert drawn == [([9] * 3, [1] * 3), ([3] * 3, [1] * 3)] * 2
    drawn.clear()
    play(Dm(batch_real=9, augment=False), problem, 1)
    assert drawn == [([9] * 3, [0] * 3), ([3] * 3, [0] * 3)]


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "diffaug:color_crop_flip", ""])
def test_batches_augmented_together_are_to_the_bit_those_augmented_one_by_one(strategy):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2 + i, 3, 8, 8, generator=generator).requires_grad_() for i in range(8)]
    torch.manual_seed(0)
    for _ in range(5):
        draws = [DSA(strategy).draw(1, siamese=True) for _ in batches]
        together = augmented(batches, draws)
        for batch, draw, seen in zip(batches, draws, together, strict=True):
            alone = draw(batch)
            assert torch.equal(seen, alone)
            weights = torch.randn(alone.shape, generator=generator)
            assert torch.equal(
                grad((seen * weights).sum(), batch, retain_graph=True)[0],
                grad((alone * weights).sum(), batch)[0] if strategy else weights,
            )


def test_operations_of_an_iteration_of_dm_hardly_grow_with_the_classes():
    """Counted as torch dispatches them: what a GPU launches."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    batches = [torch.randn(4, 3, 8, 8) for _ in range(100)]
    counts = []
    for classes in (10, 100):
        draws = [Draw("crop", torch.rand(1, 2)) for _ in range(classes)]
        with Count():
            Count.calls = 0
            augmented(batches[:classes], draws)
            counts.append(Count.calls)
    assert counts[1] < counts[0] + 4 * 90, "no more than views of what is together for each class"


def test_dm_asks_for_a_network_with_features():
    with pytest.raises(UsageError, match="'bare' has no features"):
        play(Dm(batch_real=9), precise(Bare()), 1)


# --------------------------------------------------------------------------------- distances of gradients


def gradients_of(network: Network) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(network.parameters, generator=generator).double() for _ in range(2))  # type: ignore


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "none"])
def test_dc_sums_one_minus_cosine_over_output_channels_of_weights(norm):
    """As the released code writes it: each tensor as (out, rest), except those of one dimension, which add nothing."""
    network = Network(ConvNet(width=4, norm=norm), (3, 8, 8), 5, dtype=torch.float64)
    a, b = gradients_of(network)
    expected, channels, first = 0.0, 0, 0
    module = network.source.build((3, 8, 8), 5)
    for parameter in module.parameters():
        size, shape = parameter.numel(), parameter.shape
        x, y = (g[first : first + size].numpy().reshape(shape[0], -1) for g in (a, b))
        first += size
        if len(shape) == 1:
            continue
        for one, other in zip(x, y, strict=True):
            expected += 1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-6)
            channels += 1
    assert first == network.parameters
    assert channels == 4 + 4 + 5 + (4 * 4 if norm == "layer" else 0)
    assert float(distance(network, a, b, "ours")) == pytest.approx(expected, rel=1e-12)


class Table(nn.Module):
    """A linear classifier beside a buffer of two dimensions."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(6, 2))
        self.out = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1)) * self.table.mean()


@dataclass(frozen=True)
class WithTable:
    name = "with-table"

    def build(self, shape, classes):
        return Table(shape, classes)


def test_distances_count_no_buffer():
    network = Network(WithTable(), (3, 8, 8), 5, dtype=torch.float64)
    assert network.length == network.parameters + 12
    a, b = gradients_of(network)
    x, y = (g[: 5 * 192].view(5, 192).numpy() for g in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    assert float(distance(network, a, b, "ours")) == pytest.approx((1 - (x * y).sum(1) / (norms + 1e-6)).sum())
    whole = torch.cat([a, torch.ones(12).double()]), torch.cat([b, torch.zeros(12).double()])
    for metric in ("ours", "mse", "cos"):
        assert distance(network, *whole, metric) == distance(network, a, b, metric)


def test_other_distances_count_every_parameter():
    network = Network(INSTANCE, (3, 8, 8), 5, dtype=torch.float64)
    a, b = gradients_of(network)
    x, y = a.numpy(), b.numpy()
    cosine = 1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y) + 1e-6)
    assert float(distance(network, a, b, "mse")) == pytest.approx(float(((x - y) ** 2).sum()), rel=1e-12)
    assert float(distance(network, a, b, "cos")) == pytest.approx(float(cosine), rel=1e-12)


def test_distances_have_finite_gradients_where_channels_are_dead():
    network = Network(INSTANCE, (3, 8, 8), 5, dtype=torch.float64)
    a, b = gradients_of(network)
    for metric in ("ours", "cos", "mse"):
        for wanted, leaf in ((a, torch.zeros_like(b)), (torch.zeros_like(a), b.clone())):
            leaf.requires_grad_()
            loss = distance(network, wanted, leaf, metric)
            assert loss.isfinite()
            assert grad(loss, leaf)[0].isfinite().all()
    assert float(distance(network, a, torch.zeros_like(b), "ours")) == 13  # 1 for each of 4 + 4 + 5 channels


# --------------------------------------------------------------------------------- dc and dsa: one matching step


def by_modules(problem: Problem, module: nn.Module, images: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The sum of distances over classes and its gradient by ``images``, from a torch module's own parameters."""
    leaf, total = images.clone().requires_grad_(), torch.tensor(0.0).double()
    parameters = list(module.parameters())
    for c in range(3):
        real, synthetic = real_of(problem, c), shown(problem, leaf, c)
        wanted = grad(cross_entropy(module(real), torch.full((len(real),), c)), parameters)
        loss = cross_entropy(module(synthetic), torch.full((len(synthetic),), c))
        made = grad(loss, parameters, create_graph=True)
        if metric == "ours":
            for x, y in zip(wanted, made, strict=True):
                if x.ndim > 1:
                    for one, other in zip(x.flatten(1), y.flatten(1), strict=True):
                        total = total + 1 - one @ other / (one.norm() * other.norm() + 1e-6)
        else:
            x, y = (torch.cat([g.flatten() for g in gs]) for gs in (wanted, made))
            squared = (x - y).square().sum()
            total = total + (squared if metric == "mse" else 1 - x @ y / (x.norm() * y.norm() + 1e-6))
    return total.detach(), grad(total, leaf)[0]


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_matching_sums_the_distance_of_gradients_over_classes(situation):
    problem = precise(**situation)
    vector, images = problem.starts[5], leaf_images(problem)
    for metric in ("ours", "mse", "cos"):
        torch.manual_seed(0)
        seen, gradient = match(Dc(batch_real=1000, metric=metric), problem, vector, images, DSA())
        torch.manual_seed(0)
        module = module_of(problem.network, frozen_statistics(problem, vector)).eval()
        expected, wanted = by_modules(problem, module, images, metric)
        assert close(seen, expected), metric
        assert close(gradient, wanted), metric


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
def test_batch_norm_is_frozen_to_the_statistics_of_16_real_images_per_class(momentum):
    @dataclass(frozen=True)
    class Momentous:
        name = "momentous"

        def build(self, shape, classes):
            net = ConvNet(width=4, norm="batch").build(shape, classes)
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = momentum
            return net

    problem = precise(source=Momentous())
    vector = problem.starts[0]
    vector[problem.network.parameters :] += torch.rand(problem.network.length - problem.network.parameters)
    torch.manual_seed(4)
    seen = frozen_statistics(problem, vector)
    torch.manual_seed(4)
    real = torch.cat([problem.real.draw(16, [c]).images for c in range(3)])
    module = module_of(problem.network, vector).train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0  # a momentum of one keeps nothing but the batch's statistics
    module(real)
    layers = problem.network.layers(seen)
    names = [name for name, _ in module.named_buffers() if name.endswith(("mean", "var"))]
    assert len(names) == 4
    for name, buffer in module.named_buffers():
        if name in names:
            assert close(layers[name], buffer, 1e-7), name
    assert torch.equal(seen[: problem.network.parameters], vector[: problem.network.parameters])


def test_networks_without_batch_norm_draw_nothing_for_its_statistics():
    problem = precise(INSTANCE)
    before, vector = torch.get_rng_state(), problem.starts[0]
    assert frozen_statistics(problem, vector) is vector
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "scale", "rotate"])
def test_dsa_augments_real_and_synthetic_images_of_a_class_alike(operation, monkeypatch):
    """When a class's synthetic images are all its real ones, their gradients agree under one draw."""
    problem = replace(precise(INSTANCE, ipc=CLASS), augment=operation)
    images = torch.cat([real_of(problem, c) for c in range(3)])
    method, vector = Dsa(batch_real=CLASS, metric="mse"), problem.starts[0]
    torch.manual_seed(0)
    loss, _ = match(method, problem, vector, images, problem.dsa)
    assert loss < 1e-20
    monkeypatch.setattr(gradient_module, "siamese", apart)
    losses = [float(match(method, problem, vector, images, problem.dsa)[0]) for _ in range(4)]
    assert max(losses) > 1e-9


# --------------------------------------------------------------------------------- dc and dsa: an iteration


@pytest.mark.parametrize("metric", ["ours", "mse"])
def test_an_iteration_is_one_step_per_match_and_training_on_the_synthetic_set_in_between(metric):
    """Against torch.optim.SGD on images and on a module, with all images in each batch and nothing random."""
    problem = precise(INSTANCE, frozen=1)
    method = Dc(
        outer=3,
        inner=4,
        batch_real=1000,
        batch_net=1000,
        metric=metric,
        lr_img=0.7,
        momentum=0.6,
        lr_net=0.05,
        pix_init="real",
    )
    torch.manual_seed(11)
    begun = method.init(problem)
    torch.manual_seed(12)
    module = module_of(problem.network, problem.starts.draw())
    images = begun.images.clone().requires_grad_()
    outer = torch.optim.SGD([images], lr=0.7, momentum=0.6)
    inner, losses = torch.optim.SGD(module.parameters(), lr=0.05), []
    for t in range(3):
        loss, images.grad = by_modules(problem, module, images.detach(), metric)
        losses.append(float(loss) / 3)
        outer.step()
        for _ in range(4 if t < 2 else 0):
            parts = [shown(problem, images.detach(), c) for c in range(3)]
            inner.zero_grad()
            cross_entropy(module(torch.cat(parts)), torch.arange(3).repeat_interleave(len(parts[0]))).backward()
            inner.step()
    torch.manual_seed(12)
    state, numbers = method.step(problem, begun, 0)
    assert float(numbers["loss"]) == pytest.approx(np.mean(losses), rel=TIGHT)
    assert close(state.images, images.detach())


def trained(monkeypatch) -> list[tuple[int, Any]]:
    """Fill a list with (images, recipe) of every training of a network."""
    calls, fit = [], gradient_module.fit

    def spied(network, student, source, recipe, seed, **more):
        assert more == {"what": None}
        assert student.state == ()
        calls.append((len(source), recipe))
        return fit(network, student, source, recipe, seed, **more)

    monkeypatch.setattr(gradient_module, "fit", spied)
    return calls


def test_the_network_learns_frozen_and_new_decoded_images_after_every_match_but_the_last(monkeypatch):
    calls = trained(monkeypatch)
    problem = precise(INSTANCE, ipc=2, frozen=1, factor=2)
    play(Dsa(**QUICK | {"outer": 3, "inner": 5}), problem, 2)
    assert [n for n, _ in calls] == [3 + 3 * 2 * 4] * 4
    recipe = calls[0][1]
    assert (recipe.epochs, recipe.steps, recipe.batch, recipe.lr) == (5, None, 256, 0.01)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.schedule) == ("sgd", 0, 0, "constant")
    assert recipe.augment == problem.augment
    calls.clear()
    play(Dc(**QUICK), problem, 1)
    play(replace(Dsa(**QUICK), augment=False), problem, 1)
    assert [recipe.augment for _, recipe in calls] == ["", ""]


def test_loops_are_the_published_ones_and_lie_in_between_for_other_ipc(monkeypatch):
    assert {ipc: loops(ipc) for ipc in LOOPS} == LOOPS
    assert LOOPS == {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert loops(5) == (5, 23)
    assert loops(15) == (15, 38)
    assert loops(51) == loops(1000) == (50, 10)
    assert [loops(ipc)[0] for ipc in range(1, 51)] == list(range(1, 51))
    inner = [loops(ipc)[1] for ipc in range(1, 51)]
    assert inner[:10] == sorted(inner[:10])
    assert inner[9:] == sorted(inner[9:], reverse=True)
    calls = trained(monkeypatch)
    play(Dc(batch_real=9), precise(INSTANCE, ipc=1, frozen=1), 1)  # two images per class in all
    assert [recipe.epochs for _, recipe in calls] == [loops(2)[1]]
    calls.clear()
    play(Dc(batch_real=9, outer=3), precise(INSTANCE, ipc=2), 1)
    assert [recipe.epochs for _, recipe in calls] == [loops(2)[1]] * 2


def test_dsa_without_augmentation_from_noise_is_dc():
    assert [f.name for f in fields(Dsa)] == [*(f.name for f in fields(Dc)), "augment"]
    problem = precise(INSTANCE)
    one = play(Dc(**QUICK), problem, 2)
    other = play(Dsa(**QUICK, augment=False, pix_init="noise"), problem, 2)
    assert one[1] == other[1]
    assert torch.equal(one[0].images, other[0].images)
    assert play(Dsa(**QUICK, pix_init="noise"), problem, 2)[1] != one[1]


# --------------------------------------------------------------------------------- all three

METHODS = [Dc(**QUICK), Dsa(**QUICK), Dm(batch_real=9)]
BY_NAME = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


@BY_NAME
def test_images_start_as_published_and_as_asked_for(method):
    problem = precise(INSTANCE)
    real = problem.sample().images
    with problem.seed.scope():
        default, noise = method.init(problem).images, replace(method, pix_init="noise").init(problem).images
    assert torch.equal(default, real) is (method.name != "dc")
    assert not torch.equal(noise, real)
    assert 0.8 < float(noise.std()) < 1.2
    assert torch.equal(replace(method, pix_init="real").init(problem).images, real)


@BY_NAME
def test_every_iteration_has_a_new_network_of_the_problems_starts(method):
    problem, asked = precise(INSTANCE), []

    class Spy:
        network, taught, count = problem.network, problem.starts.taught, problem.starts.count
        draw = Starts.draw

        def __getitem__(self, index):
            asked.append(index)
            return problem.starts[index]

    play(method, replace(problem, starts=Spy()), 4)
    assert len(asked) == len(set(asked)) == 4


@BY_NAME
def test_a_class_with_fewer_real_images_than_asked_for_gives_all_it_has(method):
    problem = precise(INSTANCE)
    keep = torch.cat([m[:n] for m, n in zip(problem.real.members, (2, 20, 36), strict=True)])
    few = replace(problem, real=problem.real.subset(keep))
    state, trail = play(replace(method, batch_real=25), few, 1)
    assert np.isfinite([numbers["loss"] for numbers in trail]).all()
    assert state.images.isfinite().all()


@BY_NAME
def test_frozen_images_change_the_gradient_and_stay(method):
    problem = precise(INSTANCE, frozen=2)
    before = problem.frozen.sets[0].digest
    state, _ = play(method, problem, 1)
    alone, _ = play(method, replace(problem, frozen=Curriculum()), 1)
    assert problem.frozen.sets[0].digest == before
    assert len(state.images) == 6
    assert not torch.equal(state.images, alone.images)


def test_images_of_dm_move_by_sgd_with_momentum():
    """The velocity is the gradient plus a share of the last one; dc's and dsa's is tested above, against torch's."""
    problem, method = precise(INSTANCE), Dm(batch_real=9, momentum=0.5, lr_img=0.25)
    first, second = (play(method, problem, n)[0] for n in (1, 2))
    velocity = (problem.sample().images.double() - first.images) / 0.25
    assert close(first.momentum[0], velocity, 1e-6)
    with (problem.seed / "step" / 1).scope():
        free, _ = replace(method, momentum=0.0).step(problem, replace(first, momentum=()), 1)
    assert close((first.images - second.images) / 0.25, (first.images - free.images) / 0.25 + 0.5 * velocity, 1e-6)


LEARNING = [Dc(steps=20, **QUICK, lr_img=2.0), Dsa(steps=20, **QUICK, lr_img=2.0), Dm(steps=30, batch_real=36)]


@pytest.mark.parametrize("method", LEARNING, ids=lambda m: m.name)
def test_the_loss_falls(method):
    """Before and after, in the same networks that were not used in between, on the same real images."""
    problem = toy_task(ipc=2)
    once = method if method.name == "dm" else replace(method, outer=1)

    def loss(state: Any) -> float:
        found = []
        for k in range(6):
            with (problem.seed / "measure" / k).scope():
                found.append(float(once.step(problem, replace(state), k)[1]["loss"]))
        return float(np.mean(found))

    begun, _ = play(method, problem, 0)
    ended, _ = play(method, problem, method.steps)
    assert loss(ended) < 0.8 * loss(begun)


@BY_NAME
def test_results_are_stored_images_with_hard_labels_in_class_order(method):
    problem = precise(INSTANCE, ipc=2, factor=2)
    state, _ = play(method, problem, 1)
    made = method.result(problem, state)
    assert made.images.shape == (6, 1, 8, 8)
    assert torch.equal(made.labels.argmax(1), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert (made.label_type, made.label_kind, made.lr) == ("hard", "probability", None)
    assert made.images.data_ptr() != state.images.data_ptr()


def test_recipes_hold_the_published_settings():
    text = Path(ddbench_matching.__file__).with_name("recipes.toml").read_text()
    found = {}
    for recipe in tomllib.loads(text)["recipe"]:
        if recipe.get("name") in ("dc", "dsa", "dm") and "cifar" in str(recipe["match"]["dataset"]):
            given = recipe["matcher"]
            assert (given["batch_real"], given["momentum"]) == (256, 0.5)
            found.setdefault(recipe["name"], set()).add((given["steps"], given["lr_img"], given["pix_init"]))
    assert found == {
        "dc": {(1000, 0.1, "noise")},
        "dsa": {(1000, 0.1, "real")},
        "dm": {(20000, 1.0, "real"), (20000, 10.0, "real")},
    }
