"""The only module that prints: data to stdout, progress and errors to stderr; and the frame around long work."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ddbench.base import interrupts
from ddbench.base.progress import Event, Interrupts, listening, noting
from ddbench.errors import InterruptedRun
from ddbench.results.tables import UNSAFE
from ddbench.run.course import WHAT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from ddbench.results.tables import Table as Rows
    from ddbench.run.row import Row

_PLAIN_SECONDS = 10.0


@cache
def _console(*, stderr: bool = False) -> Console:
    """rich takes longer to load than the rest of ``ddbench --help``: it comes with the first line."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def safe(value: Any) -> str:
    """Text that is safe to show."""
    return UNSAFE.sub("?", str(value))


def say(text: str) -> None:
    """A line of progress or advice, on stderr."""
    from rich.markup import escape

    _console(stderr=True).print(escape(safe(text)))


def sayer(quiet: bool) -> Callable[[str], None]:
    """Says everything, or if it is to be quiet nothing but warnings."""
    return lambda text: None if quiet and not text.startswith("warning:") else say(text)


def fail(text: str) -> None:
    """An error, on stderr, as one line."""
    from rich.markup import escape

    _console(stderr=True).print(f"[bold red]error:[/] {escape(safe(' '.join(text.split())))}")


def data(text: str) -> None:
    """Output that a program may read, as it is, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def data_json(value: Any) -> None:
    data(json.dumps(value, indent=2, allow_nan=False, default=str))


def table(
    title: str,
    columns: Sequence[str],
    body: Iterable[Sequence[Any]],
    caption: str | None = None,
    least: Sequence[int] = (),
) -> None:
    """A table on stdout; as wide as its content when stdout is not a terminal.

    With the ``least`` width of each column it has no lines between them, and no column becomes narrower.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    look = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)} if least else {}
    shown = Table(**look)
    for i, name in enumerate(columns):
        shown.add_column(escape(safe(name)), overflow="fold", min_width=least[i] if least else None)
    for line in body:
        shown.add_row(*(escape(safe("" if cell is None else cell)) for cell in line))
    target = _console() if _console().is_terminal else Console(highlight=False, width=_width())
    needed = sum(least) + 2 * len(least)
    if needed > target.width:  # a name is not broken on a terminal however narrow
        shown.width = needed
    if title:
        target.print(escape(safe(title)), style="italic", soft_wrap=True)  # a name in it stays in one piece
    target.print(shown, crop=False)
    if caption:
        target.print(escape(safe(caption)), style="italic dim", soft_wrap=False)


def markdown(text: str) -> None:
    """A docstring on stdout, laid out: its tables, lists and code."""
    from rich.console import Console
    from rich.markdown import Markdown

    from ddbench.cli.about import literal

    target = _console() if _console().is_terminal else Console(highlight=False, width=120)
    target.print(Markdown(literal(safe(text))), soft_wrap=False)
    target.print()


def _width() -> int:
    """The letters of a line: those of the terminal, and plenty where a program or a file reads."""
    return _console().width if _console().is_terminal else 250


class Display:
    """Shows progress events: bars on a terminal, a plain line now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}
        self._bars: Progress | None = None

    def __enter__(self) -> Display:
        if _console(stderr=True).is_terminal and not self.quiet:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TextColumn("{task.fields[numbers]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=_console(stderr=True),
                transient=True,
            )
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
        from rich.markup import escape

        if event.what not in self._tasks:
            self._tasks[event.what] = bars.add_task(escape(event.what), total=event.total, numbers="", count="")
        task = self._tasks[event.what]
        bars.update(
            task, completed=event.done, total=event.total, numbers=_numbers(event), count=_count(event), visible=True
        )
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
            enough = event.total / 20 if event.what == WHAT else 1  # the first per cents are start-up
            eta = f"{left:.0f} s left" if first_done + enough <= event.done < event.total else ""
            say("  ".join(part for part in (f"{event.what} {_count(event)}", _numbers(event), eta) if part))
        if event.done >= event.total:
            self._last.pop(event.what, None)
            self._first.pop(event.what, None)


def _count(event: Event) -> str:
    """``3/5``; of the whole command a percentage."""
    return f"{100 * event.done // event.total} %" if event.what == WHAT else f"{event.done}/{event.total}"


def _numbers(event: Event) -> str:
    shown = {n: safe(v) if isinstance(v, str) else f"{float(v):.4g}" for n, v in event.numbers.items()}
    return "  ".join(f"{name} {value}" for name, value in shown.items())


class WorkTable:
    """Shows cells at work: a table that renews itself on a terminal, nothing elsewhere (there each end is a line)."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.live import Live

        err = _console(stderr=True)
        self._live = None if quiet or not err.is_terminal else Live(console=err, transient=True, auto_refresh=False)
        self._shown = 0.0

    def __enter__(self) -> WorkTable:
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
        from rich.markup import escape
        from rich.table import Table

        shown = Table(title=escape(safe(title)), title_justify="left", expand=True)
        shown.add_column("at work", ratio=2, no_wrap=True)
        shown.add_column("s", justify="right")
        shown.add_column("", ratio=3, no_wrap=True)
        for what, seconds, words in body:
            shown.add_row(escape(safe(what)), f"{seconds:.0f}", escape(safe(words)))
        self._live.update(shown, refresh=True)


@contextmanager
def working(quiet: bool, farewell: Callable[[str], str] = interrupts.sentence) -> Iterator[None]:
    """Show progress, and turn SIGINT and SIGTERM into a clean stop; ``farewell`` says how the work goes on."""
    from ddbench.base.machine import keep_freed_memory
    from ddbench.base.process import follow_parent

    with Interrupts() as asked, Display(quiet) as display:

        def listener(event: Event) -> None:
            display(event)
            asked.check()

        try:
            keep_freed_memory()
            follow_parent()
            with listening(listener), noting(_warn, (lambda _: None) if quiet else say):
                yield
        except InterruptedRun as error:
            raise InterruptedRun(farewell(str(error))) from None


def _warn(text: str) -> None:
    say(f"warning: {text}")


def warn_broken() -> None:
    """Name each plugin that could not be loaded, once."""
    from ddbench.plugins import registry

    for broken in registry().broken:
        say(f"warning: {broken}")


def show(rows: Rows, form: str, *, wide: bool = True) -> None:
    """A table of results on stdout, in the format asked for; without ``wide``, a table has the columns that fit."""
    from ddbench.results.brief import brief
    from ddbench.results.tables import render

    if form != "table":
        data(render(rows, form))
    elif not rows.rows:
        say("no runs to show; `ddbench run` makes one")
    elif wide or rows.columns or "matcher" not in rows.shown:
        titles, body = rows.text()
        words = [[word for text in column for word in text.split()] for column in zip(titles, *body, strict=True)]
        table(rows.title, titles, body, "\n".join(rows.notes()), [max(map(len, found), default=0) for found in words])
    else:
        titles, body, notes, least = brief(rows, _width())
        table(rows.title, titles, body, "\n".join(notes), least)


def show_rows(rows: Sequence[Row], form: str, title: str, *, wide: bool = False) -> None:
    """Rows of single runs on stdout, in the format asked for."""
    from ddbench.results.aggregate import per_run
    from ddbench.results.compare import marked
    from ddbench.results.tables import PER_RUN, Table

    found = per_run(rows)
    show(Table(found, PER_RUN, marked(found), title=title), form, wide=wide)
