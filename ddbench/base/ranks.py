"""One command on several devices: rank 0 does all of it, and hands out shares of its batches.

Rank 0 is an ordinary process of ddbench: it alone reads data, draws, keeps the images, selects and writes files. The
others hold nothing but jobs. For each batch rank 0 broadcasts what a job needs, every rank works on its rows, and one
all-reduce adds up what they found. So a run is the same up to rounding on any number of ranks, and may be gone on with
on another. ``torchrun -m ddbench run ...`` starts the ranks, or rank 0 does (``--devices``). torch.distributed is
loaded where there are several.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from ddbench.errors import RankError

SECONDS = 900.0  # for a rank's share of one batch: the first one may be compiled
_LOST = 20.0  # after which rank 0 ends itself where torch does not notice that a rank is gone
_STOP, _JOB, _ASK = range(3)
_DTYPES = (torch.float32, torch.float64)


class Job(Protocol):
    """What ranks do with shares of a batch. ``key`` tells it from others; its class makes it again of its record."""

    @property
    def key(self) -> str: ...

    def record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What travels: JSON, and tensors by name."""
        ...

    @classmethod
    def of_record(cls, record: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Job:
        """The same job on another rank's device."""
        ...

    def answer(self, given: Tensor, rows: slice, count: int) -> Tensor:
        """What ``rows`` of ``count`` add to the result, ``(m,)`` of any m that all ranks agree on."""
        ...


def share(count: int, rank: int, world: int) -> slice:
    """The rows of ``count`` that are a rank's: as many as another's, or one more."""
    return slice(count * rank // world, count * (rank + 1) // world)


@dataclass(eq=False)
class Ranks:
    """The ranks of one command, as rank 0 sees them."""

    world: int
    control: Any  # a process group on CPUs, that waits as long as it takes
    data: Any  # the one that batches go through, with a timeout
    device: torch.device
    started: Sequence[subprocess.Popen[bytes]] = ()
    words: Sequence[IO[bytes]] = ()  # what those that rank 0 started say
    busy: bool = False  # an answer is under way: nobody listens to anything else
    closed: bool = False
    _jobs: dict[str, tuple[int, Job]] = field(default_factory=dict)

    def ask(self, job: Job, count: int, parts: Sequence[Tensor]) -> Tensor:
        """The sum of all ranks' answers about a batch of ``count`` rows. Raises RankError where a rank is gone."""
        given = torch.cat([part.detach().reshape(-1) for part in parts]).contiguous()
        if job.key not in self._jobs:
            self._send(job)
        number, job = self._jobs[job.key]
        self.busy = True
        with self._lost():
            self._tell(_ASK, number, count, len(given), _DTYPES.index(given.dtype))
            _broadcast(given, self.data)
        found = job.answer(given, share(count, 0, self.world), count)
        with self._lost():
            _add_up(found, self.data)
        self.busy = False
        return found

    def _send(self, job: Job) -> None:
        record, tensors = job.record()
        about = {"module": type(job).__module__, "name": type(job).__name__, "record": record}
        held = {"about": torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)}
        text = torch.frombuffer(bytearray(save(held | {n: t.cpu() for n, t in tensors.items()})), dtype=torch.uint8)
        with self._lost():
            self._tell(_JOB, len(self._jobs), len(text))
            _broadcast(text, self.control)
        self._jobs[job.key] = len(self._jobs), job

    def _tell(self, *numbers: int) -> None:
        _broadcast(torch.tensor([*numbers, *[0] * (5 - len(numbers))]), self.control)

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch has no class of its own for a connection that is gone, or too slow
            self.busy = True
            raise RankError(self._why(str(error))) from error

    def _why(self, said: str = "") -> str:
        until = time.monotonic() + 1
        while self.started and time.monotonic() < until and all(p.poll() is None for p in self.started):
            time.sleep(0.02)  # its connection is gone a moment before it is
        ended = [(rank, p.poll()) for rank, p in enumerate(self.started, 1) if p.poll() is not None]
        way = "the same command goes on from the last checkpoint, also with another number of devices"
        if not ended:
            late = "timed out" in said.lower() or "timeout" in said.lower()
            what = f"has not answered for {SECONDS:g} s" if late else "has ended"
            return f"one of the {self.world} ranks {what}; {way}"
        rank, status = ended[0]
        how = f"was killed by {signal.Signals(-status).name}" if status and status < 0 else f"ended with {status}"
        last = last_line(self.words[rank - 1])
        return f"rank {rank} of {self.world} {how}{f' ({last})' if last else ''}; {way}"

    def close(self) -> None:
        """Let the others end; those that rank 0 started are killed where they do not listen."""
        self.closed = True
        if not self.busy:
            with suppress(RankError), self._lost():
                self._tell(_STOP)
        for process in self.started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0 if self.busy else 10)
            process.kill()
            process.wait()
        for stream in self.words:
            stream.close()
        import torch.distributed as dist

        dist.destroy_process_group()

    def watch(self) -> None:
        """End this process where a rank is gone and torch waits for it all the same, as it does on GPUs."""

        def look() -> None:
            while all(process.poll() is None for process in self.started):
                time.sleep(0.5)
            time.sleep(_LOST)
            if self.busy and not self.closed:
                os.write(2, f"error: {self._why()}\n".encode(errors="backslashreplace"))
                os._exit(RankError.exit_code)

        threading.Thread(target=look, daemon=True, name="ddbench-ranks").start()


CURRENT: ContextVar[Ranks | None] = ContextVar("ddbench_ranks", default=None)


def current() -> Ranks | None:
    """The ranks that work for this process; None where it works alone."""
    return CURRENT.get()


def world() -> int:
    """How many ranks work at what this process does."""
    ranks = CURRENT.get()
    return 1 if ranks is None else ranks.world


def answer(rank: int, world: int, control: Any, data: Any, device: str) -> None:
    """What any other rank does: answer rank 0 until it says stop. Raises RankError when it is gone."""
    jobs: list[Job] = []
    while True:
        header = torch.zeros(5, dtype=torch.int64)
        with _without_rank_0():
            _broadcast(header, control)
        kind, number, count, length, dtype = header.tolist()
        if kind == _STOP:
            return
        if kind == _JOB:
            text = torch.empty(count, dtype=torch.uint8)
            with _without_rank_0():
                _broadcast(text, control)
            jobs.append(_job(text.numpy().tobytes(), torch.device(device)))
            continue
        given = torch.empty(length, dtype=_DTYPES[dtype], device=device)
        with _without_rank_0():
            _broadcast(given, data)
        found = jobs[number].answer(given, share(count, rank, world), count)
        with _without_rank_0():
            _add_up(found, data)


def _job(text: bytes, device: torch.device) -> Job:
    tensors = load(text)
    about = json.loads(tensors.pop("about").numpy().tobytes())
    cls = getattr(importlib.import_module(about["module"]), about["name"])
    return cls.of_record(about["record"], tensors, device)


@contextmanager
def _without_rank_0() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError("rank 0 has ended") from error


def _broadcast(tensor: Tensor, group: Any) -> None:
    import torch.distributed as dist

    dist.broadcast(tensor, 0, group=group)


def _add_up(tensor: Tensor, group: Any) -> None:
    import torch.distributed as dist

    dist.all_reduce(tensor, group=group)


def last_line(stream: IO[bytes]) -> str:
    """The last line that a process said."""
    stream.seek(0)
    lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ")[:300] if lines else ""
