"""Which space stored pixels are in, told from real images, and from images as noisy as distilled ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddbench import Preprocessing
from ddbench.data.dataset import Dataset, RealData
from ddbench.errors import UsageError
from ddbench.files.pixelspace import (
    BROUGHT,
    CAFFE,
    CONSTANTS,
    SPACES,
    Finding,
    applied,
    brought,
    candidates,
    detect,
    looked_at,
    plain,
    same,
    sample,
    stated,
    undone,
    unit,
)
from ddbench.plugins import registry

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.zip"


@cache
def digits() -> Dataset:
    return registry().get("dataset", "digits").cls().load()


@cache
def smaller() -> RealData:
    """CIFAR-10 at half its size, so that whitening takes no time."""
    cifar = registry().get("dataset", "images").cls(root=str(CIFAR), limit=3000).load().train
    halved = torch.nn.functional.avg_pool2d(cifar.pixels[:].float(), 2).round().byte()
    return RealData(halved, cifar.targets, Preprocessing.fit(halved), 10)


def real(name: str) -> RealData:
    if name == "cifar10" and not CIFAR.exists():
        pytest.skip(f"{CIFAR.name} is not here")
    return digits().train if name == "digits" else smaller()


@cache
def whitened(name: str) -> Preprocessing:
    return Preprocessing.fit(real(name).pixels, zca=True)


def seen_as(space: str, name: str) -> Preprocessing:
    return whitened(name) if space == "zca" else stated(space, real(name), None)


def verdict(images: Tensor, name: str) -> Finding:
    data = real(name)
    return detect(images, candidates(images, data, lambda: whitened(name)), looked_at(data))


def some(name: str, count: int = 100) -> Tensor:
    return real(name).pixels[torch.arange(5, 5 + count)].float() / 255


@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("space", ["unit", "dataset", "zca"])
def test_real_images_tell_their_space(name, space):
    found = verdict(applied(some(name), seen_as(space, name)), name)
    assert found.space == space
    assert found.clear
    assert "neighbours correlate" in found.evidence
    assert found.doubt(space) is None


@pytest.mark.parametrize("space", ["unit", "dataset", "zca"])
@pytest.mark.parametrize(("noise", "contrast"), [(0.3, 1.0), (1.0, 1.0), (0.3, 2.0), (1.0, 2.0), (0.5, 0.6)])
def test_images_as_noisy_as_distilled_ones_tell_their_space(space, noise, contrast):
    images = applied(some("cifar10"), seen_as(space, "cifar10"))
    generator = torch.Generator().manual_seed(0)
    images = images * contrast + noise * images.std() * torch.randn(images.shape, generator=generator)
    found = verdict(images.clamp(0, 1) if space == "unit" else images, "cifar10")
    assert found.space == space, found.evidence


@pytest.mark.parametrize("space", ["unit", "dataset", "zca"])
def test_ten_images_are_enough(space):
    assert verdict(applied(some("cifar10", 10), seen_as(space, "cifar10")), "cifar10").space == space


@pytest.mark.parametrize("wrong", ["unit", "zca", "cifar10"])
def test_a_stated_space_that_the_numbers_contradict_is_doubted(wrong):
    truth = {"unit": "dataset", "zca": "dataset", "cifar10": "zca"}[wrong]
    data, images = real("cifar10"), applied(some("cifar10"), seen_as(truth, "cifar10"))
    tried = candidates(images, data, lambda: whitened("cifar10")) | {wrong: seen_as(wrong, "cifar10")}
    warning = detect(images, tried, looked_at(data)).doubt(wrong)
    assert warning is not None
    assert warning.startswith(f"Warning: the pixels were stated to be in {wrong!r} space, but look like {truth!r}")


def test_zca_is_fitted_only_where_it_may_be_needed():
    data = real("cifar10")

    def never() -> Preprocessing:
        raise AssertionError("fitted")

    assert set(candidates(applied(some("cifar10"), plain(data)), data, never)) == {"unit", "dataset"}
    noise = torch.randn(20, *data.shape, generator=torch.Generator().manual_seed(0))
    assert set(candidates(noise, data, None)) == {"unit", "dataset"}


@pytest.mark.parametrize("space", ["unit", "dataset", "zca"])
def test_undoing_a_step_gives_the_pixels_back(space):
    step, images = seen_as(space, "digits"), some("digits")
    assert torch.allclose(undone(applied(images, step), step).float(), images, atol=1e-5)
    pixels = digits().train.pixels[torch.arange(9)]
    assert torch.allclose(applied(pixels.float() / 255, step), step(pixels), atol=1e-6)


def test_constants_that_hardly_differ_are_the_same_and_others_are_not():
    steps = {name: Preprocessing(torch.tensor(m), torch.tensor(s)) for name, (m, s) in CONSTANTS.items()}
    assert same(steps["cifar10"], steps["cifar100"])
    assert not same(steps["cifar10"], unit(3))
    assert not same(steps["mnist"], unit(1))


def test_means_and_deviations_can_be_given_as_numbers():
    step = stated(".1,.2,.3/.4,.5,.6", real("cifar10"), None)
    assert torch.equal(step.mean, torch.tensor([0.1, 0.2, 0.3]))
    assert step.std is not None
    assert torch.equal(step.std, torch.tensor([0.4, 0.5, 0.6]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unti", "did you mean 'unit'"),
        ("a/b", "must be 1 means"),
        ("1/2/3", "must be 1 means"),
        (".1/.2,.3", "as many"),
        (".5/0", "positive"),
        (".5/-1", "positive"),
        ("nan/1", "positive"),
        (".5/inf", "positive"),
        ("cifar10", "3 channels, but images of the dataset have 1"),
        ("zca", "dataset.zca=true"),
    ],
)
def test_spaces_that_cannot_be_are_refused(name, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        stated(name, digits().train, None)


def test_a_whitened_dataset_has_both_spaces():
    data = registry().get("dataset", "digits").cls(zca=True).load().train
    assert stated("zca", data, None) is data.preprocessing
    assert plain(data).kind == "meanstd"
    assert "auto" in SPACES


def test_a_sample_is_spread_over_all_images():
    assert len(sample(torch.zeros(1001, 1, 2, 2))) <= 500
    assert len(sample(torch.zeros(3, 1, 2, 2))) == 3


def test_blank_images_get_a_verdict_all_the_same():
    assert verdict(torch.zeros(1, 1, 8, 8), "digits").space in ("unit", "dataset", "zca")


# ---------------------------------------------------------------------------------- other scales


def in_space(space: str, x: Tensor) -> Tensor:
    """Images in [0, 1] as they are stored in it."""
    flat = x.flatten(1)
    return {
        "bytes": x * 255,
        "symmetric": x * 2 - 1,
        "half": x - 0.5,
        "centred": x * 255 - (x * 255).mean((0, 2, 3), keepdim=True),
        "standardised": ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(x),
    }[space]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("space", ["bytes", "symmetric", "half", "standardised"])
def test_scales_that_occur_are_told(name, space):
    found = verdict(in_space(space, some(name)), name)
    assert found.space == space, found.evidence
    assert found.clear
    assert not found.unlike


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_bytes_less_their_mean_are_told_or_left_to_the_user(name):
    """Of colours, nobody can tell whether blue or red came first."""
    found = verdict(in_space("centred", some(name)), name)
    assert found.space == "centred"
    assert found.clear is (name == "digits")


@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("space", ["bytes", "symmetric", "half", "centred"])
def test_images_of_other_scales_come_back(name, space):
    data, images = real(name), some(name)
    step = stated(space, data, None)
    back = undone(applied(images, step), step).float()
    assert torch.allclose(back, images, atol=1e-5)
    if space in BROUGHT:
        assert torch.allclose(brought(applied(images, step), space, step), images, atol=1e-5)


def test_colours_of_caffe_are_turned_to_red_green_blue():
    images, data = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)), coloured()
    stored = images.flip(1) * 255 - torch.tensor(CAFFE).view(1, 3, 1, 1)
    assert torch.allclose(brought(stored, "caffe", stated("caffe", data, None)), images, atol=1e-5)
    with pytest.raises(UsageError, match="3 channels, but images of the dataset have 1"):
        stated("caffe", digits().train, None)


def coloured() -> RealData:
    pixels = torch.randint(256, (30, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return RealData(pixels, torch.arange(30) % 3, Preprocessing.fit(pixels), 3)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("change", [lambda x: x * 4095, lambda x: x / 255, lambda x: x * 10 + 10, lambda x: x * 16 + 3])
def test_pixels_on_a_scale_that_is_none_of_them_are_unlike_images(name, change):
    assert verdict(change(some(name)), name).unlike


@pytest.mark.parametrize("space", ["unit", "dataset", "zca"])
@pytest.mark.parametrize(("noise", "contrast"), [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (0.5, 0.6)])
def test_distilled_images_are_not_unlike_real_ones(space, noise, contrast):
    images = applied(some("cifar10"), seen_as(space, "cifar10"))
    generator = torch.Generator().manual_seed(0)
    images = images * contrast + noise * images.std() * torch.randn(images.shape, generator=generator)
    found = verdict(images.clamp(0, 1) if space == "unit" else images, "cifar10")
    assert not found.unlike, found.evidence
