"""Runs of a race, nothing cached: seconds from raw images to graded students, for leaderboards/speedrun.

    python -m benchmarks.speedrun --data cifar10-jpeg.zip --out speedrun               # all seeds, on a GPU
    python -m benchmarks.speedrun --data cifar10-jpeg.zip --out speedrun --seeds 3 4   # more of them, another day
    python -m benchmarks.speedrun --enter speedrun/*.tar                               # all seeds are there: an entry
    python -m benchmarks.speedrun --board speedrun-cpu --data cifar10-jpeg.zip --out speedrun

What runs is the board's suite.toml, each seed as a ``ddbench run`` of its own, whose caches (images, statistics,
experts, compiled code) begin empty. Its seconds are those of the process, from start to end, and lie in ``wall.json``
of the run's folder, which ``--out`` keeps as a tar. ``--enter`` submits the runs to the board as ``ddbench submit``
does, by all its rules, and makes the tables anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddbench.base.cache import atomic_write, write_json
from ddbench.boards.board import Board
from ddbench.boards.places import found
from ddbench.boards.race import WALL
from ddbench.boards.ranking import build, stale
from ddbench.boards.submit import submit
from ddbench.run.place import folder_of
from ddbench.run.record import RunRecord
from ddbench.suite.grid import Cell, Suite, read
from ddbench.suite.jobs import words

ROOT = Path(__file__).resolve().parents[1]
BOARDS = ROOT / "leaderboards"
DATA = "DDBENCH_CIFAR10_ZIP"
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "DDBENCH_HOME")
TINY = """
title = "rehearsal"
students = 2
seeds = [0]
[[matrix]]
dataset = {{ name = "images", options = {{ root = "${{{data}}}" }} }}
matcher = {{ name = "tesla", label = "tiny" }}
ipc = 1
[matrix.options]
"matcher.steps" = 2
"matcher.experts" = 1
"matcher.syn_steps" = 2
"matcher.span" = 1
"matcher.max_start" = 1
"network.width" = 4
"experts.batch" = 60
"protocol.steps" = 3
"protocol.judges" = 1
"protocol.lrs" = [0.01]
"""


def raced(cell: Cell, suite: Suite, out: Path) -> tuple[Path, dict[str, float]]:
    """Carry out a run with empty caches; its tar in ``out``, and its seconds and accuracy. Raises RuntimeError."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        own = os.environ | {name: str(Path(scratch) / name.lower()) for name in CACHES}
        own |= {name: str(cell.spec.threads) for name in ("DDBENCH_THREADS", "OMP_NUM_THREADS")}
        runs = Path(scratch) / "runs"
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "ddbench", *words(cell, suite, runs), "--quiet"],
            env=own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        seconds = round(time.monotonic() - began, 1)
        if done.returncode:
            raise RuntimeError(f"{cell.name} ended with exit code {done.returncode}: {done.stderr.strip()[-1500:]}")
        folder = folder_of(cell.spec, runs)
        write_json(folder / WALL, {"seconds": seconds})
        (row,) = RunRecord.read(folder).rows()
        kept = out / f"{folder.name}.tar"
        with tarfile.open(kept, "w") as archive:
            archive.add(folder, folder.name, filter=lambda member: None if "checkpoint" in member.name else member)
    return kept, {"s": seconds, "accuracy %": round(100 * (row.accuracy_mean or 0.0), 2)}


def enter(tars: Sequence[Path], board: Board, *, replace: bool = False, **about: str | None) -> list[Path]:
    """Submit the runs in these tars to a board, and make its tables anew; the entries."""
    with tempfile.TemporaryDirectory() as scratch:
        for tar in tars:
            with tarfile.open(tar) as archive:
                archive.extractall(scratch, filter="data")
        entries = submit(sorted(Path(scratch).iterdir()), board, replace=replace, **about)
    root = board.folder.parent
    every = found((), root)
    wanted = build([Board.load(board.folder)], root, every)
    for path in stale(wanted):
        atomic_write(path, wanted[path].encode())
    return entries


def part(orders: dict[str, Any], say: Callable[..., None]) -> None:
    """What ``benchmarks.gpu`` runs: the first seed of each cell of the suite that is not known."""
    os.environ[DATA] = orders["data"]
    with tempfile.TemporaryDirectory() as scratch:
        path = BOARDS / "speedrun" / "suite.toml"
        if orders.get("tiny"):
            path = Path(scratch) / "suite.toml"
            path.write_text(TINY.format(data=DATA))
        suite = read(path, device=orders["device"])
        first = suite.cells[0].spec.seed
        began, longest = time.monotonic(), 0.0
        for cell in suite.cells:
            if cell.spec.seed != first or cell.name in orders.get("known", ()):
                continue
            if orders.get("seconds", 1e9) - (time.monotonic() - began) < longest:
                say(left=cell.name)
                continue
            say(doing=cell.name)
            told = {"part": "speedrun", "variant": cell.name}
            try:
                tar, figures = raced(cell, suite, Path(orders["records"]) / "speedrun")
            except RuntimeError as error:
                say(**told, unit="s", error=str(error))
                continue
            longest = max(longest, figures["s"])
            for unit, value in figures.items():
                say(**told, unit=unit, value=value, record=tar.name)


def main() -> None:
    """Carry out seeds, or enter them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="speedrun", help="a board that has a suite.toml and a [race]")
    parser.add_argument("--data", type=Path, help="an archive of CIFAR-10's images, {train,test}/<class>/*")
    parser.add_argument("--out", type=Path, default=Path("speedrun"))
    parser.add_argument("--seeds", type=int, nargs="+", help="these of the suite's seeds")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="cells whose names hold one of these")
    parser.add_argument("--device", help="by default cuda, and cpu for a board whose name ends in -cpu")
    parser.add_argument("--enter", type=Path, nargs="+", metavar="TAR", help="enter these runs in the board")
    parser.add_argument("--replace", action="store_true", help="in place of an entry of the same settings")
    parser.add_argument("--author")
    parser.add_argument("--orders", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.orders:
        part(json.loads(given.orders), lambda **told: print("\n@" + json.dumps(told), flush=True))
        return
    board = BOARDS / given.board
    if given.enter:
        for path in enter(given.enter, Board.load(board), replace=given.replace, author=given.author):
            print(path)
        return
    if given.data is None:
        parser.error("--data names the archive of images that the race begins with")
    os.environ[DATA] = str(given.data.resolve())
    suite = read(board / "suite.toml", device=given.device or ("cpu" if given.board.endswith("-cpu") else "cuda"))
    for cell in suite.cells:
        chosen = given.seeds is None or cell.spec.seed in given.seeds
        if chosen and (not given.only or any(word in cell.name for word in given.only)):
            try:
                tar, figures = raced(cell, suite, given.out)
            except RuntimeError as error:
                sys.exit(str(error))
            print(f"{cell.name}: {figures['s']:.0f} s, {figures['accuracy %']:.1f} %: {tar}", flush=True)


if __name__ == "__main__":
    main()
