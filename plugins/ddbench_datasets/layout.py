"""From file names to classes: ``{train,val,test}/<class>/*`` or ``<class>/*``, optionally under one top folder.

Names count as they are: ``A`` and ``a``, ``10`` and ``010`` are different classes. Two spellings of one name in Unicode
(macOS writes "é" as two characters) are the same.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ddbench import DataError, stratified
from ddbench.data.pictures import beside_others, is_of_tools, is_picture
from ddbench_datasets.common import SEED, TEST_SHARE, composed, named
from ddbench_datasets.left import Count, left_out, listed, natural, nothing
from ddbench_datasets.places import shown
from ddbench_datasets.sources import DIVIDED, PARTS, VALIDATION, checked_name

WANTED = "images must lie in train/<class>/ and test/<class>/, or in <class>/, possibly under one folder"
FEWEST = 3  # images of a class that is divided: one to train on, one to select on, one to test

Tree = dict[str, list[str]]  # the images of each class
Paths = dict[str, list[str]]  # the parts of the names that count; those of folders end in "/"


@dataclass(frozen=True)
class Layout:
    """Class names in order; for each, the names of its images in each part; what is to be said about it.

    Without ``validation``, those images are to be taken from ``train``.
    """

    classes: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    test: tuple[tuple[str, ...], ...]
    validation: tuple[tuple[str, ...], ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


def targets(counts: Sequence[int]) -> Tensor:
    """(n,): ``counts[k]`` times the class k."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


def arrange(
    names: Iterable[str],
    root: str,
    ignored: Iterable[str] = (),
    wanted: Sequence[str] | None = None,
    within: str | None = None,
    without: Sequence[str] = (),
    count: Callable[[str], Count] = nothing,
) -> Layout:
    """Sort file names (folders end in ``/``) into classes in natural order; the notes count what is left out.

    That is: files that are no images, hidden ones, images in no folder of a class, what tools leave, links, which are
    ``ignored``, and names that point outside (``..``, ``/``). Only ``wanted`` classes have to be whole. ``within`` is
    the folder inside those of classes whose images count ("all" for every one, "." for none), but not files called as a
    pattern of ``without``. ``count`` says what is in a folder of which no file is named.

    Raises DataError, naming ``root``, when a part or class is missing or empty, or when it is unclear what is meant,
    and UsageError for a wanted class that is not there.
    """
    names, ignored = list(names), dict.fromkeys(ignored)
    paths = {name: parts for name in names if (parts := _counting(name)) and not _matches(name, without)}
    outside = {
        name: None for name in (*names, *ignored) if _outside(name) or (name in ignored and not is_picture(name))
    }
    notes = {"ignored": f"{len(outside)} links or names that point outside: {listed([*outside])}"} if outside else {}
    tops = _tops(paths, root)
    if not tops:
        tree, depth = _classes(paths, root, wanted)
        _check_alone(tree, root, wanted, within)
        images = {image for held in tree.values() for image in held}
        return _divided(tree, root, notes | left_out(names, {*images, *outside}, depth, (), count), wanted)
    trees = [_tree(paths, len(tops), part) for part in PARTS]
    trees = [{label: tree[label] for label in tree if _is_class(label, trees, wanted)} for tree in trees]
    used = _used(dict(zip(PARTS, trees, strict=True)), root)
    used = {part: _inside(tree, len(tops), root, wanted, within) for part, tree in used.items()}
    for tree in used.values():
        _check_alone(tree, root, wanted, within)
    if "test" not in used:
        notes["test"] = f"the folder {[*used][1]!r}, since there is no 'test' with classes"
    if len(used) > 2:
        notes["validation"] = f"the folder {[*used][2]!r}"
    images = {image for tree in used.values() for held in tree.values() for image in held}
    notes |= left_out(names, {*images, *outside}, len(tops), used, count)
    return checked(used, root, notes, wanted=wanted)


def checked(
    trees: Mapping[str, Tree],
    root: str,
    notes: dict[str, Any] | None = None,
    *,
    order: Sequence[str] | None = None,
    wanted: Sequence[str] | None = None,
) -> Layout:
    """The layout of the parts (to train on, to test on, and perhaps to validate on), classes in ``order`` or natural.

    Raises DataError for what the ``wanted`` classes, by default all, lack.
    """
    for part, tree in trees.items():
        if not tree:
            raise DataError(f"{root} has no {part} folder with classes in it; {WANTED}")
    trees = _spelt_alike(trees)
    classes = order or sorted({label for tree in trees.values() for label in tree}, key=natural)
    asked = _usable(classes, root, wanted)
    held = {label: tuple(part for part, tree in trees.items() if label in tree) for label in asked}
    sides = [side for n in range(1, len(trees)) for side in combinations(trees, n) if side in held.values()]
    if sides:
        differ = ", ".join(
            f"only {' and '.join(side)} {'has' if len(side) == 1 else 'have'} "
            f"{listed([label for label in asked if held[label] == side])}"
            for side in sides
        )
        what = " and ".join(trees)
        raise DataError(
            f"{what} of {root} have different classes: {differ}; make them the same, or choose by dataset.classes"
        )
    for part, tree in trees.items():
        if empty := [label for label in asked if not tree[label]]:
            raise DataError(f"no {part} images of {listed(empty)} in {root}; add some, or remove the class")
    sides = (tuple(tuple(sorted(tree.get(label, ()), key=natural)) for label in classes) for tree in trees.values())
    return Layout(tuple(classes), *sides, notes=notes or {})


