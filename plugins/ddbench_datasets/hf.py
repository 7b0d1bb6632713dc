"""Datasets of the Hugging Face Hub, or in its formats; the optional package ``datasets`` gets and caches them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ddbench import DataError, Dataset, Pixels, UsageError, did_you_mean
from ddbench.base import cache
from ddbench_datasets import store
from ddbench_datasets.building import Plan
from ddbench_datasets.common import (
    FLIP,
    NO_FLIP,
    Channels,
    Choices,
    Chosen,
    Flip,
    Ground,
    Size,
    build,
    choose,
    titled,
    told,
)
from ddbench_datasets.left import natural
from ddbench_datasets.places import Place
from ddbench_datasets.sources import VALIDATION, Given

WHICH = "the dataset 'hf' needs to know which one; pass -o dataset.path=NAME_ON_THE_HUB_OR_FOLDER"
TEST = "test"
INSTEAD = ("validation", *(name for name in VALIDATION if name != "validation"))  # to validate on, or to test on
PLAIN = {"bool", "string", "large_string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


@dataclass(frozen=True)
class HF(Choices):
    """A dataset of the Hugging Face Hub, or a local folder or parquet file; needs ``pip install 'ddbench[hf]'``.

    A split ``validation`` (or ``val``, ``valid``, ``dev``) is validated on, or, where there is no ``test``, tested on;
    splits that are not used are named. The images that options choose are decoded once. Without a network, a dataset
    of the Hub is found in the cache of the package ``datasets``, below ``HF_HOME``.
    """

    name = "hf"
    argument = "path"
    remote = True  # files of others that name a dataset of the Hub are not taken at their word
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://huggingface.co/datasets",
        "licence": "that of the dataset, see its page",
        "images": "those of the dataset",
    }
    path: Annotated[str, "name on the Hub, or a local folder or parquet file"] = ""
    config: Annotated[str | None, "which configuration of the dataset, where it has several"] = None
    image: Annotated[str | None, "column of the images; by default the only one of type Image"] = None
    label: Annotated[str | None, "column of the classes; by default the only one of type ClassLabel"] = None
    train: Annotated[str, "split to train on"] = "train"
    test: Annotated[str, "split to test on; where there is no test, validation takes its place"] = TEST
    size: Size = None
    channels: Channels = "auto"
    flip: Flip = True
    ground: Ground = "white"

    def load(self) -> Dataset:
        library = _library()
        splits = _opened(library, self.path, self.config)
        names = self._parts(splits)
        parts = [splits[name] for name in names]
        image, label = _column(parts[0], "image", self.image), _column(parts[0], "label", self.label)
        classes, targets = _classes(parts, names, label, self.classes)
        chosen = choose(self, classes, *targets)
        facts = {
            "source": self.path,
            "licence": getattr(parts[0].info, "license", None) or self.about["licence"],
            "test": f"split {names[1]}" + ("" if names[1] == self.test else f", since there is no {self.test}"),
        }
        facts |= {"validation": f"split {names[2]}"} if len(names) > 2 else {}
        (train, test, *held), through = self._pixels(library, parts, names, image, chosen)
        rest = {name: len(splits[name]) for name in splits if name not in names}
        facts |= {"left out": f"splits {', '.join(f'{name} ({n} images)' for name, n in rest.items())}"} if rest else {}
        facts |= {"transparent": f"{through} images have transparent parts, shown on {self.ground}"} if through else {}
        title = titled(local.stem if (local := Path(self.path).expanduser()).exists() else self.path, "hf")
        augment, validation = FLIP if self.flip else NO_FLIP, held[0] if held else None
        return build(self, chosen, title, train, test, validation=validation, augment=augment, facts=facts)

    @told
    def missing(self) -> str | None:
        folder = Path(_library().config.HF_DATASETS_CACHE)
        if not self.path:
            return WHICH
        *owner, name = self.path.split("/")  # the package's folders are called owner___name, in snake case
        cached = folder / "___".join([*owner, import_module("datasets.naming").camelcase_to_snakecase(name)])
        if cached.exists() or Path(self.path).expanduser().exists():
            return None
        return f"{self.path} is not in {folder}; it would be downloaded from the Hugging Face Hub"

    def _parts(self, splits: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the splits to train on, to test on, and, where there is one, to validate on."""
        held = [name for name in INSTEAD if name in splits and name != self.train]
        instead = self.test == TEST and TEST not in splits and held
        names = (self.train, held[0] if instead else self.test)
        for option, name in zip(("train", "test"), names, strict=True):
            if name not in splits:
                there = ", ".join(splits)
                raise DataError(f"{self.path} has no split {name!r}, only {there}; add it, or pass -o dataset.{option}")
        if names[0] == names[1]:
            raise UsageError(f"dataset.train and dataset.test are both {names[0]!r}; pass two splits of {self.path}")
        more = [name for name in held if name not in names]
        return (*names, more[0]) if more and not instead else names

    def _pixels(
        self, library: ModuleType, parts: Sequence[Any], names: Sequence[str], column: str, chosen: Chosen
    ) -> tuple[list[Pixels], int]:
        """The chosen images of the parts, decoded once for all runs that choose the same; how many are transparent."""
        rows = [part.tolist() for part in (chosen.train, chosen.test, chosen.validation)[: len(parts)]]
        identity = {
            "format": 1,
            "fingerprints": [import_module("datasets.fingerprint").generate_fingerprint(part) for part in parts],
            "rows": [cache.digest(numbers) for numbers in rows],
            "options": [column, self.size, self.channels, *([] if self.ground == HF.ground else [self.ground])],
            "pillow": store.pillow(),
        }

        def plan() -> Plan:
            raw = {n: p.cast_column(column, library.Image(decode=False)) for n, p in zip(names, parts, strict=True)}
            listed = [f"{name}/{row}" for name, numbers in zip(names, rows, strict=True) for row in numbers]

            def place(image: str) -> Place:
                split, _, row = image.rpartition("/")
                return _place(raw[split][int(row)][column])

            files, mend = Given(listed, place, place(listed[0]).size), f"mend or remove it in {self.path}"
            return Plan(files, listed, self.channels, self.size, False, identity, mend=mend, ground=self.ground)

        images, about = store.decoded(identity, plan)
        split = torch.arange(len(images.array)).split([len(numbers) for numbers in rows])
        return [Pixels(images, part) for part in split], about["transparent"]


