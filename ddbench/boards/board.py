"""Boards: the fixed rules of a leaderboard, ``board.toml``, and what breaks them.

The same rules are checked when runs are submitted and whenever tables are built from what was submitted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from ddbench.base.cache import canonical
from ddbench.base.opening import parse_toml, read_text
from ddbench.base.options import changed, label, make, options
from ddbench.base.schema import RECORD_BYTES
from ddbench.boards.budget import check_recorded, classes_of, usual
from ddbench.boards.command import command_of, flags_text
from ddbench.boards.entry import NAME, Entry, EntryRun, shown
from ddbench.boards.race import Race, check_clock
from ddbench.boards.rules import Digested, Rule, Rules
from ddbench.errors import DataError, UsageError, did_you_mean
from ddbench.grade.protocol import Protocol, altered, named
from ddbench.plugins import registry
from ddbench.results.differences import SEEDS_FOR_BEST
from ddbench.run.folder import damaged
from ddbench.run.record import PLACES, Described, EvaluationRecord
from ddbench.run.row import Row
from ddbench.run.spec import current

_COSTS = ("distil_seconds", "selection_seconds", "expert_seconds", "peak_bytes", "image_bytes", "label_bytes", "steps")


@dataclass(frozen=True)
class Board:
    """The rules of one leaderboard.

    ``mark_seeds`` is how many finished seeds every line needs before a first place is marked; ``fewer_seeds`` maps an
    ipc, as text, to its seeds where these are not ``seeds``.
    """

    folder: Path
    title: str
    dataset: Digested
    network: Rule
    protocol: Digested
    ipc: tuple[int, ...]
    students: int
    seeds: tuple[int, ...]
    mark_seeds: int = SEEDS_FOR_BEST
    about: str = ""
    race: Race | None = None
    fewer_seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Board:
        """The board in a folder. Raises UsageError where there is none, DataError for rules that are no rules."""
        path = folder / "board.toml"
        if not path.exists():
            raise UsageError(f"there is no board in {folder}: it has no board.toml{_boards(folder)}")
        return cls.parse(read_text(path, RECORD_BYTES), folder)

    @classmethod
    def parse(cls, text: str, folder: Path) -> Board:
        """The board that a ``board.toml`` with this text founds in a folder."""
        path = folder / "board.toml"
        try:
            held = parse_toml(text)
        except ValueError as error:
            raise DataError(f"{path} is not readable TOML: {error}") from error
        if not NAME.fullmatch(folder.name) or folder.name == "index":
            raise DataError(
                f"a board's folder is named with a-z, 0-9 and ._- (at most 64), and not index: {shown(folder.name)!r}"
            )
        if unknown := sorted(set(held) - set(Rules.model_fields)):
            hint = did_you_mean(unknown[0], Rules.model_fields)
            raise DataError(f"{path} has a rule {shown(unknown[0])!r} that is unknown{hint}")
        rules = Rules.checked(held, f"{path} has rules that are none ({{}}); the boards beside it are examples")
        numbers: dict[str, Any] = {"ipc": tuple(rules.ipc), "seeds": tuple(rules.seeds)}
        board = cls(folder, **{name: getattr(rules, name) for name in Rules.model_fields} | numbers)
        try:
            _ = board.rules, board.network_label
        except UsageError as error:
            raise DataError(f"{path} has a [network] that is none: {error}") from error
        return board

    def runs(self) -> list[EntryRun | Row]:
        """What ``ddbench compare`` reads of the entries, as if their runs lay here.

        An entry that is damaged or breaks the rules stands in no other's way: it is a row with the reason.
        """
        found: dict[Path, Entry | DataError] = {}
        for path in self._files():
            try:
                found[path] = self._entry(path)
            except DataError as error:
                found[path] = error
        found |= self._unlike([entry for entry in found.values() if isinstance(entry, Entry)])
        rows: list[EntryRun | Row] = []
        for path, held in found.items():
            rows += [damaged(path, held)] if isinstance(held, DataError) else self._runs_of(held)
        return rows

    def _runs_of(self, entry: Entry) -> list[EntryRun]:
        return [self.counted(entry, run) for run in entry.runs]

    def entry(self, name: str) -> Entry:
        """One entry by its name, checked as all are."""
        path = self.folder / "entries" / f"{name}.json"
        if path not in self._files():
            there = [file.stem for file in self._files()]
            few = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
            hint = did_you_mean(name, there)
            raise UsageError(f"board {self.name!r} has no entry {name!r:.80}{hint} (it has {few or 'none'})")
        return self._entry(path)

    def entries(self) -> list[Entry]:
        """All entries by name, each checked against the rules again: a file may have been edited since."""
        found = [self._entry(path) for path in self._files()]
        for error in self._unlike(found).values():
            raise error
        return found

    def _files(self) -> list[Path]:
        return sorted((self.folder / "entries").glob("*.json"))

    def _entry(self, path: Path) -> Entry:
        entry = Entry.read(path)
        try:
            self.check(entry.runs)
            self._check_classes(entry)
        except UsageError as error:
            raise DataError(f"{path} breaks the rules of the board: {error}") from error
        return entry

    def _check_classes(self, entry: Entry) -> None:
        """Refuse an entry whose picture is of another number of classes than its images are."""
        for run in entry.runs if entry.picture else ():
            due = run.spec.ipc * (entry.picture.of if entry.picture else 0)
            if run.result.status == "ok" and run.result.images != due:
                told = f"{due:,} images, which is {run.spec.ipc} for each of its classes"
                raise UsageError(f"{run.run} should have {told}, and has {run.result.images}; run it again")

    def _unlike(self, found: Sequence[Entry]) -> dict[Path, DataError]:
        """The entries that are of more or fewer classes than the others, by file; a board may not say how many."""
        done = [(entry, run) for entry in found for run in entry.runs if run.result.status == "ok"]
        most = usual([classes_of(run) for _, run in done]) if done else 0
        apart: dict[Path, DataError] = {}
        for entry, run in done:
            try:
                check_recorded(run, most, None)
            except UsageError as error:
                apart.setdefault(entry.file, DataError(f"{entry.file} breaks the rules of the board: {error}"))
        return apart

    def command(self, entry: Entry) -> str:
        """The commands that make an entry again; of places of data those that the board itself names."""
        graded = {e.network for run in entry.runs for e in self.graded(run)} - {self.network_label}
        places = {name: value for name, value in self.dataset.options.items() if name in PLACES}
        specs = [
            run.spec.model_copy(
                update={"dataset": Described(name=self.dataset.name, options=run.spec.dataset.content | places)}
            )
            for run in entry.runs
        ]
        return command_of(specs, self.students, sorted(graded))

    def counted(self, entry: Entry, run: EntryRun) -> EntryRun:
        """A run of an entry by a name that is its own on the board, with the evaluations that count."""
        own = {"run": f"{entry.name}.seed{run.seed}", "evaluations": self.graded(run)}
        return current(run).model_copy(update=own)

    def check(self, runs: Sequence[EntryRun]) -> None:
        """Refuse packed runs that do not keep to the rules, with the reason and the way out."""
        for run in runs:
            self._check_data(run)
            self._check_rules(run)
            _check_numbers(run, self.graded(run))
            if self.race is not None:
                check_clock(run)
            if run.result.status == "ok":
                check_recorded(run, self.dataset.classes or classes_of(run), self.dataset.shape)
        if len({current(run).spec.setting for run in runs}) != 1:
            raise UsageError("the runs of an entry may differ in nothing but their seed; submit them again")
        self._check_seeds(runs)

    def _check_data(self, run: EntryRun) -> None:
        spec, name, ours = run.spec, run.run, self.dataset
        digest, free = _data_of(run) or "none", self.race.freed("dataset") if self.race else frozenset()
        if spec.dataset.name != ours.name or digest not in (ours.digest, *(self.race.data if self.race else ())):
            raise UsageError(
                f"{name} is of dataset {spec.dataset.name!r} with digest {digest[:12]}, but board {self.name!r} is of "
                f"{ours.name!r} with {ours.digest[:12]}; run on those data with --dataset {ours.name}"
                f"{flags_text('dataset', ours.options)}"
            )
        if apart := _apart("dataset", ours, spec.dataset, free):
            raise UsageError(f"{name} prepares the data in another way than board {self.name!r} ({apart})")
        if apart := _apart("network", self.network, spec.network):
            raise UsageError(
                f"{name} has another network than board {self.name!r} ({apart}); run it with --network "
                f"{self.network.name}{flags_text('network', options(plugin('network', self.network)))}"
            )

    def _check_rules(self, run: EntryRun) -> None:
        spec, name = run.spec, run.run
        if spec.ipc not in self.ipc:
            few = ", ".join(map(str, self.ipc))
            raise UsageError(f"{name} has {spec.ipc} images per class; board {self.name!r} takes --ipc {few}")
        allowed = self.race is not None and self.race.allows(self.rules, spec.protocol.json_value())
        if spec.rules != self.protocol.digest and not allowed:
            raise UsageError(
                f"{name} follows protocol {spec.protocol.name!r} ({spec.rules[:8]}), but board "
                f"{self.name!r} is of {self.rules.name!r} ({self.protocol.digest[:8]}): run it with "
                f"--protocol {self.protocol.name}{flags_text('protocol', self.protocol.options)} and no other "
                "-o protocol.*"
            )
        found = {run.result.selection, *(e.selection for e in self._counted(run))} - {None}
        if found - {"validation", "last"}:
            how = "on test data, which no board ranks" if "test" in found else "in a way that nobody recorded"
            raise UsageError(f"{name} selected {how}; run it here, under the protocol of the board")
        if spec.experts.get("imported"):
            raise UsageError(
                f"{name} used experts that were imported: what they cost and saw is not known here, and nobody could "
                "make the run again; train experts by leaving out -o experts.imported"
            )

    def _check_seeds(self, runs: Sequence[EntryRun]) -> None:
        have, due = [run.seed for run in runs], self.seeds_at(runs[0].spec.ipc)
        for wrong, seeds in (
            ("gives two runs of", {s for s in have if have.count(s) > 1}),
            ("lacks", set(due) - set(have)),
            ("has, besides those of the board,", set(have) - set(due)),
        ):
            if seeds:
                few = ", ".join(map(str, sorted(seeds)))
                raise UsageError(
                    f"the submission of {runs[0].run} {wrong} seed {few}; board {self.name!r} takes one run of each "
                    f"seed of {', '.join(map(str, due))}: `ddbench run ... --seed {due[0]} --repeats {len(due)}` "
                    "makes them"
                )

    def graded(self, run: EntryRun) -> list[EvaluationRecord]:
        """The evaluations that count, all by the board's students: on its network first, then one on each other."""
        counted = self._counted(run)
        own = [e for e in counted if e.network == self.network_label]
        exact = [e for e in own if len(e.students) == self.students]
        if run.result.status == "ok" and not exact:
            have = ", ".join(str(len(e.students)) for e in own) or "none"
            raise UsageError(
                f"{run.run} needs an evaluation by {self.students} students under the rules of board "
                f"{self.name!r}, but has {have}; make it by `ddbench eval {run.run} --students {self.students}`"
            )
        others: dict[str, EvaluationRecord] = {}
        for e in counted:
            if e.network != self.network_label and len(e.students) == self.students:
                others.setdefault(e.network, e)
        return [*exact[:1], *(others[name] for name in sorted(others))]

    def _counted(self, run: EntryRun) -> list[EvaluationRecord]:
        """Evaluations under the board's rules, on its data, with the run's own seed."""
        rules: tuple[str, str | None] = (self.protocol.digest, self.dataset.digest)
        if self.race is not None:  # which of the data and rules that it allows, is the run's choice
            rules = (run.spec.rules, _data_of(run))
        return [
            e for e in run.evaluations if (e.protocol_digest, e.dataset_digest) == rules and e.seed in (None, run.seed)
        ]

    def seeds_at(self, ipc: int) -> tuple[int, ...]:
        """The seeds of every entry with so many images per class."""
        return tuple(self.fewer_seeds.get(str(ipc), self.seeds))

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def size(self) -> int:
        """The number of its entries."""
        return len(self._files())

    @cached_property
    def network_label(self) -> str:
        """The network as tables write it: ``convnet(width=32,depth=2)``."""
        return label(plugin("network", self.network))

    @cached_property
    def rules(self) -> Protocol:
        """The protocol. Raises DataError where this ddbench gives other rules under that name and those options."""
        path = self.folder / "board.toml"
        try:
            found = altered(named(self.protocol.name, self.dataset.name), self.protocol.options)
        except UsageError as error:
            raise DataError(f"{path} has a [protocol] that is none: {error}") from error
        # a dataset's recipe changes options under the protocol's own name; what people change gets another
        for rules in (found, replace(found, name=self.protocol.name)):
            if rules.digest == self.protocol.digest:
                return rules
        raise DataError(
            f"{path} records digest {self.protocol.digest[:12]} for its protocol, but name and options give "
            f"{found.digest[:12]}; give all options that differ from those of {self.protocol.name!r}"
        )


