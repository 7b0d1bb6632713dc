"""A listing that is kept is believed only where the folder is as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ddbench_datasets import ImageNet, listing
from ddbench_datasets.listing import Listed
from ddbench_datasets.sources import Folder
from pictures import folder, imagenet, photo

from ddbench.base import cache


def enter(inner, folders):
    return sorted(folders)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(listing, "SHORT", 0)
    monkeypatch.setattr(listing, "GRAIN", 0)
    return Path(
        folder(tmp_path / "set", {f"train/{c}/{i}.jpg": b"x" * (10 + i + (c == "b")) for c in "ab" for i in range(5)})
    )


def listed(root: Path) -> Listed:
    return Listed(root, enter, "a set")


def whole(root: Path):
    return Folder(root, enter, times=False).identity()


def change_nothing(root):
    os.utime(root / "train" / "a" / "1.jpg")


def add(root):
    (root / "train" / "a" / "9.jpg").write_bytes(b"y")


def remove(root):
    (root / "train" / "b" / "4.jpg").unlink()


def rename(root):
    (root / "train" / "b" / "4.jpg").rename(root / "train" / "b" / "5.jpg")


def swap(root):
    (root / "train" / "a").rename(root / "train" / "c")
    (root / "train" / "b").rename(root / "train" / "a")
    (root / "train" / "c").rename(root / "train" / "b")


def new_class(root):
    folder(root, {"train/c/0.jpg": b"z"})


def rewrite(root):
    (root / "train" / "a" / "0.jpg").write_bytes(b"longer than it was")


def damage(root):
    (kept,) = (cache.home() / "listings").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])


def test_an_unchanged_folder_is_not_listed_again(root, monkeypatch):
    first = listed(root).identity()
    assert first == whole(root)
    monkeypatch.setattr(listing, "Folder", None)
    assert listed(root).identity() == first
    with pytest.raises(TypeError), cache.thoroughly():
        listed(root).identity()


@pytest.mark.parametrize("change", [add, remove, rename, swap, new_class, rewrite, damage, change_nothing])
def test_a_changed_folder_is_listed_again(root, change):
    first = listed(root).identity()
    change(root)
    assert listed(root).identity() == whole(root)
    assert (first != whole(root)) == (change not in (damage, change_nothing))


def test_a_folder_that_may_still_be_written_to_is_not_remembered(root, monkeypatch):
    monkeypatch.setattr(listing, "GRAIN", 10**12)
    listed(root).identity()
    assert not (cache.home() / "listings").exists()


def test_few_files_are_listed_every_time(root, monkeypatch):
    monkeypatch.setattr(listing, "SHORT", 11)
    listed(root).identity()
    assert not (cache.home() / "listings").exists()


def test_imagenet_from_an_earlier_listing_is_the_same_and_a_new_image_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SHORT", 0)
    monkeypatch.setattr(listing, "GRAIN", 0)
    place = folder(tmp_path / "set", imagenet())
    made = ImageNet(root=place)
    first = made.load()
    with monkeypatch.context() as without:
        without.setattr(listing, "Folder", None)
        assert made.load().digest == first.digest
        assert made.missing() is None
    wnid = next((Path(place) / "train").iterdir()).name
    (Path(place) / "train" / wnid / f"{wnid}_99.JPEG").write_bytes(photo(7))
    assert "have to be decoded" in (made.missing() or "")
    assert len(made.load().train) + len(made.load().validation) == len(first.train) + len(first.validation) + 1
