"""From file names to classes: ``{train,test}/<class>/*``, optionally under one top folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ddbench import DataError
from ddbench_datasets.sources import PARTS

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
WANTED = "images must lie in train/<class>/ and test/<class>/, possibly under one folder"


@dataclass(frozen=True)
class Layout:
    """Class names in natural order; for each, the names of its train and of its test images in natural order."""

    classes: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    test: tuple[tuple[str, ...], ...]


def natural(name: str) -> list[Any]:
    """A sort key by which ``2`` comes before ``10``."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))] + [name]


def arrange(names: Iterable[str], root: str) -> Layout:
    """Sort file names (folders end in ``/``) into classes, skipping hidden files and those that are no images.

    Raises DataError, naming ``root``, when a part or class is missing or empty.
    """
    paths = {name: parts for name in names if (parts := _visible(name))}
    depth = _depth(paths, root)
    tree: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for name, parts in paths.items():
        folders = parts[depth:] if name.endswith("/") else parts[depth:-1]
        if len(folders) < 2 or folders[0] not in tree:
            continue
        images = tree[folders[0]].setdefault(folders[1], [])
        if name.lower().endswith(SUFFIXES):
            images.append(name)
    _check(tree, root)
    classes = tuple(sorted(tree["train"], key=natural))
    train, test = (tuple(tuple(sorted(tree[part][c], key=natural)) for c in classes) for part in PARTS)
    return Layout(classes, train, test)


def _visible(name: str) -> list[str]:
    """The parts of a name; none for a hidden file, one in a hidden folder, or a name that climbs with ``..``."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return [] if any(part.startswith(".") or part == "__MACOSX" for part in parts) else parts


def _depth(paths: dict[str, list[str]], root: str) -> int:
    """How many folders lie above ``train`` and ``test``: 0 or 1."""
    folders = [parts if name.endswith("/") else parts[:-1] for name, parts in paths.items()]
    if any(inner and inner[0] in PARTS for inner in folders):
        return 0
    tops = sorted({inner[0] for inner in folders if len(inner) > 1 and inner[1] in PARTS}, key=natural)
    if not tops:
        found = sorted({inner[0] for inner in folders if inner}, key=natural)
        shown = f"; its folders are {_listed(found)}" if found else ""
        raise DataError(f"{root} has no train and no test folder{shown}; {WANTED}")
    if len(tops) > 1:
        raise DataError(f"{root} holds several datasets, {_listed(tops)}; pass one of them as dataset.root")
    return 1


def _check(tree: dict[str, dict[str, list[str]]], root: str) -> None:
    for part in PARTS:
        if not tree[part]:
            raise DataError(f"{root} has no {part} folder with classes in it; {WANTED}")
    differ = [
        f"only {mine} has {_listed(extra)}"
        for mine, other in (PARTS, PARTS[::-1])
        if (extra := sorted(tree[mine].keys() - tree[other].keys(), key=natural))
    ]
    if differ:
        raise DataError(f"train and test of {root} have different classes: {', '.join(differ)}; make them the same")
    if len(tree["train"]) == 1:
        raise DataError(f"{root} has only the class {next(iter(tree['train']))!r}; classification needs two or more")
    for part in PARTS:
        if empty := sorted((label for label, images in tree[part].items() if not images), key=natural):
            raise DataError(f"no {part} images of {_listed(empty)} in {root}; add some, or remove the class")


def _listed(names: list[str]) -> str:
    """Up to five names in quotes, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
