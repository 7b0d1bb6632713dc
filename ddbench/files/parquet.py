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


def arrays(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The arrays of the file as those of an ``.npz``, and its classes. Raises DataError for any other parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"reading {path} needs the package pyarrow; pip install 'ddbench[hf]'") from error
    try:
        with reading(path) as stream, pq.ParquetFile(stream) as file:
            about = _about(path, file.schema_arrow.metadata or {})
            _check_size(path, file.metadata, about["shape"], os.fstat(stream.fileno()).st_size)
            label = "soft_label" if "soft_label" in file.schema_arrow.names else "label"
            table = file.read(columns=[INPUT, label])
        images = _flat(table[INPUT]).reshape(table.num_rows, *about["shape"])
        labels = _flat(table[label]).reshape(table.num_rows, -1)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
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
        raise DataError(f"{path} is no parquet file of `ddbench export`, or one of an earlier version; export it again")
    numbers = (int, float)
    match said:
        case {"classes": [*names], "shape": [int(), int(), int()] as shape, "preprocessing": {"kind": kind} as step}:
            parts = ("mean", "std") if kind == "meanstd" else ()
            values = [value for part in parts for value in (step.get(part) or [None])]
            plain = all(isinstance(v, numbers) for v in values) and all(isinstance(n, str) for n in names)
            if plain and min(shape) > 0 and isinstance(said.get("lr"), (*numbers, type(None))):
                return {**said, "step": parts, "lr": said.get("lr")}
    raise DataError(f"{path} is damaged: its schema says {str(said)[:80]!r} of itself; export it again")


def _check_size(path: Path, metadata: Any, shape: list[int], size: int) -> None:
    """Refuse what would unpack to many times the file, or holds other images than it says."""
    whole = metadata.num_rows * math.prod(shape)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    held = sum(c.num_values for c in columns if c.path_in_schema.startswith(f"{INPUT}."))
    if held != whole:
        raise DataError(f"{path} holds {held:,} numbers, where {metadata.num_rows} images of {shape} have {whole:,}")
    unpacked = max(4 * whole, sum(c.total_uncompressed_size for c in columns))
    if unpacked > max(LARGEST, RATIO * size):
        raise DataError(
            f"{path} has {size / 1e6:.1f} MB, but unpacks to {unpacked / 1e6:,.0f} MB; export it again as npz"
        )


def _flat(column: Any) -> np.ndarray[Any, Any]:
    """All numbers of a column of numbers, or of lists of lists of them; as float32, or int64."""
    held = column.combine_chunks()
    held = getattr(held, "storage", held)  # of an extension type that `datasets` has registered
    while hasattr(held, "flatten") and hasattr(held.type, "value_type"):
        held = held.flatten()
    values = held.to_numpy(zero_copy_only=False)
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
