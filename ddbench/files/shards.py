"""Sets in the tar archives of WebDataset: each sample is a picture and its label under one name.

Nothing is unpacked onto the disk. Shapes: n pictures, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ddbench.base.opening import parse_json, reading
from ddbench.data.pictures import LARGEST, is_picture
from ddbench.errors import DataError
from ddbench.files import class_table, safe_load

SUFFIX = ".tar"
WAY_OUT = "each picture needs its class number in .cls, or its labels in .json, under its own name"


def arrays(paths: list[Path], notes: list[str]) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Images (n, c, h, w) in [0, 1] and labels (n,) or (n, k) of all archives, and the names of classes beside them.

    Raises DataError for archives that are damaged or compressed, and for samples without picture or label.
    """
    pictures: list[tuple[str, bytes]] = []
    labels: list[int] | list[list[float]] = []
    left: list[str] = []
    for path in paths:
        for key, parts in _samples(path).items():
            shown = [kind for kind in parts if is_picture(f"x.{kind}")]
            told = [kind for kind in ("cls", "json") if kind in parts]
            if len(shown) != 1 or len(told) != 1:
                raise DataError(f"{path} has a sample {key!r} of {', '.join(sorted(parts))}; {WAY_OUT}")
            pictures.append((f"{path}/{key}.{shown[0]}", parts[shown[0]]))
            labels.append(_label(f"{path}/{key}.{told[0]}", parts[told[0]]))  # type: ignore[arg-type]
            left += [f"{key}.{kind}" for kind in parts if kind not in (*shown, *told)]
    if len({len(label) if isinstance(label, list) else 0 for label in labels}) > 1:
        raise DataError(f"{paths[0].parent} has labels of several kinds or lengths; {WAY_OUT}")
    if left:
        notes.append(f"Left out {len(left)} files beside pictures and labels, such as {left[0]}.")
    table = class_table.read(paths[0].parent)
    held = {"images": safe_load.shown(pictures, notes), "labels": torch.tensor(labels)}
    return held, table.names if table else None


def _samples(path: Path) -> dict[str, dict[str, bytes]]:
    """The files of every sample by their suffix, in the order of the archive."""
    found: dict[str, dict[str, bytes]] = {}
    for name, data in _members(path):
        folder, _, last = name.rpartition("/")
        stem, _, kind = last.partition(".")
        parts = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if kind.lower() in parts:
            raise DataError(f"{path} holds {name} twice; write it again")
        parts[kind.lower()] = data
    if not found:
        raise DataError(f"{path} holds no files; {WAY_OUT}")
    return found


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with reading(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or member.size > LARGEST:
                    raise DataError(
                        f"{path} holds {member.name[:80]!r}, which is not a plain file of a sample; {WAY_OUT}"
                    )
                part = archive.extractfile(member)
                data = part.read() if part else b""
                if len(data) != member.size:
                    raise DataError(f"{path} is cut short in {member.name[:80]!r}; get it again")
                yield member.name, data
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path} is not a plain tar archive, or is damaged ({error}); get it again") from error


def _label(where: str, data: bytes) -> int | list[float]:
    try:
        value = parse_json(data)
    except ValueError as error:
        raise DataError(f"{where} is neither a number nor a list of numbers ({error}); {WAY_OUT}") from error
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:
        return value
    if isinstance(value, list) and value and all(type(v) in (int, float) for v in value):
        return [float(v) for v in value]
    raise DataError(f"{where} is neither a number nor a list of numbers; {WAY_OUT}")
