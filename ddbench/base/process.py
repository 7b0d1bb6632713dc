"""Processes that each carry out one command of ddbench: started, watched, stopped, and asked why they ended.

A :class:`Job` is such a command with what it takes. On this machine a :class:`Worker` carries it out; on a node of a
cluster :func:`carry` does, in whatever process the engine has there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ddbench.base.opening import in_place, reading
from ddbench.errors import DataError

PARENT = "DDBENCH_PARENT"  # the process that a worker works for
_TAIL = 4000
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """``ddbench WORDS`` for somebody to carry out, and what it takes; 0 is what nobody knows.

    Its messages go to ``log``, which is reached through no link below ``within``. ``gpus`` may be a part of one GPU.
    ``memory`` is bytes of the host, ``gpu_memory`` of the GPU, both with what a process needs before it does anything.
    """

    name: str
    words: tuple[str, ...]
    log: Path
    within: Path | None = None
    threads: int = 1
    gpus: float = 0.0
    memory: int = 0
    gpu_memory: int = 0
    seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of its process holds besides."""
        return {"DDBENCH_THREADS": str(self.threads), "OMP_NUM_THREADS": str(self.threads), **self.environment}


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
    """A job at work in a process on this machine."""

    job: Job

    def __post_init__(self) -> None:
        job = self.job
        job.log.parent.mkdir(parents=True, exist_ok=True)
        own = job.variables | {PARENT: str(os.getpid())}
        self._process = launch(list(job.words), os.environ | own, job.log, job.within)

    def poll(self) -> int | None:
        """The exit code; the negative number of the signal that killed it; None while it works."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """End it at once, with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def carry(job: Job, started: Callable[[Worker], None] = lambda _: None) -> int:
    """Carry out a job in this process of an engine, and return its exit code (negative for a signal).

    An exception that an engine raises here to cancel the job lets it write its checkpoint first. ``started`` is given
    the worker, for engines that signal instead.
    """
    worker = Worker(job)
    started(worker)
    try:
        while (code := worker.poll()) is None:
            time.sleep(_WATCH_SECONDS / 5)
    except BaseException:
        worker.stop()
        worker.wait()
        raise
    return code


def last_words(log: Path) -> str:
    """The last line of a job's messages."""
    return next(_lines(log), "")


def complaint(log: Path) -> str:
    """The error that a job ended with, as one line."""
    said = next((line for line in _lines(log) if line.startswith("error: ")), None) or last_words(log)
    return said.removeprefix("error: ") or f"it said nothing; see {log}"


def _lines(log: Path) -> Iterator[str]:
    """The last lines of a log, backwards, without empty ones."""
    try:
        with reading(log) as stream:
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
