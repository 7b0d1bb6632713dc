"""The distilled sets of entries: files named by their sha256, in a folder or on the web, never in the repository."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from ddbench.base.cache import atomic_file, file_digest, home
from ddbench.base.tensors import content_digest
from ddbench.boards.entry import Entry, EntryRun, shown
from ddbench.boards.verification import StoredSet
from ddbench.errors import DataError, UsageError
from ddbench.grade.distilled import Distilled

HERE = Path("sets")
MOST = 4_000_000_000  # bytes of a set; 50 images per class of ImageNet-1K at 64x64 are 2.5 GB
BLOCK = 1 << 20
SECONDS = 60.0  # without an answer of a server
_URL = re.compile(r"https://[^\s\"'<>`\\…]{1,500}")


def require_url(text: str | None) -> str:
    """The address as it is, or nothing. Raises UsageError for another."""
    if text and not _URL.fullmatch(text):
        raise UsageError(f"sets lie at a web address that begins with https://, not at {shown(text)!r}")
    return (text or "").rstrip("/")


def file_of(stored: StoredSet) -> str:
    """The name of a set's file."""
    return f"{stored.sha256}.safetensors"


def keep(folders: Sequence[tuple[Path, EntryRun]], to: Path) -> None:
    """Copy the sets of finished runs to a folder, each under the name of its sha256."""
    for folder, run in folders:
        if run.stored is None or (place := to / file_of(run.stored)).exists():
            continue
        with atomic_file(place) as temporary:
            shutil.copyfile(folder / "distilled.safetensors", temporary)


def opened(entry: Entry, run: EntryRun, folder: Path | None) -> Distilled:
    """The set of a run of an entry. Raises DataError for one that is missing, or another than the entry records."""
    whose = f"the set of seed {run.seed} of {entry.name}"
    if run.stored is None:
        raise DataError(f"{entry.file} names no file for {whose}: it was submitted without; submit the runs again")
    path = _found(entry, run.stored, folder, whose)
    size = path.stat().st_size
    if size != run.stored.bytes or file_digest(path) != run.stored.sha256:
        raise DataError(
            f"{path} is not {whose}: it was changed or is not whole ({size:,} of {run.stored.bytes:,} bytes, sha256 "
            f"{file_digest(path)[:12]} instead of {run.stored.sha256[:12]}); delete it and get it again"
        )
    made = Distilled.load(path)
    if run.tensors not in (None, content_digest(path)):
        raise DataError(f"{entry.file} contradicts itself: the tensors of {whose} are not those that it records")
    return made


def _found(entry: Entry, stored: StoredSet, folder: Path | None, whose: str) -> Path:
    """Where a set is: in the folder that is named, in ``sets`` here, in the cache, or there once it is downloaded."""
    name, cached = file_of(stored), home() / "sets" / file_of(stored)
    for place in (folder / name,) if folder else (HERE / name, cached):
        if place.exists():
            return place
    if folder is None and entry.sets:
        return _downloaded(f"{require_url(entry.sets)}/{name}", cached, stored, whose)
    where = str(folder or HERE)
    raise DataError(
        f"{whose} is not here: there is no {name} in {where}"
        f"{'' if entry.sets else ', and the entry names no address'}; get it from the author"
        f"{f' ({shown(entry.author)})' if entry.author else ''} and name its folder with --sets"
    )


def _downloaded(url: str, to: Path, stored: StoredSet, whose: str) -> Path:
    """The cached copy of a set from the web; nothing is kept of what is another file than recorded."""
    if stored.bytes > MOST:
        raise DataError(f"{whose} is said to have {stored.bytes:,} bytes, more than any set has; the entry is damaged")
    other = "get the set from the author and name its folder with --sets"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer, atomic_file(to) as temporary:  # noqa: S310  (https)
            with temporary.open("wb") as file:
                left = stored.bytes + 1
                while left and (block := answer.read(min(BLOCK, left))):
                    left -= file.write(block)
            if left != 1 or file_digest(temporary) != stored.sha256:
                raise DataError(f"what lies at {url} is not {whose}: its sha256 or length is another; {other}")
    except (OSError, HTTPException, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{whose} could not be downloaded from {url} ({said}); {other}") from error
    return to
