"""Any classification dataset that is a folder, zip or tar of images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ddbench import Dataset
from ddbench_datasets import sources
from ddbench_datasets.collection import Collection
from ddbench_datasets.common import (
    FLIP,
    NO_FLIP,
    Channels,
    Choices,
    Flip,
    Ground,
    Size,
    SkipBroken,
    build,
    titled,
    told,
)
from ddbench_datasets.layout import Layout, arrange
from ddbench_datasets.left import nothing


@dataclass(frozen=True)
class Images(Choices):
    """Images in ``train/<class>/`` and ``test/<class>/`` of a folder, zip or tar; decoded once, then from the cache.

    The classes are in natural order: alphabetical, numbers as numbers. A folder ``val``, ``valid``, ``validation`` or
    ``dev`` is the validation part, or without ``test`` the test part. Without ``train`` and ``test``, images lie in
    ``<class>/``, and a fifth of each class, drawn with a fixed seed, is the test part. Archives are not extracted, and
    links in them not followed; files that are no images of a class are left out and counted. Photos are turned
    upright, the middle square of each is resized, and transparent parts show the ``ground``.
    """

    name = "images"
    argument = "root"
    about: ClassVar[dict[str, str]] = {"licence": "that of your images", "images": "any number, of one size or resized"}
    root: Annotated[str, "folder, zip or tar with train/<class>/ and test/<class>/, or with <class>/"] = ""
    size: Size = None
    channels: Channels = "auto"
    flip: Flip = True
    skip_broken: SkipBroken = False
    ground: Ground = "white"
    within: Annotated[
        str | None,
        "where classes have folders inside, such as images and masks: the one that counts, or all",
    ] = None

    without: Annotated[
        tuple[str, ...], "files that are not images of the set, by patterns of their names, such as *_mask.png"
    ] = ()

    def load(self) -> Dataset:
        root = sources.find(self.root)
        collection = self._collection(root)
        chosen, (train, test, validation), facts = collection.load(self)
        known = {} if root.is_dir() else collection.content
        return build(
            self,
            chosen,
            title(root),
            train,
            test,
            validation=validation,
            augment=FLIP if self.flip else NO_FLIP,
            facts={"source": root.name, **known, **facts},
        )

    @told
    def missing(self) -> str | None:
        return self._collection(sources.find(self.root)).missing(self)

    def _collection(self, root: Path) -> Collection:
        more = {"ground": self.ground} if self.ground != Images.ground else {}
        more |= {"within": self.within} if self.within else {}
        more |= {"without": self.without} if self.without else {}
        more |= {"layout": 2}  # since 1, dev is a part to validate on, and masks beside images are refused
        files = sources.opened(root)
        count = files.count if isinstance(files, sources.Folder) else nothing

        def arranged() -> Layout:
            given = files.names()  # which tells what is ignored of a tar
            return arrange(given, str(root), files.ignored, self.classes, self.within, self.without, count)

        return Collection(
            files,
            files.identity(),
            str(root),
            arranged,
            self.size,
            self.channels,
            self.skip_broken,
            self.ground,
            more,
        )


def title(root: Path) -> str:
    """The dataset's name, after its folder or archive."""
    stem = root.name if root.is_dir() else re.sub(r"\.tar\.\w+$", "", root.name, flags=re.IGNORECASE)
    stem = stem if root.is_dir() or stem != root.name else root.stem
    return titled(stem, "images")
