"""Runs that differ in nothing but their seed become one line.

A replicate is the mean over the students of one run: students of one set are not independent of each other, runs with
other seeds are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from ddbench.base.cache import canonical
from ddbench.results.statistics import interval
from ddbench.results.where import Row, known, rank, value

_GROUP = ("dataset", "dataset_digest", "ipc", "network", "protocol_digest")
_KEY = (*_GROUP, "matcher", "scheduler", "setting", "distil_digest")
_ORIGIN = ("setting", "distil_digest", "distil_network", "distil_protocol", "distil_rules", "architecture",
           "versions", "protocol_digest", "dataset_digest", "options")  # fmt: skip
_ORDER = ("dataset", "ipc", "network", "protocol", "matcher", "scheduler", "label_type", "variant", "seed")
_SHARED = ("dataset", "dataset_digest", "ipc", "network", "protocol", "protocol_digest", "matcher", "scheduler",
           "label_type", "options", "setting", "distil_digest", "distil_network", "distil_protocol", "versions",
           "seed", "run", "device", "error")  # fmt: skip
_COSTS = ("steps", "distil_seconds", "expert_seconds", "selection_seconds", "image_bytes", "label_bytes", "total_bytes")


@dataclass(eq=False)
class Line:
    """Rows that are averaged, and the mean over students of each seed."""

    rows: list[Row]
    scores: dict[Any, float]
    row: Row
    by: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def group(self) -> str:
        """What it may be compared with: lines over exactly the same data, budgets, networks and protocols."""
        return canonical(sorted({canonical([row.get(name) for name in _GROUP]) for row in self.rows}))

    @property
    def testable(self) -> bool:
        return bool(self.scores) and not self.notes

    @property
    def name(self) -> str:
        """Short and unique in most groups: ``tesla pdd (teacher labels)``."""
        row = self.row
        rule = f" {row['scheduler']}" if row["scheduler"] not in (None, "single") else ""
        labels = f" ({row['label_type']} labels)" if row["label_type"] else ""
        return f"{row['matcher'] or 'all'}{rule}{labels}{row['variant']}"


def per_run(rows: Sequence[Row]) -> list[Row]:
    """Every evaluation as a row of its own, sorted so that what is comparable stands together."""
    return _sorted([row | _total(row) | {"variant": words} for row, words in zip(rows, variants(rows), strict=True)])


def aggregate(rows: Sequence[Row], by: Sequence[str] | None = None) -> list[Line]:
    """Rows as lines. ``by`` are columns; by default everything that makes a run but its seed and its machine."""
    rows = _named(rows)
    columns = None if by is None else [known(name, rows) for name in by]
    parts: dict[str, list[Row]] = {}
    for row in rows:
        cells = _cell(row) if columns is None else [value(row, name) for name in columns]
        parts.setdefault(canonical(cells), []).append(row)
    found = [_line(part) for part in parts.values()]
    words = variants([line.row for line in found])
    for line, apart in zip(found, words, strict=True):
        line.row["variant"] = apart
        line.by = columns or ()
        line.row |= {name: value(line.rows[0], name) for name in line.by if name not in line.row}
    places = {id(line.row): line for line in found}
    return [places[id(row)] for row in _sorted([line.row for line in found])]


def _named(rows: Sequence[Row]) -> list[Row]:
    """Rows in which a run that did not finish has the names that evaluations give to its network and its protocol."""
    full = [dict.fromkeys(_ORIGIN) | row for row in rows]
    own = [row for row in full if _finished(row)]
    networks = {r["architecture"]: r["network"] for r in own if r["distil_network"] == r["network"]}
    rules = {r["distil_rules"]: r["protocol_digest"] for r in own if r["distil_protocol"] == r["protocol"]}
    return [
        row
        if row["n"]
        else row
        | {
            "network": networks.get(row["architecture"], row["network"]),
            "protocol_digest": rules.get(row["distil_rules"], row["protocol_digest"]),
        }
        for row in full
    ]


def _finished(row: Row) -> bool:
    return row["status"] == "ok" and row["accuracy_mean"] is not None


def _cell(row: Row) -> list[Any]:
    """The default key: what makes two rows replicates of each other."""
    what = [row["options"], row["label_type"], row["protocol"]] if row["setting"] is None else []
    return [*(row[name] for name in _KEY), row["selection"] == "test", *what]


def _line(rows: list[Row]) -> Line:
    counted, notes = one_per_run(rows), list[str]()
    done = [row for row in counted if _finished(row)]
    cells: dict[str, dict[Any, list[float]]] = {}
    for row in done:
        cells.setdefault(canonical(_cell(row)), {}).setdefault(row["seed"], []).append(row["accuracy_mean"])
    per_seed: dict[Any, list[float]] = {}
    for seeds in cells.values():
        for seed, scores in seeds.items():
            per_seed.setdefault(seed, []).append(fmean(scores))
    scores = {seed: fmean(per_seed[seed]) for seed in sorted(per_seed, key=rank)}
    if any(len(found) < len(cells) for found in per_seed.values()):
        notes.append(f"no interval and no test: its {len(cells)} settings do not all have the same seeds")
    elif len({row.get("protocol_digest") for row in done}) > 1:
        notes.append("no interval and no test: it mixes protocols")
    line = Line(rows, scores, {}, notes=notes)
    line.row = _numbers(line, counted, done, len(cells))
    return line


def one_per_run(rows: list[Row]) -> list[Row]:
    """A run that was evaluated twice under the same rules is still one replicate.

    Its evaluation counts that used the run's own seed and most students: a rule that no result can influence.
    """
    best: dict[str, Row] = {}
    for row in rows:
        place = canonical([row["run"], _cell(row)]) if row.get("run") else str(id(row))
        best[place] = max(best.get(place, row), row, key=_weight)
    return list(best.values())


def _weight(row: Row) -> tuple[bool, bool, int, float]:
    seed = row.get("evaluation_seed")
    return (_finished(row), seed in (None, row["seed"]), row["n"], -float(seed or 0))


def _numbers(line: Line, counted: list[Row], done: list[Row], settings: int) -> Row:
    """The columns of a line, all in fractions, seconds and bytes."""
    means = list(line.scores.values())
    bounds = interval(means) if line.testable else None
    row = {name: _common([r.get(name) for r in line.rows]) for name in _SHARED}
    row["label_type"] = _common([r["label_type"] for r in done or line.rows])
    metrics = {n for r in done for n in r if n.endswith("_mean") and n != "accuracy_mean"}
    return row | {
        "variant": "",
        "selection": "test" if any(r.get("selection") == "test" for r in line.rows) else _common(
            [r["selection"] for r in line.rows if r.get("selection")]
        ),
        "status": _status(counted),
        "accuracy_mean": fmean(means) if means else None,
        "accuracy_std": stdev(means) if len(means) > 1 and line.testable else None,
        "n": len(means),
        "students": _common([r["n"] for r in done]),
        "seeds": list(line.scores),
        "accuracies": means,
        "ci_low": bounds[0] if bounds else None,
        "ci_high": bounds[1] if bounds else None,
        **dict.fromkeys(("baseline", "difference", "test", "p", "p_holm")),
        "best": False,
        "note": "; ".join(line.notes) or None,
        "settings": settings,
        **{name: _average([(r | _total(r)).get(name) for r in done]) for name in _COSTS},
        "peak_bytes": max((r["peak_bytes"] for r in done if r.get("peak_bytes") is not None), default=None),
        **{name: _average([r.get(name) for r in done]) for name in sorted(metrics)},
        "runs": sorted({r["run"] for r in line.rows if r.get("run")}),
    }  # fmt: skip


def _status(counted: list[Row]) -> str:
    found = Counter("incomplete" if r["status"] == "ok" and not _finished(r) else str(r["status"]) for r in counted)
    if len(found) == 1 and ("ok" in found or found.total() == 1):
        return next(iter(found))
    return ", ".join(f"{found[name]} {name}" for name in sorted(found, key=lambda n: (n != "ok", n)))


def _common(cells: list[Any]) -> Any:
    """The cell that all have, else None."""
    return cells[0] if cells and all(cell == cells[0] for cell in cells) else None


def _average(cells: list[Any]) -> Any:
    """The mean of what is known; whole numbers that agree stay whole."""
    have = [cell for cell in cells if cell is not None]
    if not have:
        return None
    return have[0] if all(cell == have[0] for cell in have) else fmean(have)


def _total(row: Row) -> Row:
    parts = (row.get("image_bytes"), row.get("label_bytes"))
    return {"total_bytes": None if parts[0] is None else parts[0] + (parts[1] or 0)}


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: [rank(row.get(name)) for name in _ORDER])


def variants(rows: Sequence[Row]) -> list[str]:
    """For each row, what sets it apart from others of its method: `` (curvature=exact)``.

    An option counts that differs among runs of one method, scheduler and ipc. It is then told of all runs of the method
    on these data, so that a method has one name at every ipc. Options that have a column of their own are left out.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        alike = seen.setdefault(_kin(row, "scheduler", "ipc"), {})
        for name, cell in _details(row).items():
            alike.setdefault(name, set()).add(canonical(cell))
    vary: dict[str, dict[str, None]] = {}  # in the order of the options
    for row in rows:
        alike = seen[_kin(row, "scheduler", "ipc")]
        vary.setdefault(_kin(row), {}).update({name: None for name, cells in alike.items() if len(cells) > 1})
    words = []
    for row in rows:
        own = _details(row)
        apart = [f"{name.removeprefix('matcher.')}={own[name]}" for name in vary[_kin(row)] if name in own]
        words.append(f" ({', '.join(apart)})" if apart else "")
    return words


def _kin(row: Row, *more: str) -> str:
    return canonical([row.get(name) for name in ("dataset", "matcher", *more)])


def _details(row: Row) -> dict[str, Any]:
    names = {"distilled on": "distil_network", "selected by": "distil_protocol", "version": "versions"}
    found = {n: v for n, v in (row.get("options") or {}).items() if n != "matcher.labels"}
    return found | {title: row[name] for title, name in names.items() if row.get(name) is not None}
