"""A run as its folder records it, checked while it is read. Loads neither torch nor plugins.

One model for each file: ``spec.json``, ``dataset.json``, ``result.json``, ``evaluations/*.json``. What an older version
did not write yet has a default here; what a newer one adds is kept as it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from pydantic import Field

from ddbench.base.cache import digest
from ddbench.base.schema import Count, Digest, Fraction, Held, Name, Number, Seed, Text, Whole
from ddbench.run.row import Row, deviation

PLACES = ("root", "path")  # options that say where data lie, not what they are
Device = Annotated[str, Field(pattern=r"^[a-z]+(:[0-9]+)?$")]


class Described(Held):
    """A plugin by its name and its options."""

    name: Name
    options: dict[Text, Any] = Field(default={})

    @property
    def content(self) -> dict[str, Any]:
        """The options but those that say where data lie."""
        return {name: value for name, value in self.options.items() if name not in PLACES}


class ProtocolRecord(Held):
    """The rules of a run; its options stand beside the name."""

    name: Name
    selects: Name = "validation"


class SpecRecord(Held):
    """``spec.json``."""

    dataset: Described
    matcher: Described
    scheduler: Described
    network: Described
    ipc: Count
    seed: Seed
    protocol: ProtocolRecord
    protocol_digest: Digest | None = None
    experts: dict[Text, Any] = Field(default={})
    decoder: dict[Text, Any] = Field(default={})
    device: Device | None = None
    threads: Count | None = None
    versions: dict[Text, Text] = Field(default={})
    declared: dict[Text, Text] = Field(default={})  # the versions that the plugins declare of what they compute

    @property
    def rules(self) -> str:
        """The digest of the protocol; of specs that do not record it, of all its options."""
        return self.protocol_digest or digest(self.protocol.json_value())

    @property
    def declared_labels(self) -> str | None:
        """The kind of labels that the matcher was asked for."""
        labels = self.matcher.options.get("labels")
        return labels if isinstance(labels, str) else None

    @property
    def setting(self) -> str:
        """The digest of everything that decides a set but its seed and the machine."""
        here = {"seed": None, "device": None, "threads": None, "declared": None}
        data = {"name": self.dataset.name, "options": self.dataset.content}
        packages = {name: text.rpartition(" ")[0] or text for name, text in self.versions.items()}
        versions = {name: [package, self.declared.get(name, "1")] for name, package in packages.items()}
        return digest(self.json_value() | here | {"dataset": data, "versions": versions})[:12]

    @property
    def options(self) -> dict[str, Any]:
        """The options of a run but its protocol's, ``group.name`` to value; not where the data lie."""
        groups = {
            "dataset": self.dataset.content,
            "matcher": self.matcher.options,
            "scheduler": self.scheduler.options,
            "experts": self.experts,
            "decoder": self.decoder,
        }
        return {f"{group}.{name}": value for group, given in groups.items() for name, value in given.items()}


class DataRecord(Held):
    """``dataset.json``: what a run was started on."""

    name: Text
    digest: Digest | None = None


class MachineRecord(Held):
    """Where a run was carried out."""

    device: Text | None = None
    torch: Text | None = None
    ddbench: Text | None = None


class CheckRecord(Held):
    """A checkpoint of a stage, as selection saw it: the student lrs that were tried, and the best of them."""

    step: Whole
    lr: Number | None = None
    accuracy: Fraction | None = None
    tried: dict[Text, Fraction] = Field(default={})


class ExpertsRecord(Held):
    """What the first expert of a stage reaches on ``images`` validation images, by the epochs of its snapshots."""

    epochs: list[Whole]
    accuracies: list[Fraction]
    images: Whole


class StageRecord(Held):
    """How a stage came about."""

    steps: Whole = 0
    checks: list[CheckRecord] = Field(default=[])
    selected: CheckRecord | None = None
    experts: ExpertsRecord | None = None
    warnings: list[Text] = Field(default=[])
    ranks: list[Whole] = Field(default=[])  # how many worked at it; none for one alone
    pictures: dict[Text, Digest] = Field(default={})  # sha256 of what its images looked like, by iteration


