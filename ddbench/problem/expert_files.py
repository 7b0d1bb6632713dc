"""The files of experts: what is read of them, how one is written while it trains, and where it goes on.

An expert is a file of snapshots with a note of what it cost; while it trains, ``.rows`` holds the snapshots so far and
``.partial`` the student with its optimiser. All of it is sealed (:mod:`ddbench.base.tensors`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import read_json, write_json
from ddbench.base.progress import note
from ddbench.base.tensors import RowFile, load_tensors, read_labelled_row, save_tensors
from ddbench.errors import DamagedError, DataError, DDBenchError
from ddbench.problem.starts import student_in, student_tensors
from ddbench.train.fit import Student
from ddbench.train.network import Network


class Trajectory:
    """One expert while it trains: snapshots go to the disk as they come, and it knows where to go on."""

    def __init__(self, path: Path, epochs: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
        self.file = RowFile(path, epochs, width, dtype)
        self.partial = path.with_suffix(".partial")
        self.epochs = epochs
        self.seconds = 0.0
        self.epoch = 0
        self.student: Student | None = None

    def note(self, epoch: int, student: Student) -> None:
        """The student after an epoch; a snapshot that is wanted is written."""
        if self.student is None:
            self.file.create()
        self.epoch, self.student = epoch, student
        if epoch in self.epochs:
            self.file.write(epoch, student.vector)

    def save(self, seconds: float) -> None:
        """Store where training stands; ``seconds`` is what this process has spent on it so far."""
        if self.student is None:
            return
        spent = torch.tensor(self.seconds + seconds, dtype=torch.float64)
        at = {"epoch": torch.tensor(self.epoch), "wanted": torch.tensor(self.epochs), "seconds": spent}
        save_tensors(self.partial, {**at, **student_tensors(self.student)}, sealed=True)

    def resume(self, network: Network) -> int:
        """The epoch at which training stands: 0 for one that has not begun, kept other snapshots, or was damaged."""
        if not self.partial.exists() or not self.file.begun:
            return 0
        try:
            at, _ = load_tensors(self.partial, only=("epoch", "wanted", "seconds"))
            student = student_in(self.partial, network)
        except DamagedError as error:
            note(f"{reason(error)}; this expert is trained from its beginning")
            return 0
        if tuple(at["wanted"].tolist()) != self.epochs:
            return 0
        self.student, self.epoch, self.seconds = student, int(at["epoch"]), float(at["seconds"])
        return self.epoch

    def finish(self, seconds: float, together: Sequence[int] = ()) -> None:
        """The trajectory under its own name, and before it what it cost: a kill between the two loses neither."""
        cost = {"seconds": self.seconds + seconds} | ({"together": list(together)} if len(together) > 1 else {})
        write_json(self.file.target.with_suffix(".json"), cost, sealed=True)
        self.file.finish()
        self.partial.unlink(missing_ok=True)


class Absent(DDBenchError):
    """There is no such snapshot."""


def path_of(folder: Path, index: int) -> Path:
    """The file of an expert."""
    return folder / f"{index:06d}.safetensors"


def epochs_in(path: Path) -> set[int]:
    """The epochs whose snapshots a file holds; none where there is no file. Raises DamagedError."""
    return set(load_tensors(path, only=("epochs",))[0]["epochs"].tolist()) if path.exists() else set()


def snapshot_in(path: Path, key: tuple[int, int]) -> Tensor:
    """Expert ``key[0]`` after ``key[1]`` epochs. Its row is read with it: others may add snapshots meanwhile.

    Raises Absent, or DamagedError.
    """
    index, epoch = key
    found, kept = read_labelled_row(path, "epochs", epoch, "snapshots")
    if found is None:
        raise Absent(f"expert {index} has no snapshot {epoch}; a matcher must name it in needs(), which named {kept}")
    return found


def cost_of(path: Path) -> float:
    """The seconds that training an expert took, taught starts included; NaN where that is not known."""
    try:
        return float(_about(path)["seconds"])
    except (KeyError, TypeError, ValueError):
        return math.nan


def trained_with(path: Path, index: int) -> list[int]:
    """The experts that trained by one vectorised step with this one, itself among them: together they have its bits."""
    found = _about(path).get("together")
    return found if isinstance(found, list) and index in found else [index]


def _about(path: Path) -> dict[str, Any]:
    """The note beside an expert; empty where it is not there, or damaged."""
    try:
        found = read_json(path.with_suffix(".json"))
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def reason(damage: DamagedError) -> str:
    """What was found, without the advice: nobody has to follow it."""
    return str(damage).partition(";")[0]
