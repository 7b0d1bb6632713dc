"""What schedulers in stages share: how many there are, and how a budget of images per class is divided among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from ddbench.errors import UsageError
from ddbench.problem.problem import Problem
from ddbench.problem.starts import Starts
from ddbench.problem.synthetic import Curriculum, share


@dataclass(frozen=True)
class Staged:
    """A budget divided among ``stages``, each of which knows what is done; a subclass says what else it is asked."""

    name = ""
    stages: Annotated[int, Ge(1), "sets distilled one after another"] = 2
    sizes: Annotated[tuple[int, ...], "images per class of each stage, as 17,17,16; empty: as even as possible"] = ()

    def __post_init__(self) -> None:
        sizes = ", ".join(map(str, self.sizes))
        if self.sizes and len(self.sizes) != self.stages:
            raise UsageError(
                f"{self.name} has {self.stages} stages, but scheduler.sizes names {len(self.sizes)}: {sizes}; "
                f"set -o scheduler.stages={len(self.sizes)} as well, or name {self.stages} sizes"
            )
        if any(size < 1 for size in self.sizes):
            raise UsageError(f"every stage of {self.name} needs at least one image per class, got {sizes}")

    def next(self, task: Problem, done: Curriculum) -> Problem | None:
        if len(done) == self.stages:
            return None
        return self.stage(replace(task, ipc=self._ipc(task.ipc, len(done)), frozen=done), done)

    def stage(self, problem: Problem, done: Curriculum) -> Problem:
        """The problem of a stage, of which budget and frozen sets are settled."""
        raise NotImplementedError

    def _ipc(self, budget: int, index: int) -> int:
        """Images per class of stage ``index``."""
        if self.sizes:
            if sum(self.sizes) != budget:
                raise UsageError(
                    f"scheduler.sizes add up to {sum(self.sizes)} images per class, but the budget is {budget}; "
                    f"ask for --ipc {sum(self.sizes)}, or for other sizes"
                )
            return self.sizes[index]
        if budget < self.stages:
            raise UsageError(
                f"{self.name} divides the budget of {budget} images per class among {self.stages} stages; ask for "
                f"--ipc {self.stages} or more, or for -o scheduler.stages={budget} or fewer"
            )
        return share(budget, self.stages, index)


def growing(n: int) -> tuple[tuple[int, ...], ...]:
    """Phases in which students learn S1, then S1 and S2, and so on."""
    return tuple(tuple(range(stage + 1)) for stage in range(n))


Networks = Annotated[int | None, Ge(1), "taught start networks that later stages draw from; none: one for each draw"]


def taught(starts: Starts, done: Curriculum, *, chain: bool, networks: int | None = None) -> Starts:
    """Start networks that have learned what is done: the same initialisations in every stage, or others each time.

    A matcher that draws networks draws from ``networks`` of them, or without that number another one each time, as it
    does in the first stage and as released code does. Experts have as many starts as there are experts.
    """
    seed = starts.seed if chain or not len(done) else starts.seed / "fresh" / len(done)
    return replace(starts, taught=done, seed=seed, count=networks)
