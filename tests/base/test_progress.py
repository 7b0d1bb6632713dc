"""Interrupts: the first signal asks, the second does not. Notes reach people."""

from __future__ import annotations

import os
import signal

import pytest

from ddbench.base import interrupts
from ddbench.base.progress import Interrupts, note, noting, pause
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


def test_a_third_signal_ends_the_process(monkeypatch):
    left = []
    monkeypatch.setattr("ddbench.base.interrupts.leave", lambda: left.append("left"))
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert left == []
        os.kill(os.getpid(), signal.SIGINT)
    assert left == ["left"]


def test_a_signal_during_the_farewell_of_an_interrupted_command_ends_it(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr("os.register_at_fork", lambda **_: None)
    try:
        interrupts.hear()
        with Interrupts():
            pass
        assert signal.getsignal(signal.SIGINT) is not interrupts.leave
        with Interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is interrupts.leave
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_whoever_waits_for_another_process_hears_a_signal_and_nobody_elses():
    with Interrupts():
        pause(0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRun, match="kept"):
            pause(0)
    pause(0)


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
