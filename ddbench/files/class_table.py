"""``classes.json``: which class each folder, or each number, of an exported set is. Nothing is told by sorting.

Names of folders sort as text, in one order, and ddbench's labels have another (2 before 10): the table holds both.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ddbench.base.opening import parse_json, read_bytes
from ddbench.errors import DataError

FILE = "classes.json"


@dataclass(frozen=True)
class Table:
    """Names of classes by label, and the folder of each; no folders where labels are numbers alone."""

    names: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {_composed(name): i for i, name in enumerate(self.folders)}

    def column(self, folder: str) -> int | None:
        """The label of a folder, however a file system stores its accents; None for one that is not in the table."""
        return self._columns.get(_composed(folder))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def write(out: Path, table: Table) -> None:
    """Write it into the folder ``out``."""
    folders = [{"folder": name} for name in table.folders] or [{}] * len(table.names)
    rows = [{"index": i, "name": n} | f for i, (n, f) in enumerate(zip(table.names, folders, strict=True))]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    (out / FILE).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Table | None:
    """The table in a folder; None where there is none, or another tool's file of that name.

    Raises DataError for one that is damaged, and for one that does not number its classes from 0.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        rows = parse_json(read_bytes(file))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); get it again, or remove it") from error
    if not (isinstance(rows, list) and rows and all(isinstance(r, dict) and {"index", "name"} <= set(r) for r in rows)):
        return None
    held = [key for key in ("name", "folder") if key in rows[0]]
    fields = [[row.get(key) for row in rows] for key in held]
    texts = all(isinstance(value, str) for values in fields for value in values)
    apart = texts and all(len(set(values)) == len(values) for values in fields)
    if not apart or [row["index"] for row in rows] != list(range(len(rows))):
        raise DataError(
            f"{file} does not give every class an index from 0 to {len(rows) - 1}, and a name and folder of its own; "
            "get it again, or remove it to have the folders told by their names"
        )
    return Table(*(tuple(map(str, values)) for values in fields))
