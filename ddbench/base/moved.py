"""Where modules went: old names stay importable for plugins, with a warning, and old checkpoints find their classes."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from types import ModuleType

TYPE_CHECKING = False  # no more than this is loaded before signals are heard
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# The modules that plugins could import before 0.2, besides the names of ``ddbench`` itself. ``ddbench.trajectory``,
# which is a package now, hands out its old names by itself.
MODULES = {
    "ddbench.augment": "ddbench.data.augment",
    "ddbench.cache": "ddbench.base.cache",
    "ddbench.compiled": "ddbench.trajectory.engine",  # and, for when to compile, ddbench.train.compile
    "ddbench.decode": "ddbench.problem.decode",
    "ddbench.descent": "ddbench.trajectory.descent",
    "ddbench.labelling": "ddbench.problem.labels",
    "ddbench.mixing": "ddbench.data.mixing",
    "ddbench.optimisers": "ddbench.train.optimisers",
    "ddbench.unroll": "ddbench.trajectory.unroll",
}
# Modules whose classes stand in the checkpoints and stage results of earlier versions, by module and name.
CLASSES = MODULES | {"ddbench.sets": "ddbench.problem.synthetic", "ddbench.data": "ddbench.data.dataset"}


def deprecated(old: str, new: str) -> None:
    """Warn whoever imports ``old``."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next version", DeprecationWarning, stacklevel=3)


class _Alias(ModuleType):
    """A module under its old name: everything that is asked of it is asked of the one that it is now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        new = importlib.import_module(MODULES[self.__name__])
        if name == "__all__":
            return [public for public in vars(new) if not public.startswith("_")]
        if self.__name__ == "ddbench.compiled" and not hasattr(new, name):
            new = importlib.import_module("ddbench.train.compile")
        return getattr(new, name)


class Finder:
    """Finds the modules of ``MODULES`` under their old names: a finder and loader of ``sys.meta_path``."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /
    ) -> importlib.machinery.ModuleSpec | None:
        loader: Any = self
        return importlib.machinery.ModuleSpec(fullname, loader) if fullname in MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        deprecated(module.__name__, MODULES[module.__name__])


def install() -> None:
    """Let old names be imported; asking twice is asking once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
