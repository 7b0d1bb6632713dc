"""The only module that prints: data to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ddbench.progress import Event
from ddbench.tables import UNSAFE

_PLAIN_SECONDS = 10.0

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def clean(value: Any) -> str:
    """Text that is safe to show."""
    return UNSAFE.sub("?", str(value))


def say(text: str) -> None:
    """A line of progress or advice, on stderr."""
    _err.print(escape(clean(text)))


def fail(text: str) -> None:
    """An error, on stderr, as one line."""
    _err.print(f"[bold red]error:[/] {escape(clean(' '.join(text.split())))}")


def data(text: str) -> None:
    """Output that a program may read, as it is, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def data_json(value: Any) -> None:
    data(json.dumps(value, indent=2, allow_nan=False, default=str))


def table(title: str, columns: Sequence[str], body: Iterable[Sequence[Any]], caption: str | None = None) -> None:
    """A table on stdout; as wide as its content when stdout is not a terminal."""
    shown = Table(title=escape(clean(title)) or None, title_justify="left", caption=caption and escape(clean(caption)))
    shown.caption_justify = "left"
    for name in columns:
        shown.add_column(escape(clean(name)), overflow="fold")
    for line in body:
        shown.add_row(*(escape(clean("" if cell is None else cell)) for cell in line))
    target = _out if _out.is_terminal else Console(highlight=False, width=250)
    target.print(shown)


class Display:
    """Shows progress events: bars on a terminal, a plain line now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}
        self._bars: Progress | None = None

    def __enter__(self) -> Display:
        if _err.is_terminal and not self.quiet:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", markup=False), TextColumn("left"), TimeRemainingColumn(),
                console=_err, transient=True,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.quiet:
            return
        if self._bars is not None:
            self._bar(self._bars, event)
        else:
            self._line(event)

    def _bar(self, bars: Progress, event: Event) -> None:
        if event.what not in self._tasks:
            self._tasks[event.what] = bars.add_task(escape(event.what), total=event.total, numbers="")
        task = self._tasks[event.what]
        bars.update(task, completed=event.done, total=event.total, numbers=_numbers(event), visible=True)
        if event.done >= event.total:
            bars.update(task, visible=False)
            bars.reset(task, visible=False)

    def _line(self, event: Event) -> None:
        """Short pieces of work (a lesson, an expert) show only when they last."""
        now = time.monotonic()
        first, first_done = self._first.setdefault(event.what, (now, event.done))
        said = self._last.setdefault(event.what, now)
        whole = event.what in {"stages", "evaluation", "experts"} and event.done
        if now - said > _PLAIN_SECONDS or whole:
            self._last[event.what] = now
            left = (event.total - event.done) * (now - first) / max(1, event.done - first_done)
            eta = f"{left:.0f} s left" if event.done < event.total and event.done > first_done else ""
            say("  ".join(part for part in (f"{event.what} {event.done}/{event.total}", _numbers(event), eta) if part))
        if event.done >= event.total:
            self._last.pop(event.what, None)
            self._first.pop(event.what, None)


def _numbers(event: Event) -> str:
    shown = {n: clean(v) if isinstance(v, str) else f"{float(v):.4g}" for n, v in event.numbers.items()}
    return "  ".join(f"{name} {value}" for name, value in shown.items())


class Watch:
    """Shows cells at work: a table that renews itself on a terminal, nothing elsewhere (there each end is a line)."""

    def __init__(self, quiet: bool = False) -> None:
        self._live = None if quiet or not _err.is_terminal else Live(console=_err, transient=True, auto_refresh=False)
        self._shown = 0.0

    def __enter__(self) -> Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, title: str, body: Iterable[tuple[str, float, str]]) -> None:
        """Show (what, seconds, how far it is) of each piece of work, twice a second at most."""
        if self._live is None or time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        shown = Table(title=escape(clean(title)), title_justify="left", expand=True)
        shown.add_column("at work", ratio=2, no_wrap=True)
        shown.add_column("s", justify="right")
        shown.add_column("", ratio=3, no_wrap=True)
        for what, seconds, words in body:
            shown.add_row(escape(clean(what)), f"{seconds:.0f}", escape(clean(words)))
        self._live.update(shown, refresh=True)
