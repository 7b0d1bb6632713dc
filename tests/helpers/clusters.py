"""Suites for executors: a matcher whose every step draws and takes its time, and the command that carries them out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import RULES, THREAD

from ddbench.base.cache import file_digest

MATCHER = '''
import time
from dataclasses import dataclass
import torch
from ddbench import Needs, SyntheticSet, hookimpl

@dataclass(frozen=True)
class Strolling:
    """Images that take a random step now and then; with experts, towards nothing."""
    name = "strolling"
    steps: int = 3
    seconds: float = 0.0
    experts: int = 0

    def needs(self, problem):
        return Needs(experts=self.experts, snapshots=(0, 1) if self.experts else ())

    def init(self, problem):
        return problem.sample()

    def step(self, problem, state, k):
        time.sleep(self.seconds)
        state.images.add_(0.1 * torch.randn(state.images.shape))
        return state, {"loss": float(state.images.square().mean())}

    def result(self, problem, state):
        return SyntheticSet(state.images, state.labels)

@hookimpl
def register_matchers(register):
    register(Strolling)
'''


def site(folder: Path) -> Path:
    """A folder with the matcher, as pip would leave it."""
    about = folder / "strolling-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "strolling.py").write_text(MATCHER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: strolling\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[ddbench]\nstrolling = strolling\n")
    return folder


def suite(path: Path, seeds: str = "[0, 1]", threads: int = 1, more: str = "", **options: Any) -> Path:
    """A suite of the matcher on the toy dataset."""
    own = ", ".join(f"{name} = {value}" for name, value in options.items())
    rules = "\n".join(f'"{n}" = {v if not isinstance(v, str) else repr(v)}' for n, v in RULES.items())
    path.write_text(
        f'students = 1\ndataset = "toy"\nipc = 1\nseeds = {seeds}\nthreads = {threads}\n{more}\n[options]\n{rules}\n'
        f'[[matrix]]\nmatcher = {{name = "strolling", options = {{{own}}}}}\n'
    )
    return path


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a machine where the matcher is installed: in ``folder / "site"``, with its cache in ``folder``."""
    found = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(part for part in found if part), "DDBENCH_HOME": str(folder / "home")}
    return {**os.environ, **THREAD, **own, **more}


def start(folder: Path, *words: Any, **more: str) -> subprocess.Popen[str]:
    """``ddbench suite run WORDS --device cpu`` at work."""
    given = ["suite", "run", *map(str, words), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ddbench", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder, **more),
        cwd=folder,
    )


def sets(out: Path) -> dict[str, str]:
    """The digest of every distilled set, by the folder of its run."""
    return {path.parent.name: file_digest(path) for path in out.glob("*/distilled.safetensors")}


def until(done: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        if process.poll() is not None:
            raise AssertionError(f"the suite ended too early: {process.communicate()}")
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.05)


def steps(out: Path) -> int:
    """The iterations that the runs of a suite have recorded."""
    return sum(len(path.read_text().splitlines()) for path in out.glob("*/metrics.jsonl"))


def living(word: str) -> list[str]:
    """Command lines of processes that hold a word, from /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in text:
            found.append(text)
    return found
