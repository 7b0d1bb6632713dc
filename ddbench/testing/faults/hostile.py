"""Files of others, spoilt or made to harm, given to the commands that read them: no traceback, no hang, no bomb."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ddbench.testing.faults.cells import Cell, copied
from ddbench.testing.faults.commands import Answer, Command, Moment
from ddbench.testing.faults.flips import PHOTOS, photos
from ddbench.testing.faults.record import Trial
from ddbench.testing.faults.spoil import VICTIM, spoil
from ddbench.testing.hostile import hostile_files

SECONDS = 5.0
SLACK = 16 << 20  # bytes by which the peak of one and the same command differs from time to time
_PRECIOUS = "many lines of it"
_IMAGES = ("--dataset", f"images:{PHOTOS}", "-o", "dataset.validation=0.2")
CELL = Cell("tesla", "pdd", dataset=_IMAGES)
_SUITE = """students = 1
dataset = "toy"
options = {"network.width"=4, "protocol.steps"=8}
[[matrix]]
matcher = ["random", {name="dm", options={steps=5, batch_real=12}}]
scheduler = "single"
ipc = [1, 2]
"""
# What is spoilt, where it lies, and which commands read it. RUN and HALF are the runs' names, FILE is what is spoilt.
_ALONE = "--students 2 --no-random --no-ceiling"
_RUN = (
    "compare",
    "list runs",
    "report RUN",
    f"run --resume RUN {_ALONE}",
    "eval RUN --students 2",
    "submit RUN board --replace",
)
_AFRESH = "afresh"  # the run, in another folder
_SET = "eval FILE --students 1 -o protocol.steps=4 -o protocol.lrs=0.03"
_FOREIGN = (
    f"{_SET} --dataset toy",
    f"{_SET} --dataset toy",
    _SET,
    "import FILE --dataset toy --to imported.safetensors",
    "export FILE --format npz --to npz",
)
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "records of a run": ("runs/RUN/*.json", _RUN),
    "notes of a stage": ("runs/RUN/stage-*/result.json", _RUN),
    "evaluations": ("runs/RUN/evaluations/*.json", _RUN),
    "metrics and locks": (
        "half/HALF/[.m][le]*",
        (f"run --resume HALF {_ALONE} --out half", "compare --out half", "report HALF --out half"),
    ),
    "checkpoints": ("half/HALF/stage-*/*", (f"run --resume HALF {_ALONE} --out half", "compare --out half")),
    "distilled files": (
        "runs/RUN/distilled.safetensors",
        ("eval RUN", _SET, "report RUN", "export RUN --format npz --to npz"),
    ),
    "entries of a board": ("leaderboards/board/entries/*", ("leaderboard build", "leaderboard html --to site")),
    "boards": (
        "leaderboards/board/board.toml",
        ("leaderboard build", "submit RUN board --replace", "leaderboard html --to site"),
    ),
    "suites": ("suite.toml", ("suite run suite.toml --dry-run", "submit suite.toml board")),
    "records of suites": (
        "grid/suites/**/*",
        ("suite run one.toml --out grid", "suite run one.toml --out grid --dry-run"),
    ),
    "experts and lessons": ("home/[el]*/*/*", (_AFRESH,)),
    "stored datasets": ("home/datasets/*/*", (_AFRESH, f"prepare images:{PHOTOS}")),
    "archives of images": (PHOTOS, (f"prepare images:{PHOTOS}", _AFRESH)),
}


@dataclass
class Hostile:
    """Trials of hostile files in a folder."""

    folder: Path
    seed: int
    foreign: list[tuple[str, Path]]  # sets of other tools that are not what they seem, by name
    part = "hostile"
    idle: dict[str, int] = field(default_factory=dict)  # the peak of each command on sound files

    @cached_property
    def sound(self) -> Path:
        """A folder in which all is as it should be: a finished run, one in progress, a board with an entry, a suite."""
        return _sound(self.folder / "sound")

    def trial(self, number: int) -> Trial:
        """Spoil one file, and give it to one command; every second is a set of somebody else instead."""
        draw = random.Random(f"{self.seed} {self.part} {number}")
        folder = copied(self.sound, self.folder / "trial")
        runs = {"RUN": name(folder / "runs"), "HALF": name(folder / "half")}
        if number % 2:
            what, (way, path) = "sets of others", self.foreign[number // 2 % len(self.foreign)]
            line = draw.choice(_FOREIGN)
        else:
            what = draw.choice(sorted(TARGETS))
            pattern, lines = TARGETS[what]
            for role, run in runs.items():
                pattern = pattern.replace(role, run)
            path = draw.choice(sorted(p for p in folder.glob(pattern) if p.is_file()))
            line, way = draw.choice(lines), spoil(path, draw)
        size = size_of(path)
        answer = given(line, folder, runs, path)
        wrong = self._wrong(line, runs, answer, size, folder)
        note = f"{way}: {path.name}; {line}: {wrong}" if wrong else ""
        refused = answer.code in (1, 2, 3) and "error:" in answer.err.lower()
        return Trial(self.part, what, "wrong" if wrong else "refused" if refused else "harmless", 1, note)

    def _wrong(self, line: str, runs: dict[str, str], answer: Answer, size: int, folder: Path) -> str:
        if answer.broken:
            return answer.broken
        beyond = answer.peak - self._idle(line, runs)
        if beyond > 2 * size + SLACK:
            return f"{beyond >> 20} MiB beyond an idle process for a file of {size} bytes"
        if (folder / VICTIM).read_text() != _PRECIOUS:
            return "a file of the user was changed through a link"
        return ""

    def _idle(self, line: str, runs: dict[str, str]) -> int:
        """The peak of a command on sound files; of one that may make things again, that of making all of them."""
        if line not in self.idle:
            sound = copied(self.sound, self.folder / "idle")
            file = next(sound.glob(f"runs/{runs['RUN']}/distilled.safetensors"))
            self.idle[line] = given(line, sound, runs, file).peak
        works = line != _AFRESH and line.startswith(("run", "eval"))
        return max(self.idle[line], self._idle(_AFRESH, runs) if works else 0)


def foreign(seed: int, folder: Path) -> list[tuple[str, Path]]:
    """Sets that are not what they seem, in an order that the seed draws, so that a few meet many kinds."""
    made = list(hostile_files(seed, folder))
    random.Random(seed).shuffle(made)
    return made


def size_of(path: Path) -> int:
    """The bytes of a file, or of all in a folder; pipes and devices have none."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def given(line: str, folder: Path, runs: dict[str, str], file: Path) -> Answer:
    """Carry out a command of ``TARGETS``."""
    words = [runs.get(word, str(file) if word == "FILE" else word) for word in line.split()]
    return Command([*CELL.words, "--out", "afresh"] if words == [_AFRESH] else words, folder, limit=SECONDS).run()


