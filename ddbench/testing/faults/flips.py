"""One flipped bit in a file that ddbench wrote, and the next command: it refuses, heals, or is not touched by it."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from ddbench.testing.faults.cells import Cell, Reference, copied, outcome, rows
from ddbench.testing.faults.commands import Answer, Command, Moment
from ddbench.testing.faults.kills import begin
from ddbench.testing.faults.record import Trial, Verdict

PHOTOS = "photos.zip"
_IMAGES = ("--dataset", f"images:{PHOTOS}", "-o", "dataset.validation=0.2")
# Between them, these make every kind of file: experts, teachers, lessons, stored pixels, whitening, ceilings.
CELLS = (
    Cell("tesla", "pdd", dataset=_IMAGES, beside=True),
    Cell("tesla", "pdd"),
    Cell("datm", "seqmatch", dataset=(*_IMAGES, "-o", "dataset.zca=true")),
    Cell("herding", "pdd", more=(("matcher.labels", "teacher"),)),
    Cell("rded", "single"),
    Cell("ftd", "boost"),
    Cell("sre2l", "pdd", dataset=_IMAGES),
    Cell("dm", "pdd", more=(("decoder.factor", 2),)),
)
_HALVES = 8  # interrupted states of each cell
_SAID = re.compile(r"damaged|not what was written|not readable|unreadable|does not hold|was changed", re.I)


@dataclass
class States:
    """A cell at rest in several ways: finished; only its cache; and stopped or killed at several moments."""

    cell: Cell
    reference: Reference
    folders: dict[str, list[Path]]
    answers: dict[str, Answer]  # of commands on the finished run

    @staticmethod
    def of(cell: Cell, folder: Path, draw: random.Random) -> States:
        """Make them, below ``folder``."""
        finished = folder / "finished"
        finished.mkdir(parents=True)
        photos(finished / PHOTOS)
        reference = Reference.of(cell, finished)
        warm = copied(finished, folder / "warm")
        shutil.rmtree(warm / "runs")
        answers = {n: Command(words, finished).run() for n, words in after(cell, finished).items()}
        if bad := [f"{n}: {a.said}" for n, a in answers.items() if a.code != 0]:
            raise RuntimeError(f"commands fail on an undisturbed {cell}: {bad}")
        halves = []
        for i in range(_HALVES):
            half = begin(reference, folder / f"half-{i}", draw)
            photos(half / PHOTOS)
            what = draw.choice(("stop", "kill"))
            Command(cell.words, half).run(Moment(draw.randint(10, reference.operations), what=what))
            halves.append(half)
        return States(cell, reference, {"finished": [finished], "warm": [warm], "half": halves}, answers)


@dataclass
class Flips:
    """Trials of flipped bits in a folder."""

    folder: Path
    seed: int
    part = "flips"
    known: dict[int, States] = field(default_factory=dict)

    def trial(self, number: int) -> Trial:
        """Flip one bit of one file of one state, and carry out one command."""
        draw = random.Random(f"{self.seed} {self.part} {number}")
        place = number % len(CELLS)
        if place not in self.known:
            made = random.Random(f"{self.seed} {self.part} states {place}")
            self.known[place] = States.of(CELLS[place], self.folder / f"states-{place}", made)
        states = self.known[place]
        state = draw.choice(tuple(states.folders))
        folder = copied(draw.choice(states.folders[state]), self.folder / "trial")
        files = struck(folder)
        if state == "finished" and draw.random() < 0.8:  # of a finished run, little in the cache is read again
            files = {what: paths for what, paths in files.items() if what.startswith("runs/")}
        what = draw.choice(sorted(files))
        path = draw.choice(files[what])
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        commands = after(states.cell, folder) if state == "finished" else {"run": states.cell.words}
        if state == "half" and len(list(folder.glob("runs/*/spec.json"))) == 1:
            commands = {n: words for n, words in after(states.cell, folder).items() if n in ("run", "resume")}
        name = draw.choice(sorted(commands))
        answer = Command(commands[name], folder).run()
        verdict, why = judged(answer, outcome_of(folder), states, name)
        note = f"bit {bit} of {path.relative_to(folder)} ({state} {states.cell}), then {name}: {why}" if why else ""
        return Trial(self.part, what, verdict, 1, note)


def after(cell: Cell, folder: Path) -> dict[str, list[str]]:
    """The commands that somebody gives when a run is there."""
    name = next((p.parent.name for p in sorted(folder.glob(f"runs/*-{cell.matcher}-*/spec.json"))), "")
    beside = [] if cell.beside else ["--no-random", "--no-ceiling"]
    resume = ["run", "--resume", name, "--students", "2", "--checkpoint-seconds", "0", "--out", "runs", "--json"]
    return {
        "run": cell.words,
        "resume": [*resume, *beside],
        "eval": ["eval", name, "--students", "2", "--out", "runs", "--json"],
        "compare": ["compare", "--out", "runs", "--json"],
    }


def judged(answer: Answer, found: Any, states: States, command: str) -> tuple[Verdict, str]:
    """What came of a flipped bit, and why it is wrong if it is."""
    if answer.broken:
        return "wrong", answer.broken
    if answer.refused:
        return "refused", ""
    said = bool(_SAID.search(answer.err) or (command == "compare" and _SAID.search(answer.out)))
    if answer.code != 0:
        return "wrong", f"exit code {answer.code}: {answer.said}"
    if command in ("run", "resume") and found != (wanted := _graded(states.reference.outcome)):
        changed = "nothing" if not found else [run[-12:] for run in wanted if found.get(run) != wanted[run]]
        return "wrong", f"exit code 0 and other sets or grades: {changed}; {answer.said}"
    right = rows(states.answers[command])
    shown = rows(answer) or []
    if command == "compare" and said:  # the damaged run is a row with its reason, the others stand as they did
        numbers = [_numbers(row) for row in right or []]
        stand = all(row.get("accuracy_mean") is None or _numbers(row) in numbers for row in shown)
        return ("refused", "") if stand else ("wrong", "other rows")
    if shown != right:
        return "wrong", f"exit code 0 and other rows: {_first_difference(shown, right)}"
    return ("healed" if said else "identical"), ""


def _numbers(row: dict[str, Any]) -> list[Any]:
    return [row.get(name) for name in ("run", "accuracy_mean", "accuracy_std", "n", "status")]


def _first_difference(shown: list[dict[str, Any]], right: list[dict[str, Any]]) -> str:
    if len(shown) != len(right):
        return f"{len(shown)} instead of {len(right)}"
    pairs = zip(shown, right, strict=True)
    names = {name for one, other in pairs for name in one | other if one.get(name) != other.get(name)}
    return ", ".join(sorted(names))


def outcome_of(folder: Path) -> Any:
    """Sets and grades; None where a file is unreadable, which only a command may say."""
    try:
        return _graded(outcome(folder))
    except (ValueError, KeyError, TypeError):
        return None


def _graded(found: dict[str, Any]) -> dict[str, Any]:
    return {run: [kept[0], kept[2]] for run, kept in found.items()}


def struck(folder: Path) -> dict[str, list[Path]]:
    """All files that ddbench wrote here, by kind: their place without names and numbers. Locks hold nothing."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size):
        inside = path.relative_to(folder)
        if inside.parts[0] in ("home", "runs") and not path.name.endswith("lock") and path.suffix != ".tmp":
            parts = ["RUN" if i == 1 and inside.parts[0] == "runs" else p for i, p in enumerate(inside.parts)]
            found.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "N", "/".join(parts)), []).append(path)
    return found


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def photos(path: Path) -> None:
    """A small archive of images in three classes, the same every time."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    with ZipFile(path, "w") as archive:
        for part, count in (("train", 14), ("test", 6)):
            for label in range(3):
                for i in range(count):
                    noise = draw.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                    noise[:, :, label] += 100
                    stream = BytesIO()
                    Image.fromarray(noise).save(stream, "PNG")
                    archive.writestr(f"{part}/class{label}/{i}.png", stream.getvalue())
