"""Calls of matchers and schedulers, and what the harness looks at after each: nothing else asks them.

What they return is what their budget says, what they were lent is as it was, and whatever else they did to the process
is undone (:mod:`ddbench.base.guard`). A flaw is a :class:`PluginError`, and nothing of it is stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddbench.base.guard import guarded
from ddbench.base.options import describe
from ddbench.data.dataset import RealData
from ddbench.data.untouched import Untouched
from ddbench.errors import PluginError
from ddbench.hookspecs import Matcher, Scheduler
from ddbench.problem.problem import Problem
from ddbench.problem.synthetic import Curriculum, SyntheticSet, Teacher

_WORD = re.compile(r"[a-z][a-z0-9 _-]{0,31}")  # of a label type
_METRIC = re.compile(r"[A-Za-z_][\w .:/()%-]{0,63}")
RESERVED = ("stage", "step")  # of a line of metrics


class Asked:
    """A matcher at work on one problem; calls are made inside the ``Seed.scope`` of their address."""

    def __init__(self, matcher: Matcher[Any], problem: Problem, judged_on: RealData) -> None:
        self._matcher = matcher
        self._problem = problem
        self._who = f"of matcher {matcher.name!r}"
        steps_of(matcher)
        self._step = f"step() {self._who}"
        self._images = (problem.ipc * problem.classes, *problem.real.shape)
        self._lent = Untouched(
            {"training": problem.real, "held-out": judged_on},
            _of_sets(problem.frozen),
            (problem, problem.starts, problem.network, *problem.frozen.sets),
        )

    def init(self) -> Any:
        with guarded(f"init() {self._who}", sown=True):
            state = self._matcher.init(self._problem)
        self._look(f"init() {self._who}", self._lent.changed())
        return state

    def step(self, state: Any, k: int) -> tuple[Any, dict[str, Any]]:
        with guarded(self._step, sown=True):
            made = self._matcher.step(self._problem, state, k)
        self._look(self._step, self._lent.changed())
        if flaw := step_flaw(made):
            raise PluginError(f"{self._step} {flaw}")
        return made

    def result(self, state: Any) -> SyntheticSet:
        """The set, which is the problem's: of its shapes, and balanced."""
        what = f"result() {self._who}"
        with guarded(what, sown=True):
            made = self._matcher.result(self._problem, state)
        self._look(what, self._lent.changed())
        if flaw := set_flaw(made, self._images, self._problem.classes):
            raise PluginError(f"{what} {flaw}")
        return made

    def look_at_content(self) -> None:
        """Read all that it was lent, to find what counters do not tell."""
        self._look(f"matcher {self._matcher.name!r}", self._lent.changed_content())

    def _look(self, what: str, changed: str | None) -> None:
        if changed:
            raise PluginError(f"{what} changed {changed}, which other runs share; clone what is to change")


def _of_sets(frozen: Curriculum) -> dict[str, Tensor]:
    found = {}
    for i, made in enumerate(frozen.sets):
        found |= {f"the images of frozen set {i}": made.images, f"the labels of frozen set {i}": made.labels}
    return found


def step_flaw(made: Any) -> str | None:
    """What is wrong with what a step returned, if anything."""
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict)):
        return "must return (state, metrics), metrics being a dictionary of numbers"
    for name, value in made[1].items():
        if name in RESERVED or not (isinstance(name, str) and _METRIC.fullmatch(name)):
            return f"reports a metric called {name!r:.80}; a name is a word, and neither 'stage' nor 'step'"
        number = value.numel() == 1 and not value.is_complex() if isinstance(value, Tensor) else _is_number(value)
        if not number:
            return f"reports a {name} of {value!r:.80}, which is not a number"
    return None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, str)


def set_flaw(made: Any, images: tuple[int, ...], classes: int) -> str | None:
    """What is wrong with a set that should have ``images`` (n, c, h, w), n / classes of each class in their order."""
    if not isinstance(made, SyntheticSet):
        return f"must return a ddbench.SyntheticSet, not {type(made).__name__}"
    for name, tensor, shape in (("images", made.images, images), ("labels", made.labels, (images[0], classes))):
        if tuple(tensor.shape) != shape:
            return f"must make {name} of shape {shape} (ipc of each class), got {tuple(tensor.shape)}"
        if tensor.dtype != torch.float32 or tensor.layout != torch.strided or tensor.is_meta:
            return f"must make dense float32 {name}, got {tensor.dtype} on {tensor.device}; use .float()"
    if made.lr is not None and (isinstance(made.lr, bool) or not isinstance(made.lr, (int, float))):
        return f"must give a number or None as lr, got {made.lr!r:.80}"
    sound = bool(made.images.isfinite().all() and made.labels.isfinite().all())  # others have diverged
    if sound and made.lr is not None and not (math.isfinite(made.lr) and made.lr > 0):
        return f"must give a positive number or None as lr, got {made.lr!r:.80}"
    if not (isinstance(made.label_type, str) and _WORD.fullmatch(made.label_type)):
        return f"must give a word as label_type, got {made.label_type!r:.80}"
    if made.teacher is not None and not isinstance(made.teacher, Teacher):
        return f"must give a ddbench.Teacher or None as teacher, got {made.teacher!r:.80}"
    return _label_flaw(made, classes) if made.labels.isfinite().all() else None  # others have diverged