def name(runs: Path) -> str:
    """The only run in a folder."""
    return next(path.parent.name for path in sorted(runs.glob("*/spec.json")))


def _sound(folder: Path) -> Path:
    folder.mkdir(parents=True)
    photos(folder / PHOTOS)
    (folder / VICTIM).write_text(_PRECIOUS)
    (folder / "suite.toml").write_text(_SUITE)
    (folder / "one.toml").write_text(_SUITE.replace("[1, 2]", "1").replace('"random", ', ""))
    half = [*CELL.words, "--out", "half"]
    for operation in (*range(200, 600, 20), *range(60, 200, 20)):  # where the second stage mostly begins comes first
        shutil.rmtree(folder / "half", ignore_errors=True)
        Command(half, folder).run(Moment(operation))
        if list(folder.glob("half/*/stage-1/checkpoint.safetensors")):
            break
    commands = [
        CELL.words,
        ["leaderboard", "new", "board", "RUN", "--title", "a board", "--students", "2", "--seeds", "1"],
    ]
    commands += [["submit", "RUN", "board", "--author", "somebody"], ["leaderboard", "build"]]
    commands += [["suite", "run", "one.toml", "--out", "grid"]]
    for words in commands:
        run = name(folder / "runs") if "RUN" in words else ""
        answer = Command([run if word == "RUN" else word for word in words], folder).run()
        if answer.code != 0:
            raise RuntimeError(f"ddbench {' '.join(words)} fails on sound files: {answer.said}")
    return folder
