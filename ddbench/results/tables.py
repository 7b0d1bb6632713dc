"""Tables for people (text, Markdown, LaTeX, HTML) and for programs (CSV, JSON). Whatever a name holds stays text."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ddbench.errors import UsageError
from ddbench.results.where import is_number, known
from ddbench.run.row import Cells, method_name

MARK = "‡"
LEGEND = (
    f"{MARK}: not above random images of its budget: the 95 % interval of the difference (Welch; over the students of "
    "one run each, else over seeds) does not lie above zero."
)
OVER_SEEDS = "Accuracy is the mean ± sample deviation over seeds; each seed is one run, the mean of its students."
CI = "95 % CI: Student's t over seeds, cut to 0 to 100 %; there is none for a single seed."
P = "p (Holm): two-sided t test of the difference to the baseline, Holm-corrected over all tests of the table."
FORMATS = ("table", "md", "csv", "json", "latex", "html")

# Control characters, marks of direction and what cannot be seen, which must not reach a terminal or a page.
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

# What people see: the column of the row, its title, and how a cell of it reads.
_COMMON = {
    "dataset": "dataset",
    "network": "network",
    "ipc": "ipc",
    "matcher": "matcher",
    "scheduler": "scheduler",
    "label_type": "labels",
    "protocol": "protocol",
}
_COSTS = {
    "steps": "N",
    "distil_seconds": "distil s",
    "expert_seconds": "experts s",
    "selection_seconds": "selection s",
    "peak_bytes": "peak MB",
    "image_bytes": "images kB",
    "label_bytes": "labels kB",
    "total_bytes": "total kB",
    "status": "status",
}
PER_RUN = (
    _COMMON
    | {
        "seed": "seed",
        "accuracy_mean": "accuracy %",
        "n": "n",
        "student_lr": "student lr",
        "together": "together",
        "evaluation_seed": "graded with",
        "selection": "selected on",
    }
    | _COSTS
    | {"note": "note"}
)
LINES = _COMMON | {
    "accuracy_mean": "accuracy %",
    "n": "seeds",
    "students": "students",
    "ci_low": "95 % CI",
    "difference": "difference",
    "baseline": "to",
    "p_holm": "p (Holm)",
    "test": "test",
    "selection": "selected on",
    **_COSTS,
    "note": "note",
}
REPORTED = {
    "dataset": "dataset",
    "model": "network",
    "ipc": "ipc",
    "method": "method",
    "scheduler": "scheduler",
    "accuracy_mean": "reported %",
    "source": "source",
    "setting": "setting",
}
# Columns that are shown only when asked for, under a name that the column's own would not make clear.
_OTHERS = {
    "p": "p (uncorrected)",
    "random": "to random [95 %]",
    "above_random": "above random",
    "best": "best",
    "accuracy_std": "std (fraction)",
    "ci_high": "CI high (fraction)",
}
ONCE = ("dataset", "network", "ipc", "protocol", "steps", "students")
_UNITS = {"peak_bytes": 2**20, "image_bytes": 1e3, "label_bytes": 1e3, "total_bytes": 1e3}


@dataclass(frozen=True)
class Table:
    """Rows, what people see of them (column -> title), and what they have to know."""

    rows: Sequence[Cells]
    shown: dict[str, str]
    captions: Sequence[str] = ()
    title: str = ""
    columns: tuple[str, ...] = ()
    once: tuple[str, ...] = ()  # columns that people see once, above, where all rows agree on them

    def records(self) -> list[Cells]:
        """The rows for programs; a selection on test data is said even if its column was not chosen."""
        if not self.columns:
            return list(self.rows)
        kept = ("selection",) if any(_dagger(row) for row in self.rows) else ()
        return [{name: row.get(name) for name in dict.fromkeys((*self.columns, *kept))} for row in self.rows]

    def text(self) -> tuple[list[str], list[list[str]]]:
        """Titles and cells as people read them, without columns that are empty."""
        names = [name for name in self.shown if name not in self._agreed()]
        body = [[cell(name, row) for name in names] for row in self.rows]
        used = [i for i in range(len(names)) if any(line[i] for line in body)]
        return [self.shown[names[i]] for i in used], [[line[i] for i in used] for line in body]

    def _agreed(self) -> dict[str, str]:
        if self.columns or len(self.rows) < 2:
            return {}
        cells = {name: {cell(name, row) for row in self.rows} for name in self.once}
        return {name: found.pop() for name, found in cells.items() if len(found) == 1}

    def notes(self) -> list[str]:
        """The captions, and the footnote that a selection on test data needs."""
        dagger = ["† selected on test data"] if any(_dagger(row) for row in self.rows) else []
        agreed = ", ".join(f"{self.shown[name]} {text}" for name, text in self._agreed().items() if text)
        return [*([f"In all lines: {agreed}."] if agreed else []), *dagger, *self.captions]


def choose(table: Table, names: Sequence[str]) -> Table:
    """The table with these columns only."""
    labelled = "method" in names and not any("method" in row for row in table.rows)  # published ones have their own
    if labelled:
        table = replace(table, rows=[row | {"method": method_of(row)} for row in table.rows])
    columns = tuple(known(name, table.rows) for name in names)
    titles = _OTHERS | table.shown
    return replace(table, shown={name: titles.get(name, name) for name in columns}, columns=columns)


def method_of(row: Cells) -> str | None:
    """What tells a row apart from others of its data and budget, as boards call it; of a damaged run its name."""
    if row.get("matcher") is None:
        return row.get("run")
    return method_name(row["matcher"], row.get("scheduler"), row.get("label_type")) + (row.get("variant") or "")


def clean(value: Any) -> str:
    """Text on one line that is safe to show."""
    return " ".join(UNSAFE.sub("?", str(value)).split())


def cell(name: str, row: Cells) -> str:
    """A cell for people: percent, megabytes, kilobytes; empty where nothing is known."""
    value = row.get(name)
    if value is None or value == []:
        return ""
    if name in _SPECIAL:
        return clean(_SPECIAL[name](row))
    if name in _UNITS:
        return f"{value / _UNITS[name]:.1f}"
    if name.endswith("_seconds"):
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(", ".join(map(str, value)) if isinstance(value, list) else value)


def _accuracy(row: Cells) -> str:
    std = row.get("accuracy_std")
    return f"{100 * row['accuracy_mean']:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "") + marks(row)


def marks(row: Cells) -> str:
    """What stands behind an accuracy: the best of its group, selected on test data, not above random images."""
    below = row.get("above_random") is False and row.get("accuracy_mean") is not None
    return (" *" if row.get("best") else "") + (" †" if _dagger(row) else "") + (f" {MARK}" if below else "")


def _dagger(row: Cells) -> bool:
    return row.get("selection") == "test" and row.get("accuracy_mean") is not None


def _p(row: Cells) -> str:
    return "<0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"


def _random(row: Cells) -> str:
    """The difference to each kind of random images, with its interval."""
    return "; ".join(
        f"{beside['baseline']} {100 * beside['difference']:+.1f}"
        + ("" if beside["low"] is None else f" [{100 * beside['low']:+.1f}, {100 * beside['high']:+.1f}]")
        for beside in row["random"]
    )


def _reported(row: Cells) -> str:
    return "; ".join(_accuracy(value) for value in row["reported"])


_SPECIAL: dict[str, Callable[[Cells], str]] = {
    "accuracy_mean": _accuracy,
    "ci_low": lambda row: f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]",
    "difference": lambda row: f"{100 * row['difference']:+.1f}",
    "p_holm": _p,
    "matcher": lambda row: f"{row['matcher']}{row.get('variant') or ''}",
    "random": _random,
    "reported": _reported,
}


def render(table: Table, form: str) -> str:
    """The table in any format but ``table``, which the console draws."""
    if form == "json":
        return json.dumps(table.records(), indent=2, allow_nan=False)
    if form == "csv":
        return _csv(table.records())
    typeset = {"md": _markdown, "latex": _latex, "html": _html}
    if form not in typeset:
        raise UsageError(f"unknown format {form!r}; valid ones: {', '.join(FORMATS)}")
    return typeset[form](table)


def _csv(rows: Sequence[Cells]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if columns:
        writer.writerows([columns, *([_plain(row.get(name)) for name in columns] for row in rows)])
    return out.getvalue()


def _plain(value: Any) -> Any:
    """A cell of CSV. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    if value is None or is_number(value) or isinstance(value, bool):
        return value
    text = json.dumps(value) if isinstance(value, (list, dict)) else UNSAFE.sub("?", str(value))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


