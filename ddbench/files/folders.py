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
from ddbench.files import arrays, beside, safe_load
from ddbench.files.class_names import folder_name, labels_of, numbered
from ddbench.files.foreign import Foreign
from ddbench.files.known import Known, columns

HEAD = 4_000_000  # bytes of a table that are read for its first line: the names of many thousand classes


def pictures(path: Path, folders: Sequence[Path], known: Known) -> Foreign:
    """One folder per class. Numbers in their names order them, since "10" sorts before "2" as text."""
    files, rest = safe_load.listing([*folders])
    names, classes, rows = [f.name for f in folders], None, _rows(path, known)
    _check(path, dict(zip(names, files, strict=True)), rows)
    named = [*names, *(_lacking(path, names, rows) if rows is not None else ())]
    if known.names:
        labels, said = labels_of(path, named, known.names, known.wnids)
    else:
        labels, classes, said = numbered(path, named, known.classes)
    flat = [p for found in files for p in found]
    pixels = safe_load.pictures(flat, rest)
    targets = torch.tensor([label for label, found in zip(labels, files, strict=False) for _ in found])
    soft = None if rows is None else _sorted(path, rows, flat, dict(zip(named, labels, strict=True)))
    used = {} if rows is None else {"labels.npy": file_digest(path / "labels.npy")}
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


def _column(name: str) -> int | None:
    """The column of labels that a folder of ``ddbench export`` belongs to."""
    found = re.match(r"[0-9]{1,9}", name)
    return int(found[0]) if found else None


def _lacking(path: Path, names: Sequence[str], rows: Tensor) -> list[str]:
    """Folders that ``ddbench export`` made for classes without pictures, which not every copy keeps."""
    there = {_column(name) for name in names}
    k = rows.shape[1] if rows.ndim == 2 else 0
    lacking = [column for column in range(k) if column not in there]
    table = path / "labels.csv"
    if not lacking or not table.exists():
        return []
    with reading(table) as stream:
        text = stream.read(HEAD).decode(errors="replace")
    try:
        head = next(csv.reader(io.StringIO(text, newline="")), [])[1:]
    except csv.Error:
        head = []
    return [folder_name(column, head[column]) for column in lacking] if len(head) == k else []


def _sorted(path: Path, rows: Tensor, flat: Sequence[Path], labels: dict[str, int]) -> Tensor:
    """Rows of labels in the order of the pictures, and their columns in that of the classes.

    ``ddbench export`` numbers pictures by row, and folders by column. That is compared: the folder of each picture is
    the largest entry of its row, or the rows belong to something else.
    """
    places = {name: column for name in labels if (column := _column(name)) is not None}
    index = [int(p.stem) if re.fullmatch(r"[0-9]{1,9}", p.stem) else -1 for p in flat]
    k = len(labels)
    fits = tuple(rows.shape) == (len(flat), k) and sorted(index) == list(range(len(flat)))
    if fits and sorted(places.values()) == list(range(k)):
        rows = rows[index]
        if rows.argmax(1).tolist() == [places[p.parent.name] for p in flat]:
            return columns(rows, [labels[name] for name in sorted(places, key=places.__getitem__)])
    raise DataError(
        f"{path / 'labels.npy'} holds {tuple(rows.shape)} labels, and which row and column belong to which picture and "
        "folder is not told by their numbers, as `ddbench export` gives them; remove it, or say --labels hard, to "
        "learn the folders alone"
    )
