"""What is slow to read from torchvision's files is read once, and stored: image files, and the 3 GB of STL-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from ddbench import DataError, Pixels, Store, report
from ddbench.base import cache
from ddbench_datasets import store
from ddbench_datasets.common import Whole
from ddbench_datasets.given import Given, decoded
from ddbench_datasets.places import Broken, Place, fetch
from ddbench_datasets.vision_get import Source, get
from ddbench_datasets.vision_read import Lister, Listing

STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


class ImageSource(Source, Protocol):
    """A source of image files; ``counts`` are the published numbers of train and test images."""

    @property
    def counts(self) -> tuple[int, int]: ...


def missing(source: Source, size: int | None = None) -> str | None:
    """What has to be done before the images can be used, in one sentence; None if nothing."""
    if store.there(_identity(source, size)):
        return None
    return source.files.missing() or f"{source.files.title} is in {source.files.folder}, and has to be decoded, once"


def stl10(source: Source) -> Whole:
    """The labelled images: at each reading torchvision would check all of STL-10, most of which has no labels."""

    def read(datasets: ModuleType, folder: str) -> store.Made:
        train, test = (datasets.STL10(folder, split=part, download=True) for part in ("train", "test"))
        targets = [int(label) for part in (train, test) for label in part.labels]
        return np.concatenate([train.data, test.data]), _about(STL_CLASSES, len(train.labels), targets)

    array, about = store.cached(_identity(source, None), lambda: get(source, read))
    return _whole(Store(torch.from_numpy(array), about["content"]), about)


def squares(source: ImageSource, lister: Lister, size: int) -> Whole:
    """Images ``size`` x ``size``: the shorter side resized, the middle of the longer one kept."""

    def given() -> tuple[Given, dict[str, Any]]:
        paths, about = _listed(source, lister)
        return Given(paths, lambda path: Place(str(cache.data_home() / path))), about

    identity = _identity(source, size)
    return _whole(*decoded(identity, given, channels="3", size=size, mend=_mend(source)))


def stretched(source: ImageSource, lister: Lister, size: int) -> Whole:
    """Images ``size`` x ``size``: both sides resized, so that nothing is cut off."""

    def make() -> store.Made:
        paths, about = _listed(source, lister)
        pixels = np.empty((len(paths), 3, size, size), np.uint8)
        for i, path in enumerate(paths):
            pixels[i] = _stretched(source, path, size)
            if i % 1000 == 999 or i + 1 == len(paths):
                report("decoding", i + 1, len(paths))
        return pixels, about

    array, about = store.cached(_identity(source, size), make)
    return _whole(Store(torch.from_numpy(array), about["content"]), about)


def _identity(source: Source, size: int | None) -> dict[str, Any]:
    """What decides the pixels; Pillow's version, since JPEG decoders differ."""
    from PIL import __version__ as pillow

    return {"format": 1, "torchvision": source.files.title, "size": size, "pillow": pillow}


def _listed(source: ImageSource, lister: Lister) -> tuple[list[str], dict[str, Any]]:
    """The image files of both parts below the data folder, and what is to be known of them.

    Refuses a folder that was unpacked only in part, which torchvision takes as it is.
    """
    listing: Listing = get(source, lister)
    parts = (listing.train, listing.test)
    for name, part, published in zip(("train", "test"), parts, source.counts, strict=True):
        if len(part) != published:
            raise DataError(
                f"{source.files.title} in {source.files.folder} has {len(part):,} {name} images where {published:,} "
                f"were published: it was unpacked in part, or changed; {_mend(source)}"
            )
    paths, targets = zip(*listing.train, *listing.test, strict=True)
    names = [str(Path(path).relative_to(cache.data_home())) for path in paths]
    return names, _about(listing.classes, len(listing.train), targets)


def _stretched(source: ImageSource, path: str, size: int) -> np.ndarray:
    from PIL import Image

    from ddbench_datasets.decode import image, strictly

    try:
        with strictly():
            pixels = image(fetch(Place(str(cache.data_home() / path))), 3)
    except Broken as error:
        raise DataError(f"{path} {error}; {_mend(source)}") from error
    whole = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def _mend(source: Source) -> str:
    held = [name for names in source.files.archives.values() for name in names]
    return f"delete {', '.join(held)} in {source.files.folder} and run again"


def _about(classes: Sequence[str], train: int, targets: Sequence[int]) -> dict[str, Any]:
    return {"classes": classes, "train": train, "targets": targets}


def _whole(stored: Store, about: dict[str, Any]) -> Whole:
    targets, rows = torch.tensor(about["targets"]), torch.arange(len(about["targets"]))
    train, test = rows[: about["train"]], rows[about["train"] :]
    classes = tuple(about["classes"])
    return Whole(classes, Pixels(stored, train), targets[train], Pixels(stored, test), targets[test])
