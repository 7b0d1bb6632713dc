"""Entries graded anew: fresh students of their sets, under the rules of the board, on a machine of whoever verifies.

The set is all that is taken from the author: how students learn, on which network and data, is the board's.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddbench.base.cache import canonical, home, read_json
from ddbench.base.machine import machine
from ddbench.base.options import make, options
from ddbench.base.progress import Say
from ddbench.boards import sets
from ddbench.boards.board import Board, plugin
from ddbench.boards.budget import check_set
from ddbench.boards.entry import Entry, EntryRun, shown, write
from ddbench.boards.verification import Regraded, Verdict, Verification, compare
from ddbench.data.dataset import Dataset
from ddbench.errors import DataError, UsageError
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation, evaluate
from ddbench.grade.protocol import Protocol
from ddbench.plugins import loaded, registry
from ddbench.run.calls import phases_of
from ddbench.run.record import MachineRecord
from ddbench.run.spec import current, usual_threads

FEWEST = 2  # students: one has no deviation
ROUNDED = 1e-3  # part of the largest number of a preprocessing by which machines may differ


@dataclass(frozen=True)
class Verifier:
    """Who grades entries anew, with which seed (of the students), on which device, with sets and data from where."""

    by: str
    device: str
    seed: int | None = None
    folder: Path | None = None
    places: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.by.strip()) <= 200:
            raise UsageError("--by says who verifies, in at most 200 letters")
        if self.seed is not None and not 1 <= self.seed < 2**31:
            raise UsageError(
                f"students are fresh with a seed from 1 on: it is added to that of the run; got {self.seed}"
            )

    def entry(self, board: Board, entry: Entry, say: Say) -> Entry:
        """Grade all sets of an entry: the entry with what came out. Raises DataError for a set that is lost."""
        runs = [run for run in entry.runs if run.result.status == "ok"]
        if not runs:
            raise UsageError(f"no seed of {entry.name} finished, so there is nothing to grade")
        seed = self.seed or 1 + secrets.randbelow(2**31 - 1)
        say(f"{entry.name}: {len(runs)} sets, students of seed {seed}; with --seed {seed} the same command goes on")
        opened = {run.seed: sets.opened(entry, run, self.folder) for run in runs}  # all of them, before any is graded
        dataset = self._data(runs[0])
        for run in runs:
            _check(entry, run, opened[run.seed], dataset)
        graded = [
            Regraded(
                seed=run.seed,
                sha256=run.stored.sha256 if run.stored else "",
                accuracies=self._graded(board, run, opened[run.seed], dataset, seed + run.seed),
            )
            for run in runs
        ]
        made = Verification(
            by=self.by,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=seed,
            machine=MachineRecord.model_validate(machine(self.device)),
            runs=graded,
        )
        return entry.model_copy(update={"verification": made})

    def _data(self, run: EntryRun) -> Dataset:
        """The data of the board, which the run of an entry was checked to be of."""
        described = current(run).spec.dataset
        options = described.content | dict(self.places or {})
        dataset = loaded(make(registry().get("dataset", described.name).cls, options, "dataset"))
        due = run.result.dataset.digest if run.result.dataset else None
        if dataset.digest != due:
            raise DataError(
                f"the dataset {described.name!r} here is another than the board's (digest {dataset.digest[:12]} "
                f"instead of {(due or '')[:12]}); name that with -o dataset.root=PLACE"
            )
        return dataset

    def _graded(self, board: Board, run: EntryRun, distilled: Distilled, dataset: Dataset, seed: int) -> list[float]:
        """The accuracies of as many students as the board takes; each is kept, so that a repeated command goes on."""
        rules = board.rules if board.race is None else make(Protocol, run.spec.protocol.json_value(), "protocol")
        made = distilled.curriculum
        teaching = rules.evaluation(sum(map(len, made.sets)), len(made.phases)).on(dataset.augment)
        distilled = replace(distilled, network=plugin("network", board.network), teaching=teaching)
        plan = Evaluation(distilled, dataset, rules, max(board.students, FEWEST), self.device, metrics={})
        folder = home() / "verifications" / (run.stored.sha256[:16] if run.stored else "")
        record = evaluate(plan, folder, threads=usual_threads(), seed=seed)
        return [student["accuracy"] for student in record["students"]]


def _check(entry: Entry, run: EntryRun, distilled: Distilled, dataset: Dataset) -> None:
    """Refuse a set that brings more than images and labels of its budget: another step before networks, or phases."""
    where = f"the set of seed {run.seed} of {entry.name}"
    check_set(run, distilled)
    ours, theirs = (part.preprocessing.tensors() for part in (dataset.train, distilled))
    close = ours.keys() == theirs.keys() and all(_close(ours[name], theirs[name]) for name in ours)
    if not close or distilled.preprocessing.kind != dataset.train.preprocessing.kind:
        raise DataError(f"{where} prepares images otherwise than the board's data are: that is no part of a set")
    decoders = {canonical(options(made.decoder)) for made in distilled.curriculum.sets}
    if decoders != {canonical(run.spec.decoder)}:
        raise DataError(f"{where} is decoded otherwise than its spec says")
    scheduler = run.spec.scheduler
    if scheduler.name in registry().names("scheduler"):
        due = phases_of(plugin("scheduler", scheduler), len(distilled.curriculum.sets))
        if due != distilled.curriculum.phases:
            raise DataError(f"{where} is learned in other phases than those of scheduler {scheduler.name!r}")


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal but for what another machine rounds."""
    return one.shape == other.shape and bool((one - other).abs().max() <= ROUNDED * one.abs().max())


