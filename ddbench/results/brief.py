"""Tables for a terminal: the few columns that tell lines apart and say how they did, in the room that there is.

What all lines share is said once, below; what does not fit is named there. All columns are for ``--wide``, for files
and for programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ddbench.results.tables import CI, LINES, OVER_SEEDS, PER_RUN, P, Table, cell, marks, method_of
from ddbench.run.defaults import BASELINE
from ddbench.run.row import Cells

MOST = 8  # columns
GAP = 2  # cells between columns
NARROWEST = 16  # of a column whose cells may take several lines
ACCURACY = (
    "Accuracy: the mean over seeds, each of them one run, with its 95 % confidence interval [Student's t, cut to 0 to "
    "100 %]; of a single run ± the deviation over its students."
)
DIFFERENCE = "Difference, in points: {}; intervals and p are columns of --wide."
# Said once where all rows agree; shown, in this order, where they do not.
SHARED = {"dataset": "dataset", "network": "network", "protocol": "protocol"}
COUNTS = {"steps": "N", "students": "students"}  # said once, or not at all
COLUMNS = {
    **SHARED,
    "method": "method",
    "label_type": "labels",
    "ipc": "ipc",
    "seed": "seed",
    "n": "n",
    "accuracy": "accuracy %",
    "difference": "difference",
    "cost": "time s",
    "total_bytes": "total kB",
    "status": "status",
}
WRAPPED = ("method", *SHARED)  # at spaces
# What is left out for want of room, first things first.
DROPPED = ("total_bytes", "label_type", "n", "cost", "difference", "seed", "protocol", "dataset", "network")


def brief(table: Table, width: int) -> tuple[list[str], list[list[str]], list[str], list[int]]:
    """Titles, cells, notes and the least width of each column of a table of runs, in ``width`` letters."""
    extra = {n: t for n, t in table.shown.items() if n not in LINES | PER_RUN and n != "reported"}
    lines = "students" in table.shown
    titles = COLUMNS | {"n": table.shown.get("n", "n")} | {n: table.shown[n] for n in ("reported",) if n in table.shown}
    titles |= extra
    cells = {name: [_cell(name, row) for row in table.rows] for name in titles | COUNTS}
    told = {name: {text for text in cells[name] if text} for name in _once(lines)}  # a ceiling, say, has no seed
    once = {name: found.pop() for name, found in told.items() if len(found) == 1}
    shown = [n for n in titles if n not in once and any(cells[n]) and not (lines and n == "seed")]
    if set(cells["status"]) == {"ok"}:
        shown.remove("status")
    kept = _fitting(shown, {name: [titles[name], *cells[name]] for name in shown}, width)
    hidden = [titles[name] for name in shown if name not in kept]
    agreed = ", ".join(f"{(titles | COUNTS)[name]} {text}" for name, text in once.items())
    notes = [f"In all lines: {agreed}."] if agreed else []
    notes += [f"Left out for lack of room: {', '.join(hidden)}; --wide shows all columns."] if hidden else []
    body = [[cells[name][i] for name in kept] for i in range(len(table.rows))]
    least = [_least(name, [titles[name], *cells[name]]) for name in kept]
    return [titles[name] for name in kept], body, [*notes, *_notes(table, kept)], least


def _once(lines: bool) -> tuple[str, ...]:
    return (*SHARED, "label_type", *COUNTS, *(() if lines else ("n", "seed")))


def _cell(name: str, row: Cells) -> str:
    special: dict[str, Callable[[Cells], str]] = {
        "method": lambda row: cell("run", {"run": method_of(row)}),
        "accuracy": accuracy,
        "difference": _difference,
        "cost": _cost,
    }
    return special[name](row) if name in special else cell(name, row)


def accuracy(row: Cells) -> str:
    """``86.5 [83.2, 89.8] *``, or ``86.5 ± 1.2`` of a single run."""
    if row.get("accuracy_mean") is None:
        return ""
    text = f"{100 * row['accuracy_mean']:.1f}"
    std = row.get("students_std", row.get("accuracy_std"))
    if row.get("ci_low") is not None:
        text += f" {cell('ci_low', row)}"
    elif std is not None:
        text += f" ± {100 * std:.1f}"
    return text + marks(row)


def _difference(row: Cells) -> str:
    """To the baseline of a line; of a single run to random images, with labels as near to its own as there are."""
    if row.get("difference") is not None or "baseline" in row:
        return cell("difference", row)
    beside = _beside(row)
    return "" if beside is None else f"{100 * beside['difference']:+.1f}"


def _beside(row: Cells) -> Cells | None:
    """The random images that a single run is compared with: soft labels with soft ones, packed images with packed."""
    found = row.get("random") or []
    soft = row.get("label_type") not in (None, "hard")
    alike = [one for one in found if ("labels)" in one["baseline"]) == soft] or found
    return alike[-1] if alike else None


def _cost(row: Cells) -> str:
    """Seconds of distilling and of the experts for it."""
    known = [row[name] for name in ("distil_seconds", "expert_seconds") if row.get(name) is not None]
    return f"{sum(known):.0f}" if known else ""


def _least(name: str, texts: list[str]) -> int:
    """The width below which a column would break a word, or a cell that stays on one line."""
    if name not in WRAPPED:
        return max(map(len, texts))
    return min(max(map(len, texts)), max(NARROWEST, *(len(word) for text in texts for word in text.split() or [""])))


def _fitting(names: list[str], texts: dict[str, list[str]], width: int) -> list[str]:
    """The columns without those, from the least needed on, that are too many or too wide."""
    kept = list(names)
    for name in DROPPED:
        least = sum(_least(n, texts[n]) for n in kept) + GAP * (len(kept) - 1)
        if len(kept) <= MOST and least <= width:
            break
        if name in kept:
            kept.remove(name)
    return kept


def _notes(table: Table, kept: list[str]) -> list[str]:
    """The legend of these columns, and all that is said of the lines themselves."""
    plain = [note for note in replace(table, once=()).notes() if note not in (OVER_SEEDS, CI, P)]
    own = [ACCURACY] if OVER_SEEDS in table.captions else []
    if "difference" in kept:
        own.append(DIFFERENCE.format(_baselines(table)))
    told: dict[str, list[str]] = {}
    for row in table.rows:
        if row.get("note"):
            told.setdefault(row["note"], []).append(_cell("method", row))
    who = {note: "" if note.startswith(names[0]) else f"{', '.join(names)}: " for note, names in told.items()}
    beside = [f"{names}{note}." for note, names in who.items()]
    return [*own, *plain, *beside]


def _baselines(table: Table) -> str:
    """What the differences are to."""
    names = {row["baseline"] for row in table.rows if row.get("difference") is not None and row.get("baseline")}
    names |= {one["baseline"] for row in table.rows if "baseline" not in row and (one := _beside(row))}
    return f"to {' or '.join(sorted(names or {BASELINE}))}"
