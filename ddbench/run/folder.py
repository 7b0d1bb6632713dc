"""Folders of runs: which there are, which one a name means, what they hold, and whether one is finished."""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from pathlib import Path

from ddbench.errors import DataError
from ddbench.run.record import ResultRecord, RunRecord, plain_name
from ddbench.run.row import DAMAGED, Row

FINAL = ("ok", "diverged")


def run_folders(out: Path) -> list[Path]:
    """The run folders in ``out``, oldest name first."""
    return sorted(path.parent for path in out.glob("*/spec.json")) if out.is_dir() else []


def find_run(name: str, out: Path) -> Path:
    """A run by its folder, its name in ``out``, or the start or end of that name (its key)."""
    if os.path.exists(os.path.join(name, "spec.json")):  # noqa: PTH110, PTH118 - of no length or letter a traceback
        return Path(name)
    if exact := [f for f in run_folders(out) if f.name == name]:
        return exact[0]
    matches = [f for f in run_folders(out) if f.name == name or f.name.startswith(name) or f.name.endswith(name)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise DataError(f"no run {name!r} here or in {out}; `ddbench list runs --out DIR` shows what there is")
    raise DataError(f"{name!r} could be any of {', '.join(m.name for m in matches)}; give more of the name")


def finished(folder: Path) -> ResultRecord | None:
    """The committed result of a run folder, or None."""
    path = folder / "result.json"
    return ResultRecord.from_file(path) if path.exists() else None


def rows(folders: Iterable[Path]) -> list[Row]:
    """The rows of all runs in order. One that cannot be read stands in no other's way: it is a row with the reason."""
    return [row for run in readable(folders) for row in (run.rows() if isinstance(run, RunRecord) else [run])]


def readable(folders: Iterable[Path]) -> list[RunRecord | Row]:
    """The runs in folders, each as a record, or as the row of one that is damaged."""
    found: list[RunRecord | Row] = []
    for folder in folders:
        try:
            found.append(RunRecord.read(folder))
        except DataError as error:
            name = plain_name(folder)
            found.append(Row(run=name, status=DAMAGED, error=str(error), setting=name))
    return found
