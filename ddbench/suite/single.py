"""A run from a file: the format of a suite's cell, as every run folder holds one (``run.toml``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ddbench.errors import UsageError
from ddbench.run.spec import Request
from ddbench.suite.entries import count_of, known_keys, table_of
from ddbench.suite.grid import MATRIX, cells_of

KEYS = (*MATRIX, "students", "threads", "device")


@dataclass(frozen=True)
class Single:
    """What a file asks for: one run, with each of the seeds; None is what it leaves to others."""

    request: Request
    seeds: tuple[int, ...]
    students: int | None
    threads: int | None


def read_run(path: Path) -> Single:
    """Read the file of a run. Raises UsageError that names the entry at fault, and where it asks for several."""
    given = table_of(path)
    known_keys(given, KEYS, str(path))
    matrix = {name: value for name, value in given.items() if name in MATRIX}
    requests = [request for _, request in cells_of(matrix, str(path))]
    alike = {request.with_seed(0) for request in requests}
    if len(alike) > 1:
        raise UsageError(
            f"{path} describes {len(alike)} runs, and --config takes one, with one seed or several; put it under a "
            "[[matrix]] and run it with `ddbench suite run`"
        )
    device = given.get("device", "auto")
    if not isinstance(device, str):
        raise UsageError(f"device of {path} must be a text, got {device!r}")
    students, threads = (count_of(given, name, 1, path) if name in given else None for name in ("students", "threads"))
    (request,) = alike
    seeds = tuple(dict.fromkeys(one.seed for one in requests))
    return Single(replace(request, device=device), seeds, students, threads)
