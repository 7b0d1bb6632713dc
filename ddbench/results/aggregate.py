"""Runs that differ in nothing but their seed become one line.

A replicate is the mean over the students of one run: students of one set are not independent of each other, runs with
other seeds are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from ddbench.base.cache import canonical
from ddbench.results.statistics import interval
from ddbench.results.tables import MARK
from ddbench.results.where import known, rank, value
from ddbench.run.below import Gap, compare, verdict
from ddbench.run.defaults import BASELINE
from ddbench.run.record import RandomRecord
from ddbench.run.row import DAMAGED, Cells, Row, method_name

# What a line says of its rows where they agree.
_SHARED = ("dataset", "dataset_digest", "ipc", "network", "protocol", "protocol_digest", "matcher", "scheduler",
           "label_type", "options", "setting", "distil_digest", "distil_network", "distil_protocol", "versions",
           "seed", "run", "device", "error")  # fmt: skip
_CONTENT = ("data_source", "classes", "train_images")  # by which published numbers are found
_COSTS = ("steps", "distil_seconds", "expert_seconds", "selection_seconds", "image_bytes", "label_bytes")
_NUMBERS = ("selection", "status", "accuracy_mean", "accuracy_std", "n")
VERSION = "version"  # among what tells lines of a method apart


@dataclass(frozen=True)
class Beside:
    """A line beside one of random images, by the name of that; ``reason`` is why there is no interval."""

    name: str
    gap: Gap
    reason: str = ""

    @property
    def cells(self) -> Cells:
        """For programs, as fractions."""
        found = self.gap
        ends = {"difference": found.difference, "low": found.low, "high": found.high}
        return {"baseline": self.name, **ends, "above": found.above, "note": self.reason or None}


@dataclass(eq=False)
class Line:
    """Rows that are averaged, and the mean over students of each seed.

    ``row`` holds what the rows share and the means over seeds. ``flaw`` is why the line has no interval and no test.
    What stands below it is filled in when lines are compared.
    """

    rows: list[Row]
    row: Row
    scores: dict[int | None, float]
    students: int | None = None  # of each run
    settings: int = 1
    total_bytes: float | None = None
    bounds: tuple[float, float] | None = None  # of the 95 % confidence interval
    flaw: str = ""
    by: Cells = field(default_factory=dict)  # the columns that it was made for
    variant: str = ""  # the options that set it apart
    baseline: str | None = None
    difference: float | None = None
    test: str | None = None
    p: float | None = None
    p_holm: float | None = None
    best: bool = False
    remark: str = ""  # on the test
    random: list[Beside] = field(default_factory=list)  # each kind of random images that it is shown beside

    @property
    def group(self) -> str:
        """What it may be compared with: lines over exactly the same data, budgets, networks and protocols."""
        return canonical(sorted({canonical(row.place) for row in self.rows}))

    @property
    def testable(self) -> bool:
        return bool(self.scores) and not self.flaw

    @property
    def above_random(self) -> bool | None:
        """Whether it is above all random images that it is shown beside; None where that is not known."""
        return verdict([beside.gap.above for beside in self.random])

    def _notes(self) -> list[str]:
        """What people should know: the flaw, the remark on the test, and how it compares with random images."""
        named = len(self.random) > 1
        kinds = [f"{MARK} to {b.name}" for b in self.random if named and b.gap.above is False]
        unknown = dict.fromkeys(b.reason for b in self.random if b.gap.above is None and b.reason != self.flaw)
        return [
            self.flaw,
            self.remark,
            self._mixed(),
            *kinds,
            *(f"random images: not known ({reason})" for reason in unknown),
        ]

    def _mixed(self) -> str:
        """Which code changed between its runs: a version that its author forgot to raise tells nobody."""
        held: dict[str, set[str]] = {}
        for row in self.rows:
            for name, sha256 in (row.sources or {}).items():
                held.setdefault(name, set()).add(sha256)
        names = ", ".join(sorted(name for name, found in held.items() if len(found) > 1))
        return (
            f"its runs were made by different code of {names}; `ddbench run --fresh` makes them anew" if names else ""
        )

    @property
    def name(self) -> str:
        """Short and unique in most groups: ``tesla pdd (teacher labels)``."""
        row = self.row
        return f"{method_name(row.matcher or 'all', row.scheduler, row.label_type)}{self.variant}"

    @property
    def cells(self) -> Cells:
        """All columns by name, in the order in which files for programs have them."""
        row, (low, high) = self.row, self.bounds or (None, None)
        counted = one_per_run(self.rows)
        tested = ("baseline", "difference", "test", "p", "p_holm", "best")
        found = {
            **{name: getattr(row, name) for name in _SHARED},
            "variant": self.variant,
            **{name: getattr(row, name) for name in _NUMBERS},
            "students": self.students,
            "seeds": list(self.scores),
            "accuracies": list(self.scores.values()),
            "students_std": counted[0].accuracy_std if len(counted) == 1 else None,
            "ci_low": low,
            "ci_high": high,
            **{name: getattr(self, name) for name in tested},
            "above_random": self.above_random,
            "random": [beside.cells for beside in self.random] or None,
            "note": "; ".join(filter(None, self._notes())) or None,
            "settings": self.settings,
            **{name: getattr(row, name) for name in _COSTS},
            "total_bytes": self.total_bytes,
            "peak_bytes": row.peak_bytes,
            **row.metrics,
            "runs": sorted({r.run for r in self.rows if r.run}),
        }
        return found | {name: cell for name, cell in self.by.items() if name not in found}


def per_run(rows: Sequence[Row]) -> list[Cells]:
    """Every evaluation as a row of its own, sorted so that what is comparable stands together."""
    return [
        row.cells | {"total_bytes": row.total_bytes, "variant": words} | _damage(row) | _random(row, rows)
        for row, words in arranged(rows)
    ]


def _random(row: Row, rows: Sequence[Row]) -> Cells:
    """How an evaluation compares with random images of its place and seed, where there are such images."""
    beside = compare(row, rows)
    if not beside:
        return {}
    found = [Beside(_images(record), Gap(record.difference, record.low, record.high)).cells for record in beside]
    return {"above_random": verdict([record.above for record in beside]), "random": found}


def _images(record: RandomRecord) -> str:
    packed = f" (decoder.factor={record.decoder_factor})" if record.decoder_factor != 1 else ""
    return method_name(BASELINE, None, record.label_type) + packed


def _damage(row: Row) -> Cells:
    return {"note": row.error} if row.status == DAMAGED else {}


def arranged(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Rows in the order of tables, each with what sets it apart from others of its method."""
    return sorted(zip(rows, variants(rows), strict=True), key=lambda pair: _order(*pair))


