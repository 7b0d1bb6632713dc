"""Stored pixels and their parts: the same images without copies; statistics that are computed once."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch

from ddbench import Dataset, Pixels, Preprocessing, RealData, Seed, Store, UsageError
from ddbench.data import preprocessing as preprocessing_module


def images(n: int = 12, shape=(3, 4, 5), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path))
    return tmp_path


ROWS = torch.tensor([7, 2, 2, 11])


@pytest.mark.parametrize(
    "index", [0, -1, slice(1, 3), slice(None), torch.tensor([3, 0]), torch.tensor([True, False, True, True])]
)
def test_pixels_are_indexed_like_the_tensor_of_their_images(index):
    part = Pixels(Store(images()), ROWS)
    assert torch.equal(part[index], images()[ROWS][index])
    whole = Pixels.of(images()[ROWS])
    assert torch.equal(whole[index], images()[ROWS][index])


def test_pixels_look_like_the_tensor_of_their_images():
    part = Pixels(Store(images()), ROWS)
    assert part.shape == (4, 3, 4, 5)
    assert (len(part), part.numel(), part.dtype) == (4, 240, torch.uint8)
    assert torch.equal(torch.stack(list(part)), images()[ROWS])
    assert torch.equal(part[:, 1, ..., 0], images()[ROWS][:, 1, ..., 0])
    assert torch.equal(torch.cat(list(part.blocks())), part[:])


def test_a_subset_of_a_subset_shares_the_store():
    part = Pixels(Store(images()), ROWS)
    inner = part.subset(torch.tensor([3, 0]))
    assert inner.store is part.store
    assert torch.equal(inner[:], images()[[11, 7]])


def test_pixels_digest_is_that_of_content_and_rows():
    one = Pixels(Store(images()), ROWS)
    same, otherwise = Pixels(Store(images().clone()), ROWS.clone()), Pixels(Store(images()), ROWS.flip(0))
    changed = images()
    changed[0, 0, 0, 0] ^= 1
    digests = [p.digest for p in (one, otherwise, Pixels(Store(images())), Pixels(Store(changed), ROWS))]
    assert same.digest == one.digest
    assert len(set(digests)) == 4


def test_a_known_digest_of_a_store_spares_reading_it():
    known = Store(images()).content
    assert Store(torch.zeros(1), known=known).content == known


def test_dividing_a_dataset_copies_no_pixels():
    targets = torch.arange(3).repeat_interleave(40)
    dataset = Dataset.split("d", ("a", "b", "c"), (images(120), targets), (images(6, seed=1), torch.arange(6) % 3))
    assert dataset.train.pixels.store is dataset.validation.pixels.store
    assert len(dataset.train) + len(dataset.validation) == 120


def test_batches_of_a_mapped_file_leave_it_as_it_is(tmp_path):
    path = tmp_path / "pixels.npy"
    np.save(path, images().numpy())
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    real = RealData(mapped, torch.arange(12) % 2, Preprocessing.fit(mapped), 2)
    batch = next(real.batches(5))
    batch.images.zero_()
    assert torch.equal(real.pixels[:], images())
    assert torch.equal(torch.from_numpy(np.load(path)), images())


def test_some_classes_are_drawn_in_the_order_asked_for():
    targets = torch.arange(4).repeat_interleave(5)
    real = RealData(images(20), targets, Preprocessing.fit(images(20)), 4)
    with Seed(0).scope():
        batch = real.draw(3, classes=[2, 0])
    assert batch.labels.argmax(1).tolist() == [2, 2, 2, 0, 0, 0]
    with pytest.raises(UsageError, match="6 images per class asked for, but the smallest class has 5"):
        real.draw(6, classes=[1])


# -- statistics ----------------------------------------------------------------------------------------------


def test_zca_equals_kornias_with_its_inverse():
    kornia = pytest.importorskip("kornia", reason="kornia is the independent computation")
    pixels = images(400, (3, 6, 6))
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


def test_statistics_that_take_long_are_fitted_once(home):
    pixels = Pixels.of(images(40, (3, 12, 12)))
    first = Preprocessing.cached(pixels, zca=True)
    with patch.object(Preprocessing, "fit", side_effect=AssertionError("fitted again")):
        again = Preprocessing.cached(Pixels.of(images(40, (3, 12, 12))), zca=True)
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    assert len(list((home / "preprocessing").glob("*.safetensors"))) == 1


def test_cached_statistics_belong_to_their_images_and_threads(home, monkeypatch):
    Preprocessing.cached(Pixels.of(images(40, (3, 12, 12))), zca=True)
    Preprocessing.cached(Pixels.of(images(40, (3, 12, 12), seed=1)), zca=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    Preprocessing.cached(Pixels.of(images(40, (3, 12, 12))), zca=True)
    assert len(list((home / "preprocessing").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", [b"", b"no tensors"])
def test_damaged_statistics_are_fitted_again(home, damage):
    pixels = Pixels.of(images(40, (3, 12, 12)))
    first = Preprocessing.cached(pixels, zca=True)
    (path,) = (home / "preprocessing").glob("*.safetensors")
    path.write_bytes(damage)
    assert torch.equal(Preprocessing.cached(pixels, zca=True).whiten, first.whiten)
    assert torch.equal(Preprocessing.cached(pixels, zca=True).whiten, first.whiten)


def test_statistics_of_few_small_images_leave_no_files(home):
    Preprocessing.cached(Pixels.of(images()))
    Preprocessing.cached(Pixels.of(images()), zca=True)
    assert not (home / "preprocessing").exists()


def test_mean_and_std_do_not_depend_on_threads_or_blocks(monkeypatch):
    pixels = images(300, (3, 8, 8))
    whole = Preprocessing.fit(pixels)
    monkeypatch.setattr("ddbench.data.pixels.BLOCK", 3 * 8 * 8 * 7)
    for name, tensor in Preprocessing.fit(pixels).tensors().items():
        assert torch.equal(tensor, whole.tensors()[name])


def test_zca_of_large_images_is_refused_with_the_memory_it_would_take():
    large = Pixels(Store(torch.zeros(2, 3, 128, 128, dtype=torch.uint8)))
    with pytest.raises(UsageError, match=r"49152 values would take 77 GB.*leave out dataset\.zca"):
        Preprocessing.fit(large, zca=True)
    assert preprocessing_module.LARGEST_ZCA >= 3 * 64 * 64
