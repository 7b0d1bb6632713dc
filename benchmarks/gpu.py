"""Everything that only a GPU shows, in as many short calls as it takes; docs/performance.md has the tables.

    python -m benchmarks.gpu --minutes 8 --records docs/results/gpu --data cifar10-jpeg.zip
    python -m benchmarks.gpu --dry-run --records docs/results/gpu    # what the next call would do
    python -m benchmarks.gpu --minutes 5 --only training unrolls
    python -m benchmarks.gpu --rehearse                              # on a CPU, tiny: does every line work?
    python -m benchmarks.gpu --table                                 # the tables of all records, into the pages
    python -m benchmarks.gpu --pack FOLDER --data cifar10-jpeg.zip   # all that a bare GPU machine needs

A call carries out as many parts as fit into its minutes, most valuable first. Each is a process with a hard limit, at
which it is killed with all that it started. A figure is on disk as soon as it is known. What is on record for this
device, this torch and the sources that a part measures is skipped, down to a single variant or test; so the next call
goes on where the last stopped. What fails is on record with its reason, and is tried again with ``--again`` alone.

``--minutes`` counts from the start of the process. Ends at once, with exit code 3, where torch finds no CUDA device;
with 1 where something failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import gpu_published
from benchmarks.gpu_records import PAGE, RECORDS, Record, on_record, page, read_all, sources_of

BEGAN = time.monotonic()
HERE = Path(__file__).resolve().parent
TRAINER = ("ddbench/data", "ddbench/train", "ddbench_networks")
ENGINE = (*TRAINER, "ddbench/trajectory", "ddbench/problem")
ALL = (*ENGINE, "ddbench/base", "ddbench/grade", "ddbench/run", "ddbench_tesla", "ddbench_datasets")
METHODS = ("ddbench_coresets", "ddbench_matching", "ddbench_trajectories", "ddbench_pdd")
TAIL = 1500  # letters of a log that a record keeps
GRACE = 3.0  # seconds that a part is expected to end before its limit


@dataclass(frozen=True)
class Part:
    """What is measured. ``expected`` seconds are what it takes to show something; it is killed after ``limit``.

    ``measures`` are the sources of which its figures are, ``settings`` the commands that it runs; ``version`` is raised
    when it measures in another way.
    """

    name: str
    title: str
    expected: float
    limit: float
    measures: tuple[str, ...]
    needs_data: bool = False
    version: int = 1
    command: tuple[str, ...] = ()  # by default the part of its name in gpu_parts.py
    settings: str = ""

    def words(self, orders: dict[str, Any]) -> list[str]:
        """The command of the process."""
        usual = (sys.executable, str(HERE / "gpu_parts.py"), self.name)
        return [*(self.command or usual), json.dumps(orders)]


def _published(name: str, expected: float, title: str) -> Part:
    """Cells of papers' tables, [published.md](../docs/published.md): each is on record as soon as it ends."""
    command = (sys.executable, "-m", "benchmarks.gpu_published", name)
    return Part(
        name,
        f"{title} Beside published numbers in [published.md](published.md).",
        expected,
        480,
        (*ALL, *METHODS),
        needs_data=True,
        command=command,
        settings=json.dumps([[cell.name, cell.words] for cell in gpu_published.cells(name)]),
    )