def aggregate(rows: Sequence[Row], by: Sequence[str] | None = None) -> list[Line]:
    """Rows as lines. ``by`` are columns; by default everything that makes a run but its seed and its machine."""
    rows = _named(rows)
    columns = [known(name, [row.cells for row in rows]) for name in by or ()]
    parts: dict[str, list[Row]] = {}
    for row in rows:
        alike = _setting(row) if by is None else [value(row.cells, name) for name in columns]
        parts.setdefault(canonical(alike), []).append(row)
    found = [_line(part) for part in parts.values()]
    for line, apart in zip(found, variants([line.row for line in found]), strict=True):
        line.variant = apart
        line.by = {name: value(line.rows[0].cells, name) for name in columns}
    return sorted(found, key=lambda line: _order(line.row, line.variant))


def _named(rows: Sequence[Row]) -> list[Row]:
    """Rows in which a run that did not finish has the names that evaluations give to its network and its protocol."""
    own = [row for row in rows if row.finished]
    networks = {row.architecture: row.network for row in own if row.distil_network == row.network}
    rules = {row.distil_rules: row.protocol_digest for row in own if row.distil_protocol == row.protocol}
    return [
        row
        if row.n
        else replace(
            row,
            network=networks.get(row.architecture, row.network),
            protocol_digest=rules.get(row.distil_rules, row.protocol_digest),
        )
        for row in rows
    ]


def _setting(row: Row) -> list[Any]:
    """What makes two rows replicates of each other."""
    what = [row.options, row.label_type, row.protocol] if row.setting is None else []
    method = [row.matcher, row.scheduler, row.setting, row.distil_digest]
    return [*row.place, *method, row.selection == "test", *what]


