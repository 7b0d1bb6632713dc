"""Ray: one task for each job, on whichever node has what it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ddbench import DataError, LostError, UsageError, note
from ddbench.base.process import Job, carry

STOPPED = 130  # what a command that was interrupted ends with


@dataclass(frozen=True)
class Ray:
    """Ray: a task for each cell and expert, with its threads, its GPU or part of one, and its memory.

    Nodes need this ddbench, its plugins, and the same paths for ``--out``, DDBENCH_HOME and data.
    """

    name = "ray"
    remote = True

    address: Annotated[str, "of the cluster; auto: the one that this machine is part of; local: one of its own"] = (
        "auto"
    )

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Tasks]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = library()
        ours = not ray.is_initialized()
        if ours:
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", include_dashboard=None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                said = " ".join(str(error).split())
                raise UsageError(
                    f"no Ray cluster answers at {self.address!r} ({said[:200]}); start one with `ray start --head` and "
                    "give its address as -o executor.address=HOST:PORT, or use this machine's with "
                    "-o executor.address=local"
                ) from error
        try:
            yield Tasks(ray)
        finally:
            if ours:
                ray.shutdown()


def library() -> Any:
    """The package. Raises UsageError with the way to get it."""
    try:
        import ray  # type: ignore[import-not-found]
    except ImportError as error:
        raise UsageError(f"--executor ray needs Ray ({error}); run `pip install 'ddbench[ray]'`") from error
    return ray


@dataclass(eq=False)
class Tasks:
    """Jobs as tasks. What a lost node took is placed again by whoever placed it: Ray's own retries say nothing."""

    ray: Any
    _said: set[str] = field(default_factory=set)

    def start(self, jobs: Sequence[Job]) -> list[Task]:
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> Task:
        wants = {"CPU": float(job.threads), "GPU": float(job.gpus), "memory": float(job.memory)}
        self._warn(wants)
        remote = self.ray.remote(carry).options(
            name=job.name,
            num_cpus=wants["CPU"],
            num_gpus=wants["GPU"],
            memory=wants["memory"] or None,
            max_retries=0,
        )
        return Task(self.ray, remote.remote(job), job)

    def _warn(self, wants: dict[str, float]) -> None:
        """Say once that no node has what a job wants: unless one joins, it waits for ever."""
        nodes = [node.get("Resources", {}) for node in self.ray.nodes() if node.get("Alive")]
        if any(all(node.get(name, 0.0) >= much for name, much in wants.items()) for node in nodes):
            return
        told = {"CPU": f"{wants['CPU']:g} CPUs", "GPU": f"{wants['GPU']:g} GPUs"}
        told["memory"] = f"{wants['memory'] / 1e9:.1f} GB of memory"
        text = ", ".join(told[name] for name, much in wants.items() if much)
        if text not in self._said:
            self._said.add(text)
            note(f"no node of the Ray cluster has {text}: what needs that waits until one joins")


@dataclass(eq=False)
class Task:
    """A job as a task of Ray."""

    ray: Any
    ref: Any
    job: Job

    def poll(self) -> int | None:
        errors = self.ray.exceptions
        done, _ = self.ray.wait([self.ref], timeout=0)
        if not done:
            return None
        try:
            return int(self.ray.get(self.ref))
        except errors.TaskCancelledError:
            return STOPPED
        except errors.RayTaskError as error:
            raise DataError(unusable(error)) from error
        except errors.RayError as error:  # a worker, a node, or the whole cluster went away
            first = next(iter(str(error).strip().splitlines()), "")
            raise LostError(f"Ray lost it ({type(error).__name__}: {first[:200]})") from error

    def stop(self) -> None:
        self.ray.cancel(self.ref, force=False)

    def kill(self) -> None:
        self.ray.cancel(self.ref, force=True)


def unusable(error: BaseException) -> str:
    """Why a node could not even begin a job."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    if "ddbench" in last and ("No module named" in last or "cannot import" in last or "attribute" in last):
        return f"a node has no ddbench that can carry out jobs, or another version ({last}); install the same there"
    return f"a node could not begin it: {last}"
