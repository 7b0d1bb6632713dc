"""``ddbench submit``, ``ddbench leaderboard`` and ``ddbench report``. Parsing only."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import click

from ddbench.cli import console
from ddbench.cli.options import DEVICE, JSON, OPTIONS, OUT, QUIET, run_names
from ddbench.errors import UsageError

REBUILD = "the tables are out of date now; `ddbench leaderboard build` makes them anew"
BOARDS = click.option(
    "--boards",
    "root",
    default="leaderboards",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder that holds the boards.",
)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # of a container, who may have no name
        return "somebody"


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="RUN|SUITE.toml... BOARD")
@click.option("--method", help="Name of the method; by default its plugin's name.")
@click.option("--author", help="Who submits it.")
@click.option("--link", help="Link to more: a paper, a repository.")
@click.option("--note", help="What readers should know.")
@click.option(
    "--sets-at",
    "sets",
    metavar="URL",
    help="Address of the folder where their sets will be, so that anybody can verify.",
)
@click.option(
    "--sets",
    "keep_in",
    default="sets",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder that their sets are copied to, by sha256; keep it out of the repository.",
)
@click.option("--replace", is_flag=True, help="Replace an entry of the same settings.")
@BOARDS
@OUT
def submit(words: tuple[str, ...], root: Path, out: Path, replace: bool, keep_in: Path, **about: str | None) -> int:
    """Enter runs, one for each seed, in a leaderboard. Nothing is written unless they keep to its rules.

    A suite stands for the runs of all its cells.
    """
    from ddbench.boards.places import entered, folder, ships
    from ddbench.boards.submit import submit as work
    from ddbench.run.folder import find_run

    *runs, board = words
    if not runs:
        raise UsageError("submit takes runs and then a board: ddbench submit runs/digits-dm-* digits")
    console.warn_broken()
    folders = [folder for name in runs for folder in _of_suite(name, out) or [find_run(name, out)]]
    copied = ships(folder(board, root), root)
    with entered(board, root) as place:
        paths = work(folders, place, replace=replace, keep_in=keep_in, **about)
    for path in paths:
        console.data(str(path))
    if copied:
        console.say(f"{place.folder} is a copy of the board that comes with ddbench, with its entries and yours")
    console.say(f"the sets are in {keep_in}: `ddbench leaderboard verify` grades them anew, wherever they are put")
    console.say(REBUILD)
    return 0


def _of_suite(name: str, out: Path) -> list[Path]:
    """The runs of a suite's cells, if this is one."""
    if not name.endswith(".toml"):
        return []
    from ddbench.run.folder import finished
    from ddbench.run.place import folder_of
    from ddbench.suite.grid import read
    from ddbench.suite.places import suite_file

    folders = [folder_of(cell.spec, out) for cell in read(suite_file(Path(name))).cells]
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


@leaderboard.command("list")
@BOARDS
@JSON
def list_(root: Path, as_json: bool) -> int:
    """List the boards in --boards and those that come with ddbench: what they are of, and where they lie."""
    from ddbench.boards.places import every

    found = every(root)
    columns = ("board", "title", "dataset", "network", "ipc", "entries", "folder")
    body = [
        [b.name, b.title, b.dataset.name, b.network_label, ", ".join(map(str, b.ipc)), b.size, str(b.folder)]
        for b in found
    ]
    if as_json:
        console.data_json([dict(zip(columns, line, strict=True)) for line in body])
    else:
        console.table("boards", columns[:-1], [line[:-1] for line in body])
        console.say(f"by name: `ddbench compare --board {found[0].name}`" if found else "there are no boards")
    return 0


@leaderboard.command()
@click.argument("board")
@click.argument("run", metavar="RUN")
@click.option("--title", required=True, help="Title above the tables.")
@click.option(
    "--ipc", multiple=True, type=click.IntRange(1), help="Images per class; may be repeated; by default the run's."
)
@click.option("--students", default=5, show_default=True, type=click.IntRange(1), help="Students per seed.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Number of seeds: 0, 1, ...")
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
@click.argument("board")
@click.argument("entry", required=False)
@click.option(
    "--sets", "folder", type=click.Path(path_type=Path), help="Folder that holds the sets; else sets, or the web."
)
@click.option("--by", default=_user, show_default="your user name", help="Who verifies.")
@click.option("--seed", type=click.IntRange(1), help="Seed of the students; by default a new one, which is said.")
@DEVICE
@OPTIONS
@BOARDS
@QUIET
def verify(
    board: str,
    entry: str | None,
    folder: Path | None,
    root: Path,
    device: str,
    options: tuple[tuple[str, str], ...],
    quiet: bool,
    **by: Any,
) -> int:
    """Grade the sets of an entry, or of all, on fresh students, and mark it verified or disputed.

    Exit code 1 if one is disputed. -o takes dataset.root or dataset.path alone: where the board's data lie.
    """
    from ddbench.base.machine import pick_device
    from ddbench.boards.board import Board
    from ddbench.boards.places import folder as place_of
    from ddbench.boards.places import ships
    from ddbench.boards.verification import DISPUTED
    from ddbench.boards.verify import Verifier, due, judged, record

    places = {name.removeprefix("dataset."): value for name, value in options}
    if wrong := [name for name, _ in options if name not in ("dataset.root", "dataset.path")]:
        raise UsageError(f"verify grades under the rules of the board, and takes no option {wrong[0]!r}")
    work, asked, states = (
        Verifier(device=pick_device(device), folder=folder, places=places, **by),
        Board.load(place_of(board, root)),
        [],
    )
    kept = not ships(asked.folder, root)
    for one in due(asked, entry, folder):
        with console.working(quiet):
            graded = work.entry(asked, one, console.sayer(quiet))
        verdict = judged(asked, graded)
        assert verdict is not None
        if kept:
            record(graded)
        states.append(verdict.state)
        console.data(f"{one.name}: {verdict.state}: {verdict}")
    console.say(
        REBUILD if kept else f"nothing is recorded: {asked.folder} came with ddbench; verify in a checkout for that"
    )
    return 1 if DISPUTED in states else 0


@leaderboard.command()
@click.argument("boards", nargs=-1, metavar="[BOARDS]...")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 and name what is out of date.")
@BOARDS
def build(boards: tuple[str, ...], root: Path, check: bool) -> int:
    """Make every table anew from the entries: each board's README.md and the overview."""
    from ddbench.base.cache import atomic_write
    from ddbench.boards.places import found
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
    """Make a static site of the boards that needs neither server nor network."""
    from ddbench.boards.places import found
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
    """Make a page of one run: curves, selection, students, controls, images, costs and its command."""
    from ddbench.base.cache import atomic_write
    from ddbench.boards.report import report as work
    from ddbench.run.folder import find_run

    folder = find_run(run, out)
    page = to or folder / "report.html"
    atomic_write(page, work(folder).encode())
    console.data(str(page))
    return 0
