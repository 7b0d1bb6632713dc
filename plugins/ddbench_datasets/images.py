"""Any classification dataset that is a folder, zip or tar of images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from ddbench import DataError, Dataset, UsageError
from ddbench_datasets import sources
from ddbench_datasets.collection import Collection
from ddbench_datasets.common import FLIP, NO_FLIP, Choices, build
from ddbench_datasets.layout import arrange

SkipBroken = Annotated[bool, "leave out images that cannot be decoded, and count them; by default they are an error"]


@dataclass(frozen=True)
class Images(Choices):
    """Images in ``train/<class>/`` and ``test/<class>/`` of a folder, zip or tar; decoded once, then from the cache.

    The classes are in natural order: alphabetical, numbers as numbers. Without ``test``, a folder ``val``, ``valid``
    or ``validation`` is the test part. Without ``train`` and ``test``, images lie in ``<class>/``, and a fifth of
    each class, drawn with a fixed seed, is the test part. Archives are not extracted, and links in them not
    followed; names that point outside are ignored. Photos are turned upright, and the middle square of each is
    resized.
    """

    name = "images"
    argument = "root"
    about: ClassVar[dict[str, str]] = {"licence": "that of your images", "images": "any number, of one size or resized"}
    root: Annotated[str, "folder, zip or tar with train/<class>/ and test/<class>/, or with <class>/"] = ""
    size: Annotated[int | None, Ge(1), "resize to size x size pixels; by default all must have one size"] = None
    channels: Annotated[Literal["auto", "1", "3"], "grey (1), colour (3), or grey if all images are grey"] = "auto"
    flip: Annotated[bool, "whether a mirrored image keeps its class; decides how training augments"] = True
    skip_broken: SkipBroken = False

    def load(self) -> Dataset:
        root = sources.find(self.root)
        with self._collection(root) as collection:
            chosen, train, test, facts = collection.load(self)
            known = {} if root.is_dir() else collection.content
        return build(
            self,
            chosen,
            title(root),
            train,
            test,
            augment=FLIP if self.flip else NO_FLIP,
            facts={"source": root.name, **known, **facts},
        )

    def missing(self) -> str | None:
        try:
            root = sources.find(self.root)
            with self._collection(root) as collection:
                return collection.missing(self)
        except (DataError, UsageError) as error:
            return str(error)

    @contextmanager
    def _collection(self, root: Path) -> Iterator[Collection]:
        with sources.opened(root) as files:
            yield Collection(
                files,
                files.identity(),
                str(root),
                lambda: arrange(files.names(), str(root), files.ignored),
                self.size,
                self.channels,
                self.skip_broken,
            )


def title(root: Path) -> str:
    """The dataset's name, after its folder or archive: lower case letters, digits, and ``._-``."""
    stem = root.name if root.is_dir() else re.sub(r"\.tar\.\w+$", "", root.name, flags=re.IGNORECASE)
    stem = stem if root.is_dir() or stem != root.name else root.stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-") or "images"
