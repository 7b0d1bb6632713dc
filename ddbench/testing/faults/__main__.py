"""``python -m ddbench.testing.faults``: a campaign of faults for so many minutes, and its record."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ddbench.testing.faults.cells import Cell, References
from ddbench.testing.faults.commands import Command, preload
from ddbench.testing.faults.flips import PHOTOS, Flips, photos
from ddbench.testing.faults.full import Full
from ddbench.testing.faults.hostile import CELL, Hostile, foreign
from ddbench.testing.faults.kills import Kills
from ddbench.testing.faults.record import PARTS, Record, Trial

GOALS = {"kills": 1000, "flips": 1000, "full": 100, "hostile": 500}  # parts take turns in these proportions
Sets = list[tuple[str, Path]]  # by name
_SAY_SECONDS = 30.0
_log = logging.getLogger("ddbench.faults")


class Part(Protocol):
    """One kind of fault: its trials, each decided by the seed and its number."""

    def trial(self, number: int) -> Trial:
        """Carry out trial ``number``."""
        ...


def parts(folder: Path, seed: int, hostile: Sets) -> dict[str, Part]:
    """All parts, at work in ``folder``; ``hostile`` are sets of others, which they share."""
    for name in ("kills", "flips", "full", "hostile"):
        (folder / name).mkdir(parents=True)
    references = References(folder)
    return {
        "kills": Kills(folder / "kills", seed, references),
        "flips": Flips(folder / "flips", seed),
        "full": Full(folder / "full", seed, references),
        "hostile": Hostile(folder / "hostile", seed, hostile),
    }


def tried(part: Part, name: str, number: int, folder: Path) -> Trial:
    """A trial; what it left behind is kept where it is wrong, and a part that itself fails is wrong, too."""
    try:
        trial = part.trial(number)
    except Exception as error:  # noqa: BLE001 - one trial must not end the campaign
        trial = Trial(name, "the campaign itself", "wrong", 1, f"{type(error).__name__}: {error}")
    if trial.verdict == "wrong" and (left := folder / name / "trial").exists():
        left.rename(folder / f"wrong-{name}-{number}")
    return trial


def work(every: dict[str, Part], folder: Path, share: tuple[int, int], until: float, line: int) -> None:
    """Carry out every ``share[1]``-th trial of each part until the time is up, and write each as a line."""
    only = list(every)
    done = dict.fromkeys(only, 0)
    turn = dict.fromkeys(only, 0)
    while time.monotonic() < until:
        name = min(only, key=lambda part: done[part] / GOALS[part])
        number = share[0] + turn[name] * share[1]
        trial = tried(every[name], name, number, folder)
        turn[name] += 1
        done[name] += max(1, trial.faults)
        told = {"number": number, **vars(trial)}
        os.write(line, json.dumps(told).encode() + b"\n")


def campaign(only: list[str], seed: int, minutes: float, jobs: int, folder: Path) -> Record:
    """Share the trials between ``jobs`` processes, and count what they find."""
    record, began = Record(), time.monotonic()
    hostile = foreign(seed, folder / "foreign") if "hostile" in only else []
    read, write = os.pipe()
    workers = []
    for place in range(jobs):
        pid = os.fork()
        if pid == 0:
            os.close(read)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            try:
                own = folder / f"worker-{place}"
                every = {name: part for name, part in parts(own, seed, hostile).items() if name in only}
                work(every, own, (place, jobs), began + 60 * minutes, write)
            finally:
                os._exit(0)
        workers.append(pid)
    os.close(write)
    with suppress(KeyboardInterrupt):
        _count(read, record, began)
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)  # one that has ended by itself keeps its exit code
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code not in (0, -signal.SIGTERM):
            record.wrong.append({"part": "campaign", "trial": 0, "what": "a worker", "note": f"ended with {code}"})
    record.about = about(seed, (time.monotonic() - began) / 60, jobs)
    return record


def _count(read: int, record: Record, began: float) -> None:
    said = time.monotonic()
    with os.fdopen(read) as lines:
        for text in lines:
            told = json.loads(text)
            number, trial = told.pop("number"), None
            trial = Trial(**told)
            record.add(number, trial)
            if trial.verdict == "wrong":
                _log.warning("WRONG %s %d, %s: %s", trial.part, number, trial.what, trial.note)
            if time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                counts = ", ".join(f"{record.faults(part):,} {part}" for part in PARTS)
                _log.info("%.0f min: %s; %d wrong", (said - began) / 60, counts, len(record.wrong))


def about(seed: int, minutes: float, jobs: int) -> dict[str, Any]:
    """What a record was made with."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("ddbench", "torch")} | {"python": platform.python_version()}
    return {"seed": seed, "minutes": round(minutes, 1), "jobs": jobs, "system": platform.system(), **versions}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m ddbench.testing.faults", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="for how long (default: 10); 0 with --page makes the page alone"
    )
    parser.add_argument("--seed", type=int, help="of all draws; by default one that nobody chose")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="this part alone; may be repeated")
    parser.add_argument("--trial", type=int, help="only this trial of --only, as a line of the record names it")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per CPU)")
    parser.add_argument("--out", type=Path, help="file for the record, in lines of JSON")
    parser.add_argument(
        "--folder", type=Path, help="where to work; by default a temporary folder, removed if all is right"
    )
    parser.add_argument("--page", type=Path, help="page into which the record of --out is put, between its marks")
    given = parser.parse_args()
    if given.trial is not None and len(given.only or ()) != 1:
        parser.error("--trial needs one --only")
    if given.page and not given.out:
        parser.error("--page needs --out")
    return given


def main() -> int:
    """Run a campaign; 1 if anything is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = _arguments()
    if given.page and given.minutes == 0:
        Record.load(given.out).onto(given.page)
        return 0
    os.environ |= {"DDBENCH_THREADS": "1", "OMP_NUM_THREADS": "1"}
    seed = int.from_bytes(os.urandom(4), "big") if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="ddbench-faults-"))
    _log.info("seed %d, in %s", seed, folder)
    warm(folder / "warm")
    only = given.only or list(PARTS)
    if given.trial is not None:
        record = Record(about(seed, 0, 1))
        hostile = foreign(seed, folder / "foreign") if "hostile" in only else []
        record.add(given.trial, tried(parts(folder, seed, hostile)[only[0]], only[0], given.trial, folder))
    else:
        record = campaign(only, seed, given.minutes, given.jobs, folder)
    if given.out:
        record.save(given.out)
    if given.page:
        record.onto(given.page)
    for wrong in record.wrong:
        _log.info("%s", json.dumps(wrong, ensure_ascii=False))
    _log.info("%s", record.table())
    if not record.wrong and not given.folder:
        shutil.rmtree(folder)
    return 1 if record.wrong else 0


def warm(folder: Path) -> None:
    """Import all that commands import, once, before processes fork."""
    import torch

    torch.set_num_threads(1)
    photos(folder / PHOTOS)
    run = Command(CELL.words, folder)
    others = (["compare"], ["suite", "status", "x.toml"], ["leaderboard", "html", "--to", "site"], ["report", "x"])
    preload([run, Command(Cell("k-means", "single").words, folder), *(Command(list(o), folder) for o in others)])
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
