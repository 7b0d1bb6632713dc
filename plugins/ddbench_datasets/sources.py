"""A folder, zip or tar as a list of names, and where the bytes of each are: archives are never extracted."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ddbench import DataError, UsageError
from ddbench.base import cache
from ddbench.data.pictures import SUFFIXES, Broken, is_of_tools, is_picture, read
from ddbench_datasets.archives import Tar, Zip, explained, is_tar
from ddbench_datasets.left import Count
from ddbench_datasets.places import Place, shown

VALIDATION = ("val", "valid", "validation", "dev")  # to select on; the test part where there is no other
PARTS: tuple[str, ...] = ("train", "test", *VALIDATION)
DIVIDED = ("train", "test")  # without either, the folders are classes
TEXT = 100_000_000  # bytes of a file of text
COUNTED = 200_000  # entries of a folder that is left out: a root given by mistake is not walked whole
GIVE = "pass -o dataset.root=FOLDER_OR_ARCHIVE"

Enter = Callable[[tuple[str, ...], list[str]], list[str]]  # which of the folders in a folder to search


class Files(Protocol):
    """Names relative to the root with ``/`` between parts, those of folders ending in ``/``; and where they are.

    ``ignored`` are links and devices, which may hide an image. ``order`` sorts names so that reading is sequential;
    ``places`` wants them in this order.
    """

    ignored: list[str]

    def names(self) -> list[str]: ...
    def identity(self) -> Any: ...
    def size(self, name: str) -> int: ...
    def order(self, names: Sequence[str]) -> list[int]: ...
    def places(self, names: Sequence[str]) -> Iterator[Place]: ...


def find(root: str) -> Path:
    """The absolute path of a folder or archive, or an error that tells how to give one."""
    if not root:
        raise UsageError(f"the dataset 'images' needs to know where they are; {GIVE}")
    path = printable(Path(root).expanduser().resolve())
    if not path.exists():
        raise DataError(f"there is no folder, zip or tar {path}; {GIVE} with one that exists")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path} is a pipe or a device, and neither a folder nor a file; {GIVE}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read; allow it, or {GIVE} with one that may")
    if not path.is_dir() and not is_tar(path) and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is neither a folder nor a readable zip or tar; {GIVE}")
    return path


def printable(path: Path) -> Path:
    """The path, or an error for one that no report could show."""
    if str(path).isprintable():
        return path
    raise DataError(f"the path {shown(str(path))} has characters that cannot be printed; rename it")


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def text(path: Path, advice: str, errors: str = "strict") -> str:
    """The UTF-8 text of a plain file. Raises DataError, which ends with the ``advice``, for anything else."""
    try:
        return read(path, TEXT).decode("utf-8-sig", errors)
    except (Broken, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} {error if isinstance(error, Broken) else 'cannot be read as UTF-8 text'}; {advice}"
        ) from error


def identity(root: Path) -> Any:
    """JSON that changes whenever the images may have: an archive's sha256; names, sizes and times in a folder."""
    return opened(root).identity()


def opened(root: Path) -> Files:
    """The files of a folder, zip or tar."""
    if root.is_dir():
        return Folder(root)
    kind = Tar if is_tar(root) else Zip
    with explained(root):
        return kind(root)