def _line(rows: list[Row]) -> Line:
    counted = one_per_run(rows)
    done = [row for row in counted if row.finished]
    settings: dict[str, dict[int | None, list[float]]] = {}
    for row in done:
        settings.setdefault(canonical(_setting(row)), {}).setdefault(row.seed, []).append(row.accuracy_mean or 0.0)
    per_seed: dict[int | None, list[float]] = {}
    for seeds in settings.values():
        for seed, scores in seeds.items():
            per_seed.setdefault(seed, []).append(fmean(scores))
    scores = {seed: fmean(per_seed[seed]) for seed in sorted(per_seed, key=rank)}
    flaw = next((f"{row.run}: {row.error}" for row in rows if row.status == DAMAGED), "")
    if any(len(found) < len(settings) for found in per_seed.values()):
        flaw = f"no interval and no test: its {len(settings)} settings do not all have the same seeds"
    elif len({row.protocol_digest for row in done}) > 1:
        flaw = "no interval and no test: it mixes protocols"
    means = list(scores.values())
    return Line(
        rows,
        _averaged(rows, counted, done, means, spread=not flaw),
        scores,
        students=_common([row.n for row in done]),
        settings=len(settings),
        flaw=flaw,
        total_bytes=_average([row.total_bytes for row in done]),
        bounds=_bounds(means) if means and not flaw else None,
    )


def _bounds(means: list[float]) -> tuple[float, float] | None:
    """The interval of an accuracy, cut to what an accuracy can be."""
    found = interval(means)
    return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def one_per_run(rows: Sequence[Row]) -> list[Row]:
    """A run that was evaluated twice under the same rules is still one replicate: its heaviest evaluation counts."""
    best: dict[str, Row] = {}
    for row in rows:
        place = canonical([row.run, _setting(row)]) if row.run else str(id(row))
        best[place] = max(best.get(place, row), row, key=lambda graded: graded.weight)
    return list(best.values())


def _averaged(rows: list[Row], counted: list[Row], done: list[Row], means: list[float], *, spread: bool) -> Row:
    """What rows share, and their means: accuracies over seeds, costs and other metrics over those that finished."""
    selected = [row.selection for row in rows if row.selection]
    peaks = [row.peak_bytes for row in done if row.peak_bytes is not None]
    metrics = sorted({name for row in done for name in row.metrics})
    return Row(
        **{
            name: _common([getattr(row, name) for row in rows])
            for name in (*_SHARED, *_CONTENT)
            if name != "label_type"
        },
        label_type=_common([row.label_type for row in done or rows]),
        selection="test" if "test" in selected else _common(selected),
        status=_status(counted),
        accuracy_mean=fmean(means) if means else None,
        accuracy_std=stdev(means) if len(means) > 1 and spread else None,
        n=len(means),
        **{name: _average([getattr(row, name) for row in done]) for name in _COSTS},
        peak_bytes=max(peaks, default=None),
        metrics={name: _average([row.metrics.get(name) for row in done]) for name in metrics},
    )


def _status(counted: list[Row]) -> str:
    found = Counter("incomplete" if row.status == "ok" and not row.finished else row.status for row in counted)
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


def _order(row: Row, variant: str) -> list[tuple[bool, float, str]]:
    names = (row.dataset, row.ipc, row.network, row.protocol, row.matcher, row.scheduler, row.label_type)
    return [rank(cell) for cell in (*names, variant, row.seed)]


def variants(rows: Sequence[Row]) -> list[str]:
    """For each row, what sets it apart from others of its method: `` (curvature=exact)``.

    An option counts that differs among runs of one method, scheduler and ipc. It is then told of all runs of the method
    on these data, so that a method has one name at every ipc. Options that have a column of their own are left out, and
    the version where options tell enough.
    """
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row.dataset, row.matcher, row.scheduler, row.ipc), []).append(_details(row))
    vary: dict[tuple[Any, ...], dict[str, None]] = {}  # in the order of the options
    for (dataset, matcher, *_), details in alike.items():
        vary.setdefault((dataset, matcher), {}).update(dict.fromkeys(_apart(details)))
    words = []
    for row in rows:
        own = _details(row)
        told = [name for name in vary[row.dataset, row.matcher] if name in own]
        apart = ", ".join(f"{name.removeprefix('matcher.')}={own[name]}" for name in told)
        words.append(f" ({apart})" if apart else "")
    return words


def _apart(details: Sequence[dict[str, Any]]) -> list[str]:
    """The names whose cells differ among runs; a version only where the others leave some of them alike."""
    names = dict.fromkeys(name for own in details for name in own)
    found = [name for name in names if len({canonical(own[name]) for own in details if name in own}) > 1]
    options = [name for name in found if name != VERSION]
    told, whole = ({canonical([own.get(name) for name in some]) for own in details} for some in (options, found))
    return options if len(told) == len(whole) else found


def _details(row: Row) -> dict[str, Any]:
    origin = {"distilled on": row.distil_network, "selected by": row.distil_protocol, VERSION: row.versions}
    found = {name: cell for name, cell in (row.options or {}).items() if name != "matcher.labels"}
    return found | {title: cell for title, cell in origin.items() if cell is not None}
