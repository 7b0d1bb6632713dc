"""Classes of ImageNet by their WordNet number: the subsets of the field, readable names, and label files.

An index of the 1,000 classes is the place of a number among the sorted ones.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ddbench import UsageError, did_you_mean

WNID = re.compile(r"n\d{8}")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # by which everybody normalises ImageNet and its parts
ENTRY = re.compile(r"(n\d{8})[\s:]+(\S.*)")

# The ten classes of each subset, by number, in its order, and their names.
SUBSETS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("subsets.toml").read_text("utf-8"))


def words(text: str) -> dict[str, str]:
    """The first name of each number in lines such as ``n01440764<tab>tench, Tinca tinca``."""
    found = (ENTRY.match(line) for line in text.splitlines())
    return {entry[1]: entry[2].split(",")[0].strip() for entry in found if entry}


def readable(wnids: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A name for each number; those that several share (two cranes, two maillots) are told apart by the number."""
    names = {wnid: known.get(wnid, wnid) for wnid in wnids}
    count = Counter(names.values())
    return {wnid: f"{name} ({wnid})" if count[name] > 1 else name for wnid, name in names.items()}


def numbers(wanted: Iterable[str] | None, names: Mapping[str, str]) -> tuple[str, ...] | None:
    """The classes asked for, by name or number, as numbers; ``names`` are those of all numbers there are."""
    if wanted is None:
        return None
    known = {name: wnid for wnid, name in names.items()} | {wnid: wnid for wnid in names}
    for name in wanted:
        if name not in known:
            shown = ", ".join(list(names.values())[:10]) + (" and more" if len(names) > 10 else "")
            raise UsageError(f"dataset.classes names {name!r}{did_you_mean(name, known)}; the classes are {shown}")
    return tuple(known[name] for name in wanted)


def labels(text: str) -> dict[str, str]:
    """The number for each image, without suffix, in lines such as ``val_0.JPEG<tab>n03444034`` with or without more."""
    found = (re.match(r"([^\s,]+?)(?:\.\w+)?[\s,]+(n\d{8})\b", line) for line in text.splitlines())
    return {entry[1]: entry[2] for entry in found if entry}
