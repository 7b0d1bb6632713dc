"""The tiny runs that faults are injected into: every matcher under every scheduler, and what each gives undisturbed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ddbench.plugins import registry
from ddbench.testing.faults.commands import Answer, Command

# What makes any matcher quick, as far as it has such an option; and what single matchers need besides.
_QUICK = {
    "steps": 5,
    "syn_steps": 3,
    "experts": 2,
    "max_start": 2,
    "span": 1,
    "teacher_epochs": 2,
    "teacher_batch": 16,
    "epochs": 2,
    "networks": 2,
    "models": 2,
    "batch_real": 12,
    "batch_net": 12,
    "candidates": 6,
    "frequencies": 16,
}
_BESIDES = {
    "rat-bptt": {"total": 6, "window": 4},
    "dc": {"outer": 2, "inner": 2},
    "dsa": {"outer": 2, "inner": 2},
    "idc": {"inner": 2, "n_data": 12},
}
_RULES = {
    "network.width": 4,
    "experts.batch": 16,
    "experts.epoch_steps": "none",
    "protocol.steps": 8,
    "protocol.lrs": 0.03,
    "protocol.judges": 1,
    "protocol.ceiling_epochs": 1,
}
IPC = 2


@dataclass(frozen=True)
class Cell:
    """One matcher under one scheduler on tiny data."""

    matcher: str
    scheduler: str
    dataset: tuple[str, ...] = ("--dataset", "toy", "-o", "dataset.per_class=16", "-o", "dataset.test_per_class=8")
    beside: bool = False  # with random images and the whole training set
    more: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        more = [f"{name}={value}" for name, value in self.more] + ["with references"] * self.beside
        return f"{self.matcher}/{self.scheduler}" + (f" ({', '.join(more)})" if more else "")

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options of the run."""
        has = {f.name for f in dataclasses.fields(registry().get("matcher", self.matcher).cls)}
        quick = {name: value for name, value in _QUICK.items() if name in has} | _BESIDES.get(self.matcher, {})
        made = _RULES | {f"matcher.{name}": value for name, value in quick.items()}
        if any(f.name == "stages" for f in dataclasses.fields(registry().get("scheduler", self.scheduler).cls)):
            made["scheduler.stages"] = 2
        return made | dict(self.more)

    @property
    def words(self) -> list[str]:
        """The arguments of ``ddbench``; the run goes to the folder ``runs`` where it is started."""
        base = ["run", *self.dataset, "--matcher", self.matcher, "--scheduler", self.scheduler, "--ipc", str(IPC)]
        quick = ["--students", "2", "--checkpoint-seconds", "0", "--out", "runs", "--json"]
        apart = [] if self.beside else ["--no-random", "--no-ceiling"]
        return base + [w for n, v in self.options.items() for w in ("-o", f"{n}={v}")] + quick + apart


# Options that bring files or states of their own: teachers of coresets, packed images, learned labels, all at once.
VARIANTS = (
    Cell("herding", "pdd", more=(("matcher.labels", "teacher"),)),
    Cell("dm", "pdd", more=(("decoder.factor", 2),)),
    Cell("tesla", "pdd", more=(("matcher.labels", "learned"), ("matcher.curvature", "exact"))),
    Cell("tesla", "pdd", beside=True),
)


def cells() -> list[Cell]:
    """All matchers under all schedulers, and some variants."""
    known = registry()
    found = [Cell(matcher, scheduler) for matcher in known.names("matcher") for scheduler in known.names("scheduler")]
    return [*found, *VARIANTS]


@dataclass(frozen=True)
class Reference:
    """A cell that ran undisturbed: its folder, what came out, and how long and how many operations it took."""

    folder: Path
    outcome: dict[str, Any]
    answer: Answer
    operations: int

    @staticmethod
    def of(cell: Cell, folder: Path) -> Reference:
        """Carry the cell out in a new folder. Raises RuntimeError where even that fails."""
        report = folder.with_suffix(".json")
        answer = Command(cell.words, folder).run(report=report)
        if answer.code != 0:
            raise RuntimeError(f"{cell} fails undisturbed: {answer.said}")
        return Reference(folder, outcome(folder), answer, json.loads(report.read_text())["operations"])


class References(dict[int, Reference]):
    """The references of :func:`cells` by their place, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, place: int) -> Reference:
        self[place] = Reference.of(cells()[place], self.folder / f"reference-{place}")
        return self[place]


def outcome(folder: Path) -> dict[str, Any]:
    """What no fault may change: the sha256 of each set, its metrics and the grades of its students, by run."""
    found = {}
    for path in sorted(folder.glob("runs/*/distilled.safetensors")):
        run = path.parent
        grades = {e.name: json.loads(e.read_text())["students"] for e in sorted(run.glob("evaluations/*.json"))}
        found[run.name] = [_sha256(path), _sha256(run / "metrics.jsonl"), grades]
    return found


def rows(answer: Answer) -> Any:
    """What a command's table says of accuracies: all columns but costs."""
    try:
        shown = json.loads(answer.out)
    except ValueError:
        return None
    costs = ("seconds", "peak", "device", "finished")
    return [{name: v for name, v in row.items() if not any(c in name for c in costs)} for row in shown]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def copied(source: Path, target: Path) -> Path:
    """A copy of a small tree, in the place of what was there; links would share what is written in place."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target
