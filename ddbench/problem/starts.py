"""Where students start, and the expert trajectories that begin there.

The one idea of ddbench: the student that the evaluator grades after stage j is the network that stage
j + 1 starts from. :func:`teach` is that one function; the evaluator and :class:`Starts` both call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import Cache, lock
from ddbench.base.options import changed
from ddbench.base.progress import note
from ddbench.base.seeds import Seed
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.errors import DamagedError, UsageError
from ddbench.problem.synthetic import Curriculum, SyntheticSet, share
from ddbench.train.fit import TRAINER_VERSION, Labeller, Recipe, Student, Watch, fit, whoever_asks
from ddbench.train.fit_together import TOGETHER, fit_together, trains_together
from ddbench.train.network import Network


@dataclass(frozen=True)
class Teaching:
    """How a student learns a curriculum.

    With ``steps`` N and ``phases`` P, every phase takes N/P optimiser steps (as even as possible), so
    that every scheduler spends the same N; without, every phase takes the recipe's own epochs.
    """

    recipe: Recipe
    steps: int | None = None
    phases: int = 1

    def on(self, augment: str) -> Teaching:
        """The same on a dataset whose own augmentation is ``augment``."""
        return replace(self, recipe=self.recipe.on(augment))

    def lesson(self, phase: int) -> Recipe:
        if self.steps is None:
            return self.recipe
        return replace(self.recipe, steps=share(self.steps, self.phases, phase), epochs=None)

    def steps_of(self, phase: int, curriculum: Curriculum) -> int:
        """The optimiser steps of a phase."""
        recipe = self.lesson(phase)
        return recipe.steps or (recipe.epochs or 1) * recipe.per_epoch(_shown(curriculum, phase))

    def largest_batch(self, curriculum: Curriculum) -> int:
        """The images of the largest batch that a student sees."""
        return min(self.recipe.batch, max(_shown(curriculum, phase) for phase in range(len(curriculum.phases))))

    def total(self, curriculum: Curriculum) -> int:
        """The optimiser steps of all phases."""
        return sum(self.steps_of(phase, curriculum) for phase in range(len(curriculum.phases)))


def _shown(curriculum: Curriculum, phase: int) -> int:
    """The images of a phase, decoded."""
    return sum(len(curriculum.sets[i]) * curriculum.sets[i].decoder.copies for i in curriculum.phases[phase])


def learn_phase(
    network: Network,
    student: Student,
    curriculum: Curriculum,
    phase: int,
    teaching: Teaching,
    seed: Seed,
    watch: Watch | None = None,
) -> Student:
    """One phase of :func:`teach`: learning rate and (unless carried) momentum start afresh."""
    recipe, teacher = _lesson(network, curriculum, phase, teaching)
    begin = student if recipe.carry else Student(student.vector)
    return fit(
        network,
        begin,
        curriculum.phase(phase),
        recipe,
        seed / "phase" / phase,
        lr=curriculum.lr(phase),
        teacher=teacher,
        watch=watch,
        what="teaching a student",
    )


def _lesson(network: Network, curriculum: Curriculum, phase: int, teaching: Teaching) -> tuple[Recipe, Labeller | None]:
    """The recipe of a phase, with the loss that its labels ask for, and what labels its batches, if anything does."""
    recipe, newest = teaching.lesson(phase), curriculum.sets[max(curriculum.phases[phase])]
    if newest.label_kind == "real":
        recipe = replace(recipe, loss="mse")
    return recipe, _labeller(newest, network.classes) if recipe.online else None


def _labeller(taught: SyntheticSet, classes: int) -> Labeller:
    """What labels the batches of a phase under a protocol with online labels: the teacher of its newest set."""
    if taught.teacher is None:
        raise UsageError(
            "the protocol has a teacher label every batch, but this set brings no teacher; evaluate it under "
            "--protocol default, or distil with a matcher that has one"
        )
    return partial(taught.teacher.logits, classes=classes)


def teach(
    network: Network,
    student: Student,
    curriculum: Curriculum,
    teaching: Teaching,
    seed: Seed,
    first: int = 0,
    watch: Watch | None = None,
) -> Student:
    """Train a student through the phases of a curriculum, from phase ``first`` on; ``watch`` counts all their steps."""
    done = 0
    for phase in range(first, len(curriculum.phases)):
        seen = watch.after(done) if watch else None
        student = learn_phase(network, student, curriculum, phase, teaching, seed, seen)
        done += teaching.steps_of(phase, curriculum) if watch else 0
    return student


def teach_together(
    network: Network,
    students: Sequence[Student],
    curricula: Sequence[Curriculum],
    teaching: Teaching,
    seeds: Sequence[Seed],
    first: int = 0,
    watches: Sequence[Watch | None] = (),
) -> list[Student]:
    """:func:`teach` for several students at once; their curricula may differ in the learning rates of sets only."""
    done, students = 0, list(students)
    for phase in range(first, len(curricula[0].phases)):
        recipe, teacher = _lesson(network, curricula[0], phase, teaching)
        students = fit_together(
            network,
            [s if recipe.carry else Student(s.vector) for s in students],
            curricula[0].phase(phase),
            recipe,
            [seed / "phase" / phase for seed in seeds],
            lrs=[c.lr(phase) for c in curricula],
            teacher=teacher,
            watches=[watch.after(done) if watch else None for watch in watches],
            what="teaching students",
        )
        done += teaching.steps_of(phase, curricula[0])
    return students


def student_tensors(student: Student) -> dict[str, Tensor]:
    """A student as it stands in files."""
    return {"vector": student.vector, **{f"state{i}": s for i, s in enumerate(student.state)}}


def student_in(path: Path, network: Network) -> Student:
    """The student that a file holds, on the network's device. Raises DamagedError."""
    tensors, _ = load_tensors(path, device=network.device)
    if tensors.get("vector", torch.empty(0)).shape != (network.length,):
        raise DamagedError(f"{path} is damaged: it holds no vector of this network; delete it to have it made again")
    return Student(tensors["vector"], tuple(tensors[n] for n in sorted(tensors) if n.startswith("state")))


