"""Where the bytes of an image are, and how they are fetched; used by decoding processes, which do without torch."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass

LARGEST = 100_000_000  # bytes of one image file; a larger one is a mistake or a bomb


class Broken(Exception):
    """A file that gives no image; the text says why, and follows the file's name."""


class Coloured(Exception):
    """A colour image among images that seemed to be all grey."""


class OddSize(Exception):
    """Arguments: the name and the shape (c, h, w) of an image that is not as large as the others."""


@dataclass(frozen=True, slots=True)
class Place:
    """A whole file, or bytes that were read already (``data``), ``size`` of them.

    A ``fault`` says why there are none.
    """

    path: str = ""
    size: int = 0
    data: bytes | None = None
    fault: str | None = None


def shown(name: str) -> str:
    """A file name for one line of text: what cannot be printed, or is no UTF-8, is escaped."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def fetch(place: Place) -> bytes:
    """The bytes of one image. Raises Broken."""
    if fault := place.fault or oversize(place.size):
        raise Broken(fault)
    if place.data is not None:
        return place.data
    try:
        # without blocking, since a pipe in the folder would wait for a writer
        with io.FileIO(os.open(place.path, os.O_RDONLY | os.O_NONBLOCK)) as stream:
            return _whole(stream)
    except OSError as error:
        raise Broken(f"cannot be read ({error.strerror or error})") from error


def oversize(size: int) -> str | None:
    """What is wrong with a file of ``size`` bytes, if anything."""
    if size <= LARGEST:
        return None
    return f"has {size / 1e6:.0f} MB, but an image may have {LARGEST / 1e6:.0f}"


def _whole(stream: io.FileIO) -> bytes:
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise Broken("is no plain file")
    if fault := oversize(status.st_size):
        raise Broken(fault)
    return stream.readall()
