"""Expert trajectories: networks trained on real data, snapshot by snapshot, in the cache."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import lock, read_json, write_json
from ddbench.base.options import changed
from ddbench.base.progress import report
from ddbench.base.tensors import RowFile, load_tensors, read_labelled_row, save_tensors
from ddbench.data.dataset import RealData
from ddbench.errors import DataError, DDBenchError, UsageError
from ddbench.problem.gpu_cache import Shelf, a_tenth_of_what_is_free
from ddbench.problem.starts import Starts
from ddbench.train.fit import TRAINER_VERSION, Recipe, Student, fit
from ddbench.train.fit_together import TOGETHER, fit_together, trains_together
from ddbench.train.network import Network


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
    together: bool | None = None  # whether several train by one vectorised step; by default on CUDA

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
        return self.starts.cache.folder("experts", identity | ({"together": True} if self._together else {}))

    @cached_property
    def _together(self) -> bool:
        return trains_together(self.starts.network, self.recipe, self.together)

    def _path(self, index: int) -> Path:
        return _path(self.folder, index)

    @cached_property
    def _rows(self) -> dict[int, dict[int, int]]:
        return {}

    @cached_property
    def _shelf(self) -> Shelf | None:
        """Where snapshots stay between steps; on a CPU they are read from the file, which the system keeps."""
        device = self.starts.network.device
        if device.type != "cuda":
            return None
        folder = self.folder  # and not self: with a circle, only the collector would free the GPU's memory
        return Shelf(lambda key: _snapshot(_path(folder, key[0]), key), device, a_tenth_of_what_is_free(device))

    def missing(self, count: int, snapshots: Iterable[int]) -> list[int]:
        """Which of the first ``count`` experts lack one of the snapshots."""
        return [i for i in range(count) if not set(snapshots) <= self._kept(i).keys()]

    def build(self, count: int, snapshots: Iterable[int]) -> None:
        """Train what is missing; an interrupted build goes on at the last epoch that was stored."""
        wanted = set(snapshots)
        if self.imported:
            self._check_imported(count, max(wanted, default=0))
        else:
            self._train_missing(count, wanted)
        if self._shelf is not None:
            network = self.starts.network
            keys = ((index, epoch) for index in range(count) for epoch in sorted(wanted))
            self._shelf.expect(keys, network.length * network.dtype.itemsize)

    def _train_missing(self, count: int, wanted: set[int]) -> None:
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
        at_once = TOGETHER if self._together else 1
        for position in range(0, len(missing), at_once):
            report("experts", position, len(missing))
            self._build_group(missing[position : position + at_once], wanted)
        if missing:
            report("experts", len(missing), len(missing))

    def _build_group(self, indices: list[int], wanted: set[int]) -> None:
        with ExitStack() as locks:
            for index in indices:  # ascending in every process, so that two of them cannot block each other
                locks.enter_context(lock(self._path(index).with_suffix(".lock")))
                self._rows.pop(index, None)
            todo = [index for index in indices if not wanted <= self._kept(index).keys()]
            books: dict[int, dict[int, Trajectory]] = {}  # by the epoch at which they stand
            for index in todo:
                kept = tuple(sorted(wanted | self._kept(index).keys()))
                book = Trajectory(self._path(index), kept, self.starts.network.length, self.starts.network.dtype)
                books.setdefault(book.resume(self.starts.network.device), {})[index] = book
            for epoch, group in sorted(books.items()):
                self._train(group, epoch)

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
        if self._shelf is not None:
            return self._shelf[index, epoch]
        return self._read((index, epoch)).to(self.starts.network.device)

    def _read(self, key: tuple[int, int]) -> Tensor:
        return _snapshot(self._path(key[0]), key)

    def segment(self, index: int, epoch: int, span: int) -> tuple[Tensor, Tensor]:
        """The parameters of expert ``index`` after ``epoch`` and after ``epoch + span`` epochs."""
        p = self.starts.network.parameters
        return self.snapshot(index, epoch)[:p], self.snapshot(index, epoch + span)[:p]

    def seconds(self, count: int) -> float:
        """What training the first ``count`` experts cost when they were made, teaching included; NaN if not known."""
        if self.imported:
            return math.nan
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

    def _train(self, books: dict[int, Trajectory], epoch: int) -> None:
        """Train the experts that stand at ``epoch``, together if there are several, and store them."""
        begun = time.monotonic()
        for index, book in books.items():
            if book.student is None:
                book.note(0, Student(self.starts[index]))
        last, saved = max(e for book in books.values() for e in book.epochs), time.monotonic()

        def spent() -> float:
            return (time.monotonic() - begun) / len(books)

        def on_epoch(done: int, after: list[Student]) -> None:
            nonlocal saved
            for book, student in zip(books.values(), after, strict=True):
                book.note(done, student)
            if time.monotonic() - saved > 5:
                for book in books.values():
                    book.save(spent())
                saved = time.monotonic()

        recipe = replace(self.recipe, epochs=self.recipe.epochs or last)
        try:
            if epoch < last:
                self._fit(books, recipe, epoch, last, on_epoch)
        except DDBenchError:
            for book in books.values():
                book.save(spent())
            raise
        for index, book in books.items():
            book.finish(spent())
            self._rows.pop(index, None)
        self.__dict__.pop("_shelf", None)  # trained again for more snapshots, they may differ in their last bits

    def _fit(
        self,
        books: dict[int, Trajectory],
        recipe: Recipe,
        first: int,
        last: int,
        on_epoch: Callable[[int, list[Student]], None],
    ) -> None:
        seeds = [self.starts.seed / "expert" / index for index in books]
        students = [book.student for book in books.values() if book.student is not None]
        if self._together:
            fit_together(
                self.starts.network,
                students,
                self.real,
                recipe,
                seeds,
                lrs=[None] * len(seeds),
                first_epoch=first,
                stop_epoch=last,
                on_epoch=on_epoch,
                what=f"{len(books)} experts",
            )
            return
        for index, student, seed in zip(books, students, seeds, strict=True):  # one, unless several stand apart
            fit(
                self.starts.network,
                student,
                self.real,
                recipe,
                seed,
                first_epoch=first,
                stop_epoch=last,
                on_epoch=lambda done, after: on_epoch(done, [after]),
                what=f"expert {index}",
            )


def layout(network: Network) -> list[list[Any]]:
    """Name and shape of each parameter tensor, in the order of a vector."""
    vector, named = torch.empty(network.length, device="meta"), []
    for name, part in network.layers(vector).items():
        if part.storage_offset() < network.parameters:  # buffers come last
            named.append([name, list(part.shape)])
    return named


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
        state = {f"state{i}": s for i, s in enumerate(self.student.state)}
        at = {"epoch": torch.tensor(self.epoch), "wanted": torch.tensor(self.epochs), "vector": self.student.vector}
        save_tensors(self.partial, {**at, **state, "seconds": spent})

    def resume(self, device: torch.device) -> int:
        """The epoch at which training stands: 0 for one that has not begun, or kept other snapshots."""
        if not self.partial.exists() or not self.file.begun:
            return 0
        tensors, _ = load_tensors(self.partial, device=device)
        if tuple(tensors["wanted"].tolist()) != self.epochs:
            return 0
        state = tuple(tensors[name] for name in sorted(tensors) if name.startswith("state"))
        self.student, self.epoch = Student(tensors["vector"], state), int(tensors["epoch"])
        self.seconds = float(tensors["seconds"])
        return self.epoch

    def finish(self, seconds: float) -> None:
        """The trajectory under its own name, and what it cost."""
        self.file.finish()
        write_json(self.file.target.with_suffix(".json"), {"seconds": self.seconds + seconds})
        self.partial.unlink(missing_ok=True)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.safetensors"


def _snapshot(path: Path, key: tuple[int, int]) -> Tensor:
    """Expert ``key[0]`` after ``key[1]`` epochs. Its row is read with it: others may add snapshots meanwhile."""
    index, epoch = key
    found, kept = read_labelled_row(path, "epochs", epoch, "snapshots")
    if found is None:
        raise DDBenchError(
            f"expert {index} has no snapshot {epoch}; a matcher must name it in needs(), which named {kept}"
        )
    return found
