"""One stage of a run: the loop around a matcher's step, with checkpoints, selection and resume.

The loop, the step counter, logging, checkpoints and selection exist once, here. A checkpoint holds the
matcher's state, the best candidate so far and the step; everything else is a function of the spec.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench.base.cache import file_digest, read_json, write_json
from ddbench.base.guard import guarded
from ddbench.base.machine import peak_bytes, reset_peak
from ddbench.base.progress import note, report, say
from ddbench.base.ranks import world
from ddbench.base.schema import Digest, Number, Whole
from ddbench.base.seeds import Seed
from ddbench.base.state import has_nan, load_state, save_state
from ddbench.data.dataset import RealData
from ddbench.errors import DamagedError, DataError, DivergedError, InterruptedRun, PluginError, UsageError
from ddbench.grade.protocol import Protocol
from ddbench.grade.selection import Verdict, judge
from ddbench.hookspecs import Matcher
from ddbench.plugins import needs_of, notes_of, resume_with, stuck_of
from ddbench.problem.problem import Problem
from ddbench.problem.starts import Starts
from ddbench.problem.synthetic import OUT_OF_RANGE, SyntheticSet
from ddbench.run import looks
from ddbench.run.calls import Asked
from ddbench.run.checkpoint import Checkpoint, Ledger, Log
from ddbench.run.prepare import prepared
from ddbench.run.record import StageRecord
from ddbench.run.watch import look_after, rows_of, seen_of_experts

EXPLODED = 1e3  # a loss this many times the first one, and above 1, has exploded


class _Finished(StageRecord):
    """``result.json`` of a stage."""

    sha256: Digest
    metrics_end: Whole
    seconds: Number
    selection_seconds: Number
    expert_seconds: Number | None
    peak_bytes: Whole


@dataclass(eq=False)
class Stage:
    """A problem, the matcher that solves it, and the folder where its progress lives."""

    index: int
    problem: Problem
    matcher: Matcher[object]
    protocol: Protocol
    phases: tuple[tuple[int, ...], ...]
    judges: Starts
    judged_on: RealData
    folder: Path
    metrics: Path
    device: torch.device
    checkpoint_seconds: float = 20.0
    validation: RealData | None = None  # what experts are shown on; none where nobody wants to know

    def __post_init__(self) -> None:
        self.ledger = Ledger()
        self.best: SyntheticSet | None = None
        self.expert_seconds = 0.0
        self._unread: list[tuple[int, dict[str, Any]]] = []  # steps with their metrics
        self._shown: dict[str, float] = {}
        self.seed: Seed = self.problem.seed / "stage" / self.index
        self._saved = self._began = time.monotonic()
        self._pause = self.checkpoint_seconds

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder / "checkpoint.safetensors", self.metrics, self.index, self.matcher.steps)

    def solve(self) -> tuple[SyntheticSet, dict[str, Any]]:
        """The selected set and notes on how it came about; at once when the stage is finished."""
        finished = self.finished()
        if finished:
            return finished
        self._prepare()
        state = self._restore()
        if world() not in (self.ledger.ranks or [1]):
            self.ledger.ranks = [*(self.ledger.ranks or [1] * (self.ledger.step > 0)), world()]
        reset_peak(self.device.type)
        with Log(self.metrics, self.ledger.metrics_end) as stream:
            self._loop(state, stream)
        self._look_at_content()
        return self._finish()

    def _look_at_content(self) -> None:
        """Nothing of a stage whose matcher changed the data is kept: going on with it would hide that."""
        try:
            self._asked.look_at_content()
        except PluginError:
            self.checkpoint.path.unlink(missing_ok=True)
            raise

    def finished(self) -> tuple[SyntheticSet, dict[str, Any]] | None:
        """The result on disk, verified, or None."""
        notes, result = self.folder / "result.json", self.folder / "result.safetensors"
        if not notes.exists():
            return None
        way = f"delete {self.folder} and run again to distil this stage anew"
        try:
            record = read_json(notes)
            _Finished.checked(record, f"{notes} is damaged ({{}}); delete it")
            if not result.exists() or file_digest(result) != record["sha256"]:
                raise DamagedError(f"{result} is damaged: it is not what was written; delete it")
            made = load_state(result, self.device)[0]
        except DataError as error:
            raise DamagedError(f"{str(error).rpartition(';')[0]}; {way}") from error
        if not isinstance(made, SyntheticSet):
            raise DamagedError(f"{result} holds no set; {way}")
        return made, record

    def _prepare(self) -> None:
        """Make what the matcher needs: experts from this problem's starts."""
        wanted = needs_of(self.matcher, self.problem)
        self.problem = prepared(self.problem, wanted)
        self._asked = Asked(self.matcher, self.problem, self.judged_on)
        if wanted.experts:
            self.expert_seconds += self.problem.experts.seconds(wanted.experts)
        self.expert_seconds += sum(made.seconds(wanted.teachers) for made in self.problem.teachers)

    def _restore(self) -> object:
        if self.checkpoint.path.exists():
            state, self.best, self.ledger = self.checkpoint.load(self.device)
            resume_with(self.matcher, self.ledger.engine)
            return state
        resume_with(self.matcher, {})
        self._look_at_experts()
        previous = self.folder.parent / f"stage-{self.index - 1}" / "result.json"
        self.ledger.metrics_end = read_json(previous)["metrics_end"] if previous.exists() else 0
        with (self.seed / "init").scope():
            return self._asked.init()

    def _look_at_experts(self) -> None:
        """Say what the experts reach, and keep it: a set teaches no more than they know."""
        if self.validation is None:
            return
        for seen in seen_of_experts(self.problem, needs_of(self.matcher, self.problem), self.validation):
            self.ledger.experts = self.ledger.experts or seen.record()
            say(f"stage {self.index}: {seen.sentence}")
            self._warn(seen.flaw)

    def _look_at_rows(self, stream: Log) -> None:
        """Ask the matcher, early on, whether it gets anywhere."""
        self._read(stream)
        rows = rows_of(self.metrics, self.index, stream.sync())
        self._warn(stuck_of(self.matcher, self.problem, rows))

    def _warn(self, text: str | None) -> None:
        if text is not None:
            self.ledger.warnings.append(text)
            note(f"stage {self.index}: {text}")

    def _loop(self, state: Any, stream: Log) -> None:
        steps, checks = self.matcher.steps, self.protocol.checks
        due = {round(steps * (i + 1) / checks) for i in range(checks)}  # {0} for a coreset
        self._began = time.monotonic()
        whole = True  # whether ``state`` is between two steps, and may be saved
        try:
            if not self.checkpoint.path.exists():
                self._save(state, stream)
            while True:
                k = self.ledger.step
                if k in looks.points(steps) and str(k) not in self.ledger.pictures:
                    self._look(state)
                if k in due and k not in [check["step"] for check in self.ledger.checks]:
                    self._save(state, stream)
                    self._select(state)
                    self._save(state, stream)
                if k == steps:
                    return
                whole = False
                state, numbers = self._step(state, k, stream)
                whole = True
                shown = self._note(numbers, k, stream)
                self.ledger.step = k + 1
                if k + 1 == look_after(steps):
                    self._look_at_rows(stream)
                if time.monotonic() - self._saved > self._pause:
                    self._save(state, stream)
                report(f"stage {self.index} distilling", k + 1, steps, **shown)
        except (InterruptedRun, DivergedError) as error:
            self._look_at_content()  # or what is kept would be of data that nobody has
            if whole and isinstance(error, InterruptedRun):
                self._save(state, stream)
            raise

    def _look(self, state: Any) -> None:
        """Keep a picture of the set as it is, in time that counts for nothing; one that cannot be had stops nothing."""
        self._tick()
        k = self.ledger.step
        try:
            made = self._result(state)
        except (DivergedError, PluginError, UsageError) as error:  # steps and selection raise it again
            note(f"stage {self.index}: no picture after {k} iterations: {error}")
        else:
            if made.finite():
                self.ledger.pictures[str(k)] = looks.keep(made, self.problem, self.folder, k)
        self._began = time.monotonic()

    def _result(self, state: Any) -> SyntheticSet:
        with (self.seed / "result" / self.ledger.step).scope():
            return self._asked.result(state)

    def _step(self, state: Any, k: int, stream: Log) -> tuple[Any, dict[str, Any]]:
        with (self.seed / "step" / k).scope():
            try:
                return self._asked.step(state, k)
            except DivergedError as error:
                self._read(stream)  # an earlier step may tell the cause
                raise DivergedError(f"at iteration {k} of stage {self.index}, {error}") from error

    def _tick(self) -> None:
        """Add the time since the last tick to the cost of distilling."""
        now = time.monotonic()
        self.ledger.seconds += now - self._began
        self.ledger.peak = max(self.ledger.peak, peak_bytes(self.device.type))
        self._began = now

    def _note(self, numbers: dict[str, Any], k: int, stream: Log) -> dict[str, float]:
        """Keep a step's metrics, and what was last read of them; those on a GPU are read several steps at a time."""
        self._unread.append((k, numbers))
        if len(self._unread) >= steps_unread(self.device):
            self._read(stream)
        return self._shown

    def _read(self, stream: Log) -> None:
        """Read and write down the metrics that are kept."""
        unread, self._unread = self._unread, []
        for k, numbers in unread:
            self._shown = self._written(numbers, k, stream)

    def _written(self, numbers: dict[str, Any], k: int, stream: Log) -> dict[str, float]:
        """Append a step's metrics; a number that is not finite, or a loss that exploded, ends the run."""
        plain = {name: float(value) for name, value in numbers.items()}
        for name, value in plain.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"{name} became {value} at iteration {k} of stage {self.index}; "
                    "try a smaller outer learning rate, a smaller student lr, or fewer student steps"
                )
        loss = plain.get("loss")
        if loss is not None:
            first = self.ledger.first_loss
            self.ledger.first_loss = loss if first is None else first
            if first is not None and loss > max(1.0, EXPLODED * abs(first)):
                raise DivergedError(
                    f"the loss exploded from {first:g} to {loss:g} at iteration {k} of stage {self.index}; "
                    "try a smaller outer learning rate, or clipping if the method has it"
                )
        stream.write({"stage": self.index, "step": k, **plain})
        return plain

    def _select(self, state: Any) -> None:
        """Judge the current set; keep it if it is the best so far."""
        began = time.monotonic()
        candidate = replace(self._result(state), decoder=self.problem.decoder).detached()
        if not candidate.finite():
            raise DivergedError(
                f"the synthetic set holds numbers that are not finite at iteration {self.ledger.step} of stage "
                f"{self.index}; try a smaller outer learning rate"
            )
        largest = float(candidate.images.abs().max())
        if largest > OUT_OF_RANGE:  # normalisation layers hide it from the loss
            raise DivergedError(
                f"pixels reached {largest:.3g} (they should be of the order of 1) at iteration {self.ledger.step} "
                f"of stage {self.index}; try a smaller outer learning rate"
            )
        verdict = self._verdict(candidate)
        check = {"step": self.ledger.step, "lr": verdict.lr, "accuracy": verdict.accuracy, "tried": verdict.tried}
        self.ledger.check_seconds.append(self.ledger.seconds)
        self.ledger.checks.append(check)
        if self.ledger.best is None or verdict.accuracy is None or verdict.accuracy > self.ledger.best["accuracy"]:
            self.ledger.best = check
            self.best = replace(candidate, lr=verdict.lr)
        self._began = time.monotonic()
        self.ledger.selection_seconds += self._began - began

    def _verdict(self, candidate: SyntheticSet) -> Verdict:
        """What the protocol's judges say of a candidate; under one that selects nothing the last candidate is kept."""
        if self.protocol.selects == "last":
            return Verdict(candidate.lr or self.protocol.lr, None, {})
        return judge(candidate, self.problem.frozen, self.phases, self.judges, self.judged_on, self.protocol)

    def _save(self, state: Any, stream: Log) -> None:
        self._read(stream)
        self.ledger.metrics_end = stream.sync()
        self.ledger.engine |= notes_of(self.matcher)
        self._tick()
        began, saving = time.monotonic(), guarded(f"saving the state of matcher {self.matcher.name!r}")
        with saving:  # a state that contains itself, say
            lost = has_nan(state)
        if lost:
            raise DivergedError(
                f"the state holds not-a-number at iteration {self.ledger.step} of stage {self.index}; "
                "try a smaller outer learning rate, a smaller student lr, or fewer student steps"
            )
        with saving:
            self.checkpoint.save(state, self.best, self.ledger)
        self._saved = time.monotonic()
        if self.checkpoint_seconds:  # a state of gigabytes takes seconds to write: spend a twentieth of the time on it
            self._pause = max(self.checkpoint_seconds, 20 * (self._saved - began))

    def _finish(self) -> tuple[SyntheticSet, dict[str, Any]]:
        """Write the selected set, then the notes that commit it."""
        assert self.best is not None
        assert self.ledger.best is not None
        result = self.folder / "result.safetensors"
        save_state(result, self.best, {})
        record = {
            "sha256": file_digest(result),
            "selected": self.ledger.best,
            "checks": self.ledger.checks,
            "check_seconds": self.ledger.check_seconds,
            "steps": self.ledger.step,
            "seconds": self.ledger.seconds,
            "selection_seconds": self.ledger.selection_seconds,
            "expert_seconds": self.expert_seconds if math.isfinite(self.expert_seconds) else None,
            "peak_bytes": self.ledger.peak,
            "metrics_end": self.ledger.metrics_end,
            "experts": self.ledger.experts,
            "warnings": self.ledger.warnings,
            "pictures": self.ledger.pictures,
        }
        record |= {"ranks": self.ledger.ranks} if self.ledger.ranks else {}
        noted = list((self.ledger.engine | notes_of(self.matcher)).values())
        write_json(self.folder / "result.json", record | ({"engine": noted} if noted else {}), sealed=True)
        self.checkpoint.path.unlink(missing_ok=True)
        return self.best, record


def steps_unread(device: torch.device) -> int:
    """How many steps' metrics are read at a time: to read one makes a GPU wait."""
    return 1 if device.type == "cpu" else 10
