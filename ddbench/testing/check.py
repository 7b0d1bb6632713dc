"""The conformance kit on all that a package registers: one that is installed, one in a folder, or an example."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from ddbench.base.opening import parse_toml, read_text
from ddbench.base.options import make
from ddbench.base.shipped import shipped
from ddbench.errors import DataError, UsageError, did_you_mean
from ddbench.plugins import Plugin, Registry, registry
from ddbench.testing.findings import CHECKS, PASSED, Findings
from ddbench.testing.kit import examine

GROUP = "ddbench"


@dataclass(frozen=True)
class Examined:
    """A plugin and what its checks found."""

    plugin: Plugin
    found: Findings

    @property
    def sound(self) -> bool:
        """Whether it passed them all."""
        return set(self.found.outcomes().values()) == {PASSED}

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Each check: its name, its outcome, and what is wrong, or else what it tells."""
        told = CHECKS[self.found.kind] | self.found.failed
        return [(name, outcome, told[name]) for name, outcome in self.found.outcomes().items()]


def examined(plugins: list[Plugin], given: Mapping[str, Mapping[str, str]]) -> list[Examined]:
    """Run the kit on each plugin, with the options that are given for its kind and that it has.

    Plugins of a kind without checks are left out. Raises UsageError where that leaves none.
    """
    checked = [plugin for plugin in plugins if plugin.kind in CHECKS]
    if not checked:
        raise UsageError(f"the kit has checks of a {', '.join(CHECKS)}, and none of a {plugins[0].kind}")
    for kind, options in given.items():
        known = {f.name for plugin in plugins if plugin.kind == kind for f in fields(plugin.cls)}
        if wrong := sorted(set(options) - known):
            raise UsageError(f"no {kind} here has an option {wrong[0]!r}{did_you_mean(wrong[0], known)}")
    return [Examined(plugin, examine(plugin.kind, _instance(plugin, given))) for plugin in checked]


def _instance(plugin: Plugin, given: Mapping[str, Mapping[str, str]]) -> Any:
    """The class, whose defaults are examined, too; or an object with the options that were given."""
    own = {f.name for f in fields(plugin.cls)}
    options = {name: value for name, value in given.get(plugin.kind, {}).items() if name in own}
    return make(plugin.cls, options, plugin.kind) if options else plugin.cls


def found(name: str) -> list[Plugin]:
    """All that a package registers: by its folder, by its name, by the name of a plugin, or as an example of ddbench's.

    Raises UsageError where nothing is called so, DataError where it cannot be loaded.
    """
    for place in (Path(name), shipped("examples") / name):
        if (place / "pyproject.toml").is_file():
            return _in_folder(place)
    every = list(registry().plugins.values())
    ours = [p for p in every if _normal(p.package) == _normal(name)] or [p for p in every if p.name == name]
    if broken := [b for b in registry().broken if name == b.name or _normal(b.package) == _normal(name)]:
        raise DataError("; ".join(map(str, broken)))
    if not ours:
        there = {p.package for p in every} | {p.name for p in every}
        raise UsageError(
            f"nothing is called {name!r:.80}{did_you_mean(name, there)}: name an installed package, one of its "
            "plugins, or a folder with a pyproject.toml"
        )
    return ours


def _in_folder(folder: Path) -> list[Plugin]:
    """What a package that need not be installed registers: its entry points say which modules."""
    path = folder / "pyproject.toml"
    try:
        points = parse_toml(read_text(path)).get("project", {}).get("entry-points", {}).get(GROUP, {})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is not readable TOML of a package: {error}") from error
    if not isinstance(points, dict) or not points or not all(isinstance(value, str) for value in points.values()):
        raise UsageError(f"{path} has no [project.entry-points.{GROUP}], so that it brings no plugins")
    for place in (folder, folder / "src"):
        if place.is_dir() and str(place.resolve()) not in sys.path:
            sys.path.insert(0, str(place.resolve()))
    importlib.invalidate_caches()
    loaded = Registry()
    for name, module in points.items():
        loaded.load(EntryPoint(name, module, GROUP))
    if loaded.broken:
        raise DataError("; ".join(f"plugin {b.name!r} in {folder} cannot be loaded: {b.reason}" for b in loaded.broken))
    return list(loaded.plugins.values())


def _normal(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()
