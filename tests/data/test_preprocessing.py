"""Preprocessing: against NumPy and kornia, undone, kept in files, and the same whatever the threads and blocks."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from noise import noise, smooth_noise

from ddbench import DataError, Pixels, Preprocessing, Store, UsageError
from ddbench.base.cache import home
from ddbench.base.progress import noting
from ddbench.base.tensors import save_tensors
from ddbench.data import preprocessing as preprocessing_module


def test_mean_and_std_are_those_of_each_channel():
    pixels = smooth_noise(2345)  # more than one block of the running sums
    x = pixels.numpy().astype(np.float64) / 255
    fitted = Preprocessing.fit(pixels)
    np.testing.assert_allclose(fitted.mean, x.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(fitted.std, x.std((0, 2, 3)), rtol=1e-6)
    assert fitted.kind == "meanstd"
    expected = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(fitted(pixels), expected, rtol=1e-4, atol=1e-5)


def test_mean_and_std_come_back_to_the_pixels():
    pixels = smooth_noise(20)
    fitted = Preprocessing.fit(pixels)
    torch.testing.assert_close(fitted.invert(fitted(pixels)), pixels / 255, rtol=0, atol=1e-6)


def numpy_zca(pixels: torch.Tensor, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """kornia's ZCAWhitening in float64, by singular values: mean and W = U diag(1 / sqrt(S + eps)) U^T."""
    x = pixels.numpy().reshape(len(pixels), -1).astype(np.float64) / 255
    mean = x.mean(0)
    u, s, _ = np.linalg.svd((x - mean).T @ (x - mean) / (len(x) - 1))
    return mean, u @ np.diag(1 / np.sqrt(s + eps)) @ u.T


