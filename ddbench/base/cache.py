"""Bytes on disk that can be trusted: atomic writes, content addresses, locks.

Derived data (experts, taught networks, decoded datasets) live under ``DDBENCH_HOME`` by the digest of
everything that decides them. Deleting any of it costs time, never results.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.base.locks import lock as lock  # plugins import it from here
from ddbench.base.opening import TEXT_BYTES, may_store, parse_json, read_text, reading
from ddbench.base.progress import note
from ddbench.errors import DamagedError, DataError, UsageError

SET_ASIDE = ".before-"  # and when, in the name of what something else was made in place of
SEAL = "seal"  # the name of a JSON record's own digest in it


def home() -> Path:
    """The cache folder: ``DDBENCH_HOME``, or the platform's. Raises UsageError where there is no such folder."""
    if folder := os.environ.get("DDBENCH_HOME"):
        return _expanded("DDBENCH_HOME", folder)
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("ddbench"))
    except RuntimeError as error:  # neither HOME nor an entry for this user
        raise UsageError("this user has no home folder to keep a cache in; set DDBENCH_HOME to a folder") from error


def data_home() -> Path:
    """Where downloaded datasets live: ``DDBENCH_DATA``, or ``data`` in the cache folder."""
    folder = os.environ.get("DDBENCH_DATA")
    return _expanded("DDBENCH_DATA", folder) if folder else home() / "data"


def _expanded(what: str, folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:  # a user that the system does not know, or that has no home
        raise UsageError(
            f"{what} is {folder}, and this system knows no home folder for that; set it to a whole path"
        ) from error


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Refuses NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of bytes, or of the canonical JSON of anything else."""
    raw = value if isinstance(value, (bytes, bytearray, memoryview)) else canonical(value).encode()
    return hashlib.sha256(raw).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file, read in blocks."""
    with reading(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old bytes or all of the new ones."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file to fill, which becomes ``path`` when the block ends without an error.

    It lies in the same folder; then fsync, rename, fsync of the folder. The mode follows the umask
    (temporary files are otherwise private). What writers that were killed left of the same file is removed. Raises
    DataError when the disk refuses.
    """
    may_store(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        handle, temporary = _temporary(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        with temporary.open("rb") as filled:  # which may be another file than was made, if a library put it there
            os.fsync(filled.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        may_store(path)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        may_store(path)  # which says it better where the folder of a lock is gone
        raise DataError(f"cannot write {path}: {error.strerror}; free some space and run again") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, open, and locked: so that nobody takes it for one whose writer was killed."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # not swept before it was locked
            return handle, Path(name)
        os.close(handle)


def claimed(temporary: Path) -> int | None:
    """Lock a file that a library put in the place of a temporary one: an open handle, None if it was swept before."""
    with suppress(FileNotFoundError):
        handle = os.open(temporary, os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)
    return None


_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


def set_aside(path: Path) -> Path:
    """Rename a file or a folder so that another can be made in its place, and nothing is lost; returns where it is."""
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    return path.rename(path.with_name(f"{path.name}{SET_ASIDE}{moment}"))


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed writers left in a folder of ours: of the file ``name``, or of all."""
    with suppress(OSError):  # of a folder that is not there, or may not be changed
        for found in os.scandir(folder):
            match = _TEMPORARY.fullmatch(found.name)
            if match and (name is None or match[1] == name[:80]) and found.is_file(follow_symlinks=False):
                _remove_orphan(Path(found.path))


def _remove_orphan(path: Path) -> None:
    with suppress(OSError):  # BlockingIOError: its writer is at it
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write readable JSON atomically; NaN is refused, because JSON has none.

    ``sealed`` adds a digest of the record (a dictionary), which :func:`read_json` compares and takes away.
    """
    if sealed:
        value = {**value, SEAL: _seal(value)}
    atomic_write(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, limit: int = TEXT_BYTES) -> Any:
    """Read JSON, or raise a DataError that names the file: a DamagedError for what is not what was sealed."""
    try:
        held = parse_json(read_text(path, limit))
    except ValueError as error:
        raise DamagedError(f"{path} is not readable JSON ({error}); delete it to have it made again") from error
    if isinstance(held, dict) and SEAL in held and held.pop(SEAL) != _seal(held):
        raise DamagedError(
            f"{path} is damaged: it was edited, or a bit flipped, since it was written; delete it to have it made again"
        )
    return held


def _seal(record: dict[str, Any]) -> str:
    return digest(json.loads(json.dumps(record)))  # as it is read back: tuples are lists, and all names are text


_thorough: ContextVar[bool] = ContextVar("ddbench_thorough", default=False)


def thorough() -> bool:
    """Whether whoever asks for data wants their digests checked, however long it takes."""
    return _thorough.get()


@contextmanager
def thoroughly() -> Iterator[None]:
    """Inside the block, data are checked against their digests even where a process would trust them."""
    token = _thorough.set(True)
    try:
        yield
    finally:
        _thorough.reset(token)


@dataclass(frozen=True)
class Cache:
    """Content-addressed files: ``cache.path("experts", {...}, "0003.safetensors")``."""

    root: Path

    def folder(self, kind: str, identity: Any) -> Path:
        """The folder for everything that ``identity`` (JSON) decides; ``identity.json`` tells what it was."""
        folder = self.root / kind / digest(identity)[:20]
        about = folder / "identity.json"
        if not about.exists() or (folder not in _looked_at and not _tells(about, identity)):
            write_json(about, identity)
        if folder not in _looked_at:
            sweep(folder)
            _looked_at.add(folder)
        return folder


_looked_at: set[Path] = set()  # by this process: folders of caches


def _tells(path: Path, identity: Any) -> bool:
    """Whether ``identity.json`` is what its folder is named after."""
    with suppress(DataError):
        if digest(read_json(path)) == digest(identity):
            return True
    note(f"{path} is damaged; it is made again")
    return False
