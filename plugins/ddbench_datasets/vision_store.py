"""How the images of torchvision's datasets are had: as it reads them, or, where that is slow, read once and stored.

Stored are image files, and the 3 GB of STL-10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from ddbench import DataError, Store
from ddbench.base import cache
from ddbench_datasets import store
from ddbench_datasets.building import Plan
from ddbench_datasets.common import TEST_SHARE, Whole, halves
from ddbench_datasets.places import Place
from ddbench_datasets.sources import Given
from ddbench_datasets.vision_get import Source, get
from ddbench_datasets.vision_read import Lister, Listing

About = dict[str, Any]  # classes, targets of both parts, and how many of them are the train part


class ImageSource(Source, Protocol):
    """A source of image files; ``counts`` are the published numbers of train and test images."""

    @property
    def counts(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Read:
    """Images as torchvision reads them, every time."""

    read: Callable[[ModuleType, str], Whole]

    def whole(self, source: Source) -> Whole:
        return get(source, self.read)

    def missing(self, source: Source) -> str | None:
        """What has to be done before the images can be used, in one sentence; None if nothing."""
        return source.files.missing()


@dataclass(frozen=True)
class Stored:
    """Images that ``make(source, identity, read)`` gives, once, of the source's ``size`` if it has one.

    Where the authors made no test part, it is a fifth of them.
    """

    make: Callable[[Any, dict[str, Any], Any], tuple[Store, About]]
    read: Lister | Callable[[ModuleType, str], store.Made]

    def whole(self, source: Source) -> Whole:
        images, about = self.make(source, self._identity(source), self.read)
        targets, classes, first = torch.tensor(about["targets"]), tuple(about["classes"]), about["train"]
        train, test = halves(images, torch.arange(len(targets)), first)
        if not len(test):
            return Whole.divided(classes, train, targets, TEST_SHARE)
        return Whole(classes, train, targets[:first], test, targets[first:])

    def missing(self, source: Source) -> str | None:
        if store.there(self._identity(source)):
            return None
        files = source.files
        return files.missing() or f"{files.title} is in {files.folder}, and has to be decoded, once"

    def _identity(self, source: Source) -> dict[str, Any]:
        """What decides the pixels."""
        size = getattr(source, "size", None)
        return {"format": 1, "torchvision": source.files.title, "size": size, "pillow": store.pillow()}


def arrays(source: Source, identity: dict[str, Any], read: Callable[..., store.Made]) -> tuple[Store, About]:
    """Images that torchvision decodes."""
    array, about = store.cached(identity, lambda: get(source, read))
    return Store(torch.from_numpy(array), about["content"]), about


def images(
    source: ImageSource, identity: dict[str, Any], lister: Lister, *, stretch: bool = False
) -> tuple[Store, About]:
    """Images ``size`` x ``size``: their middle squares, or with ``stretch`` all of them, so that nothing is cut off."""

    def plan() -> Plan:
        paths, about = _listed(source, lister)
        files = Given(paths, lambda path: Place(str(cache.data_home() / path)))
        return Plan(files, paths, "3", identity["size"], False, identity, about, _mend(source), stretch)

    return store.decoded(identity, plan)


def _listed(source: ImageSource, lister: Lister) -> tuple[list[str], About]:
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
    return names, {"classes": listing.classes, "train": len(listing.train), "targets": targets}


def _mend(source: Source) -> str:
    held = [name for names in source.files.archives.values() for name in names]
    return f"delete {', '.join(held)} in {source.files.folder} and run again"
