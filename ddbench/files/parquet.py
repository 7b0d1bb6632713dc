"""The parquet file that ``ddbench export --format datasets`` writes, read back to the bit.

What it says of itself stands in its schema. Shapes: n images, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.base.opening import parse_json, reading
from ddbench.errors import DataError, UsageError
from ddbench.files.arrays import LARGEST, RATIO

SUFFIX = ".parquet"
INPUT = "network_input"
KEY = b"ddbench"
ROWS = 64  # that are decoded at once


def arrays(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The arrays of the file as those of an ``.npz``, and its classes. Raises DataError for any other parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"reading {path} needs the package pyarrow; pip install 'ddbench[hf]'") from error
    try:
        with reading(path) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            about = _about(path, file.schema_arrow.metadata or {})
            _check_size(path, file.metadata.num_rows * math.prod(about["shape"]), os.fstat(stream.fileno()).st_size)
            label = "soft_label" if "soft_label" in file.schema_arrow.names else "label"
            images, labels = _columns(path, file, about["shape"], (INPUT, label))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is damaged ({reason}); get it again, or export it again") from error
    held = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}
    passed = {f"preprocessing_{name}": about["preprocessing"][name] for name in about["step"]}
    rate = {} if about["lr"] is None else {"syn_lr": about["lr"]}
    held |= {name: torch.tensor(value, dtype=torch.float64) for name, value in rate.items()}
    return held | {name: torch.tensor(value) for name, value in passed.items()}, tuple(about["classes"])


def _about(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What the schema says: classes, shape, preprocessing and the names of its parts, lr."""
    said = parse_json(metadata[KEY]) if KEY in metadata else None
    if said is None:
        raise DataError(
            f"{path} is not a parquet file of `ddbench export`, or one of an earlier version; export it again"
        )
    numbers = (int, float)
    match said:
        case {"classes": [*names], "shape": [int(), int(), int()] as shape, "preprocessing": {"kind": kind} as step}:
            parts = ("mean", "std") if kind == "meanstd" else ()
            values = [value for part in parts for value in (step.get(part) or [None])]
            plain = all(isinstance(v, numbers) for v in values) and all(isinstance(n, str) for n in names)
            if plain and min(shape) > 0 and isinstance(said.get("lr"), (*numbers, type(None))):
                return {**said, "step": parts, "lr": said.get("lr")}
    raise DataError(f"{path} is damaged: its schema says {str(said)[:80]!r} of itself; export it again")


def _check_size(path: Path, numbers: int, size: int) -> None:
    """Refuse what says that it unpacks to many times the file."""
    if 4 * numbers > max(LARGEST, RATIO * size):
        raise DataError(
            f"{path} has {size / 1e6:.1f} MB, but unpacks to {4 * numbers / 1e6:,.0f} MB; export it again as npz"
        )


def _columns(path: Path, file: Any, shape: list[int], names: tuple[str, str]) -> tuple[np.ndarray[Any, Any], ...]:
    """Images (n, c, h, w) and labels (n, ...), decoded a few rows at a time, each compared with what the file says.

    The metadata of single columns would tell more beforehand, but where they are damaged pyarrow ends the process.
    """
    found: tuple[list[np.ndarray[Any, Any]], ...] = ([], [])
    for batch in file.iter_batches(batch_size=ROWS, columns=list(names)):
        rows, (images, labels) = batch.num_rows, (_flat(batch.column(name)) for name in names)
        if len(images) != rows * math.prod(shape):
            raise DataError(
                f"{path} holds {len(images):,} numbers, where {rows} images of {shape} are; export it again"
            )
        found[0].append(images.reshape(rows, *shape))
        found[1].append(labels.reshape(rows, -1))
    images, labels = map(np.concatenate, found)
    return images, labels


def _flat(held: Any) -> np.ndarray[Any, Any]:
    """All numbers of an array of numbers, or of lists of lists of them; as float32, or int64."""
    held = getattr(held, "storage", held)  # of an extension type that `datasets` has registered
    while hasattr(held, "flatten") and hasattr(held.type, "value_type"):
        held = held.flatten()
    values = held.to_numpy(zero_copy_only=False)
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
