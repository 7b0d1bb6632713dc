"""What a run is shown beside: random images below it, and the whole training set above it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

from ddbench.base.options import label
from ddbench.data.dataset import Dataset
from ddbench.grade.evaluation import ceiling
from ddbench.plugins import soft_labels
from ddbench.problem.decode import Decoder
from ddbench.run import below
from ddbench.run.baseline import baseline
from ddbench.run.defaults import BASELINE
from ddbench.run.record import ResultRecord, WholeRecord
from ddbench.run.row import Row, deviation
from ddbench.run.run import Run, Settings
from ddbench.run.spec import RunSpec


def references(
    spec: RunSpec, dataset: Dataset, settings: Settings, *, with_random: bool, with_ceiling: bool
) -> list[Row]:
    """Rows beside a run's own: random real images with hard labels and, if the matcher's are soft, with soft ones.

    A run with a decoder is shown beside random images with and without it. The random runs are ordinary runs in
    the same folder, under the same protocol and selection. The last row is the ceiling: students trained on the
    whole training set.
    """
    found: list[Row] = []
    if with_random:
        for kind, decoder in product(label_kinds(spec), dict.fromkeys((Decoder(), spec.decoder))):
            run = Run(baseline(spec, kind, decoder), dataset, settings)
            run.execute()
            found += run.rows()
    if with_ceiling:
        found.append(_ceiling(spec, dataset, min(settings.students, 3)))
    return found


def against_random(folder: Path, rows: Sequence[Row], beside: Sequence[Row]) -> list[str]:
    """Record in a finished run's ``result.json`` how it compares with the random images beside it.

    ``rows`` are its evaluations. Returns the sentence for people, if there is something to say.
    """
    row = below.own(rows)
    if row is None or row.matcher == BASELINE:
        return []
    found = below.compare(row, beside)
    flaw = below.weak_experts(ResultRecord.from_file(folder / "result.json"), row.classes, found)
    below.store(folder, found, flaw)
    said = [f"warning: {row.run}: {flaw}"] if flaw else []
    return [*said, text] if (text := below.sentence(row, found)) else said


def under_whole(folder: Path, beside: Sequence[Row]) -> None:
    """Record in a finished run's ``result.json`` what students of the whole training set reach, if it is there."""
    for row in beside:
        if row.run is None and row.accuracy_mean is not None:
            whole = WholeRecord(accuracy_mean=row.accuracy_mean, accuracy_std=row.accuracy_std, n=row.n)
            below.store(folder, whole=whole)


def label_kinds(spec: RunSpec) -> list[str]:
    """The labels of the random images beside a run; where batches are labelled online, hard ones have no part."""
    if spec.protocol.online:
        return ["teacher"]
    return ["hard", "teacher"] if soft_labels(spec.matcher) else ["hard"]


def whole_set(spec: RunSpec, dataset: Dataset, students: int) -> dict[str, Any]:
    """:func:`ddbench.grade.evaluation.ceiling` for the task of a run."""
    least = spec.protocol.budget(spec.ipc * dataset.train.classes) or 0  # few images in many passes make few steps
    return ceiling(dataset, spec.network, spec.protocol, students, spec.device, spec.threads, least)


def _ceiling(spec: RunSpec, dataset: Dataset, students: int) -> Row:
    protocol, top = spec.protocol, whole_set(spec, dataset, students)
    scores = top["accuracies"]
    return Row(
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        matcher=f"all {top['images']} training images",
        network=label(spec.network),
        protocol=protocol.name,
        protocol_digest=protocol.digest,
        selection="validation",
        label_type="hard",
        accuracy_mean=mean(scores),
        accuracy_std=deviation(scores),
        n=len(scores),
        status="ok",
        image_bytes=top["images"] * prod(dataset.train.shape),
    )
