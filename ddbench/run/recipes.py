"""Which of a matcher's recipes a run takes: by name, by the situation that it was made for, or the usual one.

On a known dataset the usual one is ``paper``, as published; on anybody's images, which nobody has published anything
about, it is ``fast``. Where there is none of that name, the other.
"""

from __future__ import annotations

from math import log
from typing import Any

from ddbench.base.recipes import NAMES, RecipeEntry
from ddbench.errors import UsageError, did_you_mean
from ddbench.plugins import Plugin, main_option, registry, takes_steps

FORM = "fast, paper, or DATASET:IPC, such as cifar10:10"


def usual(dataset: str) -> str:
    """The name of the recipe that is usual on a dataset: the data of one that takes a place are anybody's."""
    known = registry().plugins.get(("dataset", dataset))
    return "fast" if known is not None and main_option(known) else "paper"


def usual_rules(dataset: str, device: str) -> str:
    """The name of the protocol that is usual for a dataset on a device: on a CPU, ``quick`` for anybody's images."""
    return "quick" if usual(dataset) == "fast" and device == "cpu" else "default"


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


LAST = ("digits", "toy")  # what their numbers are for resembles no other data


def missing(matcher: Plugin, situation: dict[str, Any]) -> str | None:
    """What is to be said where no recipe of a matcher is for a situation; None where one is, or none is needed.

    A matcher that takes no steps, or has no recipe at all, has nothing to be nearer to.
    """
    if matcher.recipe(situation) is not None or not takes_steps(matcher):
        return None
    near = nearest(matcher, situation)
    if near is None:
        return None
    return (
        f"matcher {matcher.name!r} has no recipe for {situation['dataset']} at ipc {situation['ipc']} under "
        f"{situation['scheduler']}: its options stand at defaults, which are small enough for toy data; the nearest "
        f"recipe is --recipe {near}"
    )


def nearest(matcher: Plugin, situation: dict[str, Any]) -> str | None:
    """The recipe nearest to a situation as ``DATASET:IPC``: on the same data before others, then by the ipc.

    Of other data, the rule for anybody's images comes first, and the smallest come last.
    """
    found = []
    for entry in matcher.recipes:
        if not entry.fits(entry_place := situation | _inside(entry, situation["ipc"])):
            continue
        for dataset in entry.datasets:
            far = abs(log(entry_place["ipc"] / situation["ipc"]))
            rank = (dataset != situation["dataset"], dataset in LAST, dataset != "images", dataset != "cifar10")
            found.append((rank, far, f"{dataset}:{entry_place['ipc']}"))
    return min(found, default=(None, None, None))[2]


def _inside(entry: RecipeEntry, ipc: int) -> dict[str, Any]:
    """A dataset that an entry was made for, and the ipc nearest to ``ipc`` that it was."""
    wanted = entry.match.get("ipc", ipc)
    low, high = wanted if isinstance(wanted, list) else (wanted, wanted)
    return {"dataset": entry.datasets[0] if entry.datasets else "", "ipc": min(max(ipc, low), high)}


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
