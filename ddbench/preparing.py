"""``prepare`` and the dataset part of ``info``: what a dataset is, and whether it is here."""

from __future__ import annotations

from typing import Any

import torch

from ddbench.data import Dataset
from ddbench.errors import DDBenchError, UsageError
from ddbench.plugins import registry
from ddbench.records import make, options
from ddbench.spec import split_dataset, split_flags

SHOWN_CLASSES = 12


def source(name: str, flags: tuple[tuple[str, str], ...]) -> Any:
    """The dataset source ``name`` with the options given as ``dataset.NAME=VALUE``."""
    name, main = split_dataset(name)
    given = split_flags((*main, *flags))
    if wrong := set(given) - {"dataset"}:
        raise UsageError(f"only options of the dataset can be given here, not of {', '.join(sorted(wrong))}")
    return make(registry().get("dataset", name).cls, given.get("dataset", {}), "dataset")


def missing(plugin: Any) -> str | None:
    """What ``load`` would have to get first; None when the data are at hand, as far as the plugin tells."""
    if not hasattr(plugin, "missing"):
        return f"dataset {plugin.name!r} does not tell whether its data are here; `ddbench prepare` loads them"
    try:
        return plugin.missing()
    except DDBenchError as error:
        return str(error)


def about(plugin: Any) -> dict[str, str]:
    """What holds without the data: licence, homepage, published sizes."""
    return dict(getattr(plugin, "about", {}))


def measured(data: Dataset) -> dict[str, Any]:
    """Sizes, classes, statistics and digest of loaded data, as JSON."""
    counts = torch.bincount(data.train.targets, minlength=len(data.classes))
    preprocessing = data.train.preprocessing
    statistics: dict[str, Any] = {"preprocessing": preprocessing.kind}
    if preprocessing.std is not None:
        statistics |= {name: [round(v, 4) for v in t.tolist()] for name, t in preprocessing.tensors().items()}
    return {
        "name": data.name,
        "train images": len(data.train),
        "validation images": len(data.validation),
        "test images": len(data.test),
        "classes": list(data.classes),
        "train images per class": [int(counts.min()), int(counts.max())],
        "shape (channels, height, width)": list(data.train.shape),
        **statistics,
        "augmentation": data.augment,
        "digest": data.digest,
        **data.facts,
    }


def body(record: dict[str, Any]) -> list[list[str]]:
    """What is known as the lines of a two-column table."""
    return [[name, _words(name, value)] for name, value in record.items()]


def _words(name: str, value: Any) -> str:
    if name == "classes":
        names = ", ".join(value[:SHOWN_CLASSES]) + (", ..." if len(value) > SHOWN_CLASSES else "")
        return f"{len(value)}: {names}"
    if name == "train images per class":
        return f"{value[0]:,}" if value[0] == value[1] else f"{value[0]:,} to {value[1]:,}"
    if name.startswith("shape"):
        return " x ".join(str(n) for n in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe(name: str, flags: tuple[tuple[str, str], ...], *, get: bool) -> dict[str, Any]:
    """All that is known of a dataset: ``about``, and what was measured if the data are here or ``get`` is set."""
    plugin = source(name, flags)
    lacking = None if get else missing(plugin)
    known: dict[str, Any] = {"options": options(plugin), "about": about(plugin), "missing": lacking, "measured": None}
    if lacking is None:
        try:
            known["measured"] = measured(plugin.load())
        except DDBenchError as error:
            if get:
                raise
            known["missing"] = str(error)
    return known
