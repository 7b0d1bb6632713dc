"""Conditions on rows: ``matcher=tesla,ipc>=10``. Columns are those of the rows, and options by ``group.name``.

People name columns, so what stands here works on cells by their names; typed rows give theirs as ``cells``.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ddbench.errors import UsageError, did_you_mean
from ddbench.run.row import Cells


class Celled(Protocol):
    """What has columns that people name."""

    @property
    def cells(self) -> Cells: ...


T = TypeVar("T", bound=Celled)

# What people call a column, and its name in rows that have none of that name: published ones have methods and models.
ALIASES = {
    "accuracy": "accuracy_mean",
    "mean": "accuracy_mean",
    "std": "accuracy_std",
    "ci": "ci_low",
    "method": "matcher",
    "matcher": "method",
    "network": "model",
    "labels": "label_type",
    "selected": "selection",
    "diff": "difference",
    "bytes": "total_bytes",
}
FRACTIONS = ("accuracy_mean", "accuracy_std", "ci_low", "ci_high", "difference", "p", "p_holm", "ece_mean")
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
MOST_NAMED = 8  # values of a column in a sentence
_CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A column, an operator and a value, all as text."""

    column: str
    sign: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value}"

    def holds(self, row: Cells) -> bool:
        """Whether the row meets it. What is missing is equal to ``none``, unequal to the rest, and in no order."""
        cell = value(row, self.column)
        if self.sign in _ORDER:
            return is_number(cell) and _ORDER[self.sign](cell, float(self.value))
        if self.sign == "~":
            return cell is not None and _found(self.value, str(cell))
        return (self.sign == "=") == _same(cell, self.value)


def parse(text: str, rows: Sequence[Cells]) -> list[Condition]:
    """The conditions of ``text`` on rows, divided by commas outside brackets: ``network=convnet(width=32),ipc=1``."""
    found = []
    for part in divided(text):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise UsageError(
                f"{part!r} is not a condition; write COLUMN=VALUE with one of = != < <= > >= ~, such as ipc>=10"
            )
        column, sign, wanted = match.groups()
        if sign in _ORDER and not _numeric(wanted):
            raise UsageError(f"{part!r} needs a number after {sign}, got {wanted!r}")
        if sign == "~":
            _check_pattern(part, wanted)
        if known(column, rows) in FRACTIONS and _numeric(wanted) and abs(float(wanted)) > 1:
            raise UsageError(
                f"{part!r} can never tell: accuracies are fractions here; write {column}{sign}{float(wanted) / 100:g}"
            )
        found.append(Condition(known(column, rows), sign, wanted))
    return found


def _check_pattern(part: str, pattern: str) -> None:
    """A text with brackets may be meant as text, as in ``network~convnet(``; nothing else may fail as a pattern."""
    try:
        re.compile(pattern)
    except re.error as error:
        if not re.search(r"\w\(", pattern):
            raise UsageError(f"{part!r} is neither part of a name nor a regular expression ({error})") from None


def divided(text: str) -> list[str]:
    """The parts between commas that stand outside brackets; empty ones are left out."""
    parts, depth = [""], 0
    for letter in text:
        depth = max(0, depth + (letter in "([{") - (letter in ")]}"))
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def select(rows: Sequence[T], texts: Iterable[str]) -> list[T]:
    """The rows that meet every condition. Raises UsageError for a column that no row has, and where no row is left."""
    cells = [row.cells for row in rows]
    conditions = [condition for text in texts for condition in parse(text, cells)]
    found = [row for row, own in zip(rows, cells, strict=True) if all(c.holds(own) for c in conditions)]
    if rows and not found:
        held = "; ".join(dict.fromkeys(f"{c.column} is {_values(c.column, cells)}" for c in conditions))
        raise UsageError(f"no row meets {', '.join(map(str, conditions))}: {held}")
    return found


def _values(column: str, rows: Sequence[Cells]) -> str:
    """The values of a column, the most usual first."""
    count = Counter(
        "none" if (cell := value(row, column)) is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell)
        for row in rows
    )
    names = [name for name, _ in count.most_common(MOST_NAMED)]
    more = len(count) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def known(column: str, rows: Sequence[Cells]) -> str:
    """The name that rows have for a column. Raises UsageError for one that none of them has."""
    names = dict.fromkeys(name for row in rows for name in (*row, *(row.get("options") or {})))
    name = column if column in names else ALIASES.get(column, column)
    if rows and name not in names:
        plain = [n for n in names if "." not in n]
        hint = did_you_mean(column, [*names, *ALIASES])
        raise UsageError(
            f"no column {column!r}{hint} (columns: {', '.join(plain)}; "
            "options are called GROUP.NAME, such as matcher.steps)"
        )
    return name


def value(row: Cells, column: str) -> Any:
    """The cell of a column or of an option."""
    if column in row:
        return row[column]
    return (row.get("options") or {}).get(column)


def order(rows: Sequence[Cells], text: str) -> list[Cells]:
    """Rows sorted by ``COLUMN,-COLUMN`` (minus: falling); what is missing comes last either way."""
    ordered = list(rows)
    for part in reversed(divided(text)):
        column = known(part.removeprefix("-"), rows)
        have = [row for row in ordered if value(row, column) is not None]
        have.sort(key=lambda row: rank(value(row, column)), reverse=part.startswith("-"))
        ordered = have + [row for row in ordered if value(row, column) is None]
    return ordered


def rank(cell: Any) -> tuple[bool, float, str]:
    """A sort key for cells of any kind: numbers by size before words by letter, and what is missing last."""
    if is_number(cell):
        return (False, float(cell), "")
    return (True, float(cell is None), str(cell))


def is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip().lower().lstrip("+-") != "nan"


def _same(cell: Any, text: str) -> bool:
    if cell is None:
        return text.lower() in ("none", "null", "")
    if is_number(cell) and _numeric(text):
        return cell == float(text)
    return str(cell).casefold() == text.casefold()


def _found(text: str, cell: str) -> bool:
    """A substring or a regular expression, whatever the case; ``convnet(`` is the first alone."""
    if text.casefold() in cell.casefold():
        return True
    try:
        return re.search(text, cell, re.IGNORECASE) is not None
    except re.error:
        return False
