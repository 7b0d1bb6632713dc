"""ddbench: a plugin-based benchmark suite for dataset distillation.

Everything a plugin needs can be imported from here; names are loaded on first use, so that
``ddbench --help`` starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.augment import DSA
    from ddbench.data import Dataset, Examples, RealData, stratified
    from ddbench.errors import DataError, DDBenchError, DivergedError, UsageError, did_you_mean
    from ddbench.evaluate import Examinee
    from ddbench.experts import Experts
    from ddbench.hookspecs import hookimpl
    from ddbench.networks import Network
    from ddbench.pixels import Pixels, Store
    from ddbench.preprocessing import Preprocessing
    from ddbench.problem import Needs, Problem
    from ddbench.progress import report
    from ddbench.seeds import Seed
    from ddbench.sets import Curriculum, Pool, SyntheticSet, Teacher, share
    from ddbench.starts import Starts, Teaching, teach
    from ddbench.training import Recipe, Student, fit, predict, soft_cross_entropy, squared_error

API_VERSION = 1

_HOME = {
    "DSA": "augment",
    "Curriculum": "sets",
    "DDBenchError": "errors",
    "DataError": "errors",
    "Dataset": "data",
    "DivergedError": "errors",
    "Examinee": "evaluate",
    "Examples": "data",
    "Experts": "experts",
    "Needs": "problem",
    "Network": "networks",
    "Pool": "sets",
    "Pixels": "pixels",
    "Preprocessing": "preprocessing",
    "Problem": "problem",
    "RealData": "data",
    "Recipe": "training",
    "Seed": "seeds",
    "Starts": "starts",
    "Store": "pixels",
    "Student": "training",
    "SyntheticSet": "sets",
    "Teacher": "sets",
    "Teaching": "starts",
    "UsageError": "errors",
    "did_you_mean": "errors",
    "fit": "training",
    "hookimpl": "hookspecs",
    "predict": "training",
    "report": "progress",
    "share": "sets",
    "soft_cross_entropy": "training",
    "squared_error": "training",
    "stratified": "data",
    "teach": "starts",
}

__all__ = ["API_VERSION", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ddbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ddbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
