"""NumPy's files, ``.npy`` and ``.npz``: their sizes are compared with the file before anything is unpacked.

Nothing is unpickled. A header says how large an array is, and the archive how large each of its members is: what
does not agree, or unpacks to many times the file, is refused without unpacking it.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ddbench.base.opening import reading
from ddbench.errors import DataError

DIRECTORY = 4_000_000  # bytes of the table of contents of an archive: 50,000 members
LARGEST = 64_000_000  # bytes that an archive may always unpack to
RATIO = 16  # times its own size that a larger one may: pictures as floats compress fourfold, digits twelvefold
HEADER = 10_000  # characters that describe an array
NAMES = "classes"  # the one array of text that is read: what the classes are called


class _Bounded:
    """A stream whose table of contents must be short; zipfile reads it at once, whatever size it claims."""

    def __init__(self, stream: BufferedReader) -> None:
        self.stream, self.most = stream, DIRECTORY

    def read(self, n: int = -1) -> bytes:
        if not self.most:
            return self.stream.read(n)
        data = self.stream.read(self.most + 1 if n < 0 else min(n, self.most + 1))
        if len(data) > self.most:
            raise DataError("has a table of contents that no archive of tensors needs; it is not what it seems")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def seekable(self) -> bool:
        return True


@contextmanager
def opened(stream: BufferedReader) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose table of contents is bounded. Raises DataError, and zipfile's errors."""
    bounded: Any = _Bounded(stream)
    with zipfile.ZipFile(bounded) as archive:
        bounded.most = 0
        yield archive


def is_npz(path: Path) -> bool:
    """Whether it is an archive of NumPy arrays; one that is damaged counts by its name."""
    try:
        with reading(path) as stream, opened(stream) as archive:
            names = archive.namelist()
        return bool(names) and all(name.endswith(".npy") for name in names)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, DataError):
        return path.suffix == ".npz"


def is_npy(path: Path) -> bool:
    """Whether the first bytes are those of a NumPy array."""
    try:
        with reading(path) as stream:
            return stream.read(6) == b"\x93NUMPY"
    except (OSError, DataError):
        return False


def arrays(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The arrays of numbers in an ``.npz``, by name, and its ``classes`` if it names any. Raises DataError."""
    with _said(path), reading(path) as stream, opened(stream) as archive:
        members = archive.infolist()
        size, whole = os.fstat(stream.fileno()).st_size, sum(m.file_size for m in members)
        if whole > max(LARGEST, RATIO * size):
            raise DataError(
                f"{path} has {size / 1e6:.1f} MB, but unpacks to {whole / 1e6:,.0f} MB, {whole / max(size, 1):,.0f} "
                "times as much; save it again unpacked, by np.savez"
            )
        held = {}
        for member in members:
            with archive.open(member) as part:
                held[member.filename.removesuffix(".npy")] = _array(part, member.file_size)
    classes = held.pop(NAMES, None)
    named = tuple(map(str, classes)) if classes is not None and classes.dtype.kind == "U" else None
    return {name: _tensor(a) for name, a in held.items() if a is not None and a.dtype.kind in "fiub"}, named


def array(path: Path) -> Tensor:
    """The one array of numbers in an ``.npy``. Raises DataError."""
    with _said(path), reading(path) as stream:
        found = _array(stream, os.fstat(stream.fileno()).st_size)
    if found is None or found.dtype.kind not in "fiub":
        raise DataError(f"{path} holds no numbers")
    return _tensor(found)


def _array(stream: IO[bytes], size: int) -> np.ndarray[Any, Any] | None:
    """An array of ``size`` bytes with its header; None for one of neither numbers nor text. Raises ValueError."""
    version = np.lib.format.read_magic(stream)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(stream, max_header_size=HEADER)
    if dtype.hasobject:
        raise ValueError("objects")
    if dtype.kind not in "fiubU":
        return None
    count = math.prod(shape)
    room, wanted = size - stream.tell(), count * dtype.itemsize
    if wanted != room:
        raise ValueError(f"an array of {shape} takes {wanted:,} bytes, where {room:,} are")
    held = np.empty(count, dtype)
    rest = held.view(np.uint8).data if wanted else memoryview(b"")
    while rest:
        read = stream.readinto(rest)  # type: ignore[attr-defined] - both kinds of streams have it
        if not read:
            raise ValueError("cut short")
        rest = rest[read:]
    return held.reshape(shape, order="F" if fortran else "C")


def _tensor(held: np.ndarray[Any, Any]) -> Tensor:
    plain = np.ascontiguousarray(held.astype(held.dtype.newbyteorder("="), copy=False))
    if plain.dtype.itemsize > 8:  # long doubles
        plain = plain.astype(np.float64)
    return torch.from_numpy(plain)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file, as one DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path} {error}") from error
    except MemoryError as error:
        raise DataError(f"{path} asks for more memory than there is; it is damaged or not what it seems") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is damaged, or holds objects instead of numbers ({reason}); get it again") from error
