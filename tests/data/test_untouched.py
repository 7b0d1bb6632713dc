"""Changes of lent data are seen: at once by torch's counters, at the latest by their content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ddbench import RealData
from ddbench.data.dataset import Dataset
from ddbench.data.pixels import Pixels, Store
from ddbench.data.untouched import Untouched


def dataset(array: torch.Tensor | None = None, *, zca: bool = False) -> Dataset:
    pixels = torch.arange(40 * 3 * 4 * 4).remainder(251).view(40, 3, 4, 4).to(torch.uint8) if array is None else array
    return Dataset.split(
        "made", ("a", "b"), (pixels, torch.arange(40) % 2), (pixels[:6].clone(), torch.arange(6) % 2), zca=zca
    )


@dataclass(frozen=True, eq=False)
class Frozen:
    size: int


IN_PLACE: dict[str, tuple[Callable[[RealData], object], str]] = {
    "targets": (lambda real: real.targets.zero_(), "targets"),
    "pixels": (lambda real: real.pixels.store.array.fill_(3), "pixels"),
    "rows": (lambda real: real.pixels.rows.zero_(), "rows"),  # type: ignore[union-attr]
    "mean": (lambda real: real.preprocessing.mean.add_(1), "mean"),
    "members": (lambda real: real.members[1].zero_(), "members"),
}
BEHIND: dict[str, tuple[Callable[[RealData], object], str]] = {
    "targets": (lambda real: real.targets.numpy().fill(0), "targets"),
    "pixels": (lambda real: real.pixels.store.array.numpy().fill(3), "pixels"),
    "pixels' data": (lambda real: real.pixels.store.array.data.fill_(3), "pixels"),
    "std": (lambda real: real.preprocessing.std.numpy().fill(9), "std"),  # type: ignore[union-attr]
}


def test_what_is_only_read_is_unchanged():
    real = dataset().train
    lent = Untouched({"training": real}, {"a tensor": torch.ones(2)}, [Frozen(3)])
    _ = real.draw(2), real.digest, real.at_hand[torch.arange(3)]
    assert lent.changed() is None
    assert lent.changed_content() is None


@pytest.mark.parametrize("what", IN_PLACE)
def test_a_change_in_place_is_seen_at_once(what):
    real = dataset().train
    lent, (change, name) = Untouched({"training": real}), IN_PLACE[what]
    change(real)
    assert lent.changed() == f"{name} of the training data"
    assert lent.changed_content() == f"{name} of the training data"


@pytest.mark.parametrize("what", BEHIND)
def test_a_change_behind_the_back_of_torch_is_seen_in_the_content(what):
    real = dataset().train
    lent, (change, name) = Untouched({"training": real}), BEHIND[what]
    change(real)
    assert lent.changed() is None
    assert lent.changed_content() == f"{name} of the training data"


def test_another_value_of_a_frozen_field_is_seen():
    real, record = dataset().train, Frozen(3)
    lent = Untouched({"training": real}, {}, [record])
    object.__setattr__(record, "size", 300)
    assert lent.changed() == "the field size of a Frozen"
    other = Untouched({"training": real})
    object.__setattr__(real, "classes", 7)
    assert other.changed() == "the field classes of a RealData"


def test_pixels_that_are_mapped_from_a_file_are_compared_with_what_was_written(tmp_path: Path):
    np.save(tmp_path / "pixels.npy", dataset().train.pixels.store.array.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "pixels.npy", mmap_mode="c"))
    store = Store(mapped, Store(mapped.clone()).content)
    real = dataset(Pixels(store)).train  # type: ignore[arg-type]
    lent = Untouched({"training": real})
    assert lent.changed_content() is None
    real.pixels.store.array.numpy()[7, 0, 0, 0] ^= 1
    assert lent.changed_content() == "pixels of the training data"


def test_whitened_images_that_a_plugin_had_made_and_could_change_are_made_again():
    real = dataset(zca=True).train
    lent = Untouched({"training": real})
    real.at_hand.images.zero_()  # type: ignore[union-attr]
    assert lent.changed_content() is None
    assert real.at_hand.images.any()  # type: ignore[union-attr]


def test_whitened_images_that_were_there_are_watched():
    real = dataset(zca=True).train
    images = real.at_hand.images  # type: ignore[union-attr]
    lent = Untouched({"training": real})
    images.zero_()
    assert "_floats" in str(lent.changed())
