"""Streams and widths that the rest can rely on, whatever the caller closed, filled or set."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

_WIDTHS = range(20, 10_001)  # that a table is laid out for
_GONE = (errno.EPIPE, errno.EBADF)  # whoever read it has read enough
_PLAIN = {"±": "+-", "…": "...", "†": "+"}


class _Deaf(io.FileIO):
    """A stream that drops what nobody reads any more, and with ``always`` whatever it cannot write."""

    def __init__(self, number: int, *, always: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.always = always

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            if not self.always and error.errno not in _GONE:
                raise
            written = None
        return len(data) if written is None else written


def make_reliable() -> None:
    """Called first: what is written may be lost, but no vanished reader, full disk or encoding ends the work."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would get what is meant for people
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("ddbench", _spelled)
    sys.stdout = _reliable(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _reliable(sys.stderr, sys.__stderr__, 2)
    for name in ("COLUMNS", "LINES"):
        given = os.environ.get(name, "")
        if not (given.isascii() and given.isdecimal() and int(given[:6]) in _WIDTHS):
            os.environ.pop(name, None)


def _reliable(stream: TextIO | None, first: TextIO | None, number: int) -> Any:
    if stream is not first or isinstance(_raw(stream), _Deaf):
        return stream  # a caller in Python put another in its place
    encoding = "utf-8" if stream is None else stream.encoding
    buffer = io.BufferedWriter(_Deaf(number, always=number == 2))
    at_once = number == 2 or bool(stream and stream.isatty())
    return io.TextIOWrapper(buffer, encoding, "ddbench", line_buffering=at_once)


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def give_up_stdout() -> None:
    """Drop what could not be written to stdout: Python would try it again at its end, and say so with a traceback."""
    if isinstance(raw := _raw(sys.stdout), _Deaf):
        raw.always = True


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that an encoding lacks."""
    if isinstance(error, UnicodeEncodeError) and (plain := _PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    if isinstance(error, UnicodeEncodeError):
        error = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(error)
