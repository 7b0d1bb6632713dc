"""Processes that each carry out one command of ddbench: started, watched, stopped, and asked why they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ddbench.base.opening import in_place, reading
from ddbench.errors import DataError

PARENT = "DDBENCH_PARENT"  # the process that a worker works for
_TAIL = 4000
_WATCH_SECONDS = 0.5


def launch(
    words: list[str], environment: dict[str, str], log: Path, within: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start ``ddbench WORDS`` with its messages in ``log``, in a session of its own: Ctrl-C reaches only us.

    The log may not be reached through a link below ``within``. Raises DataError.
    """
    with in_place(log, "wb", within) as messages:
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-P", "-m", "ddbench", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=environment,
            start_new_session=True,
        )


@dataclass(eq=False)
class Worker:
    """A command at work in its own process."""

    words: list[str]
    threads: int
    log: Path
    within: Path | None = None
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(self.threads)
        own = {"DDBENCH_THREADS": threads, "OMP_NUM_THREADS": threads, PARENT: str(os.getpid())}
        self._process = launch(self.words, os.environ | own, self.log, self.within)

    @property
    def seconds(self) -> float:
        return time.time() - self.began

    def poll(self) -> int | None:
        """The exit code; the negative number of the signal that killed it; None while it works."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """The last line of its messages."""
        return next(self._lines(), "")

    def complaint(self) -> str:
        """The error that it ended with, as one line."""
        said = next((line for line in self._lines() if line.startswith("error: ")), None) or self.last_words()
        return said.removeprefix("error: ") or f"it said nothing; see {self.log}"

    def _lines(self) -> Iterator[str]:
        """The last lines of the log, backwards, without empty ones."""
        try:
            with reading(self.log) as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
                text = stream.read(_TAIL).decode(errors="replace")
        except (OSError, DataError):
            return
        yield from (line.strip() for line in reversed(text.splitlines()) if line.strip())


def death(code: int) -> str:
    """Why a process that a signal ended is gone, and what to do."""
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    said = f"the process was killed by signal {number} ({name})"
    if number == signal.SIGKILL:
        return f"{said}, as the system does when memory runs out; try a smaller -j, then --retry-failed"
    return f"{said}; a plugin or library crashed it, or someone stopped it; --retry-failed tries again"


def follow_parent() -> None:
    """In a worker: end as on SIGTERM when the process that it works for is gone, even if that was killed."""
    parent = os.environ.pop(PARENT, "")  # what the worker starts has another parent
    if not (parent.isascii() and parent.isdecimal()):
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="ddbench-parent").start()
