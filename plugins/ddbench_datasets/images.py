"""Any classification dataset that is a folder or zip of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from ddbench import Dataset
from ddbench_datasets import sources, store
from ddbench_datasets.common import FLIP, NO_FLIP, SEED, ZCA, Limit, Validation, limited
from ddbench_datasets.layout import arrange


@dataclass(frozen=True)
class Images:
    """Images in ``train/<class>/`` and ``test/<class>/`` of a folder or zip; decoded once, then read from the cache.

    The classes are in natural order: alphabetical, numbers as numbers.
    """

    name = "images"
    root: Annotated[str, "folder or zip with train/<class>/ and test/<class>/"] = ""
    size: Annotated[int | None, Ge(1), "resize to size x size pixels; by default all must have one size"] = None
    channels: Annotated[Literal["auto", "1", "3"], "grey (1), colour (3), or grey if all images are grey"] = "auto"
    flip: Annotated[bool, "whether a mirrored image keeps its class; decides how training augments"] = True
    validation: Validation = 0.1
    zca: ZCA = False
    limit: Limit = None

    def load(self) -> Dataset:
        root = sources.find(self.root)
        content = sources.identity(root)
        pixels, about = store.cached(self._identity(content), lambda: self._decode(root))
        images = torch.from_numpy(pixels)
        train, test = (_targets(about[part]) for part in sources.PARTS)
        return Dataset.split(
            title(root),
            tuple(about["classes"]),
            (images[: len(train)], train),
            (images[len(train) :], test),
            validation=self.validation,
            seed=SEED,
            zca=self.zca,
            augment=FLIP if self.flip else NO_FLIP,
            facts={"source": root.name, **({} if root.is_dir() else content)},
        )

    def _identity(self, content: Any) -> dict[str, Any]:
        """Everything that decides the decoded pixels; Pillow's version, since JPEG decoders differ."""
        from PIL import __version__ as pillow

        options = {"size": self.size, "channels": self.channels, "limit": self.limit}
        return {"format": 1, "content": content, "pillow": pillow, **options}

    def _decode(self, root: Path) -> store.Made:
        from ddbench_datasets.decode import decode

        with sources.opened(root) as files:
            layout = arrange(files.names(), str(root))
            train, train_counts = _flat(layout.train, self.limit)
            test, test_counts = _flat(layout.test, None)
            pixels = decode(files.read, train + test, channels=self.channels, size=self.size)
        return pixels, {"classes": layout.classes, "train": train_counts, "test": test_counts}


def title(root: Path) -> str:
    """The dataset's name, after its folder or zip: lower case letters, digits, and ``._-``."""
    stem = root.name if root.is_dir() else root.stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-") or "images"


def _targets(counts: Sequence[int]) -> Tensor:
    """(n,): ``counts[k]`` times the class k."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _flat(classes: Sequence[Sequence[str]], limit: int | None) -> tuple[list[str], list[int]]:
    """The names of the images to use, class by class, and how many there are of each."""
    names = [name for members in classes for name in members]
    targets = _targets([len(members) for members in classes])
    used = limited(targets, limit)
    return [names[i] for i in used.tolist()], targets[used].bincount(minlength=len(classes)).tolist()
