"""Puts one mutated module in the place of the real one, in this process and in those that it starts.

``DDBENCH_MUTANT=MODULE:FILE`` names the module and where its mutated source lies; Python imports this file at its start
where its folder stands in ``PYTHONPATH``. The tree that holds the real source is only read.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class _Source(importlib.machinery.SourceFileLoader):
    """Loads the mutated text under the name and the path of the real file, past every cache of bytecode."""

    text = b""

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError(path)
        return self.text

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError(path)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutated module, and leaves all others to those that follow."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name, self.text = name, text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        real = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert real is not None
        assert real.origin is not None
        loader = _Source(fullname, real.origin)
        loader.text = self.text
        folders = real.submodule_search_locations
        return importlib.util.spec_from_file_location(
            fullname, real.origin, loader=loader, submodule_search_locations=folders
        )


def install(asked: str) -> None:
    """Have ``MODULE:FILE`` found first."""
    name, file = asked.split(":", 1)
    sys.meta_path.insert(0, _Finder(name, Path(file).read_bytes()))


if os.environ.get("DDBENCH_MUTANT"):
    install(os.environ["DDBENCH_MUTANT"])
