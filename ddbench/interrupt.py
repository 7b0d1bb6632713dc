"""SIGINT and SIGTERM: stop at the next safe point, so that a checkpoint can be written."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from ddbench.errors import InterruptedRun


class Interrupts:
    """Inside the block the first signal asks work to stop; a second one stops it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raise InterruptedRun if a signal arrived; called where stopping is safe."""
        if self.requested:
            raise InterruptedRun("interrupted; everything finished so far is kept")
