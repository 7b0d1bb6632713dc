"""The code that a run was made by: the digest of the source of each plugin that it uses, and of ddbench.

Keys hold the versions that plugins declare, which their authors may forget to raise. The digests stand beside the key,
in ``sources.json`` from the start and in ``result.json`` at the end, so that a run made by other code is noticed.
"""

from __future__ import annotations

import hashlib
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

from pydantic import Field

from ddbench.base.cache import file_digest
from ddbench.base.schema import Digest, Held, Text
from ddbench.plugins import registry
from ddbench.run.folder import finished
from ddbench.run.spec import PLUGGED, RunSpec

FILE = "sources.json"
BUILT_IN = "ddbench"  # the distribution
# What of ddbench decides the numbers of a run: not how it is asked for, stored, compared and shown.
_DECIDING = (
    "base/seeds.py",
    "data",
    "train",
    "problem",
    "trajectory",
    "grade/protocol.py",
    "grade/selection.py",
    "grade/student.py",
    "run/run.py",
    "run/stage.py",
)


class SourcesRecord(Held):
    """``sources.json``: what a run was started by."""

    sources: dict[Text, Digest] = Field(default={})


def sources(spec: RunSpec) -> dict[str, str]:
    """sha256 (hex) of the Python files of each plugin's package or module, by its name, and of ddbench's own."""
    roots = dict(filter(None, (_root(type(getattr(spec, kind))) for kind in PLUGGED)))
    home = Path(__file__).parents[1]
    own = [file for part in _DECIDING for file in _files(home / part)]
    return {"ddbench": _digest(home, own)} | {name: _digest(root, _files(root)) for name, root in roots.items()}


def recorded(folder: Path) -> dict[str, str]:
    """What a run was made by, or as far as it has come was begun by; empty for runs of earlier versions."""
    result = finished(folder)
    if result is not None and result.sources:
        return result.sources
    path = folder / FILE
    return SourcesRecord.from_file(path).sources if path.exists() else {}


def changed(spec: RunSpec, folder: Path) -> list[str]:
    """The names of the sources that are not what the run in ``folder`` was made by."""
    held, now = recorded(folder), sources(spec)
    return [name for name, value in now.items() if held.get(name, value) != value]


def outdated(spec: RunSpec, folder: Path) -> list[str]:
    """The names of changed sources that are being worked on: a run made by them is made anew unless told otherwise."""
    if not (folder / "spec.json").exists():
        return []
    worked_on = in_development(spec)
    return [name for name in changed(spec, folder) if name in worked_on] if worked_on else []


def in_development(spec: RunSpec) -> set[str]:
    """The sources of third parties' plugins that are edited where they lie: installed editable, or on PYTHONPATH."""
    kept = {path for name in ("purelib", "platlib") if (path := sysconfig.get_paths().get(name))}
    kept |= {*site.getsitepackages(), site.getusersitepackages()}
    found = set()
    for kind in PLUGGED:
        plugin: Any = getattr(spec, kind)
        root, own = _root(type(plugin)), registry().plugins.get((kind, plugin.name))
        if root and own and own.package != BUILT_IN and not any(root[1].is_relative_to(path) for path in kept):
            found.add(root[0])
    return found


def _root(cls: type) -> tuple[str, Path] | None:
    """The outermost package (not a namespace) or module that defines a class, and where its source is."""
    parts = cls.__module__.split(".")
    for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            path = Path(file)
            return name, path.parent if path.stem == "__init__" else path
    return None


def _files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py")) if root.is_dir() else [root] if root.is_file() else []


def _digest(root: Path, files: list[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(root.parent).as_posix()} {file_digest(file)}\n".encode())
    return found.hexdigest()
