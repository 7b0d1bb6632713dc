"""What jobs of a suite carry out: cells, and experts that cells share; the commands for it, and what each takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ddbench.base.cache import data_home, home, write_json
from ddbench.base.machine import code
from ddbench.base.process import Job
from ddbench.run.sources import sources
from ddbench.suite.grid import Cell, Suite
from ddbench.suite.taking import Pool, Taking, Takings, memory, pools


@dataclass(frozen=True)
class Part:
    """What one job carries out: a cell; or, of the experts that it shares with others, those from ``first`` on."""

    cell: Cell
    pool: Pool | None = None
    first: int = 0
    after: frozenset[str] = frozenset()  # the keys of parts that come before
    ahead: str | None = None  # of cells that have this in common, one goes ahead: what they share is not made yet

    @property
    def key(self) -> str:
        return self.cell.key if self.pool is None else f"experts-{self.pool.key}-{self.first}"

    @property
    def name(self) -> str:
        if self.pool is None:
            return self.cell.name
        several = f"experts {self.first} to {self.stop - 1}" if self.stop > self.first + 1 else f"expert {self.first}"
        return f"{several} of {self.cell.name.rpartition(', seed')[0]}"

    @property
    def file(self) -> str:
        """What its log is called."""
        return self.cell.spec.folder if self.pool is None else self.key

    @property
    def stop(self) -> int:
        assert self.pool is not None
        return min(self.first + self.pool.at_once, self.pool.count)


def words(cell: Cell, suite: Suite, out: Path) -> list[str]:
    """The arguments of the ``ddbench`` command that carries out a cell."""
    asked = cell.request
    named = {name: getattr(asked, name) for name in ("dataset", "matcher", "scheduler", "network", "protocol")}
    given = named | {"ipc": asked.ipc, "seed": asked.seed, "device": cell.spec.device, "students": suite.students}
    flags = [word for name, value in asked.flags for word in ("-o", f"{name}={value}")]
    trackers = [word for name in suite.trackers for word in ("--tracker", name)]
    given |= {"recipe": asked.recipe} if asked.recipe else {}
    plain = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["run", *plain, *flags, "--out", str(out), "--no-random", "--no-ceiling", *trackers]


def parts_of(cells: Sequence[Cell], takings: Takings | None, done: Iterable[str] = ()) -> list[Part]:
    """The parts of a suite: the cells alone, or with ``takings`` the experts that they share before them.

    ``done`` are the keys of expert parts that were made before.
    """
    if takings is None:
        return [Part(cell, ahead=cell.experts) for cell in cells]
    made, experts, waits = set(done), [], {cell.key: frozenset[str]() for cell in cells}
    for pool, users in pools(cells, takings).values():
        own = [Part(users[0], pool, first) for first in range(0, pool.count, pool.at_once)]
        own = [part for part in own if part.key not in made and not _there(part, takings)]
        experts += own
        for cell in users:
            waits[cell.key] = frozenset(part.key for part in own)
    return [*experts, *(Part(cell, after=waits[cell.key], ahead=_ahead(cell, takings)) for cell in cells)]


def _ahead(cell: Cell, takings: Takings) -> str | None:
    """What a cell's first stage may have to make that others need, too, and that is no part of its own: teachers."""
    taking = takings.of(cell)
    return None if taking is not None and not taking.teachers else cell.experts


def _there(part: Part, takings: Takings) -> bool:
    """Whether all experts of a part are trained; where they are for another device, that cannot be told here."""
    taking, pool = takings.of(part.cell), part.pool
    if taking is None or taking.problem is None or pool is None or part.cell.spec.device != "cpu":
        return False
    return not taking.problem.experts.missing(part.stop, pool.snapshots, part.first)


@dataclass(frozen=True)
class Desk:
    """Makes jobs of parts: ``base`` is where their logs and orders are; ``remote``, that they may run elsewhere."""

    suite: Suite
    out: Path
    base: Path
    remote: bool

    def job(self, part: Part, taking: Taking | None, peak: int | None, seconds: float | None = None) -> Job:
        """The job of a part. Raises DataError where its order cannot be written."""
        cell, known = part.cell, memory(part.cell, taking, peak)
        gpus = 0.0
        if cell.spec.device.startswith("cuda"):
            alone = self.remote or not known["gpu_memory"]  # on this machine, memory that is known is enough to share
            gpus = cell.gpus or (1.0 if alone else 0.0)
        given = words(cell, self.suite, self.out) if part.pool is None else []
        environment: dict[str, str] = {}
        if self.remote:
            order = self.base.absolute() / f"{part.file}.order.json"
            write_json(order, self._order(part, given))
            given = ["suite", "work", str(order)]
            environment = {"DDBENCH_HOME": str(home().absolute()), "DDBENCH_DATA": str(data_home().absolute())}
        return Job(
            name=part.name,
            words=tuple(given),
            log=self.base.absolute() / f"{part.file}.log" if self.remote else self.base / f"{part.file}.log",
            within=self.out.absolute() if self.remote else self.out,
            threads=cell.spec.threads,
            gpus=gpus,
            seconds=seconds or 0.0,
            environment=environment,
            **known,
        )

    def _order(self, part: Part, given: list[str]) -> dict[str, Any]:
        """What a node is told beside its environment: what to do, by which code, and which lock this process holds."""
        spec = part.cell.spec
        request = replace(part.cell.request, device=spec.device, here=True)
        experts = None
        if part.pool is not None:
            experts = {"first": part.first, "stop": part.stop, "snapshots": part.pool.snapshots}
        return {
            "words": given,
            "request": asdict(request),
            "experts": experts,
            "out": str(self.out.absolute()),
            "folder": str(Path.cwd()),
            "lock": str(self.base.absolute().with_suffix(".lock")),
            "ddbench": code(),
            "versions": dict(spec.versions),
            "sources": sources(spec),
        }
