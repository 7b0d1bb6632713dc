"""ddbench: a plugin-based benchmark suite for dataset distillation.

Everything a plugin needs can be imported from here; names are loaded on first use, so that ``ddbench --help`` starts
without torch. What a method may want besides stands in :data:`PUBLIC_MODULES`. Any other module may change at any time.
"""

from __future__ import annotations

import importlib

from ddbench.base.moved import install

TYPE_CHECKING = False  # typing's takes longer to load than all of this: signals are heard from here on
if TYPE_CHECKING:
    from typing import Any

    from ddbench.api import Grade, Result, compare, distil, load
    from ddbench.base.progress import note, report
    from ddbench.base.seeds import Seed
    from ddbench.data.augment import DSA
    from ddbench.data.dataset import Dataset, Examples, RealData, stratified
    from ddbench.data.pixels import Pixels, Store
    from ddbench.data.preprocessing import Preprocessing
    from ddbench.errors import DataError, DDBenchError, DivergedError, LostError, UsageError, did_you_mean
    from ddbench.hookspecs import Examinee, Published, hookimpl
    from ddbench.problem.experts import Experts
    from ddbench.problem.problem import Memory, Needs, Problem
    from ddbench.problem.starts import Starts, Teaching, teach
    from ddbench.problem.synthetic import Curriculum, Pool, SyntheticSet, Teacher, share
    from ddbench.run.named import networks_named
    from ddbench.train.fit import Recipe, Student, fit, predict, soft_cross_entropy, squared_error
    from ddbench.train.network import Network

    __version__: str

_HOME = {
    "DSA": "data.augment",
    "Curriculum": "problem.synthetic",
    "DDBenchError": "errors",
    "DataError": "errors",
    "Dataset": "data.dataset",
    "DivergedError": "errors",
    "Grade": "api",
    "Result": "api",
    "compare": "api",
    "distil": "api",
    "load": "api",
    "networks_named": "run.named",
    "Examinee": "hookspecs",
    "Examples": "data.dataset",
    "Experts": "problem.experts",
    "LostError": "errors",
    "Memory": "problem.problem",
    "Needs": "problem.problem",
    "Network": "train.network",
    "Pool": "problem.synthetic",
    "Pixels": "data.pixels",
    "Preprocessing": "data.preprocessing",
    "Problem": "problem.problem",
    "Published": "hookspecs",
    "RealData": "data.dataset",
    "Recipe": "train.fit",
    "Seed": "base.seeds",
    "Starts": "problem.starts",
    "Store": "data.pixels",
    "Student": "train.fit",
    "SyntheticSet": "problem.synthetic",
    "Teacher": "problem.synthetic",
    "Teaching": "problem.starts",
    "UsageError": "errors",
    "did_you_mean": "errors",
    "fit": "train.fit",
    "hookimpl": "hookspecs",
    "predict": "train.fit",
    "note": "base.progress",
    "report": "base.progress",
    "share": "problem.synthetic",
    "soft_cross_entropy": "train.fit",
    "squared_error": "train.fit",
    "stratified": "data.dataset",
    "teach": "problem.starts",
}

# Modules for plugins, besides the names above. Both are stable within a version; what moves stays importable by its old
# name for one version more, with a DeprecationWarning. In "young" ones, signatures may change with a version.
PUBLIC_MODULES = {
    "ddbench.base.cache": "stable",  # atomic files, locks, content addresses
    "ddbench.base.process": "young",  # jobs of a suite, and carrying them out
    "ddbench.data.augment": "stable",  # DSA and DiffAug, drawn apart from being applied
    "ddbench.data.mixing": "stable",  # CutMix and MixUp
    "ddbench.data.pictures": "young",  # image files to arrays
    "ddbench.problem.decode": "stable",  # what students see of stored images
    "ddbench.problem.labels": "stable",  # what experts say of images
    "ddbench.problem.stages": "young",  # what schedulers in stages share
    "ddbench.testing": "stable",  # the kit for authors of plugins
    "ddbench.train.compile": "young",  # when code is compiled
    "ddbench.train.fused": "young",  # layers of a block as one kernel
    "ddbench.train.optimisers": "stable",  # optimisers as pure functions
    "ddbench.trajectory.decoded": "young",  # which stored images a batch shows
    "ddbench.trajectory.descent": "young",  # how images, labels and student lr move
    "ddbench.trajectory.engine": "young",  # compiled and lower-precision student steps
    "ddbench.trajectory.method": "young",  # the skeleton of a trajectory matcher
    "ddbench.trajectory.student_lr": "young",  # the student lr of least loss
    "ddbench.trajectory.unroll": "stable",  # the gradient of a student's training
}

# Written out for type checkers, which take a name of an installed package for public only if it stands here.
__all__ = [
    "DSA", "PUBLIC_MODULES", "Curriculum", "DDBenchError", "DataError", "Dataset", "DivergedError", "Examinee",
    "Examples", "Experts", "Grade", "LostError", "Memory", "Needs", "Network", "Pixels", "Pool", "Preprocessing",
    "Problem", "Published", "RealData", "Recipe", "Result", "Seed", "Starts", "Store", "Student", "SyntheticSet",
    "Teacher", "Teaching", "UsageError", "__version__", "compare", "did_you_mean", "distil", "fit", "hookimpl", "load",
    "networks_named", "note", "predict", "report", "share", "soft_cross_entropy", "squared_error", "stratified",
    "teach",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ddbench")
    if name not in _HOME:
        raise AttributeError(f"module 'ddbench' has no attribute {name!r}")
    from ddbench.errors import require_posix

    require_posix()
    return getattr(importlib.import_module(f"ddbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


install()
