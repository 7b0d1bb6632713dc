"""Sets as folders of pictures, one for each class, and the soft labels that ``ddbench export`` writes beside them.

Shapes: n pictures, k classes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddbench.base.cache import digest, file_digest
from ddbench.base.opening import reading
from ddbench.data.pictures import beside_others
from ddbench.errors import DataError
from ddbench.files import arrays, beside, class_table, safe_load
from ddbench.files.class_names import by_names, folder_name, labels_of, numbered
from ddbench.files.class_table import Table
from ddbench.files.foreign import Foreign
from ddbench.files.known import Known, columns

HEAD = 4_000_000  # bytes of a table that are read for its first line: the names of many thousand classes


def pictures(path: Path, folders: Sequence[Path], known: Known) -> Foreign:
    """One folder per class, told by ``classes.json`` or by their names. Numbers in these order them: 2 before 10."""
    files, rest = safe_load.listing([*folders])
    names, rows, table = [f.name for f in folders], _rows(path, known), _table(path, folders)
    _check(path, dict(zip(names, files, strict=True)), rows)
    named = [*names, *(_lacking(path, names, rows, table) if rows is not None else ())]
    labels, classes, said = _told(path, named, known, table)
    flat = [p for found in files for p in found]
    pixels = safe_load.pictures(flat, rest)
    targets = torch.tensor([label for label, found in zip(labels, files, strict=False) for _ in found])
    soft = None if rows is None else _sorted(path, rows, flat, dict(zip(named, labels, strict=True)), table)
    read = [*([] if rows is None else ["labels.npy"]), *([] if table is None else [class_table.FILE])]
    used = {name: file_digest(path / name) for name in read}
    made, notes = known.set(path, pixels, targets if soft is None else soft, None)
    listed = [[str(p.relative_to(path)), file_digest(p)] for p in flat]
    counted = f"Read {len(listed)} pictures in {len(folders)} folders."
    return Foreign(
        "images",
        (made,),
        classes=classes,
        notes=(counted, *rest, said, *notes, *beside.unused(path, set(used))),
        files={f"{path.name}/": digest(listed)} | used,
        unit=True,
    )


def _table(path: Path, folders: Sequence[Path]) -> Table | None:
    """What ``classes.json`` says of the folders, if it lies there and speaks of folders at all."""
    table = class_table.read(path)
    if table is None or not table.folders:
        return None
    if odd := [f.name for f in folders if table.column(f.name) is None]:
        raise DataError(
            f"{path} has folders that its {class_table.FILE} does not name ({', '.join(odd[:4])}); remove them, or "
            "remove that file to have all folders told by their names"
        )
    return table


def _told(
    path: Path, named: list[str], known: Known, table: Table | None
) -> tuple[list[int], tuple[str, ...] | None, str]:
    """The label of each folder, class names where no dataset is known, and what they are told by."""
    columns = [] if table is None else [column for name in named if (column := table.column(name)) is not None]
    if table is not None and not known.names and known.classes in (None, len(table.names)):
        return columns, table.names, f"{class_table.FILE} tells the classes of the folders."
    if table is not None and (found := by_names(table.names, known.names)):
        return (
            [found[0][column] for column in columns],
            None,
            f"{class_table.FILE} names the folders' classes. {found[1]}",
        )
    if known.names:
        labels, said = labels_of(path, named, known.names, known.wnids)
        return labels, None, said
    return numbered(path, named, known.classes)


def _check(path: Path, held: dict[str, list[Path]], rows: Tensor | None) -> None:
    """Refuse folders of nothing, unless labels beside them tell that a class has no picture, and masks."""
    empty = [name for name, found in held.items() if not found]
    if empty and rows is None:
        raise DataError(f"{path} has folders without pictures ({', '.join(empty[:4])}); remove them, or fill them")
    for name, found in held.items():
        if odd := beside_others([p.name for p in found]):
            raise DataError(
                f"{path} has pictures in {name} that are named as masks or copies of others beside them, {len(odd)} "
                f"({', '.join([*odd][:4])}); move them elsewhere, or rename them if they are pictures of the set"
            )


def _rows(path: Path, known: Known) -> Tensor | None:
    """Labels (n, k) that lie beside folders of pictures, if there are any that count."""
    file = path / "labels.npy"
    return arrays.array(file) if file.exists() and known.labels != "hard" else None


def _column(name: str, table: Table | None) -> int | None:
    """The column of labels that a folder of ``ddbench export`` belongs to; without a table its number says it."""
    if table is not None:
        return table.column(name)
    found = re.match(r"[0-9]{1,9}", name)
    return int(found[0]) if found else None


def _lacking(path: Path, names: Sequence[str], rows: Tensor, table: Table | None) -> list[str]:
    """Folders that ``ddbench export`` made for classes without pictures, which not every copy keeps."""
    there = {_column(name, table) for name in names}
    k = rows.shape[1] if rows.ndim == 2 else 0
    lacking = [column for column in range(k) if column not in there]
    if table is not None:
        return [table.folders[column] for column in lacking] if len(table.folders) == k else []
    beside_it = path / "labels.csv"
    if not lacking or not beside_it.exists():
        return []
    with reading(beside_it) as stream:
        text = stream.read(HEAD).decode(errors="replace")
    try:
        head = next(csv.reader(io.StringIO(text, newline="")), [])[1:]
    except csv.Error:
        head = []
    return [folder_name(column, head[column]) for column in lacking] if len(head) == k else []


def _sorted(path: Path, rows: Tensor, flat: Sequence[Path], labels: dict[str, int], table: Table | None) -> Tensor:
    """Rows of labels in the order of the pictures, and their columns in that of the classes.

    ``ddbench export`` numbers pictures by row, and says the column of each folder. That is compared: the folder of each
    picture is the largest entry of its row, or the rows belong to something else.
    """
    places = {name: column for name in labels if (column := _column(name, table)) is not None}
    index = [int(p.stem) if re.fullmatch(r"[0-9]{1,9}", p.stem) else -1 for p in flat]
    k = len(labels)
    fits = tuple(rows.shape) == (len(flat), k) and sorted(index) == list(range(len(flat)))
    if fits and sorted(places.values()) == list(range(k)):
        rows = rows[index]
        if rows.argmax(1).tolist() == [places[p.parent.name] for p in flat]:
            return columns(rows, [labels[name] for name in sorted(places, key=places.__getitem__)])
    raise DataError(
        f"{path / 'labels.npy'} holds {tuple(rows.shape)} labels, and which row and column belong to which picture and "
        f"folder is not told by {class_table.FILE} or their numbers, as `ddbench export` gives them; remove it, or say "
        "--labels hard, to learn the folders alone"
    )
