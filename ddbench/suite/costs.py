"""What the cells of a suite cost on a device: experts that they share count once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ddbench.errors import DDBenchError
from ddbench.run.calls import stages_of
from ddbench.run.cost import Cost, cost, device_of
from ddbench.run.price import work_of
from ddbench.run.run import build_task
from ddbench.suite.grid import Cell
from ddbench.suite.taking import Takings


def costs(
    cells: Iterable[Cell], takings: Takings, students: int, device: str | None = None, least: float = 0.0
) -> dict[str, Cost]:
    """The cost of each cell, by its key; not of those whose data are not here, or whose budget does not fit.

    Of cells with the same experts the first pays for those of the first stage. ``device`` is the name of rates; None
    for those that are nearest to what each cell asks for. Cells of less than ``least`` passes have none: what they
    take is what a process takes to start.
    """
    found: dict[str, Cost] = {}
    alike: dict[str, Cost | None] = {}
    paid: set[str] = set()
    for cell in cells:
        if cell.like not in alike:
            alike[cell.like] = _cost(cell, takings, students, device_of(cell.spec.device, device), least)
        if (own := alike[cell.like]) is None:
            continue
        if (pool := takings.pool(cell)) is not None:
            if pool.key in paid:
                own = replace(own, experts=own.experts * (1 - 1 / stages_of(cell.spec.scheduler)))
            paid.add(pool.key)
        found[cell.key] = own
    return found


def _cost(cell: Cell, takings: Takings, students: int, device: str, least: float) -> Cost | None:
    dataset = takings.dataset(cell)
    if dataset is None:
        return None
    try:
        task = build_task(replace(cell.spec, device="cpu"), dataset)
        if least and work_of(cell.spec, task, students).known < least:
            return None
        return cost(cell.spec, dataset, students, device)
    except DDBenchError:  # a budget that does not fit: the forecast said so
        return None


def longest_first(cells: list[Cell], seconds: Mapping[str, float]) -> list[Cell]:
    """The cells seed by seed, of each seed the longest first: several places are then full for longest.

    In their order, where it is not known how long each takes.
    """
    if not all(cell.key in seconds for cell in cells):
        return cells
    seeds = list(dict.fromkeys(cell.spec.seed for cell in cells))
    return sorted(cells, key=lambda cell: (seeds.index(cell.spec.seed), -seconds[cell.key]))
