"""From file names to classes: ``{train,test}/<class>/*`` or ``<class>/*``, optionally under one top folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddbench import DataError, stratified
from ddbench_datasets.common import SEED, TEST_SHARE
from ddbench_datasets.places import shown
from ddbench_datasets.sources import DIVIDED, PARTS, TESTS, checked_name, is_image

WANTED = "images must lie in train/<class>/ and test/<class>/, or in <class>/, possibly under one folder"

Tree = dict[str, list[str]]  # the images of each class


@dataclass(frozen=True)
class Layout:
    """Class names in order; for each, the names of its train and of its test images; what is to be said about it."""

    classes: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    test: tuple[tuple[str, ...], ...]
    notes: dict[str, Any] = field(default_factory=dict)


def natural(name: str) -> list[Any]:
    """A sort key by which ``2`` comes before ``10``; numbers compare by length first, as some are too long for int."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)] + [name]


def targets(counts: Sequence[int]) -> Tensor:
    """(n,): ``counts[k]`` times the class k."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def arrange(names: Iterable[str], root: str, ignored: Iterable[str] = ()) -> Layout:
    """Sort file names (folders end in ``/``) into classes in natural order, skipping files that are no images.

    Hidden files are skipped too, and so are names that point outside (``..``, ``/``), which are counted in the
    notes together with ``ignored`` links. Raises DataError, naming ``root``, when a part or class is missing or
    empty.
    """
    names = list(names)
    paths = {name: parts for name in names if (parts := _visible(name))}
    left_out = [name for name in names if _outside(name)] + [name for name in ignored if not is_image(name)]
    notes = {"ignored": f"{len(left_out)} links or names that point outside: {listed(left_out)}"} if left_out else {}
    tops = _tops(paths, root)
    if not tops:
        return _divided(_classes(paths, root), root, notes)
    parts = {part: _tree(paths, len(tops), part) for part in PARTS}
    part = next((part for part in TESTS if parts[part]), "test")
    if part != "test":
        notes["test"] = f"the folder {part!r}, since there is no 'test' with classes"
    return checked(parts["train"], parts[part], root, notes, ("train", part))


def checked(
    train: Tree,
    test: Tree,
    root: str,
    notes: dict[str, Any] | None = None,
    parts: tuple[str, str] = ("train", "test"),
    order: Sequence[str] | None = None,
) -> Layout:
    """The layout of both parts, classes in ``order`` or in natural order, or a DataError for what is missing."""
    for part, tree in zip(parts, (train, test), strict=True):
        if not tree:
            raise DataError(f"{root} has no {part} folder with classes in it; {WANTED}")
    differ = [
        f"only {part} has {listed(extra)}"
        for part, mine, other in ((parts[0], train, test), (parts[1], test, train))
        if (extra := sorted(mine.keys() - other.keys(), key=natural))
    ]
    if differ:
        what = " and ".join(parts)
        raise DataError(f"{what} of {root} have different classes: {', '.join(differ)}; make them the same")
    classes = _usable(order or sorted(train, key=natural), root)
    for part, tree in zip(parts, (train, test), strict=True):
        if empty := [label for label in classes if not tree[label]]:
            raise DataError(f"no {part} images of {listed(empty)} in {root}; add some, or remove the class")
    sides = (tuple(tuple(sorted(tree[label], key=natural)) for label in classes) for tree in (train, test))
    return Layout(classes, *sides, notes=notes or {})


def listed(names: Sequence[str]) -> str:
    """Up to five names in quotes, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:5]) + more


def _outside(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name) is not None


def _visible(name: str) -> list[str]:
    """The parts of a name; none for a hidden file, one in a hidden folder, or a name that points outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return [] if hidden or _outside(name) else parts


def _tops(paths: dict[str, list[str]], root: str) -> list[str]:
    """The folder above ``train`` and ``test``, as ``[""]`` or ``["", top]``; ``[]`` when there are no such parts."""
    folders = [parts if name.endswith("/") else parts[:-1] for name, parts in paths.items()]
    if any(inner and inner[0] in DIVIDED for inner in folders):
        return [""]
    tops = sorted({inner[0] for inner in folders if len(inner) > 1 and inner[1] in DIVIDED}, key=natural)
    if len(tops) > 1:
        raise DataError(f"{root} holds several datasets, {listed(tops)}; pass one of them as dataset.root")
    return ["", *tops] if tops else []


def _tree(paths: dict[str, list[str]], depth: int, part: str | None = None) -> Tree:
    """The images of each class; the folder of a class lies at ``depth``, counted from 0, in one named ``part``."""
    tree: Tree = {}
    for name, parts in paths.items():
        folders = parts if name.endswith("/") else parts[:-1]
        if len(folders) > depth and (part is None or folders[depth - 1] == part):
            images = tree.setdefault(folders[depth], [])
            if is_image(name):
                images.append(name)
    return tree


def _classes(paths: dict[str, list[str]], root: str) -> Tree:
    """The classes of a dataset without parts: the folders that hold images, here or in one top folder."""
    depths = {len(parts) - 2: name for name, parts in paths.items() if is_image(name) and len(parts) > 1}
    folders = sorted({parts[0] for name, parts in paths.items() if name.endswith("/") or len(parts) > 1}, key=natural)
    depth = min(depths, default=2)
    if depth > 1 or (depth == 1 and len(folders) > 1):
        found = f"; its folders are {listed(folders)}" if folders else ""
        raise DataError(f"{root} has no train and no test folder, and no classes either{found}; {WANTED}")
    if len(depths) > 1:
        deep = shown(depths[max(depths)])
        raise DataError(f"{deep} of {root} lies deeper than other images, so what its class is is unclear; {WANTED}")
    return _tree(paths, depth)


def _divided(tree: Tree, root: str, notes: dict[str, Any]) -> Layout:
    """Both parts drawn from the images of each class."""
    classes = _usable(sorted(tree, key=natural), root)
    if few := [label for label in classes if len(tree[label]) < 3]:
        raise DataError(
            f"{listed(few)} of {root} have fewer than three images, but one is needed to train on, one to select on "
            "and one to test; add some, or remove the class"
        )
    members = [sorted(tree[label], key=natural) for label in classes]
    flat = [name for names in members for name in names]
    labels = targets([len(names) for names in members])
    held = torch.zeros(len(flat), dtype=torch.bool)
    held[stratified(labels, max(len(classes), round(len(flat) * TEST_SHARE)), SEED)] = True
    sides = []
    for wanted in (False, True):
        rows = torch.nonzero(held == wanted).flatten()
        by_class = rows.split(labels[rows].bincount(minlength=len(classes)).tolist())
        sides.append(tuple(tuple(flat[row] for row in member.tolist()) for member in by_class))
    share = f"a fifth of the images of each class, drawn with seed {SEED}, since there is no 'train' and no 'test'"
    return Layout(classes, *sides, notes={**notes, "test": share})


def _usable(names: Sequence[str], root: str) -> tuple[str, ...]:
    classes = tuple(checked_name(name, root) for name in names)
    if len(classes) == 1:
        raise DataError(f"{root} has only the class {classes[0]!r}; classification needs two or more")
    return classes
