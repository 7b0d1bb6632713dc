"""Where the bytes of an image are, and how they are fetched; used by decoding processes, which do without torch."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from zipfile import ZIP_DEFLATED, ZIP_STORED

LARGEST = 100_000_000  # bytes of one image file; a larger one is a mistake or a bomb
_LOCAL = struct.Struct("<4s22x2H")  # of a zip's local header: its mark, the lengths of name and extra field


class Broken(Exception):
    """A file that gives no image; the text says why, and follows the file's name."""


class Coloured(Exception):
    """A colour image among images that seemed to be all grey."""


class OddSize(Exception):
    """Arguments: the name and the shape (c, h, w) of an image that is not as large as the others."""


@dataclass(frozen=True, slots=True)
class Place:
    """A whole file, a span of one, a zip's member (``method`` is set), or bytes that were read already (``data``).

    ``size`` is that of the bytes unpacked. A ``fault`` says why they are not to be fetched.
    """

    path: str = ""
    size: int = 0
    offset: int | None = None
    method: int | None = None
    packed: int = 0
    crc: int = 0
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
            return _whole(stream) if place.offset is None else _span(stream, place, place.offset)
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


def _span(stream: io.FileIO, place: Place, offset: int) -> bytes:
    if place.method is None:
        return _exactly(stream, offset, place.size)
    if fault := oversize(place.packed):
        raise Broken(fault)
    mark, name, extra = _LOCAL.unpack(_exactly(stream, offset, _LOCAL.size))
    if mark != b"PK\3\4":
        raise Broken("is not where the zip's directory says; the zip is damaged")
    data = _exactly(stream, offset + _LOCAL.size + name + extra, place.packed)
    if place.method == ZIP_DEFLATED:
        data = _inflated(data, place.size)
    if len(data) != place.size or zlib.crc32(data) != place.crc:
        raise Broken("cannot be read (the zip's checksum is another)")
    return data


def _exactly(stream: io.FileIO, offset: int, size: int) -> bytes:
    data = os.pread(stream.fileno(), size, offset)
    if len(data) != size:
        raise Broken("cannot be read (the archive ends before it)")
    return data


def _inflated(data: bytes, size: int) -> bytes:
    try:
        # one byte more than declared is enough to see that the member lies about its size
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise Broken(f"cannot be read ({error})") from error


def unreadable_method(method: int) -> str | None:
    """What is wrong with a zip member packed by ``method``, if anything."""
    if method in (ZIP_STORED, ZIP_DEFLATED):
        return None
    return f"is packed by method {method}; pack the zip again with the usual one, deflate"
