"""Corruptions do what their parameters say: against other libraries, closed forms and measured moments."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from ddbench_metrics import KINDS, blurs, corrupt, noises, sampling, shifts, tones
from ddbench_metrics.kinds import SEVERITIES, block_size
from noise import noise
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import Tensor

from ddbench import Seed

ALL = [(kind, severity) for kind in KINDS for severity in SEVERITIES]


def smooth(n: int, c: int, h: int, w: int) -> Tensor:
    """Pictures with structure: sums of waves."""
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    waves = [(torch.sin(3 * (i + 1) * x + j) + torch.cos(4 * (j + 1) * y - i)) for i in range(n) for j in range(c)]
    return ((torch.stack(waves).view(n, c, h, w) + 2) / 4 * 255).round().to(torch.uint8)


# --------------------------------------------------------------------------------- all alike


@pytest.mark.parametrize(("kind", "severity"), ALL)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 9, 14), (1, 2, 14, 9), (2, 3, 40, 33), (1, 1, 1, 1)])
def test_images_of_any_size_and_number_of_channels_keep_their_shape(kind, severity, shape):
    pixels = noise(*shape)
    before = pixels.clone()
    made = corrupt(pixels, kind, severity)
    assert made.shape == pixels.shape
    assert made.dtype == torch.uint8
    assert torch.equal(pixels, before), "the test set itself was corrupted"


@pytest.mark.parametrize(("kind", "severity"), ALL)
def test_a_corruption_depends_on_kind_severity_and_block_and_on_no_generator(kind, severity):
    pixels = smooth(3, 3, 16, 16)
    torch.manual_seed(1)
    first = corrupt(pixels, kind, severity)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, corrupt(pixels, kind, severity))
    torch.manual_seed(1)
    corrupt(pixels, kind, severity)
    assert torch.equal(state, torch.get_rng_state()), "the caller's generator was moved"


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic"])
def test_blocks_and_severities_of_what_is_random_are_drawn_apart(kind):
    pixels = smooth(4, 1, 16, 16)
    assert not torch.equal(corrupt(pixels, kind, 3, 0), corrupt(pixels, kind, 3, 1))
    two = pixels[:1].expand(2, -1, -1, -1)
    assert not torch.equal(*corrupt(two, kind, 3)), "two images of a block are corrupted alike"


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("elastic", "motion_blur", "pixelate")])
def test_a_higher_severity_changes_images_more(kind):
    """Elastic does not, in CIFAR-10-C either: its affine part shrinks as its waves grow."""
    pixels = noise(60, 3, 32, 32)
    change = [float((corrupt(pixels, kind, s).float() - pixels.float()).square().mean()) for s in SEVERITIES]
    assert change == sorted(set(change))
    assert change[0] > 0


def test_blocks_are_a_function_of_the_image_shape_and_bounded_in_memory():
    assert block_size((3, 32, 32)) * 3 * 32 * 32 <= 2_000_000
    assert block_size((3, 2000, 2000)) == 1


# --------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_deviation_that_it_states(severity):
    made = corrupt(torch.full((40, 1, 64, 64), 128, dtype=torch.uint8), "gaussian_noise", severity).double() / 255
    assert float(made.std()) == pytest.approx(noises.DEVIATION[severity - 1], rel=0.02)
    assert float(made.mean()) == pytest.approx(128 / 255, abs=1e-3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_variance_of_a_poisson_process(severity):
    level = 100 / 255
    made = corrupt(torch.full((40, 1, 64, 64), 100, dtype=torch.uint8), "shot_noise", severity).double() / 255
    # 250 photons are nearly one per grey level, which rounding compresses by 4 %
    assert float(made.var()) == pytest.approx(level / noises.PHOTONS[severity - 1], rel=0.05)
    assert float(made.mean()) == pytest.approx(level, abs=2e-3)
    assert not corrupt(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "shot_noise", severity).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_turns_half_of_the_stated_share_black_and_half_white(severity):
    made = corrupt(torch.full((40, 3, 64, 64), 128, dtype=torch.uint8), "impulse_noise", severity)
    share = noises.REPLACED[severity - 1]
    for level in (0, 255):
        assert float((made == level).double().mean()) == pytest.approx(share / 2, rel=0.05)
    assert float((made == 128).double().mean()) == pytest.approx(1 - share, rel=0.005)
    black = made == 0
    assert not torch.equal(black[:, 0], black[:, 1]), "channels are replaced together"


# --------------------------------------------------------------------------------- reading between pixels


@pytest.mark.parametrize(("ours", "theirs"), [("border", "nearest"), ("reflection", "mirror")])
def test_images_are_read_between_pixels_as_scipy_reads_them(ours, theirs):
    image = torch.rand(1, 1, 7, 11, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 7, 11, generator=generator) * 14 - 2
    y = torch.rand(1, 7, 11, generator=generator) * 10 - 2
    expected = map_coordinates(image[0, 0].numpy(), [y[0].numpy(), x[0].numpy()], order=1, mode=theirs)
    assert sampling.read(image, x, y, ours)[0, 0].numpy() == pytest.approx(expected, abs=1e-4)


def test_lengths_follow_the_shorter_side_and_stop_at_half_a_pixel():
    sides = {(32, 32): 1.0, (64, 64): 2.0, (96, 64): 2.0, (8, 8): 0.5, (28, 28): 0.875}
    for (h, w), length in sides.items():
        assert sampling.unit(torch.zeros(1, 1, h, w)) == length


# --------------------------------------------------------------------------------- blurs


def spread(kernel: np.ndarray) -> float:
    """Variance along one axis of weights around their middle."""
    place = np.arange(len(kernel)) - len(kernel) // 2
    return float((kernel.sum(0) * place**2).sum() / kernel.sum())


CIFAR10_C = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]  # radius, antialiasing of defocus_blur


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_spreads_light_as_far_as_the_kernel_of_cifar10_c(severity):
    radius, alias = CIFAR10_C[severity - 1]
    grid = np.arange(-8, 9)
    disc = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    three = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * alias**2))
    expected = spread(disc) + spread(np.outer(three, three))  # variances of a convolution add up
    kernel = blurs.disc(blurs.RADIUS[severity - 1]).double().numpy()
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel == pytest.approx(kernel.T, abs=1e-7)
    assert kernel == pytest.approx(kernel[::-1], abs=1e-7)
    assert spread(kernel) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_defocused_point_is_the_disc(severity):
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1
    kernel = blurs.disc(blurs.RADIUS[severity - 1] * sampling.unit(point))
    reach = len(kernel) // 2
    made = blurs.defocus(point, severity - 1)[0, 0]
    around = made[10 - reach : 11 + reach, 10 - reach : 11 + reach]
    assert torch.allclose(around, kernel, atol=1e-6)
    assert float(made.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_moves_a_point_by_the_mean_of_half_a_gaussian_within_45_degrees(severity):
    points = torch.zeros(12, 1, 96, 96)
    points[:, 0, 48, 48] = 1
    with Seed(severity).scope():
        made = blurs.motion(points, severity - 1)[:, 0].double()
    deviation = blurs.TRAIL[severity - 1] * 3  # 96 pixels are three times 32
    along = torch.linspace(0, 3.5 * deviation, 20001, dtype=torch.float64)
    weights = torch.exp(-0.5 * (along / deviation).square())
    expected = float((weights * along).sum() / weights.sum())
    place = torch.arange(96, dtype=torch.float64) - 48
    x, y = (made.sum(1) * place).sum(1), (made.sum(2) * place).sum(1)
    assert made.sum((1, 2)).tolist() == pytest.approx([1] * 12, abs=1e-4)
    assert torch.hypot(x, y).tolist() == pytest.approx([expected] * 12, rel=0.02)
    angles = torch.atan2(-y, -x)
    assert float(angles.abs().max()) <= math.pi / 4 + 1e-3
    assert float(angles.max() - angles.min()) > 0.5, "all images move the same way"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_moves_light_as_far_as_the_trail_of_cifar10_c(severity):
    deviation = [1, 1.5, 2, 2, 2.5][severity - 1]
    pixel = np.arange(13)
    weights = np.exp(-(pixel**2) / (2 * deviation**2))
    mean = blurs.TRAIL[severity - 1] * math.sqrt(2 / math.pi)  # of half a Gaussian
    assert mean == pytest.approx((weights * pixel).sum() / weights.sum(), rel=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_is_the_mean_of_zooms_as_scipy_makes_them(severity):
    image = noise(1, 1, 15, 20).float() / 255
    y, x = np.meshgrid(np.arange(15.0), np.arange(20.0), indexing="ij")
    last = [1.05, 1.10, 1.15, 1.20, 1.25][severity - 1]
    zooms = np.arange(1, last + 0.005, 0.01)
    parts = [image[0, 0].numpy()]
    for z in zooms:
        places = [7 + (y - 7) / z, 9.5 + (x - 9.5) / z]
        parts.append(map_coordinates(image[0, 0].numpy(), places, order=1, mode="nearest"))
    assert len(zooms) == 5 * severity + 1
    assert blurs.zoom(image, severity - 1)[0, 0].numpy() == pytest.approx(np.mean(parts, 0), abs=1e-4)


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "zoom_blur", "elastic", "pixelate", "contrast"])
def test_an_image_of_one_colour_stays_as_it_is(kind):
    plain = torch.tensor([10, 120, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 12, 17)
    for severity in SEVERITIES:
        assert torch.equal(corrupt(plain, kind, severity), plain)


# --------------------------------------------------------------------------------- tones


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_of_one_channel_is_an_exact_sum(severity):
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (torch.arange(256) + 255 * tones.LIGHT[severity - 1]).clamp_max(255)
    made = corrupt(levels, "brightness", severity).flatten().double()
    assert float((made - expected).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_of_colours_raises_the_value_of_hsv(severity):
    pixels = noise(1, 3, 8, 8)
    pixels[0, :, 0, 0] = 0
    made = corrupt(pixels, "brightness", severity)
    for old, new in zip(pixels[0].flatten(1).T.tolist(), made[0].flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in old))
        expected = colorsys.hsv_to_rgb(h, s, min(1.0, v + tones.LIGHT[severity - 1]))
        assert new == pytest.approx([255 * value for value in expected], abs=0.51)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_the_distance_to_the_mean_of_each_channel(severity):
    pixels = noise(2, 3, 9, 7)
    x = pixels.numpy().astype(float)
    mean = x.mean((2, 3), keepdims=True)
    expected = mean + (x - mean) * tones.CONTRAST[severity - 1]
    assert corrupt(pixels, "contrast", severity).numpy() == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize("severity", range(5))
def test_fog_lies_between_its_bounds_and_keeps_the_brightest_value(severity):
    thickness, _ = tones.FOG[severity]
    grey = 0.6
    with Seed(0).scope():
        made = tones.fog(torch.full((6, 3, 32, 32), grey), severity)
    shrunk = grey / (grey + thickness)
    assert made.amin((1, 2, 3)).tolist() == pytest.approx([grey * shrunk] * 6, abs=1e-5)
    assert made.amax((1, 2, 3)).tolist() == pytest.approx([grey] * 6, abs=1e-5)
    assert torch.equal(made[:, 0], made[:, 2]), "fog has a colour"


def test_plasma_with_a_higher_decay_is_smoother():
    with Seed(0).scope():
        rough, fine = tones.plasma(40, 32, 1.75), tones.plasma(40, 32, 3.0)
    slope = [float(field.diff(dim=2).square().mean() / field.var()) for field in (rough, fine)]
    assert slope[0] > 1.5 * slope[1]


# --------------------------------------------------------------------------------- shapes and files


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_a_round_trip_through_a_file_of_pil(severity, channels):
    pixels = smooth(3, channels, 20, 28)
    made = corrupt(pixels, "jpeg", severity)
    for image, stored in zip(pixels, made, strict=True):
        stream = io.BytesIO()
        shown = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
        Image.fromarray(shown).save(stream, "JPEG", quality=[80, 65, 58, 50, 40][severity - 1])
        expected = np.asarray(Image.open(stream))
        assert np.array_equal(stored[0] if channels == 1 else stored.permute(1, 2, 0), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_two_resizes_of_pil(severity):
    pixels = noise(2, 3, 32, 20)
    kept = [0.95, 0.9, 0.85, 0.75, 0.65][severity - 1]
    for image, made in zip(pixels, corrupt(pixels, "pixelate", severity), strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((int(20 * kept), int(32 * kept)), Image.BOX)
        assert np.array_equal(made.permute(1, 2, 0), np.asarray(small.resize((20, 32), Image.BOX)))


def ramps(side: int) -> Tensor:
    """Two channels that hold x and y themselves."""
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    return torch.stack([x, y])[None]


def test_the_mildest_elastic_corruption_is_affine():
    side = 64
    with Seed(0).scope():
        made = shifts.elastic(ramps(side).expand(5, -1, -1, -1), 0)
    inner = slice(16, 48)  # what is mirrored at the edges is not affine
    places = ramps(side)[0, :, inner, inner].flatten(1).T.double()
    basis = torch.cat([places, torch.ones(len(places), 1, dtype=torch.float64)], 1)
    for image in made[:, :, inner, inner]:
        wanted = image.flatten(1).T.double()
        found = torch.linalg.lstsq(basis, wanted).solution
        assert float((basis @ found - wanted).abs().max()) < 1e-2
        assert float((wanted - places).abs().max()) > 0.5, "nothing moved"


def test_three_points_move_no_farther_than_stated():
    side, jitter = 32, 2.0
    with Seed(0).scope():
        maps = shifts._affine(torch.zeros(200, 1, side, side), jitter)
    arm = side / 3
    corners = torch.tensor([[arm, arm], [arm, -arm], [-arm, -arm]]) + side / 2
    away = torch.stack([torch.linalg.solve(m[:, :2], (corners - m[:, 2]).T).T - corners for m in maps])
    assert float(away.abs().max()) <= jitter + 1e-3
    assert float(away.std()) == pytest.approx(jitter / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
def test_waves_have_the_deviation_that_cifar10_c_makes(severity):
    """Uniform noise through a Gaussian, times a number, as its code does; here stated as a deviation."""
    from scipy.ndimage import gaussian_filter

    amount, sigma = [(1.6, 6.4), (2.56, 1.92), (3.2, 1.28), (3.2, 0.96)][severity - 1]
    raw = np.random.default_rng(0).uniform(-1, 1, (40, 128, 128))
    theirs = np.stack([gaussian_filter(field, sigma, mode="reflect", truncate=3) * amount for field in raw])
    inner = theirs[:, 20:-20, 20:-20]  # mirrored noise makes larger waves at the edges
    assert shifts.WAVES[severity] * 32 == pytest.approx(inner.std(), rel=0.05)
    with Seed(0).scope():
        ours = shifts._waves(torch.zeros(60, 1, 128, 128), shifts.REACH[severity])
    assert float(ours.std()) == pytest.approx(1, rel=0.05)
