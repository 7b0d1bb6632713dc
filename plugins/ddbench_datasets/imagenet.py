"""ImageNet-1K from a folder of one's own, whole or one of the subsets of the field, at 64x64 or 128x128."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, MultipleOf

from ddbench import DataError, Dataset, UsageError
from ddbench.base import cache
from ddbench_datasets import sources, truth
from ddbench_datasets.collection import Collection
from ddbench_datasets.common import Choices, SkipBroken, told
from ddbench_datasets.elsewhere import Bucket
from ddbench_datasets.layout import Layout
from ddbench_datasets.left import listed
from ddbench_datasets.listing import Listed
from ddbench_datasets.places import Place
from ddbench_datasets.remote import Remote, is_url
from ddbench_datasets.sources import Given, printable
from ddbench_datasets.synsets import PARTS, Numbered, arranged, parts_among
from ddbench_datasets.wnids import SUBSETS, WNID, numbers, readable, words

GET = "get it from https://image-net.org after agreeing to its terms, or pass -o dataset.root=FOLDER"
KAGGLE = "ILSVRC/Data/CLS-LOC"  # where Kaggle's archive of it has the images
WORDS = ("words.txt", "LOC_synset_mapping.txt", "synset_words.txt")
COUNT = 1000


@dataclass(frozen=True)
class ImageNet(Choices):
    """ImageNet-1K (Russakovsky et al. 2015): 1,281,167 train and 50,000 test images (its ``val`` part), 1,000 classes.

    Images lie in ``train/<class>/`` and ``val/<class>/``, or flat in ``val`` beside a file that tells their classes.
    Only the images that are used are decoded: the middle square of each, resized. The classes are in their usual
    order, those of a subset in that of the subset; they can be chosen by name or by WordNet number (n01440764).
    """

    name = "imagenet"
    argument = "root"
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://image-net.org",
        "licence": "non-commercial research terms of access",
        "licence_url": "https://image-net.org/download.php",
        "citation": "Russakovsky et al.: ImageNet large scale visual recognition challenge, IJCV 2015",
        "images": "1,281,167 train, 50,000 test; colour, 1,000 classes; decoded, 16 GB at 64x64 and 65 GB at 128x128",
    }
    root: Annotated[
        str, "folder with train and val, by default imagenet in DDBENCH_DATA; or a URL of prepared images or shards"
    ] = ""
    size: Annotated[int, MultipleOf(64), Ge(64), Le(128), "pixels along each side, 64 or 128"] = 64
    subset: Annotated[
        Literal["all", "nette", "woof", "squawk", "fruit", "meow", "yellow"], "all classes, or ten of them"
    ] = "all"
    skip_broken: SkipBroken = False

    def load(self) -> Dataset:
        return self._opened().load(self.name if self.subset == "all" else f"{self.name}-{self.subset}")

    @told
    def missing(self) -> str | None:
        return self._opened().missing()

    def _opened(self) -> Numbered:
        """The images of the classes that are used."""
        if is_url(self.root):
            return self._elsewhere()
        root, base = self._root()
        names = self._classes(root, base)
        wanted = numbers(self.classes, names)
        used = [wnid for wnid in names if wanted is None or wnid in wanted]
        files = Listed(base, lambda inner, folders: _worth_searching(inner, folders, used), [self.name, used])
        content = [self.name, truth.stamp(root, base), files.identity()]

        def untold(image: str) -> str:
            return f"no file of {root} tells the class of {image}; {truth.SORT}"

        def arrange() -> Layout:
            return arranged(files.names(), str(root), used, lambda: truth.read(root, base), untold)

        collection = Collection(files, content, str(root), arrange, self.size, "3", self.skip_broken)
        return Numbered(replace(self, classes=wanted), collection, names)

    def _elsewhere(self) -> Numbered:
        """All classes, from a prepared store or from shards at a URL."""
        if self.subset != "all":
            raise UsageError(f"{self.root} is used whole; leave out dataset.subset, or give a folder as dataset.root")
        bucket = Bucket(Remote(self.root))
        wnids = bucket.classes()
        nothing = Given((), lambda name: Place(fault=f"{name} is not here"))
        made = Collection(
            nothing, None, self.root, lambda: Layout((), (), ()), self.size, "3", self.skip_broken, elsewhere=bucket
        )
        names = readable(wnids, _usual(wnids))
        return Numbered(replace(self, classes=numbers(self.classes, names)), made, names)

    def _root(self) -> tuple[Path, Path]:
        """The folder given, and the one in it that has ``train`` and ``val``."""
        root = printable(Path(self.root).expanduser() if self.root else cache.data_home() / "imagenet")
        if not root.is_dir():
            raise DataError(f"ImageNet is not there: there is no folder {root}; {GET}")
        for base in (root, root / KAGGLE):
            if all((base / part).is_dir() for part in PARTS):
                return root, base
        lacking = [part for part in PARTS if not (root / part).is_dir()]
        raise DataError(f"{root} has no folder {' and no folder '.join(lacking)}, so it is not ImageNet; {GET}")

    def _classes(self, root: Path, base: Path) -> dict[str, str]:
        """The numbers of the classes that the subset has, and their names."""
        found = sorted(path.name for path in (base / "train").iterdir() if WNID.fullmatch(path.name))
        if not found:
            raise DataError(f"{base / 'train'} has no folders such as n01440764, one for each class; {GET}")
        if self.subset == "all":
            return readable(found, _known(root, base, found))
        subset = SUBSETS[self.subset]
        if lacking := [f"{wnid} ({name})" for wnid, name in subset.items() if wnid not in found]:
            raise DataError(f"{base / 'train'} lacks classes of the subset {self.subset}: {listed(lacking)}; add them")
        return subset


def _known(root: Path, base: Path, wnids: list[str]) -> dict[str, str]:
    """Names of classes: from a file beside the images, or, of all 1,000 of them, torchvision's."""
    for path in (place / name for place in (root, base) for name in WORDS):
        if path.is_file():
            return words(sources.text(path, "mend or remove it", errors="replace"))
    return _usual(wnids)


def _usual(wnids: list[str]) -> dict[str, str]:
    if len(wnids) != COUNT:
        return {wnid: name for subset in SUBSETS.values() for wnid, name in subset.items()}
    from torchvision.models import ResNet18_Weights

    return dict(zip(wnids, ResNet18_Weights.DEFAULT.meta["categories"], strict=True))


def _worth_searching(inner: tuple[str, ...], folders: list[str], wanted: list[str]) -> list[str]:
    if not inner:
        return parts_among(folders)
    return sorted(set(folders) & set(wanted)) if len(inner) == 1 else []
