"""Folders of runs: which there are, which one a name means, what they hold, and whether one is finished."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddbench.base.cache import SET_ASIDE as SET_ASIDE
from ddbench.errors import DataError
from ddbench.run.record import ResultRecord, RunRecord, plain_name
from ddbench.run.row import DAMAGED, Row

FINAL = ("ok", "diverged")


def run_folders(out: Path, *, set_aside: bool = False) -> list[Path]:
    """The run folders in ``out``, oldest name first; not those that were set aside, unless they are asked for."""
    found = sorted(path.parent for path in out.glob("*/spec.json")) if out.is_dir() else []
    return [folder for folder in found if set_aside or SET_ASIDE not in folder.name]


def find_run(name: str, out: Path) -> Path:
    """A run by its folder, its name in ``out``, or the start or end of that name (its key)."""
    if os.path.exists(os.path.join(name, "spec.json")):  # noqa: PTH110, PTH118 - of no length or letter a traceback
        return Path(name)
    if exact := [f for f in run_folders(out, set_aside=True) if f.name == name]:
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


def readable(folders: Iterable[Path]) -> list[RunRecord | Row]:
    """The runs in folders as records. One that is damaged stands in no other's way: it is a row with the reason."""
    found: list[RunRecord | Row] = []
    for folder in folders:
        try:
            found.append(RunRecord.read(folder))
        except DataError as error:
            found.append(damaged(folder, error))
    return found


def damaged(path: Path, error: DataError) -> Row:
    """The row of a run, or of an entry, that cannot be read, with the reason."""
    name = plain_name(path)
    return Row(run=name, status=DAMAGED, error=str(error), setting=name)


def rows(runs: Sequence[RunRecord | Row]) -> list[Row]:
    """The rows of runs, in order, so that runs of one setting are recognised whichever version recorded them.

    Options that were removed since are left out where they stand at what was their default. Plugins, which takes a
    second to load, are asked for them only where runs do not all have the same options.
    """
    recorded: dict[tuple[str, str], set[frozenset[str]]] = {}
    for run in runs:
        if isinstance(run, RunRecord):
            spec = run.spec
            for kind, plugin in (("dataset", spec.dataset), ("matcher", spec.matcher), ("scheduler", spec.scheduler)):
                recorded.setdefault((kind, plugin.name), set()).add(frozenset(plugin.options))
            for kind in ("experts", "decoder"):
                recorded.setdefault((kind, ""), set()).add(frozenset(getattr(spec, kind)))
    if any(len(names) > 1 for names in recorded.values()):
        from ddbench.run.spec import current

        runs = [current(run) if isinstance(run, RunRecord) else run for run in runs]
    return [row for run in runs for row in (run.rows() if isinstance(run, RunRecord) else [run])]
