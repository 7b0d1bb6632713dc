"""IDC from the inside: which gradients it matches, with what, and how images and networks move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ddbench_matching import idc
from ddbench_matching.box import matching_augmentation, pixel_unit
from ddbench_matching.idc import Idc, class_gradient, distance, matched_weights
from ddbench_networks.convnet import ConvNet
from ddbench_networks.vit import ViT
from modules import Bare
from problems import pixels, play, second_stage
from torch import Tensor, nn

from ddbench import Curriculum, Network, Preprocessing, Problem, Seed, SyntheticSet, UsageError
from ddbench.plugins import registry
from ddbench.problem.decode import Decoder
from ddbench.testing import toy_task

SMALL = Idc(inner=2, n_data=20, batch_net=8, batch_real=9)
EXACT = Idc(inner=100, n_data=0, batch_real=1000, augment="")  # the whole class, as it is, in one network


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def problem(folder) -> Problem:
    return toy_task(ipc=2, folder=folder)


# --------------------------------------------------------------------------------- what is matched


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_a_convnet_is_matched_in_its_convolutions_alone(norm):
    network = Network(ConvNet(width=4, norm=norm), (3, 16, 16), 5)
    mask = matched_weights(network)
    assert len(mask) == network.parameters
    marked = torch.cat([mask.float(), torch.zeros(network.length - network.parameters)])
    module = network.source.build((3, 16, 16), 5)
    convolutions = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 2
    found = {name for name, part in network.layers(marked).items() if part.any()}
    assert found == convolutions
    assert all(part.all() for name, part in network.layers(marked).items() if name in convolutions)


def test_of_linear_layers_the_classifier_alone_is_left_out():
    network = Network(ViT(dim=12, heads=2, depth=1), (3, 16, 16), 5)
    layers = network.layers(matched_weights(network).float())
    twos = [name for name, part in layers.items() if part.ndim == 2]
    heads = [name for name in twos if not layers[name].any()]
    assert len(twos) > len(heads) == 1
    assert layers[heads[0]].shape == (5, 12)
    assert all(not part.any() for part in layers.values() if part.ndim == 1)


def test_a_network_that_is_a_classifier_alone_is_refused():
    with pytest.raises(UsageError, match="'bare' has no weights below its classifier"):
        matched_weights(Network(Bare(), (1, 4, 4), 3))


@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_the_distance_is_that_of_loops_over_modules(metric):
    """In float64, against ``backward`` of a module and sums of single numbers."""
    network = Network(ConvNet(width=3), (2, 8, 8), 4, dtype=torch.float64)
    with Seed(1).scope():
        built = network.source.build((2, 8, 8), 4).double()
        real, synthetic = torch.randn(5, 2, 8, 8).double(), torch.randn(3, 2, 8, 8).double()

    def gradients(images: Tensor) -> dict[str, Tensor]:
        built.zero_grad()
        nn.CrossEntropyLoss()(built(images), torch.full((len(images),), 2)).backward()
        return {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}

    one, other, expected = gradients(real), gradients(synthetic), 0.0
    for name, module in built.named_modules():
        if isinstance(module, nn.Conv2d):
            for a, b in zip(one[f"{name}.weight"].flatten(), other[f"{name}.weight"].flatten(), strict=True):
                expected += float(a - b) ** 2 if metric == "mse" else abs(float(a - b))
    vector, mask = network.vector(built), matched_weights(network).double()
    g_real, g_syn = (class_gradient(network, vector, x, 2) for x in (real, synthetic))
    assert expected > 1e-3
    assert float(distance(g_real, g_syn, mask, metric)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_its_derivative_by_an_image_is_that_of_finite_differences(metric):
    network = Network(ConvNet(width=3), (1, 8, 8), 3, dtype=torch.float64)
    vector, mask = network.init(Seed(0)), matched_weights(network).double()
    with Seed(1).scope():
        real, images, direction = (torch.randn(4, 1, 8, 8).double() for _ in range(3))
    g_real = class_gradient(network, vector, real, 0)

    def value(x: Tensor) -> Tensor:
        return distance(g_real, class_gradient(network, vector, x, 0, differentiable=True), mask, metric)

    leaf = images.clone().requires_grad_()
    slope = float((torch.autograd.grad(value(leaf), leaf)[0] * direction).sum())
    step = 1e-6
    above, below = (value(images + sign * step * direction).item() for sign in (1, -1))
    finite = (above - below) / (2 * step)
    assert slope == pytest.approx(finite, rel=1e-5)
    assert abs(slope) > 1e-6


def test_matching_alike_images_costs_nothing_since_both_share_a_draw_of_the_augmentation(problem):
    count = len(problem.real.members[1])
    everything = replace(problem, ipc=count)
    images = problem.real[problem.real.members[1]].images
    method = replace(EXACT, augment="color_crop_cutout")
    vector = problem.starts[0]
    with Seed(0).scope():
        loss, _ = method.match(everything, vector, images, 1)
        apart, _ = method.match(everything, vector, images.roll(1, 3), 1)
    assert matching_augmentation(problem, method.augment).operations == ["color", "crop", "cutout"]
    assert float(loss) < 1e-8 < 1e-3 < float(apart)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_synthetic_batch_is_what_students_see_of_the_class_frozen_images_included(problem, factor):
    task = second_stage(replace(problem, decoder=Decoder(factor)))
    images, vector = task.sample().images, task.starts[0]
    loss, gradient = EXACT.match(task, vector, images[2:4], 1)
    shown = torch.cat([task.decoder(task.frozen.sets[0].images[2:4]), task.decoder(images[2:4])])
    assert len(shown) == 4 * factor**2
    real = task.real[task.real.members[1]].images
    g_real, g_syn = (class_gradient(task.network, vector, x, 1) for x in (real, shown))
    expected = distance(g_real, g_syn, matched_weights(task.network), "mse")
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert gradient.shape == (2, *task.real.shape)
    assert gradient.any()


def test_a_large_synthetic_batch_is_sampled(problem, monkeypatch):
    sizes, original = [], idc.class_gradient

    def spy(network, vector, images, label, **more):
        sizes.append(len(images))
        return original(network, vector, images, label, **more)

    monkeypatch.setattr(idc, "class_gradient", spy)
    task = replace(problem, decoder=Decoder(2))
    method = replace(EXACT, batch_syn=5, batch_real=7)
    _, gradient = method.match(task, task.starts[0], task.sample().images[:2], 0)
    assert sizes == [7, 5]
    cells = gradient[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)  # (image, row, column, pixels)
    assert int((cells != 0).any(3).sum()) == 5


def test_images_that_a_sample_leaves_out_stay(problem):
    """With many frozen images, a small sample may hold none of the new ones."""
    task = second_stage(problem)
    method = replace(EXACT, batch_syn=1)
    with Seed(0).scope():
        gradients = [method.match(task, task.starts[0], task.sample().images[:2], 0)[1] for _ in range(8)]
    moved = {int((g.flatten(1) != 0).any(1).sum()) for g in gradients}
    assert moved == {0, 1}


def test_augmentation_keeps_to_what_the_dataset_allows(problem):
    assert matching_augmentation(replace(problem, augment="crop_scale"), "color_crop_cutout").operations == ["crop"]
    assert matching_augmentation(replace(problem, augment=""), "color_crop_cutout").operations == []
    made = matching_augmentation(replace(problem, augment="color_crop_flip"), "color_crop_cutout_flip")
    assert made.composed
    assert made.operations == ["color", "crop", "flip"]
    with pytest.raises(UsageError, match="unknown augmentation 'blur'"):
        matching_augmentation(problem, "blur")


# --------------------------------------------------------------------------------- how images move


@pytest.mark.parametrize("earlier", [False, True])
def test_images_move_as_pixels_do_under_one_sgd_that_steps_after_each_class(problem, monkeypatch, earlier):
    """Against torch.optim on pixels in [0, 1], whose learning rate is that of the paper, times the stage's ipc / 10."""
    task = second_stage(problem) if earlier else problem
    generator = torch.Generator().manual_seed(0)
    pushes = [torch.randn(2, *task.real.shape, generator=generator) for _ in range(9)]
    given = iter(pushes)
    monkeypatch.setattr(Idc, "match", lambda self, problem, vector, images, label, *_: (torch.ones(()), next(given)))
    method = replace(EXACT, lr_img=0.01, momentum=0.5)
    start = method.init(task).images
    state, _ = play(method, task, 3)

    parameter = nn.Parameter(pixels(task, start))
    descent = torch.optim.SGD([parameter], lr=0.01 * 2 / 10, momentum=0.5)
    std = task.real.preprocessing.std
    assert std is not None
    for k, push in enumerate(pushes):
        gradient = torch.zeros_like(parameter)
        gradient[2 * (k % 3) : 2 * (k % 3) + 2] = push / std.view(1, -1, 1, 1)
        parameter.grad = gradient
        descent.step()
    assert (state.images - start).abs().max() > 0.01
    assert torch.allclose(pixels(task, state.images), parameter.detach(), atol=1e-5)


