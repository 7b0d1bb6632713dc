"""Where long work says how far it is, and is asked whether to stop.

Training code calls :func:`report` at points where stopping is safe. Whoever runs it (the console, a
test) installs a listener with :func:`listening`; with none, reports go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One line of progress: ``done`` of ``total`` units of ``what``, with numbers worth showing."""

    what: str
    done: int
    total: int
    numbers: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
_listener: ContextVar[Listener | None] = ContextVar("ddbench_listener", default=None)


def report(what: str, done: int, total: int, **numbers: Any) -> None:
    """Tell the listener; it may raise to stop the work here."""
    listener = _listener.get()
    if listener is not None:
        listener(Event(what, done, total, numbers))


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
