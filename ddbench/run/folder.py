"""Folders of runs: which there are, which one a name means, and whether it is finished."""

from __future__ import annotations

from pathlib import Path

from ddbench.errors import DataError
from ddbench.run.record import ResultRecord

FINAL = ("ok", "diverged")


def run_folders(out: Path) -> list[Path]:
    """The run folders in ``out``, oldest name first."""
    return sorted(path.parent for path in out.glob("*/spec.json")) if out.is_dir() else []


def find_run(name: str, out: Path) -> Path:
    """A run by its folder, its name in ``out``, or the start or end of that name (its key)."""
    if (Path(name) / "spec.json").exists():
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
