"""Interrupts: the first signal asks, the second does not."""

from __future__ import annotations

import os
import signal

import pytest

from ddbench.base.progress import Interrupts
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
