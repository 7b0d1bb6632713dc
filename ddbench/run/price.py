"""How long a run will take, before it starts: its work counted, and this machine's speed.

Work is counted in passes: images that go forwards and backwards through the network. What a pass takes here comes
from earlier runs on this machine (``speed.json`` in the cache), or else from a few passes that are timed now.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import grad

from ddbench.base.cache import digest, home, read_json, write_json
from ddbench.base.machine import keep_freed_memory
from ddbench.base.options import describe
from ddbench.base.seeds import Seed
from ddbench.errors import DDBenchError
from ddbench.plugins import needs_of, passes_of
from ddbench.problem.problem import Problem
from ddbench.problem.synthetic import first_with
from ddbench.run.calls import phases_of, stages_of, steps_of
from ddbench.run.spec import RunSpec

SAID = 60.0  # seconds from which a run says how long it will take
LONG = 3600.0  # from which it says which recipe takes less
LITTLE = 2e6  # passes that no network makes an hour of: nothing is timed for them
TIMED, BATCHES = 64, 6  # images and batches that are timed, if nothing is on record
FILE = "speed.json"


@dataclass(frozen=True)
class Work:
    """Passes of a run: of its experts, of distilling (None where the matcher does not tell), of judging and grading.

    ``lessons`` are those of start networks that later stages draw.
    """

    experts: float
    distilling: float | None
    grading: float
    lessons: float = 0.0

    @property
    def known(self) -> float:
        return self.experts + (self.distilling or 0.0) + self.grading + self.lessons


def work_of(spec: RunSpec, task: Problem, students: int) -> Work:
    """The passes of a run on a task; experts count as if none were there yet."""
    stages, wanted = stages_of(spec.scheduler), needs_of(spec.matcher, task)
    recipe = wanted.recipe or task.expert_recipe
    images = len(task.real)
    epoch = recipe.epoch_steps * min(recipe.batch, images) if recipe.epoch_steps else images
    experts = stages * wanted.experts * max(wanted.snapshots, default=0) * epoch
    iteration = passes_of(spec.matcher, task)
    distilling = None if iteration is None else stages * steps_of(spec.matcher) * iteration
    count = spec.ipc * task.classes
    lesson = (spec.protocol.budget(count) or (spec.protocol.epochs or 0)) * min(spec.protocol.batch, count)
    judged = _judged(spec, stages) if spec.protocol.selects != "last" else 0.0
    drawn = 0.0 if wanted.experts else _lessons(spec, task)
    return Work(float(experts), distilling, float(lesson * (judged + students)), drawn)


def _judged(spec: RunSpec, stages: int) -> float:
    """Whole lessons of judges: one learns the phases that a stage's set is in, with each lr, at each of the checks.

    A coreset is checked once, and has no lr of its own.
    """
    whole, share = len(phases_of(spec.scheduler, stages)), 0.0
    for stage in range(stages):
        taken = phases_of(spec.scheduler, stage + 1)
        share += (len(taken) - first_with(stage, taken)) / whole
    learned = steps_of(spec.matcher) > 0
    trials = max(1, len(spec.protocol.lrs) + learned)
    return share * (spec.protocol.checks if learned else 1) * spec.protocol.judges * trials


def _lessons(spec: RunSpec, task: Problem) -> float:
    """The passes of teaching what later stages draw, for a matcher that draws one network in each iteration."""
    stages, count = stages_of(spec.scheduler), spec.ipc * task.classes
    if not hasattr(spec.scheduler, "networks"):
        return 0.0  # its stages start from fresh networks
    teaching = spec.protocol.starting(count, stages)
    shown = [math.ceil(count * (phase + 1) / stages) for phase in range(stages - 1)]  # images in each phase
    phases = [
        (lesson.steps * min(lesson.batch, n)) if lesson.steps else (lesson.epochs or 0) * n
        for lesson, n in ((teaching.lesson(phase), n) for phase, n in enumerate(shown))
    ]
    networks = getattr(spec.scheduler, "networks", None)
    if networks is not None:
        return float(min(networks, steps_of(spec.matcher)) * sum(phases))  # each is kept
    return float(steps_of(spec.matcher) * sum(sum(phases[: stage + 1]) for stage in range(stages - 1)))


def seconds_of(spec: RunSpec, task: Problem, students: int) -> float | None:
    """About what a run takes; None of a matcher that does not tell its work, and of little work."""
    parts = parts_of(spec, task, students)
    return None if parts is None else sum(parts.values())


def parts_of(spec: RunSpec, task: Problem, students: int) -> dict[str, float] | None:
    """The same of its parts: ``experts`` (with what teaches start networks), ``distilling`` and ``grading``."""
    try:
        work = work_of(spec, task, students)
    except DDBenchError:  # a matcher may refuse the whole budget and take a stage's; the run will say what is wrong
        return None
    if work.distilling is None or work.known < LITTLE:
        return None
    held = _held().get(_place(spec, task), {})
    known = {"experts", f"matcher {spec.matcher.name}"} <= held.keys()
    pass_seconds = 0.0 if known else _timed(task)
    training = held.get("experts", pass_seconds) or pass_seconds
    matching = held.get(f"matcher {spec.matcher.name}", pass_seconds) or pass_seconds
    return {
        "experts": (work.experts + work.lessons) * training,
        "distilling": work.distilling * matching,
        "grading": work.grading * training,
    }


def remember(spec: RunSpec, task: Problem, notes: list[dict[str, Any]]) -> None:
    """Keep what a pass took in a run that is done, for the next one's forecast. Fails nothing."""
    found: dict[str, float] = {}
    try:
        work = work_of(spec, task, 0)
    except DDBenchError:  # a run that is done is not to fail over a forecast
        return
    spent = sum(note["seconds"] for note in notes)
    training = [note["expert_seconds"] for note in notes]
    if work.distilling and not work.lessons and spent > 1:
        found[f"matcher {spec.matcher.name}"] = spent / work.distilling
    if work.experts and all(training) and sum(training) > 1:
        found["experts"] = sum(training) / work.experts
    if not found:
        return
    place, held = _place(spec, task), _held()
    try:
        write_json(_file(), held | {place: held.get(place, {}) | found})
    except (DDBenchError, OSError):
        return


