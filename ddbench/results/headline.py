"""What a command that made runs ends with: what came out beside what is known, where it is, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ddbench.results.aggregate import aggregate
from ddbench.results.brief import accuracy
from ddbench.results.tables import method_of
from ddbench.run.below import own, packing
from ddbench.run.defaults import BASELINE
from ddbench.run.row import Row, method_name


def headline(rows: Sequence[Row], folders: Sequence[Path]) -> list[str]:
    """The lines for the runs in ``folders``, whose rows stand among ``rows`` with those of what they are shown beside.

    Nothing of runs that have no accuracy.
    """
    names = {folder.name for folder in folders}
    found = [own([row for row in rows if row.run == folder.name]) for folder in folders]
    made = [row for row in found if row is not None]
    if not made:
        return []
    (line, *others) = aggregate(made)
    if others:
        return []
    cells = line.cells
    count = f"{len(line.scores)} seeds" if len(line.scores) > 1 else f"{made[0].n} students"
    beside = _beside([row for row in rows if row.run not in names and row.finished])
    what = f"{method_of(cells)} on {made[0].dataset}, ipc {made[0].ipc}: {accuracy(cells)} % ({count})"
    out = folders[0].parent
    where = str(folders[0]) if len(folders) == 1 else f"{len(folders)} runs in {out}, the first {folders[0].name}"
    compare, report = ["ddbench", "compare", "--out", str(out)], ["ddbench", "report", str(folders[0])]
    return [
        "; ".join([what, *beside]),
        f"in {where}",
        f"next: {shlex.join(compare)} and {shlex.join(report)}",
    ]


def _beside(rows: Sequence[Row]) -> list[str]:
    """``random images 61.5 %, the whole training set 99.0 %``."""
    found: dict[str, list[float]] = {}
    for row in rows:
        name = "the whole training set"
        if row.matcher == BASELINE:
            packed = f" (decoder.factor={packing(row)})" if packing(row) != 1 else ""
            name = method_name("random images", None, row.label_type) + packed
        found.setdefault(name, []).append(row.accuracy_mean or 0.0)
    told = ", ".join(f"{name} {100 * fmean(scores):.1f} %" for name, scores in found.items())
    return [told] if told else []
