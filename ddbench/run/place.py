"""Where a run is: under its key, or under the one that an earlier version gave it; and how another takes its place."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from ddbench.base import cache
from ddbench.base.cache import lock
from ddbench.errors import DDBenchError
from ddbench.run.folder import SET_ASIDE
from ddbench.run.record import SpecRecord
from ddbench.run.spec import PLUGGED, RunSpec, from_record, known_options


def folder_of(spec: RunSpec, out: Path) -> Path:
    """The folder of a run in ``out``, if it is to be made that under its key."""
    folder = out / spec.folder
    if (folder / "spec.json").exists():
        return folder
    words = spec.folder.removesuffix(spec.key)
    return next((old for old in sorted(out.glob(f"{glob.escape(words)}*")) if _is_that_of(spec, old)), folder)


def _is_that_of(spec: RunSpec, folder: Path) -> bool:
    """Whether an earlier version, whose keys held the versions of distributions, made ``folder`` for this spec."""
    path = folder / "spec.json"
    if not path.exists() or SET_ASIDE in folder.name:
        return False
    try:
        held = SpecRecord.from_file(path).json_value()
        if "declared" in held:  # it has a key of now, which is another
            return False
        made = from_record(known_options(held))
    except (DDBenchError, KeyError):  # damaged, or of plugins that are not here
        return False
    undeclared = {*made.declared.values()} == {"1"}  # as all were, then
    return undeclared and made.key == spec.key and called(made, held, folder.name)


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A spec's record without what does not decide the run, and with what versions before 0.2 did not record."""
    held = known_options(record)
    declared = {f"{kind} {held[kind]['name']}": "1" for kind in PLUGGED}
    return {"declared": declared} | {name: value for name, value in held.items() if name != "versions"}


def called(spec: RunSpec, held: dict[str, object], name: str) -> bool:
    """Whether ``name`` is what the run of a spec, which its folder recorded as ``held``, is called in some version."""
    versions = held.get("versions")
    old = spec.old_key(versions) if isinstance(versions, dict) and "declared" not in held else spec.key
    return name in (spec.folder, f"{spec.folder.removesuffix(spec.key)}{old}")


def deleted(folder: Path) -> str:
    """What is said where the folder of a run is deleted under it."""
    return f"{folder} was deleted while its run was at work; run the same command again to start anew"


def set_aside(folder: Path) -> Path:
    """Rename the folder of a run so that another can be made, and nothing is lost. Raises BusyError for one at work."""
    with lock(folder / ".lock", wait=False):
        return cache.set_aside(folder)