def test_images_are_clamped_to_pixels_where_the_network_is_renewed_and_in_results(problem, monkeypatch):
    monkeypatch.setattr(
        Idc, "match", lambda self, problem, vector, images, label, *_: (torch.ones(()), torch.randn(images.shape) * 100)
    )
    method = replace(SMALL, n_data=0, lr_img=1.0)
    before, _ = play(method, problem, 1)
    assert pixels(problem, before.images).min() < -0.5
    after, _ = play(method, problem, 2)
    for images in (after.images, method.result(problem, before).images):
        found = pixels(problem, images)
        assert float(found.min()) == pytest.approx(0, abs=1e-5)
        assert float(found.max()) == pytest.approx(1, abs=1e-5)


def test_whitened_images_are_not_clamped(problem):
    zca = Preprocessing.fit(problem.real.pixels, zca=True)
    task = replace(problem, real=replace(problem.real, preprocessing=zca))
    images = 100 * torch.randn(2, *task.real.shape)
    assert torch.equal(task.real.preprocessing.clamp(images), images)
    assert task.real.preprocessing.clamp(images).data_ptr() != images.data_ptr()
    assert pixel_unit(task) == 1.0


def test_descent_brings_gradients_together(problem):
    _, trail = play(replace(EXACT, lr_img=0.1), problem, 12)
    assert trail[-1]["loss"] < 0.6 * trail[0]["loss"]


