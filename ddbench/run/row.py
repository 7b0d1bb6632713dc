"""One evaluation of a run as a row of a table: what was distilled and how, what students reached, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from statistics import pstdev
from typing import Any

from ddbench.run.defaults import ONE_STAGE

DAMAGED = "damaged"  # the status of a run whose records cannot be read
Cells = dict[str, Any]  # a row as people name its columns, in the order of files for programs


@dataclass(frozen=True)
class Row:
    """Fractions, seconds and bytes; None where it is not known. Up to ``error``, programs find each column in each row.

    ``setting`` is the digest of everything that decides a set but its seed and the machine; None for rows that are of
    no run. ``distil_*`` say what the set was made from, which its evaluations may differ from. ``metrics`` are the
    means of all other metrics over students, by names such as ``ece_mean``.
    """

    dataset: str | None = None
    matcher: str | None = None
    scheduler: str | None = None
    network: str | None = None
    ipc: int | None = None
    seed: int | None = None
    protocol: str | None = None
    steps: int | None = None
    selection: str | None = None
    label_type: str | None = None
    accuracy_mean: float | None = None
    accuracy_std: float | None = None
    n: int = 0
    status: str = "incomplete"
    distil_seconds: float | None = None
    selection_seconds: float | None = None
    expert_seconds: float | None = None
    peak_bytes: float | None = None
    image_bytes: float | None = None
    label_bytes: float | None = None
    run: str | None = None
    dataset_digest: str | None = None
    device: str | None = None
    error: str | None = None
    protocol_digest: str | None = None
    options: dict[str, Any] | None = None  # but the protocol's: ``group.name`` to value
    setting: str | None = None
    distil_digest: str | None = None
    distil_network: str | None = None
    distil_protocol: str | None = None
    distil_rules: str | None = None
    architecture: str | None = None
    versions: str | None = None
    evaluation_seed: int | None = None
    student_lr: str | None = None
    together: bool | None = None
    evaluation: str | None = None
    data_source: str | None = None  # the dataset plugin that loaded the data, whatever they are called
    classes: int | None = None
    train_images: int | None = None  # that were distilled: without those held out to select on
    sources: dict[str, str] | None = None  # sha256 of the code that the run was made by, by package
    selected_accuracy: float | None = None  # by which the last stage's checkpoint was chosen
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def cells(self) -> Cells:
        """The columns by name; of those behind ``error`` what is known, and for a run all that it was made from."""
        held = {name: getattr(self, name) for name in _NAMES}
        kept = COLUMNS if self.setting is None else (*COLUMNS, *_ORIGIN)
        return {n: v for n, v in held.items() if n in kept or v is not None} | self.metrics

    @property
    def finished(self) -> bool:
        """Whether it counts: a run that is not done, or diverged, has no accuracy."""
        return self.status == "ok" and self.accuracy_mean is not None

    @property
    def place(self) -> list[Any]:
        """Data, budget, network and rules: what accuracies must have in common to be compared."""
        return [self.dataset, self.dataset_digest, self.ipc, self.network, self.protocol_digest]

    @property
    def weight(self) -> tuple[bool, bool, int, float]:
        """Of several evaluations of a run the heaviest counts, by a rule that no result can influence.

        It is the one with the run's own seed and most students.
        """
        seed = self.evaluation_seed
        return (self.finished, seed in (None, self.seed), self.n, -float(seed or 0))

    @property
    def total_bytes(self) -> float | None:
        """What is stored of a set, with its labels."""
        return None if self.image_bytes is None else self.image_bytes + (self.label_bytes or 0)


def method_name(matcher: str | None, scheduler: str | None, label_type: str | None) -> str:
    """What tables and boards call a method: ``tesla pdd (teacher labels)``; one set and hard labels are not said."""
    rule = f" {scheduler}" if scheduler not in (None, ONE_STAGE) else ""
    return f"{matcher}{rule}" + (f" ({label_type} labels)" if label_type not in (None, "hard") else "")


_NAMES = tuple(f.name for f in fields(Row) if f.name != "metrics")
COLUMNS = _NAMES[: _NAMES.index("error") + 1]
_ORIGIN = _NAMES[_NAMES.index("options") : _NAMES.index("versions") + 1]


def deviation(scores: Sequence[float]) -> float | None:
    """Population standard deviation over students, as the field reports it; one student has none, rather than zero."""
    return pstdev(scores) if len(scores) > 1 else None