def _outside(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name) is not None


def _counting(name: str) -> list[str]:
    """The parts of a name; none for a hidden file, one in a folder of a tool, or a name that points outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    folders = parts if name.endswith("/") else parts[:-1]
    hidden = len(folders) < len(parts) and parts[-1].startswith(".")
    return [] if hidden or _outside(name) or any(map(is_of_tools, folders)) else parts


def _tops(paths: Paths, root: str) -> list[str]:
    """The folder above ``train`` and ``test``, as ``[""]`` or ``["", top]``; ``[]`` when there are no such parts."""
    tops = sorted({parts[0] for name, parts in paths.items() if len(parts) > 1 or name.endswith("/")}, key=natural)
    if _has_parts(paths, 0, ""):
        return [""]
    tops = [top for top in tops if _has_parts(paths, 1, top)]
    if len(tops) > 1:
        raise DataError(f"{root} holds several datasets, {listed(tops)}; pass one of them as dataset.root")
    return ["", *tops] if tops else []


def _has_parts(paths: Paths, depth: int, top: str) -> bool:
    """Whether folders are parts: one called ``train`` that holds images itself, as others beside it do, is a class."""
    there, classes, deep = set(), set(), False
    for name, parts in paths.items():
        folders = parts if name.endswith("/") else parts[:-1]
        if len(folders) <= depth or (top and parts[0] != top):
            continue
        if folders[depth] in DIVIDED:
            there.add(folders[depth])
            deep = deep or (is_picture(name) and len(folders) > depth + 1)
        elif folders[depth] not in PARTS and is_picture(name) and len(folders) == depth + 1:
            classes.add(folders[depth])
    return bool(there) and (deep or not classes)


def _tree(paths: Paths, depth: int, part: str | None = None) -> Tree:
    """The images of each class; the folder of a class lies at ``depth``, counted from 0, in one named ``part``."""
    tree: Tree = {}
    for name, parts in paths.items():
        folders = parts if name.endswith("/") else parts[:-1]
        hidden = any(folder.startswith(".") for i, folder in enumerate(folders) if i != depth)
        if len(folders) > depth and not hidden and (part is None or folders[depth - 1] == part):
            images = tree.setdefault(folders[depth], [])
            if is_picture(name):
                images.append(name)
    return tree


def _is_class(label: str, trees: Sequence[Tree], wanted: Sequence[str] | None) -> bool:
    """Whether a folder is meant as a class: a hidden one (``.net``) is if train and another part have images of it."""
    if not label.startswith(".") or label in (wanted or ()):
        return True
    first, *others = [tree.get(label, []) for tree in trees]
    return bool(first) and any(others) if others else len(first) >= FEWEST


def _used(trees: dict[str, Tree], root: str) -> dict[str, Tree]:
    """The parts to train on, to test on, and, where there is one beside ``test``, to validate on."""
    held = [part for part in VALIDATION if any(trees[part].values())]
    if len(held) > 1:
        raise DataError(f"{root} has {listed(held)}, so which one is to be validated on is unclear; leave one")
    names = ["train", "test", *held] if trees["test"] or not held else ["train", *held]
    return {part: trees[part] for part in names}


def _inside(tree: Tree, depth: int, root: str, wanted: Sequence[str] | None, within: str | None) -> Tree:
    """The images of the one folder inside each class that has any, or of those that ``within`` names."""
    asked = {composed(label) for label in wanted or ()}
    made: Tree = {}
    for label, images in sorted(tree.items()):
        inner = {image: "/".join(_counting(image)[depth + 1 : -1]) or "." for image in images}
        found = sorted(set(inner.values()), key=natural)
        if len(found) > 1 and within is None and (not asked or composed(label) in asked):
            raise DataError(
                f"images of {shown(label)!r} in {root} lie in several folders, {listed(found)}, and some may be masks "
                f"or copies; choose one by -o dataset.within={shown(found[0])}, or pass -o dataset.within=all"
            )
        fits = (None, "all")
        made[label] = [i for i in images if within in fits or f"{inner[i]}/".startswith(f"{within}/")]
    return made


def _check_alone(tree: Tree, root: str, wanted: Sequence[str] | None, within: str | None) -> None:
    """Refuse images that are named as masks or copies of others in their folder, unless all that there is counts."""
    asked = {composed(label) for label in wanted or ()}
    for label, images in sorted(tree.items()):
        if within == "all" or (asked and composed(label) not in asked):
            continue
        folders: dict[str, list[str]] = {}
        for image in images:
            folder, _, name = image.rpartition("/")
            folders.setdefault(folder, []).append(name)
        odd = {name: pattern for held in folders.values() for name, pattern in beside_others(held).items()}
        if odd:
            patterns = shown(",".join([*dict.fromkeys(odd.values())][:5]))
            raise DataError(
                f"{len(odd)} of the images of {shown(label)!r} in {root} are called as masks or copies of others "
                f"beside them, {listed(sorted(odd, key=natural))}; leave such files out by "
                f"-o 'dataset.without={patterns}', or pass -o dataset.within=all if each is an image of its class"
            )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    last = name.rpartition("/")[2].lower()
    return any(fnmatchcase(last, pattern.lower()) for pattern in patterns)


def _classes(paths: Paths, root: str, wanted: Sequence[str] | None) -> tuple[Tree, int]:
    """The classes of a dataset without parts: the folders that hold images, here or in one top folder; and how deep."""
    images = {name: parts for name, parts in paths.items() if is_picture(name) and len(parts) > 1}
    plain = {n: parts for n, parts in images.items() if not any(p.startswith(".") for p in parts)} or images
    depths = {len(parts) - 2: name for name, parts in plain.items()}
    tops = {parts[0] for name, parts in paths.items() if name.endswith("/") or len(parts) > 1}
    folders = sorted((top for top in tops if not top.startswith(".")), key=natural)
    depth = min(depths, default=2)
    if depth > 1 or (depth == 1 and len(folders) > 1):
        found = f"; its folders are {listed(folders)}" if folders else ""
        raise DataError(f"{root} has no train and no test folder, and no classes either{found}; {WANTED}")
    if len(depths) > 1:
        deep = shown(depths[max(depths)])
        raise DataError(f"{deep} of {root} lies deeper than other images, so what its class is is unclear; {WANTED}")
    tree = _tree(paths, depth)
    return {label: tree[label] for label in tree if _is_class(label, [tree], wanted)}, depth + 1


def _divided(tree: Tree, root: str, notes: dict[str, Any], wanted: Sequence[str] | None) -> Layout:
    """Both parts drawn from the images of each class; the draw is the same whichever classes are wanted."""
    classes = sorted(tree, key=natural)
    if few := [label for label in _usable(classes, root, wanted) if len(tree[label]) < FEWEST]:
        raise DataError(
            f"{listed(few)} of {root} have fewer than three images, but one is needed to train on, one to select on "
            "and one to test; add some, or remove the class"
        )
    members = [sorted(tree[label], key=natural) for label in classes]
    flat = [name for names in members for name in names]
    labels = targets([len(names) for names in members])
    held = torch.zeros(len(flat), dtype=torch.bool)
    held[stratified(labels, max(sum(map(bool, members)), round(len(flat) * TEST_SHARE)), SEED)] = True
    sides = []
    for part in (False, True):
        rows = torch.nonzero(held == part).flatten()
        by_class = rows.split(labels[rows].bincount(minlength=len(classes)).tolist())
        sides.append(tuple(tuple(flat[row] for row in member.tolist()) for member in by_class))
    share = f"a fifth of the images of each class, drawn with seed {SEED}, since there is no 'train' and no 'test'"
    return Layout(tuple(classes), *sides, notes={**notes, "test": share})


def _usable(names: Sequence[str], root: str, wanted: Sequence[str] | None) -> Sequence[str]:
    """The ``wanted`` ones of the classes, or all of them, if they can be used."""
    asked = list(names) if wanted is None else list(named(wanted, names))
    for label in asked:
        checked_name(label, root)
    if len(asked) == 1 and wanted is None:
        raise DataError(f"{root} has only the class {asked[0]!r}; classification needs two or more")
    count = Counter(map(composed, names))
    if twice := [label for label in asked if count[composed(label)] > 1]:
        raise DataError(f"{root} has {listed(twice)} in two spellings of Unicode that look alike; give them one folder")
    return asked


def _spelt_alike(trees: Mapping[str, Tree]) -> dict[str, Tree]:
    """Classes that are spelt by other characters of Unicode in another part, by the composed ones."""
    spellings = defaultdict(set)
    for label in {label for tree in trees.values() for label in tree}:
        spellings[composed(label)].add(label)
    once = all(len(spelt & tree.keys()) < 2 for tree in trees.values() for spelt in spellings.values())
    renamed = {label: name for name, spelt in spellings.items() if len(spelt) > 1 and once for label in spelt}
    return {part: {renamed.get(label, label): tree[label] for label in tree} for part, tree in trees.items()}
