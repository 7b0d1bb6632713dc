"""What each stage of an entry matched: the loss of its first and of its last iteration."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ddbench.boards.entry import EntryRun
from ddbench.run.row import Cells

MATCHED = {
    "ipc": "ipc",
    "title": "method",
    "stage": "stage",
    "iterations": "iterations",
    "first": "first loss",
    "last": "last loss",
    "left": "left %",
}
ABOUT_MATCHED = (
    "The loss in the first and in the last iteration of each stage, the mean over seeds, on each method's own scale. A "
    "stage that has most of its loss left has learned next to nothing; of trajectory matchers, 1 is a student that "
    "closes none of the distance."
)


def matched(title: str, ipc: int, runs: Sequence[EntryRun]) -> list[Cells]:
    """A row for every stage that logged a loss, over all seeds that did."""
    stages: dict[int, list[tuple[int, float, float]]] = {}
    for curve in (curve for run in runs for curve in run.curves if curve.loss):
        stages.setdefault(curve.stage, []).append((curve.step[-1] + 1, curve.loss[0], curve.loss[-1]))
    rows: list[Cells] = []
    for stage, ends in sorted(stages.items()):
        first, last = fmean(e[1] for e in ends), fmean(e[2] for e in ends)
        left = f"{100 * last / first:.0f}" if first > 0 else None
        rows.append(
            {"ipc": ipc, "title": title, "stage": stage, "iterations": max(e[0] for e in ends), "left": left}
            | {"first": f"{first:.3g}", "last": f"{last:.3g}"}
        )
    return rows
