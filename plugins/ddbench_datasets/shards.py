"""ImageNet as shards of WebDataset: tar files of pictures with their classes, here or in object storage.

Each shard is read once, from its first byte to its last, and decoded into a store of its own; what is decoded stays
when the work is stopped. When all are there they become one store, in the order of classes, and their own ones go.
A sample is ``KEY.jpg`` (or another picture) with ``KEY.cls``, the number of its class.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddbench import DataError, report
from ddbench.data.pictures import is_picture
from ddbench_datasets import store
from ddbench_datasets.building import Plan
from ddbench_datasets.places import Place
from ddbench_datasets.remote import Remote
from ddbench_datasets.sources import Given
from ddbench_datasets.store import Made

PARTS = {"train": ("train",), "test": ("val", "validation", "test")}  # in the names of shards
BLOCK = 2000  # rows that are put in order at a time


def shards_of(remote: Remote) -> dict[str, dict[str, int]]:
    """The shards of each part, with their sizes. Raises DataError where one has none."""
    tars = {name: size for name, size in sorted(remote.names().items()) if name.endswith(".tar")}
    found = {part: {n: s for n, s in tars.items() if any(w in n for w in words)} for part, words in PARTS.items()}
    if lacking := [part for part, shards in found.items() if not shards]:
        raise DataError(
            f"{remote.url} holds no {' and no '.join(lacking)} shards (tar files with {' or '.join(PARTS[lacking[0]])} "
            "in their names) and no prepared images; give another dataset.root"
        )
    return found


def streamed(remote: Remote, classes: tuple[str, ...], decided: dict[str, Any], size: int, skip: bool) -> Made:
    """The images of all shards at ``size`` as one store, and what is known of it; ``decided`` belongs to its key."""
    shards = shards_of(remote)

    def write(folder: Path) -> dict[str, Any]:
        count, done = sum(map(len, shards.values())), 0
        pieces: dict[str, list[Made]] = {}
        for part, names in shards.items():
            for name, length in names.items():
                report("shards", done, count)
                pieces.setdefault(part, []).append(_piece(remote, name, length, size, skip))
                done += 1
        report("shards", count, count)
        about = _joined(folder, pieces, classes, remote.url)
        for name, length in {**shards["train"], **shards["test"]}.items():
            shutil.rmtree(store.place(_identity(name, length, size)), ignore_errors=True)
        return about

    return store.brought(identity_of(remote, decided), write)


def identity_of(remote: Remote, decided: dict[str, Any]) -> dict[str, Any]:
    """What decides the store of all shards: their names and sizes, and what is made of them."""
    content = [[part, name, size] for part, names in shards_of(remote).items() for name, size in names.items()]
    return {"format": 2, "content": ["shards", content], **decided}


def _identity(name: str, length: int, size: int) -> list[Any]:
    return ["shard", name, length, size, store.pillow()]


def _piece(remote: Remote, name: str, length: int, size: int, skip: bool) -> Made:
    """The images of one shard, with their classes as ``about["labels"]``."""

    def plan() -> Plan:
        pictures, labels = {}, []
        for key, (picture, label) in _samples(remote, name):
            pictures[key] = picture
            labels.append(label)
        files = Given(list(pictures), lambda key: Place(data=pictures[key]), max(1, length // max(1, len(pictures))))
        origin = [remote.url, name, size]
        return Plan(files, list(pictures), "3", size, skip, origin, {"labels": labels})

    images, about = store.decoded(_identity(name, length, size), plan)
    return images.array.numpy(), about


def _samples(remote: Remote, name: str) -> Iterator[tuple[str, tuple[bytes, int]]]:
    """The samples of a shard by their keys, as they come."""
    held: dict[str, dict[str, bytes]] = {}
    try:
        with remote.open(name) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                key, _, kind = member.name.partition(".")
                wanted = kind == "cls" or is_picture(member.name)
                part = archive.extractfile(member) if member.isreg() and wanted else None
                if part is None:
                    continue
                sample = held.setdefault(key, {})
                sample["cls" if kind == "cls" else "picture"] = part.read()
                if len(sample) == 2:
                    yield key, (sample["picture"], int(held.pop(key)["cls"]))
    except (EOFError, ValueError, tarfile.TarError) as error:
        raise DataError(
            f"{name} of {remote.url} is no whole shard of numbered classes ({error}); write it again"
        ) from error
    if held:
        raise DataError(
            f"{next(iter(held))} in {name} of {remote.url} has no picture or no class; write the shard again"
        )


def _joined(folder: Path, pieces: dict[str, list[Made]], classes: tuple[str, ...], url: str) -> dict[str, Any]:
    """Write ``pixels.npy``: the images of each part, class by class; returns what is known of them."""
    known: dict[str, Any] = {"classes": classes, "notes": {}, "broken": [], "transparent": 0}
    orders = []
    for part, made in pieces.items():
        labels = [np.array(about["labels"], dtype=np.int64) for _, about in made]
        for found, (_, about) in zip(labels, made, strict=True):
            found[[row for row, *_ in about["broken"]]] = -1  # left out
            known["transparent"] += about["transparent"]
        flat = np.concatenate(labels)
        if flat.max(initial=0) >= len(classes):
            raise DataError(f"{url} has an image of class {flat.max()}, and there are {len(classes)} classes")
        known[part] = np.bincount(flat[flat >= 0], minlength=len(classes)).tolist()
        order = np.argsort(flat, kind="stable")[int((flat < 0).sum()) :]
        orders.append((order, [array for array, _ in made]))
        if not all(known[part]):
            raise DataError(
                f"the {part} shards of {url} have no image of class {known[part].index(0)}; add those missing"
            )
    shape = (sum(len(order) for order, _ in orders), *pieces["train"][0][0].shape[1:])
    with store.writing(folder, shape) as stream:
        for order, arrays in orders:
            ends = np.cumsum([len(array) for array in arrays])
            for begin in range(0, len(order), BLOCK):
                rows = order[begin : begin + BLOCK]
                which = np.searchsorted(ends, rows, side="right")
                block = np.empty((len(rows), *shape[1:]), np.uint8)
                for i in np.unique(which):
                    chosen = which == i
                    block[chosen] = arrays[i][rows[chosen] - (ends[i] - len(arrays[i]))]
                stream.write(block.tobytes())
    return known
