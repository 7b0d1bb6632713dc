"""How far a command is in all of its runs: what events tell of parts, weighed by what the parts are to take."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ddbench.base.progress import Event, report

WHAT = "in all"
FINE = 1000  # units of the whole
_STAGE = re.compile(r"stage (\d+) distilling")


class Course:
    """A listener that reports the whole: ``runs`` are the seconds of the parts of each run, as ``price`` tells them.

    A part only grows, and a run that is over counts as a whole, whatever its parts took: nothing here is measured.
    """

    def __init__(self, runs: Sequence[dict[str, float]], stages: int) -> None:
        self._runs = list(runs)
        self._stages = stages
        self._total = sum(sum(parts.values()) for parts in self._runs)
        self._before = 0.0  # seconds of the runs that are over
        self._done: dict[str, float] = {}
        self._beside = False
        self._stage = 0
        self._shown = -1

    def begin(self, i: int) -> None:
        """The ``i``-th run begins."""
        self._before = sum(sum(parts.values()) for parts in self._runs[:i])
        self._done, self._beside, self._stage, self._parts = {}, False, 0, self._runs[i]
        self._show()

    def beside(self) -> None:
        """What it is shown beside begins: the run itself is over."""
        self._done = dict.fromkeys(("experts", "distilling", "grading"), 1.0)
        self._beside = True
        self._show()

    def __call__(self, event: Event) -> None:
        if event.what == WHAT or event.total < 1:
            return
        part, share = self._part(event)
        if part:
            self._done[part] = max(self._done.get(part, 0.0), min(1.0, share))
            self._show()

    def _part(self, event: Event) -> tuple[str, float]:
        """Which part an event is of, and how much of it is done."""
        share = event.done / event.total
        if event.what == "stages":
            self._stage = min(event.done, self._stages - 1)
        if self._beside:
            return ("beside", share) if event.what == "evaluation" else ("", 0.0)
        if stage := _STAGE.fullmatch(event.what):
            self._stage = int(stage[1])
            return "distilling", (self._stage + share) / self._stages
        if event.what == "experts":
            return "experts", (self._stage + share) / self._stages
        return ("grading", share) if event.what == "evaluation" else ("", 0.0)

    def _show(self) -> None:
        now = self._before + sum(self._parts.get(part, 0.0) * share for part, share in self._done.items())
        shown = int(FINE * now / self._total)
        if shown != self._shown:
            self._shown = shown
            report(WHAT, shown, FINE)