def _data_of(run: EntryRun) -> str | None:
    return run.result.dataset and run.result.dataset.digest


def _boards(folder: Path) -> str:
    """The boards beside one that is not there."""
    there = sorted(path.parent.name for path in folder.parent.glob("*/board.toml"))
    return did_you_mean(folder.name, there) + (f" (there are {', '.join(there)})" if there else "")


def _check_numbers(run: EntryRun, graded: Sequence[EvaluationRecord]) -> None:
    """Refuse what cannot be numbers of students, or costs."""
    for student in (student for evaluation in graded for student in evaluation.students):
        numbers = student.json_value()
        if not all(map(isfinite, numbers.values())) or not 0 <= student.accuracy <= 1:
            raise UsageError(f"{run.run} has a student whose numbers are none: {numbers}; evaluate it again")
    for name in _COSTS:
        value: float | None = getattr(run.result, name)
        if value is not None and not (isfinite(value) and value >= 0):
            raise UsageError(f"{run.run} has {value!r} for {name}, which is not a cost; run it again")


def _apart(kind: str, ours: Described, theirs: Described, free: frozenset[str] = frozenset()) -> str:
    """What differs in all but the place of the data and what is free; options that neither names have defaults."""
    if ours.name != theirs.name:
        return f"{theirs.name} instead of {ours.name}"
    board, run = (changed(plugin(kind, described)) for described in (ours, theirs))
    names = [name for name in sorted({*board, *run} - free) if board.get(name) != run.get(name)]
    return ", ".join(f"{n}={run.get(n, 'default')} instead of {board.get(n, 'default')}" for n in names)


def plugin(kind: str, described: Described) -> Any:
    """The dataset or network that a table of a board.toml or a spec describes."""
    return _made(kind, described.name, canonical(described.content))


@cache
def _made(kind: str, name: str, options: str) -> Any:
    """One object for all runs that share its options: validating them takes milliseconds each."""
    return make(registry().get(kind, name).cls, json.loads(options), kind)
