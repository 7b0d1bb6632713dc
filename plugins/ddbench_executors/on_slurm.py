"""Slurm, by way of submitit: jobs of the queue, packed where several fit on one GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from ddbench import DataError, LostError, UsageError
from ddbench.base.process import Job, Worker, carry

REQUEUES = 10_000  # time limits that a job may meet: it goes on from its checkpoint. submitit gives up after three


@dataclass(frozen=True)
class Slurm:
    """Slurm: a job of the queue for each cell and expert.

    Before its time is up it writes a checkpoint and is queued again. Nodes need this ddbench, its plugins, and the same
    paths for ``--out``, DDBENCH_HOME and data. A suite whose cells take a part of a GPU (``gpus = 0.25``) has so many
    of them in one job, on one GPU.
    """

    name = "slurm"
    remote = True

    partition: Annotated[str, "of the cluster"] = ""
    account: Annotated[str, "that pays"] = ""
    qos: Annotated[str, "quality of service"] = ""
    minutes: Annotated[int, Ge(1), "time limit of a job"] = 24 * 60
    more: Annotated[tuple[str, ...], "other options of sbatch, NAME=VALUE: constraint=a100"] = ()
    cluster: Annotated[Literal["slurm", "local"], "local: processes of this machine, as a trial"] = "slurm"

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Queue]:
        folder = folder / "submitit"
        auto = library().AutoExecutor(folder=folder, cluster=self.cluster, slurm_max_num_timeout=REQUEUES)
        yield Queue(auto, self._parameters())

    def _parameters(self) -> dict[str, Any]:
        given = {name: value for name, _, value in (entry.partition("=") for entry in self.more)}
        if wrong := [entry for entry in self.more if "=" not in entry]:
            raise UsageError(f"executor.more must be NAME=VALUE, such as constraint=a100, got {wrong[0]!r}")
        named = {f"slurm_{n}": getattr(self, n) for n in ("partition", "account", "qos") if getattr(self, n)}
        return named | {"timeout_min": self.minutes} | ({"slurm_additional_parameters": given} if given else {})


def library() -> Any:
    """The package. Raises UsageError with the way to get it."""
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError as error:
        raise UsageError(f"--executor slurm needs submitit ({error}); run `pip install 'ddbench[slurm]'`") from error
    return submitit


@dataclass(eq=False)
class Queue:
    """Jobs as submissions to the queue; those that want the same are one array."""

    executor: Any
    parameters: dict[str, Any]

    def start(self, jobs: Sequence[Job]) -> list[Queued]:
        packs = list(_packs(jobs))
        placed: dict[int, Queued] = {}
        for wants, group in groupby(sorted(packs, key=_wants), key=_wants):
            members = list(group)
            threads, gpus, memory = wants
            self.executor.update_parameters(
                name="ddbench",
                cpus_per_task=threads,
                gpus_per_node=gpus,
                mem_gb=memory or None,
                **self.parameters,
            )
            try:
                with self.executor.batch():
                    made = [self.executor.submit(Carried(), [job for _, job in pack]) for pack in members]
            except (RuntimeError, OSError, ValueError) as error:
                said = " ".join(str(error).split())
                raise DataError(
                    f"Slurm took no job ({said[-300:]}); mend that and run the same command again"
                ) from error
            for pack, submitted in zip(members, made, strict=True):
                placed |= {place: Queued(submitted, i) for i, (place, _) in enumerate(pack)}
        return [placed[i] for i in range(len(jobs))]


Pack = list[tuple[int, Job]]  # with their places among those to start


def _packs(jobs: Sequence[Job]) -> Iterator[Pack]:
    """Jobs that share one submission: alone, or as many parts of a GPU as make one."""
    parts: dict[float, Pack] = {}
    for place, job in enumerate(jobs):
        if not 0 < job.gpus < 1:
            yield [(place, job)]
            continue
        pack = parts.setdefault(job.gpus, [])
        pack.append((place, job))
        if len(pack) == math.floor(1 / job.gpus + 1e-9):
            yield parts.pop(job.gpus)
    yield from parts.values()


def _wants(pack: Pack) -> tuple[int, int, int]:
    """Threads, GPUs, and GB of the host's memory."""
    jobs = [job for _, job in pack]
    gpus = math.ceil(sum(job.gpus for job in jobs) - 1e-9)
    return sum(job.threads for job in jobs), gpus, math.ceil(sum(job.memory for job in jobs) / 1e9)


class Carried:
    """What runs on a node: the jobs of a pack, side by side. Before its time is up it is queued again, and goes on."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []

    def __call__(self, jobs: list[Job]) -> list[int]:
        if len(jobs) == 1:
            return [carry(jobs[0], self.workers.append)]
        try:
            self.workers += [Worker(job) for job in jobs]
            while any(worker.poll() is None for worker in self.workers):
                time.sleep(0.1)
        except BaseException:
            self._stop()
            raise
        return [worker.wait() for worker in self.workers]

    def checkpoint(self, jobs: list[Job]) -> Any:
        """submitit calls this before the job's time is up, or when others need its place."""
        self._stop()
        return library().helpers.DelayedSubmission(Carried(), jobs)

    def _stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.wait()

    def __getstate__(self) -> dict[str, Any]:
        return {"workers": []}  # processes do not travel


@dataclass(eq=False)
class Queued:
    """A job in the queue, or the place of one in a pack."""

    submitted: Any
    place: int
    _ended: list[int] = field(default_factory=list)

    def poll(self) -> int | None:
        if not self.submitted.done():
            return None
        errors = library().core.utils
        try:
            return self.submitted.result()[self.place]
        except errors.FailedJobError as error:
            raise DataError(f"a node could not begin it: {_last(error)}") from error
        except errors.UncompletedJobError as error:
            state = str(self.submitted.state)
            if state.startswith("OUT_OF_ME"):
                raise DataError(
                    "Slurm ended it for its memory; give it more with -o executor.more=mem=32G, then --retry-failed"
                ) from error
            raise LostError(f"Slurm lost it (job {self.submitted.job_id}, {state})") from error

    def stop(self) -> None:
        with suppress(OSError, RuntimeError):
            self.submitted.cancel(check=False)

    def kill(self) -> None:
        self.stop()


def _last(error: BaseException) -> str:
    """The last line of the trace that an error holds."""
    _, _, trace = str(error).partition("----------------------")
    lines = [line.strip() for line in trace.partition("----------------------")[0].splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)
