"""Which of a matcher's recipes a run takes: by name, by the situation that it was made for, or the usual one.

On a known dataset the usual one is ``paper``, as published; on anybody's images, which nobody has published anything
about, it is ``fast``. Where there is none of that name, the other.
"""

from __future__ import annotations

from typing import Any

from ddbench.base.recipes import NAMES, RecipeEntry
from ddbench.errors import UsageError, did_you_mean
from ddbench.plugins import Plugin, main_option, registry

FORM = "fast, paper, or DATASET:IPC, such as cifar10:10"


def usual(dataset: str) -> str:
    """The name of the recipe that is usual on a dataset: the data of one that takes a place are anybody's."""
    known = registry().plugins.get(("dataset", dataset))
    return "fast" if known is not None and main_option(known) else "paper"


def chosen(matcher: Plugin, situation: dict[str, Any], asked: str | None) -> RecipeEntry | None:
    """The recipe of a matcher in a situation (dataset, ipc, scheduler), or the one that is ``asked`` for.

    Raises UsageError where one is asked for that does not exist.
    """
    name = usual(situation["dataset"])
    if asked is None:
        return matcher.recipe(situation, name)
    if asked in NAMES:
        found = matcher.recipe(situation, name, asked)
        where = f"{situation['dataset']} at ipc {situation['ipc']}"
    else:
        place = _place(asked, matcher)
        found = matcher.recipe(situation | place, usual(place["dataset"]))
        where = f"{place['dataset']} at ipc {place['ipc']}"
        found = found if found is not None and found.datasets else None  # made for it, and not for any
    if found is None:
        named = f" called {asked}" if asked in NAMES else ""
        raise UsageError(f"matcher {matcher.name!r} has no recipe{named} for {where}; {offered(matcher)}")
    return found


def offered(matcher: Plugin) -> str:
    """The recipes of a matcher as a phrase."""
    made = {(r.name, str(place)): None for r in matcher.recipes for place in r.datasets or ["any dataset"]}
    if not made:
        return "it has none at all: leave --recipe out"
    names = {name: sorted(place for called, place in made if called == name) for name in NAMES}
    told = (f"{name} for {', '.join(found)}" for name, found in names.items() if found)
    return f"it has {'; '.join(told)}"


def _place(asked: str, matcher: Plugin) -> dict[str, Any]:
    """``cifar10:10`` as a dataset and an ipc."""
    dataset, colon, ipc = asked.partition(":")
    if not colon or not (ipc.isascii() and ipc.isdecimal()) or int(ipc[:9]) < 1:
        raise UsageError(f"--recipe must be {FORM}, got {asked[:80]!r}{did_you_mean(asked, list(NAMES))}")
    known = sorted({place for entry in matcher.recipes for place in entry.datasets})
    if dataset not in known:
        hint = did_you_mean(dataset, known)
        raise UsageError(f"matcher {matcher.name!r} has no recipe for a dataset {dataset!r}{hint}; {offered(matcher)}")
    return {"dataset": dataset, "ipc": int(ipc[:9])}