def judged(board: Board, entry: Entry) -> Verdict | None:
    """What became of an entry's numbers; nothing where nobody verified them. Raises DataError for other sets' ones."""
    if entry.verification is None:
        return None
    found = {regraded.seed: regraded for regraded in entry.verification.runs}
    runs = [run for run in entry.runs if run.result.status == "ok"]
    if [(run.seed, run.stored and run.stored.sha256) for run in runs] != [(s, r.sha256) for s, r in found.items()]:
        raise DataError(
            f"{entry.file} was verified with other sets than it records; `ddbench leaderboard verify {board.name} "
            f"{entry.name}` grades them"
        )
    return compare([board.graded(run)[0].scores for run in runs], [found[run.seed].accuracies for run in runs])


def record(entry: Entry) -> None:
    """Write the verification of an entry into its file."""
    assert entry.verification is not None
    write(entry.file, read_json(entry.file) | {"verification": entry.verification.json_value()})


def told(entry: Entry, verdict: Verdict) -> str:
    """A verdict with who found it, when and with what, for people."""
    made = entry.verification
    assert made is not None
    versions = {"ddbench": made.machine.ddbench, "torch": made.machine.torch}
    words = [made.machine.device, *(f"{name} {version}" for name, version in versions.items() if version)]
    with_ = ", ".join(word for word in words if word)
    return shown(f"{verdict.state} by {made.by} on {made.date[:10]} ({with_}; seed {made.seed}): {verdict}", 400)


def due(board: Board, name: str | None, folder: Path | None) -> list[Entry]:
    """The entry of a name, or all whose sets are given: by an address, or in the folder. Raises UsageError for none."""
    if name is not None:
        return [board.entry(name)]
    every = board.entries()
    given = [entry for entry in every if entry.sets or _there(entry, folder or sets.HERE)]
    if not given:
        raise UsageError(
            f"no entry of board {board.name!r} says where its sets are, and none of their files is in "
            f"{folder or sets.HERE}; name their folder with --sets"
        )
    return given


def _there(entry: Entry, folder: Path) -> bool:
    return any(run.stored and (folder / sets.file_of(run.stored)).exists() for run in entry.runs)
