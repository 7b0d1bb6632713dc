"""A suite at work: which cells are finished, the processes that carry out the others, and what is recorded of each.

Nothing but run folders and the records decides what is still to do, so the command that began a suite also goes on
with it: after Ctrl-C, after SIGKILL, under another -j, or from another suite that shares cells with it.
"""

from __future__ import annotations

import datetime
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddbench.base.cache import lock
from ddbench.base.opening import refuse_links
from ddbench.base.process import Worker, death
from ddbench.base.progress import Interrupts, Say
from ddbench.errors import BusyError, InterruptedRun, UsageError
from ddbench.run.folder import finished
from ddbench.run.place import folder_of
from ddbench.run.price import told
from ddbench.suite.grid import Cell, Suite
from ddbench.suite.status import BAD, append, cell_standings, due, expected, standing

_POLL_SECONDS = 0.1
_PATIENCE = 1.0  # seconds between looks at a cell that another process is at


@dataclass(frozen=True)
class Orders:
    """How a suite is carried out; none of it changes what comes out."""

    out: Path = Path("runs")
    jobs: int = 1
    retry_failed: bool = False
    limit: int | None = None
    stop_first: bool = False


@dataclass(frozen=True)
class Scene:
    """What is going on: (cell, seconds, last words) of those at work, and how many cells stand how."""

    title: str
    working: tuple[tuple[str, float, str], ...]
    counts: dict[str, int]
    left: float | None = None  # seconds, as cells like them took, and others on average


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
            _remove(folder_of(cell.spec, out))
            # else the record of how it ended last would stand for it
            append(_base(suite, out).with_suffix(".jsonl"), _line(cell, suite) | {"status": "removed"})


def _base(suite: Suite, out: Path) -> Path:
    """Where a suite's records, logs and lock are, without their endings."""
    return out / "suites" / suite.key


def _line(cell: Cell, suite: Suite) -> dict[str, Any]:
    """What every record of a cell says."""
    return {
        "suite": suite.key,
        "key": cell.key,
        "like": cell.like,
        "cell": cell.name,
        "run": cell.spec.folder,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    }


