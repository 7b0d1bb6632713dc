"""A suite at work: which cells are finished, the jobs that carry out the others, and what is recorded of each.

Nothing but run folders and the records decides what is still to do, so the command that began a suite also goes on
with it: after Ctrl-C, after SIGKILL, under another -j, with another executor, or from another suite that shares cells.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddbench.base.cache import lock
from ddbench.base.opening import refuse_links
from ddbench.base.process import death
from ddbench.base.progress import Interrupts, Say, noting
from ddbench.errors import BusyError, DataError, DDBenchError, InterruptedRun, LostError
from ddbench.hookspecs import Executor, Placing
from ddbench.run.folder import finished
from ddbench.run.place import folder_of
from ddbench.run.price import LITTLE, told
from ddbench.suite.at_work import AtWork
from ddbench.suite.costs import costs, longest_first
from ddbench.suite.grid import Cell, Suite
from ddbench.suite.jobs import Desk, Part, parts_of
from ddbench.suite.kept import base_of, held, line_of, remove
from ddbench.suite.node import skew, warnings_of
from ddbench.suite.placing import asking, local
from ddbench.suite.status import BAD, append, cell_standings, due, expected, records, standing
from ddbench.suite.taking import Takings

_POLL_SECONDS = 0.1
_PATIENCE = 1.0  # seconds between looks at a cell that another process is at
_FAREWELL = 30.0  # seconds for a process to write its checkpoint after what carried it is gone
RETRIES = 3  # of what a lost node took


@dataclass(frozen=True)
class Orders:
    """How a suite is carried out; none of it changes what comes out. ``packed``: memory decides what runs beside."""

    out: Path = Path("runs")
    jobs: int = 1
    retry_failed: bool = False
    limit: int | None = None
    stop_first: bool = False
    packed: bool = False
    cost_device: str | None = None  # whose rates tell how long cells will take


@dataclass(frozen=True)
class Scene:
    """What is going on: (cell, seconds, last words) of those at work, and how many cells stand how."""

    title: str
    working: tuple[tuple[str, float, str], ...]
    counts: dict[str, int]
    left: float | None = None  # seconds, as cells like them took, and others on average


@dataclass(eq=False)
class Work:
    """A suite being carried out. ``status`` maps keys to how cells ended; '' is to do."""

    suite: Suite
    orders: Orders
    say: Say
    show: Callable[[Scene], None]
    executor: Executor = field(default_factory=local)
    status: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)  # the records of this time

    def __post_init__(self) -> None:
        out, self._base = self.orders.out, base_of(self.suite, self.orders.out)
        self._remote = bool(getattr(self.executor, "remote", False))
        self._desk = Desk(self.suite, out.absolute() if self._remote else out, self._base, self._remote)
        self._placing: Placing | None = None
        self._takings: Takings | None = None
        self._working: dict[str, AtWork] = {}
        self._times: dict[str, float] = {}  # seconds of cells like these, by key
        self._peaks: dict[str, int] = {}  # bytes that cells like these took
        self._made_ahead: set[str | None] = {None}  # what cells share, and some cell has made
        self._over: set[str] = set()  # keys of parts that ended
        self._asked: dict[str, float] = {}  # when a busy cell was last looked at
        self._lost = Counter[str]()
        self._said: set[str] = set()
        self._stopping = False

    def carry_out(self) -> None:
        """Run what is to do, and record every cell as it ends. Raises InterruptedRun on the first signal."""
        refuse_links(self._base.with_suffix(".lock"), self.orders.out)
        with (
            held(self._base.with_suffix(".lock")),
            noting(lambda text: self._warn(text)),
            self.executor.opened(self._base) as self._placing,
            Interrupts() as interrupts,
        ):
            queue = self._queue()
            places = "" if self._remote else f" with -j {self.orders.jobs}"
            if (left := self._left(queue)) is not None:
                self.say(f"{len(queue)} {'jobs' if self._remote else 'cells'} to do, about {told(left)}{places}")
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

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(f"warning: {text}")

    def _queue(self) -> list[Part]:
        """The parts to run now, in order."""
        self.status = cell_standings(self.suite, self.orders.out)
        for cell in self.suite.cells:
            self._note(Part(cell, ahead=cell.experts))
        cells = due(self.suite.cells, self.status, retry=self.orders.retry_failed, limit=self.orders.limit)
        for cell in cells:
            if self.status[cell.key][0] == "diverged":  # its result is final, and its checkpoint leads there again
                remove(folder_of(cell.spec, self.orders.out))
            self.status[cell.key] = ("", "")
        self._times = expected(self.suite.cells, self.orders.out)
        needed = self._remote or self.orders.packed or any(cell.spec.device != "cpu" for cell in cells)
        self._takings = Takings(self.say, at_hand=not needed)
        found = costs(cells, self._takings, self.suite.students, self.orders.cost_device, LITTLE)
        self._times = {key: own.known for key, own in found.items() if own.distilling is not None} | self._times
        cells = cells if self.orders.jobs == 1 else longest_first(cells, self._times)
        trained = [r["key"] for r in records(self.orders.out) if r.get("status") == "ok" and not r.get("like")]
        return parts_of(cells, self._takings if self._remote else None, trained)

    def _start(self, queue: list[Part]) -> None:
        """Fill the free places."""
        chosen: list[Part] = []
        while len(self._working) + len(chosen) < self.orders.jobs and (part := self._next(queue, chosen)):
            chosen.append(part)
        if not chosen:
            return
        assert self._placing is not None
        jobs = [self._job(part) for part in chosen]
        with asking(self.executor):
            started = self._placing.start(jobs)
        for part, job, placed in zip(chosen, jobs, started, strict=True):
            if placed is not None:
                queue.remove(part)
                result = folder_of(part.cell.spec, self.orders.out) / "result.json"
                self._working[part.key] = AtWork(part, job, placed, result)

    def _job(self, part: Part) -> Any:
        weighed = self._takings is not None and not self._takings.at_hand  # a forecast takes a second for each kind
        taking = self._takings.of(part.cell) if self._takings and weighed else None
        return self._desk.job(part, taking, self._peaks.get(part.cell.like), self._times.get(part.key))

    def _next(self, queue: list[Part], chosen: list[Part]) -> Part | None:
        """The first part that has not to wait for what another is making, else on this machine the first of all.

        Of cells that share what is not made yet, so, one goes ahead while the free places go to others.
        """
        making = {part.ahead for part in (*(w.part for w in self._working.values()), *chosen)} - self._made_ahead
        free = [part for part in queue if part not in chosen and part.after <= self._over and not self._busy(part)]
        first = next((part for part in free if part.ahead not in making), None)
        return free[0] if first is None and free and not self._remote else first

    def _busy(self, part: Part) -> bool:
        """Whether another process is at this run: a worker of another suite, or one whose suite was just killed."""
        if part.pool is not None:  # who trains experts waits for others who do
            return False
        if time.monotonic() - self._asked.get(part.key, -_PATIENCE) < _PATIENCE:
            return True
        holder = self._holder(part.cell)
        if holder:
            if part.key not in self._asked:
                self.say(f"waiting: {holder}")
            self._asked[part.key] = time.monotonic()
        return bool(holder)

    def _holder(self, cell: Cell) -> str:
        """Who is at a run, as a sentence; nothing where nobody is."""
        path = folder_of(cell.spec, self.orders.out) / ".lock"
        if not path.exists():
            return ""
        try:
            with lock(path, wait=False, within=self.orders.out):
                return ""
        except BusyError as error:
            return str(error)

    def _collect(self, queue: list[Part]) -> None:
        """Record the parts that have ended, and place again what a lost node took."""
        for work in list(self._working.values()):
            self._heed(work)
            try:
                with asking(self.executor):
                    code, said = work.placed.poll(), ""
            except LostError as error:
                code, said = None, str(error)
                if self._again(work, said, queue):
                    continue
                code = -9
            except DataError as error:
                code, said = 1, str(error)
            if code is not None and not self._leaving(work):
                self._end(work, code, said, queue)

    def _heed(self, work: AtWork, *, last: bool = False) -> None:
        """Say what the node of a part told that people should know."""
        if (report := work.look(last=last)) is not None:
            for text in warnings_of(report, skew(self._base), self.orders.out):
                self._warn(text)

    def _again(self, work: AtWork, said: str, queue: list[Part]) -> bool:
        """Whether a part that was lost is placed again: unless it had ended, too often, or while all is stopped."""
        part, lost = work.part, self._lost
        ended = part.pool is None and standing(part.cell, self.orders.out, self.suite.students, {})[0]
        if ended or self._stopping or lost[part.key] >= RETRIES:
            return False
        lost[part.key] += 1
        del self._working[part.key]
        queue.insert(0, part)
        self.say(f"{part.name}: {said}; it goes on from its last checkpoint (try {lost[part.key]} of {RETRIES} more)")
        return True

    def _leaving(self, work: AtWork) -> bool:
        """Whether a cell that was stopped is still writing its checkpoint, though what carried it is gone."""
        work.ended = work.ended or time.monotonic()
        patient = self._stopping and time.monotonic() - work.ended < _FAREWELL
        return patient and work.part.pool is None and bool(self._holder(work.part.cell))

    def _end(self, work: AtWork, code: int, said: str, queue: list[Part]) -> None:
        part = work.part
        del self._working[part.key]
        self._heed(work, last=True)
        if code and not said and not self._stopping and self._busy(part):  # another process was quicker
            queue.append(part)
            return
        status, reason = self._verdict(work, code, said)
        self._record(work, status, reason)
        if status in BAD and part.pool is None and self.orders.stop_first:
            self._stop(queue)

    def _verdict(self, work: AtWork, code: int, said: str) -> tuple[str, str]:
        """(status, reason) of a part whose process ended with this code, or of which the executor ``said`` why."""
        cell, status, reason = work.part.cell, "", ""
        if work.part.pool is None:
            status, reason = standing(cell, self.orders.out, self.suite.students, {})
        elif code == 0:
            status = "ok"
        if status in ("ok", "diverged"):
            return status, reason
        if code == 0:
            return "failed", reason or f"it wrote no result; see {work.job.log}"
        if self._stopping:
            return "interrupted", ""
        if code < 0:
            return "killed", said or death(code)
        return "failed", said or (reason if work.fresh and reason else work.complaint())

    def _record(self, work: AtWork, status: str, reason: str) -> None:
        part = work.part
        self._over.add(part.key)
        if part.pool is None:
            self.status[part.key] = ("" if status == "interrupted" else status, reason)
            self._note(part)
        record = line_of(part, self.suite) | {
            "status": status,
            "seconds": round(work.seconds, 3),
            "error": reason or None,
            "jobs": self.orders.jobs,
            **({"node": work.report["node"]} if "node" in work.report else {}),
        }
        append(self._base.with_suffix(".jsonl"), record)
        why = f": {' '.join(reason.split())}" if reason else ""
        if part.pool is not None:
            self.say(f"{status}  {work.seconds:.0f} s  {part.name}{why}")
            return
        self.made.append(record)
        place = sum(1 for status, _ in self.status.values() if status)
        self.say(f"[{place}/{len(self.suite.cells)}] {status}  {work.seconds:.0f} s  {part.name}{why}")

    def _note(self, part: Part) -> None:
        """Remember what a cell that is done made for others, and what it took."""
        if self.status[part.key][0] == "ok":
            result = finished(folder_of(part.cell.spec, self.orders.out))
            self._made_ahead |= {part.cell.experts} if result and result.expert_seconds else set()
            if result and result.peak_bytes:
                peak = max(self._peaks.get(part.cell.like, 0), int(result.peak_bytes))
                self._peaks[part.cell.like] = peak

    def _stop(self, queue: list[Part]) -> None:
        """Start nothing more, and ask those at work to write their checkpoints."""
        queue.clear()
        if not self._stopping:
            self._stopping = True
            for work in self._working.values():
                work.placed.stop()
            if self._working:
                self.say(f"stopping {len(self._working)} cells at their next checkpoint; once more kills them")

    def _kill(self) -> None:
        """End everything first: to record it may fail, as on a full disk."""
        self._stopping = True
        for work in self._working.values():
            with suppress(DDBenchError, OSError):
                work.placed.kill()
        while self._working:
            _, work = self._working.popitem()
            with suppress(DataError):
                self._record(work, "interrupted", "")

    # -------------------------------------------------------------------------- what people see

    def _left(self, queue: list[Part]) -> float | None:
        """Seconds until all is done; None before anything is known of any cell."""
        if not queue and not self._working:
            return None
        known = [*self._times.values(), *(record["seconds"] for record in self.made if record["status"] == "ok")]
        if not known:
            return None
        usual = sum(known) / len(known)
        due = sum(self._times.get(part.key, usual) for part in queue)
        going = [self._times.get(key, usual) - work.seconds for key, work in self._working.items()]
        places = min(self.orders.jobs, max(1, len(going))) if self._remote else self.orders.jobs
        return max((due + sum(max(0.0, time) for time in going)) / places, *going, 0.0)

    def _scene(self, queue: list[Part]) -> Scene:
        working = [(work.part.name, work.seconds, work.last_words()) for work in self._working.values()]
        counts = Counter(status for status, _ in self.status.values() if status)
        return Scene(self.suite.title, tuple(working), {**counts, "left": len(queue)}, self._left(queue))

    def summary(self, word: str = "finished") -> str:
        """One line on how the cells stand."""
        counts = Counter(status or "to do" for status, _ in self.status.values())
        shown = [f"{counts[name]} {name}" for name in ("ok", *BAD, "to do") if counts[name]]
        return f"suite {self.suite.title!r} {word}: {', '.join(shown)} of {len(self.suite.cells)} cells"
