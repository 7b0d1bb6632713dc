"""Decoding more images than fit into memory: in parallel, in chunks, and again from where it was stopped.

The images go to ``pixels.part``, which gets its full length at once, so that a full disk is noticed before the work
rather than after it. When a chunk is on the disk, ``journal`` gets a line with the sha256 of its pixels; only then, and
as long as they have it, does it count.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddbench import DataError, DDBenchError, note, report
from ddbench.base import cache
from ddbench.data.pictures import Broken, Coloured, decode, read, strictly
from ddbench_datasets import workers
from ddbench_datasets.places import OddSize, fetch, shown
from ddbench_datasets.sources import Files
from ddbench_datasets.workers import Chunk, Done, Target

CHUNK = 256  # images, or fewer if their files have more than
CHUNK_BYTES = 32_000_000
UNSEEN = ("its transparency alone", "wholly transparent")  # how reasons end that another ground would mend
WORTH_A_PROCESS = 4  # chunks; fewer take less time than a process takes to start


@dataclass(frozen=True)
class Plan:
    """Images to decode: ``names`` in the order of the rows, ``channels`` ("1", "3", or "auto" for grey if all are).

    ``size`` resizes their middle squares, with ``stretch`` all of them; without it all must have one size. ``ground``
    shows through transparent parts. Unless ``skip_broken``, each must be decodable. ``about`` is kept beside the
    pixels; ``origin`` (JSON) tells earlier attempts at the same images; ``mend`` says what to do about broken ones,
    where that is not to leave them out.
    """

    files: Files
    names: Sequence[str]
    channels: str
    size: int | None
    skip_broken: bool
    origin: Any
    about: dict[str, Any] = field(default_factory=dict)
    mend: str | None = None
    stretch: bool = False
    ground: str = "drop"


def build(folder: Path, plan: Plan) -> dict[str, Any]:
    """Write ``pixels.npy``; returns the plan's ``about``, the images that are broken, and how many are transparent.

    Raises DataError for broken images, for several sizes, or when there is no room.
    """
    journal = _Journal(folder)
    order = plan.files.order(plan.names)
    chunks = list(_chunks(plan, order))
    try:
        journal.open(plan, chunks)
        if journal.start is None:
            _discard_others(folder, plan.origin)
            journal.begin(_guess(plan, order), plan, chunks)
        try:
            _fill(plan, chunks, journal)
        except Coloured:
            shape = [3, *journal.begun["shape"][1:]]
            journal.begin({**journal.begun, "shape": shape, "grey": False}, plan, chunks)
            _fill(plan, chunks, journal)
        broken = sorted((row, why) for faults, _, _ in journal.done.values() for row, why in faults)
        if broken and not plan.skip_broken:
            raise DataError(refusal([(plan.names[row], why) for row, why in broken], len(plan.names), plan.mend))
        journal.pixels.replace(folder / "pixels.npy")
    except OddSize as error:
        journal.discard()
        name, *shape = error.args
        raise DataError(_odd_size(journal.begun["like"], journal.begun["shape"], name, shape)) from error
    except OSError as error:
        raise DataError(f"cannot write in {folder}: {error.strerror}; free some space and run again") from error
    except MemoryError as error:
        raise DataError("there is not enough memory to decode one of the images; free some and run again") from error
    transparent = sum(count for _, count, _ in journal.done.values())
    named = [[row, plan.names[row], reason] for row, reason in broken]
    return {**plan.about, "broken": named, "transparent": transparent}


def refusal(broken: Sequence[tuple[str, str]], total: int, mend: str | None = None) -> str:
    """What to say of images, as (name, reason), of which none must be broken; ``mend`` is the way out."""
    name, reason = broken[0]
    more = f", and {len(broken) - 1} more of {total} images are broken" if len(broken) > 1 else ""
    usual = (
        f"replace or remove {'them' if more else 'it'}, or pass -o dataset.skip_broken=true to leave out what cannot "
        "be read"
    )
    if reason.endswith(UNSEEN):
        usual = "pass another -o dataset.ground (drop shows the colours below the transparency)"
    return f"{shown(name)} {reason}{more}; {mend or usual}"


def _odd_size(like: str, shape: Sequence[int], name: str, other: Sequence[int]) -> str:
    """What to say of an image ``name`` of another shape (c, h, w) than that of the image ``like``."""
    return (
        f"the images have several sizes: {shown(like)} is {shape[2]}x{shape[1]}, but {shown(name)} is "
        f"{other[2]}x{other[1]}; pass -o dataset.size={min(shape[1:])} to resize all"
    )


def _chunks(plan: Plan, order: Sequence[int]) -> Iterator[list[int]]:
    """Rows of images that are decoded together, in the order in which they are read."""
    chunk: list[int] = []
    size = 0
    for row in order:
        more = plan.files.size(plan.names[row])
        if len(chunk) == CHUNK or (chunk and size + more > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += more
    if chunk:
        yield chunk


def _guess(plan: Plan, order: Sequence[int]) -> dict[str, Any]:
    """What the first image that can be decoded tells of all: their shape (c, h, w), and whether they seem grey."""
    names = [plan.names[row] for row in order]
    fixed = None if plan.channels == "auto" else int(plan.channels)
    if fixed is not None and plan.size is not None:
        return {"shape": [fixed, plan.size, plan.size], "grey": False, "like": names[0]}
    faults = []
    with strictly():
        for name, place in zip(names, plan.files.places(names), strict=True):
            try:
                shape = decode(fetch(place), fixed, plan.size, ground=plan.ground).pixels.shape
            except Broken as error:
                faults.append((name, str(error)))
                continue
            return {"shape": list(shape), "grey": fixed is None and shape[0] == 1, "like": name}
    raise DataError(refusal(faults, len(faults), plan.mend))


def _fill(plan: Plan, chunks: list[list[int]], journal: _Journal) -> None:
    """Decode the chunks that are not done, and those that had faults, which may be mended by now."""
    pending = [number for number in range(len(chunks)) if number not in journal.done or journal.done[number][0]]
    total = len(plan.names)
    done = total - sum(len(chunks[number]) for number in pending)
    began, before = time.monotonic(), done
    report("decoding", done, total)
    processes = min(workers.cores(), max(1, len(pending) // WORTH_A_PROCESS))
    with closing(workers.fill(journal.target(plan), _items(plan, chunks, pending), processes)) as results:
        for number, what in results:
            journal.add(number, what)
            done += len(chunks[number])
            rate = (done - before) / max(time.monotonic() - began, 1e-9)
            report("decoding", done, total, **{"images/s": round(rate)})


def _items(plan: Plan, chunks: list[list[int]], pending: list[int]) -> Iterator[Chunk]:
    places = plan.files.places([plan.names[row] for number in pending for row in chunks[number]])
    for number in pending:
        yield number, [(row, plan.names[row], next(places)) for row in chunks[number]]


class _Journal:
    """What is done: a first line with the array's shape, then one for each chunk; the last of a chunk counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pixels = folder / "pixels.part"
        self.path = folder / "journal"
        self.start: dict[str, Any] | None = None
        self.done: dict[int, Done] = {}

    @property
    def begun(self) -> dict[str, Any]:
        assert self.start is not None
        return self.start

    def target(self, plan: Plan) -> Target:
        start = self.begun
        shape = tuple(start["shape"])
        return Target(str(self.pixels), start["offset"], shape, plan.size, start["grey"], plan.stretch, plan.ground)

    def open(self, plan: Plan, chunks: list[list[int]]) -> None:
        """Read what an earlier call has left, if it had the same to do, and check its pixels."""
        start, done = _lines(self.path)
        if start is None or start["work"] != _work(plan, chunks):
            return
        if not self.pixels.exists() and (self.folder / "pixels.npy").exists():
            (self.folder / "pixels.npy").replace(self.pixels)  # it was stopped between the last two steps
        if not self.pixels.exists() or self.pixels.stat().st_size != start["bytes"]:
            return
        self.start = start
        with self.pixels.open("r+b") as stream:
            stream.write(_header((len(plan.names), *start["shape"])))
        self.done = {number: what for number, what in done.items() if self._holds(plan, chunks[number], what)}
        if changed := len(done) - len(self.done):
            note(f"{changed} of {len(done)} parts of {self.folder} have changed on the disk; they are decoded again")
        lines = [_line(start), *(_line(list(entry)) for entry in self.done.items())]  # without the torn one
        cache.atomic_write(self.path, "".join(lines).encode())

    def _holds(self, plan: Plan, rows: list[int], what: Done) -> bool:
        """Whether the rows of a chunk that could be decoded are on the disk as they were written."""
        faulty = {row for row, _ in what[0]}
        return workers.content(self.target(plan), [row for row in rows if row not in faulty]) == what[2]

    def begin(self, guess: dict[str, Any], plan: Plan, chunks: list[list[int]]) -> None:
        """Make room for all images, and forget what was done."""
        self.discard()
        (self.folder / "pixels.npy").unlink(missing_ok=True)
        offset, size = _reserve(self.pixels, (len(plan.names), *guess["shape"]))
        self.start = {**guess, "offset": offset, "bytes": size, "origin": plan.origin, "work": _work(plan, chunks)}
        self.done = {}
        self.path.write_text(_line(self.start), encoding="utf-8")

    def add(self, number: int, what: Done) -> None:
        self.done[number] = what
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line([number, what]))
            stream.flush()
            os.fsync(stream.fileno())

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.pixels.unlink(missing_ok=True)


