"""RDED and SRe2L from the inside: crops, tiles and ranks, batch-norm statistics, labels, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_decoupled.crops import cut, draw_boxes, surround, tile
from ddbench_decoupled.rded import Rded, rank
from ddbench_decoupled.sre2l import Squeezed, Sre2l, batches
from ddbench_decoupled.teachers import batch_normed
from ddbench_networks import LeNet, ResNet18
from noise import noise
from problems import begin, pixels, play, solve, solve_in_stages, toy
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from ddbench import Curriculum, Network, Pixels, Problem, RealData, Recipe, Seed, SyntheticSet, Teacher, UsageError
from ddbench.plugins import registry
from ddbench.run.prepare import prepared

QUICK: dict[str, Any] = {"teacher_epochs": 2, "teacher_batch": 20}
RDED = Rded(**QUICK, crops=3, smallest=0.2)
SRE2L = Sre2l(**QUICK, steps=6)


def ready(method: Any, ipc: int = 2, **more: Any) -> Problem:
    """The toy task with the teacher that a method asks for."""
    problem = toy(ipc, **more)
    return prepared(problem, method.needs(problem))


# --------------------------------------------------------------------------------- crops and tiles


@pytest.mark.parametrize("sides", [(8, 8), (6, 11)])
def test_boxes_lie_inside_and_their_shares_are_uniform(sides):
    torch.manual_seed(0)
    top, left, height, width = draw_boxes(20000, sides, 0.25).unbind(1)
    assert bool((top >= 0).all() & (left >= 0).all())
    assert bool((top + height <= sides[0]).all() & (left + width <= sides[1]).all())
    # a side is round(s sqrt(a)) for a uniform share a of at least 1/4
    for length, side in ((height, sides[0]), (width, sides[1])):
        for value in range(1, side + 1):
            low, high = (min(max(((value + e) / side) ** 2, 0.25), 1) for e in (-0.5, 0.5))
            assert float((length == value).double().mean()) == pytest.approx((high - low) / 0.75, abs=0.015)
    tops = torch.bincount(top[height == sides[0] - 2], minlength=3).double()
    assert tops.div(tops.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.05)


def test_boxes_are_those_of_torchvision_on_square_images():
    torch.manual_seed(0)
    own = draw_boxes(20000, (32, 32), 0.08)[:, 2]
    crop = v2.RandomResizedCrop(32, ratio=(1, 1))
    blank = torch.empty(1, 32, 32)
    theirs = torch.tensor([crop.make_params([blank])["height"] for _ in range(5000)])
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert float(own.double().quantile(q)) == pytest.approx(float(theirs.double().quantile(q)), abs=1)
    assert float(own.double().mean()) == pytest.approx(float(theirs.double().mean()), abs=0.2)


def test_whole_images_are_cut_as_they_are():
    pixels = noise(5, 3, 7, 9)
    torch.manual_seed(0)
    assert torch.equal(cut(pixels, draw_boxes(5, (7, 9), 1.0), (7, 9)), pixels)


@pytest.mark.parametrize("size", [(8, 8), (4, 4)])
def test_crops_are_resized_as_torchvision_does_with_antialiasing(size):
    torch.manual_seed(0)
    pixels, boxes = noise(40, 3, 8, 8), draw_boxes(40, (8, 8), 0.05)
    assert len(boxes[:, 2].unique()) > 4
    made = cut(pixels, boxes, size)
    for image, box, found in zip(pixels, boxes.tolist(), made, strict=True):
        wanted = v2.functional.resized_crop(image.double(), *box, size=list(size), antialias=True)
        assert float((wanted - found.double()).abs().max()) <= 0.51  # rounded to 8 bits


def test_patches_are_judged_in_the_middle_of_a_blank_image():
    cells, blank = noise(2, 3, 3, 4), noise(1, 3, 7, 8)[0]
    images = surround(cells, (7, 8), blank)
    for image, cell in zip(images, cells, strict=True):
        for y in range(7):
            for x in range(8):
                inside = 2 <= y < 5 and 2 <= x < 6
                assert image[:, y, x].tolist() == (cell[:, y - 2, x - 2] if inside else blank[:, y, x]).tolist()
    assert torch.equal(surround(images, (7, 8), blank), images)


def test_an_image_is_tiled_from_patches_that_are_ipc_ranks_apart():
    cells = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 2, 3, 4)  # patch of rank r is all r
    images = tile(cells, 2, (6, 8))
    assert images.shape == (3, 2, 6, 8)
    for i in range(3):
        assert images[i, 1, ::3, ::4].tolist() == [[i, 3 + i], [6 + i, 9 + i]]
        for row in range(6):
            for column in range(8):
                assert int(images[i, 0, row, column]) == i + 3 * (2 * (row // 3) + column // 4)


def test_tiles_keep_every_pixel_and_longer_ones_come_first():
    cells = noise(4, 1, 2, 2)
    image = tile(cells, 2, (5, 5))[0, 0]
    assert image[3:, 3:].tolist() == cells[3, 0].tolist()
    assert image[:3, 3:].tolist() == cells[1, 0][[0, 0, 1]].tolist()
    assert image[:3, :3].tolist() == cells[0, 0][[0, 0, 1]][:, [0, 0, 1]].tolist()
    assert torch.equal(tile(cells, 1, (2, 2)), cells)


def test_the_best_crop_of_each_image_counts_and_equals_keep_their_order():
    best, ranks = rank(torch.tensor([[3.0, 2.0], [1.0, 9.0], [5.0, 1.0], [0.5, 0.5]]))
    assert best.tolist() == [1, 0, 1, 0]
    assert ranks.tolist() == [3, 1, 2, 0]


# --------------------------------------------------------------------------------- RDED


def brute_force(method: Rded, problem: Problem, before: int = 0) -> list[list[tuple[float, int, int]]]:
    """For each class the (loss, image, crop) that are stored, patch by patch in order of rank, one crop at a time."""
    teacher = problem.teacher(0)
    network = teacher.network(problem.real.shape, problem.classes)
    with (problem.seed / "rded").scope():
        drawn = []
        for members in problem.real.members:
            rows = members[torch.randperm(len(members))[: method.candidates]]
            boxes = draw_boxes(len(rows) * method.crops, problem.real.shape[1:], method.smallest)
            drawn.append((rows, boxes))
    _, height, width = problem.real.shape
    patch_size = [height // method.factor, width // method.factor]
    found = []
    for label, (rows, boxes) in enumerate(drawn):
        scored = []
        for i, row in enumerate(rows.tolist()):
            of_image = []
            for j in range(method.crops):
                box = boxes[i * method.crops + j].tolist()
                pixels = problem.real.pixels[row]
                crop = v2.functional.resized_crop(pixels.float(), *box, size=patch_size, antialias=True).round()
                pads = [(height - patch_size[0]) // 2, (width - patch_size[1]) // 2]
                rest = [height - patch_size[0] - pads[0], width - patch_size[1] - pads[1]]
                mean = float((255 * problem.real.preprocessing.mean).round())
                whole = functional.pad(crop, (pads[1], rest[1], pads[0], rest[0]), value=mean).to(torch.uint8)
                image = problem.real.preprocessing(whole[None])
                logits = network.apply(teacher.vector, image, train=False)[0].double()
                of_image.append((math.log(sum(math.exp(v) for v in logits.tolist())) - float(logits[label]), row, j))
            scored.append(min(of_image))
        found.append(sorted(scored)[before : before + problem.ipc * method.factor**2])
    return found


@pytest.mark.parametrize("method", [RDED, replace(RDED, factor=2, candidates=11), replace(RDED, crops=1, smallest=1.0)])
def test_the_stored_patches_are_those_of_a_search_by_hand(method):
    problem = ready(method)
    made = solve(method, problem)
    found = brute_force(method, problem)
    with (problem.seed / "rded").scope():
        drawn = [method._draw(problem, members) for members in problem.real.members]
    sides = problem.real.shape[1:]
    size = (sides[0] // method.factor, sides[1] // method.factor)
    for label, (rows, boxes) in enumerate(drawn):
        at = {row: i for i, row in enumerate(rows.tolist())}
        patches = [
            cut(problem.real.pixels[torch.tensor([row])], boxes[at[row], j][None], size) for _, row, j in found[label]
        ]
        wanted = problem.real.preprocessing(tile(torch.cat(patches), method.factor, sides))
        assert torch.equal(made.images[2 * label : 2 * label + 2], wanted)


def test_whole_images_without_choice_are_real_images_of_the_right_class():
    method = replace(RDED, crops=1, smallest=1.0)
    problem = ready(method, ipc=3)
    made = solve(method, problem)
    for number, image in enumerate(made.images):
        own = problem.real[problem.real.members[number // 3]].images
        assert any(torch.equal(image, other) for other in own)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("scheduler", ["pdd", "seqmatch"])
def test_stages_take_the_next_ranks_so_that_no_image_is_used_twice(scheduler, factor):
    method = replace(RDED, factor=factor)
    whole = ready(method, ipc=3)
    found = solve_in_stages(method, whole, scheduler, 2)
    assert [len(s) for s in found] == [6, 3]
    ranked = brute_force(method, whole)
    rows = [row for of_class in ranked for _, row, _ in of_class]
    assert len(set(rows)) == len(rows) == 9 * factor**2
    single = solve(method, whole)
    if factor == 1:  # tiles are laid out stage by stage
        for label in range(3):
            staged = [found[0].images[2 * label : 2 * label + 2], found[1].images[label : label + 1]]
            assert torch.equal(torch.cat(staged), single.images[3 * label : 3 * label + 3])
    levels = lambda images: images.double().sum((1, 2, 3))  # a tile is a permutation of its patches
    assert float(sum(levels(s.images).sum() for s in found)) == pytest.approx(float(levels(single.images).sum()))


def test_lower_ranks_are_less_realistic():
    losses = [loss for of_class in brute_force(RDED, ready(RDED, ipc=8))[:1] for loss, _, _ in of_class]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0]


def test_the_labels_are_the_predictions_of_the_teacher_at_a_temperature():
    for method in (RDED, replace(RDED, temperature=4.0), SRE2L, replace(SRE2L, temperature=4.0)):
        problem = ready(method)
        made = solve(method, problem, 1 if method.steps else 0)
        teacher = problem.teacher(0)
        network = teacher.network(problem.real.shape, problem.classes)
        logits = torch.cat([network.apply(teacher.vector, x[None], train=False) for x in made.images]).double()
        powers = (logits / method.temperature).exp()
        torch.testing.assert_close(made.labels.double(), powers / powers.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
        assert (made.label_kind, made.label_type) == ("probability", "teacher")


def test_soft_labels_cost_what_is_stored_and_the_teacher_is_counted_apart():
    for method in (RDED, SRE2L):
        problem = ready(method)
        made = solve(method, problem, 1 if method.steps else 0)
        assert made.label_bytes == 6 * 3 * 4
        assert made.teacher is not None
        assert made.teacher_bytes == 4 * made.teacher.network(problem.real.shape, 3).length
        hard = solve(replace(method, labels="hard"), problem, 1 if method.steps else 0)
        assert torch.equal(hard.labels, torch.eye(3).repeat_interleave(2, 0))
        assert hard.label_bytes == 6


def test_whitened_images_are_cropped_before_they_are_whitened():
    method = replace(RDED, smallest=0.3)
    problem = ready(method, dataset__zca=True)
    assert problem.real.preprocessing.kind == "zca"
    pixels = problem.real.preprocessing.invert(solve(method, problem).images) * 255
    assert float((pixels - pixels.round()).abs().max()) < 0.05


def test_too_few_images_are_refused_before_a_teacher_is_trained():
    problem = toy(5)
    with pytest.raises(UsageError, match=r"20 patches per class .* 18 training images .* smaller --ipc"):
        replace(RDED, factor=2).needs(problem)
    with pytest.raises(UsageError, match=r"5 patches per class .* 4 candidates; set matcher.candidates=5 or more"):
        replace(RDED, candidates=4).needs(problem)
    frozen = Curriculum((SyntheticSet(torch.zeros(42, 1, 8, 8), torch.eye(3).repeat_interleave(14, 0)),), ((0,),))
    with pytest.raises(UsageError, match="19 patches per class"):
        RDED.needs(replace(problem, frozen=frozen))
    with pytest.raises(UsageError, match="no room for 8x8 patches"):
        Rded(factor=8, candidates=900).needs(replace(problem, ipc=1, real=small(problem.real)))


def small(real: RealData) -> RealData:
    """Many blank images of 4x4 pixels."""
    targets = torch.arange(3).repeat_interleave(100)
    return RealData(Pixels.of(torch.zeros(300, 1, 4, 4, dtype=torch.uint8)), targets, real.preprocessing, 3)


# --------------------------------------------------------------------------------- the teacher


def test_the_teacher_is_the_batch_norm_variant_trained_with_what_the_dataset_allows():
    problem = toy(2)
    needs = SRE2L.needs(problem)
    assert needs.teachers == 1
    assert needs.teacher_network == replace(problem.network.source, norm="batch")
    assert needs.teacher_recipe == Recipe(
        epochs=2, batch=20, lr=0.05, schedule="cosine", momentum=0.9, weight_decay=5e-4, augment="diffaug:crop"
    )
    flipping = SRE2L.needs(replace(problem, augment="color_crop_cutout_flip_scale_rotate")).teacher_recipe
    assert flipping is not None
    assert flipping.augment == "diffaug:flip_crop"
    assert replace(RDED, teacher_norm="same").needs(problem).teacher_network == problem.network.source
    assert RDED.needs(problem).teacher_network == needs.teacher_network


def with_network(problem: Problem, source: Any) -> Problem:
    network = Network(source, problem.real.shape, problem.classes)
    return replace(problem, starts=replace(problem.starts, network=network))


def test_a_network_that_has_batch_norm_is_taken_as_it_is():
    @dataclass(frozen=True)
    class Own:
        name = "own"

        def build(self, shape, classes):
            return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, classes))

    problem = toy(2)
    assert batch_normed(with_network(problem, Own()), "") == Own()
    normed = ResNet18(width=4, norm="batch")
    assert batch_normed(with_network(problem, normed), "") is normed


def test_a_network_that_cannot_have_batch_norm_is_refused_with_a_way_out():
    real = RealData(Pixels.of(noise(60, 1, 32, 32)), torch.arange(60) % 3, toy(2).real.preprocessing, 3)
    problem = with_network(replace(toy(2), real=real), LeNet())
    with pytest.raises(UsageError, match=r"network 'lenet' has no batch norm, .* such as convnet or resnet18"):
        SRE2L.needs(problem)
    with pytest.raises(UsageError, match=r"set matcher.teacher_norm=same"):
        RDED.needs(problem)
    assert replace(RDED, teacher_norm="same").needs(problem).teacher_network == LeNet()


# --------------------------------------------------------------------------------- SRe2L


def teacher_of(source: Any, shape: tuple[int, int, int], classes: int = 4) -> Teacher:
    """An untrained network in float64 with uneven running statistics."""
    network = Network(source, shape, classes, dtype=torch.float64)
    vector = network.init(Seed(3))
    with Seed(4).scope():
        for name, layer in network.layers(vector).items():
            if "running" in name or name.endswith("1.weight"):
                layer.add_(torch.rand_like(layer))
    return Teacher(source, vector)


def by_hand(teacher: Teacher, images: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Logits and gaps of a ConvNet of depth 2 with batch norm, in NumPy and loops."""
    c, h, w = images.shape[1:]
    layers = {n: v.numpy() for n, v in teacher.network((c, h, w), 4).layers(teacher.vector).items()}
    maps, gaps = images, []
    for block in range(2):
        weight, bias = layers[f"body.{block}.0.weight"], layers[f"body.{block}.0.bias"]
        n, _, h, w = maps.shape
        padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
        out = np.zeros((n, len(weight), h, w))
        for y in range(h):
            for x in range(w):
                out[:, :, y, x] = (
                    np.tensordot(padded[:, :, y : y + 3, x : x + 3], weight, ([1, 2, 3], [1, 2, 3])) + bias
                )
        center = layers[f"body.{block}.1.running_mean"]
        spread = layers[f"body.{block}.1.running_var"]
        means = [out[:, channel].sum() / (n * h * w) for channel in range(len(weight))]
        variances = [((out[:, channel] - means[channel]) ** 2).sum() / (n * h * w) for channel in range(len(weight))]
        gaps.append(math.dist(means, center) + math.dist(variances, spread))
        normal = (out - center[:, None, None]) / np.sqrt(spread[:, None, None] + 1e-5)
        normal = normal * layers[f"body.{block}.1.weight"][:, None, None]
        normal = np.maximum(normal + layers[f"body.{block}.1.bias"][:, None, None], 0)
        maps = normal.reshape(n, -1, h // 2, 2, w // 2, 2).mean((3, 5))
    return maps.reshape(len(maps), -1) @ layers["classifier.weight"].T + layers["classifier.bias"], gaps


def test_gaps_of_statistics_are_those_computed_by_hand():
    source = registry().get("network", "convnet").cls(width=3, depth=2, norm="batch")
    teacher = teacher_of(source, (2, 8, 8))
    with Seed(5).scope():
        images = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    logits, gaps = Squeezed(teacher, (2, 8, 8), 4)(images)
    wanted, by_layer = by_hand(teacher, images.numpy())
    assert gaps.tolist() == pytest.approx(by_layer, rel=1e-10)
    np.testing.assert_allclose(logits.numpy(), wanted, rtol=1e-9, atol=1e-10)


def test_gaps_of_a_residual_network_are_those_of_torch_s_own_running_averages():
    """In training mode with a momentum of 1, a layer's running statistics become those of its batch."""
    source = ResNet18(width=2, norm="batch")
    teacher = teacher_of(source, (3, 16, 16))
    with Seed(5).scope():
        images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    squeezed = Squeezed(teacher, (3, 16, 16), 4)
    logits, gaps = squeezed(images)
    network = teacher.network((3, 16, 16), 4)
    torch.testing.assert_close(logits, network.apply(teacher.vector, images, train=False))
    inputs: list[tuple[nn.Module, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, given, _: inputs.append((m, given[0]))) for m in squeezed.norms]
    squeezed.module(images)
    for hook in hooks:
        hook.remove()
    held = dict(inputs)
    assert len(gaps) == len(held) == 20
    for norm, gap in zip(squeezed.norms, gaps, strict=True):
        maps, own = held[norm], nn.BatchNorm2d(len(norm.weight), momentum=1.0, dtype=torch.float64)
        own.train()(maps)
        count = maps.numel() / maps.shape[1]
        assert own.running_mean is not None
        assert own.running_var is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        biased = own.running_var * (count - 1) / count
        wanted = (own.running_mean - norm.running_mean).norm() + (biased - norm.running_var).norm()
        assert float(gap) == pytest.approx(float(wanted), rel=1e-9)


def test_a_squeezed_teacher_keeps_nothing_between_calls_and_draws_nothing():
    teacher = teacher_of(registry().get("network", "convnet").cls(width=3, depth=2, norm="batch"), (2, 8, 8))
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    squeezed = Squeezed(teacher, (2, 8, 8), 4)
    assert torch.equal(torch.get_rng_state(), expected)
    one, other = torch.ones(3, 2, 8, 8, dtype=torch.float64), torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    before = squeezed(one)
    squeezed(other)
    assert all(torch.equal(a, b) for a, b in zip(squeezed(one), before, strict=True))
    assert not any(p.requires_grad for p in squeezed.module.parameters())


def test_a_batch_has_one_image_of_each_class():
    assert [rows.tolist() for rows in batches(3, 2, None)] == [[0, 2, 4], [1, 3, 5]]
    assert [rows.tolist() for rows in batches(3, 2, 2)] == [[0, 2], [4, 1], [3, 5]]
    assert [rows.tolist() for rows in batches(3, 2, 6)] == [[0, 2, 4, 1, 3, 5]]


def test_steps_are_those_of_torch_s_adam_on_each_batch_alone():
    method = Sre2l(**QUICK, steps=5, jitter=0, r_bn=0.3, first_bn=7.0, lr_img=0.1)
    problem = ready(method)
    state = begin(method, problem)
    teacher = problem.teacher(0)
    squeezed = Squeezed(teacher, problem.real.shape, problem.classes)
    by_index = [state.images[i::2].clone().requires_grad_() for i in range(2)]
    for images in by_index:
        adam = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9))
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 5)
        for _ in range(4):
            logits, gaps = squeezed(images)
            weights = torch.tensor([7.0] + [1.0] * (len(gaps) - 1))
            loss = nn.functional.cross_entropy(logits, torch.arange(3)) + 0.3 * (weights * gaps).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                images.copy_(problem.real.preprocessing.clamp(images))
            cosine.step()
    for k in range(4):
        state, numbers = method.step(problem, state, k)
        assert float(numbers["loss"]) == pytest.approx(float(numbers["entropy"]) + 0.3 * float(numbers["statistics"]))
    for i, images in enumerate(by_index):
        torch.testing.assert_close(state.images[i::2], images.detach(), rtol=1e-3, atol=1e-4)


