"""Expert trajectories: networks trained on real data, snapshot by snapshot, in the cache."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddbench.base.cache import lock, read_json
from ddbench.base.options import changed
from ddbench.base.progress import note, report
from ddbench.data.dataset import RealData
from ddbench.errors import DamagedError, DataError, DDBenchError, UsageError
from ddbench.problem.expert_files import (
    Absent,
    Trajectory,
    cost_of,
    epochs_in,
    path_of,
    reason,
    snapshot_in,
    trained_with,
)
from ddbench.problem.gpu_cache import Shelf, a_tenth_of_what_is_free
from ddbench.problem.pacing import check_pacing, rows_by_difficulty
from ddbench.problem.starts import Starts
from ddbench.train.divided import over_ranks
from ddbench.train.fit import TRAINER_VERSION, Recipe, Rows, Source, Student, fit, whoever_asks
from ddbench.train.fit_together import TOGETHER, fit_together, trains_together
from ddbench.train.network import Network


class Addressed(Source, Protocol):
    """Examples whose content has an address: the digest that the keys of what is trained on them hold."""

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Experts:
    """Training trajectories on real data, one from each start network, as files of snapshots.

    Snapshot e is the network after e epochs; snapshot 0 is its start. Those asked for are kept, as rows of one tensor
    in a safetensors file: reading two reads just their bytes. A damaged or lost file is made again, to the same bits.

    ``recipe.imported`` names trajectories brought in from elsewhere. They began at fresh initialisations, so they
    stand in for experts of untaught starts alone: later stages of a scheduler train their own.
    """

    starts: Starts
    real: RealData | Addressed
    recipe: Recipe
    together: bool | None = None  # whether several train by one vectorised step; by default where that pays

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
        return trains_together(self.starts.network, self.recipe, min(self.recipe.batch, len(self.real)), self.together)

    def _path(self, index: int) -> Path:
        return path_of(self.folder, index)

    @cached_property
    def _rows(self) -> dict[int, set[int]]:
        """The epochs of each expert whose snapshots are in its file."""
        return {}

    @cached_property
    def _shown(self) -> Rows | None:
        """The real images that an epoch shows; None where each shows all."""
        return rows_by_difficulty(self)

    @cached_property
    def _built(self) -> set[tuple[int, int]]:
        """The snapshots, (expert, epoch), that were there once."""
        return set()

    @cached_property
    def _shelf(self) -> Shelf | None:
        """Where snapshots stay between steps; on a CPU they are read from the file, which the system keeps."""
        device = self.starts.network.device
        if device.type != "cuda":
            return None
        folder = self.folder  # and not self: with a circle, only the collector would free the GPU's memory
        return Shelf(lambda key: snapshot_in(path_of(folder, key[0]), key), device, a_tenth_of_what_is_free(device))

    def missing(self, count: int, snapshots: Iterable[int], first: int = 0) -> list[int]:
        """Which of the first ``count`` experts, from ``first`` on, lack one of the snapshots."""
        return [i for i in range(first, count) if not set(snapshots) <= self._kept(i)]

    def build(self, count: int, snapshots: Iterable[int], first: int = 0) -> None:
        """Train what is missing; an interrupted build goes on at the last epoch that was stored.

        With ``first``, those before it are left to others: by multiples of ``TOGETHER``, who trains with whom stays.
        """
        wanted = set(snapshots)
        if self.imported:
            self._check_imported(count, max(wanted, default=0))
        else:
            self._train_missing(range(first, count), wanted)
        self._built.update((index, epoch) for index in range(first, count) for epoch in wanted)
        if self._shelf is not None:
            network = self.starts.network
            keys = ((index, epoch) for index in range(first, count) for epoch in sorted(wanted))
            self._shelf.expect(keys, network.length * network.dtype.itemsize)

    def _train_missing(self, asked: range, wanted: set[int]) -> None:
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
        check_pacing(self.recipe)
        for index in asked:
            self._heal(index, wanted)
        missing = self.missing(asked.stop, wanted, asked.start)
        at_once = TOGETHER if self._together else 1
        for position in range(0, len(missing), at_once):
            report("experts", position, len(missing))
            self._build_group(missing[position : position + at_once], wanted)
        if missing:
            report("experts", len(missing), len(missing))

    def _build_group(self, indices: list[int], wanted: set[int], damaged: int | None = None) -> None:
        """Train those that lack a snapshot; all of them if ``damaged``, one of them, is not what was written."""
        with ExitStack() as locks:
            for index in indices:  # ascending in every process, so that two of them cannot block each other
                locks.enter_context(lock(self._path(index).with_suffix(".lock")))
                self._rows.pop(index, None)
            todo = [index for index in indices if not wanted <= self._kept(index)]
            if damaged is not None:
                todo = [] if self._whole(damaged, wanted) else indices  # another process may have made it again
            books: dict[int, dict[int, Trajectory]] = {}  # by the epoch at which they stand
            for index in todo:
                kept = tuple(sorted(wanted | self._kept(index)))
                book = Trajectory(self._path(index), kept, self.starts.network.length, self.starts.network.dtype)
                books.setdefault(book.resume(self.starts.network), {})[index] = book
            for epoch, group in sorted(books.items()):
                self._train(group, epoch)

    def _check_imported(self, count: int, epochs: int) -> None:
        """Refuse what is not there, or was trained on another network: nothing can be added to it."""
        name, about = self.recipe.imported, self.folder / "identity.json"
        if not name.isalnum() or not about.exists():
            raise DataError(
                f"there are no imported experts {name!r} in {self.folder.parent}; `ddbench import --experts FILES` "
                "stores them and prints their id"
            )
        try:
            held = read_json(about)
            known = {what: int(held[what]) for what in ("experts", "epochs")}
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            raise self._lost(f"{about} is damaged") from error
        if held.get("layout") != layout(self.starts.network):
            raise DataError(
                f"the experts {name} are not of this run's network (they have {len(held.get('layout', []))} parameter "
                "tensors of other shapes); give the network options that they were imported with"
            )
        if count > known["experts"] or epochs > known["epochs"]:
            raise DataError(
                f"{count} experts of {epochs} epochs are needed, but {name} holds {known['experts']} of "
                f"{known['epochs']} epochs; lower matcher.experts, matcher.max_start or matcher.span, or import more"
            )

    def snapshot(self, index: int, epoch: int) -> Tensor:
        """The vector of expert ``index`` after ``epoch`` epochs, on the network's device."""
        try:
            return self._taken(index, epoch)
        except (DamagedError, Absent) as error:
            if isinstance(error, Absent) and (index, epoch) not in self._built:
                raise
            wanted = {epoch, *(e for i, e in self._built if i == index)}
            self._make_again(index, wanted, error if isinstance(error, DamagedError) else None)
        return self._taken(index, epoch)

    def _taken(self, index: int, epoch: int) -> Tensor:
        if self._shelf is not None:
            return self._shelf[index, epoch]
        return self._read((index, epoch)).to(self.starts.network.device)

    def _read(self, key: tuple[int, int]) -> Tensor:
        return snapshot_in(self._path(key[0]), key)

    def _heal(self, index: int, wanted: set[int]) -> None:
        """Make an expert again that does not even tell its epochs."""
        try:
            epochs_in(self._path(index))
        except DamagedError as error:
            self._make_again(index, wanted, error)

    def _make_again(self, index: int, wanted: set[int], error: DamagedError | None) -> None:
        """Train an expert anew whose file is damaged, or gone, in the middle of whatever the caller is at.

        Its bits are what they were: they depend on addresses and on those that it trained with, not on who asks.
        """
        path = self._path(index)
        found = f"{path} is gone" if error is None else reason(error)
        if self.imported:
            raise self._lost(found) from error
        note(f"{found}; it is made again")
        for held in ("folder", "_shelf"):  # with the folder its identity.json may be gone, too
            self.__dict__.pop(held, None)
        with whoever_asks():
            self._build_group(trained_with(path, index) if self._together else [index], wanted, damaged=index)

    def _lost(self, found: str) -> DamagedError:
        return DamagedError(
            f"{found}, and experts that were imported cannot be made again; delete {self.folder} and import them anew "
            "(`ddbench import --experts FILES`)"
        )

    def _whole(self, index: int, epochs: set[int]) -> bool:
        """Whether an expert has these snapshots, as they were written."""
        try:
            return all(len(self._read((index, epoch))) > 0 for epoch in sorted(epochs))
        except (DamagedError, Absent):
            return False

    def segment(self, index: int, epoch: int, span: int) -> tuple[Tensor, Tensor]:
        """The parameters of expert ``index`` after ``epoch`` and after ``epoch + span`` epochs."""
        p = self.starts.network.parameters
        return self.snapshot(index, epoch)[:p], self.snapshot(index, epoch + span)[:p]

    def seconds(self, count: int) -> float:
        """What training the first ``count`` experts cost when they were made, teaching included; NaN if not known."""
        if self.imported:
            return math.nan
        return sum(cost_of(self._path(i)) for i in range(count))

    def _kept(self, index: int) -> set[int]:
        """The epochs in the file: none where there is no file, or only a damaged one."""
        if index not in self._rows:
            try:
                self._rows[index] = epochs_in(self._path(index))
            except DamagedError:
                return set()
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
            book.finish(spent(), list(books))
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
                rows=self._shown,
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
                rows=self._shown,
                divide=over_ranks,
                what=f"expert {index}",
            )


def layout(network: Network) -> list[list[Any]]:
    """Name and shape of each parameter tensor, in the order of a vector."""
    vector, named = torch.empty(network.length, device="meta"), []
    for name, part in network.layers(vector).items():
        if part.storage_offset() < network.parameters:  # buffers come last
            named.append([name, list(part.shape)])
    return named
