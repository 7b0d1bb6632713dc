"""A run: from a spec to a folder with the distilled set, its evaluation and its cost.

Finished stages on disk are the curriculum so far, so the loop over stages is also the resume logic.
``result.json`` is written last and commits the run: it holds the sha256 of every artefact.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from traceback import format_exception
from typing import Any, Literal

import torch

from ddbench.base.cache import Cache, atomic_write, file_digest, home, lock, read_json, sweep, write_json
from ddbench.base.machine import machine
from ddbench.base.options import label
from ddbench.base.progress import note, report
from ddbench.base.ranks import world
from ddbench.base.seeds import Seed
from ddbench.data.dataset import Dataset, RealData
from ddbench.errors import DataError, DivergedError, InterruptedRun, PluginError, RankError, UsageError
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation, evaluate
from ddbench.grade.preview import preview
from ddbench.hookspecs import Scheduler
from ddbench.plugins import staged
from ddbench.problem.problem import Problem
from ddbench.problem.starts import Starts
from ddbench.problem.synthetic import Curriculum, first_with
from ddbench.run.again import FILE as CONFIG
from ddbench.run.again import config_of
from ddbench.run.calls import next_problem, phases_of, stages_of
from ddbench.run.folder import FINAL, finished
from ddbench.run.place import comparable, deleted, folder_of, set_aside
from ddbench.run.price import remember
from ddbench.run.record import ResultRecord, RunRecord, SpecRecord
from ddbench.run.row import Row
from ddbench.run.sources import FILE, changed, outdated, recorded, sources
from ddbench.run.spec import RunSpec, differences
from ddbench.run.stage import Stage
from ddbench.train.network import Network

SET = "distilled.safetensors"
_SAID: set[tuple[Path | str, ...]] = set()  # where, and which sources have changed


@dataclass(frozen=True)
class Settings:
    """How a run is carried out; none of it changes what comes out."""

    out: Path = Path("runs")
    students: int = 5
    checkpoint_seconds: float = 20.0
    renew: Literal["always", "changed", "never"] = "changed"  # whether a run that is there is set aside


def build_task(spec: RunSpec, dataset: Dataset) -> Problem:
    """The whole task: all of ``ipc`` at once, for fresh networks. Schedulers restate it."""
    train = dataset.train.to(spec.device)
    if spec.ipc > train.smallest_class:
        raise UsageError(
            f"--ipc {spec.ipc} asks for more images per class than dataset {dataset.name!r} can give: its smallest "
            f"class has {train.smallest_class} training images"
        )
    network = Network(spec.network, train.shape, train.classes, torch.device(spec.device))
    teaching = spec.protocol.starting(spec.ipc * train.classes, phases(spec.scheduler)).on(dataset.augment)
    # Start networks and experts do not depend on the run's seed: the pool is shared between repeats, unless it varies.
    pool = Seed(spec.seed if spec.experts.vary else 0)
    starts = Starts(network, pool / "start", teaching, Cache(home()), spec.threads)
    experts = replace(spec.experts, vary=False).on(dataset.augment)  # those of a seed are the same ones
    return Problem(train, spec.ipc, starts, experts, dataset.augment, Seed(spec.seed), decoder=spec.decoder)


def first_problem(spec: RunSpec, dataset: Dataset) -> Problem:
    """What the first stage of a run is asked. Raises UsageError where the budget cannot be divided."""
    problem = next_problem(spec.scheduler, build_task(spec, dataset), Curriculum())
    assert problem is not None, f"scheduler {spec.scheduler.name!r} has no stage"
    return problem


def phases(scheduler: Scheduler) -> int:
    """Into how many phases a student's N steps are divided: one where it learns the union of all stages at once."""
    return len(phases_of(scheduler, stages_of(scheduler)))


