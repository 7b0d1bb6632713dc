"""A folder or a zip as a list of names and a function that reads one: zips are never extracted."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from ddbench import DataError, UsageError, cache

LARGEST = 100_000_000  # bytes of one image file; a larger one is a mistake or a bomb
PARTS = ("train", "test")


class Files(Protocol):
    """Names relative to the root with ``/`` between parts, those of folders ending in ``/``; and their bytes.

    ``read`` may be called from several threads.
    """

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...


def find(root: str) -> Path:
    """The absolute path of a folder or zip, or an error that tells how to give one."""
    if not root:
        raise UsageError("the dataset 'images' needs to know where they are; pass -o dataset.root=FOLDER_OR_ZIP")
    path = Path(root).expanduser().resolve()
    if not path.exists():
        raise DataError(f"there is no folder or zip {path}; pass -o dataset.root=FOLDER_OR_ZIP with one that exists")
    if not path.is_dir() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is neither a folder nor a readable zip; pass -o dataset.root=FOLDER_OR_ZIP")
    return path


def identity(root: Path) -> Any:
    """JSON that changes whenever the content may have: a zip's sha256, or names, sizes and times of a folder."""
    if not root.is_dir():
        return {"sha256": cache.file_digest(root)}
    entries = [[name, *_stamp(root, name)] for name in sorted(Folder(root).names())]
    return {"entries": cache.digest(entries)}


def _stamp(root: Path, name: str) -> list[int]:
    """Size and times of a file; nothing of a folder, nor of a dangling link, which only matters once read."""
    if name.endswith("/") or not (root / name).exists():
        return []
    status = (root / name).stat()
    # ctime too: unpacking an archive restores sizes and mtimes, but cannot restore ctimes
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@contextmanager
def opened(root: Path) -> Iterator[Files]:
    """The files of a folder or zip."""
    if root.is_dir():
        yield Folder(root)
        return
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise DataError(f"{root} is a damaged zip ({error}); get it again") from error
    with archive:
        yield Zip(archive)


class Folder:
    """Files below a folder. Only ``train`` and ``test``, here or one level down, are searched."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        found = []
        for at, folders, files in os.walk(self._root, followlinks=True, onerror=_unreadable):
            inner = Path(at).relative_to(self._root).parts
            found += ["/".join((*inner, name)) + "/" for name in folders]
            found += ["/".join((*inner, name)) for name in files]
            folders[:] = _worth_searching(inner, folders)
        return found

    def read(self, name: str) -> bytes:
        path = self._root / name
        _refuse_large(name, path.stat().st_size)
        return path.read_bytes()


class Zip:
    """Members of a zip, read into memory."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members = {member.filename.replace("\\", "/"): member for member in archive.infolist()}
        self._lock = Lock()

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
        member = self._members[name]
        # the declared size is a bound: zipfile stops there whatever the compressed stream holds
        _refuse_large(name, member.file_size)
        with self._lock:  # one file position for all threads
            return self._archive.read(member)


def _worth_searching(inner: tuple[str, ...], folders: list[str]) -> list[str]:
    """Which ``folders`` of ``inner`` to enter, so that a root given by mistake is not walked whole."""
    visible = [name for name in folders if not name.startswith(".")]
    if any(part in PARTS for part in inner[:2]):
        return visible
    parts = [name for name in visible if name in PARTS]
    return parts or (visible if not inner else [])


def _refuse_large(name: str, size: int) -> None:
    if size > LARGEST:
        raise DataError(f"{name} has {size / 1e6:.0f} MB, but an image may have {LARGEST / 1e6:.0f}; remove it")


def _unreadable(error: OSError) -> None:
    raise DataError(f"cannot look into {error.filename} ({error.strerror}); allow reading it") from error
