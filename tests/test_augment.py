"""Differentiable augmentation, each operation against loops over pixels written from the publication."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddbench import DSA, Seed, UsageError
from ddbench.augment import NO_DRAW, Draw

OPERATIONS = ["color", "crop", "cutout", "flip", "scale", "rotate"]
N, C, H, W = 6, 3, 16, 12


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(N, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.3


def apply(operation: str, parameters: np.ndarray, images: torch.Tensor) -> np.ndarray:
    return Draw(operation, torch.as_tensor(parameters))(images).numpy()


def some_parameters(columns: int) -> np.ndarray:
    parameters = np.random.default_rng(7).random((N, columns))
    parameters[0], parameters[1] = 0.0, 1 - 2**-30  # the ends of the range
    return parameters


# -- each operation ------------------------------------------------------------------------------------------


def test_colour_is_brightness_then_saturation_then_contrast_at_the_published_strengths(images):
    p = some_parameters(3)
    expected = np.empty((N, C, H, W))
    for n in range(N):
        x = images[n].numpy() + (p[n, 0] - 0.5)  # brightness: up to a half more or less
        grey = sum(x[c] for c in range(C)) / C
        x = np.stack([grey + (x[c] - grey) * 2 * p[n, 1] for c in range(C)])  # saturation: factor 0 to 2
        mean = x.sum() / x.size
        expected[n] = mean + (x - mean) * (0.5 + p[n, 2])  # contrast: factor 1/2 to 3/2
    np.testing.assert_allclose(apply("color", p, images), expected, rtol=1e-12, atol=1e-12)


def test_crop_shifts_by_whole_pixels_up_to_an_eighth_and_fills_with_zeros(images):
    down, right = [-2, 2, 0, 1, -1, 0], [2, -2, 0, 0, 1, -1]  # an eighth of 16 and of 12, rounded, is 2
    p = np.array([[(d + 2.5) / 5, (r + 2.5) / 5] for d, r in zip(down, right, strict=True)])
    expected = np.zeros((N, C, H, W))
    for n in range(N):
        for i in range(H):
            for j in range(W):
                y, x = i + down[n], j + right[n]
                if 0 <= y < H and 0 <= x < W:
                    expected[n, :, i, j] = images[n, :, y, x]
    np.testing.assert_array_equal(apply("crop", p, images), expected)


def seen_shifts(side: int) -> set[int]:
    """All shifts along one axis that many drawn crops make, read off an image of coordinates."""
    x = torch.arange(1.0, side + 1).view(1, 1, side, 1).expand(400, 1, side, 8).clone()
    with Seed(0).scope():
        out = DSA("crop").draw(400)(x)
    middle = out[:, 0, side // 2, 4]
    return {int(v) - 1 - side // 2 for v in middle.tolist() if v}


@pytest.mark.parametrize(("side", "reach"), [(32, 4), (28, 4), (16, 2), (64, 8)])
def test_drawn_crops_reach_every_shift_and_none_beyond(side, reach):
    assert seen_shifts(side) == set(range(-reach, reach + 1))


def test_cutout_is_a_hole_of_half_the_size_centred_anywhere(images):
    centres = [(0, 0), (16, 12), (8, 6), (3, 11), (15, 1), (5, 5)]
    p = np.array([[(y + 0.5) / 17, (x + 0.5) / 13] for y, x in centres])
    expected = images.numpy().copy()
    for n, (y, x) in enumerate(centres):
        for i in range(H):
            for j in range(W):
                if y - 4 <= i < y + 4 and x - 3 <= j < x + 3:
                    expected[n, :, i, j] = 0
    out = apply("cutout", p, images)
    np.testing.assert_array_equal(out, expected)
    assert (out[2] == 0).sum() == C * 8 * 6  # the hole in the middle is whole


def test_cutout_of_an_odd_size_stays_on_the_image():
    ones = torch.ones(500, 1, 10, 10)  # half of ten is five
    with Seed(1).scope():
        holes = (DSA("cutout").draw(500)(ones) == 0).sum((1, 2, 3))
    assert holes.max() == 25
    assert holes.min() == 9  # centred in a corner


def test_flip_mirrors_only_the_images_that_drew_it(images):
    p = np.array([[0.0], [0.49], [0.5], [0.51], [0.99], [0.2]])
    expected = images.numpy().copy()
    for n in (0, 1, 5):
        for j in range(W):
            expected[n, :, :, j] = images[n, :, :, W - 1 - j]
    np.testing.assert_array_equal(apply("flip", p, images), expected)


def bilinear(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sample (c, h, w) at matrix @ (x, y, 1), with corners of the grid at corner pixels and zeros outside."""
    _, h, w = image.shape
    out = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            x, y = matrix @ np.array([2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1, 1.0])
            column, row = (x + 1) / 2 * (w - 1), (y + 1) / 2 * (h - 1)
            left, top = math.floor(column), math.floor(row)
            for r, c_ in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= r < h and 0 <= c_ < w:
                    out[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - c_)) * image[:, r, c_]
    return out


