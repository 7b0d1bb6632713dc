"""Decoded images on disk, by the digest of what decides them, read back without reading them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddbench import DataError, cache

Made = tuple[np.ndarray, dict[str, Any]]


def cached(identity: Any, make: Callable[[], Made]) -> Made:
    """What ``make()`` returns, an array and JSON about it, made once per ``identity`` (JSON).

    The array is a copy-on-write memory map, because torch warns about read-only arrays.
    """
    folder = cache.home() / "datasets" / cache.digest(identity)
    if made := _read(folder):
        return made
    with cache.lock(folder / "lock"):
        if made := _read(folder):  # by another process, while this one waited
            return made
        array, about = make()
        _write(folder, array, {**about, "shape": list(array.shape), "identity": identity})
        made = _read(folder)
    if made is None:
        raise DataError(f"{folder} cannot be read back after writing it; check the disk, or delete the folder")
    return made


def _write(folder: Path, array: np.ndarray, about: dict[str, Any]) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    cache.atomic_write(folder / "pixels.npy", stream.getvalue())
    cache.write_json(folder / "about.json", about)  # last: its presence says that the array is whole


def _read(folder: Path) -> Made | None:
    """None when there is nothing, or something damaged that is to be made again."""
    try:
        about = cache.read_json(folder / "about.json")
        array = np.load(folder / "pixels.npy", mmap_mode="c")
    except (DataError, OSError, ValueError, EOFError):
        return None
    return (array, about) if list(array.shape) == about.get("shape") else None
