"""Tables of results: rows to pandas, and pandas to what a reader or a program wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ddbench.errors import UsageError

INTEGERS = ("ipc", "seed", "steps", "n", "peak_bytes", "image_bytes", "label_bytes")
FORMATS = ("table", "md", "csv", "json", "latex")

# What tables for people show, and how; machine formats carry every column.
_SHOWN = {
    "dataset": "dataset", "matcher": "matcher", "scheduler": "scheduler", "network": "network", "ipc": "ipc",
    "seed": "seed", "label_type": "labels", "accuracy": "accuracy %", "n": "n", "protocol": "protocol", "steps": "N",
    "selection": "selected on", "distil_seconds": "distil s", "expert_seconds": "experts s", "peak_mb": "peak MB",
    "image_kb": "images kB", "label_kb": "labels kB", "status": "status",
}  # fmt: skip


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Tidy rows, sorted so that what is comparable stands together."""
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    for column in INTEGERS:
        if column in table:
            table[column] = pd.array([None if _missing(v) else int(v) for v in table[column]], dtype="Int64")
    order = ["dataset", "ipc", "network", "protocol", "matcher", "scheduler", "label_type", "seed"]
    return table.sort_values(order, kind="stable", na_position="last").reset_index(drop=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that people read, as text."""
    text = pd.DataFrame(index=table.index)
    records = table.to_dict("records")
    for column, title in _SHOWN.items():
        text[title] = [_cell(column, row) for row in records]
    text["matcher"] = [f"{cell}{words}" for cell, words in zip(text["matcher"], _differences(records), strict=True)]
    return text


def _differences(records: list[dict[str, Any]]) -> list[str]:
    """For each row, the options that set it apart from others of its method: `` (curvature=exact)``.

    Options that have a column of their own are left out.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in records:
        given = row.get("options")
        row["_options"] = given if isinstance(given, dict) else {}
        groups.setdefault(tuple(str(row[c]) for c in ("dataset", "matcher", "scheduler", "ipc")), []).append(row)
    words = []
    for row in records:
        others = groups[tuple(str(row[c]) for c in ("dataset", "matcher", "scheduler", "ipc"))]
        apart = [
            f"{name.removeprefix('matcher.')}={value}"
            for name, value in row["_options"].items()
            if name != "matcher.labels" and any(other["_options"].get(name, value) != value for other in others)
        ]
        words.append(f" ({', '.join(apart)})" if apart else "")
    return words


def _cell(column: str, row: dict[str, Any]) -> str:
    if column == "accuracy":
        return (
            ""
            if _missing(row["accuracy_mean"])
            else f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f}"
        )
    scale = {"peak_mb": ("peak_bytes", 2**20), "image_kb": ("image_bytes", 1e3), "label_kb": ("label_bytes", 1e3)}
    if column in scale:
        source, unit = scale[column]
        return "" if _missing(row[source]) else f"{row[source] / unit:.1f}"
    value = row[column]
    if _missing(value):
        return ""
    if column.endswith("_seconds"):
        return f"{value:.0f}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value))


def render(table: pd.DataFrame, form: str) -> str:
    """The table in one of the machine-readable or typeset formats (not ``table``, which the console draws)."""
    if form == "json":
        return table_json(table)
    if form == "csv":
        return table.drop(columns="options", errors="ignore").to_csv(index=False, lineterminator="\n")
    text = shown(table) if not table.empty else pd.DataFrame(columns=list(_SHOWN.values()))
    if form == "md":
        return _markdown(list(text.columns), text.to_numpy().tolist())
    if form == "latex":
        return _latex(list(text.columns), text.to_numpy().tolist())
    raise UsageError(f"unknown format {form!r}; valid ones: {', '.join(FORMATS)}")


def table_json(table: pd.DataFrame) -> str:
    """A list of row objects; what is missing is null."""
    records = [{k: None if _missing(v) else v for k, v in row.items()} for row in table.to_dict("records")]
    return json.dumps(records, indent=2, allow_nan=False)


def _markdown(columns: Sequence[str], body: list[list[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


_LATEX = str.maketrans({c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                        "^": r"\textasciicircum{}", "±": r"$\pm$"})  # fmt: skip


def _latex(columns: Sequence[str], body: list[list[str]]) -> str:
    """A booktabs tabular."""
    lines = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in [list(columns), *body]]
    head = rf"\begin{{tabular}}{{{'l' * len(columns)}}}"
    return "\n".join([head, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"