def _work(plan: Plan, chunks: list[list[int]]) -> str:
    looks = [plan.channels, plan.size, plan.stretch, plan.ground]
    return cache.digest([3, list(plan.names), looks, CHUNK, CHUNK_BYTES, len(chunks)])


def _line(value: Any) -> str:
    """JSON that tells whether it is as it was written: a damaged number may be as good a number."""
    return f"{cache.canonical(value)} {cache.digest(value)[:16]}\n"


def _lines(path: Path) -> tuple[dict[str, Any] | None, dict[int, Done]]:
    """The journal up to a line that was not written whole, or is damaged."""
    found: list[Any] = []
    with suppress(Broken, ValueError):
        for line in read(path).decode().splitlines():
            text, _, seal = line.rpartition(" ")
            if cache.digest(text.encode())[:16] != seal:
                break
            found.append(json.loads(text))
    return (found[0], dict(found[1:])) if found else (None, {})


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _reserve(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """A file of zeros for an array of ``shape`` that has its room on the disk; where it begins, and the file's size."""
    with path.open("wb") as stream:
        offset = stream.write(_header(shape))
        stream.flush()
        size = offset + int(np.prod(shape))
        free = shutil.disk_usage(path.parent).free
        if size > free:
            path.unlink()
            raise DataError(
                f"decoding {shape[0]} images needs {size / 1e9:.3g} GB in {path.parent.parent}, where only "
                f"{free / 1e9:.3g} GB are free; free some space, or let DDBENCH_HOME name a folder on another disk"
            )
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                path.unlink()
                raise
            stream.truncate(size)
    return offset, size


def _discard_others(folder: Path, origin: Any) -> None:
    """Remove what stopped attempts at the same images left, which have changed since, so it will never be used."""
    for path in folder.parent.glob("*/journal"):
        start, _ = _lines(path)
        if path.parent == folder or start is None or start["origin"] != json.loads(cache.canonical(origin)):
            continue
        with suppress(DDBenchError), cache.lock(path.parent / "lock", wait=False):  # unless somebody is at it
            _Journal(path.parent).discard()
