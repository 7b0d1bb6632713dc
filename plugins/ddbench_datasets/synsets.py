"""What ImageNet and Tiny-ImageNet share: classes that are WordNet numbers, and how their images lie in folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddbench import DataError, Dataset, Preprocessing
from ddbench_datasets.collection import Collection
from ddbench_datasets.common import FLIP, Choices, build, origin
from ddbench_datasets.layout import Layout, Tree, checked
from ddbench_datasets.sources import is_image
from ddbench_datasets.wnids import MEAN, STD

PARTS = ("train", "val")


@dataclass(frozen=True)
class Numbered:
    """Images by the numbers of their classes, the options with numbers as well, and a name for each number."""

    options: Choices
    collection: Collection
    names: Mapping[str, str]

    def load(self, title: str) -> Dataset:
        """The dataset ``title``, its classes by name."""
        chosen, (train, test, _), facts = self.collection.load(self.options)
        return build(
            self.options,
            replace(chosen, classes=tuple(self.names[wnid] for wnid in chosen.classes)),
            title,
            train,
            test,
            augment=FLIP,
            preprocessing=Preprocessing(torch.tensor(MEAN), torch.tensor(STD)),
            facts=origin(self.options) | facts,
        )

    def missing(self) -> str | None:
        return self.collection.missing(self.options)


def parts_among(folders: Iterable[str]) -> list[str]:
    return [name for name in folders if name in PARTS]


def arranged(
    names: Iterable[str],
    root: str,
    wnids: list[str],
    truth: Callable[[], Mapping[str, str]],
    untold: Callable[[str], str],
    top: str = "",
    wanted: Sequence[str] | None = None,
) -> Layout:
    """Train images lie in the folder of their class; those of ``val`` do too, or ``truth()`` has their classes.

    It tells them by the image's name without suffix; an image of another class than ``wnids`` is left out, and for
    one that it does not know ``untold`` says what is wrong. All names may begin with a folder, ``top``. Only ``wanted``
    classes have to have images.
    """
    train: Tree = {wnid: [] for wnid in wnids}
    test: Tree = {wnid: [] for wnid in wnids}
    flat = []
    for image in filter(is_image, names):
        part, _, rest = image.removeprefix(top).partition("/")
        wnid = rest.partition("/")[0]
        if part == "train" and wnid in train:
            train[wnid].append(image)
        elif part == "val":
            test.get(wnid, flat).append(image)
    known = truth() if flat else {}
    for image in flat:
        wnid = known.get(Path(image).stem)
        if wnid is None:
            raise DataError(untold(image))
        if wnid in test:
            test[wnid].append(image)
    return checked({"train": train, "val": test}, root, order=wnids, wanted=wanted)
