"""Processes of this machine, as many on a GPU as fit into its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from ddbench.base.process import Job, Worker

_ASK = """
import torch
for i in range(torch.cuda.device_count()):
    print(torch.cuda.mem_get_info(i)[0])
"""
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Local:
    """Processes of this machine: on each GPU as many as its memory holds by the forecast, never more.

    A job that says which part of a GPU it takes (``gpus`` of a suite) gets it; one whose memory nobody can tell has a
    GPU to itself. Of the GPUs, the one with most memory left is next. Memory of the host counts likewise.
    """

    name = "local"
    remote = False

    gpu_memory: Annotated[float | None, Gt(0), "GB of every GPU to use; none: what is free when the suite starts"] = (
        None
    )
    memory: Annotated[float | None, Gt(0), "GB of the host to use; none: what is available then"] = None

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Places]:
        host = int(self.memory * 1e9) if self.memory else _available()
        yield Places(host, self.gpu_memory)


@dataclass(eq=False)
class Place:
    """A GPU, or the host: what is left of it."""

    name: str
    memory: int
    share: float = 1.0
    jobs: int = 0

    def fits(self, memory: int, share: float) -> bool:
        """Whether there is room; an empty place takes what would fit nowhere else."""
        return not self.jobs or (memory <= self.memory and share <= self.share + 1e-9)

    def take(self, memory: int, share: float, sign: int = 1) -> None:
        self.memory -= sign * memory
        self.share -= sign * share
        self.jobs += sign


@dataclass(eq=False)
class Places:
    """The host and its GPUs, and what is at work there."""

    host_memory: int
    gpu_memory: float | None = None
    gpus: list[Place] | None = None  # asked for when the first job wants one
    _working: list[tuple[Worker, list[tuple[Place, int, float]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._host = Place("host", self.host_memory)

    def start(self, jobs: Sequence[Job]) -> list[Worker | None]:
        for worker, taken in self._working:
            if worker.poll() is not None:
                for place, memory, share in taken:
                    place.take(memory, share, -1)
        self._working = [pair for pair in self._working if pair[0].poll() is None]
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> Worker | None:
        if not self._host.fits(job.memory, 0.0):
            return None
        taken = [(self._host, job.memory, 0.0)]
        if job.gpus or job.gpu_memory:
            gpus = self._gpus()
            free = [gpu for gpu in gpus if gpu.fits(job.gpu_memory, job.gpus)]
            if gpus and not free:
                return None
            if free:  # without any, the job says itself that there is none
                best = max(free, key=lambda gpu: gpu.memory)
                taken.append((best, job.gpu_memory, job.gpus))
                job = replace(job, environment={**job.environment, VISIBLE: best.name})
        worker = Worker(job)
        for place, memory, share in taken:
            place.take(memory, share)
        self._working.append((worker, taken))
        return worker

    def _gpus(self) -> list[Place]:
        if self.gpus is None:
            limit = None if self.gpu_memory is None else int(self.gpu_memory * 1e9)
            names = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
            self.gpus = [
                Place(names[i] if i < len(names) else str(i), free if limit is None else min(free, limit))
                for i, free in enumerate(free_memory())
            ]
        return self.gpus


def free_memory() -> list[int]:
    """Free bytes of each GPU that this process may use, asked in another: a process that asks takes some itself."""
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)  # noqa: S603
    return [int(line) for line in asked.stdout.split()] if asked.returncode == 0 else []


def _available() -> int:
    """Bytes of the host's memory that are available; all there could be where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return sys.maxsize
