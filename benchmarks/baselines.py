"""All matchers under one evaluation: ``python benchmarks/baselines.py digits --out runs`` (see baselines.toml).

Every cell is an ordinary ``ddbench run`` with one thread, two at a time; what is finished is not done again, so that
the same command goes on after an interruption. ``ddbench compare --out runs`` shows the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SETTINGS = Path(__file__).with_name("baselines.toml")


def cells(task: str, data: str, only: list[str]) -> list[tuple[str, list[str]]]:
    """(name, arguments of ``ddbench run``) of every cell of a task, in the order of the file."""
    settings = tomllib.loads(SETTINGS.read_text())
    common = settings["task"][task]["flags"].format(data=data).split()
    common += ["--students", str(settings["task"][task]["students"])]
    found = []
    for name, cell in settings["cell"].items():
        for ipc in ("1", "10"):
            flags = cell.get(task, {}).get(f"ipc{ipc}", cell.get(task, {}).get("ipc", cell.get("flags")))
            if flags is None or int(ipc) not in cell.get("ipc", [1, 10]) or (only and name not in only):
                continue
            words = ["--matcher", cell.get("matcher", name), "--scheduler", cell.get("scheduler", "single")]
            options = [*cell.get("options", "").split(), *flags.split()]
            found.append((f"{name} ipc {ipc}", [*common, *words, "--ipc", ipc, *options]))
    return found


def carry_out(cell: tuple[str, list[str]], out: str, seeds: int) -> int:
    """One cell, with its log on standard error when it fails; a cell that fails stops no other."""
    name, words = cell
    command = [sys.executable, "-m", "ddbench", "run", *words, "--repeats", str(seeds), "--out", out]
    command += ["--no-random", "--no-ceiling", "--quiet", "--format", "json"]
    began = time.monotonic()
    done = subprocess.run(
        command, env=os.environ | {"DDBENCH_THREADS": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    print(f"{name}: exit {done.returncode}, {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        print(" ".join(command), done.stderr, sep="\n", file=sys.stderr, flush=True)
    return done.returncode


def main() -> None:
    """Run the cells of a task; exit 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", help="a task of baselines.toml")
    parser.add_argument("--out", required=True, help="where the run folders go")
    parser.add_argument("--data", default="cifar10-jpeg.zip", help="the archive of images, for tasks that read one")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="cells to run; all by default")
    given = parser.parse_args()
    chosen = cells(given.task, given.data, given.only)
    with ThreadPoolExecutor(given.jobs) as pool:
        codes = list(pool.map(lambda cell: carry_out(cell, given.out, given.seeds), chosen))
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