@pytest.mark.parametrize("n", [2345, 40])  # more blocks than one; fewer images than dimensions
def test_zca_is_the_whitening_that_kornia_computes(n):
    pixels = smooth_noise(n)
    mean, whiten = numpy_zca(pixels, 0.1)
    fitted = Preprocessing.fit(pixels, zca=True)
    np.testing.assert_allclose(fitted.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(fitted.whiten, whiten, rtol=1e-5, atol=1e-6)
    expected = ((pixels.numpy().reshape(n, -1) / 255.0 - mean) @ whiten).reshape(n, 3, 4, 5)
    np.testing.assert_allclose(fitted(pixels), expected, rtol=1e-4, atol=1e-5)
    assert fitted.kind == "zca"
    assert fitted.std is None


def test_zca_without_regularisation_leaves_uncorrelated_pixels():
    pixels = torch.randint(0, 256, (3000, 1, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    white = Preprocessing.fit(pixels, zca=True, eps=0)(pixels).flatten(1).double()
    np.testing.assert_allclose(np.cov(white.numpy().T), np.eye(9), atol=1e-4)


def test_zca_comes_back_to_the_pixels():
    pixels = smooth_noise(200)
    fitted = Preprocessing.fit(pixels, zca=True)
    torch.testing.assert_close(fitted.invert(fitted(pixels)), pixels / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("zca", [False, True])
def test_inverted_images_stay_in_the_range_of_pixels(zca):
    pixels = smooth_noise(200)
    fitted = Preprocessing.fit(pixels, zca=zca)
    restored = fitted.invert(3 * fitted(pixels))
    assert restored.min() == 0
    assert restored.max() == 1


def test_preprocessing_is_rebuilt_from_its_tensors():
    pixels = smooth_noise(50)
    for zca in (False, True):
        fitted = Preprocessing.fit(pixels, zca=zca)
        again = Preprocessing(**fitted.tensors())
        assert torch.equal(again(pixels), fitted(pixels))
        assert torch.equal(fitted.to("cpu")(pixels), fitted(pixels))


@pytest.mark.parametrize("level", [0, 85, 77, 128, 255])
@pytest.mark.parametrize("n", [7, 5000])
def test_constant_channel_is_refused(level, n):
    pixels = smooth_noise(n)
    pixels[:, 1] = level
    with pytest.raises(DataError, match="channel is constant"):
        Preprocessing.fit(pixels)


def test_channel_with_one_other_pixel_is_not_constant():
    pixels = torch.full((100, 1, 8, 8), 128, dtype=torch.uint8)
    pixels[17, 0, 3, 3] = 129
    assert Preprocessing.fit(pixels).std.item() == pytest.approx(pixels.double().div(255).std(correction=0).item())


# -- against kornia, and kept --------------------------------------------------------------------------------


def test_zca_equals_kornias_with_its_inverse():
    kornia = pytest.importorskip("kornia", reason="kornia is the independent computation")
    pixels = noise(400, 3, 6, 6)
    x = pixels.float() / 255
    oracle = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True).fit(x)
    ours = Preprocessing.fit(pixels, zca=True)
    torch.testing.assert_close(ours(pixels), oracle(x), rtol=0, atol=1e-4)
    white = ours(pixels[:50])
    torch.testing.assert_close(ours.invert(white), oracle.inverse_transform(white), rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.invert(white), x[:50], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_zca_equals_kornias_on_images_of_cifar_size():
    kornia = pytest.importorskip("kornia", reason="kornia is the independent computation")
    base = torch.nn.functional.interpolate(torch.rand(4000, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 32)
    pixels = (base * 255).to(torch.uint8)
    x = pixels.float() / 255
    oracle = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=False).fit(x)
    ours = Preprocessing.fit(pixels, zca=True)
    torch.testing.assert_close(ours(pixels[:500]), oracle(x[:500]), rtol=0, atol=1e-4)


def test_statistics_that_take_long_are_fitted_once():
    pixels = Pixels.of(noise(40, 3, 12, 12))
    first = Preprocessing.cached(pixels, zca=True)
    with patch.object(Preprocessing, "fit", side_effect=AssertionError("fitted again")):
        again = Preprocessing.cached(Pixels.of(noise(40, 3, 12, 12)), zca=True)
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    assert len(list((home() / "preprocessing").glob("*.safetensors"))) == 1


def test_cached_statistics_belong_to_their_images_and_threads(monkeypatch):
    Preprocessing.cached(Pixels.of(noise(40, 3, 12, 12)), zca=True)
    Preprocessing.cached(Pixels.of(noise(40, 3, 12, 12, seed=1)), zca=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    Preprocessing.cached(Pixels.of(noise(40, 3, 12, 12)), zca=True)
    assert len(list((home() / "preprocessing").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", ["empty", "no tensors", "flipped", "other tensors"])
def test_damaged_statistics_are_fitted_again_with_one_line_that_says_so(damage):
    pixels, said = Pixels.of(noise(40, 3, 12, 12)), []
    first = Preprocessing.cached(pixels, zca=True)
    (path,) = (home() / "preprocessing").glob("*.safetensors")
    whole = path.read_bytes()
    if damage == "other tensors":
        save_tensors(path, {"mean": torch.ones(3), "median": torch.ones(3)})
    else:
        raw = {"empty": b"", "no tensors": b"no tensors", "flipped": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]}
        path.write_bytes(raw[damage])
    with noting(said.append):
        assert torch.equal(Preprocessing.cached(pixels, zca=True).whiten, first.whiten)
        assert torch.equal(Preprocessing.cached(pixels, zca=True).whiten, first.whiten)
    assert said == [f"{path} is damaged; it is made again"]
    assert path.read_bytes() == whole


def test_statistics_of_few_small_images_leave_no_files():
    Preprocessing.cached(Pixels.of(noise(12, 3, 4, 5)))
    Preprocessing.cached(Pixels.of(noise(12, 3, 4, 5)), zca=True)
    assert not (home() / "preprocessing").exists()


def test_mean_and_std_do_not_depend_on_threads_or_blocks(monkeypatch):
    pixels = noise(300, 3, 8, 8)
    whole = Preprocessing.fit(pixels)
    monkeypatch.setattr("ddbench.data.pixels.BLOCK", 3 * 8 * 8 * 7)
    for name, tensor in Preprocessing.fit(pixels).tensors().items():
        assert torch.equal(tensor, whole.tensors()[name])


def test_zca_of_large_images_is_refused_with_the_memory_it_would_take():
    large = Pixels(Store(torch.zeros(2, 3, 128, 128, dtype=torch.uint8)))
    with pytest.raises(UsageError, match=r"49152 values would take 77 GB.*leave out dataset\.zca"):
        Preprocessing.fit(large, zca=True)
    assert preprocessing_module.LARGEST_ZCA >= 3 * 64 * 64
