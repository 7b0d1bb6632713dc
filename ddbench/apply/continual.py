"""``ddbench apply continual``: classes arrive in steps, and all that is kept of them is a small memory.

The setting of DM (Zhao & Bilen, WACV 2023) and GDumb (Prabhu et al., ECCV 2020): after every step a network is trained
from scratch on the memory of the classes seen so far, and tested on the test images of those classes. Also what both
applications share: a set with its task, and memories of real images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor

from ddbench.apply.record import Record
from ddbench.base.cache import Cache, home, lock
from ddbench.base.machine import machine
from ddbench.base.options import changed, label, make, options
from ddbench.base.progress import report
from ddbench.base.seeds import Seed
from ddbench.data.dataset import RealData
from ddbench.errors import DataError, UsageError
from ddbench.files.asked import EvalOptions
from ddbench.files.target import opened, planned
from ddbench.grade.evaluation import Evaluation
from ddbench.grade.selection import at_chosen, tuned
from ddbench.grade.student import accuracy
from ddbench.plugins import needs_of, registry, takes_steps
from ddbench.problem.problem import Problem
from ddbench.problem.starts import Starts, Teaching, teach
from ddbench.problem.synthetic import Curriculum, SyntheticSet, share
from ddbench.results.tables import Table
from ddbench.run.calls import Asked
from ddbench.run.defaults import MEMORIES, ONE_STAGE
from ddbench.run.prepare import prepared
from ddbench.run.recipes import chosen
from ddbench.run.spec import EXPERTS
from ddbench.train.fit import TRAINER_VERSION, Recipe, Student
from ddbench.train.network import Network


@dataclass(frozen=True, eq=False)
class Target:
    """A distilled set with its task and rules, and the folder where records of its applications are kept."""

    evaluation: Evaluation
    seed: int
    threads: int
    folder: Path

    @classmethod
    def open(cls, name: str, out: Path, given: EvalOptions) -> Target:
        """A run in ``out``, or a file; on the device asked for. Real data pass through the set's own preprocessing."""
        found = opened(name, out, given)
        plan = planned(found.distilled, given)
        work, distilled = plan.evaluation, plan.evaluation.distilled.on(plan.evaluation.device)
        distilled.check_dataset(work.dataset)
        if distilled.teaching.recipe.online:
            raise UsageError(
                f"under protocol {work.protocol.name!r} a teacher of all classes labels every batch, which cannot be "
                "allowed here; use --protocol default, which trains on the stored labels"
            )
        parts = ("train", "validation", "test")
        real = {part: replace(getattr(work.dataset, part), preprocessing=distilled.preprocessing) for part in parts}
        torch.set_num_threads(plan.threads)
        work = replace(work, distilled=distilled, dataset=replace(work.dataset, **real))
        return cls(work, plan.seed, plan.threads, (found.folder or home()) / "applications")

    @property
    def network(self) -> Network:
        return self.evaluation.distilled.build_network(self.evaluation.device)

    @property
    def ipc(self) -> int:
        """Stored images per class, of all stages together."""
        sets = self.evaluation.distilled.curriculum.sets
        return sum(len(s) for s in sets) // self.network.classes

    @property
    def teaching(self) -> Teaching:
        """How students learn real images in one phase: the rules of the set, N steps included."""
        work = self.evaluation
        return work.protocol.evaluation(self.ipc * self.network.classes, 1).on(work.dataset.augment)

    @property
    def title(self) -> str:
        return f"{self.evaluation.dataset.name}, ipc {self.ipc}, {label(self.evaluation.distilled.network)}"

    @property
    def about(self) -> dict[str, Any]:
        """What it is, for readers of a record."""
        work = self.evaluation
        return {
            "dataset": work.dataset.name,
            "ipc": self.ipc,
            "network": label(work.distilled.network),
            "protocol": work.protocol.name,
            "steps": work.distilled.teaching.steps,
            "students": work.students,
            "seed": self.seed,
            "machine": machine(work.device),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What trained networks depend on besides the application's own choices."""
        work, distilled = self.evaluation, self.evaluation.distilled
        return {
            "sets": [s.digest for s in distilled.curriculum.sets],
            "phases": distilled.curriculum.phases,
            "data": work.dataset.digest,
            "preprocessing": distilled.preprocessing.digest,
            "network": self.network.lineage,
            "protocol": changed(work.protocol),
            "training": [changed(distilled.teaching.recipe), distilled.teaching.steps, distilled.teaching.phases],
            "students": work.students,
            "seed": self.seed,
            "threads": self.threads,
            "trainer": TRAINER_VERSION,
        }


@dataclass(frozen=True)
class Report:
    """What an application found: tables as people read them, the first as numbers, and all of it as JSON."""

    tables: tuple[Table, ...]
    rows: list[dict[str, Any]]
    record: dict[str, Any]


def text_table(title: str, rows: list[dict[str, str]], notes: Sequence[str] = ()) -> Table:
    """A table whose cells are text already."""
    return Table(rows, {name: name for name in rows[0]}, notes, title)


# --------------------------------------------------------------------------------- memories of real images


def real_memory(target: Target, name: str) -> SyntheticSet:
    """As many real training images per class as the set stores, chosen by the coreset ``name``, with hard labels."""
    work, plugin = target.evaluation, registry().get("matcher", name)
    found = chosen(plugin, {"dataset": work.dataset.name, "ipc": target.ipc, "scheduler": ONE_STAGE}, None)
    recipe = found.options if found else {}
    if takes_steps(plugin):
        raise UsageError(f"matcher {name!r} learns images, which takes a run of its own; name coresets as --memories")
    matcher = make(plugin.cls, {**recipe.get("matcher", {}), "labels": "hard"}, "matcher")
    experts = make(Recipe, options(EXPERTS) | dict(recipe.get("experts", {})), "experts")
    starts = Starts(target.network, Seed(0) / "start", target.teaching, Cache(home()), target.threads)
    seed = Seed(target.seed)
    problem = Problem(work.dataset.train, target.ipc, starts, experts, work.dataset.augment, seed)
    problem = prepared(problem, needs_of(matcher, problem))
    with (seed / "memory" / name).scope():
        asked = Asked(matcher, problem, work.dataset.validation)
        return asked.result(asked.init())


def at_best_lr(target: Target, record: Record, name: str, memory: Curriculum, teaching: Teaching) -> Curriculum:
    """The memory at the student lr of the protocol's grid that does best on validation data, kept as ``lr/<name>``."""

    def select() -> str | None:
        rules = replace(target.evaluation.protocol, looks=None, selects="validation")
        judges = Starts(target.network, Seed(target.seed) / "selection", teaching, Cache(home()), target.threads)
        return tuned(memory, judges, target.evaluation.dataset.validation, rules)[0]

    return at_chosen(memory, record.get(f"lr/{name}", select))


def lessons(target: Target, record: Record, name: str) -> tuple[Curriculum, Teaching]:
    """What students learn, and how: the distilled set (``distilled``), or real images that a matcher chose."""
    work = target.evaluation
    if name != "distilled":
        memory = Curriculum((real_memory(target, name),), ((0,),))
        return at_best_lr(target, record, name, memory, target.teaching), target.teaching
    memory, teaching = work.distilled.curriculum, work.distilled.teaching
    # a set that was selected for this network, under these rules, brings its lr
    return (at_best_lr(target, record, name, memory, teaching) if work.tune else memory), teaching


# --------------------------------------------------------------------------------- continual learning


def class_orders(classes: int, orders: int, seed: int) -> list[list[int]]:
    """Random orders of the classes, functions of the seed."""
    places = [(Seed(seed) / "continual" / "order" / index).integer for index in range(orders)]
    return [torch.randperm(classes, generator=torch.Generator().manual_seed(place)).tolist() for place in places]


def seen_after(order: Sequence[int], tasks: int) -> list[list[int]]:
    """The classes seen after each of ``tasks`` steps, ascending; steps are as even as possible."""
    ends = accumulate(share(len(order), tasks, task) for task in range(tasks))
    return [sorted(order[:end]) for end in ends]


def remembered(curriculum: Curriculum, seen: Sequence[int], classes: int) -> Curriculum:
    """What a memory holds of the classes ``seen``: their images, labelled over these classes alone."""
    if len(seen) == classes:
        return curriculum
    return replace(curriculum, sets=tuple(_part(s, torch.tensor(seen), classes) for s in curriculum.sets))


def _part(held: SyntheticSet, seen: Tensor, classes: int) -> SyntheticSet:
    rows = torch.isin(_classes_of(held, classes), seen).nonzero().flatten().to(held.labels.device)
    labels = held.labels[rows][:, seen.to(held.labels.device)]
    if held.label_kind == "probability":  # what a label says of classes that are still to come is not known yet
        labels = labels / labels.sum(1, keepdim=True).clamp_min(1e-12)
    return replace(held, images=held.images[rows], labels=labels, teacher=None)


def _classes_of(held: SyntheticSet, classes: int) -> Tensor:
    """The class ``(n,)`` that each image was made for: by its hard label, otherwise by its place in the set."""
    if held.label_type == "hard":
        return held.labels.argmax(1).cpu()
    if len(held) % classes:
        raise DataError(
            f"{len(held)} images with soft labels are not an equal number for each of {classes} classes; use a "
            "set that is ordered by class"
        )
    return torch.arange(classes).repeat_interleave(len(held) // classes)


def only(data: RealData, seen: Sequence[int]) -> RealData:
    """The images of the classes ``seen``, which are numbered anew in that order."""
    kept = torch.isin(data.targets, torch.tensor(seen)).nonzero().flatten()
    if not len(kept):
        raise DataError(f"there are no test images of the classes {list(seen)}; test on data that hold every class")
    part = data.subset(kept)
    return replace(part, targets=torch.searchsorted(torch.tensor(seen), part.targets), classes=len(seen))


def shortened(teaching: Teaching, seen: int, classes: int) -> Teaching:
    """N in proportion to the images held, so that every step makes as many passes; epochs are as they were."""
    if teaching.steps is None:
        return teaching
    return replace(teaching, steps=max(teaching.phases, round(teaching.steps * seen / classes)))


def rehearse(target: Target, memory: Curriculum, teaching: Teaching, seen: Sequence[int], student: int) -> float:
    """The accuracy on the test images of the classes ``seen`` of a network that learned their memory alone.

    With all classes seen this is what ``ddbench eval`` does, to the same bits, for its student of that number.
    """
    whole, network = target.network, replace(target.network, classes=len(seen))
    seed = Seed(target.seed) / "evaluation" / student
    held, short = remembered(memory, seen, whole.classes), shortened(teaching, len(seen), whole.classes)
    vector = teach(network, Student(network.init(seed / "init")), held, short, seed).vector
    return accuracy(network, vector, only(target.evaluation.dataset.test, seen))


def continual(target: Target, tasks: int, orders: int, memories: Sequence[str] = MEMORIES) -> Report:
    """Accuracy after each of ``tasks`` steps, for the distilled memory and for ``memories`` of real images."""
    classes, students = target.network.classes, target.evaluation.students
    if not 1 <= tasks <= classes:
        raise UsageError(f"{classes} classes cannot arrive in {tasks} steps; choose --tasks between 1 and {classes}")
    drawn = class_orders(classes, orders, target.seed)
    names = ("distilled", *memories)
    identity = target.identity | {"version": 1, "tasks": tasks, "orders": drawn, "memories": names}
    record = Record.open(target.folder, "continual", identity, target.about)
    total, done = len(names) * orders * tasks, 0
    with lock(record.path.with_suffix(".lock"), wait=False):
        for name in names:
            memory, teaching = lessons(target, record, name)
            for index, order in enumerate(drawn):
                for step, seen in enumerate(seen_after(order, tasks)):
                    numbers = range(index * students, (index + 1) * students)
                    record.get(
                        f"{name}/order {index}/step {step}",
                        lambda m=memory, t=teaching, s=seen, n=numbers: [rehearse(target, m, t, s, i) for i in n],
                    )
                    done += 1
                    report("rehearsal", done, total)
        rows = [_row(record, name, drawn, tasks) for name in names]
        held = record.save(complete=True, rows=rows)
    title = f"{target.title}: test accuracy % on the classes seen, which arrive in {tasks} steps"
    note = f"mean ± std over {orders} class orders, {students} network(s) each; distilled with all classes known"
    return Report((text_table(title, [_shown(row) for row in rows], (note,)),), rows, held)


def _row(record: Record, name: str, drawn: list[list[int]], tasks: int) -> dict[str, Any]:
    """One memory: accuracy after each step as mean and deviation over orders, and their average over steps."""
    by_order = [[mean(record.results[f"{name}/order {i}/step {t}"]) for t in range(tasks)] for i in range(len(drawn))]
    row: dict[str, Any] = {"memory": name}
    for step, seen in enumerate(seen_after(drawn[0], tasks)):
        scores = [order[step] for order in by_order]
        row |= {f"seen_{len(seen)}_mean": mean(scores), f"seen_{len(seen)}_std": pstdev(scores)}
    averages = [mean(order) for order in by_order]
    return row | {"average_mean": mean(averages), "average_std": pstdev(averages), "orders": len(drawn)}


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """The row as people read it: percent, mean ± std."""
    names = [name.removesuffix("_mean") for name in row if name.endswith("_mean")]
    text = {n.replace("_", " "): f"{100 * row[f'{n}_mean']:.1f} ± {100 * row[f'{n}_std']:.1f}" for n in names}
    return {"memory": row["memory"]} | text
