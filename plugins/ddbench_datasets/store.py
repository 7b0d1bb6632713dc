"""Decoded images on disk, by the digest of what decides them, read back without reading them.

A store is a folder with ``pixels.npy`` and ``about.json``; the latter is written last and says that all is there.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddbench import DataError, Store
from ddbench.base import cache
from ddbench_datasets.building import Plan, build

Made = tuple[np.ndarray, dict[str, Any]]

# Without it Linux refuses to map a file that is larger than memory copy-on-write, since all of it might be copied.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def place(identity: Any) -> Path:
    """The folder of what ``identity`` (JSON) decides."""
    return cache.home() / "datasets" / cache.digest(identity)


def cached(identity: Any, make: Callable[[], Made]) -> Made:
    """What ``make()`` returns, an array and JSON about it, made once per ``identity`` (JSON).

    The array is a copy-on-write memory map, because torch warns about read-only arrays. ``about["content"]`` is
    the digest of a ``Store`` of it.
    """
    folder = place(identity)

    def write() -> None:
        array, about = make()
        with cache.atomic_file(folder / "pixels.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, array)
        _commit(folder, {**about, "identity": identity})

    return _made(folder, write)


def decoded(identity: Any, plan: Callable[[], Plan]) -> tuple[Store, dict[str, Any]]:
    """The images that ``plan()`` lists, decoded once per ``identity`` (JSON), and what the plan says about them.

    A call that was stopped is gone on with by the next one. Rows of images that cannot be decoded are blank and
    listed in ``about["broken"]``, as (row, name, reason).
    """
    folder = place(identity)

    def write() -> None:
        about = build(folder, plan())
        _commit(folder, {**about, "identity": identity})
        (folder / "journal").unlink(missing_ok=True)

    array, about = _made(folder, write)
    return Store(torch.from_numpy(array), about["content"]), about


def pillow() -> str:
    """The version of Pillow, which belongs to what decides pixels: JPEG decoders differ."""
    from PIL import __version__

    return __version__


def there(identity: Any) -> bool:
    """Whether the store of ``identity`` is complete."""
    return _read(place(identity)) is not None


def _made(folder: Path, write: Callable[[], None]) -> Made:
    if made := _read(folder):
        return made
    with cache.lock(folder / "lock"):
        if made := _read(folder):  # by another process, while this one waited
            return made
        (folder / "about.json").unlink(missing_ok=True)
        write()
        made = _read(folder)
    if made is None:
        raise DataError(f"{folder} cannot be read back after writing it; check the disk, or delete the folder")
    return made


def _commit(folder: Path, about: dict[str, Any]) -> None:
    array = _mapped(folder / "pixels.npy")
    content = Store(torch.from_numpy(array)).content
    cache.write_json(folder / "about.json", {**about, "shape": list(array.shape), "content": content})


def _read(folder: Path) -> Made | None:
    """None when there is nothing, or something damaged that is to be made again."""
    try:
        about = cache.read_json(folder / "about.json")
        array = _mapped(folder / "pixels.npy")
        whole = list(array.shape) == about["shape"] and isinstance(about["content"], str)
    except (DataError, OSError, ValueError, TypeError, KeyError):
        return None
    return (array, about) if whole else None


def _mapped(path: Path) -> np.ndarray:
    """A copy-on-write map, whose pages belong to the file as long as nobody writes to them."""
    with path.open("rb") as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{path} is in another version of the format")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(stream)
        if fortran:
            raise ValueError(f"{path} is in column-major order")
        flags = mmap.MAP_PRIVATE | _NO_RESERVE
        pages = mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        count = int(np.prod(shape))
        return np.frombuffer(pages, kind, count, stream.tell()).reshape(shape)
