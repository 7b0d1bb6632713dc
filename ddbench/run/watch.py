"""What a run sees of itself before it is over: how good its experts are, and whether anything is matched at all.

Nothing is stopped by it. What is seen is said once, and kept in ``result.json`` of the stage and of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench.base.cache import parse_json
from ddbench.base.opening import reading
from ddbench.base.options import label
from ddbench.data.dataset import RealData
from ddbench.errors import DataError
from ddbench.problem.experts import Experts
from ddbench.problem.problem import Needs, Problem
from ddbench.train.fit import predict
from ddbench.train.network import Network

PART = 10  # a tenth of the iterations
LEAST = 50  # and no fewer, so long as that is half of them: a loss of few iterations says little
IMAGES, SNAPSHOTS = 1000, 12  # at most, of validation data and of an expert: seconds on a CPU
WAYS = {  # out of experts or teachers that have learned next to nothing
    "expert": "-o matcher.max_start, -o experts.epoch_steps) or at another -o experts.lr",
    "teacher": "-o matcher.teacher_epochs) or at another -o matcher.teacher_lr",
}
CHANCES = 1.5  # experts below this many times chance have learned next to nothing


def look_after(steps: int) -> int:
    """After which of ``steps`` iterations a run looks at itself."""
    return max(1, steps // PART, min(LEAST, steps // 2))


@dataclass(frozen=True)
class ExpertsSeen:
    """The accuracies (fractions) of the first expert's snapshots, by epoch, on ``images`` validation images."""

    accuracies: dict[int, float]
    images: int
    chance: float
    what: str = "expert"  # or a teacher
    who: str = ""  # which one, where there are several architectures

    @property
    def best(self) -> float:
        return max(self.accuracies.values())

    @property
    def sentence(self) -> str:
        """``the first expert, on 1,000 validation images: 10.2 % at its start, 79.0 % after epoch 1, ...``."""
        told = [f"{100 * a:.1f} % {f'after epoch {e}' if e else 'at its start'}" for e, a in self.accuracies.items()]
        return f"the first {self.what}{self.who}, on {self.images:,} validation images: {', '.join(told)}"

    @property
    def flaw(self) -> str | None:
        """Why a set that matches these experts will teach nothing, if it is so."""
        if self.best >= CHANCES * self.chance:
            return None
        return (
            f"its {self.what}s{self.who} classify {100 * self.best:.1f} % of validation images right at best, where "
            f"chance is {100 * self.chance:.1f} %: a set teaches no more than they know; train them for longer "
            f"({WAYS[self.what]}"
        )

    def record(self) -> dict[str, Any]:
        return {
            "epochs": list(self.accuracies),
            "accuracies": list(self.accuracies.values()),
            "images": self.images,
        }


def seen_of_experts(problem: Problem, wanted: Needs, validation: RealData) -> list[ExpertsSeen]:
    """The first expert's snapshots that a matcher uses on validation data, or its first teacher of each architecture.

    The first of them is what the record of the stage keeps.
    """
    if not len(validation):
        return []
    if wanted.experts and wanted.snapshots:
        found = [_seen(problem.experts, sorted(wanted.snapshots), validation, "expert")]
    else:
        found = [_seen(made, [made.recipe.epochs or 0], validation, "teacher") for made in problem.teachers]
    if len(found) > 1:
        names = [label(made.starts.network.source) for made in problem.teachers]
        found = [seen and replace(seen, who=f" ({name})") for seen, name in zip(found, names, strict=True)]
    return [seen for seen in found if seen is not None]


def _seen(made: Experts, epochs: list[int], validation: RealData, what: str) -> ExpertsSeen | None:
    if len(epochs) > SNAPSHOTS:
        epochs = [epochs[round(i * (len(epochs) - 1) / (SNAPSHOTS - 1))] for i in range(SNAPSHOTS)]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(validation), generator=generator)[:IMAGES]
    shown = validation.subset(rows.sort().values)
    try:
        found = {epoch: _accuracy(made.starts.network, made.snapshot(0, epoch), shown) for epoch in epochs}
    except DataError:  # imported trajectories may lack some
        return None
    return ExpertsSeen(found, len(rows), 1 / validation.classes, what)


@torch.no_grad()
def _accuracy(network: Network, vector: torch.Tensor, shown: RealData) -> float:
    logits, targets = predict(network, vector, shown)
    return float((logits.argmax(1) == targets).float().mean())


def rows_of(log: Path, stage: int, end: int) -> list[dict[str, float]]:
    """The metrics of a stage's iterations so far, from the first ``end`` bytes of a run's log, less damaged lines."""
    with reading(log) as file:
        found = [_numbers(line) for line in file.read(end).splitlines()]
    return [row for row in found if row.get("stage") == stage]


def _numbers(line: bytes) -> dict[str, float]:
    """What a line of the log holds; nothing if that is not numbers by their names."""
    try:
        row = parse_json(line.decode())
    except ValueError:
        return {}
    plain = isinstance(row, dict) and all(isinstance(value, (int, float)) for value in row.values())
    return row if plain else {}
