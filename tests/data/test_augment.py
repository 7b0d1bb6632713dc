"""Differentiable augmentation, each operation against loops over pixels written from the publication."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddbench import DSA, Seed, UsageError
from ddbench.data import augment
from ddbench.data.augment import NO_DRAW, Draw
from ddbench.trajectory.unroll import Plan

PUBLISHED = ["color", "crop", "cutout", "flip", "scale", "rotate"]
OPERATIONS = [*PUBLISHED, "brightness", "saturation", "contrast"]
ALL = "diffaug:color_crop_cutout_flip_scale_rotate"
STRATEGIES = [*OPERATIONS, ALL]
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


def test_each_colour_alone_is_its_part_of_color(images):
    p = some_parameters(3)
    brighter = apply("brightness", p[:, :1], images)
    np.testing.assert_array_equal(brighter, images.numpy() + (p[:, 0] - 0.5).reshape(N, 1, 1, 1))
    coloured = apply("saturation", p[:, 1:2], torch.from_numpy(brighter))
    np.testing.assert_array_equal(apply("contrast", p[:, 2:], torch.from_numpy(coloured)), apply("color", p, images))
    mean = images.numpy().mean(1, keepdims=True)
    grey = apply("saturation", np.zeros((N, 1)), images)  # factor 0
    np.testing.assert_allclose(grey, np.broadcast_to(mean, grey.shape), rtol=1e-12, atol=1e-12)
    deviations = apply("contrast", np.zeros((N, 1)), images).std((1, 2, 3))  # factor 1/2
    np.testing.assert_allclose(deviations, images.numpy().std((1, 2, 3)) / 2, rtol=1e-12)


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


def test_operations_are_those_of_kornia():
    kornia = pytest.importorskip("kornia")
    x = torch.randn(N, C, H, H, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    p, q = some_parameters(1), some_parameters(2)
    up = torch.as_tensor(p[:, 0]) - 0.5
    lighter = torch.stack([kornia.enhance.adjust_brightness(i, u.item(), False) for i, u in zip(x, up, strict=True)])
    np.testing.assert_allclose(apply("brightness", p, x), lighter, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(apply("flip", np.zeros((N, 1)), x), kornia.geometry.hflip(x))
    turned = kornia.geometry.rotate(x, 30 * up, align_corners=True)
    np.testing.assert_allclose(apply("rotate", p, x), turned, rtol=1e-9, atol=1e-9)
    factors = 1 / torch.as_tensor(1 / 1.2 + q * (1.2 - 1 / 1.2))  # our factor is the grid's, theirs is the image's
    zoomed = kornia.geometry.scale(x, factors, align_corners=True)
    np.testing.assert_allclose(apply("scale", q, x), zoomed, rtol=1e-9, atol=1e-9)


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


def corners(parameters: torch.Tensor, least: int) -> np.ndarray:
    """Left, right, top and bottom of each crop, on a picture that holds its own coordinates, from -1 to 1."""
    across = torch.linspace(-1, 1, W, dtype=torch.float64).expand(H, W)
    down = torch.linspace(-1, 1, H, dtype=torch.float64).view(H, 1).expand(H, W)
    shown = Draw(f"rrc{least}", parameters)(torch.stack([across, down]).expand(len(parameters), 2, H, W))
    return torch.stack([shown[:, 0, 0, 0], shown[:, 0, 0, -1], shown[:, 1, 0, 0], shown[:, 1, -1, 0]], 1).numpy()


def test_a_resized_crop_is_the_first_rectangle_that_fits_as_torchvision_draws_them():
    """Area and log of the aspect ratio uniform, ten tries, and the corner anywhere that leaves it inside."""
    parameters = torch.rand(400, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for found, row in zip(corners(parameters, 30), parameters.view(-1, 10, 4).numpy(), strict=True):
        expected = [-1.0, 1.0, -1.0, 1.0]
        for area, ratio, x, y in row:
            pixels, aspect = (0.3 + 0.7 * area) * H * W, math.exp(math.log(4 / 3) * (2 * ratio - 1))
            wide, high = math.sqrt(pixels * aspect) / W, math.sqrt(pixels / aspect) / H
            if wide <= 1 and high <= 1:
                left, top = 2 * x * (1 - wide) - 1, 2 * y * (1 - high) - 1
                expected = [left, left + 2 * wide, top, top + 2 * high]
                break
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_where_no_crop_fits_the_whole_image_is_shown():
    nothing_fits = torch.full((2, 40), 1 - 2**-20, dtype=torch.float64)  # all of the area, at a ratio of 4/3
    np.testing.assert_allclose(corners(nothing_fits, 99), np.tile([-1.0, 1.0, -1.0, 1.0], (2, 1)), atol=1e-12)


def test_a_resized_crop_takes_the_place_of_the_other_spatial_operations():
    with Seed(0).scope():
        drawn = {DSA("diffaug:rrc50_flip").draw(3).operation for _ in range(5)}
    assert drawn == {"flip_rrc50"}
    for wrong in ("rrc", "rrc0", "rrc100", "rrc-5"):
        with pytest.raises(UsageError, match="rrc1 to rrc99"):
            DSA(wrong)


# -- draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", STRATEGIES)
def test_replaying_a_draw_gives_identical_bits(operation, images):
    with Seed(6).scope():
        draw, other = DSA(operation).draw(N), DSA(operation).draw(N)
    state = torch.get_rng_state()
    first, second = draw(images), draw(images.clone())
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, images)
    assert not torch.equal(first, other(images))


@pytest.mark.parametrize("operation", STRATEGIES)
def test_draw_leaves_the_images_as_they_were(operation, images):
    before = images.clone()
    DSA(operation).draw(N)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("operation", STRATEGIES)
def test_siamese_draw_treats_all_images_alike(operation, images):
    same = images[:1].expand(40, -1, -1, -1)
    with Seed(2).scope():
        alike, apart = DSA(operation).draw(40, siamese=True), DSA(operation).draw(40)
    assert len(alike.parameters) == 1
    assert (alike(same) == alike(same)[:1]).all()
    assert not (apart(same) == apart(same)[:1]).all()


@pytest.mark.parametrize("operation", STRATEGIES)
def test_siamese_draw_serves_real_and_synthetic_batches_of_different_sizes(operation, images):
    with Seed(2).scope():
        draw = DSA(operation).draw(N, siamese=True)
    spelled_out = Draw(draw.operation, draw.parameters.expand(N, -1))
    assert torch.equal(draw(images), spelled_out(images))
    assert torch.equal(draw(images[2:4]), spelled_out(images)[2:4])


def test_siamese_draw_takes_no_more_numbers_for_more_images():
    with Seed(2).scope():
        few = DSA("color").draw(2, siamese=True), torch.rand(1)
    with Seed(2).scope():
        many = DSA("color").draw(50, siamese=True), torch.rand(1)
    assert torch.equal(few[0].parameters, many[0].parameters)
    assert torch.equal(few[1], many[1])


def test_draw_for_other_images_than_these_is_refused(images):
    with pytest.raises(RuntimeError, match="must match the existing size"):
        DSA("crop").draw(N - 1)(images)


def test_one_operation_is_drawn_for_the_whole_batch_each_as_often():
    strategy = DSA("color_crop_cutout_flip_scale_rotate")
    with Seed(0).scope():
        drawn = [strategy.draw(3) for _ in range(1200)]
    counts = {name: sum(d.operation == name for d in drawn) for name in PUBLISHED}
    assert sum(counts.values()) == 1200
    assert all(150 < count < 250 for count in counts.values())  # 200 expected, deviation 13


@pytest.mark.parametrize("strategy", ["color_crop_cutout_scale_rotate", "diffaug:color_crop_cutout_scale_rotate"])
def test_strategies_without_flip_never_flip(strategy):
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    with Seed(0).scope():
        outs = [DSA(strategy).draw(1)(ramp) for _ in range(400)]
    # Saturation keeps the mean of equal channels and contrast has a positive factor: only a flip turns a slope round.
    assert all((out[0, 0, 8].diff() < 0).sum() < 8 for out in outs)
    with Seed(0).scope():
        mirrored = [DSA(strategy + "_flip").draw(1)(ramp) for _ in range(400)]
    assert any((out[0, 0, 8].diff() < 0).sum() >= 8 for out in mirrored)


@pytest.mark.parametrize(
    ("operation", "columns"),
    [
        *[("color", 3), ("crop", 2), ("cutout", 2), ("flip", 1), ("scale", 2), ("rotate", 1)],
        *[("brightness", 1), ("saturation", 1), ("contrast", 1), ("diffaug:color_crop_cutout_flip", 8)],
    ],
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


@pytest.mark.parametrize("operation", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_their_type(operation, dtype):
    assert DSA(operation).draw(2)(torch.rand(2, 3, 8, 8, dtype=dtype)).dtype == dtype


# -- derivatives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", STRATEGIES)
@pytest.mark.parametrize("siamese", [False, True])
def test_gradient_is_that_of_finite_differences(operation, siamese):
    with Seed(8).scope():
        draw = DSA(operation).draw(2, siamese=siamese)
        x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw, (x,))


@pytest.fixture
def _four_taps(monkeypatch):
    """Scale and rotate as they are on CUDA when deterministic algorithms are asked for."""
    monkeypatch.setattr(augment, "grid_sample", lambda x, grid, align_corners: augment._four_taps(x, grid))


@pytest.mark.usefixtures("_four_taps")
@pytest.mark.parametrize("operation", STRATEGIES)
def test_augmentation_is_twice_differentiable(operation):
    with Seed(8).scope():
        draw = DSA(operation).draw(2)
        x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw, (x,))
    assert torch.autograd.gradgradcheck(draw, (x,))


@pytest.mark.parametrize("operation", ["scale", "rotate"])
@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (4, 1, 28, 28), (3, 2, 7, 12)])
def test_four_taps_agree_with_grid_sample(operation, shape, request):
    with Seed(8).scope():
        draw, x, v = DSA(operation).draw(shape[0]), torch.randn(shape).requires_grad_(), torch.randn(shape)
    outs = [draw(x)]
    request.getfixturevalue("_four_taps")
    outs.append(draw(x))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=2e-5)
    assert not torch.equal(outs[0], outs[1])  # they are two computations
    ours, theirs = (torch.autograd.grad(out, x, v)[0] for out in outs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_on_the_cpu_grid_sample_serves_deterministic_algorithms_too(images):
    draw = Draw("rotate", torch.as_tensor(some_parameters(1)))
    usual = draw(images)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(draw(images), usual)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("operation", OPERATIONS)
def test_deterministic_gradients_on_cuda_are_those_of_the_cpu(operation, images, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with Seed(8).scope():
        draw, v = DSA(operation).draw(N), torch.randn_like(images)
    on_cpu = images.clone().requires_grad_()
    expected = torch.autograd.grad(draw(on_cpu), on_cpu, v)[0]
    torch.use_deterministic_algorithms(True)
    try:
        leaf = images.cuda().requires_grad_()
        first, second = (torch.autograd.grad(draw(leaf), leaf, v.cuda())[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.cpu(), expected, rtol=1e-9, atol=1e-9)


# -- composed, as in IDC -------------------------------------------------------------------------------------


def drawn(strategy: str, times: int = 1, count: int = N) -> list[Draw]:
    with Seed(5).scope():
        return [DSA(strategy).draw(count) for _ in range(times)]


def test_composed_draw_applies_its_operations_one_after_the_other(images):
    (draw,) = drawn("diffaug:color_crop_cutout")
    assert draw.operation == "color_crop_cutout"
    expected = images
    for name, columns in (("color", slice(0, 3)), ("crop", slice(3, 5)), ("cutout", slice(5, 7))):
        expected = Draw(name, draw.parameters[:, columns])(expected)
    assert torch.equal(draw(images), expected)


@pytest.mark.parametrize(
    ("strategy", "applied"),
    [
        ("diffaug:color_crop_cutout", {"color_crop_cutout"}),
        ("diffaug:cutout_crop_color", {"color_crop_cutout"}),
        (
            "diffaug:color_crop_cutout_flip_scale_rotate",
            {f"flip_color_{s}_cutout" for s in ("crop", "scale", "rotate")},
        ),
        ("diffaug:rotate_crop", {"rotate", "crop"}),
        ("diffaug:contrast_flip_brightness", {"flip_brightness_contrast"}),
        ("diffaug:flip", {"flip"}),
    ],
)
def test_composed_operations_are_applied_in_the_published_order_with_one_spatial_one(strategy, applied):
    assert {draw.operation for draw in drawn(strategy, 50)} == applied


def test_spatial_operations_of_composed_draws_are_drawn_as_often_as_each_other():
    draws = drawn(ALL, 900, 1)
    for name in ("crop", "scale", "rotate"):
        assert 255 < sum(name in draw.operation.split("_") for draw in draws) < 345  # 300 expected, deviation 14


def test_composed_colours_are_color():
    (apart,), (together,) = drawn("diffaug:contrast_saturation_brightness"), drawn("diffaug:color")
    x = torch.randn(N, 3, 8, 8)
    assert torch.equal(apart(x), together(x))


def test_composed_strategy_without_operations_is_none_at_all():
    assert drawn("diffaug:") == [NO_DRAW]


def test_plan_of_a_gradient_holds_composed_draws():
    with Seed(5).scope():
        plan = Plan.draw(7, 3, 4, DSA("diffaug:color_crop"))
    assert [draw.operation for draw in plan.draws] == ["color_crop"] * 3
    assert [len(draw.parameters) for draw in plan.draws] == [len(rows) for rows in plan.batches]


# -- shapes and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", STRATEGIES)
def test_one_channel_is_augmented_too(operation):
    with Seed(8).scope():
        x = torch.rand(4, 1, 28, 28)
        out = DSA(operation).draw(4)(x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("strategy", "named"),
    [("color_flop", "flop"), ("diffaug:color_flop", "flop"), ("idc:color_crop", "idc:color"), ("diffaug", "diffaug")],
)
def test_unknown_operation_is_refused_with_the_valid_ones(strategy, named):
    valid = "color, crop, cutout, flip, scale, rotate, brightness, saturation, contrast"
    with pytest.raises(UsageError, match=f"unknown augmentation '{named}'; valid ones: {valid}"):
        DSA(strategy)
