"""Where the bytes of an image are, and how they are fetched; used by decoding processes, which do without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ddbench.data.pictures import Broken, oversize, read


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
    return read(place.path) if place.data is None else place.data