class RandomRecord(Held):
    """How a run compares with one kind of random images of its budget; ``below`` says what ``above`` is."""

    run: Text | None = None
    label_type: Text | None = None
    decoder_factor: Whole = 1
    accuracy_mean: Fraction
    accuracy_std: Number | None = None
    n: Whole = 0
    difference: Number  # of the run's mean to theirs
    low: Number | None = None  # the ends of its 95 % interval; none for one student
    high: Number | None = None
    above: bool | None = None


class WholeRecord(Held):
    """Students of the whole training set, which a run was shown below."""

    accuracy_mean: Fraction
    accuracy_std: Number | None = None
    n: Count


class ResultRecord(Held):
    """``result.json``: how a run ended, what it made and what that cost."""

    status: Name
    error: Text | None = None
    dataset: DataRecord | None = None
    network: Text | None = None
    label_type: Text | None = None
    selection: Name | None = None
    steps: Whole | None = None
    images: Whole | None = None
    train_images: Whole | None = None
    distil_seconds: Number | None = None
    selection_seconds: Number | None = None
    expert_seconds: Number | None = None
    peak_bytes: Number | None = None
    image_bytes: Number | None = None
    label_bytes: Number | None = None
    machine: MachineRecord = MachineRecord()
    finished: Text | None = None
    stages: list[StageRecord] = Field(default=[])
    warnings: list[Text] = Field(default=[])  # what the run saw of itself, of all its stages
    sha256: dict[Name, Digest] = Field(default={})  # of the files of its folder
    sources: dict[Text, Digest] | None = None  # sha256 of the source of each plugin that it used
    random: list[RandomRecord] = Field(default=[])  # each kind that it was graded beside
    whole: WholeRecord | None = None  # the ceiling, where it was asked for


class StudentRecord(Held):
    """The numbers of one student: its accuracy, and every other metric by its name."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)  # type: ignore[reportIncompatibleVariableOverride]
    accuracy: Fraction
    diverged: Number | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """All but the accuracy."""
        return self.model_extra or {}


class EvaluationRecord(Held):
    """``evaluations/<key>.json``: students of one set on one network, under one protocol."""

    complete: bool
    students: list[StudentRecord]
    network: Text
    protocol: Name
    dataset: Text
    dataset_digest: Digest
    n: Whole = 0
    key: Name | None = None
    seed: Seed | None = None
    protocol_digest: Digest | None = None
    selection: Name | None = None
    steps: Whole | None = None
    label_bytes: Number | None = None
    lrs: list[Number] | None = None  # in use, one for each set
    student_lr: Text | None = None  # the one that selection chose; ``own`` for the sets' own
    together: bool = False
    sources: dict[Text, Digest] = Field(default={})  # sha256 of the third-party source that students depend on
    metric_sources: dict[Text, dict[Text, Digest]] = Field(default={})  # and of metrics, by metric

    @property
    def scores(self) -> list[float]:
        """The accuracy of each student."""
        return [student.accuracy for student in self.students]


class ControlRecord(Held):
    """One cell of the matrix of ``controls.json``."""

    images: Text
    labels: Text
    augmentation: Text
    accuracy_mean: Fraction
    accuracy_std: Number | None = None
    n: Whole = 0
    student_lr: Text | None = None
    label_bytes: Number | None = None
    difficulty: Number | None = None


class ControlsRecord(Held):
    """``controls.json``: what images, labels and augmentation contribute, and the scores that follow."""

    matrix: list[ControlRecord]
    scores: dict[Text, Number]
    formulas: dict[Text, Text] = Field(default={})
    source: Text = ""


class RunRecord(Held):
    """A run: what was asked for, what came out, and how students did on it."""

    run: Text  # the name of its folder
    spec: SpecRecord
    result: ResultRecord = ResultRecord(status="incomplete")
    evaluations: list[EvaluationRecord] = Field(default=[])
    started_on: DataRecord | None = None  # so that a run that diverged stands beside the others

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The run in a folder. Raises DataError that names the file at fault."""
        optional = {"result": (ResultRecord, "result.json"), "started_on": (DataRecord, "dataset.json")}
        there = {
            name: model.from_file(folder / file) for name, (model, file) in optional.items() if (folder / file).exists()
        }
        graded = [EvaluationRecord.from_file(path) for path in sorted((folder / "evaluations").glob("*.json"))]
        spec = SpecRecord.from_file(folder / "spec.json")
        return cls(run=plain_name(folder), spec=spec, evaluations=graded, **there)

    def rows(self) -> list[Row]:
        """One row per evaluation; a run without one is a row too, with its status."""
        base = self._row()
        return [_graded(base, evaluation) for evaluation in self.evaluations if evaluation.students] or [base]

    @property
    def made_in(self) -> list[StageRecord]:
        """The stages of the run."""
        return self.result.stages

    @property
    def _selected(self) -> CheckRecord:
        """The checkpoint of the last stage, as selection saw it."""
        last = self.made_in[-1].selected if self.made_in else None
        return last or CheckRecord(step=0)

    def _row(self) -> Row:
        spec, result = self.spec, self.result
        network = result.network or spec.network.name
        known = (result.dataset and result.dataset.digest) or (self.started_on and self.started_on.digest)
        return Row(
            dataset=result.dataset.name if result.dataset else spec.dataset.name,
            dataset_digest=known, matcher=spec.matcher.name, scheduler=spec.scheduler.name, network=network,
            ipc=spec.ipc, seed=spec.seed, protocol=spec.protocol.name, protocol_digest=spec.rules,
            steps=result.steps, selection=result.selection, status=result.status, error=result.error,
            label_type=result.label_type or spec.declared_labels,
            distil_seconds=result.distil_seconds, selection_seconds=result.selection_seconds,
            expert_seconds=result.expert_seconds, peak_bytes=result.peak_bytes, image_bytes=result.image_bytes,
            label_bytes=result.label_bytes, run=self.run, device=result.machine.device, options=spec.options,
            setting=spec.setting, distil_digest=known, distil_network=network, distil_protocol=spec.protocol.name,
            distil_rules=spec.rules, architecture=digest(spec.network.json_value()),
            versions=", ".join(sorted(set(spec.versions.values()))),
            data_source=spec.dataset.name, train_images=result.train_images, sources=result.sources,
            classes=result.images // spec.ipc if result.images else None,
            selected_accuracy=self._selected.accuracy,
        )  # fmt: skip


