"""The one way to open a file for reading, and the one way to write into the middle of one.

What is read may come from anybody: only regular files are opened (a pipe or a device would be waited for, or never
end), texts have a bound and are UTF-8, JSON and TOML have a depth. What is written in place (locks, logs, records that
grow) never goes through a link, which whoever prepared the folder could point at a file of its reader. Files that are
written whole go through ``cache.atomic_file``, which replaces a link and not what it points at.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, NoReturn

from ddbench.errors import DataError

TEXT_BYTES = 64_000_000  # of a text file; the largest record on file has 0.2 MB
DEEPEST = 64  # levels of a JSON or TOML document; ours have at most a dozen
GUARDS: list[Callable[[Path], None]] = []  # of the locks that this process holds: raise where it may not store a file
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def require_regular(path: Path) -> os.stat_result:
    """The status of a regular file, for libraries that open paths themselves. Raises DataError for anything else."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}, not a regular file")
    return found


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A regular file opened for reading bytes; never waits. Raises DataError where it cannot be opened."""
    try:
        # O_NONBLOCK: a pipe that takes the file's place must not be waited for
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:  # a folder can be opened, too
        os.close(handle)
        raise DataError(f"{path} is {_KINDS.get(kind, 'no file')}, not a regular file")
    with os.fdopen(handle, "rb") as stream:
        yield stream


def read_bytes(path: Path, limit: int = TEXT_BYTES) -> bytes:
    """All bytes of a regular file of at most ``limit`` bytes."""
    try:
        with reading(path) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    if len(data) > limit:
        raise DataError(f"{path} has more than the {limit:,} bytes that such a file may have")
    return data


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """The UTF-8 text of a regular file of at most ``limit`` bytes."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it, at most ``DEEPEST`` levels deep. Raises ValueError with the reason otherwise."""
    try:
        held = json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from error
    _require_shallow(held)
    return held


def parse_toml(text: str) -> dict[str, Any]:
    """TOML, at most ``DEEPEST`` levels deep. Raises ValueError with the reason otherwise."""
    try:
        held = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from error
    _require_shallow(held)
    return held


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _require_shallow(held: Any) -> None:
    level = [held] if isinstance(held, (dict, list)) else []
    for _ in range(DEEPEST):
        parts = (part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole))
        level = [part for part in parts if isinstance(part, (dict, list))]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} levels deep")


def may_store(path: Path) -> None:
    """Raise if a lock that this process holds no longer covers ``path``; called before it is written or renamed."""
    for guard in GUARDS:
        guard(path)


@contextmanager
def in_place(path: Path, mode: str, within: Path | None = None) -> Iterator[IO[Any]]:
    """A regular file opened for writing as it lies (``ab``, ``a+``, ``r+b``, ``wb``), made where it is not there.

    Neither it nor a folder between it and ``within`` may be a link. Raises DataError otherwise, with the way out.
    """
    may_store(path)
    refuse_links(path, within)
    flags = {"a": os.O_APPEND | os.O_CREAT, "r": 0, "w": os.O_CREAT | os.O_TRUNC}[mode[0]]
    flags |= os.O_RDWR if "+" in mode else os.O_WRONLY
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        stream = os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        refuse_links(path, within)
        raise DataError(f"cannot write {path}: {_reason(error)}; free some space or choose another folder") from error
    with stream:
        kind = stat.S_IFMT(os.fstat(stream.fileno()).st_mode)
        if kind != stat.S_IFREG:
            raise DataError(f"{path} is {_KINDS.get(kind, 'no file')}, and is not written to; delete it")
        yield stream


def refuse_links(path: Path, within: Path | None = None) -> None:
    """Refuse a path that is a link, or leads through one below ``within`` (its own folder if None)."""
    root = path.parent if within is None else within
    if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
        raise DataError(f"{path} is not inside {root}, and is not written to")
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            raise DataError(f"{part} is a link, and what it points at is not written to; delete the link")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return (isinstance(error, OSError) and error.strerror) or str(error)
