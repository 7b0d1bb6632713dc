"""The toy task as a method meets it, prepared and staged; and methods at work, seeded as the harness seeds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny import TRAJECTORY, spec
from torch import Tensor

from ddbench import Curriculum, Examples, Problem, RealData, SyntheticSet
from ddbench.plugins import registry
from ddbench.run.prepare import prepared
from ddbench.run.run import build_task
from ddbench.run.spec import RunSpec
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.unroll import Gradient, Task

TINY = {name.removeprefix("matcher."): value for name, value in TRAJECTORY.items()}  # fields of a trajectory matcher


# -- problems ------------------------------------------------------------------------------------------------


def task_of(made: RunSpec) -> Problem:
    """The whole task of a run, before any stage."""
    return build_task(made, made.dataset.load())


def toy(ipc: int, **more: Any) -> Problem:
    """The toy task with a network of width 4, unless ``more`` says otherwise."""
    chosen: dict[str, Any] = {"network__width": 4} | more
    return task_of(spec("random", ipc=ipc, **chosen))


def toy_with_experts(**more: Any) -> Problem:
    """Toy images, two per class, with two experts that are trained for two epochs."""
    made = spec("tesla", ipc=2, **more)
    task = task_of(made)
    return prepared(task, made.matcher.needs(task))


def with_experts(problem: Problem, experts: Any, **changes: Any) -> Problem:
    """The problem with other experts than those on disk."""
    made = replace(problem, **changes)
    object.__setattr__(made, "experts", experts)
    return made


def second_stage(problem: Problem) -> Problem:
    """The problem after a stage of as many real images per class, stored under the same decoder."""
    earlier = replace(problem, seed=problem.seed / "earlier").sample()
    done = SyntheticSet(earlier.images, earlier.labels, decoder=problem.decoder)
    return replace(problem, frozen=Curriculum((done,), ((0,),)))


def everything(real: RealData) -> Examples:
    """All real examples in one batch."""
    return real[torch.arange(len(real))]


def pixels(problem: Problem, images: Tensor) -> Tensor:
    """Images as pixels in 0..1 without clamping: what an image outside that range shows, too."""
    p = problem.real.preprocessing
    assert p.std is not None
    return images * p.std.view(1, -1, 1, 1) + p.mean.view(1, -1, 1, 1)


def rows_of(images: Tensor, real: RealData) -> list[int]:
    """Which real image each of ``images`` is, to the last bit."""
    whole = [image.numpy().tobytes() for image in everything(real).images]
    return [whole.index(image.numpy().tobytes()) for image in images]


# -- methods at work -----------------------------------------------------------------------------------------


def begin(method: Any, problem: Problem) -> Any:
    """The first state."""
    with (problem.seed / "init").scope():
        return method.init(problem)


def step_along(method: Any, problem: Problem, state: Any, k: int, gradient: Callable[[Task], Gradient]) -> Any:
    """A step of tesla along a gradient that is not its own."""
    with patch("ddbench_tesla.tesla.reverse", lambda *task, **_: gradient(Task(*task))):
        return method.step(problem, state, k)


def play(method: Any, problem: Problem, steps: int = 3) -> tuple[Any, list[dict[str, float]]]:
    """Some iterations; the last state, and the metrics."""
    state, trail = begin(method, problem), []
    for k in range(steps):
        with (problem.seed / "step" / k).scope():
            state, numbers = method.step(problem, state, k)
        trail.append({name: float(value) for name, value in numbers.items()})
    return state, trail


def solve(method: Any, problem: Problem, steps: int | None = None) -> SyntheticSet:
    """What a method makes of a problem, with the experts that it needs, and with its decoder filled in."""
    problem = prepared(problem, method.needs(problem))
    state, _ = play(method, problem, method.steps if steps is None else steps)
    return replace(method.result(problem, state), decoder=problem.decoder)


def solve_in_stages(method: Any, whole: Problem, scheduler: str, count: int) -> list[SyntheticSet]:
    """What a method makes of each stage that a scheduler divides a problem into."""
    plan, done = registry().get("scheduler", scheduler).cls(stages=count), Curriculum()
    while (problem := plan.next(whole, done)) is not None:
        done = Curriculum((*done.sets, solve(method, problem)), plan.phases(len(done) + 1))
    return list(done.sets)


def stage_problems(plan: Any, task: Problem) -> list[Problem]:
    """The problems of all stages of a scheduler, each solved with the problem's own sample."""
    found, done = [], Curriculum()
    while (problem := plan.next(task, done)) is not None:
        found.append(problem)
        sample = problem.sample()
        sets = (*done.sets, SyntheticSet(sample.images, sample.labels, lr=0.01 * len(found)))
        done = Curriculum(sets, plan.phases(len(sets)))
    return found


def assert_frozen(method: Any) -> None:
    """A method is its hyperparameters, which cannot be changed."""
    with pytest.raises(FrozenInstanceError):
        method.steps = 1
    assert method == type(method)()
    assert hash(method) == hash(type(method)())


def gradient_of_ones(state: PixelState, images: float = 1.0, lr: float = 0.0) -> Gradient:
    """A made-up gradient: ``images`` in every pixel, one in every label."""
    ones = torch.ones_like
    rate = torch.tensor(lr, dtype=torch.float64)
    return Gradient(torch.tensor(1.0), ones(state.images) * images, ones(state.labels), rate, torch.zeros(1))
