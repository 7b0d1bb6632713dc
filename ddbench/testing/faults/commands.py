"""One command of ddbench in a forked child of this process, which may be stopped in the middle, with what it took.

The parent has imported all that commands need, so a child costs milliseconds; what runs in it is ``python -m ddbench``
to the last byte, in a session of its own, so that SIGKILL takes all that it started.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LIMIT = 60.0  # seconds after which a command counts as hanging, unless a part has a limit of its own
MEMORY = 4 << 30  # bytes of address space that a command may add, so that a bomb ends itself and not the machine
DOCUMENTED = (0, 1, 2, 3, 130)  # exit codes

# What counts as an operation on files: whatever changes them, as Python's audit events name it; fsync has none.
_OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "fcntl.flock"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When something happens to a command: before its operation ``operation``, or after ``seconds``; and what.

    ``kill`` is SIGKILL to all its processes, ``stop`` is SIGTERM, and ``full`` a disk on which from then on no file
    grows beyond ``room`` bytes.
    """

    operation: int | None = None
    seconds: float | None = None
    what: Literal["kill", "stop", "full"] = "kill"
    room: int = 0

    def __str__(self) -> str:
        when = f"operation {self.operation}" if self.operation else f"{self.seconds:.3f} s"
        return f"{self.what} at {when}" + (f" with files of {self.room} bytes" if self.what == "full" else "")

    def strike(self) -> None:
        """Do it, in the process that is struck."""
        if self.what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, resource.RLIM_INFINITY))
        elif self.what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.killpg(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Answer:
    """What a command did: exit code (minus the signal that ended it), output, seconds, peak memory in bytes."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int
    hung: bool = False

    @property
    def broken(self) -> str:
        """Why this is an outcome that no input may have; empty if it is fit to be seen."""
        if self.hung:
            return f"hung for {self.seconds:.1f} s"
        if "Traceback (most recent call last)" in self.err:
            return "traceback: " + self.err.strip().splitlines()[-1][:200]
        if self.code not in DOCUMENTED:
            return f"exit code {self.code}"
        return ""

    @property
    def refused(self) -> bool:
        """A sentence, and an exit code that says that the request or the data are wrong."""
        return not self.broken and self.code in (2, 3) and any(w in self.err.lower() for w in ("error:", "usage:"))

    @property
    def said(self) -> str:
        """The last line on stderr."""
        return next(iter(reversed(self.err.strip().splitlines())), "")[:240]


@dataclass(frozen=True)
class Command:
    """``ddbench WORDS`` in ``folder``, with a cache of its own there."""

    words: list[str]
    folder: Path
    limit: float = LIMIT
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, moment: Moment | None = None, report: Path | None = None) -> Answer:
        """Carry it out; ``report`` gets how many operations it took, and what it imported."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pipes = os.pipe(), os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(self, [write for _, write in pipes], moment, report)
        for _, write in pipes:
            os.close(write)
        wait = moment.seconds if moment and moment.seconds is not None else None
        (out, err), hung = _watched([read for read, _ in pipes], pid, began, wait, self.limit)
        _, status, used = os.wait4(pid, 0)
        seconds = time.monotonic() - began
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # whatever it left behind
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Answer(os.waitstatus_to_exitcode(status), out, err, seconds, peak, hung)


def _watched(streams: list[int], pid: int, began: float, wait: float | None, limit: float) -> tuple[list[str], bool]:
    """All that a command writes, until it ends; it is killed after ``wait``, or when it hangs."""
    texts = {stream: bytearray() for stream in streams}
    left, hung = set(streams), False
    while left:
        due = began + (limit if wait is None else min(wait, limit))
        ready, _, _ = select.select(list(left), [], [], max(0.0, due - time.monotonic()))
        for stream in ready:
            read = os.read(stream, 1 << 16)
            texts[stream] += read
            left -= set() if read else {stream}
        if not ready:
            hung = hung or wait is None or wait >= limit
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # if it has no session of its own yet
            wait, began = None, time.monotonic()
    for stream in streams:
        os.close(stream)
    return [bytes(text).decode(errors="replace") for text in texts.values()], hung


def _child(command: Command, outputs: list[int], moment: Moment | None, report: Path | None) -> None:
    """Become the command; never returns."""
    code: Any = 99
    try:
        os.setsid()
        _surroundings(command, outputs)
        counted = _strike_at(moment or Moment())
        code = _ddbench(command.words)
        if report is not None:
            done = {"operations": counted(), "modules": sorted(sys.modules)}
            report.write_text(json.dumps(done))
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _surroundings(command: Command, outputs: list[int]) -> None:
    for place, handle in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
        os.dup2(handle, place)
    os.closerange(3, 256)
    for name, handle in (("stdout", 1), ("stderr", 2)):  # unbuffered: what was said before a kill was said
        setattr(sys, name, io.TextIOWrapper(io.FileIO(handle, "w", closefd=False), "utf-8", write_through=True))
    os.chdir(command.folder)
    own = {"DDBENCH_HOME": str(command.folder / "home"), "HOME": str(command.folder), "TMPDIR": str(command.folder)}
    # A forked process hangs where it asks for its parent's pool of threads; one thread needs none.
    os.environ.update(own | {"DDBENCH_THREADS": "1"} | command.environment)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    os.environ.pop("DDBENCH_DATA", None)
    size = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def _ddbench(words: list[str]) -> Any:
    sys.argv = ["ddbench", *words]
    try:
        runpy.run_module("ddbench", run_name="__main__")
    except SystemExit as end:
        return 0 if end.code is None else end.code
    except BaseException:  # noqa: BLE001 - it is what is looked for
        traceback.print_exc()
        return 1
    return 0


def _strike_at(moment: Moment) -> Callable[[], int]:
    """Count operations on files from now on, and strike before the one that was chosen."""
    count, sync = 0, os.fsync

    def operation() -> None:
        nonlocal count
        count += 1
        if count == moment.operation:
            moment.strike()

    def heard(event: str, about: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(about[2], int) and about[2] & _WRITES and not isinstance(about[0], int)
        if opened or event in _OPERATIONS:
            operation()

    def synced(handle: Any) -> None:
        operation()
        sync(handle)

    sys.addaudithook(heard)
    os.fsync = synced
    return lambda: count


def preload(commands: list[Command]) -> None:
    """Import here what these commands import, so that no child has to."""
    from ddbench.plugins import registry

    registry()
    for command in commands:
        report = command.folder / "imported.json"
        command.run(report=report)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in json.loads(report.read_text())["modules"]:
                if name not in sys.modules and not name.startswith("__"):
                    with suppress(Exception):
                        importlib.import_module(name)
