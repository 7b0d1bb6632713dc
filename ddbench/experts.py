"""Expert trajectories: networks trained on real data, snapshot by snapshot, in the cache."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.cache import lock, read_json, write_json
from ddbench.data import RealData
from ddbench.errors import DataError, DDBenchError, UsageError
from ddbench.networks import Network
from ddbench.progress import report
from ddbench.records import changed
from ddbench.starts import Starts
from ddbench.tensors import load_tensors, read_rows, save_tensors
from ddbench.training import TRAINER_VERSION, Recipe, Student, fit


@dataclass(frozen=True, eq=False)
class Experts:
    """Training trajectories on real data, one from each start network, as files of snapshots.

    Snapshot e is the network after e epochs; snapshot 0 is its start. Only the snapshots asked for are
    kept, as rows of one tensor in a safetensors file, so reading two of them reads just their bytes.

    ``recipe.imported`` names trajectories brought in from elsewhere. They began at fresh initialisations, so they
    stand in for experts of untaught starts alone: later stages of a scheduler train their own.
    """

    starts: Starts
    real: RealData
    recipe: Recipe

    @property
    def imported(self) -> bool:
        return bool(self.recipe.imported) and not self.starts.taught.phases

    @cached_property
    def folder(self) -> Path:
        if self.imported:
            return self.starts.cache.root / "experts" / self.recipe.imported
        identity = {
            "starts": self.starts.identity,
            "recipe": changed(replace(self.recipe, imported="")),
            "data": self.real.digest,
            "threads": self.starts.threads,
            "trainer": TRAINER_VERSION,
        }
        return self.starts.cache.folder("experts", identity)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    @cached_property
    def _rows(self) -> dict[int, dict[int, int]]:
        return {}

    def missing(self, count: int, snapshots: Iterable[int]) -> list[int]:
        """Which of the first ``count`` experts lack one of the snapshots."""
        return [i for i in range(count) if not set(snapshots) <= self._kept(i).keys()]

    def build(self, count: int, snapshots: Iterable[int]) -> None:
        """Train what is missing; an interrupted build goes on at the last epoch that was stored."""
        wanted = set(snapshots)
        if self.imported:
            self._check_imported(count, max(wanted, default=0))
            return
        if self.recipe.steps is not None:
            raise UsageError("an expert recipe counts epochs, whose ends are the snapshots; leave experts.steps alone")
        if self.recipe.epochs is None and self.recipe.schedule != "constant":
            raise UsageError(
                f"experts with a {self.recipe.schedule} schedule need to know their epochs; set experts.epochs"
            )
        if self.recipe.epochs is not None and max(wanted, default=0) > self.recipe.epochs:
            raise UsageError(
                f"snapshot {max(wanted)} asked for, but experts train for {self.recipe.epochs} epochs; set "
                f"-o experts.epochs={max(wanted)} or more"
            )
        missing = self.missing(count, wanted)
        for position, index in enumerate(missing):
            report("experts", position, len(missing))
            with lock(self._path(index).with_suffix(".lock")):
                self._rows.pop(index, None)
                if not wanted <= self._kept(index).keys():
                    self._train(index, wanted | self._kept(index).keys())
        if missing:
            report("experts", len(missing), len(missing))

    def _check_imported(self, count: int, epochs: int) -> None:
        """Refuse what is not there, or was trained on another network: nothing can be added to it."""
        name, note = self.recipe.imported, self.folder / "identity.json"
        if not name.isalnum() or not note.exists():
            raise DataError(
                f"there are no imported experts {name!r} in {self.folder.parent}; `ddbench import --experts FILES` "
                "stores them and prints their id"
            )
        held = read_json(note)
        if held.get("layout") != layout(self.starts.network):
            raise DataError(
                f"the experts {name} are not of this run's network (they have {len(held.get('layout', []))} parameter "
                "tensors of other shapes); give the network options that they were imported with"
            )
        if count > held["experts"] or epochs > held["epochs"]:
            raise DataError(
                f"{count} experts of {epochs} epochs are needed, but {name} holds {held['experts']} of "
                f"{held['epochs']} epochs; lower matcher.experts, matcher.max_start or matcher.span, or import more"
            )

    def snapshot(self, index: int, epoch: int) -> Tensor:
        """The vector of expert ``index`` after ``epoch`` epochs, on the network's device."""
        rows = self._kept(index)
        if epoch not in rows:
            raise DDBenchError(
                f"expert {index} has no snapshot {epoch}; a matcher must name it in needs(), which named {sorted(rows)}"
            )
        return read_rows(self._path(index), "snapshots", rows[epoch]).to(self.starts.network.device)

    def segment(self, index: int, epoch: int, span: int) -> tuple[Tensor, Tensor]:
        """The parameters of expert ``index`` after ``epoch`` and after ``epoch + span`` epochs."""
        p = self.starts.network.parameters
        return self.snapshot(index, epoch)[:p], self.snapshot(index, epoch + span)[:p]

    def seconds(self, count: int) -> float:
        """What training the first ``count`` experts cost when they were made, teaching included."""
        notes = [self._path(i).with_suffix(".json") for i in range(count)]
        return sum(read_json(note)["seconds"] for note in notes if note.exists())

    def _kept(self, index: int) -> dict[int, int]:
        """Epoch -> row of the file, empty when there is none."""
        if index not in self._rows:
            path = self._path(index)
            epochs = load_tensors(path, only=("epochs",))[0]["epochs"].tolist() if path.exists() else []
            if not epochs:
                return {}
            self._rows[index] = {epoch: row for row, epoch in enumerate(epochs)}
        return self._rows[index]

    def _train(self, index: int, wanted: set[int]) -> None:
        network, partial = self.starts.network, self._path(index).with_suffix(".partial")
        book = _Trajectory(partial, sorted(wanted))
        begun = time.monotonic()
        student, epoch = book.resume(network.device)
        if student is None:
            student, epoch = Student(self.starts[index]), 0
            book.note(0, student)
        book_saved = time.monotonic()

        def on_epoch(done: int, after: Student) -> None:
            nonlocal book_saved
            book.note(done, after)
            if time.monotonic() - book_saved > 5:
                book.save(time.monotonic() - begun)
                book_saved = time.monotonic()

        seed = self.starts.seed / "expert" / index
        last = max(wanted)
        try:
            if epoch < last:
                fit(
                    network, student, self.real, replace(self.recipe, epochs=self.recipe.epochs or last), seed,
                    first_epoch=epoch, stop_epoch=last, on_epoch=on_epoch, what=f"expert {index}",
                )  # fmt: skip
        except DDBenchError:
            book.save(time.monotonic() - begun)
            raise
        save_tensors(self._path(index), book.tensors())
        write_json(self._path(index).with_suffix(".json"), {"seconds": book.seconds + time.monotonic() - begun})
        self._rows.pop(index, None)
        partial.unlink(missing_ok=True)


