"""Whether a set is that of its budget: how many images, of which shape, how many of each class, what labels cost.

A run is asked for this before anything is stored; files may come from anywhere, so it is asked again of the file that
is submitted (reading it checks types, shapes, the order of classes, and that hard labels are), and of the numbers of an
entry whenever tables are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

from ddbench.errors import UsageError
from ddbench.grade.distilled import Distilled
from ddbench.run.record import RunRecord

FLOAT = 4  # bytes


def check_stored(run: RunRecord, folder: Path) -> None:
    """Refuse a run whose set, as it is stored, is damaged, not that of its budget, or not what its result says."""
    check_set(run, Distilled.load(folder / "distilled.safetensors"))


def check_set(run: RunRecord, distilled: Distilled) -> None:
    """The same of a set that was read."""
    sets, classes = distilled.curriculum.sets, len(distilled.classes)
    check_recorded(run, classes, distilled.shape)
    stored = {
        "images": sum(map(len, sets)),
        "image_bytes": sum(s.image_bytes for s in sets),
        "label_bytes": sum(s.label_bytes for s in sets),
    }
    for name, value in stored.items():
        if (said := getattr(run.result, name)) != value:
            what = name.replace("_", " ")
            raise UsageError(f"the set of {run.run} has {value:,} {what}, but its result says {said}; run it again")


def check_recorded(run: RunRecord, classes: int, shape: Sequence[int] | None) -> None:
    """Refuse a finished run whose recorded images or bytes are not those of its budget; ``shape`` may be unknown."""
    result, ipc = run.result, run.spec.ipc
    if result.status != "ok":
        return
    due = ipc * classes
    if result.images != due:
        raise UsageError(
            f"{run.run} has {_listed(result.images)} images, but {ipc} for each of {classes} classes are {due:,}; "
            "run it again"
        )
    bytes_each = (result.image_bytes or 0) / due
    if bytes_each != (FLOAT * prod(shape) if shape else bytes_each) or bytes_each % FLOAT or not bytes_each:
        raise UsageError(f"{run.run} has {_listed(result.image_bytes)} bytes for {due:,} images; run it again")
    least = due * (1 if classes <= 256 else 2)
    hard, labels = result.label_type == "hard", result.label_bytes or 0
    if (labels != least) if hard else (labels < due * classes):
        raise UsageError(
            f"{run.run} has {_listed(result.label_bytes)} bytes for {result.label_type} labels of {due:,} images of "
            f"{classes} classes, which is not what they cost; run it again"
        )


def classes_of(run: RunRecord) -> int:
    """How many classes the images of a finished run are for. Raises UsageError where no number of them fits."""
    images, ipc = run.result.images or 0, run.spec.ipc
    if not images or images % ipc:
        raise UsageError(f"{run.run} has {images:,} images, which are not {ipc} for each class; run it again")
    return images // ipc


def usual(found: list[int]) -> int:
    """The number of classes that most runs of a board are for; of equally frequent ones the least."""
    return min(Counter(found).items(), key=lambda pair: (-pair[1], pair[0]))[0]


def _listed(value: float | None) -> str:
    return "no" if value is None else f"{value:,}"