_MARKDOWN = str.maketrans({c: "\\" + c for c in "\\|*_`[]~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def _markdown(table: Table) -> str:
    titles, body = table.text()
    lines = [titles, ["---"] * len(titles), *body] if titles else []
    rows = ["| " + " | ".join(c if c == "---" else c.translate(_MARKDOWN) for c in line) + " |" for line in lines]
    notes = [clean(note).translate(_MARKDOWN) for note in table.notes()]
    return "\n\n".join(part for part in ("\n".join(rows), *notes) if part) + "\n"


_MINUS = re.compile(r"(?<![\w.)-])-(?=\d)")
# A row that began with a bracket would be the optional argument of the line break before it.
_LATEX = str.maketrans({c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                        "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$",
                        "<": r"\textless{}",
                        ">": r"\textgreater{}", "[": "{[}", "]": "{]}"})  # fmt: skip


def latex_text(text: str) -> str:
    """Text as LaTeX prints it; a minus before a number is one, not a hyphen."""
    return _MINUS.sub("$-$", text.translate(_LATEX))


def _latex(table: Table) -> str:
    """A booktabs tabular, with its notes below."""
    titles, body = table.text()
    lines = [" & ".join(map(latex_text, line)) + r" \\" for line in [titles, *body]]
    head = rf"\begin{{tabular}}{{{'l' * max(1, len(titles))}}}"
    notes = [r"\par\footnotesize " + latex_text(clean(note)) for note in table.notes()]
    return (
        "\n".join([head, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", *notes])
        + "\n"
    )


def _html(table: Table) -> str:
    """A plain table with a caption and the scope of every header; ASCII, so that it reads alike under any charset."""
    titles, body = table.text()
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    first = [f'<th scope="row">{html.escape(line[0])}</th>' for line in body]
    others = ["".join(f"<td>{html.escape(c)}</td>" for c in line[1:]) for line in body]
    rows = [f"<tr>{name}{cells}</tr>" for name, cells in zip(first, others, strict=True)]
    notes = "".join(f"\n<p>{html.escape(clean(note))}</p>" for note in table.notes())
    title = f"<caption>{html.escape(clean(table.title))}</caption>"
    text = "\n".join(["<table>", title, f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>", "</table>"])
    return (text + notes + "\n").encode("ascii", "xmlcharrefreplace").decode()
