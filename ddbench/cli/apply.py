"""``ddbench apply``: what a distilled set is good for besides training one network. Parsing only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import console
from ddbench.cli.options import DEVICE, FORM, OPTIONS, OUT, QUIET
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from ddbench.apply.continual import Report, Target

FORM_OPTION = click.option(
    "--format", "form", default="table", type=FORM, help="Format of the output; csv holds the first table alone."
)


def grid(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """``--grid OPTION=VALUE,VALUE`` as option to values; the last one given for an option counts."""
    found = {}
    for value in values:
        name, _, text = value.partition("=")
        listed = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not listed:
            raise UsageError(f"--grid {value!r} must look like OPTION=VALUE,VALUE, for example --grid width=16,32,64")
        found[name.strip()] = listed
    return found


def target_options(students: int, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that say which set is applied, and under which rules."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                click.argument("target", metavar="RUN|FILE"),
                click.option("--dataset", help="Dataset plugin with the real data, if not the set's own."),
                click.option("--network", help="Another network than the set's own."),
                click.option("--protocol", help="Train by another protocol."),
                click.option("--students", default=students, show_default=True, type=click.IntRange(1), help=what),
                click.option(
                    "--seed", type=click.IntRange(0), help="Seed of all random numbers; by default the run's."
                ),
                DEVICE,
                OPTIONS,
                OUT,
                FORM_OPTION,
                QUIET,
            )
        ):
            command = option(command)
        return command

    return add


@click.group()
def apply() -> None:
    """Use a distilled set: as the memory of continual learning, or to choose an architecture."""


@apply.command()
@target_options(1, "Networks per class order and step.")
@click.option("--tasks", default=5, show_default=True, type=click.IntRange(1), help="Steps in which classes arrive.")
@click.option("--orders", default=5, show_default=True, type=click.IntRange(1), help="Random orders of the classes.")
@click.option("--memories", default="random,herding", show_default=True, help="Coresets beside the distilled memory.")
def continual(tasks: int, orders: int, memories: str, **given: Any) -> int:
    """Learn classes that arrive in steps, from a memory of distilled, random or herded images."""
    from ddbench.apply.continual import continual as work

    names = tuple(dict.fromkeys(name.strip() for name in memories.split(",") if name.strip()))
    return _carry_out(lambda target: work(target, tasks, orders, names), **given)


@apply.command("architecture-search")
@target_options(1, "Networks per architecture and kind of data.")
@click.option(
    "--grid",
    multiple=True,
    callback=grid,
    metavar="OPTION=VALUES",
    help="Values of an option of the network, such as width=16,32,64; may be repeated.",
)
def architecture_search(grid: dict[str, tuple[str, ...]], **given: Any) -> int:
    """Rank architectures on the distilled set, and compare with their ranking on the whole training set."""
    from ddbench.apply.architecture_search import architecture_search as work

    return _carry_out(lambda target: work(target, grid), **given)


def _carry_out(
    work: Callable[[Target], Report], target: str, out: Path, form: str, quiet: bool, options: tuple, **given: Any
) -> int:
    from ddbench.apply.continual import Target
    from ddbench.files.asked import EvalOptions

    console.warn_broken()
    with console.working(quiet):
        report = work(Target.open(target, out, EvalOptions(flags=options, quiet=quiet, **given)))
    _show(report, form)
    return 0


def _show(report: Report, form: str) -> None:
    from ddbench.results import tables

    if form == "json":
        console.data_json(report.record)
    elif form == "csv":
        console.data(tables.render(tables.Table(report.rows, {}), form))
    elif form != "table":
        titles = [f"{table.title}\n\n" if form == "md" else "" for table in report.tables]
        console.data("\n".join(t + tables.render(table, form) for t, table in zip(titles, report.tables, strict=True)))
    else:
        for table in report.tables:
            console.table(table.title, *table.text(), caption="\n".join(table.notes()) or None)