def test_scale_stretches_both_axes_apart_by_bilinear_sampling(images):
    p = some_parameters(2)
    factors = 1 / 1.2 + p * (1.2 - 1 / 1.2)
    expected = [bilinear(images[n].numpy(), np.array([[factors[n, 0], 0, 0], [0, factors[n, 1], 0]])) for n in range(N)]
    np.testing.assert_allclose(apply("scale", p, images), expected, rtol=1e-9, atol=1e-9)


def test_rotate_turns_by_up_to_fifteen_degrees_by_bilinear_sampling(images):
    p = some_parameters(1)
    expected = []
    for n in range(N):
        angle = math.radians((2 * p[n, 0] - 1) * 15)
        turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
        expected.append(bilinear(images[n].numpy(), turn))
    np.testing.assert_allclose(apply("rotate", p, images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("operation", "neutral"),
    [
        ("color", [0.5, 0.5, 0.5]),
        ("crop", [0.5, 0.5]),
        ("flip", [0.7]),
        ("scale", [0.4545454545454545] * 2),
        ("rotate", [0.5]),
    ],
)
def test_neutral_parameters_change_nothing(operation, neutral, images):
    out = apply(operation, np.tile(neutral, (N, 1)), images)
    np.testing.assert_allclose(out, images, rtol=1e-9, atol=1e-9)


# -- draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_replaying_a_draw_gives_identical_bits(operation, images):
    with Seed(6).scope():
        draw, other = DSA(operation).draw(N), DSA(operation).draw(N)
    state = torch.get_rng_state()
    first, second = draw(images), draw(images.clone())
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, images)
    assert not torch.equal(first, other(images))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_draw_leaves_the_images_as_they_were(operation, images):
    before = images.clone()
    DSA(operation).draw(N)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_siamese_draw_treats_all_images_alike(operation, images):
    same = images[:1].expand(40, -1, -1, -1)
    with Seed(2).scope():
        alike, apart = DSA(operation).draw(40, siamese=True), DSA(operation).draw(40)
    assert torch.equal(alike.parameters, alike.parameters[:1].expand_as(alike.parameters))
    assert (alike(same) == alike(same)[:1]).all()
    assert not (apart(same) == apart(same)[:1]).all()


def test_siamese_draw_takes_no_more_numbers_for_more_images():
    with Seed(2).scope():
        few = DSA("color").draw(2, siamese=True), torch.rand(1)
    with Seed(2).scope():
        many = DSA("color").draw(50, siamese=True), torch.rand(1)
    assert torch.equal(few[0].parameters[0], many[0].parameters[49])
    assert torch.equal(few[1], many[1])  # so real and synthetic batches can share a draw


def test_one_operation_is_drawn_for_the_whole_batch_each_as_often():
    strategy = DSA("color_crop_cutout_flip_scale_rotate")
    with Seed(0).scope():
        drawn = [strategy.draw(3) for _ in range(1200)]
    counts = {name: sum(d.operation == name for d in drawn) for name in OPERATIONS}
    assert sum(counts.values()) == 1200
    assert all(150 < count < 250 for count in counts.values())  # 200 expected, deviation 13


@pytest.mark.parametrize(
    ("operation", "columns"), [("color", 3), ("crop", 2), ("cutout", 2), ("flip", 1), ("scale", 2), ("rotate", 1)]
)
def test_parameters_are_uniform_with_a_row_for_each_image(operation, columns):
    with Seed(0).scope():
        draw = DSA(operation).draw(4000)
    assert draw.parameters.shape == (4000, columns)
    quarters = torch.stack([((draw.parameters * 4).floor() == q).double().mean(0) for q in range(4)])
    assert (quarters - 0.25).abs().max() < 0.03


def test_draws_are_a_function_of_torchs_generator():
    strategy = DSA("color_crop_cutout_flip_scale_rotate")
    with Seed(4).scope():
        first = [strategy.draw(3) for _ in range(5)]
    with Seed(4).scope():
        second = [strategy.draw(3) for _ in range(5)]
    for a, b in zip(first, second, strict=True):
        assert a.operation == b.operation
        assert torch.equal(a.parameters, b.parameters)


def test_empty_strategy_draws_no_number_and_changes_nothing(images):
    state = torch.get_rng_state()
    draw = DSA("").draw(N)
    assert draw is NO_DRAW
    assert draw(images) is images
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_their_type(operation, dtype):
    assert DSA(operation).draw(2)(torch.rand(2, 3, 8, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradient_is_that_of_finite_differences(operation):
    with Seed(8).scope():
        draw = DSA(operation).draw(2)
        x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw, (x,))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_channel_is_augmented_too(operation):
    with Seed(8).scope():
        x = torch.rand(4, 1, 28, 28)
        out = DSA(operation).draw(4)(x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


def test_unknown_operation_is_refused_with_the_valid_ones():
    with pytest.raises(
        UsageError, match="unknown augmentation 'flop'; valid ones: color, crop, cutout, flip, scale, rotate"
    ):
        DSA("color_flop")