@dataclass(eq=False)
class Run:
    """One spec at work in one folder."""

    spec: RunSpec
    dataset: Dataset
    settings: Settings
    begun: Callable[[Run, bool], None] = lambda _run, _going_on: None  # told of it once nothing was refused

    @cached_property
    def folder(self) -> Path:
        return folder_of(self.spec, self.settings.out)

    def execute(self) -> ResultRecord:
        """Distil, evaluate, and return the result; whatever is finished already is not done again."""
        self._check_task()
        self._renew()
        with lock(self.folder / ".lock", wait=False, within=self.settings.out):
            going_on = (self.folder / "spec.json").exists()
            self._check_spec()
            self.begun(self, going_on)
            with self._saying_if_deleted():
                return self._execute()

    def _execute(self) -> ResultRecord:
        for folder in (self.folder, *self.folder.glob("stage-*"), self.folder / "evaluations"):
            sweep(folder)
        torch.set_num_threads(self.spec.threads)
        result = finished(self.folder)
        if result is not None and result.status == "ok" and not (self.folder / SET).exists():
            note(f"{self.folder / SET} is gone; it is made again")
            result = None
        if result is None or result.status not in FINAL:
            result = ResultRecord.model_validate(self._work())
        if result.status == "ok":
            self._evaluate()
        return result

    def rows(self) -> list[Row]:
        """What came out, as its folder records it."""
        with self._saying_if_deleted():
            return RunRecord.read(self.folder).rows()

    @contextmanager
    def _saying_if_deleted(self) -> Iterator[None]:
        """Whatever fails first where the folder was deleted under a run at work, that it was is what people are told.

        Its deletion may be half done: ``spec.json`` is what makes a folder that of a run.
        """
        try:
            yield
        except (DataError, OSError) as error:
            if (self.folder / "spec.json").exists():
                raise
            raise DataError(deleted(self.folder)) from error
        if not (self.folder / "spec.json").exists():
            raise DataError(deleted(self.folder))

    def _renew(self) -> None:
        """Set a run aside that other code made, if that is asked for or the code is being worked on; else say so."""
        if not (self.folder / "spec.json").exists():
            return
        fresh = self.settings.renew == "always"
        other = [] if fresh else changed(self.spec, self.folder)  # of a damaged folder nobody can tell
        worked_on = outdated(self.spec, self.folder) if self.settings.renew == "changed" else []
        if fresh or worked_on:
            kept = set_aside(self.folder)
            self.folder = self.settings.out / self.spec.folder
            why = f"the source of {', '.join(worked_on)} has changed: " if worked_on else ""
            note(f"{why}{self.folder.name} is made anew, and what was there is kept as {kept.name}")
        elif other and (self.settings.out, *other) not in _SAID:  # once, not for random images beside a run as well
            _SAID.add((self.settings.out, *other))
            names = ", ".join(other)
            note(f"{self.folder.name} was made by other code of {names}; `ddbench run --fresh` makes it anew")

    def _check_task(self) -> None:
        """Refuse what cannot be done before anything is written: a budget, stages, or a network that do not fit."""
        assert first_problem(self.spec, self.dataset).network.parameters

    def _check_spec(self) -> None:
        """A folder belongs to one spec and one dataset; going on under another is refused with the difference."""
        data = {"name": self.dataset.name, "digest": self.dataset.digest}
        if not (self.folder / "spec.json").exists():
            # what is left of a folder that was deleted under a run: its stages can be believed, that it is whole cannot
            (self.folder / "result.json").unlink(missing_ok=True)
            write_json(self.folder / FILE, {"sources": sources(self.spec)})
            if text := config_of(self.spec, self.settings.students):
                atomic_write(self.folder / CONFIG, text.encode())
        other = []
        for name, record in (("spec.json", self.spec.record()), ("dataset.json", data)):
            path = self.folder / name
            if not path.exists():
                write_json(path, record, sealed=True)
            held = read_json(path)
            if name == "spec.json":
                held, record = comparable(SpecRecord.from_file(path).json_value()), comparable(record)
            other += differences(held, record, added=False)  # the key holds what matters
        if other:
            raise UsageError(
                f"{self.folder} was started with another spec or other data ({'; '.join(other)}); "
                "undo the change to go on with it, or give another --out to start afresh"
            )

    def _work(self) -> dict[str, Any]:
        began = time.monotonic()
        try:
            curriculum, notes, task = self.distil()
            if world() == 1:
                remember(self.spec, task, notes)
        except DivergedError as error:
            result = self._result("diverged", began, [], {}) | {"error": str(error)}
            write_json(self.folder / "result.json", result, sealed=True)
            return result
        except (InterruptedRun, DataError, RankError, UsageError):
            raise
        except Exception as error:
            said = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            failed = {"error": said, "traceback": "".join(format_exception(error)).splitlines()}
            write_json(self.folder / "result.json", self._result("failed", began, [], {}) | failed, sealed=True)
            raise
        distilled = self._describe(curriculum, task)
        distilled.save(self.folder / "distilled.safetensors")
        picture = preview(curriculum, task.real.preprocessing, task.classes)
        atomic_write(self.folder / "preview.png", picture)
        result = self._result("ok", began, notes, self._contents(curriculum, task))
        write_json(self.folder / "result.json", result, sealed=True)
        return result

    def distil(self) -> tuple[Curriculum, list[dict[str, Any]], Problem]:
        """The loop over stages: the curriculum, notes on each stage, and the task. Sees no test data."""
        spec, task = self.spec, build_task(self.spec, self.dataset)
        done, notes = Curriculum(), []
        while (problem := next_problem(spec.scheduler, task, done)) is not None:
            stage = self._stage(len(done), problem, done)
            try:
                made, note = stage.solve()
            except DivergedError:
                self._keep_last_good(stage, done, task)
                raise
            notes.append(note)
            sets = (*done.sets, made)
            done = Curriculum(sets, phases_of(spec.scheduler, len(sets)))
            report("stages", len(done), spec.scheduler.stages)
        return done, notes, task

    def _keep_last_good(self, stage: Stage, done: Curriculum, task: Problem) -> None:
        """What was selected before the divergence, as a file that ``ddbench eval`` reads."""
        sets = done.sets if stage.best is None else (*done.sets, stage.best)
        if sets:
            good = Curriculum(sets, phases_of(self.spec.scheduler, len(sets)))
            self._describe(good, task).save(self.folder / "last_good.safetensors")

    def _stage(self, index: int, problem: Problem, done: Curriculum) -> Stage:
        spec = self.spec
        images = spec.ipc * problem.classes
        teaching = spec.protocol.evaluation(images, phases(spec.scheduler)).on(problem.augment)
        seed = problem.seed / "selection"
        # What students know before the first phase with this set; nothing where that phase is their first.
        taken = phases_of(spec.scheduler, index + 1)
        known = taken[: first_with(index, taken)]
        taught = Curriculum(done.sets, known) if known else Curriculum()
        judges = replace(problem.starts, seed=seed, teaching=teaching, taught=taught, count=spec.protocol.judges)
        return Stage(
            index=index,
            problem=problem,
            matcher=staged(spec.matcher, problem),
            protocol=spec.protocol,
            phases=taken,
            judges=judges,
            judged_on=self._judged_on().to(spec.device),
            validation=self.dataset.validation.to(spec.device),
            folder=self.folder / f"stage-{index}",
            metrics=self.folder / "metrics.jsonl",
            device=torch.device(spec.device),
            checkpoint_seconds=self.settings.checkpoint_seconds,
        )

    def _judged_on(self) -> RealData:
        """The data that the protocol selects on; no matcher sees them."""
        return self.dataset.test if self.spec.protocol.selects == "test" else self.dataset.validation

    def _describe(self, curriculum: Curriculum, task: Problem) -> Distilled:
        spec = self.spec
        images = spec.ipc * task.classes
        teaching = spec.protocol.evaluation(images, phases(spec.scheduler)).on(task.augment)
        about = {
            "dataset": {"name": self.dataset.name, "digest": self.dataset.digest},
            "selection": self.spec.protocol.selects,
            "spec": spec.record(),
        }
        return Distilled(
            curriculum, task.real.preprocessing, self.dataset.classes, task.real.shape, spec.network, teaching, about
        )

    def _contents(self, curriculum: Curriculum, task: Problem) -> dict[str, Any]:
        return {
            "image_bytes": sum(s.image_bytes for s in curriculum.sets),
            "label_bytes": sum(s.label_bytes for s in curriculum.sets),
            "label_type": curriculum.sets[0].label_type,
            "images": sum(len(s) for s in curriculum.sets),
            "steps": self.spec.protocol.budget(self.spec.ipc * task.classes),
            "network": label(self.spec.network),
            "parameters": task.network.parameters,
            "train_images": len(task.real),
        }

    def _result(self, status: str, began: float, stages: list[Any], contents: dict[str, Any]) -> dict[str, Any]:
        names = ("spec.json", "dataset.json", "preview.png", "metrics.jsonl")
        sets = ("distilled.safetensors", "last_good.safetensors")
        present = [self.folder / name for name in (*names, *sets) if (self.folder / name).exists()]
        peaks = [note["peak_bytes"] for note in stages]
        code, begun = sources(self.spec), recorded(self.folder)
        return {
            "status": status,
            "dataset": {"name": self.dataset.name, "digest": self.dataset.digest},
            "selection": self.spec.protocol.selects,
            **contents,
            "distil_seconds": sum(note["seconds"] for note in stages),
            "selection_seconds": sum(note["selection_seconds"] for note in stages),
            "expert_seconds": _total([note["expert_seconds"] for note in stages]),
            "peak_bytes": max(peaks, default=0),
            "stages": stages,
            "warnings": [text for note in stages for text in note.get("warnings", [])],
            "machine": machine(self.spec.device),
            "sources": code,
            **({"begun_by": begun} if begun not in ({}, code) else {}),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "process_seconds": time.monotonic() - began,
            "sha256": {path.name: file_digest(path) for path in present},
        }

    def _evaluate(self) -> None:
        """Train the evaluated students and touch the test set, once."""
        path = self.folder / SET
        result = finished(self.folder)
        if result is None or file_digest(path) != result.sha256.get("distilled.safetensors"):
            raise DataError(
                f"{path} is damaged: it no longer has the sha256 in result.json; delete it and run again: it is put "
                "together anew from the sets of its stages"
            )
        distilled = Distilled.load(path)
        plan = Evaluation(distilled, self.dataset, self.spec.protocol, self.settings.students, self.spec.device)
        evaluate(plan, self.folder / "evaluations", threads=self.spec.threads, seed=self.spec.seed)


def _total(seconds: list[float | None]) -> float | None:
    """Their sum; None where one is not known, as for experts that were imported."""
    known = [s for s in seconds if s is not None]
    return sum(known) if len(known) == len(seconds) else None