@dataclass(frozen=True, eq=False)
class Starts:
    """The distribution of start networks: initialisation i, taught the earlier sets.

    Untaught, ``starts[i]`` is a fresh initialisation for any i, and nothing is stored. Taught, each lesson of
    ``starts[i]`` is cached by its prefix, so that teaching P stages costs P lessons. With ``count`` there are so many
    taught networks (i counts modulo ``count``); without, every ``draw`` teaches another one, of which nothing is
    stored: as many as a matcher asks for, and none of them again.
    """

    network: Network
    seed: Seed
    teaching: Teaching
    cache: Cache
    threads: int = 1
    taught: Curriculum = field(default_factory=Curriculum)
    count: int | None = None

    def __getitem__(self, index: int) -> Tensor:
        """The flat vector of start network ``index``."""
        return self.student(index).vector

    def student(self, index: int) -> Student:
        """The start network with its optimiser's state, for teachings that carry it over."""
        if self.taught.phases and self.count is not None:
            index %= self.count
        seed = self.seed / index
        student = Student(self.network.init(seed / "init"))
        for phase in range(len(self.taught.phases)):
            student = self._lesson(index, phase, student, seed)
        return student

    def _lesson(self, index: int, phase: int, student: Student, seed: Seed) -> Student:
        if self._until(phase)._together:
            return self._until(phase)._last_lesson_of_all(index)
        path = self._folder(phase) / f"{index:06d}.safetensors"
        with lock(path.with_suffix(".lock")):
            if path.exists():
                try:
                    return student_in(path, self.network)
                except DamagedError:
                    note(f"{path} is damaged; it is made again")
            with whoever_asks():
                after = learn_phase(self.network, student, self.taught, phase, self.teaching, seed)
            self._store(path, after)
            return after

    def _store(self, path: Path, after: Student) -> None:
        state = after.state if self.teaching.recipe.carry else ()
        save_tensors(path, student_tensors(Student(after.vector, state)), sealed=True)

    @cached_property
    def _together(self) -> bool:
        """Whether networks take the last of their lessons together."""
        batch = self.teaching.largest_batch(self.taught) if self.taught.phases else 0
        return bool(batch) and trains_together(self.network, self.teaching.recipe, batch)

    def _last_lesson_of_all(self, index: int) -> Student:
        """Start network ``index``, which takes its last lesson with those beside it, always the same ones."""
        phase, first = len(self.taught.phases) - 1, index - index % TOGETHER
        group = range(first, min(first + TOGETHER, self.count or first + TOGETHER))
        folder = self._folder(phase)
        paths = [folder / f"{i:06d}.safetensors" for i in group]
        with ExitStack() as locks:
            for path in paths:
                locks.enter_context(lock(path.with_suffix(".lock")))
            if paths[index - first].exists():
                try:
                    return student_in(paths[index - first], self.network)
                except DamagedError:
                    note(f"{paths[index - first]} is damaged; it is made again")
            begins, seeds = [self._until(phase - 1).student(i) for i in group], [self.seed / i for i in group]
            with whoever_asks():
                lessons = [self.taught] * len(group)
                after = teach_together(self.network, begins, lessons, self.teaching, seeds, first=phase)
            for path, student in zip(paths, after, strict=True):
                self._store(path, student)
            return after[index - first]

    def _until(self, phase: int) -> Starts:
        """The same networks after their lesson ``phase``; before the first one for -1."""
        return replace(self, taught=Curriculum(self.taught.sets, self.taught.phases[: phase + 1]))

    def _folder(self, phase: int) -> Path:
        return self.cache.folder("lessons", self._until(phase).identity)

    def draw(self) -> Tensor:
        """A random one: a new initialisation, taught what is to be taught, or one of the ``count`` that were."""
        index = int(torch.randint(2**31, ()))
        if self.count is not None or not self.taught.phases:
            return self[index]
        seed = self.seed / index
        student = Student(self.network.init(seed / "init"))
        with whoever_asks():
            return teach(self.network, student, self.taught, self.teaching, seed).vector

    @property
    def identity(self) -> dict[str, Any]:
        """What the start networks depend on, as JSON. Untaught, that is network and seed alone."""
        base = {"network": self.network.lineage, "seed": [self.seed.root, *self.seed.path]}
        if not self.taught.phases:
            return base
        lessons = [changed(self.teaching.lesson(j)) for j in range(len(self.taught.phases))]
        taught = self.taught.identity(len(self.taught.phases))
        code = self.taught.code if self.teaching.recipe.online else {}
        told = {"teachers": code} if code else {}
        told |= {"together": self.count} if self._together else {}
        return base | {"lessons": lessons, "taught": taught, "threads": self.threads, "trainer": TRAINER_VERSION} | told
