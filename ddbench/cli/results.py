"""``ddbench compare``: runs beside each other, beside boards, beside what is published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import console
from ddbench.cli.options import FORM, JSON, OUT, WIDE, run_names
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from ddbench.run.row import Row


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUNS]...", shell_complete=run_names)
@OUT
@click.option(
    "--board",
    "boards",
    multiple=True,
    metavar="NAME|FOLDER",
    help="Show the entries of a leaderboard, too, such as digits; `ddbench board list` names them.",
)
@click.option(
    "--where", multiple=True, metavar="CONDITIONS", help="Rows to keep: 'matcher=tesla,ipc>=10'; = != < <= > >= ~."
)
@click.option("--per-run", is_flag=True, help="Show every evaluation as a row of its own, not means over seeds.")
@click.option("--group-by", metavar="COLUMNS", default="", help="Average over all but these columns.")
@click.option("--baseline", metavar="CONDITIONS", help="Baseline of the differences, such as 'random' (the default).")
@click.option("--allow-mixed", is_flag=True, help="Show different protocols together, without tests across them.")
@click.option(
    "--reported",
    is_flag=False,
    flag_value="same",
    type=click.Choice(["same", "all"]),
    help="Show published accuracies beside; 'all' lists those of other settings, too.",
)
@click.option("--reported-only", is_flag=True, help="Show the published accuracies alone.")
@click.option("--sort", metavar="COLUMNS", help="Columns to sort by, such as dataset,-accuracy; minus means falling.")
@click.option("--columns", metavar="COLUMNS", default="", help="Columns to show.")
@click.option(
    "--fail-if", multiple=True, metavar="CONDITIONS", help="Exit with 1 if this holds for a row: 'accuracy<0.5'."
)
@click.option("--format", "form", default="table", type=FORM, show_default=True)
@click.option("--layout", type=click.Choice(["paper"]), help="With --format latex: methods by images per class.")
@JSON
@WIDE
def compare(runs: tuple[str, ...], boards: tuple[str, ...], out: Path, form: str, as_json: bool, **given: Any) -> int:
    """Compare runs: those that you name, or all in --out. Runs that differ only in their seed are one line."""
    from ddbench.run.folder import find_run, readable, rows, run_folders

    folders = [find_run(name, out) for name in runs] if runs or boards else run_folders(out)
    found = readable([] if given["reported_only"] else folders)
    if boards:
        from ddbench.boards.board import Board
        from ddbench.boards.places import folder

        for board in [Board.load(folder(name)) for name in boards]:
            if not board.size:
                console.say(f"the board in {board.folder} has no entries yet")
            found += board.runs()
    return _show_comparison(rows(found), "json" if as_json else form, **given)


def _show_comparison(
    rows: list[Row],
    form: str,
    *,
    group_by: str,
    columns: str,
    reported_only: bool,
    fail_if: tuple[str, ...],
    wide: bool,
    layout: str | None,
    **given: Any,
) -> int:
    """Show a comparison; 1 if an expression of ``--fail-if`` holds for a row of it."""
    from ddbench.results.compare import Ask, compared, tripped
    from ddbench.results.compare import reported_only as published
    from ddbench.results.paper import paper
    from ddbench.results.where import divided

    if layout is not None and form != "latex":
        raise UsageError(f"--layout {layout} is a layout of --format latex")
    ask = Ask(group_by=tuple(divided(group_by)), columns=tuple(divided(columns)), **given)
    found = [published(ask)] if reported_only else compared(rows, ask)
    failed = tripped(found[0].rows, fail_if)
    # for programs, what is published in other settings is in the rows themselves
    if layout == "paper":
        console.data(paper(found[0]))
        found = []
    for shown in found if form in ("table", "md", "latex", "html") else found[:1]:
        console.show(shown, form, wide=wide)
    for text in failed:
        console.say(f"--fail-if {text}")
    return 1 if failed else 0
