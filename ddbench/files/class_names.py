"""Which class of a dataset each folder, or each column of labels, of a foreign set is: told by names and numbers.

Names come first: as they are, then as Unicode normalises them, then without case and separators where that keeps all of
them apart. Numbers are labels where no name of the dataset could be meant. Nothing is sorted into an order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from ddbench.errors import DataError

WNIDS = "Folders are called by wnids, which were taken in their order to be the dataset's classes."
EXPORTED = "The folders are called as `ddbench export` calls the dataset's classes."
LONGEST = 255  # bytes of a name in a file system
_WNID = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(\D*?)(\d{1,9})(?:[_-](.+))?", re.ASCII)


def safe_name(name: str) -> str:
    """A class as a folder: its own name, but for what no folder can be called. Folders of images keep theirs."""
    plain = re.sub(r"[/\\\x00-\x1f\x7f]+", "_", name)
    plain = plain.encode()[:LONGEST].decode(errors="ignore")
    return plain if plain.strip(".") else "_" * max(len(plain), 1)


def folder_name(index: int, name: str) -> str:
    """``0007_horse``: a class as a folder, sorted as text, in label order; nothing in it that a file system minds."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._ ")[:80]
    return f"{index:04d}_{plain}" if plain else f"{index:04d}"


def labels_of(path: Path, names: Sequence[str], classes: Sequence[str], wnids: Sequence[str]) -> tuple[list[int], str]:
    """The label of each folder in a dataset of ``classes``, whose ``wnids`` may be known, and what it is told by.

    Raises DataError where names and numbers leave a choice, or none.
    """
    if found := by_names(names, classes):
        return found
    for called in (list(map(safe_name, classes)), [folder_name(i, name) for i, name in enumerate(classes)]):
        exported = {_composed(name): i for i, name in enumerate(called)}
        if exported.keys() == {_composed(name) for name in names} and len(names) == len(classes) == len(exported):
            return [exported[_composed(name)] for name in names], EXPORTED
    parts = [_NUMBERED.fullmatch(name) for name in names]
    called = [p[3] for p in parts if p and p[3]]
    numbers = [int(p[2]) for p in parts if p]
    if len(called) == len(names) and len({p[1] for p in parts if p}) == 1:
        if sorted(numbers) == list(range(len(classes))) and all(
            _folded(classes[n]) == _folded(name) for n, name in zip(numbers, called, strict=True)
        ):
            return numbers, "The numbers before the class names of the folders are their labels, and the names agree."
        if found := by_names(called, classes):
            return found
    if known := all(_WNID.fullmatch(name) for name in names):
        if found := by_names(names, wnids):
            return found
        if not wnids and len(names) == len(classes):
            order = sorted(names)
            return [order.index(name) for name in names], WNIDS
    if not (called or known) and len(numbers) == len(names) and not _mistakable(names, numbers, classes):
        labels, _, said = numbered(path, list(names), len(classes))
        return labels, said
    raise DataError(
        f"folders are called {', '.join(sorted(names)[:4])}{', ...' if len(names) > 4 else ''} ({len(names)}), but the "
        f"dataset's classes are {', '.join(classes[:6])}{', ...' if len(classes) > 6 else ''} ({len(classes)}); rename "
        f"the folders as its classes are called, or 0_NAME to {len(classes) - 1}_NAME, or choose the classes with "
        "-o dataset.classes=A,B,..."
    )


def _mistakable(names: Sequence[str], numbers: list[int], classes: Sequence[str]) -> bool:
    """Whether numbers may be meant as names: some of them are called like classes that stand elsewhere."""
    places = {int(name): i for i, name in enumerate(classes) if re.fullmatch(r"\d{1,9}", name, re.ASCII)}
    shared = set(map(_folded, names)) & set(map(_folded, classes)) - {""}
    return bool(shared) or any(places.get(number, number) != number for number in numbers)


def by_names(names: Sequence[str], classes: Sequence[str]) -> tuple[list[int], str] | None:
    """The place of each name in ``classes``, where both are the same ones, and how they were compared; else None."""
    ways: tuple[tuple[Callable[[str], str], str], ...] = (
        (str, ""),
        (_composed, " (however their accents are stored)"),
        (_folded, " (without case and separators)"),
    )
    for way, how in ways:
        here, there = [way(name) for name in names], [way(name) for name in classes]
        if "" not in here and len(set(here)) == len(here) and len(set(there)) == len(there) == len(here):
            place = {name: i for i, name in enumerate(there)}
            if place.keys() == set(here):
                return [
                    place[name] for name in here
                ], f"Labels were put into the class order of the dataset, by its names{how}."
    return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """Names as folders may spell them: case and separators do not count."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())


def numbered(path: Path, names: list[str], known: int | None) -> tuple[list[int], tuple[str, ...] | None, str]:
    """The label of each folder of a set whose dataset is not known, class names by label where names have any, and
    what was assumed."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    wnids = all(_WNID.fullmatch(name) for name in names)
    if wnids or not all(parts) or len({p[1] for p in parts if p}) != 1:
        return list(range(len(names))), tuple(names), "The folder names are taken as names of classes."
    numbers, called = [int(p[2]) for p in parts if p], [p[3] for p in parts if p]
    k = known or len(names)
    if len(set(numbers)) < len(names):
        raise DataError(f"{path} has two folders of one number ({min(names)}, ...); give every class one folder")
    if all(called):
        order = sorted(range(len(names)), key=numbers.__getitem__)
        labels = [order.index(i) for i in range(len(names))]
        return labels, tuple(called[i] for i in order), "Folders are ordered by the numbers before their class names."
    if max(numbers) >= k and len(numbers) != k:
        raise DataError(f"{path} has folders numbered up to {max(numbers)}, but there are {k} classes, 0 to {k - 1}")
    shift = min(numbers) if max(numbers) >= k else 0
    if max(numbers) - shift >= k:
        raise DataError(f"{path} has folders numbered {min(numbers)} to {max(numbers)} with gaps; number them from 0")
    counted = f" (counted from {shift})" if shift else ""
    return [n - shift for n in numbers], None, f"The numbers in the folder names are taken as labels{counted}."
