"""What cells take: memory, disk, experts. Asked of each kind of cell once; nothing is trained for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ddbench.base.cache import digest
from ddbench.base.options import changed
from ddbench.data.dataset import LARGEST_RESIDENT, Dataset
from ddbench.errors import DDBenchError
from ddbench.plugins import loaded, memory_of, missing, needs_of, staged
from ddbench.problem.problem import Needs, Problem
from ddbench.run.cost import training_bytes
from ddbench.run.forecast import forecast
from ddbench.run.prepare import for_experts
from ddbench.run.run import first_problem
from ddbench.suite.grid import Cell
from ddbench.train.fit_together import TOGETHER, pays_together, stackable

# What a process takes before it does anything: torch on the host, and with CUDA its libraries there and its context.
HOST = {"cpu": 600_000_000, "cuda": 3_000_000_000}
CONTEXT = 700_000_000
SPARE = 1.25  # what kernels allocate inside themselves is in no forecast


@dataclass(frozen=True)
class Pool:
    """Experts that cells share: which, how many, the snapshots that some cell wants, and how many train at once."""

    key: str
    count: int
    snapshots: tuple[int, ...]
    at_once: int

    def joined(self, other: Pool) -> Pool:
        """What serves both."""
        wanted = tuple(sorted({*self.snapshots, *other.snapshots}))
        return replace(self, count=max(self.count, other.count), snapshots=wanted)


@dataclass(frozen=True)
class Taking:
    """What a cell takes by the forecast. ``memory`` of one iteration is None where its matcher does not tell."""

    expert_bytes: int = 0
    set_bytes: int = 0
    state: int = 0
    iteration: int | None = None
    pool: Pool | None = None
    teachers: int = 0
    problem: Problem | None = field(default=None, repr=False, compare=False)  # of the first stage, with its experts

    @property
    def memory_bytes(self) -> int:
        return self.state + (self.iteration or 0)


@dataclass(eq=False)
class Takings:
    """What cells take, by the kind of cell; datasets are loaded once. What cannot be told is said, once.

    ``at_hand``: datasets that would have to be fetched or decoded first are left to the cells, and nobody knows.
    """

    say: Callable[[str], None]
    at_hand: bool = False
    _datasets: dict[str, Dataset | None] = field(default_factory=dict)
    _known: dict[str, Taking | None] = field(default_factory=dict)
    _asked: dict[str, tuple[Problem, Needs] | None] = field(default_factory=dict)

    def of(self, cell: Cell) -> Taking | None:
        """None where nobody can tell: the data are not here, or the budget does not fit."""
        if cell.like not in self._known:
            dataset, asked = self.dataset(cell), self._problem(cell)
            self._known[cell.like] = None if dataset is None or asked is None else self._taken(cell, dataset, *asked)
        return self._known[cell.like]

    def pool(self, cell: Cell) -> Pool | None:
        """The experts of a cell's first stage, which others may share; of no forecast, and told at once."""
        asked = self._problem(cell)
        return None if asked is None else _pool(cell, *asked)

    def dataset(self, cell: Cell) -> Dataset | None:
        source = json.dumps(cell.spec.record()["dataset"], sort_keys=True)
        if source not in self._datasets:
            if self.at_hand and missing(cell.spec.dataset) is not None:
                self._datasets[source] = None
                return None
            try:
                self._datasets[source] = loaded(cell.spec.dataset)
            except DDBenchError as error:
                self.say(f"warning: what cells on {cell.spec.dataset.name} take is unknown: {error}")
                self._datasets[source] = None
        return self._datasets[source]

    def _problem(self, cell: Cell) -> tuple[Problem, Needs] | None:
        """The problem of a cell's first stage, with its experts, and what its matcher needs."""
        if cell.like not in self._asked:
            dataset, found = self.dataset(cell), None
            spec = replace(cell.spec, device="cpu")
            try:
                if dataset is not None:
                    problem = first_problem(spec, dataset)
                    wanted = needs_of(staged(spec.matcher, problem), problem)
                    found = for_experts(problem, wanted), wanted
            except DDBenchError as error:  # a budget that does not fit: the cell will fail, and says so now
                self.say(f"warning: {cell.name} cannot be carried out: {error}")
            self._asked[cell.like] = found
        return self._asked[cell.like]

    def _taken(self, cell: Cell, dataset: Dataset, problem: Problem, wanted: Needs) -> Taking | None:
        spec = replace(cell.spec, device="cpu")
        try:
            found = forecast(spec, dataset, timed=False)
            held = memory_of(staged(spec.matcher, problem), problem)
        except DDBenchError as error:
            self.say(f"warning: {cell.name} cannot be carried out: {error}")
            return None
        disk = found["disk for experts (bytes)"], found["disk for the set (bytes)"]
        pool = _pool(cell, problem, wanted)
        return Taking(*disk, held.state, held.iteration, pool, found["teachers"], problem)


