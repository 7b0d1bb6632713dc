"""What ``ddbench compare`` shows: chosen runs as lines, tested, beside what is published; and when it fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.errors import UsageError
from ddbench.results import published, tables
from ddbench.results.aggregate import aggregate, arranged, per_run
from ddbench.results.differences import ITSELF, SEEDS_FOR_BEST, legend, test
from ddbench.results.where import Condition, order, parse, select, value
from ddbench.run.defaults import BASELINE
from ddbench.run.folder import readable, run_folders
from ddbench.run.folder import rows as rows_of
from ddbench.run.row import Cells, Row

if TYPE_CHECKING:
    import pandas as pd

WHOLE = ("ipc", "seed", "steps", "n", "peak_bytes", "image_bytes", "label_bytes")
OTHER = {"setting": "other setting"}


@dataclass(frozen=True)
class Ask:
    """What ``ddbench compare`` is asked for. ``reported`` is None, ``same`` or ``all``."""

    where: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    per_run: bool = False
    baseline: str | None = None
    allow_mixed: bool = False
    reported: str | None = None
    sort: str | None = None
    columns: tuple[str, ...] = ()


def frame(out: str | Path) -> pd.DataFrame:
    """The runs in a folder as a tidy data frame: a row per evaluation, or per run without one. For notebooks.

    Accuracies are fractions, costs seconds and bytes; whole numbers stay whole where some are missing.
    """
    return tabular([row.cells for row in rows_of(readable(run_folders(Path(out))))])


def tabular(rows: Sequence[Cells]) -> pd.DataFrame:
    """Rows as a data frame, in which whole numbers stay whole where some are missing."""
    import pandas as pd  # half a second, which tables do without

    found = pd.DataFrame(rows)
    return found.astype(dict.fromkeys([name for name in WHOLE if name in found], "Int64"))


def compared(rows: Sequence[Row], ask: Ask) -> list[tables.Table]:
    """The comparison; behind it, if asked for, what is published in other settings."""
    rows = select(rows, ask.where)
    mixed = mixed_protocols(rows)
    captions = [f"Protocols are mixed, and nothing is tested across them: {'; '.join(mixed)}."] if mixed else []
    if ask.per_run:
        own, found, shown = [row for row, _ in arranged(rows)], per_run(rows), dict(tables.PER_RUN)
        title = f"{len(found)} evaluations: test accuracy, mean ± std over n students of one run"
        captions += marked(found)
    else:
        lines = aggregate(rows, ask.group_by or None)
        if not ask.allow_mixed:
            refuse_mixed(row for line in lines for row in line.rows)
        captions = [*test(lines, ask.baseline, SEEDS_FOR_BEST), *captions]
        own, found = [line.row for line in lines], [line.cells for line in lines]
        captions = [*legend(lines), *captions]
        shown = tables.LINES | {name: name for line in lines[:1] for name in line.by if name not in tables.LINES}
        title = f"{len(rows)} evaluations in {len(lines)} lines: test accuracy over seeds"
    more: list[tables.Table] = []
    if ask.reported:
        beside, notes, more = _reported(own, every=ask.reported == "all")
        found = [cells | values for cells, values in zip(found, beside, strict=True)]
        captions, shown = [*captions, *notes], shown | {"reported": "reported %", "source": "source"}
    found = order(found, ask.sort) if ask.sort and found else found
    main = tables.Table(found, shown, captions, title, once=() if ask.per_run else tables.ONCE)
    return [tables.choose(main, ask.columns) if ask.columns and found else main, *more]


def _reported(rows: Sequence[Row], *, every: bool) -> tuple[list[Cells], list[str], list[tables.Table]]:
    """What is published beside each row, the sources, and a table of what is published elsewhere."""
    same = [published.beside(row) for row in rows]
    other = [published.elsewhere(row) if every else [] for row in rows]
    numbers = published.footnotes(value for values in (*same, *other) for value in values)
    beside: list[Cells] = [
        {
            "reported": [v.cells for v in values],
            "source": "; ".join(f"{v.short} [{numbers[v.source]}]" for v in values) or None,
            **({"reported_elsewhere": [v.cells | OTHER for v in apart]} if every else {}),
        }
        for values, apart in zip(same, other, strict=True)
    ]
    notes = [f"[{number}] {source}" for source, number in numbers.items()]
    caution = "Reported values follow their papers' own protocols: they are neither ranked nor tested with the others."
    apart = list(dict.fromkeys(value for values in other for value in values))
    body = [v.cells | OTHER | {"source": f"{v.short} [{numbers[v.source]}]"} for v in apart]
    more = [tables.Table(body, tables.REPORTED, title="published in other settings")] if body else []
    return beside, [caution, *notes], more


def marked(rows: Iterable[Cells]) -> list[str]:
    """The legend that single evaluations need."""
    return [tables.LEGEND] if any(row.get("above_random") is False for row in rows) else []


def reported_only(ask: Ask) -> tables.Table:
    """The published values themselves."""
    rows = [value.cells for value in select(published.everything(), ask.where)]
    found = tables.Table(
        order(rows, ask.sort) if ask.sort else rows, tables.REPORTED, title=f"{len(rows)} published values"
    )
    return tables.choose(found, ask.columns) if ask.columns and rows else found


def tripped(rows: Sequence[Cells], texts: Iterable[str]) -> list[str]:
    """One phrase per row and expression of ``--fail-if`` that holds.

    A row that has no value for the column trips it as well: what diverged has not passed. So does a table without rows.
    """
    found = []
    for text in texts:
        conditions = parse(text, rows)
        found += [f"{text}: there is no row to check"] if not rows else []
        for row in rows:
            if all(_trips(condition, row) for condition in conditions):
                cells = (f"{c.column} {_said(value(row, c.column))}" for c in conditions)
                found.append(f"{text}: {_who(row)} has {', '.join(cells)}")
    return found


def _trips(condition: Condition, row: Cells) -> bool:
    if condition.column in ("difference", "p", "p_holm", "test") and row.get("baseline") == ITSELF:
        return False
    if condition.column in ("above_random", "random") and row.get("matcher") == BASELINE:
        return False
    return condition.holds(row) or (condition.column != "status" and value(row, condition.column) is None)


def _said(cell: Any) -> str:
    return "no value" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _who(row: Cells) -> str:
    seed = None if row.get("seeds") else row.get("seed")
    parts = (
        row.get("dataset"),
        f"ipc {row.get('ipc')}",
        row.get("matcher"),
        row.get("scheduler"),
        row.get("label_type"),
    )
    words = " ".join(str(part) for part in parts if part is not None)
    return f"{words}{row.get('variant') or ''}" + (f" seed {seed}" if seed is not None else "")


def mixed_protocols(rows: Iterable[Row]) -> list[str]:
    """The protocols of each comparison that has several, as phrases. A comparison is a dataset and a budget."""
    found: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        rules = str(row.protocol_digest or row.protocol)
        place = (row.dataset, row.dataset_digest, row.ipc)
        found.setdefault(place, {})[rules] = f"{row.protocol} ({rules[:8]})"
    many = {place: names for place, names in found.items() if len(names) > 1}
    return [f"{name}, ipc {ipc}: {', '.join(sorted(names.values()))}" for (name, _, ipc), names in many.items()]


def refuse_mixed(rows: Iterable[Row]) -> None:
    """Raise UsageError where one comparison would mix protocols."""
    if mixed := mixed_protocols(rows):
        raise UsageError(
            f"these runs follow different protocols, so their accuracies do not compare ({'; '.join(mixed)}); choose "
            "one with --where protocol=NAME or --where protocol_digest~DIGITS, or show all with --allow-mixed"
        )
