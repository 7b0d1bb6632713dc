"""Where suites are: by a path, or by the name of one that comes with ddbench, which is that of its board."""

from __future__ import annotations

from pathlib import Path

from ddbench.base.shipped import shipped
from ddbench.errors import UsageError, did_you_mean


def suites() -> dict[str, Path]:
    """The suites that come with ddbench, by their names."""
    root = shipped("leaderboards")
    found = {path.parent.name: path for path in root.glob("*/suite.toml")}
    return dict(sorted((found | {path.stem: path for path in root.glob("suites/*.toml")}).items()))


def suite_file(given: Path) -> Path:
    """The file of a suite: ``given`` if it is there, else that of the suite of this name, with ``.toml`` or without."""
    there = suites()
    if given.is_file() or len(given.parts) > 1:
        return given
    name = given.name.removesuffix(".toml")
    if name not in there:
        raise UsageError(
            f"there is no file {given}, and no suite of this name comes with ddbench{did_you_mean(name, there)} "
            f"({', '.join(there) or 'none does'})"
        )
    return there[name]
