"""What a suite keeps in ``--out``: its lock, its records, its logs; and finished runs that are refused or removed."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ddbench.base.cache import lock
from ddbench.errors import BusyError, UsageError
from ddbench.run.folder import finished
from ddbench.run.place import folder_of
from ddbench.suite.grid import Cell, Suite
from ddbench.suite.jobs import Part
from ddbench.suite.status import append

_POLL_SECONDS = 0.1
_PATIENCE = 2.0  # seconds for one that was killed a moment ago


def existing(suite: Suite, out: Path, on_existing: str) -> list[Cell]:
    """The cells whose runs are finished, however they ended. Raises UsageError where there may be none."""
    done = [cell for cell in suite.cells if finished(folder_of(cell.spec, out))]
    if done and on_existing == "fail":
        raise UsageError(
            f"{len(done)} of {len(suite.cells)} cells exist in {out} (the first is {done[0].spec.folder}); "
            "leave --on-existing at skip, or give another --out"
        )
    return done


def prepare(suite: Suite, out: Path, on_existing: str) -> None:
    """Refuse or remove finished runs, if that is asked for. Removing comes first, so that going on removes nothing."""
    done = existing(suite, out, on_existing)
    if on_existing == "rerun":
        for cell in done:
            remove(folder_of(cell.spec, out))
            # else the record of how it ended last would stand for it
            append(base_of(suite, out).with_suffix(".jsonl"), line_of(Part(cell), suite) | {"status": "removed"})


def base_of(suite: Suite, out: Path) -> Path:
    """Where a suite's records, logs and lock are, without their endings."""
    return out / "suites" / suite.key


def line_of(part: Part, suite: Suite) -> dict[str, Any]:
    """What every record says of a cell, or of the experts that a job trained."""
    return {
        "suite": suite.key,
        "key": part.key,
        "like": part.cell.like if part.pool is None else "",
        "cell": part.name,
        "run": part.file,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    }


def remove(folder: Path) -> None:
    with lock(folder / ".lock", wait=False, within=folder.parent):
        shutil.rmtree(folder)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a suite. One that was killed a moment ago may still have it: that is waited for."""
    end = time.monotonic() + _PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(path, wait=False, within=path.parent.parent))
                break
            except BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL_SECONDS)
        yield
