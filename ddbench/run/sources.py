"""The code that a run was made by: the digests of the source of the plugins that it uses, and of ddbench.

Keys hold the versions that plugins declare, which their authors may forget to raise. The digests stand beside the key,
in ``sources.json`` from the start and in ``result.json`` at the end, so that a run made by other code is noticed. What
counts as a plugin's code is decided in :mod:`ddbench.base.code`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from ddbench.base import code
from ddbench.base.schema import Digest, Held, Text
from ddbench.run.folder import finished
from ddbench.run.named import teachers_named
from ddbench.run.spec import PLUGGED, RunSpec

FILE = "sources.json"
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
    """sha256 (hex) of the source behind each plugin, by package or module, and of ddbench's own."""
    found = {code.BUILT_IN: _own()}
    for cls in _used(spec):
        found |= code.code_of(cls)
    return found


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
    """The sources of third parties' plugins that are edited where they lie."""
    return {name for cls in _used(spec) for name in code.in_development(cls)}


def _used(spec: RunSpec) -> list[type]:
    """The classes of a run's plugins, and of the networks that its matcher names as teachers."""
    return [
        *(type(getattr(spec, kind)) for kind in PLUGGED),
        *(plugin.cls for plugin in teachers_named(spec.matcher).values()),
    ]


def deciding() -> list[Path]:
    """The files of ddbench that decide the numbers of a run."""
    home = Path(__file__).parents[1]
    return [file for part in _DECIDING for file in code.Root(part, home / part).files]


@cache
def _own() -> str:
    return code.digest_of(Path(__file__).parents[1], deciding())
