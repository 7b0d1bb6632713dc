"""Where boards are: by a path, by a name in the folder of boards here, or among those that come with ddbench."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ddbench.base.shipped import shipped
from ddbench.boards.board import Board
from ddbench.errors import UsageError, did_you_mean

HERE = Path("leaderboards")
RULES = "board.toml"


def found(names: Sequence[str], root: Path) -> list[Board]:
    """The boards named, or all of a folder; those that come with ddbench where there is no such folder."""
    if names:
        return [Board.load(folder(name, root)) for name in names]
    root = shipped("leaderboards") if root == HERE and not root.exists() else root
    there = _names(root)
    if not there:
        raise UsageError(f"there are no boards in {root}; --boards names the folder that holds their folders")
    return [Board.load(root / name) for name in there]


def every(root: Path) -> list[Board]:
    """All boards that can be named: those in ``root``, and of those that come with ddbench the others."""
    places = {name: place / name for place in (shipped("leaderboards"), root) for name in _names(place)}
    return [Board.load(places[name]) for name in sorted(places)]


def folder(name: str | Path, root: Path = HERE) -> Path:
    """The folder of a board: ``root / name``, or the path ``name``, or that of a board that comes with ddbench."""
    for place in (root / name, Path(name), shipped("leaderboards") / name):
        if (place / RULES).exists():
            return place.absolute()
    ours = _names(shipped("leaderboards"))
    there = sorted({*_names(root), *ours})
    raise UsageError(
        f"there is no board {str(name)!r} in {root}, nor at this path or with ddbench"
        f"{did_you_mean(Path(name).name, there)} (there are {', '.join(there) or 'none'})"
    )


def writable(name: str, root: Path) -> Board:
    """A board to enter something in: one that comes with ddbench is copied to ``root`` first, with its entries."""
    place = folder(name, root)
    if ships(place, root):
        place = Path(shutil.copytree(place, root / place.name))
    return Board.load(place)


@contextmanager
def entered(name: str, root: Path) -> Iterator[Board]:
    """A board that the block enters something in; where it fails, no copy of a board stays behind."""
    new = ships(folder(name, root), root)
    board = writable(name, root)
    try:
        yield board
    except BaseException:
        if new:
            shutil.rmtree(board.folder)
            with suppress(OSError):  # something else is in there
                root.rmdir()
        raise


def ships(place: Path, root: Path) -> bool:
    """Whether the folder of a board came with ddbench, and is not where boards are kept here, as in a checkout."""
    ours = shipped("leaderboards")
    return place.is_relative_to(ours) and not root.absolute().is_relative_to(ours)


def _names(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob(f"*/{RULES}"))
