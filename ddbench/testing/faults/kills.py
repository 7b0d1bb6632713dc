"""SIGKILL at a drawn moment, and the same command again: it ends with the bits of a run that nobody disturbed."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from ddbench.testing.faults.cells import Cell, Reference, References, cells, copied, outcome
from ddbench.testing.faults.commands import Command, Moment
from ddbench.testing.faults.record import Trial

_AGAIN = 0.7  # probability that the command that goes on is killed, too
_MOST = 6  # kills of one run


@dataclass
class Kills:
    """Trials of kills in a folder; a cell runs undisturbed once, when its first trial comes."""

    folder: Path
    seed: int
    references: References
    part = "kills"

    def trial(self, number: int) -> Trial:
        """A run that is killed, up to a few times, at drawn moments, and then left alone."""
        draw = random.Random(f"{self.seed} {self.part} {number}")
        every = cells()
        place = number % len(every)
        cell = every[place]
        reference = self.references[place]
        folder = begin(reference, self.folder / "trial", draw)
        moments, wrong = self._killed(cell, reference, folder, draw)
        if not wrong:
            wrong = difference(outcome(folder), reference)
        note = f"{wrong} after {', '.join(map(str, moments))}" if wrong else ""
        return Trial(self.part, str(cell), "wrong" if wrong else "identical", len(moments), note)

    def _killed(self, cell: Cell, reference: Reference, folder: Path, draw: random.Random) -> tuple[list[Moment], str]:
        """Kill the command until it ends; the moments at which it was, and what was wrong."""
        moments: list[Moment] = []
        left, seconds = reference.operations, reference.answer.seconds
        while True:
            moment = (
                drawn(draw, left, seconds) if len(moments) < _MOST and (not moments or draw.random() < _AGAIN) else None
            )
            answer = Command(cell.words, folder).run(moment)
            if answer.code == -9 and moment is not None and not answer.hung:
                moments.append(moment)
                left = max(20, left - (moment.operation or left // 2))
                seconds = max(0.1, seconds - (moment.seconds or seconds / 2))
                continue
            return moments, answer.broken or ("" if answer.code == 0 else f"exit code {answer.code}: {answer.said}")


def drawn(draw: random.Random, operations: int, seconds: float) -> Moment:
    """A moment to kill at: half of them before an operation on files, to hit what a clock seldom hits."""
    if draw.random() < 0.5:
        return Moment(operation=draw.randint(1, operations))
    return Moment(seconds=draw.uniform(0.0, seconds))


def begin(reference: Reference, folder: Path, draw: random.Random) -> Path:
    """A folder without runs, whose cache holds a drawn part of what the reference made, so that all phases are met."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if (reference.folder / "home").exists():
        home, keep = copied(reference.folder / "home", folder / "home"), draw.choice((0.0, 0.5, 0.9))
        for path in sorted(p for p in home.rglob("*") if p.is_file()):
            if draw.random() >= keep:
                path.unlink()
    return folder


def difference(found: dict, reference: Reference) -> str:
    """What of an outcome is not the reference's; empty where all is."""
    if found.keys() != reference.outcome.keys():
        return f"{len(found)} sets instead of {len(reference.outcome)}"
    for run, expected in reference.outcome.items():
        for what, one, other in zip(("set", "metrics", "grades"), found[run], expected, strict=True):
            if one != other:
                return f"another {what} of {run}"
    return ""