def _pool(cell: Cell, problem: Problem, wanted: Needs) -> Pool | None:
    """The experts of a cell's first stage; those of later stages follow from what was distilled before."""
    if not wanted.experts or problem.expert_recipe.imported:
        return None
    recipe, starts = problem.expert_recipe, problem.starts
    identity = [cell.experts, changed(recipe), starts.identity, problem.real.digest]
    there = replace(problem.network, device=torch.device(cell.spec.device))
    batch = min(recipe.batch, len(problem.real))
    alone = recipe.kernels == "fused" or recipe.launch == "graph"
    together = pays_together(there, batch) and not alone and stackable(problem.network, recipe)
    return Pool(digest(identity)[:16], wanted.experts, tuple(wanted.snapshots), TOGETHER if together else 1)


def pools(cells: Iterable[Cell], takings: Takings) -> dict[str, tuple[Pool, list[Cell]]]:
    """The experts that cells want before their first iteration, each with the cells that want them."""
    found: dict[str, tuple[Pool, list[Cell]]] = {}
    for cell in cells:
        taking = takings.of(cell)
        if taking is not None and (pool := taking.pool) is not None:
            held, users = found.get(pool.key, (pool, []))
            found[pool.key] = held.joined(pool), [*users, cell]
    return found


def memory(cell: Cell, taking: Taking | None, peak: int | None) -> dict[str, Any]:
    """``memory`` and ``gpu_memory`` of a cell's job: as one like it took (``peak`` bytes), else by the forecast.

    Without either, a GPU's is 0: nobody knows.
    """
    kind = "cuda" if cell.spec.device.startswith("cuda") else "cpu"
    known = peak if peak else (taking.memory_bytes if taking and taking.iteration is not None else None)
    if kind == "cpu":  # the peak that a run records there is that of its whole process
        own = peak or HOST[kind] + (taking.memory_bytes if taking else 0)
        return {"memory": int(SPARE * own), "gpu_memory": 0}
    if known is None:
        return {"memory": HOST[kind], "gpu_memory": 0}
    held, step = (0, 0) if taking is None or taking.problem is None else around(cell, taking.problem, taking.pool)
    return {"memory": HOST[kind] + held, "gpu_memory": int(SPARE * (held + max(known, step))) + CONTEXT}


def around(cell: Cell, problem: Problem, pool: Pool | None) -> tuple[int, int]:
    """Bytes on a GPU beside distilling: the real images that lie there, and the largest step of experts and students.

    Students that train together hold twice what they do one at a time (16 of 100 images, width 128: 7.3 GB).
    """
    pixels = problem.real.pixels.numel()
    there = replace(problem.network, device=torch.device(cell.spec.device))
    images = min(cell.spec.protocol.batch, cell.spec.ipc * problem.real.classes)
    trained = [(images, TOGETHER if pays_together(there, images) else 1)]
    trained += [(min(problem.expert_recipe.batch, len(problem.real)), pool.at_once)] if pool else []
    steps = [training_bytes(problem.network, batch * n * (2 if n > 1 else 1)) for batch, n in trained]
    return (pixels if pixels <= LARGEST_RESIDENT else 0), max(steps)
