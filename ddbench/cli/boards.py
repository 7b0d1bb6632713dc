"""``ddbench submit``, ``ddbench leaderboard`` and ``ddbench report``. Parsing only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddbench.cli import console
from ddbench.cli.options import OUT, run_names
from ddbench.errors import UsageError

BOARDS = click.option(
    "--boards",
    "root",
    default="leaderboards",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder that holds the boards.",
)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="RUN|SUITE.toml... BOARD")
@click.option("--method", help="What to call the method; by default its plugin's name.")
@click.option("--author", help="Who submits it.")
@click.option("--link", help="Where more is to be read: a paper, a repository.")
@click.option("--note", help="What readers should know.")
@click.option("--replace", is_flag=True, help="Replace an entry of the same settings.")
@BOARDS
@OUT
def submit(words: tuple[str, ...], root: Path, out: Path, replace: bool, **about: str | None) -> int:
    """Enter runs, one for each seed, in a leaderboard. Nothing is written unless they keep to its rules.

    A suite stands for the runs of all its cells.
    """
    from ddbench.boards.board import Board
    from ddbench.boards.submit import submit as work
    from ddbench.run.folder import find_run

    *runs, board = words
    if not runs:
        raise UsageError("submit takes runs and then a board: ddbench submit runs/digits-dm-* digits")
    console.warn_broken()
    folders = [folder for name in runs for folder in _of_suite(name, out) or [find_run(name, out)]]
    for path in work(folders, Board.load(root / board), replace=replace, **about):
        console.data(str(path))
    console.say("the tables are out of date now; `ddbench leaderboard build` makes them anew")
    return 0


def _of_suite(name: str, out: Path) -> list[Path]:
    """The runs of a suite's cells, if this is one."""
    if not name.endswith(".toml"):
        return []
    from ddbench.run.folder import finished
    from ddbench.run.place import folder_of
    from ddbench.suite.grid import read

    folders = [folder_of(cell.spec, out) for cell in read(Path(name)).cells]
    if missing := [folder for folder in folders if finished(folder) is None]:
        raise UsageError(
            f"{len(missing)} of {len(folders)} cells of {name} have no finished run in {out} (the first is "
            f"{missing[0].name}): `ddbench suite run {name} --out {out}` makes them; where they were made on another "
            "device or with other threads, name the run folders instead"
        )
    return folders


@click.group()
def leaderboard() -> None:
    """Tables and pages of leaderboards, made from their entries."""


@leaderboard.command()
@click.argument("board")
@click.argument("run", metavar="RUN")
@click.option("--title", required=True, help="What people read above the tables.")
@click.option("--ipc", multiple=True, type=click.IntRange(1), help="Images per class, again for each; the run's.")
@click.option("--students", default=5, show_default=True, type=click.IntRange(1), help="Students per seed.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Seeds 0, 1, ...")
@BOARDS
@OUT
def new(board: str, run: str, root: Path, out: Path, **rules: Any) -> int:
    """Found a board with the data, network and protocol of a finished run."""
    from ddbench.base.cache import atomic_write
    from ddbench.boards.board import Board
    from ddbench.boards.submit import drafted
    from ddbench.run.folder import find_run

    path = root / board / "board.toml"
    if path.exists():
        raise UsageError(f"{path} is there already; give the new board another name")
    text = drafted(find_run(run, out), **rules)
    made = Board.parse(text, path.parent)  # before anything is written
    atomic_write(path, text.encode())
    console.data(str(path))
    console.say(f"its network is {made.network_label}; change the rules before the first entry")
    return 0


@leaderboard.command()
@click.argument("boards", nargs=-1, metavar="[BOARDS]...")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 and name what is out of date.")
@BOARDS
def build(boards: tuple[str, ...], root: Path, check: bool) -> int:
    """Make every table anew from the entries: each board's README.md and the overview."""
    from ddbench.base.cache import atomic_write
    from ddbench.boards.board import found
    from ddbench.boards.ranking import build as work
    from ddbench.boards.ranking import stale

    wanted = work(found(boards, root), root, found((), root))
    changed = stale(wanted)
    for path in changed:
        if not check:
            atomic_write(path, wanted[path].encode())
        console.say(f"{path} is out of date; run `ddbench leaderboard build`" if check else f"wrote {path}")
    return 1 if check and changed else 0


@leaderboard.command()
@click.argument("boards", nargs=-1, metavar="[BOARDS]...")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder for the site.")
@BOARDS
def html(boards: tuple[str, ...], root: Path, to: Path) -> int:
    """A static site of the boards, which needs no server and no network."""
    from ddbench.boards.board import found
    from ddbench.boards.ranking import standings
    from ddbench.boards.site import site, write

    for path in write(site([standings(board) for board in found(boards, root)]), to):
        console.data(str(path))
    return 0


@click.command()
@click.argument("run", metavar="RUN", shell_complete=run_names)
@click.option("--to", type=click.Path(path_type=Path), help="The page to write; by default report.html in the run.")
@OUT
def report(run: str, to: Path | None, out: Path) -> int:
    """One run as a page: curves, selection, students, controls, images, costs and its command."""
    from ddbench.base.cache import atomic_write
    from ddbench.boards.report import report as work
    from ddbench.run.folder import find_run

    folder = find_run(run, out)
    page = to or folder / "report.html"
    atomic_write(page, work(folder).encode())
    console.data(str(page))
    return 0
