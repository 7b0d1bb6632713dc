"""What all pages of ``questions/`` are made with: their records, differences over seeds, and tables."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ddbench.results.differences import SEEDS_FOR_BEST
from ddbench.results.statistics import Test, holm, interval, paired
from ddbench.run.defaults import ONE_STAGE
from ddbench.run.row import Row

RESULTS = Path(__file__).with_name("results")
MADE = "<!-- Written by `python docs/questions.py`; edit what it is made of instead. -->"
NOTHING = "Nothing is on record yet."


@dataclass(frozen=True)
class Compared:
    """Differences seed by seed: their mean, interval and test."""

    values: Sequence[float]

    @property
    def test(self) -> Test:
        found = paired(self.values, [0.0] * len(self.values))
        return found if len(self.values) >= SEEDS_FOR_BEST else replace(found, p=None)

    @property
    def text(self) -> str:
        return points(self.values)


def points(values: Sequence[float]) -> str:
    """``+3.1 [+2.0, +4.2]`` percent points."""
    bounds = interval(values)
    ends = "" if bounds is None else f" [{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"
    return f"{100 * fmean(values):+.1f}{ends}"


def corrected(found: Sequence[Compared]) -> list[float | None]:
    """Holm's p of differences that stand in one table; None where there is none."""
    known = [p for c in found if (p := c.test.p) is not None]
    each = iter(holm(known))
    return [None if c.test.p is None else next(each) for c in found]


def shown(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; columns of numbers lean to the right."""
    aligned = ["---:" if re.match(r"[+-]?\d|<|$", cell) else "---" for cell in rows[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, aligned, *rows))


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def records(question: str) -> list[dict[str, Any]]:
    path = RESULTS / f"questions-{question}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes())) if path.exists() else []


def row_of(held: Mapping[str, Any]) -> Row:
    names = {f.name for f in fields(Row)}
    return Row(**{name: value for name, value in held.items() if name in names})


def places(held: Sequence[dict[str, Any]], *names: str) -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
    """The rows of a record that may be compared, by the columns named, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in held:
        found.setdefault(json.dumps([row[name] for name in names]), []).append(row)
    yield from sorted(((json.loads(key), rows) for key, rows in found.items()), key=lambda pair: str(pair[0][:1]))


def setting(rows: Sequence[dict[str, Any]], seeds: Sequence[Any]) -> str:
    """What all rows of a section share."""
    one = rows[0]
    return (
        f"{one['train_images']} training images, {one['network']}, N = {one['steps']}, {one['n']} students per set, "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}; {devices(rows)}."
    )


def method_of(row: Row) -> str:
    """``tesla``, or ``tesla under pdd``."""
    return f"{row.matcher}" + ("" if row.scheduler in (None, ONE_STAGE) else f" under {row.scheduler}")


def devices(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({row["device"] for row in rows}))


def few(seeds: int) -> str:
    there = f"{seeds} {'is' if seeds == 1 else 'are'} on record"
    return f"**No finding is stated**: it takes {SEEDS_FOR_BEST} seeds, and {there}."
