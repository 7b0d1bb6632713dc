"""The options that all datasets share: which images, with which labels."""

from __future__ import annotations

import pytest
import torch
from ddbench_datasets import GIVEN, TORCHVISION, Digits, Toy
from ddbench_datasets.common import Choices, Whole, assemble, choose
from hypothesis import given
from hypothesis import strategies as st

from ddbench import Dataset, Pixels, Store, UsageError
from ddbench.base.options import make, options

NAMES = ("ant", "bee", "cow", "dog")
SHARED = ("validation", "zca", "statistics", "classes", "imbalance", "limit", "noise")


def targets(*counts: int) -> torch.Tensor:
    """Class numbers in turn as long as there are any, so that they are not sorted."""
    rounds = [[k for k, count in enumerate(counts) if i < count] for i in range(max(counts))]
    return torch.tensor([k for members in rounds for k in members])


TRAIN, TEST = targets(40, 40, 40, 40), targets(5, 5, 5, 5)


def chosen(train: torch.Tensor = TRAIN, **given):
    return choose(Choices(**given), NAMES, train, TEST)


def labels(dataset: Dataset) -> dict[bytes, int]:
    """The class of each train image, those held out included."""
    parts = (dataset.train, dataset.validation)
    return {bytes(i.numpy()): int(t) for part in parts for i, t in zip(part.pixels, part.targets, strict=True)}


def test_every_source_has_all_of_them_with_the_same_defaults():
    for source in (*GIVEN, *TORCHVISION):
        held = options(source())
        assert set(SHARED) <= set(held), source.name
        assert {name: held[name] for name in SHARED if name != "classes"} == {
            "validation": 0.1,
            "zca": False,
            "statistics": "own",
            "imbalance": 1.0,
            "limit": None,
            "noise": 0.0,
        }
        assert held["classes"] == (3 if source is Toy else None)


def test_options_are_read_from_text_and_out_of_range_ones_refused():
    made = make(Choices, {"classes": "dog, ant", "imbalance": "10", "noise": "0.2", "limit": "none"}, "dataset")
    assert (made.classes, made.imbalance, made.noise, made.limit) == (("dog", "ant"), 10, 0.2, None)
    for wrong in ({"noise": "1"}, {"noise": "-0.1"}, {"imbalance": "0.5"}, {"limit": "0"}, {"validation": "1"}):
        with pytest.raises(UsageError, match=rf"dataset\.{next(iter(wrong))}"):
            make(Choices, wrong, "dataset")


def test_by_default_everything_is_chosen_as_it_is():
    all_of_it = chosen()
    assert all_of_it.classes == NAMES
    assert torch.equal(all_of_it.train, torch.arange(160))
    assert torch.equal(all_of_it.train_targets, TRAIN)
    assert torch.equal(all_of_it.test_targets, TEST)


# classes


def test_classes_are_numbered_in_the_order_in_which_they_are_named():
    some = chosen(classes=("dog", "bee"))
    assert some.classes == ("dog", "bee")
    assert some.train.tolist() == [i for i, t in enumerate(TRAIN.tolist()) if t in (3, 1)]
    assert [NAMES[t] for t in TRAIN[some.train].tolist()] == [some.classes[t] for t in some.train_targets.tolist()]
    assert [NAMES[t] for t in TEST[some.test].tolist()] == [some.classes[t] for t in some.test_targets.tolist()]


def test_digits_three_and_seven_are_told_apart_by_their_images():
    whole, two = Digits().load(), Digits(classes=("7", "3")).load()
    assert two.classes == ("7", "3")
    assert labels(two) == {image: {7: 0, 3: 1}[t] for image, t in labels(whole).items() if t in (3, 7)}
    assert two.test.targets.bincount().tolist() == [whole.test.targets.bincount()[k] for k in (7, 3)]


def test_an_unknown_class_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"names 'dgo'; did you mean 'dog'\?; the classes are ant, bee, cow, dog"):
        chosen(classes=("ant", "dgo"))


@pytest.mark.parametrize("classes", [("ant",), ("ant", "ant"), ()])
def test_fewer_than_two_different_classes_are_refused(classes):
    with pytest.raises(UsageError, match="two or more different classes"):
        chosen(classes=classes)


# imbalance


@pytest.mark.parametrize(("imbalance", "sizes"), [(1, [40, 40, 40, 40]), (8, [40, 20, 10, 5]), (100, [40, 9, 2, 2])])
def test_class_sizes_fall_exponentially_to_the_asked_ratio(imbalance, sizes):
    assert chosen(imbalance=imbalance).train_targets.bincount().tolist() == sizes


def test_a_long_tail_starts_from_the_smallest_class_so_that_sizes_fall_whatever_they_were():
    assert chosen(targets(10, 40, 40, 40), imbalance=8).train_targets.bincount().tolist() == [10, 5, 2, 2]


def test_a_long_tail_follows_the_order_in_which_classes_are_named():
    assert chosen(imbalance=4, classes=("dog", "ant")).train_targets.bincount().tolist() == [40, 10]


def test_a_long_tail_keeps_true_labels_and_all_test_images():
    tail = chosen(imbalance=8)
    assert torch.equal(TRAIN[tail.train], tail.train_targets)
    assert torch.equal(tail.test, torch.arange(20))
    assert tail.train.tolist() == sorted(set(tail.train.tolist()))


def test_the_whole_long_tail_can_be_trained_and_selected_on():
    tail = Digits(imbalance=100).load()
    sizes = torch.cat([tail.train.targets, tail.validation.targets]).bincount(minlength=10)
    assert int(sizes.max()) >= 50 * int(sizes.min())
    assert tail.train.smallest_class >= 1