PUBLISHED = (
    ("evaluator", 40, "Random images and all of them, nothing distilled."),
    ("dm", 120, "Distribution matching with its whole budget."),
    ("gradients", 100, "Gradient matching, one image per class."),
    ("trajectories", 120, "Trajectories of experts, reduced."),
    ("stages", 200, "Two stages against one of the same total."),
    ("coresets", 90, "Chosen images beside learned ones, under equal rules."),
)
# In the order of their value. Expected seconds are those of an H200.
PARTS = (
    Part("tests", "Those marked `gpu`, with their seconds.", 60, 180, (*ALL, "tests")),
    Part(
        "training",
        "One expert: batches of 256 images of 3x32x32, ConvNet-D3 of width 128. Plain torch trains on one batch that "
        "lies there, and augments nothing; x is against it in TF32, torch's default for convolutions.",
        60,
        180,
        TRAINER,
    ),
    Part(
        "unrolls",
        "The gradient of 20 student steps on 100 images, ConvNet-D3 of width 128, DSA; x is against TESLA written "
        "straightforwardly as two passes of plain autograd, in float32.",
        60,
        300,
        ENGINE,
    ),
    Part(
        "speedrun",
        "From raw images to five graded students, nothing cached: one seed of the "
        "[speedrun](../leaderboards/speedrun/README.md).",
        200,
        450,
        ALL,
        needs_data=True,
        command=(sys.executable, "-m", "benchmarks.speedrun", "--orders"),
    ),
    Part(
        "memory",
        "The most that such a gradient holds at one time, beyond its arguments, and what torch keeps for it, where "
        "that is known: a CUDA graph lies in what is kept.",
        25,
        150,
        ENGINE,
    ),
    Part(
        "precision",
        "Of the median image's gradient in one student step, against float32: for a fresh network, and for one that "
        "was trained on noise.",
        15,
        60,
        ENGINE,
    ),
    Part(
        "together",
        "Students by one vectorised step, with DSA, by images in a batch; x is against one at a time.",
        40,
        120,
        TRAINER,
    ),
    *(_published(name, expected, title) for name, expected, title in PUBLISHED),
    Part(
        "cell", "A cell of a paper's table at its size, in seconds from start to end.", 300, 420, ALL, needs_data=True
    ),
)
TITLES = {part.name: part.title for part in PARTS}
CELLS = {name for name, _, _ in PUBLISHED}  # accuracies, which are the same on any device


@dataclass
class Campaign:
    """One call: parts, the record that it fills, and the time it has. ``known`` are earlier records, of any device."""

    parts: Sequence[Part]
    record: Record
    known: Sequence[Record]
    seconds: float
    orders: dict[str, Any]
    again: frozenset[str] = frozenset()
    began: float = 0.0
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.began = self.began or time.monotonic()
        self.record.figures = [figure for figure in self.record.figures if figure["part"] not in self.again]
        for name in self.again:
            self.record.parts.pop(name, None)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def sources(self, part: Part) -> str:
        return sources_of(part.measures, self.record.about["torch"], part.version, part.settings)

    def _counted(self, part: Part) -> list[Record]:
        """The records whose figures of a part stand."""
        return [self.record] if part.name in self.again else [*self.known, self.record]

    def done(self, part: Part) -> dict[str, Any]:
        """The figures of a part that need not be measured, by variant."""
        return on_record(self._counted(part), self.record.about["device"], part.name, self.sources(part))

    def _before(self, part: Part) -> list[dict[str, Any]]:
        """What records say of this part on this device and of these sources."""
        held = [r.parts[part.name] for r in self._counted(part) if part.name in r.parts and self._here(r)]
        due = self.sources(part)
        return [entry for entry in held if entry["sources"] == due]

    def _here(self, record: Record) -> bool:
        return record.about["device"] == self.record.about["device"]

    def verdict(self, part: Part) -> str:
        """Why a part is not carried out now; empty where it is."""
        before = self._before(part)
        if any(entry["status"] == "done" for entry in before):
            return "is on record"
        if any(entry.get("kills", 0) > 1 for entry in before):
            return f"was killed at its limit twice; --again {part.name} tries once more"
        if part.needs_data and not self.orders.get("data"):
            return "needs --data"
        if self.left < part.expected:
            return f"takes about {part.expected:.0f} s, and {max(0, self.left):.0f} are left"
        return ""

    def carry_out(self) -> list[str]:
        """All parts that fit; the names of those in which something failed."""
        failed = []
        for part in self.parts:
            reason, fine, known = self.verdict(part), True, -1
            if reason:
                self.say(f"{part.name}: {reason}")
            # a process that broke goes on as another one, as long as each of them finds something out
            while not self.verdict(part) and len(self.done(part)) > known:
                known = len(self.done(part))
                fine = self._measured(part) and fine
                if self.record.parts[part.name]["status"] in ("killed", "left over"):
                    break
            failed += [] if fine else [part.name]
        return failed

    def _measured(self, part: Part) -> bool:
        """Run a part to its end or its limit; whether all that it measured came out."""
        limit, known = min(part.limit, self.left), self.done(part)
        kills = max((before.get("kills", 0) for before in self._before(part)), default=0)
        entry = {"sources": self.sources(part), "status": "begun", "seconds": 0.0, "kills": kills}
        self.record.parts[part.name] = entry
        self.record.write()
        orders = self.orders | {"seconds": max(0.0, limit - GRACE), "known": sorted(known)}
        process = Process(part.words(orders), self._heard(part), limit)
        self.say(f"{part.name}: at most {limit:.0f} s")
        code, doing, left, log = process.wait()
        entry["seconds"] = round(process.seconds, 1)
        # what it was at had the time that it may have, and did not just follow what others took
        late = code is None and limit >= part.limit and process.doing_seconds >= limit / 2
        entry["kills"] += late
        if (late or (code or 0) < 0) and doing not in ("", "rounds"):  # it may hang or crash again: not tried again
            why = f"killed at the limit of {limit:.0f} s" if late else f"ended by signal {-(code or 0)}"
            self.record.add({"part": part.name, "variant": doing, "error": why})
        entry["status"] = "killed" if code is None else "left over" if left else "done"
        if code:
            entry |= {"status": f"exit code {code}", "log": log[-TAIL:]}
        self.record.write()
        errors = [
            f for f in self.record.figures if f["part"] == part.name and "error" in f and f["variant"] not in known
        ]
        self.say(f"{part.name}: {entry['status']} after {process.seconds:.0f} s" + (f"\n{log[-TAIL:]}" if code else ""))
        return not code and not late and not errors

    def _heard(self, part: Part) -> Callable[[dict[str, Any]], None]:
        """What is done with what a part says: figures and runs go on disk at once."""

        def heard(told: dict[str, Any]) -> None:
            if "run" in told:
                self.record.runs.append(told["run"])
                self.record.write()
            elif "part" in told:
                self.record.add(told)
                self.say(f"  {told['variant']}: {_said(told)}")

        return heard


