"""Interrupts: the first signal asks, the second does not. Notes reach people."""

from __future__ import annotations

import os
import signal

import pytest

from ddbench.base.progress import Interrupts, note, noting
from ddbench.errors import InterruptedRun


def test_the_first_signal_asks_and_the_second_stops_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRun, match="kept"):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_notes_go_to_whoever_shows_them_and_to_stderr_otherwise(capfd):
    import logging

    seen: list[str] = []
    with noting(seen.append):
        note("a file is damaged; it is made again")
    assert seen == ["a file is damaged; it is made again"]
    handlers, logging.root.handlers = logging.root.handlers, []  # pytest has its own
    try:
        note("100 % of it")
    finally:
        logging.root.handlers = handlers
    assert capfd.readouterr().err == "100 % of it\n"
