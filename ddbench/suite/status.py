"""What is known of a suite's cells: how each stands, how long cells like it took, and what it will take."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import PlainValidator

from ddbench.base.opening import in_place, parse_json, read_bytes
from ddbench.base.schema import Digest, Held, Name, Text, number
from ddbench.errors import DataError
from ddbench.run.cost import Cost
from ddbench.run.folder import finished
from ddbench.run.place import folder_of
from ddbench.run.record import RunRecord
from ddbench.run.sources import outdated
from ddbench.suite.costs import costs
from ddbench.suite.grid import Cell, Suite
from ddbench.suite.taking import Taking, Takings

BAD = ("diverged", "failed", "killed")  # how a cell ends that is not run again unless asked for


class CellRecord(Held):
    """A line of a suite's records: how a cell ended, or that its run was removed."""

    key: Name
    status: Name = ""
    like: Digest = ""
    seconds: Annotated[float, PlainValidator(number), Ge(0)] = 0.0
    finished: Text = ""
    error: Text | None = None


def records(out: Path) -> list[dict[str, Any]]:
    """Everything that any suite recorded in ``out``, oldest first. A line that a crash cut short is passed over.

    The lines of a file are in their order, whatever the clocks of those who wrote them said.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for path in sorted((out / "suites").glob("*.jsonl")):
        latest = ""
        for line in read_bytes(path).decode(errors="replace").splitlines():
            with suppress(ValueError, DataError):
                record = CellRecord.checked(parse_json(line), "{}").json_value()
                latest = max(latest, record.get("finished", ""))
                found.append((latest, record))
    return [record for _, record in sorted(found, key=lambda pair: pair[0])]


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line that is on disk when this returns; one that a crash cut short before it is closed first."""
    line = (json.dumps(record, sort_keys=True, allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_place(path, "a+b", within=path.parents[1]) as stream:
            end = stream.seek(0, os.SEEK_END)
            torn = end and os.pread(stream.fileno(), 1, end - 1) != b"\n"
            stream.write(b"\n" + line if torn else line)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; free some space and run again") from error


def standing(cell: Cell, out: Path, students: int, known: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """(status, reason) of a cell by its run folder, and where that says nothing by its last record; '' is to do."""
    folder = folder_of(cell.spec, out)
    try:
        if outdated(cell.spec, folder):  # it is made anew when it is run
            return "", ""
        result = finished(folder)
        if result and result.status == "diverged":
            return "diverged", result.error or ""
        if result and result.status == "ok" and _evaluated(RunRecord.read(folder), cell, students):
            return "ok", ""
    except DataError as error:  # a damaged file is the trouble of this cell alone
        return "failed", str(error)
    last = known.get(cell.key, {})
    if last.get("status") in BAD:
        return last["status"], last.get("error") or ""
    return ("failed", result.error or "") if result and result.status == "failed" else ("", "")


def _evaluated(run: RunRecord, cell: Cell, students: int) -> bool:
    rules = cell.spec.protocol.digest
    return any(e.complete and e.n == students and e.protocol_digest == rules for e in run.evaluations)


def cell_standings(suite: Suite, out: Path) -> dict[str, tuple[str, str]]:
    """The standing of every cell, by its key."""
    known = {record["key"]: record for record in records(out)}
    return {cell.key: standing(cell, out, suite.students, known) for cell in suite.cells}


def expected(cells: Iterable[Cell], out: Path) -> dict[str, float]:
    """Seconds that cells took, all attempts together, that differ from these at most in their seed; by their key."""
    attempts: dict[str, float] = defaultdict(float)
    took: dict[str, list[float]] = defaultdict(list)
    for record in records(out):
        if record.get("status") == "removed":
            attempts.pop(record["key"], None)
            continue
        attempts[record["key"]] += record.get("seconds", 0.0)
        if record.get("status") == "ok":
            took[record.get("like", "")].append(attempts.pop(record["key"]))
    return {cell.key: sum(took[cell.like]) / len(took[cell.like]) for cell in cells if took.get(cell.like)}


def due(cells: Iterable[Cell], stands: dict[str, tuple[str, str]], *, retry: bool, limit: int | None) -> list[Cell]:
    """The cells to run now, in order: what is to do, with ``retry`` also what ended badly; at most ``limit``."""
    again = BAD if retry else ()
    return [cell for cell in cells if stands[cell.key][0] in ("", *again)][:limit]


def plan(
    suite: Suite,
    out: Path,
    say: Callable[[str], None],
    *,
    on_existing: str,
    retry: bool,
    limit: int | None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Every cell with its standing, and what those that are due will take. Trains nothing, and starts nothing.

    ``device`` is the one whose rates tell what cells cost (:mod:`ddbench.run.cost`).
    """

    def tell(text: str) -> None:
        say(suite.masked(text))

    stands, times = cell_standings(suite, out), expected(suite.cells, out)
    if on_existing == "rerun":
        again = {cell.key: ("", "") for cell in suite.cells if finished(folder_of(cell.spec, out))}
        now = due(suite.cells, stands | again, retry=retry, limit=limit)
    else:
        now = due(suite.cells, stands, retry=retry, limit=limit)
    keys = {cell.key for cell in now}
    takings = Takings(tell)
    priced = costs(now, takings, suite.students, device)
    return [
        {
            "cell": cell.name,
            "key": cell.key,
            "run": cell.spec.folder,
            "status": stands[cell.key][0] or "to do",
            "error": suite.masked(stands[cell.key][1]) or None,
            "due": cell.key in keys,
            "expected_seconds": times.get(cell.key),
            "experts": cell.experts,
            "cost_seconds": _seconds(priced.get(cell.key)),
            **_place(cell, takings.of(cell) if cell.key in keys else None),
            **(_cost(takings.of(cell)) if cell.key in keys else {}),
        }
        for cell in suite.cells
    ]


def _seconds(cost: Cost | None) -> float | None:
    """What the cost model tells of a cell; None where it tells nothing of its longest part."""
    return None if cost is None or cost.distilling is None else cost.known


def _place(cell: Cell, taking: Taking | None) -> dict[str, Any]:
    """What a cell's job asks for: threads, the part of a GPU, and its experts as jobs of their own."""
    pool = taking.pool if taking else None
    jobs = 0 if pool is None else -(-pool.count // pool.at_once)
    return {"threads": cell.spec.threads, "device": cell.spec.device, "gpus": cell.gpus, "expert_jobs": jobs}


def _cost(taking: Taking | None) -> dict[str, int]:
    """Bytes on disk and of memory, from the forecast of ``ddbench run --dry-run``."""
    names = ("expert_bytes", "set_bytes", "memory_bytes")
    return {} if taking is None else {name: getattr(taking, name) for name in names}


def totals(lines: list[dict[str, Any]], jobs: int) -> dict[str, Any]:
    """What a plan takes in all: experts that cells share count once, and so does the memory of ``jobs`` cells."""
    now = [line for line in lines if line["due"]]
    times = [line["expected_seconds"] for line in now]
    shared: dict[Any, int] = {}
    for line in now:
        shared[line["experts"]] = max(shared.get(line["experts"], 0), line.get("expert_bytes", 0))
    largest = sorted((line.get("memory_bytes", 0) for line in now), reverse=True)
    return {
        "cells": len(lines),
        "to_do": len(now),
        "seconds": None if None in times else sum(times) / jobs,
        "known_seconds": sum(time for time in times if time is not None) / jobs,
        "unknown": sum(time is None for time in times),
        "cost_seconds": sum(line["cost_seconds"] or 0.0 for line in now),
        "cost_unknown": sum(line["cost_seconds"] is None for line in now),
        "disk_bytes": sum(shared.values()) + sum(line.get("set_bytes", 0) for line in now),
        "memory_bytes": sum(largest[:jobs]),
    }
