"""Tiny-ImageNet as its authors packed it, in a folder or in the zip itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from ddbench import DataError, Dataset
from ddbench.base import cache
from ddbench.data.pictures import Broken
from ddbench_datasets import sources
from ddbench_datasets.collection import Collection
from ddbench_datasets.common import Choices, SkipBroken, told
from ddbench_datasets.layout import Layout
from ddbench_datasets.places import fetch
from ddbench_datasets.sources import Files, Folder
from ddbench_datasets.synsets import Numbered, arranged, parts_among
from ddbench_datasets.wnids import WNID, labels, numbers, readable, words

NAME = "tiny-imagenet-200"
GET = "get tiny-imagenet-200.zip from http://cs231n.stanford.edu, put it there, unpacked or not"
SIZE = 64


@dataclass(frozen=True)
class TinyImageNet(Choices):
    """Tiny-ImageNet: 100,000 train and 10,000 test images (its ``val`` part), 64x64, 200 classes of ImageNet.

    The classes are in the order of their WordNet numbers, by which they can be chosen too. The 10,000 images of its
    ``test`` part have no labels. Grey images are made colour ones.
    """

    name = "tinyimagenet"
    argument = "root"
    about: ClassVar[dict[str, str]] = {
        "homepage": "http://cs231n.stanford.edu",
        "licence": "that of ImageNet: non-commercial research terms of access",
        "licence_url": "https://image-net.org/download.php",
        "citation": "Le & Yang: Tiny ImageNet visual recognition challenge, 2015",
        "images": "100,000 train, 10,000 test; 64x64, colour; 200 classes",
    }
    root: Annotated[str, f"folder or zip; by default {NAME}, or {NAME}.zip, in DDBENCH_DATA"] = ""
    skip_broken: SkipBroken = False

    def load(self) -> Dataset:
        return self._opened().load(self.name)

    @told
    def missing(self) -> str | None:
        return self._opened().missing()

    def _opened(self) -> Numbered:
        """The images of all classes."""
        root = self._root()
        files = _files(root)
        top = _top(files, root)
        found = {name.removeprefix(top).split("/")[1] for name in files.names() if _is_train(name, top)}
        wnids = sorted(name for name in found if WNID.fullmatch(name))
        names = readable(wnids, words(_text(files, f"{top}words.txt", "")))
        wanted = numbers(self.classes, names)
        annotations = f"{top}val/val_annotations.txt"
        content = [self.name, files.identity(), files.size(annotations) if annotations in files.names() else 0]

        def truth() -> dict[str, str]:
            return {image: wnid for image, wnid in labels(_text(files, annotations)).items() if wnid in names}

        def untold(image: str) -> str:
            return f"val_annotations.txt of {root} does not tell the class of {image}; unpack it again"

        def arrange() -> Layout:
            return arranged(files.names(), str(root), wnids, truth, untold, top, wanted)

        collection = Collection(files, content, str(root), arrange, SIZE, "3", self.skip_broken)
        return Numbered(replace(self, classes=wanted), collection, names)

    def _root(self) -> Path:
        if self.root:
            return sources.find(self.root)
        places = [cache.data_home() / NAME, cache.data_home() / f"{NAME}.zip"]
        for place in places:
            if place.exists():
                return sources.find(str(place))
        raise DataError(f"Tiny-ImageNet is not there: there is no {places[0]}, nor .zip; {GET}, or {sources.GIVE}")


def _files(root: Path) -> Files:
    return Folder(root, _worth_searching, times=False) if root.is_dir() else sources.opened(root)


def _worth_searching(inner: tuple[str, ...], folders: list[str]) -> list[str]:
    if not inner:
        return parts_among(folders) or [name for name in folders if name == NAME]
    if inner == (NAME,):
        return parts_among(folders)
    return [name for name in folders if name == "images" or WNID.fullmatch(name)]


def _top(files: Files, root: Path) -> str:
    """What all names begin with: nothing, or the folder that the zip has."""
    for name in files.names():
        before, found, _ = f"/{name}".partition("/train/")
        if found and before.count("/") < 2:
            return f"{before.removeprefix('/')}/" if before else ""
    raise DataError(f"{root} has no train folder, so it is not Tiny-ImageNet as its authors packed it; {GET}")


def _is_train(name: str, top: str) -> bool:
    return name.startswith(f"{top}train/") and name.count("/") > top.count("/") + 1


def _text(files: Files, name: str, default: str | None = None) -> str:
    """The text of a file, or ``default`` if there is none."""
    if name not in set(files.names()):
        if default is not None:
            return default
        raise DataError(f"Tiny-ImageNet has no {name}, which tells the classes of its test images; unpack it again")
    try:
        return fetch(next(files.places([name]))).decode("utf-8")
    except (Broken, UnicodeDecodeError) as error:
        raise DataError(f"{name} of Tiny-ImageNet {error}; unpack it again") from error
