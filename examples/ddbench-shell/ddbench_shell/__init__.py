"""Jobs of a suite behind a command: an example of an executor for ddbench."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddbench import hookimpl
from ddbench.base.process import Job


class Started:
    def __init__(self, command: list[str], job: Job) -> None:
        variables = [f"{name}={value}" for name, value in job.variables.items()]
        words = ["env", *variables, sys.executable, "-P", "-m", "ddbench", *job.words]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=log)

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


@dataclass(frozen=True)
class Shell:
    """A process for each job, behind a command."""

    name = "shell"
    command: str = "nice -n 10"

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Shell]:
        yield self

    def start(self, jobs: Sequence[Job]) -> list[Started]:
        return [Started(shlex.split(self.command), job) for job in jobs]


@hookimpl
def register_executors(register) -> None:
    register(Shell)
