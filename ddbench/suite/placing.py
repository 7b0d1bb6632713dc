"""Who carries a suite out, and how many cells at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ddbench.base.guard import told
from ddbench.base.options import make
from ddbench.errors import DDBenchError, PluginError, UsageError
from ddbench.hookspecs import Executor
from ddbench.plugins import registry
from ddbench.suite.grid import Suite, read

MANY = 10**6  # jobs at a time on a cluster, whose engine has a queue of its own


def executor_of(name: str, flags: Iterable[tuple[str, str]]) -> Executor:
    """An executor with its options. Raises UsageError for unknown names and values."""
    plugin, given = registry().get("executor", name), {}
    for full, value in flags:
        group, _, option = full.partition(".")
        if group != "executor" or not option:
            raise UsageError(
                f"-o {full}: `ddbench suite run` takes options of its executor alone, such as -o executor.NAME=VALUE; "
                "those of cells stand in the suite"
            )
        given[option] = value
    return make(plugin.cls, given, "executor")


@contextmanager
def asking(executor: Executor) -> Iterator[None]:
    """Around calls of an executor: what it raises that is no error of ddbench is one of its own, with its name."""
    try:
        yield
    except DDBenchError:
        raise
    except Exception as error:
        reason = told(error)
        raise PluginError(f"executor {executor.name!r} failed: {reason}", reason) from error


def local() -> Executor:
    """Processes of this machine."""
    return executor_of("local", ())


def places(
    file: Path,
    executor: Executor,
    jobs: int | str | None,
    *,
    device: str,
    dry: bool,
    only: Mapping[str, set[str]] | None = None,
) -> tuple[Suite, int]:
    """The suite, or the part of it that is wanted, and how many of its cells may be at work at the same time.

    Threads of cells are part of their keys. With a number for ``jobs`` on this machine, and nothing else that says
    them, the cores are divided; on a cluster and with ``auto`` a cell has one, whatever machine this is.
    """
    remote = bool(getattr(executor, "remote", False))
    if isinstance(jobs, int) and not remote:
        return read(file, jobs=jobs, device=device, dry=dry, only=only), jobs
    if jobs is None and not remote:
        return read(file, device=device, dry=dry, only=only), 1
    cores = _cores()
    suite = read(file, jobs=cores, device=device, dry=dry, remote=remote, only=only)
    if remote:
        return suite, MANY if jobs in (None, "auto") else int(jobs or 1)
    return suite, max(1, cores // max((cell.spec.threads for cell in suite.cells), default=1))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
