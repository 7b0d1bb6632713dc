"""Real data: draws, stratified shares, splits, digests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise import smooth_noise

from ddbench import DataError, Dataset, Preprocessing, RealData, Seed, UsageError, stratified


def some_real(counts=(5, 3, 7), seed: int = 0, shape=(3, 4, 5)) -> RealData:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.from_numpy(np.random.default_rng(seed).permutation(len(targets)))]
    pixels = smooth_noise(len(targets), shape, seed)
    return RealData(pixels, targets, Preprocessing.fit(pixels), len(counts))


# -- real data -----------------------------------------------------------------------------------------------


def test_indexing_gives_preprocessed_images_with_one_hot_labels():
    real = some_real()
    index = torch.tensor([4, 0, 4])
    batch = real[index]
    assert len(batch) == 3
    x = real.pixels[index] / 255
    expected = (x - real.preprocessing.mean.view(1, 3, 1, 1)) / real.preprocessing.std.view(1, 3, 1, 1)
    torch.testing.assert_close(batch.images, expected)
    assert torch.equal(batch.labels, torch.eye(3)[real.targets[index]])
    assert batch.images.dtype == batch.labels.dtype == torch.float32


def test_batches_are_all_examples_in_order():
    real = some_real()
    batches = list(real.batches(4))
    assert [len(b) for b in batches] == [4, 4, 4, 3]
    assert torch.equal(torch.cat([b.images for b in batches]), real[torch.arange(15)].images)


def test_members_are_the_images_of_each_class():
    real = some_real((5, 3, 7))
    assert [m.tolist() for m in real.members] == [
        [i for i, t in enumerate(real.targets.tolist()) if t == c] for c in range(3)
    ]
    assert real.smallest_class == 3


def test_class_without_images_has_no_members():
    real = RealData(smooth_noise(3), torch.tensor([0, 2, 0]), Preprocessing.fit(smooth_noise(3)), 4)
    assert [m.tolist() for m in real.members] == [[0, 2], [], [1], []]
    assert real.smallest_class == 0


def test_draw_gives_each_class_in_order_without_replacement():
    real = some_real((5, 3, 7))
    with Seed(0).scope():
        batch = real.draw(3)
    assert batch.labels.argmax(1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    everything = real[torch.arange(15)].images.flatten(1)
    rows = [(everything == image.flatten()).all(1).nonzero().item() for image in batch.images]
    assert len(set(rows)) == 9
    assert real.targets[torch.tensor(rows)].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_draw_is_random_and_a_function_of_the_generator():
    real = some_real((20, 20))
    with Seed(0).scope():
        first, second = real.draw(5).images, real.draw(5).images
    with Seed(0).scope():
        assert torch.equal(real.draw(5).images, first)
    assert not torch.equal(first, second)


def test_draw_refuses_more_images_than_the_smallest_class_has():
    with pytest.raises(UsageError, match="4 images per class asked for, but the smallest class has 3"):
        some_real((5, 3, 7)).draw(4)


def test_subset_keeps_pixels_targets_and_preprocessing():
    real = some_real()
    part = real.subset(torch.tensor([2, 9]))
    assert torch.equal(part[torch.arange(2)].images, real[torch.tensor([2, 9])].images)
    assert torch.equal(part.targets, real.targets[[2, 9]])
    assert part.classes == real.classes
    assert real.shape == part.shape == (3, 4, 5)


def test_images_that_are_whitened_once_are_those_whitened_batch_by_batch():
    pixels = smooth_noise(1200, (1, 4, 4))
    targets = torch.arange(1200) % 3
    for zca in (True, False):
        real = RealData(pixels, targets, Preprocessing.fit(pixels, zca=zca), 3)
        index = torch.tensor([1100, 0, 7])
        whole, once = real[index], real.at_hand[index]
        torch.testing.assert_close(once.images, whole.images, rtol=1e-5, atol=1e-6)
        assert torch.equal(once.labels, whole.labels)
        sizes = [len(batch) for batch in real.at_hand.batches(500)]
        assert sizes == [500, 500, 200]
        assert (real.at_hand is real) is not zca


def test_more_images_than_fit_are_whitened_batch_by_batch(monkeypatch):
    pixels = smooth_noise(60)
    real = RealData(pixels, torch.arange(60) % 3, Preprocessing.fit(pixels, zca=True), 3)
    monkeypatch.setattr("ddbench.data.dataset.LARGEST_WHITENED", 100)
    assert real.at_hand is real


# -- digests -------------------------------------------------------------------------------------------------


def rebuilt(real: RealData, **changes) -> RealData:
    parts = {"pixels": real.pixels[:], "targets": real.targets, "preprocessing": real.preprocessing, "classes": 3}
    return RealData(**(parts | changes))


def test_digest_is_that_of_the_contents():
    real = some_real()
    assert rebuilt(real, pixels=real.pixels[:].clone()).digest == real.digest
    strided = real.pixels[:].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)  # the same images, laid out otherwise
    assert rebuilt(real, pixels=strided).digest == real.digest


def test_digest_changes_with_one_pixel_one_target_and_the_preprocessing():
    real = some_real()
    pixels, targets = real.pixels[:].clone(), real.targets.clone()
    pixels[14, 2, 3, 4] ^= 1
    targets[0] = (targets[0] + 1) % 3
    mean = real.preprocessing.mean.clone()
    mean[0] += 1e-6
    changed = [
        rebuilt(real, pixels=pixels),
        rebuilt(real, targets=targets),
        rebuilt(real, classes=4),
        rebuilt(real, pixels=real.pixels[:].view(15, 3, 5, 4)),
        rebuilt(real, preprocessing=Preprocessing(mean, real.preprocessing.std)),
        rebuilt(real, preprocessing=Preprocessing.fit(real.pixels, zca=True)),
    ]
    digests = {real.digest, *(c.digest for c in changed)}
    assert len(digests) == 7


def test_pixel_behind_the_first_block_changes_the_digest():
    pixels = torch.zeros(10_001, 1, 2, 2, dtype=torch.uint8)
    pixels[0, 0, 0, 0] = 9
    other = pixels.clone()
    other[10_000, 0, 1, 1] = 1
    fitted = Preprocessing.fit(pixels)
    targets = torch.zeros(10_001, dtype=torch.int64)
    assert RealData(pixels, targets, fitted, 2).digest != RealData(other, targets, fitted, 2).digest


# -- stratified shares ---------------------------------------------------------------------------------------


@st.composite
def tallies(draw):
    sizes = draw(st.lists(st.integers(0, 25), min_size=1, max_size=6).filter(any))
    return sizes, draw(st.integers(1, sum(sizes))), draw(st.integers(0, 5))


def spread(sizes: list[int]) -> torch.Tensor:
    targets = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))]


@given(tallies())
def test_stratified_choice_is_of_the_right_size_without_repeats_in_order(tally):
    sizes, count, seed = tally
    chosen = stratified(spread(sizes), count, seed).tolist()
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < sum(sizes)


@given(tallies())
def test_stratified_choice_keeps_the_proportions(tally):
    sizes, count, seed = tally
    targets = spread(sizes)
    shares = torch.bincount(targets[stratified(targets, count, seed)], minlength=len(sizes)).tolist()
    exact = [size * count / sum(sizes) for size in sizes]
    everyone = count >= sum(size > 0 for size in sizes)
    for size, share in zip(sizes, shares, strict=True):
        assert share <= size
        assert share >= (1 if everyone and size else 0)
    if everyone and all(ideal >= 1 or not size for size, ideal in zip(sizes, exact, strict=True)):
        assert all(abs(share - ideal) < 1 for share, ideal in zip(shares, exact, strict=True))


@given(tallies())
def test_stratified_choice_is_a_function_of_its_seed(tally):
    sizes, count, seed = tally
    targets = spread(sizes)
    assert torch.equal(stratified(targets, count, seed), stratified(targets, count, seed))


def test_stratified_choice_differs_by_seed_and_draws_nothing_from_the_global_generator():
    targets = spread([50, 50])
    state = torch.get_rng_state()
    assert not torch.equal(stratified(targets, 20, 0), stratified(targets, 20, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_remainders_go_to_the_largest_fractions():
    # 10 of 20 + 15 + 5: exact shares 5, 3.75, 1.25
    targets = spread([20, 15, 5])
    assert torch.bincount(targets[stratified(targets, 10, 0)]).tolist() == [5, 4, 1]


def test_rare_classes_keep_their_one_item_at_the_cost_of_the_largest():
    targets = spread([25, 1, 1, 1, 1])
    assert torch.bincount(targets[stratified(targets, 6, 0)]).tolist() == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("count", [0, -1, 11])
def test_impossible_count_is_refused_with_the_choice(count):
    with pytest.raises(UsageError, match=rf"cannot take {count} of 10 images; choose between 1 and 10"):
        stratified(spread([4, 6]), count, 0)


# -- datasets ------------------------------------------------------------------------------------------------


def some_dataset(**options) -> Dataset:
    pixels = smooth_noise(60)
    targets = spread([30, 20, 10])
    return Dataset.split(
        "toy", ("a", "b", "c"), (pixels, targets), (smooth_noise(9, seed=1), spread([3, 3, 3])), **options
    )


def test_split_divides_the_train_set_into_train_and_validation():
    dataset = some_dataset(validation=0.2)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (48, 12, 9)
    assert torch.bincount(dataset.validation.targets).tolist() == [6, 4, 2]
    together = torch.cat([dataset.train.pixels[:], dataset.validation.pixels[:]]).flatten(1)
    assert sorted(together.tolist()) == sorted(smooth_noise(60).flatten(1).tolist())


@pytest.mark.parametrize("zca", [False, True])
def test_preprocessing_is_fitted_before_validation_is_carved_out(zca):
    dataset = some_dataset(validation=0.5, zca=zca)
    whole, part = Preprocessing.fit(smooth_noise(60), zca=zca), Preprocessing.fit(dataset.train.pixels, zca=zca)
    for name, tensor in whole.tensors().items():
        assert not torch.equal(tensor, part.tensors()[name])
        for split in (dataset.train, dataset.validation, dataset.test):
            assert torch.equal(split.preprocessing.tensors()[name], tensor)


def test_given_preprocessing_is_kept():
    given = Preprocessing(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
    assert some_dataset(preprocessing=given).test.preprocessing is given


def test_split_is_a_function_of_the_datasets_own_seed():
    first, again, other = some_dataset(), some_dataset(), some_dataset(seed=1)
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert first.test.digest == other.test.digest


def test_dataset_digest_changes_with_a_class_name():
    parts = (smooth_noise(60), spread([30, 20, 10]))
    one = Dataset.split("toy", ("a", "b", "c"), parts, parts)
    two = Dataset.split("toy", ("a", "b", "d"), parts, parts)
    assert one.digest != two.digest


def test_validation_is_a_tenth_by_default_and_never_empty():
    assert len(some_dataset().validation) == 6
    assert len(some_dataset(validation=0.001).validation) == 1


def test_every_class_keeps_a_train_image_after_validation_is_carved_out():
    parts = (smooth_noise(20), spread([12, 7, 1]))
    dataset = Dataset.split("toy", ("a", "b", "c"), parts, parts, validation=0.2)
    assert dataset.train.smallest_class >= 1


BAD_PARTS = {
    "float pixels": (lambda p, t: (p.float(), t), "must be uint8"),
    "flat pixels": (lambda p, t: (p.flatten(1), t), "must be uint8"),
    "a target missing": (lambda p, t: (p, t[:-1]), "60 train images but 59 targets"),
    "a target too large": (lambda p, t: (p, t + 1), r"targets must lie in 0\.\.2"),
    "a negative target": (lambda p, t: (p, t - 1), r"targets must lie in 0\.\.2"),
    "a class without images": (lambda p, t: (p, t.clamp_max(1)), "class 2 has no train images"),
    "no images": (lambda p, t: (p[:0], t[:0]), "no train images"),
}


@pytest.mark.parametrize("fault", BAD_PARTS)
def test_faulty_train_set_is_refused_by_name(fault):
    damage, message = BAD_PARTS[fault]
    good = (smooth_noise(60), spread([30, 20, 10]))
    with pytest.raises(DataError, match=rf"dataset 'toy'.*{message}"):
        Dataset.split("toy", ("a", "b", "c"), damage(*good), good)


def test_empty_test_set_is_refused():
    good = (smooth_noise(60), spread([30, 20, 10]))
    with pytest.raises(DataError, match=r"dataset 'toy'.*test"):
        Dataset.split("toy", ("a", "b", "c"), good, (good[0][:0], good[1][:0]))


def test_test_set_may_lack_a_class_but_not_have_another():
    good = (smooth_noise(60), spread([30, 20, 10]))
    assert len(Dataset.split("toy", ("a", "b", "c"), good, (smooth_noise(4), spread([2, 2]))).test) == 4
    with pytest.raises(DataError, match=r"test targets must lie in 0\.\.2"):
        Dataset.split("toy", ("a", "b", "c"), good, (smooth_noise(4), torch.tensor([0, 1, 2, 3])))


def test_one_class_is_no_classification():
    pixels = smooth_noise(4)
    targets = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(DataError, match="needs at least two"):
        Dataset.split("toy", ("a",), (pixels, targets), (pixels, targets))


def test_validation_share_that_leaves_no_train_set_is_refused():
    with pytest.raises((DataError, UsageError)):
        some_dataset(validation=1.0)
