"""What can go wrong, one class per exit code. Messages are whole sentences with the way out."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class DDBenchError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""

    exit_code = 1


class UsageError(DDBenchError, ValueError):
    """The request is wrong: an unknown name or option, a value out of range."""

    exit_code = 2


class DataError(DDBenchError):
    """Data, a file or a plugin is missing or cannot be read."""

    exit_code = 3


class DamagedError(DataError):
    """A file does not hold what was written to it: a bit flipped, or somebody changed it.

    What can be made again is made again by whoever catches it, with a line that says so.
    """


class PluginError(DDBenchError):
    """A plugin failed, or did what no plugin may; ``reason`` is what it raised, as one line.

    The exception that it raised is its ``__cause__``.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class DivergedError(DDBenchError):
    """The optimisation left the numbers: not-a-number, an exploding loss, a dead learning rate.

    A matcher may raise it from ``step`` with advice; the harness records the run as ``diverged``.
    """


class BusyError(DDBenchError):
    """Another process holds the folder."""


class LostError(DDBenchError):
    """What carried a job is gone: its node died, or the engine took it away. The job itself did nothing wrong.

    Whoever placed it places it again: it goes on from its last checkpoint.
    """


class RankError(DDBenchError):
    """One of several processes that work at a run is gone, or does not answer; what is finished is kept."""

    exit_code = 3


class InterruptedRun(DDBenchError):
    """SIGINT or SIGTERM arrived and the work stopped at a safe point."""

    exit_code = 130


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has a class for CUDA and only words for the CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def require_posix() -> None:
    """Refuse other systems in a sentence: locks, workers and writes into the middle of files are POSIX's here."""
    if sys.platform == "win32":
        raise DataError("ddbench works on POSIX systems alone (Linux, macOS); on Windows, run it in WSL")


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
