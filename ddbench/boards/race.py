"""Races: boards that rank by seconds, from raw data to graded students, among entries that reach an accuracy.

What a run costs in all, no plugin and no stage can tell: whoever starts its process with empty caches measures it, and
writes it into the run's folder (:data:`WALL`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

from ddbench.base.cache import canonical
from ddbench.base.options import options
from ddbench.base.schema import Count, Digest, Fraction, Held, Number, Text
from ddbench.errors import UsageError
from ddbench.grade.protocol import Protocol
from ddbench.results.tables import Table, render
from ddbench.run.row import Cells

if TYPE_CHECKING:
    from ddbench.boards.entry import EntryRun
    from ddbench.boards.ranking import Place, Standings

WALL = "wall.json"
COMMAND = "python -m benchmarks.speedrun"
SHOWN = {
    "rank": "#",
    "title": "method",
    "wall": "seconds",
    "accuracy_mean": "accuracy %",
    "n": "seeds",
    "expert_seconds": "of these experts s",
    "distil_seconds": "distil s",
    "selection_seconds": "selection s",
    "hardware": "hardware",
    "author": "by",
    "verified": "verified",
    "date": "date",
    "entry": "entry",
}
OVERVIEW = {
    "target": "accuracy",
    "entries": "entries",
    "title": "first place",
    "wall": "seconds",
    "accuracy_mean": "accuracy %",
    "hardware": "hardware",
}
HISTORY = {
    "date": "date",
    "title": "method",
    "wall": "seconds",
    "accuracy_mean": "accuracy %",
    "n": "seeds",
    "hardware": "hardware",
    "entry": "record",
    "note": "note",
}


class Clock(Held):
    """``wall.json``: seconds from the start of a run's process to its end, nothing cached."""

    seconds: Number


class Earlier(Held):
    """A run from before the race, or one that is no entry: ``where`` is its record, from the root of the repository."""

    model_config = ConfigDict(extra="forbid")
    date: Text
    method: Text
    seconds: Number
    accuracy: Fraction
    std: Fraction
    hardware: Text
    where: Text
    note: Text = ""
    seeds: Count = 1


class Race(Held):
    """``[race]`` of a ``board.toml``.

    ``free`` are options, ``protocol.NAME`` or ``dataset.NAME``, that entries choose for themselves; ``data`` are the
    digests of the dataset under such options, besides the board's own.
    """

    model_config = ConfigDict(extra="forbid")
    targets: Annotated[list[Fraction], Field(min_length=1, max_length=10)]
    counts: list[Text] = Field(default=[])
    does_not_count: list[Text] = Field(default=[])
    free: list[Text] = Field(default=[])
    data: list[Digest] = Field(default=[])
    earlier: list[Earlier] = Field(default=[])

    def freed(self, group: str) -> frozenset[str]:
        """The options of a group that entries choose."""
        return frozenset(name.partition(".")[2] for name in self.free if name.partition(".")[0] == group)

    def allows(self, rules: Protocol, theirs: Mapping[str, Any]) -> bool:
        """Whether a recorded protocol is ``rules`` but for what is free."""
        left = {"name", "version", *self.freed("protocol")}
        ours = {name: value for name, value in options(rules).items() if name not in left}
        return canonical(ours) == canonical({name: theirs.get(name) for name in ours})


def check_clock(run: EntryRun) -> None:
    """Refuse a finished run without its seconds in all, or with fewer than its parts took: then caches were warm."""
    if run.result.status != "ok":
        return
    if run.wall_seconds is None:
        raise UsageError(f"{run.run} has no {WALL}, which says its seconds in all; make it by `{COMMAND}`")
    costs = (run.result.expert_seconds, run.result.distil_seconds, run.result.selection_seconds)
    parts = sum(cost or 0.0 for cost in costs)
    if not run.wall_seconds >= parts:
        raise UsageError(
            f"{run.run} took {run.wall_seconds:.0f} s in all, but its experts, iterations and selection {parts:.0f} s: "
            f"something was cached; make it with empty caches, by `{COMMAND}`"
        )


def tables(found: Standings) -> list[str]:
    """The parts of a race's page: its rules, a table for each accuracy, and how it came there."""
    race = found.board.race
    assert race is not None
    parts = [_listed("What counts", race.counts), _listed("What does not count", race.does_not_count)]
    for title, rows in ranked(found):
        parts += [f"## {title}", render(Table(rows, SHOWN), "md").strip() if rows else "No entry yet."]
    past = [_cells(place, None) for place in found.flat() if place.mean is not None]
    past += [_earlier(run) for run in race.earlier]
    if past:
        past.sort(key=lambda row: (str(row["date"]), str(row["title"])))
        parts += ["## History", render(Table(past, HISTORY), "md").strip()]
    return [part for part in parts if part]


def ranked(found: Standings) -> list[tuple[str, list[Cells]]]:
    """For each accuracy, what its table is called, and its rows."""
    targets = found.board.race.targets if found.board.race else []
    return [(f"At least {100 * t:g} %", [_cells(place, rank) for place, rank in _ranked(found, t)]) for t in targets]


def leaders(found: Standings) -> list[Cells]:
    """Who is first at each accuracy of a race, for overviews."""
    rows = []
    for title, places in ranked(found):
        first = places[0] if places else {"title": "no entry yet", "wall": ""}
        in_all = f", {first['wall']} s" if first["wall"] else ""
        about = {"target": title.lower(), "first": f"{title.lower()}: {first['title']}{in_all}"}
        rows.append(first | about | {"entries": len(places), "ipc": ", ".join(map(str, found.board.ipc))})
    return rows


def seconds(place: Place) -> list[float]:
    """The seconds in all of each seed that finished."""
    return [run.wall_seconds for run in place.entry.runs if run.wall_seconds is not None]


def _ranked(found: Standings, target: float) -> list[tuple[Place, int]]:
    """Places that reach an accuracy with every seed finished, by seconds, with ranks among those of their hardware."""
    due = [
        place
        for place in found.flat()
        if place.mean is not None and place.mean >= target and len(seconds(place)) == len(place.entry.runs)
    ]
    due.sort(key=lambda place: (place.hardware, mean(seconds(place)), place.entry.name))
    before: dict[str, list[float]] = {}
    ranked = []
    for place in due:
        faster = before.setdefault(place.hardware, [])
        faster.append(mean(seconds(place)))
        ranked.append((place, 1 + faster.index(faster[-1])))
    return ranked


def _cells(place: Place, rank: int | None) -> Cells:
    took = seconds(place)
    spread = f" ± {stdev(took):.0f}" if len(took) > 1 else ""
    return place.cells | {"rank": rank, "wall": f"{mean(took):.0f}{spread}" if took else ""}


def _earlier(run: Earlier) -> Cells:
    return {
        "date": run.date,
        "title": run.method,
        "wall": f"{run.seconds:.0f}",
        "accuracy_mean": run.accuracy,
        "accuracy_std": run.std,
        "n": run.seeds,
        "hardware": run.hardware,
        "entry": run.where,
        "note": run.note,
    }


def _listed(title: str, rules: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {rule}" for rule in rules) if rules else ""