# limit


def test_limit_keeps_the_class_proportions():
    assert chosen(targets(40, 20, 10, 10), limit=16).train_targets.bincount().tolist() == [8, 4, 2, 2]


def test_limit_applies_after_the_long_tail():
    assert chosen(imbalance=8, limit=15).train_targets.bincount().tolist() == [8, 4, 2, 1]


def test_limits_that_cannot_be_kept_are_refused_with_what_can():
    with pytest.raises(UsageError, match="ask for at least 8"):
        chosen(limit=7)
    with pytest.raises(UsageError, match="asks for more than the 160 train images there are"):
        chosen(limit=161)
    with pytest.raises(UsageError, match="asks for more than the 75 train images"):
        chosen(imbalance=8, limit=80)


# noise


@given(st.floats(0, 0.99), st.integers(8, 160))
def test_exactly_the_asked_fraction_of_labels_is_wrong(noise, limit):
    noisy = chosen(noise=noise, limit=limit)
    assert int((noisy.train_targets != TRAIN[noisy.train]).sum()) == round(noise * limit)
    assert set(noisy.train_targets.tolist()) <= set(range(4))


def test_wrong_labels_spread_over_all_other_classes():
    noisy = chosen(targets(400, 400, 400, 400), noise=0.6)
    pairs = torch.bincount(targets(400, 400, 400, 400) * 4 + noisy.train_targets, minlength=16).view(4, 4)
    assert (pairs.diagonal() > 120).all()
    assert ((pairs > 50) | torch.eye(4, dtype=torch.bool)).all()


def test_test_labels_are_never_wrong_and_images_never_change():
    clean, noisy = Digits().load(), Digits(noise=0.4).load()
    assert torch.equal(noisy.test.targets, clean.test.targets)
    assert torch.equal(noisy.test.pixels[:], clean.test.pixels[:])
    before, after = labels(clean), labels(noisy)
    assert before.keys() == after.keys()
    total = len(clean.train) + len(clean.validation)
    assert sum(before[image] != after[image] for image in before) == pytest.approx(0.4 * total, abs=3)  # 3 images twice


def test_validation_images_share_the_wrong_labels():
    clean, noisy = labels(Digits().load()), Digits(noise=0.5).load()
    held = zip(noisy.validation.pixels, noisy.validation.targets.tolist(), strict=True)
    wrong = [clean[bytes(image.numpy())] != target for image, target in held]
    assert 0.3 < sum(wrong) / len(wrong) < 0.7


# whatever is chosen


@pytest.mark.parametrize("given", [{"limit": 40}, {"imbalance": 8}, {"noise": 0.3}, {"imbalance": 4, "noise": 0.1}])
def test_a_choice_is_the_same_in_every_run(given):
    torch.manual_seed(1)
    first = chosen(**given)
    torch.manual_seed(2)
    again = chosen(**given)
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.train_targets, again.train_targets)


def test_toy_has_all_options_but_its_own_classes():
    toy = Toy(classes=4, imbalance=4, noise=0.25, limit=60, zca=True).load()
    assert toy.classes == ("0", "1", "2", "3")
    assert len(toy.train) + len(toy.validation) == 60
    assert toy.train.preprocessing.kind == "zca"
    assert make(Toy, {"classes": "5"}, "dataset").classes == 5
    with pytest.raises(UsageError, match=r"dataset\.classes"):
        make(Toy, {"classes": "1"}, "dataset")


def test_images_of_a_store_are_chosen_without_a_copy():
    stored = Pixels(Store(torch.arange(160, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)))
    test = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    dataset = assemble(Choices(limit=80), "some", Whole(NAMES, stored, TRAIN, test, TEST), augment="none")
    assert dataset.train.pixels.store is dataset.validation.pixels.store is stored.store
    assert torch.equal(TRAIN[dataset.train.pixels[:, 0, 0, 0].long()], dataset.train.targets)
    copied = assemble(Choices(limit=80), "some", Whole(NAMES, stored[:], TRAIN, test, TEST), augment="none")
    assert len(copied.train.pixels.store.array) == 80  # the rest of the memory can be freed


def test_images_without_a_published_test_part_are_divided_in_every_class():
    pixels = torch.arange(160, dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = Whole.divided(NAMES, pixels, TRAIN, 0.2)
    assert whole.test_targets.bincount().tolist() == [8] * 4
    assert torch.equal(TRAIN[whole.test[:, 0, 0, 0].long()], whole.test_targets)
    assert torch.equal(torch.cat([whole.train, whole.test]).flatten().sort().values, pixels.flatten())


def test_images_may_be_normalised_by_the_constants_of_another_dataset():
    pixels = torch.randint(0, 256, (160, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = Whole(NAMES, pixels, TRAIN, pixels[:20], TEST)
    step = assemble(Choices(statistics="cifar10"), "some", whole, augment="").train.preprocessing
    expected = (pixels[:1] / 255 - torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2023, 0.1994, 0.2010]
    ).view(1, 3, 1, 1)
    assert torch.allclose(step(pixels[:1]), expected, atol=1e-5)
    whitened = assemble(Choices(statistics="cifar10", zca=True), "some", whole, augment="").train.preprocessing
    assert whitened.kind == "zca"
    with pytest.raises(UsageError, match="of colour images, and these are grey"):
        assemble(
            Choices(statistics="imagenet"),
            "some",
            Whole(NAMES, pixels[:, :1], TRAIN, pixels[:20, :1], TEST),
            augment="",
        )