def _said(figure: dict[str, Any]) -> str:
    """A figure on a line, for whoever looks on."""
    if "value" in figure:
        return f"{figure['value']:.5g} {figure['unit']}"
    word = "refused" if "refused" in figure else "error"
    return f"{word}: {figure[word].splitlines()[-1][:200]}"


class Process:
    """A part at work in a session of its own: heard line by line, and killed with all its children at its limit."""

    def __init__(self, words: list[str], heard: Callable[[dict[str, Any]], None], limit: float) -> None:
        self._heard, self._limit, self._began = heard, limit, time.monotonic()
        self._doing, self._left, self._log = "", False, list[str]()
        self._since = self._began
        self._broken: Exception | None = None
        own = os.environ | {"PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=HERE.parent,
            env=own,
            start_new_session=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def doing_seconds(self) -> float:
        """Since it said what it is at now."""
        return time.monotonic() - self._since

    def wait(self) -> tuple[int | None, str, bool, str]:
        """The exit code (None where it was killed), what it did last, whether it left something, and its log."""
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(max(0.0, self._limit - self.seconds))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # also what it left behind
            self._process.wait()
        self._reader.join(5)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
        if self._broken is not None:
            raise self._broken
        return code, self._doing, self._left, "\n".join(self._log)

    def _read(self) -> None:
        try:
            self._listen()
        except Exception as error:  # noqa: BLE001 - of a disk that is full, say: wait() raises it
            self._broken = error

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = None
            if line.startswith("@"):
                with suppress(ValueError):
                    told = json.loads(line[1:])
            if not isinstance(told, dict):
                self._log += [line.rstrip()] if line.strip() else []
            elif "doing" in told:
                self._since = time.monotonic() if self._doing else self._began  # the first has the start-up, too
                self._doing = told["doing"]
            elif "left" in told:
                self._left = True
            else:
                self._heard(told)


def rehearsal(folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """All parts on the CPU with tiny sizes, on made-up images; the names of those in which something failed.

    Compilers are left out: ``torch.compile`` does nothing. What is recorded in ``folder`` is worth nothing.
    """
    from ddbench.base.machine import machine

    data = folder / "images.zip"
    _images(data)
    about = machine("cpu")
    record = Record(
        folder / "rehearsal.json", {n: about[n] for n in ("device", "torch", "ddbench")} | {"date": _today()}
    )
    orders = {"device": "cpu", "tiny": True, "data": str(data), "records": str(folder)}
    parts = [replace(part, expected=0) for part in PARTS]
    held = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        failed = Campaign(parts, record, [], 600, orders, say=say).carry_out()
    finally:
        os.environ.pop("TORCHDYNAMO_DISABLE")
        if held is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = held
    tables = page(PAGE.read_text(), TITLES, [record])
    missing = [
        part.name for part in parts if part.title not in tables and part.name != "tests"
    ]  # those are skipped here
    return failed + [f"the table of {name}" for name in missing]


def _images(path: Path, count: int = 12) -> None:
    """An archive of noise as images, ten classes."""
    import io
    import zipfile

    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for split, each in (("train", count), ("test", 2)):
            for label in range(10):
                for index in range(each):
                    made = io.BytesIO()
                    Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(made, "PNG")
                    archive.writestr(f"{split}/class{label}/{index}.png", made.getvalue())


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def _begun(given: argparse.Namespace) -> Campaign:
    """The campaign that the arguments ask for, on the device that is here."""
    import torch

    from ddbench.base.machine import machine

    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here: nothing was measured (--rehearse tries it on a CPU)", file=sys.stderr)
        sys.exit(3)
    slow = given.device == "cpu"
    if slow and not (given.only and set(given.only) <= CELLS):
        print(f"on a CPU, --only names some of {', '.join(sorted(CELLS))}: these are accuracies", file=sys.stderr)
        sys.exit(2)
    about = machine(given.device)
    about |= {"ddbench": given.code or about["ddbench"]}
    told = {name: about[name] for name in ("device", "torch", "ddbench", "python", "system")} | {"date": _today()}
    everything = sources_of({*ALL, *(name for part in PARTS for name in part.measures)}, about["torch"])
    record = Record.begun(given.records, told, everything)
    known = [held for held in read_all(given.records) if held.path != record.path]
    parts = [part for part in PARTS if part.name in (given.only or TITLES)]
    parts = [replace(part, limit=math.inf) for part in parts] if slow else parts
    data = str(given.data.resolve()) if given.data else ""
    orders = {"device": given.device, "data": data, "records": str(given.records.resolve())}
    return Campaign(parts, record, known, 60 * given.minutes, orders, frozenset(given.again), BEGAN)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--records", type=Path, default=RECORDS, help="the folder of all records")
    parser.add_argument("--data", type=Path, help="an archive of CIFAR-10's images, {train,test}/<class>/*")
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], choices=list(TITLES), help="these parts")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu for accuracies alone, in hours")
    parser.add_argument("--again", nargs="+", metavar="PART", default=[], choices=list(TITLES), help="measured anew")
    parser.add_argument("--code", default="", help="which ddbench this is, where no checkout tells")
    parser.add_argument("--dry-run", action="store_true", help="what would be done")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes; nothing is measured")
    parser.add_argument("--table", action="store_true", help="write the tables of all records into the pages")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="make what a bare GPU machine needs")
    return parser


def main() -> None:
    """Do what the arguments ask for."""
    given = _parser().parse_args()
    if given.table:
        held = read_all(given.records)
        PAGE.write_text(page(PAGE.read_text(), TITLES, held))
        gpu_published.PAGE.write_text(gpu_published.page(gpu_published.PAGE.read_text(), held))
    elif given.pack:
        from benchmarks.gpu_pack import pack

        print(pack(given.pack, given.data))
    elif given.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            failed = rehearsal(Path(folder))
        print(f"failed: {', '.join(failed) or 'nothing'}")
        sys.exit(bool(failed))
    else:
        campaign = _begun(given)
        if given.dry_run:
            for part in campaign.parts:
                print(f"{part.name}: {campaign.verdict(part) or f'up to {part.limit:.0f} s'}")
            return
        failed = campaign.carry_out()
        print(f"{campaign.record.path}\nfailed: {', '.join(failed) or 'nothing'}")
        sys.exit(bool(failed))


if __name__ == "__main__":
    main()
