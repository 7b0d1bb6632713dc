"""What of a tree of files is in no class of a dataset: counted in images, and named so that people find it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ddbench.data.pictures import is_of_tools, is_picture
from ddbench_datasets.places import shown


def natural(name: str) -> Any:
    """A sort key by which ``2`` comes before ``10``; numbers compare by length first, as some are too long for int."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)], name


def listed(names: Sequence[str], told: Mapping[str, str] | None = None) -> str:
    """Up to five names in quotes, each with what is ``told`` of it, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{shown(name)}'{(told or {}).get(name, '')}" for name in names[:5]) + more


class Count(NamedTuple):
    """Images, whatever else there is, and whether there is more, since no more was counted."""

    images: int = 0
    others: int = 0
    more: bool = False

    def __str__(self) -> str:
        kinds = ((self.images, "image", "images"), (self.others, "other entry", "other entries"))
        words = [f"{n} {one if n == 1 else many}" for n, one, many in kinds if n]
        return "at least " * self.more + " and ".join(words)


def nothing(_folder: str) -> Count:
    """What is in a folder of an archive that has no member in it."""
    return Count()


def left_out(
    names: Sequence[str],
    used: Collection[str],
    depth: int,
    parts: Collection[str],
    count: Callable[[str], Count],
) -> dict[str, str]:
    """A note about the files, and the folders that were not looked into, that are not ``used``, if there are any.

    The ``parts`` lie at ``depth``, counted from 1; a folder beside them is one entry with all that is in it, which is
    ``count``ed where it was not looked into. What tools leave is one entry, whatever is in it.
    """
    entered = {name[: i + 1] for name in names if name[-1:] != "/" for i, letter in enumerate(name) if letter == "/"}
    rest: dict[str, Count] = {}
    for name in names:
        if name in used or name in entered:
            continue
        where, image = _entry(name, depth, parts), is_picture(name)
        if not name.endswith("/"):
            held = rest.get(where, Count())
            rest[where] = Count(held.images + image, held.others + (not image))
        elif where != name or name.count("/") == depth or name.split("/")[-2].startswith(".") or _of_tools(name):
            rest.setdefault(where, Count() if _of_tools(name) else count(name))
    for name, held in rest.items():
        if _of_tools(name) or held == Count():
            rest[name] = Count(0, 1)
    if not rest:
        return {}
    columns = [*zip(*rest.values(), strict=True)]
    total = Count(sum(columns[0]), sum(columns[1]), any(columns[2]))
    told = {name: f" ({held})" for name, held in rest.items() if name.endswith("/") and held.images}
    return {"left out": f"{total} in no class: {listed(sorted(rest, key=natural), told)}"}


def _entry(name: str, depth: int, parts: Collection[str]) -> str:
    """The folder of a tool or beside the parts that a name lies in, else the name itself."""
    folders = name.split("/")[:-1]
    at = 0
    for i, folder in enumerate(folders):
        at += folder not in ("", ".")
        if is_of_tools(folder) or (at == depth and parts and folder not in parts):
            return "/".join(folders[: i + 1]) + "/"
    return name


def _of_tools(name: str) -> bool:
    return any(map(is_of_tools, name.split("/")))
