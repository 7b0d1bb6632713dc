"""Bytes on disk that can be trusted: atomic writes, content addresses, locks.

Derived data (experts, taught networks, decoded datasets) live under ``DDBENCH_HOME`` by the digest of
everything that decides them. Deleting any of it costs time, never results.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ddbench.errors import BusyError, DataError


def home() -> Path:
    """The cache folder: ``DDBENCH_HOME``, or the platform's folder for caches."""
    if folder := os.environ.get("DDBENCH_HOME"):
        return Path(folder).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ddbench"))


def data_home() -> Path:
    """Where downloaded datasets live: ``DDBENCH_DATA``, or ``data`` in the cache folder."""
    return Path(os.environ.get("DDBENCH_DATA") or home() / "data").expanduser()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Refuses NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of bytes, or of the canonical JSON of anything else."""
    raw = value if isinstance(value, (bytes, bytearray, memoryview)) else canonical(value).encode()
    return hashlib.sha256(raw).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old bytes or all of the new ones."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file to fill, which becomes ``path`` when the block ends without an error.

    It lies in the same folder; then fsync, rename, fsync of the folder. The mode follows the umask
    (temporary files are otherwise private). Raises DataError when the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}; free some space and run again") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; NaN is refused, because JSON has none."""
    atomic_write(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON, or raise a DataError that names the file."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON ({error}); delete it to have it made again") from error


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


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold ``path`` for this process; the system releases it even after SIGKILL.

    With ``wait=False`` a held lock raises BusyError at once and says who holds it.
    """
    # flock by itself: the library filelock polls while it waits, and where it would gain a system, on Windows, its
    # lock bars others from reading who holds it
    with _open_lock(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise BusyError(
                f"{path.parent} is being written by {holder}; wait for it, or stop it, and run again"
            ) from error
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()}")
        stream.flush()
        yield


def _open_lock(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise DataError(f"cannot write in {path.parent}: {error.strerror}; choose another folder") from error


@dataclass(frozen=True)
class Cache:
    """Content-addressed files: ``cache.path("experts", {...}, "0003.safetensors")``."""

    root: Path

    def folder(self, kind: str, identity: Any) -> Path:
        """The folder for everything that ``identity`` (JSON) decides; ``identity.json`` tells what it was."""
        folder = self.root / kind / digest(identity)[:20]
        if not (folder / "identity.json").exists():
            write_json(folder / "identity.json", identity)
        return folder
