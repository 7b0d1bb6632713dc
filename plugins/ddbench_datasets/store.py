"""Decoded images on disk, by the digest of what decides them, read back without reading them.

A store is a folder with ``pixels.npy`` and ``about.json``; the latter is written last, says that all is there, and has
the digests of the pixels and of itself. Pixels that are not as they were written are made again.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ddbench import DataError, Store, note
from ddbench.base import cache
from ddbench.data.pictures import Broken, plain
from ddbench_datasets.building import Plan, build

Made = tuple[np.ndarray, dict[str, Any]]

MEASURED = ("content", "shape", "stamp", cache.SEAL)  # what is noted of the pixels themselves
ABOUT_BYTES = 64_000_000  # of about.json
CHECKED = 1_000_000_000  # bytes of pixels that are digested whole when a process first maps them, within a second
# Without it Linux refuses to map a file that is larger than memory copy-on-write, since all of it might be copied.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_trusted: set[tuple[str, ...]] = set()  # what this process has checked: the file as it was, and the digest it had


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

    return _made([folder], write)


def decoded(identity: Any, plan: Callable[[], Plan]) -> tuple[Store, dict[str, Any]]:
    """The images that ``plan()`` lists, decoded once per ``identity`` (JSON), and what the plan says about them.

    A call that was stopped is gone on with by the next one. Rows of images that cannot be decoded are blank and
    listed in ``about["broken"]``, as (row, name, reason).
    """
    folder, other = _places(identity)

    def write() -> None:
        about = build(folder, plan())
        target = other if about["transparent"] or about.get("validation") else folder
        if target is other:
            other.mkdir(parents=True, exist_ok=True)
            (folder / "pixels.npy").replace(other / "pixels.npy")
        _commit(target, {**about, "identity": identity})
        (folder / "journal").unlink(missing_ok=True)

    array, about = _made([folder, other], write)
    return Store(torch.from_numpy(array), about["content"]), about


def brought(identity: Any, write: Callable[[Path], dict[str, Any]]) -> Made:
    """What ``write(folder)`` brings as ``pixels.npy`` and returns about it, once per ``identity`` (JSON)."""
    folder = place(identity)
    return _made([folder], lambda: _commit(folder, {**write(folder), "identity": identity}))


@contextmanager
def writing(folder: Path, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A stream for the bytes of an array of ``shape``, which becomes ``pixels.npy`` when all are there."""
    with cache.atomic_file(folder / "pixels.npy") as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield stream


def pillow() -> str:
    """The version of Pillow, which belongs to what decides pixels: JPEG decoders differ."""
    from PIL import __version__

    return __version__


def there(identity: Any) -> bool:
    """Whether the store of ``identity`` is complete."""
    return any(_read(folder) for folder in _places(identity))


def _places(identity: Any) -> tuple[Path, Path]:
    """The folder, and the one for images that version 0.1 saw otherwise: without a ground or a validation part.

    Both versions then find their own pixels in one cache.
    """
    return place(identity), place([2, identity])


def _made(folders: list[Path], write: Callable[[], None]) -> Made:
    """What is in the first of the folders that has it whole, after ``write()`` if none has."""
    if made := _first(folders):
        return made
    with cache.lock(folders[0] / "lock"):
        if made := _first(folders, say=True):  # by another process, while this one waited
            return made
        for folder in folders:
            (folder / "about.json").unlink(missing_ok=True)
        write()
        made = _first(folders)
    if made is None:
        raise DataError(f"{folders[0]} cannot be read back after writing it; check the disk, or delete the folder")
    return made


def _first(folders: list[Path], *, say: bool = False) -> Made | None:
    for folder in folders:
        made = _read(folder)
        if made and _as_written(folder, *made):
            return made
        if say and made:
            note(f"the decoded images in {folder} are not as they were written (sha256); they are made again")
        elif say and (folder / "about.json").exists():
            note(f"the decoded images in {folder} are damaged, or of an earlier version; they are made again")
    return None


def _commit(folder: Path, about: dict[str, Any]) -> None:
    array = _mapped(folder / "pixels.npy")
    content = Store(torch.from_numpy(array)).content
    known = {**about, "shape": list(array.shape), "content": content, "stamp": _stamp(folder)}
    cache.write_json(folder / "about.json", known, sealed=True)


def _read(folder: Path) -> Made | None:
    """None when there is nothing, or something damaged or of an earlier version that is to be made again."""
    try:
        about = cache.read_json(folder / "about.json")
        array = _mapped(folder / "pixels.npy")
        whole = about["shape"] == list(array.shape) and "stamp" in about
    except (DataError, Broken, OSError, ValueError, TypeError, KeyError):
        return None
    return (array, about) if whole else None


def _as_written(folder: Path, array: np.ndarray, about: dict[str, Any]) -> bool:
    """Whether the pixels have the digest that they were written with, asked once in a process.

    Of a large file the size and the time of the last change are asked, and the digest if they are others, or if
    someone wants to be sure.
    """
    stamp = _stamp(folder)
    key = (str(folder), about["content"], *map(str, stamp))
    if key in _trusted and not cache.thorough():
        return True
    if array.nbytes > CHECKED and stamp == about["stamp"] and not cache.thorough():
        return True
    if Store(torch.from_numpy(array)).content != about["content"]:
        return False
    _trusted.add(key)
    return True


def _stamp(folder: Path) -> list[int]:
    status = (folder / "pixels.npy").stat()
    return [status.st_size, status.st_mtime_ns]


def _mapped(path: Path) -> np.ndarray:
    """A copy-on-write map, whose pages belong to the file as long as nobody writes to them."""
    with plain(path) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{path} is in another version of the format")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(stream)
        count = int(np.prod(shape, dtype=object))
        if fortran or kind != np.uint8 or os.fstat(stream.fileno()).st_size != stream.tell() + count:
            raise ValueError(f"{path} is in column-major order, of another type, or of another length")
        flags = mmap.MAP_PRIVATE | _NO_RESERVE
        pages = mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(pages, kind, count, stream.tell()).reshape(shape)