def layout(network: Network) -> list[list[Any]]:
    """Name and shape of each parameter tensor, in the order of a vector."""
    vector, named = torch.empty(network.length, device="meta"), []
    for name, part in network.layers(vector).items():
        if part.storage_offset() < network.parameters:  # buffers come last
            named.append([name, list(part.shape)])
    return named


class _Trajectory:
    """The snapshots of one expert while it trains, with what is needed to go on after an interruption."""

    def __init__(self, path: Path, wanted: list[int]) -> None:
        self.path = path
        self.wanted = wanted
        self.kept: dict[int, Tensor] = {}
        self.epoch = 0
        self.seconds = 0.0
        self.student: Student | None = None

    def note(self, epoch: int, student: Student) -> None:
        self.epoch, self.student = epoch, student
        if epoch in self.wanted:
            self.kept[epoch] = student.vector.detach().clone()  # clone: on the CPU a detached view would alias

    def tensors(self) -> dict[str, Tensor]:
        epochs = sorted(self.kept)
        return {"epochs": torch.tensor(epochs), "snapshots": torch.stack([self.kept[e] for e in epochs])}

    def save(self, seconds: float) -> None:
        """Store where training stands; ``seconds`` is what this process has spent on it so far."""
        if self.student is None or not self.kept:
            return
        spent = torch.tensor(self.seconds + seconds, dtype=torch.float64)
        state = {f"state{i}": s for i, s in enumerate(self.student.state)}
        at = {"epoch": torch.tensor(self.epoch), "wanted": torch.tensor(self.wanted), "vector": self.student.vector}
        save_tensors(self.path, {**self.tensors(), **at, **state, "seconds": spent})

    def resume(self, device: torch.device) -> tuple[Student | None, int]:
        if not self.path.exists():
            return None, 0
        tensors, _ = load_tensors(self.path, device=device)
        if tensors["wanted"].tolist() != self.wanted:
            return None, 0
        self.kept = dict(zip(tensors["epochs"].tolist(), tensors["snapshots"], strict=True))
        state = tuple(tensors[name] for name in sorted(tensors) if name.startswith("state"))
        self.student, self.epoch = Student(tensors["vector"], state), int(tensors["epoch"])
        self.seconds = float(tensors["seconds"])
        return self.student, self.epoch