def _place(held: dict[str, Any] | None) -> Place:
    """Where the bytes of an image are that a row holds: in the table, or in a file."""
    if held is None or (held["bytes"] is None and held["path"] is None):
        return Place(fault="is empty")
    return Place(held["path"]) if held["bytes"] is None else Place(data=held["bytes"], size=len(held["bytes"]))


def _library() -> ModuleType:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"the dataset 'hf' needs Hugging Face's package datasets ({error}); get it with: pip install 'ddbench[hf]'"
        ) from error


def _opened(library: ModuleType, path: str, config: str | None) -> Mapping[str, Any]:
    """The splits by name, from disk, from the package's cache or from the Hub."""
    if not path:
        raise UsageError(WHICH)
    local = Path(path).expanduser()
    if local.exists() and not local.is_file() and not local.is_dir():
        raise DataError(f"{local} is a pipe or a device, and neither a folder nor a file; {WHICH.partition('; ')[2]}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the caller
            if (local / "dataset_dict.json").exists():  # from save_to_disk
                return library.load_from_disk(str(local))
            if local.is_file():
                return library.load_dataset(local.suffix.lstrip("."), data_files=str(local))
            return library.load_dataset(str(local) if local.exists() else path, config)
    except Exception as error:  # a dozen types: the network, the Hub, archives, parquet
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        mend = (
            "it must be a parquet file, or a folder of parquet files or images that `datasets.load_dataset` reads"
            if local.exists()
            else "check the name and dataset.config; without a network, run `ddbench prepare hf -o "
            f"dataset.path={path}` where there is one and copy the folder HF_HOME"
        )
        raise DataError(f"the package datasets cannot load {path} ({reason}); {mend}") from error


def _column(part: Any, option: str, given: str | None) -> str:
    """The column to use for ``image`` or ``label``: the one given, or the only one of the type for it."""
    types = {name: type(feature).__name__ for name, feature in part.features.items()}
    shown = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    wanted = {"image": "Image", "label": "ClassLabel"}[option]
    if given is None:
        fitting = [name for name, kind in types.items() if kind == wanted]
        if len(fitting) != 1:
            raise UsageError(
                f"{len(fitting)} columns are of type {wanted}, so -o dataset.{option}=COLUMN must name one of: {shown}"
            )
        return fitting[0]
    if given not in types:
        hint = did_you_mean(given, types)
        raise UsageError(f"dataset.{option} names {given!r}, which is not a column{hint}; the columns are {shown}")
    if types[given] != wanted and (option == "image" or getattr(part.features[given], "dtype", None) not in PLAIN):
        raise UsageError(f"dataset.{option} names {given!r}, which holds no {option}s; the columns are {shown}")
    return given


def _classes(
    parts: Sequence[Any], names: Sequence[str], column: str, wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], list[Tensor]]:
    """Class names, and the targets ``(n,)`` of the parts. Plain values are classes in natural order.

    Those that only other parts than the first have are refused, unless it is said which ones are ``wanted``.
    """
    feature, values = parts[0].features[column], [part[column][:] for part in parts]
    if type(feature).__name__ == "ClassLabel":
        classes, numbers = tuple(feature.names), {number: number for number in range(len(feature.names))}
    else:
        held = {value for part in (values if wanted else values[:1]) for value in part if value is not None}
        found = sorted(held, key=lambda value: natural(str(value)))
        classes, numbers = tuple(str(value) for value in found), {value: i for i, value in enumerate(found)}
    for name, part in zip(names, values, strict=True):
        for row, value in enumerate(part):
            if value not in numbers:
                raise DataError(
                    f"image {row} of split {name} has the label {value!r}, which is none of the {len(classes)} classes "
                    f"of {column}; choose a split with labels, or another column as dataset.label"
                )
    return classes, [torch.tensor([numbers[value] for value in part]) for part in values]
