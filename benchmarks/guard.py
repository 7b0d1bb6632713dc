"""What it costs to look after a matcher: microseconds of a step that does nothing, beside those of seeding it.

    python benchmarks/guard.py

The least of many repetitions, in seconds of this thread's CPU time, on the toy task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from timeit import repeat
from typing import Any

import torch

from ddbench import Seed
from ddbench.run.calls import Asked
from ddbench.testing import toy_task

CALLS, REPEATS = 300, 60


@dataclass(frozen=True)
class Idle:
    """A matcher whose step does nothing."""

    name = "idle"
    steps: int = 1

    def init(self, problem: Any) -> None: ...
    def result(self, problem: Any, state: Any) -> Any: ...

    def step(self, problem: Any, state: Any, k: int) -> tuple[Any, dict[str, float]]:
        return state, {"loss": 1.0, "lr": 0.1}


def microseconds(call: Callable[[], object]) -> float:
    return min(repeat(call, number=CALLS, repeat=REPEATS, timer=time.thread_time)) / CALLS * 1e6


def seeded() -> None:
    with Seed(0).scope():
        pass


def main() -> None:
    torch.set_num_threads(1)
    task = toy_task()
    asked, bare = Asked(Idle(), task, task.real), Idle()
    looked, alone = microseconds(lambda: asked.step(None, 0)), microseconds(lambda: bare.step(task, None, 0))
    print(f"a guarded step {looked:.1f} us, a bare one {alone:.1f}, seeding either {microseconds(seeded):.1f}")


if __name__ == "__main__":
    main()
