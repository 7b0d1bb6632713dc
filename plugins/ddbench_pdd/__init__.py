"""PDD: progressive dataset distillation, a scheduler for any matcher.

Chen, Yang, Wang & Mirzasoleiman, "Data Distillation Can Be Like Vodka: Distilling More Times For Better
Quality", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from ddbench import Curriculum, Problem, UsageError, hookimpl, share


@dataclass(frozen=True)
class Progressive:
    """Equal stages: each sees the earlier sets frozen, and starts from the students they taught.

    A student learns S1, then S1 and S2, and so on (section 4 of the paper; methods of MTT and IDC alike).
    """

    name = "pdd"
    stages: Annotated[int, Ge(1), "sets distilled one after another, P"] = 5

    def next(self, task: Problem, done: Curriculum) -> Problem | None:
        if len(done) == self.stages:
            return None
        if task.ipc < self.stages:
            raise UsageError(
                f"pdd divides the budget of {task.ipc} images per class among {self.stages} stages; ask for --ipc "
                f"{self.stages} or more, or for -o scheduler.stages={task.ipc} or fewer"
            )
        ipc = share(task.ipc, self.stages, len(done))
        return replace(task, ipc=ipc, frozen=done, starts=replace(task.starts, taught=done))

    def phases(self, n: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(range(stage + 1)) for stage in range(n))


@hookimpl
def register_schedulers(register) -> None:
    register(Progressive)