class Folder:
    """Files below a folder, listed once; ``enter`` decides which folders are searched.

    Each file's status is asked for once. Its size and times stand for its content; with ``times=False`` the size
    alone does, so that data that are never changed keep their identity when they are copied.
    """

    def __init__(self, root: Path, enter: Enter | None = None, *, times: bool = True) -> None:
        self.ignored: list[str] = []
        self._root = root
        self._enter = enter or self._worth_searching
        self._times = times
        self._folders: list[str] = []
        self._stamps: dict[str, tuple[int, ...]] = {}
        self.searched: dict[str, list[int]] = {}  # the folders that were looked into, as they were before
        waiting: list[tuple[tuple[str, ...], frozenset[str]]] = [((), frozenset({os.path.realpath(root)}))]
        while waiting:
            waiting += self._search(*waiting.pop())

    def names(self) -> list[str]:
        return [*self._folders, *self._stamps]

    def identity(self) -> Any:
        """Of the images and folders: what else lies there decides nothing."""
        images = ([name, *stamp] for name, stamp in self._stamps.items() if is_image(name))
        entries = sorted([*images, *([name] for name in self._folders)])
        return {"entries": cache.digest(entries)}

    def size(self, name: str) -> int:
        return self._stamps[name][0] if self._stamps[name] else 0

    def order(self, names: Sequence[str]) -> list[int]:
        return list(range(len(names)))

    def places(self, names: Sequence[str]) -> Iterator[Place]:
        return (Place(f"{self._root}/{name}") for name in names)

    def count(self, name: str) -> Count:
        """What is in a folder, and in the folders in it, of which at most ``COUNTED`` entries are looked at."""
        images = others = 0
        for _, folders, files in os.walk(self._root / name):
            folders[:] = [folder for folder in folders if not is_of_tools(folder)]
            held = sum(map(is_picture, files))
            images, others = images + held, others + len(files) - held
            if images + others >= COUNTED:
                return Count(images, others, more=True)
        return Count(images, others)

    def _search(
        self, inner: tuple[str, ...], above: frozenset[str]
    ) -> Iterator[tuple[tuple[str, ...], frozenset[str]]]:
        """List the folder ``inner``; then the folders in it to search, and the real paths of those they lie in.

        A folder that lies in itself, by a link, is not searched.
        """
        folders = []
        try:
            self.searched["/".join(inner)] = stamp_of(self._root.joinpath(*inner))
            with os.scandir(self._root.joinpath(*inner)) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        self._stamps["/".join((*inner, entry.name))] = self._stamp(entry)
        except OSError as error:
            raise DataError(f"cannot look into {error.filename} ({error.strerror}); allow reading it") from error
        self._folders += ["/".join((*inner, name)) + "/" for name in folders]
        for name in self._enter(inner, folders):
            real = os.path.realpath(self._root.joinpath(*inner, name))
            if real not in above:
                yield (*inner, name), above | {real}

    def _worth_searching(self, inner: tuple[str, ...], folders: list[str]) -> list[str]:
        """Which ``folders`` of ``inner`` to enter, so that a root given by mistake is not walked whole.

        All of ``train``, ``test`` and the like, here or one level down; without them, two levels. A folder ``train``
        without folders is a class. Hidden folders are entered where classes may lie.
        """
        in_part = any(part in PARTS for part in inner[:2])
        hidden = not inner or inner[-1] in PARTS or (len(inner) == 1 and not in_part)
        visible = [name for name in folders if not is_of_tools(name) and (hidden or not name.startswith("."))]
        if in_part:
            return visible
        if any(name in DIVIDED and self._has_folders(*inner, name) for name in visible):
            return [name for name in visible if name in PARTS]
        return visible if len(inner) < 2 else []

    def _has_folders(self, *inner: str) -> bool:
        try:
            with os.scandir(self._root.joinpath(*inner)) as entries:
                return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
        except OSError:
            return True  # listing it will say why

    def _stamp(self, entry: os.DirEntry[str]) -> tuple[int, ...]:
        """Nothing for a dangling link, which only matters once it is read."""
        try:
            status = entry.stat()
        except OSError:
            return ()
        if not self._times or not stat.S_ISREG(status.st_mode):
            return (status.st_size,)
        # ctime too: unpacking an archive restores sizes and mtimes, but cannot restore ctimes
        return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamp_of(folder: Path) -> list[int]:
    """What changes when a name in a folder does: its number and times."""
    status = folder.stat()
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


@dataclass
class Given:
    """Images by name that others have listed, in the order in which they are read.

    ``place`` finds one; ``bytes_each`` is about its size.
    """

    listed: Sequence[str]
    place: Callable[[str], Place]
    bytes_each: int = 0
    ignored: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return list(self.listed)

    def identity(self) -> Any:
        return None

    def size(self, name: str) -> int:
        return self.bytes_each

    def order(self, names: Sequence[str]) -> list[int]:
        return list(range(len(names)))

    def places(self, names: Sequence[str]) -> Iterator[Place]:
        return (self.place(name) for name in names)


def checked_name(name: str, root: str) -> str:
    """The name of a class, or an error for one that no report could show."""
    if name.isprintable():
        return name
    raise DataError(f"a class of {root} has a name that cannot be printed, {shown(name)}; rename it")
