"""Images decoded into a file by several processes, which import neither torch nor the caller's main module.

A process serves chunks over one connection. When whoever started it ends, for whatever reason, the connection
closes and so does the process.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import numpy as np

from ddbench import DataError
from ddbench.data.pictures import Broken, decode, plain, strictly
from ddbench_datasets.places import OddSize, Place, fetch

Item = tuple[int, str, Place]  # the row of an image, its name, and where its bytes are
Chunk = tuple[int, list[Item]]  # its number, and what it holds
Faults = list[tuple[int, str]]  # the rows that could not be decoded, and why
Done = tuple[Faults, int, str]  # those of a chunk; how many of its images are transparent; the sha256 of the others

# Importing ddbench_datasets itself would import torch: two seconds and 200 MB for each process.
_START = """
import sys, types
sys.path[:] = {path!r}
package = sys.modules["ddbench_datasets"] = types.ModuleType("ddbench_datasets")
package.__path__ = [{folder!r}]
from ddbench_datasets.workers import serve
serve({handle})
"""


@dataclass(frozen=True)
class Target:
    """The file to write to: images of ``shape`` (c, h, w) one after another from byte ``offset`` on.

    ``size`` is what their middle squares are resized to, or with ``stretch`` all of them, if at all; with ``grey`` a
    colour image ends the work. ``ground`` shows through transparent parts.
    """

    path: str
    offset: int
    shape: tuple[int, int, int]
    size: int | None
    grey: bool
    stretch: bool = False
    ground: str = "drop"


def cores() -> int:
    """How many processes are worth starting."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fill(target: Target, chunks: Iterator[Chunk], processes: int) -> Generator[tuple[int, Done]]:
    """Decode ``chunks`` into ``target``; yields the number of each one that is on the disk, and what became of it.

    With one process it happens here. Closing the generator ends the others at once. Raises Coloured, OddSize and
    OSError (of writing), and DataError when a process dies.
    """
    if processes > 1 and sys.executable:
        yield from _in_parallel(target, chunks, processes)
        return
    with Path(target.path).open("r+b", buffering=0) as file:
        for number, items in chunks:
            yield number, _write(file.fileno(), target, items)


def serve(handle: int) -> None:
    """Answer every list of items that comes in with what became of it, or with the exception that it met."""
    with Connection(handle) as connection:
        try:
            target = connection.recv()
            with Path(target.path).open("r+b", buffering=0) as file:
                while True:
                    items = connection.recv()
                    try:
                        answer: Done | Exception = _write(file.fileno(), target, items)
                    except Exception as error:  # noqa: BLE001 - it is raised again where someone can handle it
                        answer = error
                    connection.send(answer)
        except (EOFError, OSError):
            return  # nobody is listening any more


def _write(file: int, target: Target, items: list[Item]) -> Done:
    """Decode and write some images, row by row, and wait until they are on the disk."""
    faults, transparent, content = [], 0, hashlib.sha256()
    channels, height, width = target.shape
    options: dict[str, Any] = {"grey": target.grey, "stretch": target.stretch, "ground": target.ground}
    with strictly():
        for row, name, place in items:
            try:
                array, through = decode(fetch(place), channels, target.size, **options)
            except Broken as error:
                faults.append((row, str(error)))
                continue
            if array.shape[1:] != (height, width):
                raise OddSize(name, *array.shape)
            transparent += through
            content.update(data := array.tobytes())
            _write_all(file, data, target.offset + row * array.nbytes)
    os.fsync(file)
    return faults, transparent, content.hexdigest()


def content(target: Target, rows: list[int]) -> str:
    """The sha256 of ``rows`` as they are in the file."""
    found, size = hashlib.sha256(), int(np.prod(target.shape))
    with plain(target.path) as file:
        for row in rows:
            found.update(os.pread(file.fileno(), size, target.offset + row * size))
    return found.hexdigest()


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:  # a full disk takes a part first, and refuses the next call
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


class _Worker:
    """A process that decodes, and the connection to it."""

    def __init__(self, target: Target) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            handle = theirs.fileno()
            code = _START.format(path=sys.path, folder=str(Path(__file__).parent), handle=handle)
            command = [sys.executable, "-P", "-c", code]
            # in a session of its own: Ctrl-C is for the parent, which decides when to stop
            alone: dict[str, Any] = {
                "pass_fds": [handle],
                "stdin": DEVNULL,
                "stdout": DEVNULL,
                "start_new_session": True,
            }
            try:
                self.process = Popen(command, **alone)  # noqa: S603 - this Python, and a program of our own
            except OSError as error:
                raise DataError(f"cannot start a process that decodes images ({error.strerror}); run again") from error
        self.connection.send(target)

    def answer(self) -> Done:
        answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _in_parallel(target: Target, chunks: Iterator[Chunk], processes: int) -> Generator[tuple[int, Done]]:
    pool: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}
    try:
        pool.extend(_Worker(target) for _ in range(processes))
        idle = list(pool)
        while True:
            while idle and (chunk := next(chunks, None)) is not None:
                worker = idle.pop()
                worker.connection.send(chunk[1])
                busy[worker.connection] = worker, chunk[0]
            if not busy:
                return
            for ready in wait(list(busy)):
                worker, number = busy.pop(ready)  # type: ignore[index]
                done = worker.answer()
                idle.append(worker)
                yield number, done
    except (EOFError, ConnectionError) as error:
        raise DataError(
            "a process that decodes images died, perhaps for lack of memory; run again to go on where it stopped"
        ) from error
    finally:
        for worker in pool:
            worker.close()