def plain_name(folder: Path) -> str:
    """A folder's name as text that can be printed: names of files are bytes."""
    return folder.name.encode(errors="replace").decode()


def _graded(run: Row, evaluation: EvaluationRecord) -> Row:
    """The row of a run with what its students got and reached: their steps, and the bytes of labels or of a teacher."""
    students, scores = evaluation.students, evaluation.scores
    lost = sum(student.diverged is not None for student in students)
    ended = {"status": "diverged", "error": f"{lost} of {len(students)} students diverged"} if lost else {}
    if not evaluation.complete and not lost:
        ended = {"status": "evaluating"}
    same_rules = evaluation.protocol == run.protocol  # of an evaluation that does not record their digest
    names = sorted({name for student in students for name in student.metrics})
    lrs = None if evaluation.lrs is None else ", ".join(dict.fromkeys(f"{lr:.4g}" for lr in evaluation.lrs))
    return replace(
        run,
        **ended,
        network=evaluation.network,
        dataset=evaluation.dataset,
        dataset_digest=evaluation.dataset_digest,
        protocol=evaluation.protocol,
        protocol_digest=evaluation.protocol_digest or (run.protocol_digest if same_rules else evaluation.protocol),
        selection=evaluation.selection or run.selection,
        steps=run.steps if evaluation.steps is None else evaluation.steps,
        label_bytes=run.label_bytes if evaluation.label_bytes is None else evaluation.label_bytes,
        evaluation_seed=evaluation.seed,
        evaluation=evaluation.key,
        student_lr=lrs,
        together=evaluation.together or None,
        accuracy_mean=mean(scores),
        accuracy_std=deviation(scores),
        n=len(scores),
        metrics={f"{name}_mean": mean(s.metrics[name] for s in students if name in s.metrics) for name in names},
    )