def test_recovering_lowers_the_loss_and_keeps_pixels_in_range():
    method = Sre2l(teacher_epochs=20, teacher_batch=20, steps=40)
    problem = ready(method)
    state, trail = play(method, problem, 40)
    assert trail[-1]["loss"] < trail[0]["loss"] / 5
    shown = pixels(problem, state.images)
    assert float(shown.min()) >= -1e-6
    assert float(shown.max()) <= 1 + 1e-6
    assert bool(((shown < 1e-4) | (shown > 1 - 1e-4)).any())  # some would have left it


def test_whitened_images_are_not_clamped():
    problem = ready(SRE2L, dataset__zca=True)
    images = 100 * torch.ones(1, 1, 8, 8)
    assert torch.equal(problem.real.preprocessing.clamp(images), images)
    assert solve(SRE2L, problem).finite()


@pytest.mark.parametrize(("jitter", "reach"), [(0, 0), (3, 3), (None, 1)])
def test_batches_are_rolled_by_up_to_the_jitter_along_each_axis(jitter, reach):
    method = replace(SRE2L, jitter=jitter)
    problem = ready(method)
    state = begin(method, problem)
    seen, shifts = [], set()
    squeezed = Squeezed(problem.teacher(0), problem.real.shape, problem.classes)
    problem.workspace["sre2l"] = lambda x: (seen.append(x.detach()), squeezed(x))[1]
    for _ in range(40):
        original = state.images.clone()
        seen.clear()
        state, _ = method.step(problem, state, 0)
        for rows, rolled in zip(batches(3, 2, None), seen, strict=True):
            fits = [s for s in np.ndindex(8, 8) if torch.equal(original[rows].roll(s, (2, 3)), rolled)]
            shifts.update(fits)
    assert {a for a, _ in shifts} == {b for _, b in shifts} == set(range(reach + 1))


def test_images_start_from_noise_or_from_real_images_that_no_stage_took():
    noise = SRE2L.init(ready(SRE2L, ipc=20 - 2))
    assert float(noise.images.mean()) == pytest.approx(0, abs=0.1)
    assert float(noise.images.std()) == pytest.approx(1, abs=0.1)
    real = replace(SRE2L, pix_init="real")
    problem = ready(real)
    assert torch.equal(real.init(problem).images, problem.sample().images)


@pytest.mark.parametrize("scheduler", ["pdd", "seqmatch"])
@pytest.mark.parametrize("method", [RDED, SRE2L], ids=["rded", "sre2l"])
def test_one_teacher_serves_all_stages(method, scheduler):
    whole = ready(method, ipc=3)
    found = solve_in_stages(method, whole, scheduler, 2)
    assert [len(s) for s in found] == [6, 3]
    assert found[0].teacher is not None
    assert found[1].teacher is not None
    assert torch.equal(found[0].teacher.vector, found[1].teacher.vector)
    later = registry().get("scheduler", scheduler).cls(stages=2).next(toy(3), Curriculum((found[0],), ((0,),)))
    assert later is not None
    assert method.needs(later).teachers == 0
    assert not torch.equal(found[0].images[:3], found[1].images)
