"""A part of a suite at work: where it is, how far, and what it said when it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddbench.base.cache import read_json
from ddbench.base.process import Job, complaint, last_words
from ddbench.errors import DataError
from ddbench.hookspecs import Placed
from ddbench.suite.jobs import Part
from ddbench.suite.node import report_of

_LOOK_SECONDS = 1.0


@dataclass(eq=False)
class AtWork:
    """A part, its job, and what carries it. ``result`` is the file that a cell's end is recorded in."""

    part: Part
    job: Job
    placed: Placed
    result: Path
    began: float = field(default_factory=time.monotonic)
    report: dict[str, Any] = field(default_factory=dict)
    ended: float | None = None  # when its process was first seen to be gone

    def __post_init__(self) -> None:
        self._before = _stamp(self.result)
        self._looked = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def fresh(self) -> bool:
        """Whether the result is of this attempt. No clock is asked: those of nodes and file servers may differ."""
        return _stamp(self.result) not in (None, self._before)

    @property
    def elsewhere(self) -> bool:
        """Whether it was sent as an order, to be carried out on whatever node."""
        return self.job.words[:2] == ("suite", "work")

    def look(self, *, last: bool = False) -> dict[str, Any] | None:
        """What the node that it arrived on told, once; asked for now and then, and a ``last`` time."""
        soon = not last and time.monotonic() - self._looked < _LOOK_SECONDS
        if self.report or not self.elsewhere or soon:
            return None
        self._looked = time.monotonic()
        path = report_of(Path(self.job.words[2]))
        try:
            self.report = read_json(path) if path.exists() else {}
        except DataError:  # half written, or damaged: it is no more than news
            return None
        return self.report or None

    def last_words(self) -> str:
        """Where it is, and the last line of its messages."""
        said, node = last_words(self.job.log), self.report.get("node")
        if self.elsewhere and not node and not said:
            return "waits for a place"
        return f"{node}: {said}" if node else said

    def complaint(self) -> str:
        """Why it ended without a result."""
        if self.job.log.exists():
            return complaint(self.job.log)
        return f"it left no word in {self.job.log}: all nodes must share that folder, under the same path"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
