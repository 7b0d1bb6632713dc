"""Stored pixels and their parts: the same images without copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noise import noise

from ddbench import Dataset, Pixels, Preprocessing, RealData, Seed, Store, UsageError


def images(n: int = 12, seed: int = 0) -> torch.Tensor:
    return noise(n, 3, 4, 5, seed=seed)


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
