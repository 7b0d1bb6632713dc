"""Where long work says how far it is, and is asked whether to stop.

Training code calls :func:`report` at points where stopping is safe. Whoever runs it (the console, a
test) installs a listener with :func:`listening`; with none, reports go nowhere.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ddbench.base import interrupts
from ddbench.errors import InterruptedRun


@dataclass(frozen=True)
class Event:
    """One line of progress: ``done`` of ``total`` units of ``what``, with numbers worth showing."""

    what: str
    done: int
    total: int
    numbers: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
Say = Callable[[str], None]  # where a sentence for people goes
_listener: ContextVar[Listener | None] = ContextVar("ddbench_listener", default=None)


def _log(text: str) -> None:
    """Where nobody says otherwise: logging writes warnings to stderr."""
    import logging  # which takes longer to load than all else that ``ddbench --help`` has of this

    logging.getLogger("ddbench").warning(text)


_say: ContextVar[Say] = ContextVar("ddbench_say", default=_log)
_tell: ContextVar[Say] = ContextVar("ddbench_tell", default=lambda _: None)


def report(what: str, done: int, total: int, **numbers: Any) -> None:
    """Tell the listener; it may raise to stop the work here."""
    listener = _listener.get()
    if listener is not None:
        listener(Event(what, done, total, numbers))


def note(text: str) -> None:
    """Tell people what they should know and the work goes on without: that a file was damaged and is made again."""
    _say.get()(text)


def say(text: str) -> None:
    """Tell people, where somebody listens, what the work has found: no warning, and nothing that they must act on."""
    _tell.get()(text)


@contextmanager
def noting(warn: Say, tell: Say | None = None) -> Iterator[None]:
    """Send notes made inside the block to ``warn``, without which they go to stderr, and what is said to ``tell``."""
    token, other = _say.set(warn), _tell.set(tell or _tell.get())
    try:
        yield
    finally:
        _say.reset(token)
        _tell.reset(other)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send reports made inside the block to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def listening_too(listener: Listener) -> Iterator[None]:
    """Send reports made inside the block to ``listener``, and then to whoever listens already: it may stop the work."""
    before = _listener.get()

    def both(event: Event) -> None:
        listener(event)
        if before is not None:
            before(event)

    with listening(both):
        yield


class Interrupts:
    """Inside the block the first signal asks work to stop; a second one stops it at once, a third ends the process."""

    def __init__(self) -> None:
        self._heard = 0
        self._old: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal arrived."""
        return self._heard > 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # signals are heard nowhere else
            for number in interrupts.SIGNALS:
                self._old[number] = signal.signal(number, self._request)
        _listening.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _listening.remove(self)
        for number, handler in self._old.items():
            ours = self.requested and interrupts.is_ours(handler)
            signal.signal(number, interrupts.leave if ours else handler)  # one more is not to interrupt the farewell

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self._heard += 1
        if self._heard == 2:
            raise KeyboardInterrupt
        if self._heard > 2:
            interrupts.leave()

    def check(self) -> None:
        """Raise InterruptedRun if a signal arrived; called where stopping is safe."""
        if self.requested:
            raise InterruptedRun(interrupts.KEPT)


_listening: list[Interrupts] = []


def pause(seconds: float) -> None:
    """Sleep while another process is waited for; a signal that asked work to stop is heard here."""
    for interrupt in _listening:
        interrupt.check()
    time.sleep(seconds)