def told(seconds: float) -> str:
    """``a minute``, ``40 minutes``, ``3.2 hours``, ``2.5 days``."""
    if seconds < LONG:
        minutes = max(1, round(seconds / 60))
        return "a minute" if minutes == 1 else f"{minutes} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _file() -> Path:
    return home() / FILE


def _held() -> dict[str, dict[str, float]]:
    """What is on record; nothing where it cannot be read."""
    try:
        held = read_json(_file())
        return {p: {n: float(s) for n, s in found.items() if 0 < float(s) < LONG} for p, found in held.items()}
    except (DDBenchError, AttributeError, TypeError, ValueError):
        return {}


def _place(spec: RunSpec, task: Problem) -> str:
    """What decides how long a pass takes: the network on these images, the device, and the threads."""
    return digest([describe(spec.network), list(task.real.shape), spec.device, spec.threads, torch.__version__])[:16]


def _timed(task: Problem) -> float:
    """The seconds of one pass, measured now: the fastest of a few batches, since other work may be beside."""
    keep_freed_memory()  # as runs do: asking for it anew each time would be half of what is timed
    network = task.network
    vector = network.init(Seed(0)).to(network.device).requires_grad_()
    shown = task.real[torch.arange(min(TIMED, len(task.real)))].images.to(network.device)
    taken = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        found = grad(network.apply(vector, shown).square().sum(), vector)[0]
        float(found.sum())  # a GPU is waited for
        taken.append(time.perf_counter() - began)
    return min(taken) / len(shown)