def _remove(folder: Path) -> None:
    with lock(folder / ".lock", wait=False, within=folder.parent):
        shutil.rmtree(folder)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock of a suite. One that was killed a moment ago may still have it: that is waited for."""
    end = time.monotonic() + 2 * _PATIENCE
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


def words(cell: Cell, suite: Suite, out: Path) -> list[str]:
    """The arguments of the ``ddbench`` command that carries out a cell."""
    asked = cell.request
    named = {name: getattr(asked, name) for name in ("dataset", "matcher", "scheduler", "network", "protocol")}
    given = named | {"ipc": asked.ipc, "seed": asked.seed, "device": cell.spec.device, "students": suite.students}
    flags = [word for name, value in asked.flags for word in ("-o", f"{name}={value}")]
    trackers = [word for name in suite.trackers for word in ("--tracker", name)]
    given |= {"recipe": asked.recipe} if asked.recipe else {}
    plain = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["run", *plain, *flags, "--out", str(out), "--no-random", "--no-ceiling", *trackers]


@dataclass(eq=False)
class Work:
    """A suite being carried out. ``status`` maps keys to how cells ended; '' is to do."""

    suite: Suite
    orders: Orders
    say: Say
    show: Callable[[Scene], None]
    status: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)  # the records of this time

    def __post_init__(self) -> None:
        self._base = _base(self.suite, self.orders.out)
        self._working: dict[str, tuple[Cell, Worker]] = {}
        self._times: dict[str, float] = {}  # seconds of cells like these, by key
        self._trained: set[str | None] = {None}  # experts that some cell has made
        self._asked: dict[str, float] = {}  # when a busy cell was last looked at
        self._stopping = False

    def carry_out(self) -> None:
        """Run what is to do, and record every cell as it ends. Raises InterruptedRun on the first signal."""
        refuse_links(self._base.with_suffix(".lock"), self.orders.out)
        with _held(self._base.with_suffix(".lock")), Interrupts() as interrupts:
            self.status = cell_standings(self.suite, self.orders.out)
            for cell in self.suite.cells:
                self._note_experts(cell)
            queue = self._queue()
            self._times = expected(self.suite.cells, self.orders.out)
            if (left := self._left(queue)) is not None:
                self.say(f"{len(queue)} cells to do, about {told(left)} with -j {self.orders.jobs}")
            try:
                while queue or self._working:
                    if interrupts.requested:
                        self._stop(queue)
                    self._start(queue)
                    self.show(self._scene(queue))
                    time.sleep(_POLL_SECONDS)
                    self._collect(queue)
            except BaseException:
                self._kill()
                raise
            if interrupts.requested:
                raise InterruptedRun(self.summary("interrupted"))

    def _queue(self) -> list[Cell]:
        """The cells to run now, in order."""
        queue = due(self.suite.cells, self.status, retry=self.orders.retry_failed, limit=self.orders.limit)
        for cell in queue:
            if self.status[cell.key][0] == "diverged":  # its result is final, and its checkpoint leads there again
                _remove(folder_of(cell.spec, self.orders.out))
            self.status[cell.key] = ("", "")
        return queue

    def _start(self, queue: list[Cell]) -> None:
        """Fill the free places."""
        while len(self._working) < self.orders.jobs and (cell := self._next(queue)):
            queue.remove(cell)
            name = cell.spec.folder
            log = self._base / f"{name}.log"
            worker = Worker(words(cell, self.suite, self.orders.out), cell.spec.threads, log, self.orders.out)
            self._working[cell.key] = (cell, worker)

    def _next(self, queue: list[Cell]) -> Cell | None:
        """The first cell that has not to wait for experts that another is training, else the first of all.

        Of cells with the same experts, so, one goes ahead while the free places go to others.
        """
        training = {cell.experts for cell, _ in self._working.values()} - self._trained
        free = [cell for cell in queue if not self._busy(cell)]
        return next((cell for cell in free if cell.experts not in training), free[0] if free else None)

    def _busy(self, cell: Cell) -> bool:
        """Whether another process is at this run: a worker of another suite, or one whose suite was just killed."""
        if time.monotonic() - self._asked.get(cell.key, -_PATIENCE) < _PATIENCE:
            return True
        path = folder_of(cell.spec, self.orders.out) / ".lock"
        if not path.exists():
            return False
        try:
            with lock(path, wait=False, within=self.orders.out):
                return False
        except BusyError as error:
            if cell.key not in self._asked:
                self.say(f"waiting: {error}")
            self._asked[cell.key] = time.monotonic()
            return True

    def _collect(self, queue: list[Cell]) -> None:
        """Record the cells that have ended."""
        for cell, worker in list(self._working.values()):
            code = worker.poll()
            if code is None:
                continue
            del self._working[cell.key]
            if code and not self._stopping and self._busy(cell):  # another process was quicker
                queue.append(cell)
                continue
            status, reason = self._verdict(cell, worker, code)
            self._record(cell, worker, status, reason)
            if status in BAD and self.orders.stop_first:
                self._stop(queue)

    def _verdict(self, cell: Cell, worker: Worker, code: int) -> tuple[str, str]:
        """(status, reason) of a cell whose process ended with this code."""
        status, reason = standing(cell, self.orders.out, self.suite.students, {})
        if status in ("ok", "diverged"):
            return status, reason
        if code == 0:
            return "failed", reason or f"it wrote no result; see {worker.log}"
        if self._stopping:
            return "interrupted", ""
        if code < 0:
            return "killed", death(code)
        path = folder_of(cell.spec, self.orders.out) / "result.json"
        fresh = path.exists() and path.stat().st_mtime >= worker.began  # not the failure of an earlier attempt
        return "failed", reason if fresh and reason else worker.complaint()

    def _record(self, cell: Cell, worker: Worker, status: str, reason: str) -> None:
        self.status[cell.key] = ("" if status == "interrupted" else status, reason)
        self._note_experts(cell)
        record = _line(cell, self.suite) | {
            "status": status,
            "seconds": round(worker.seconds, 3),
            "error": reason or None,
            "jobs": self.orders.jobs,
        }
        append(self._base.with_suffix(".jsonl"), record)
        self.made.append(record)
        place = sum(1 for status, _ in self.status.values() if status)
        why = f": {' '.join(reason.split())}" if reason else ""
        self.say(f"[{place}/{len(self.suite.cells)}] {status}  {worker.seconds:.0f} s  {cell.name}{why}")

    def _note_experts(self, cell: Cell) -> None:
        """Remember that the experts of a cell are there, if it is done and used any."""
        if self.status[cell.key][0] == "ok":
            result = finished(folder_of(cell.spec, self.orders.out))
            self._trained |= {cell.experts} if result and result.expert_seconds else set()

    def _stop(self, queue: list[Cell]) -> None:
        """Start nothing more, and ask those at work to write their checkpoints."""
        queue.clear()
        if not self._stopping:
            self._stopping = True
            for _, worker in self._working.values():
                worker.stop()
            if self._working:
                self.say(f"stopping {len(self._working)} cells at their next checkpoint; once more kills them")

    def _kill(self) -> None:
        self._stopping = True
        for cell, worker in self._working.values():
            worker.kill()
            self._record(cell, worker, "interrupted", "")
        self._working.clear()

    # -------------------------------------------------------------------------- what people see

    def _left(self, queue: list[Cell]) -> float | None:
        """Seconds until all is done; None before anything is known of any cell."""
        if not queue and not self._working:
            return None
        known = [*self._times.values(), *(record["seconds"] for record in self.made if record["status"] == "ok")]
        if not known:
            return None
        usual = sum(known) / len(known)
        due = sum(self._times.get(cell.key, usual) for cell in queue)
        going = [self._times.get(key, usual) - worker.seconds for key, (_, worker) in self._working.items()]
        return max((due + sum(max(0.0, time) for time in going)) / self.orders.jobs, *going, 0.0)

    def _scene(self, queue: list[Cell]) -> Scene:
        working = [(cell.name, worker.seconds, worker.last_words()) for cell, worker in self._working.values()]
        counts = Counter(status for status, _ in self.status.values() if status)
        return Scene(self.suite.title, tuple(working), {**counts, "left": len(queue)}, self._left(queue))

    def summary(self, word: str = "finished") -> str:
        """One line on how the cells stand."""
        counts = Counter(status or "to do" for status, _ in self.status.values())
        shown = [f"{counts[name]} {name}" for name in ("ok", *BAD, "to do") if counts[name]]
        return f"suite {self.suite.title!r} {word}: {', '.join(shown)} of {len(self.suite.cells)} cells"