def _label_flaw(made: SyntheticSet, classes: int) -> str | None:
    labels, each = made.labels, len(made.labels) // classes
    order = torch.arange(classes, device=labels.device).repeat_interleave(each)[:, None]
    hard = bool((labels.gather(1, order) == 1).all()) and int(labels.count_nonzero()) == len(labels)
    if made.label_type == "hard" and not hard:
        return "must order its hard labels by class, ipc of each; give soft ones another label_type than 'hard'"
    rows = labels.min() >= 0 and torch.allclose(labels.sum(1), labels.new_ones(len(labels)), atol=1e-4)
    if made.label_kind == "probability" and not rows:
        return "must have label rows that sum to 1; call others label_kind='logit' or 'real'"
    return None


def next_problem(scheduler: Scheduler, task: Problem, done: Curriculum) -> Problem | None:
    """The problem after the sets in ``done``, within the budget; None when all stages are done."""
    what = f"next() {_named(scheduler)}"
    lent = Untouched({"training": task.real}, _of_sets(done), (task, *done.sets), content=False)
    with guarded(what):
        problem = scheduler.next(task, done)
    if changed := lent.changed():
        raise PluginError(f"{what} changed {changed}, which other runs share; clone what is to change")
    if flaw := problem_flaw(problem, task, done, stages_of(scheduler)):
        raise PluginError(f"{what} {flaw}")
    return problem


def problem_flaw(problem: Any, task: Problem, done: Curriculum, stages: int) -> str | None:
    """What is wrong with a problem after ``done``, of a task that is to be solved in ``stages``."""
    left = stages - len(done)
    if problem is None:
        return None if left == 0 else f"must give {stages} problems, and gave {len(done)}"
    if left == 0 or not isinstance(problem, Problem):
        return f"must give None when there are {stages} sets" if left == 0 else "must return a ddbench.Problem or None"
    spent = sum(len(s) for s in done.sets) // task.classes
    most = task.ipc - spent - (left - 1)
    if type(problem.ipc) is not int or problem.ipc < 1 or problem.ipc > most or (left == 1 and problem.ipc != most):
        asked = f"asks for {problem.ipc!r:.20} images per class in stage {len(done)} of {stages}"
        return f"{asked}, where {spent} of {task.ipc} are spent and every later stage needs one; ddbench.share divides"
    if problem.frozen.sets != done.sets or problem.frozen.phases != done.phases:
        return "must pass on what is done: replace(task, ipc=..., frozen=done)"
    kept = {name: (getattr(problem, name), getattr(task, name)) for name in ("decoder", "seed", "augment", "classes")}
    kept["real.shape"] = problem.real.shape, task.real.shape
    kept["network"] = describe(problem.network.source), describe(task.network.source)
    if other := next((name for name, (one, two) in kept.items() if one != two), None):
        return f"changes {other} of the task, which is not its to change"
    if not _within(problem.real, task.real):
        return "gives other real data than some of the task's training images"
    return None


def _within(part: RealData, whole: RealData) -> bool:
    """Whether all images of a part are of the whole."""
    if part is whole:
        return True
    if part.pixels.store is not whole.pixels.store:
        return False
    rows = torch.arange(len(part)) if part.pixels.rows is None else part.pixels.rows
    return whole.pixels.rows is None or bool(torch.isin(rows, whole.pixels.rows).all())


def steps_of(matcher: Matcher[Any]) -> int:
    """How many steps it takes in each stage."""
    what = f"steps of matcher {matcher.name!r}"
    with guarded(what):
        steps = matcher.steps
    if type(steps) is not int or steps < 0:
        raise PluginError(f"{what} must be a whole number of at least 0, got {steps!r:.80}")
    return steps


def stages_of(scheduler: Scheduler) -> int:
    """The number of its stages."""
    with guarded(f"stages {_named(scheduler)}"):
        stages = scheduler.stages
    if type(stages) is not int or stages < 1:
        raise PluginError(f"stages {_named(scheduler)} must be a whole number of at least 1, got {stages!r:.80}")
    return stages


def phases_of(scheduler: Scheduler, n: int) -> tuple[tuple[int, ...], ...]:
    """Which of ``n`` sets a student sees, phase by phase."""
    what = f"phases({n}) {_named(scheduler)}"
    with guarded(what):
        phases = scheduler.phases(n)
    if flaw := phases_flaw(phases, n):
        raise PluginError(f"{what} {flaw}")
    return tuple(tuple(phase) for phase in phases)


def phases_flaw(phases: Any, n: int) -> str | None:
    """What is wrong with the phases of ``n`` sets."""
    plain = isinstance(phases, Sequence) and all(isinstance(p, Sequence) and p for p in phases)
    if not (plain and phases):
        return f"must be a tuple of tuples, none of them empty; got {phases!r:.200}"
    if not all(type(i) is int and 0 <= i < n and list(phase).count(i) == 1 for phase in phases for i in phase):
        return f"must name sets 0..{n - 1}, each at most once in a phase; got {phases!r:.200}"
    return (
        None
        if n - 1 in phases[-1]
        else f"must end with a phase that holds the newest set, {n - 1}; got {phases!r:.200}"
    )


def _named(scheduler: Scheduler) -> str:
    return f"of scheduler {scheduler.name!r}"
