"""Entries of a board that differ in one thing only: what a scheduler, a kind of labels or an option is worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from ddbench.results.aggregate import Line
from ddbench.results.differences import between
from ddbench.results.statistics import holm
from ddbench.results.tables import cell
from ddbench.results.where import Row

SHOWN = {
    "ipc": "ipc", "title": "method", "accuracy_mean": "accuracy %", "distil_seconds": "distil s", "base": "instead of",
    "base_accuracy": "its accuracy %", "base_distil_seconds": "its distil s", "difference": "difference",
    "p_holm": "p (Holm)", "test": "test", "apart": "also differs in",
}  # fmt: skip
ABOUT = (
    "Entries of one matcher and one ipc that differ in their scheduler, in the kind of their labels, or in an option. "
    "Students get the same optimiser steps throughout; what distilling cost stands beside. p is Holm-corrected over "
    "this table."
)


def table(lines: Sequence[Line]) -> list[Row]:
    """A row for every pair of finished entries that differ in one thing. Reads titles that the leaderboard gave."""
    found, raw = [], dict[int, float]()
    done = [line for line in lines if line.scores]
    for one, other in combinations(done, 2):
        if (one.row["ipc"], one.row["matcher"]) != (other.row["ipc"], other.row["matcher"]) or _things(one, other) != 1:
            continue
        line, base = sorted((one, other), key=_plainness, reverse=True)
        result = between(line, base)
        if result.p is not None:
            raw[len(found)] = result.p
        kept = {name: line.row[name] for name in ("ipc", "title", "accuracy_mean", "accuracy_std", "distil_seconds")}
        found.append(kept | {
            "base": base.row["title"],
            "base_accuracy": cell("accuracy_mean", base.row | {"best": False}),
            "base_distil_seconds": base.row["distil_seconds"],
            "difference": result.difference, "test": result.name, "p_holm": None, "apart": _apart(line, base),
        })  # fmt: skip
    for i, p in zip(raw, holm(list(raw.values())), strict=True):
        found[i]["p_holm"] = p
    return sorted(found, key=lambda row: (row["ipc"], row["title"], row["base"]))


def _traits(line: Line) -> tuple[Any, ...]:
    return tuple(line.row[name] for name in ("scheduler", "label_type", "variant"))


def _things(one: Line, other: Line) -> int:
    """In how many of scheduler, labels and named options two lines differ."""
    return sum(a != b for a, b in zip(_traits(one), _traits(other), strict=True))


def _plainness(line: Line) -> tuple[Any, ...]:
    """Sorts the plainer of two first: one set, hard labels, and the last of options by the alphabet (zero, exact)."""
    row = line.row
    return (row["scheduler"] != "single", row["label_type"] != "hard", [-ord(letter) for letter in row["variant"]])


def _apart(line: Line, base: Line) -> str:
    """The options that differ besides: a scheduler's recipe may ask for other ones."""
    own, usual = line.row["options"] or {}, base.row["options"] or {}
    named = {name for name in own if name.startswith("scheduler.")} | {"matcher.labels"}
    return ", ".join(
        f"{name.removeprefix('matcher.')}={own.get(name)} instead of {usual.get(name)}"
        for name in sorted({*own, *usual} - named)
        if own.get(name) != usual.get(name) and f"{name.removeprefix('matcher.')}=" not in line.row["variant"]
    )