# --------------------------------------------------------------------------------- how the network moves


def test_the_network_trains_on_real_images_and_keeps_its_momentum(problem, monkeypatch):
    seen, original = [], idc.fit

    def spy(network, student, source, recipe, seed, **more):
        seen.append((student, recipe))
        assert source is problem.real
        return original(network, student, source, recipe, seed, **more)

    monkeypatch.setattr(idc, "fit", spy)
    method = replace(SMALL, inner=3)
    _, _ = play(method, problem, 3)
    assert len(seen) == 2  # the third iteration ends with another network
    for _, recipe in seen:
        assert (recipe.steps, recipe.batch, recipe.lr) == (3, 8, 0.01)  # 20 images in batches of 8
        assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
        assert (recipe.mixing, recipe.mix_probability) == ("cutmix", 0.5)
        assert recipe.augment == "diffaug:color_crop"  # cutout is left out where CutMix follows
    (first, _), (second, _) = seen
    assert not first.state[0].any()
    assert second.state[0].any()
    assert not torch.equal(first.vector, second.vector)
    assert "cutout" in replace(method, mix_probability=0.0)._recipe(problem, steps=1).augment


def test_the_network_is_renewed_every_few_iterations(problem):
    fresh = {i: problem.starts[i] for i in range(3)}
    vectors = [play(replace(SMALL, n_data=0), problem, steps)[0].vector for steps in range(5)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[1], vectors[2])
    assert torch.equal(vectors[2], vectors[3])
    assert not torch.equal(vectors[3], vectors[4])
    assert len(vectors[0]) == len(fresh[0])


def test_early_networks_have_trained_before_they_are_matched_in(problem):
    state = play(replace(SMALL, early=1), problem, 0)[0]
    plain = play(SMALL, problem, 0)[0]
    assert not torch.equal(state.vector, plain.vector)
    assert state.net_momentum[0].any()
    assert not plain.net_momentum[0].any()


def test_a_network_of_a_later_stage_is_taught_for_every_outer_iteration(problem, monkeypatch):
    """As PDD's code for IDC does: six outer iterations and the first network are seven taught networks."""
    scheduler = registry().get("scheduler", "pdd").cls(stages=2)
    first = scheduler.next(problem, Curriculum())
    assert first is not None
    examples = first.sample()
    done = Curriculum((SyntheticSet(examples.images, examples.labels),), scheduler.phases(1))
    second = scheduler.next(problem, done)
    assert second is not None
    seen = []
    draw = type(second.starts).draw
    monkeypatch.setattr(type(second.starts), "draw", lambda self: seen.append(draw(self)) or seen[-1])
    play(replace(SMALL, inner=1), second, 6)
    assert len({tuple(vector.tolist()) for vector in seen}) == len(seen) == 7


def test_under_pdd_networks_start_where_students_of_the_earlier_stage_ended(problem):
    scheduler = registry().get("scheduler", "pdd").cls(stages=2)
    first = scheduler.next(problem, Curriculum())
    assert first is not None
    examples = first.sample()
    done = Curriculum((SyntheticSet(examples.images, examples.labels),), scheduler.phases(1))
    second = scheduler.next(problem, done)
    assert second is not None
    second = replace(second, starts=replace(second.starts, count=2))
    state, _ = play(replace(SMALL, inner=1), second, 1)
    assert any(torch.equal(state.vector, second.starts[i]) for i in range(2))


def test_the_same_seed_gives_the_same_iterations(problem):
    (one, trail), (other, again) = play(SMALL, problem, 3), play(SMALL, problem, 3)
    assert trail == again
    assert torch.equal(one.images, other.images)
    assert play(SMALL, replace(problem, seed=problem.seed / "other"), 3)[1] != trail
