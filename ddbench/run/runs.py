"""Runs on one dataset, one after another, each beside random images and below the whole training set."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from ddbench.base.progress import Say, listening_too
from ddbench.base.recipes import NAMES, RecipeEntry
from ddbench.data.dataset import Dataset
from ddbench.plugins import loaded, registry
from ddbench.problem.decode import Decoder
from ddbench.run import trackers as tracking
from ddbench.run.calls import stages_of
from ddbench.run.course import Course
from ddbench.run.devices import check_division
from ddbench.run.folder import finished
from ddbench.run.place import folder_of
from ddbench.run.price import LONG, SAID, parts_of, seconds_of, told, work_of
from ddbench.run.references import against_random, label_kinds, references, under_whole
from ddbench.run.row import Row
from ddbench.run.run import Run, Settings, build_task, first_problem
from ddbench.run.spec import RunSpec


def carry_out(
    specs: list[RunSpec],
    settings: Settings,
    *,
    with_random: bool,
    with_ceiling: bool,
    trackers: tuple[str, ...] = (),
    say: Say,
    fail: Say,
) -> tuple[list[Row], list[str]]:
    """Carry out runs on one dataset, with random images beside each and the whole training set above.

    Returns their rows, and what is to be said of runs that are not above random images. ``fail`` is told of runs that
    diverged; the others are carried out all the same.
    """
    tracking.checked(trackers)
    rows: list[Row] = []
    said: list[str] = []
    torch.set_num_threads(specs[0].threads)  # statistics of the data depend on it in their last bits
    dataset = loaded(specs[0].dataset)
    if skipped := dataset.facts.get("skipped"):
        say(f"warning: left out {skipped}")
    _ = build_task(specs[0], dataset).network.parameters  # one that cannot take these images leaves no folder
    check_division(specs[0].matcher, first_problem(specs[0], dataset))
    parts = _parts(specs, dataset, settings, with_random=with_random)
    course = None if parts is None else Course(parts, stages_of(specs[0].scheduler))
    with nullcontext() if course is None else listening_too(course):
        for i, spec in enumerate(specs):
            work = Run(spec, dataset, settings, partial(_begin, say=say, course=course, place=i))
            with tracking.attached(trackers, work, say):
                result = work.execute()
            rows += (graded := work.rows())
            if result.status == "diverged":
                fail(f"the run diverged: {result.error} (its last good state is kept in {work.folder})")
                continue
            if course is not None:
                course.beside()
            others = replace(settings, renew="changed")
            beside = references(spec, dataset, others, with_random=with_random, with_ceiling=with_ceiling)
            rows += [row for row in beside if row not in rows]
            said += against_random(work.folder, graded, beside) if with_random else []
            under_whole(work.folder, beside)
    return rows, said


def _parts(
    specs: list[RunSpec], dataset: Dataset, settings: Settings, *, with_random: bool
) -> list[dict[str, float]] | None:
    """The seconds of the parts of each run; None where they are not known, or all are done."""
    done = [finished(folder_of(spec, settings.out)) is not None for spec in specs]
    known = None if all(done) else parts_of(specs[0], build_task(specs[0], dataset), settings.students)
    if known is None:
        return None
    kinds = len(label_kinds(specs[0])) * len({Decoder(), specs[0].decoder}) if with_random else 0
    whole = known | {"beside": kinds * known["grading"]}
    return [dict.fromkeys(whole, 0.0) if over else whole for over in done]


def _begin(work: Run, going_on: bool, say: Say, course: Course | None, place: int) -> None:
    """Say what begins, once nothing of it was refused."""
    say(f"{'going on with' if going_on else 'starting'} {work.folder}")
    _say_time(work, say)
    if course is not None:
        course.begin(place)


def _say_time(work: Run, say: Say) -> None:
    """Say what a run takes if that is a minute or more, and if it is more than an hour which recipe takes less."""
    spec = work.spec
    if finished(work.folder) is not None:
        return
    task = build_task(spec, work.dataset)
    seconds = seconds_of(spec, task, work.settings.students)
    if seconds is None or seconds < SAID:
        return
    if seconds < LONG:
        say(f"this run will take about {told(seconds)} on this machine")
        return
    situation = {name: getattr(spec, name).name for name in ("dataset", "scheduler")}
    situation |= {"ipc": spec.ipc, "device": spec.device}
    recipes = [registry().get("matcher", spec.matcher.name).recipe(situation, asked=name) for name in NAMES]
    other = [f"--recipe {found.name}" for found in recipes if found is not None and not _taken(spec, found)]
    way = f"; {' or '.join(other)} is another way" if other else ""
    passes = work_of(spec, task, work.settings.students)
    if passes.lessons > passes.known / 2:
        way += "; most of it teaches a network for every draw of later stages: -o scheduler.networks=10 teaches ten"
    say(f"this run will take about {told(seconds)} on this machine{way}")


def _taken(spec: RunSpec, recipe: RecipeEntry) -> bool:
    """Whether a run goes by a recipe of its matcher."""
    given = recipe.options.get("matcher", {})
    return all(getattr(spec.matcher, name) == (None if value == "none" else value) for name, value in given.items())
