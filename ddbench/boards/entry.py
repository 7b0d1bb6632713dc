"""Entries of a leaderboard: what runs that differ in their seed alone recorded, in one JSON file and one picture.

An entry holds every accuracy of every student, so that all tables are made anew from it: its runs are records, as those
of run folders are. ``pack`` makes one of a folder; ``Entry.read`` gives back what a file holds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ddbench.base.cache import atomic_write, canonical, file_digest
from ddbench.base.opening import TEXT_BYTES, parse_json, read_text, require_regular
from ddbench.base.schema import RECORD_BYTES, Digest, Held, Number, Seed, Text, Whole
from ddbench.base.tensors import content_digest
from ddbench.boards.picture import Picture, file_name, opened
from ddbench.boards.race import WALL, Clock
from ddbench.boards.verification import StoredSet, Verification
from ddbench.errors import DataError, UsageError
from ddbench.results.tables import clean
from ddbench.run.defaults import ONE_STAGE
from ddbench.run.folder import FINAL, finished
from ddbench.run.place import called
from ddbench.run.record import PLACES, Described, ResultRecord, RunRecord, SpecRecord, StageRecord
from ddbench.run.row import method_name
from ddbench.run.spec import from_record, without_gone

FORMAT = 3  # 1 had pictures of another kind, with the names of entries; 2 a whole spec for each run
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # of boards and entries: they become file names and addresses
POINTS = 40  # of a curve, per stage: enough to see its shape
_BROKEN = re.compile(r"[\ud800-\udfff\ufffe\uffff]")  # what is in no XML and in no UTF-8
_RESULT = ("status", "error", "dataset", "selection", "label_type", "network", "parameters", "steps", "images",
           "image_bytes", "label_bytes", "distil_seconds", "selection_seconds", "expert_seconds", "peak_bytes",
           "machine", "finished", "train_images", "sources")  # fmt: skip
_STAGE = ("checks", "selected", "steps", "seconds", "selection_seconds", "expert_seconds", "peak_bytes", "engine")


class Curve(Held):
    """The losses of a stage, thinned."""

    stage: Annotated[int, Field(ge=0, lt=1000)]
    step: list[Whole]
    loss: list[Number]

    @model_validator(mode="after")
    def _has_a_loss_for_each_step(self) -> Self:
        if len(self.step) != len(self.loss):
            raise ValueError(f"has {len(self.step)} steps and {len(self.loss)} losses")
        return self


class EntryRun(RunRecord):
    """A run as an entry keeps it: without what fills a disk, with its stages and curves, and where no data lie."""

    seed: Seed
    stages: list[StageRecord]
    tensors: Digest | None = None  # sha256 of their content
    stored: StoredSet | None = None  # the file that they are in; entries before 0.2 name none
    curves: list[Curve]
    wall_seconds: Number | None = None  # in all, nothing cached: what a race ranks by

    @model_validator(mode="after")
    def _has_one_seed(self) -> Self:
        if self.seed != self.spec.seed:
            raise ValueError(f"is of seed {self.seed}, and its spec of {self.spec.seed}")
        return self

    @property
    def made_in(self) -> list[StageRecord]:
        return self.stages

    @property
    def method(self) -> str:
        """What its method is called unless its author says otherwise: ``tesla pdd (teacher labels)``."""
        return method_name(self.spec.matcher.name, self.spec.scheduler.name, self.result.label_type)

    @property
    def entry_name(self) -> str:
        """The name of an entry of such runs: readable, unique by its setting, and safe as a file name."""
        words = [self.spec.matcher.name, self.spec.scheduler.name]
        plain = re.sub(r"[^a-z0-9]+", "-", "-".join(w for w in words if w != ONE_STAGE).lower()).strip("-") or "entry"
        return f"{plain[:40]}-ipc{self.spec.ipc}-{self.spec.setting[:8]}"


class Entry(Held):
    """Runs of one setting, and what their author says of them."""

    format: int
    method: Text
    runs: list[EntryRun]
    author: Text = ""
    link: Text = ""
    note: Text = ""
    date: Text = ""
    picture: Picture | None = None
    sets: Text = ""  # the address of the folder that holds the files of its sets
    verification: Verification | None = None
    file: Path = Field(default=Path(), exclude=True)

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def picture_file(self) -> Path:
        """Where the picture is, if there is one."""
        if self.format == 1:
            return self.file.with_suffix(".png")
        return self.file.with_name(file_name(self.picture.sha256 if self.picture else ""))

    @classmethod
    def read(cls, path: Path) -> Entry:
        """An entry from its file, or a DataError that names it."""
        try:
            # half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark
            text = json.dumps(parse_json(read_text(path, RECORD_BYTES)), ensure_ascii=False)
        except ValueError as error:
            raise DataError(f"{path} is not readable JSON ({error}); submit the runs again") from error
        held = json.loads(text.encode(errors="replace"))
        held = _whole(held) if isinstance(held, dict) else {}
        if lacking := [n for n in ("format", "method", "runs") if held.get(n) in (None, [])]:
            raise DataError(
                f"{path} is not an entry of a leaderboard: it lacks {', '.join(lacking)}; submit the runs again"
            )
        if held["format"] not in range(1, FORMAT + 1):
            raise DataError(
                f"{path} has format {shown(repr(held['format']))}; this ddbench reads 1 to {FORMAT}: update it, "
                "or submit again"
            )
        told = {name: value for name, value in held.items() if value is not None} | {"file": path}
        entry = cls.checked(told, f"{path} is damaged ({{}}); submit the runs again")
        if not NAME.fullmatch(path.stem):
            name = shown(path.name)
            raise DataError(f"an entry is named with a-z, 0-9 and ._- (at most 64), not {name!r}; rename it")
        entry._check_picture()
        return entry

    def _check_picture(self) -> None:
        """Refuse a picture that is another than the entry records, or none that pages can show."""
        if self.picture is None:
            return
        path = self.picture_file
        if not path.exists() or _too_large(path) or file_digest(path) != self.picture.sha256:
            raise DataError(
                f"{path} is not the picture that {self.file.name} records; submit the runs again with --replace"
            )
        try:
            self.picture.crops(opened(path))
        except ValueError as error:
            raise DataError(f"{self.file} misdescribes its picture ({error}); submit the runs again") from error


def write(path: Path, held: dict[str, Any]) -> None:
    """Write an entry: a line for each thing that it says and for each run, so that a difference is as small.

    What the specs of all runs have in common stands there once.
    """
    held = _whole(held)
    specs = [{name: canonical(value) for name, value in run["spec"].items()} for run in held["runs"]]
    told = specs[0] if held["format"] == FORMAT else {}  # whoever reads an earlier format looks for whole specs
    shared = {n for n, text in told.items() if all(spec.get(n) == text for spec in specs)}
    common = {name: value for name, value in held["runs"][0]["spec"].items() if name in shared}
    said = sorted((held | ({"spec": common} if common else {})).items())
    words = [f"{canonical(name)}: {canonical(value)}" for name, value in said if name != "runs"]
    own = [run | {"spec": {n: v for n, v in run["spec"].items() if n not in shared}} for run in held["runs"]]
    runs = ",\n".join(map(canonical, own))
    atomic_write(path, ("{\n" + ",\n".join([*words, f'"runs": [\n{runs}\n]']) + "\n}\n").encode())


def _whole(held: dict[str, Any]) -> dict[str, Any]:
    """What a file holds, each run with its whole spec; what is no entry stays as it is, for whoever complains."""
    common, runs = held.get("spec"), held.get("runs")
    if not isinstance(common, dict) or not isinstance(runs, list):
        return held
    whole = [
        r | {"spec": common | r["spec"]} if isinstance(r, dict) and isinstance(r.get("spec"), dict) else r for r in runs
    ]
    return {name: value for name, value in held.items() if name != "spec"} | {"runs": whole}


def shown(value: Any, most: int = 120) -> str:
    """Foreign text for people: on one line, without control characters and overrides, cut where it is too long."""
    text = _BROKEN.sub("?", clean("" if value is None else value))
    return text if len(text) <= most else text[: most - 1] + "…"


def pack(folder: Path) -> EntryRun:
    """What an entry keeps of a run. Raises UsageError for one that is not finished, DataError for a damaged one."""
    result = verified(folder)
    run = without_gone(RunRecord.read(folder))
    spec = _current(run.spec, folder)
    told = {name: value for name, value in spec.dataset.options.items() if not _private(name, value)}
    distilled = folder / "distilled.safetensors"
    packed = EntryRun(
        run=run.run,
        seed=spec.seed,
        spec=spec.model_copy(update={"dataset": Described(name=spec.dataset.name, options=told)}),
        result=ResultRecord.model_validate({n: v for n, v in result.json_value().items() if n in _RESULT}),
        stages=[
            StageRecord.model_validate({n: v for n, v in stage.json_value().items() if n in _STAGE})
            for stage in result.stages
        ],
        tensors=content_digest(distilled) if distilled.name in result.sha256 else None,
        stored=_stored(distilled, result.sha256.get(distilled.name)),
        evaluations=[e for e in run.evaluations if e.complete and e.students],
        curves=curves(folder / "metrics.jsonl"),
    )
    clock = folder / WALL
    return packed.model_copy(update={"wall_seconds": Clock.from_file(clock).seconds}) if clock.exists() else packed


def _stored(distilled: Path, sha256: str | None) -> StoredSet | None:
    return None if sha256 is None else StoredSet(sha256=sha256, bytes=distilled.stat().st_size)


def verified(folder: Path) -> ResultRecord:
    """The result of a finished run whose files are those that it wrote."""
    result = finished(folder)
    if result is None:
        raise UsageError(f"{folder} is not finished; go on with it by `ddbench run --resume {folder}`")
    if result.status not in FINAL:
        raise UsageError(
            f"{folder} ended as {result.status!r} ({shown(result.error)}), which says nothing about the method; mend "
            f"that and go on with `ddbench run --resume {folder}`"
        )
    for name, recorded in result.sha256.items():
        path = folder / name
        if not path.exists() or _too_large(path) or file_digest(path) != recorded:
            raise DataError(
                f"{path} is damaged: it no longer has the sha256 in result.json; delete {folder} and run again"
            )
    return result


def _too_large(path: Path) -> bool:
    """Whether a record or picture is larger than any that ddbench writes: seen before it is read to its end."""
    return path.suffix != ".safetensors" and require_regular(path).st_size > TEXT_BYTES


def _current(spec: SpecRecord, folder: Path) -> SpecRecord:
    """A run's spec with the options that its version did not have yet, at their defaults: its key says so.

    Seeds that were made by two versions are then still of one setting.
    """
    held = spec.json_value()
    try:
        made = from_record(held)
    except (UsageError, DataError, KeyError):  # of a plugin that is not here, or of a set from elsewhere
        return spec
    same = called(made, held, folder.resolve().name)
    return SpecRecord.model_validate(held | made.record() | {"versions": spec.versions}) if same else spec


def _private(name: str, value: Any) -> bool:
    """Whether an option says where data lie on this machine; a name on the Hub says which data they are."""
    if name not in PLACES or value == "":
        return False
    return name != "path" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(value)) or Path(value).exists()


class _Logged(Held):
    """A line of ``metrics.jsonl``."""

    stage: Annotated[int, Field(ge=0, lt=1000)] = 0
    step: Whole = 0
    loss: Number | None = None


def curves(path: Path) -> list[Curve]:
    """The losses of each stage, thinned to ``POINTS`` evenly spaced steps with the first and the last among them."""
    if not path.exists():
        return []
    stages: dict[int, list[tuple[int, float]]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        complaint = f"line {number} of {path} is damaged ({{}}); delete {path.parent} and run again"
        try:
            logged = _Logged.checked(parse_json(line), complaint)
        except ValueError as error:
            raise DataError(complaint.replace("{}", str(error))) from error
        if logged.loss is not None:
            stages.setdefault(logged.stage, []).append((logged.step, logged.loss))
    return [
        Curve(stage=stage, step=[s for s, _ in kept], loss=[float(f"{loss:.6g}") for _, loss in kept])
        for stage, points in sorted(stages.items())
        for kept in [_thinned(points)]
    ]


def _thinned(points: list[Any]) -> list[Any]:
    last = len(points) - 1
    if last < POINTS:
        return points
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]
