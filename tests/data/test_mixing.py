"""CutMix and MixUp against loops over pixels and against the publications' sums of two losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ddbench import Seed, UsageError
from ddbench.data.mixing import NO_MIX, Mix, Mixing
from ddbench.train.fit import soft_cross_entropy

N, C, H, W, K = 5, 3, 16, 11, 4
KINDS = ["cutmix", "mixup"]
PARTNER = torch.tensor([3, 0, 4, 1, 2])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(N, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def labels() -> Tensor:
    return torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).softmax(1)


def drawn(kind: str, count: int = N, times: int = 1, **more) -> list[Mix]:
    with Seed(6).scope():
        return [Mixing(kind, **({"probability": 1.0} | more)).draw(count) for _ in range(times)]


# -- each mixture --------------------------------------------------------------------------------------------

BOXES = [(0.3, 0.5, 0.5), (0.3, 0.0, 0.0), (0.6, 0.99, 0.99), (0.05, 0.2, 0.9), (0.999, 0.4, 0.4), (0.0, 0.5, 0.5)]


@pytest.mark.parametrize(("share", "down", "right"), BOXES)
def test_cutmix_copies_a_box_of_the_partner_and_keeps_the_share_of_pixels_that_are_left(
    share, down, right, images, labels
):
    cut_h, cut_w = int(H * math.sqrt(1 - share)), int(W * math.sqrt(1 - share))
    y, x = int(H * down), int(W * right)
    expected, own = images.numpy().copy(), 0
    for i in range(H):
        for j in range(W):
            if y - cut_h // 2 <= i < y + cut_h // 2 and x - cut_w // 2 <= j < x + cut_w // 2:
                for n in range(N):
                    expected[n, :, i, j] = images[PARTNER[n], :, i, j]
            else:
                own += 1
    mixed, soft = Mix("cutmix", share, PARTNER, (down, right))(images, labels)
    np.testing.assert_array_equal(mixed, expected)
    kept = own / (H * W)
    wanted = [[kept * labels[n, k] + (1 - kept) * labels[PARTNER[n], k] for k in range(K)] for n in range(N)]
    np.testing.assert_allclose(soft, np.array(wanted), rtol=1e-13)


def test_box_that_the_border_clips_counts_by_what_is_left_of_it(images):
    eye = torch.eye(N, dtype=torch.float64)
    whole = Mix("cutmix", 0.75, PARTNER, (0.5, 0.5))(images, eye)[1]
    clipped = Mix("cutmix", 0.75, PARTNER, (0.0, 0.0))(images, eye)[1]
    assert whole[0, 0].item() == pytest.approx(1 - 8 * 4 / (H * W))  # half of 16, and of 11 down to an even number
    assert clipped[0, 0].item() == pytest.approx(1 - 4 * 2 / (H * W))


def test_mixup_blends_all_pixels_and_labels_by_one_share(images, labels):
    mixed, soft = Mix("mixup", 0.3, PARTNER, (0.1, 0.2))(images, labels)
    for n, m in enumerate(PARTNER.tolist()):
        np.testing.assert_allclose(mixed[n], 0.3 * images[n].numpy() + 0.7 * images[m].numpy(), rtol=1e-13)
        np.testing.assert_allclose(soft[n], 0.3 * labels[n].numpy() + 0.7 * labels[m].numpy(), rtol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_mixed_labels_is_the_sum_of_two_losses(kind, images, labels):
    (mix,) = drawn(kind)
    logits = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    kept = mix(images, torch.eye(N, dtype=torch.float64))[1][0, 0].item()  # nobody is their own partner here
    assert 0.05 < kept < 0.95
    hard = labels.argmax(1)
    for given in (labels, torch.eye(K, dtype=torch.float64)[hard]):
        two = kept * cross_entropy(logits, given) + (1 - kept) * cross_entropy(logits, given[mix.partner])
        assert soft_cross_entropy(logits, mix(images, given)[1]).item() == pytest.approx(two.item(), rel=1e-12)
    published = kept * cross_entropy(logits, hard) + (1 - kept) * cross_entropy(logits, hard[mix.partner])
    assert two.item() == pytest.approx(published.item(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_labels_sum_to_one_again(kind, images, labels):
    for mix in drawn(kind, times=20):
        torch.testing.assert_close(mix(images, labels)[1].sum(1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_keep_all_of_themselves_are_unchanged(kind, images, labels):
    mixed, soft = Mix(kind, 1.0, PARTNER, (0.4, 0.6))(images, labels)
    assert torch.equal(mixed, images)
    assert torch.equal(soft, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_keep_nothing_are_their_partners(kind, labels):
    images = torch.randn(N, C, 8, 8, dtype=torch.float64)
    mixed, soft = Mix(kind, 0.0, PARTNER, (0.5, 0.5))(images, labels)
    assert torch.equal(mixed, images[PARTNER])
    assert torch.equal(soft, labels[PARTNER])


# -- draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_replaying_a_mixture_gives_identical_bits_and_draws_nothing(kind, images, labels):
    mix, other = drawn(kind, times=2)
    before, state = (images.clone(), labels.clone()), torch.get_rng_state()
    first, second = mix(images, labels), mix(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, given, was, unlike in zip(first, second, (images, labels), before, other(images, labels), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(given, was)
        assert not torch.equal(a, given)
        assert not torch.equal(a, unlike)


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_are_a_function_of_torchs_generator(kind):
    for a, b in zip(drawn(kind, times=5), drawn(kind, times=5), strict=True):
        assert (a.share, a.centre) == (b.share, b.centre)
        assert torch.equal(a.partner, b.partner)


def test_mixing_of_none_draws_no_number_and_changes_nothing(images, labels):
    state = torch.get_rng_state()
    mix = Mixing().draw(N)
    assert mix is NO_MIX
    mixed, soft = mix(images, labels)
    assert mixed is images
    assert soft is labels
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("probability", "least", "most"), [(0.0, 0, 0), (0.5, 350, 450), (0.9, 685, 755), (1.0, 800, 800)]
)
def test_batches_are_mixed_with_the_given_probability(probability, least, most):
    mixed = sum(mix is not NO_MIX for mix in drawn("cutmix", times=800, probability=probability))
    assert least <= mixed <= most


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_shares_have_the_moments_of_their_beta_distribution(alpha):
    shares = np.array([mix.share for mix in drawn("mixup", 2, 4000, alpha=alpha)])
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.025)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.07)


def test_shares_and_centres_are_uniform_by_default():
    mixes = drawn("cutmix", 2, 4000)
    for values in ([m.share for m in mixes], [m.centre[0] for m in mixes], [m.centre[1] for m in mixes]):
        quarters = np.histogram(values, bins=4, range=(0, 1))[0] / len(mixes)
        assert abs(quarters - 0.25).max() < 0.03


def test_partners_are_permutations_each_as_often():
    mixes = drawn("mixup", 3, 1200)
    counts = {}
    for mix in mixes:
        counts[tuple(mix.partner.tolist())] = counts.get(tuple(mix.partner.tolist()), 0) + 1
    assert len(counts) == 6
    assert all(150 < count < 250 for count in counts.values())  # 200 expected, deviation 13


def test_centres_of_boxes_reach_every_pixel():
    rows = {int(mix.centre[0] * H) for mix in drawn("cutmix", 2, 400)}
    assert rows == set(range(H))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_is_mixed_with_itself(kind, images, labels):
    for mix in drawn(kind, 1, 5):
        mixed, soft = mix(images[:1], labels[:1])
        torch.testing.assert_close(mixed, images[:1])
        torch.testing.assert_close(soft, labels[:1])


# -- derivatives, types, errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix", [Mix("cutmix", 0.4, PARTNER[:2] % 2, (0.4, 0.6)), Mix("mixup", 0.3, PARTNER[:2] % 2, (0, 0))]
)
def test_gradients_to_images_and_labels_are_those_of_finite_differences(mix):
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mix, (x, y))
    assert torch.autograd.gradgradcheck(mix, (x, y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_and_labels_keep_their_type(kind, dtype, images, labels):
    (mix,) = drawn(kind)
    assert [t.dtype for t in mix(images.to(dtype), labels.to(dtype))] == [dtype, dtype]


def test_unknown_mixing_is_refused_with_the_valid_ones():
    with pytest.raises(UsageError, match="unknown mixing 'cutmx'; valid ones: none, cutmix, mixup"):
        Mixing("cutmx")  # pyright: ignore[reportArgumentType]
