"""Getting files through torchvision, which downloads and checks them: one process at a time, and refusals that help."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

from ddbench import DataError, DDBenchError
from ddbench.base import cache

T = TypeVar("T")
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Files:
    """What torchvision downloads, and what it unpacks that to: paths below the folder ``base`` of the data folder.

    A file that is read as it is unpacks to nothing.
    """

    title: str
    archives: Mapping[str, tuple[str, ...]]
    base: str = ""

    @property
    def folder(self) -> Path:
        return cache.data_home() / self.base

    def absent(self) -> list[str]:
        """The archives of which neither they nor all that they hold is there; names are looked at, no bytes."""
        return [name for name in self.packed() if not (self.folder / name).exists()]

    def packed(self) -> list[str]:
        """The archives that torchvision has to look at, because what they hold is not all there."""
        return [a for a, held in self.archives.items() if not held or not all((self.folder / h).exists() for h in held)]

    def unpacked(self) -> list[str]:
        """What is there of what the archives hold."""
        return [name for held in self.archives.values() for name in held if (self.folder / name).exists()]

    def missing(self) -> str | None:
        """One sentence about what has to be downloaded; None when nothing has."""
        absent = self.absent()
        return f"{self.title} is not in {self.folder}; torchvision would download {_and(absent)}" if absent else None


class Source(Protocol):
    """A dataset source with files of torchvision's."""

    @property
    def name(self) -> str: ...
    @property
    def files(self) -> Files: ...


def get(source: Source, read: Callable[[ModuleType, str], T]) -> T:
    """What ``read(torchvision.datasets, folder)`` gives, which may download; a DataError tells what mends a failure."""
    # torchvision's download is not safe against a second process; and stdout belongs to the caller
    with cache.lock(cache.home() / "datasets" / f"{source.name}.lock"), contextlib.redirect_stdout(sys.stderr):
        if odd := _odd(source.files):
            raise DataError(f"{odd} is a pipe or a device, and no file of {source.files.title}; remove it")
        try:
            from torchvision import datasets

            return read(datasets, str(cache.data_home()))
        except (DDBenchError, MemoryError):
            raise
        except Exception as error:  # the network, archives, pickles and images raise a dozen types
            raise _refusal(source.name, source.files, error) from error


def _odd(files: Files) -> Path | None:
    """The first of the files that is there and neither a file nor a folder: opening it might wait for ever."""
    names = [name for archive, held in files.archives.items() for name in (archive, *held)]
    there = (files.folder / name for name in names)
    return next((path for path in there if path.exists() and not path.is_file() and not path.is_dir()), None)


def _refusal(name: str, files: Files, error: Exception) -> DataError:
    if isinstance(error, ImportError):
        return DataError(f"{files.title} cannot be read without a package ({error}); install it and run again")
    if isinstance(error, OSError) and error.errno in DISK:
        return DataError(
            f"{files.title} can be neither read nor written in {files.folder} ({error.strerror}); mend that, or set "
            "DDBENCH_DATA to another folder"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    again = f"or run `ddbench prepare {name}` where there is a network and copy that folder"
    if absent := files.absent():
        return DataError(
            f"{files.title} is not in {files.folder} and torchvision could not get it ({reason}); put {_and(absent)} "
            f"in that folder, {again}"
        )
    packed = files.packed()
    wrong, needed = (packed, packed) if packed else (files.unpacked(), list(files.archives))
    return DataError(
        f"{files.title} in {files.folder} is incomplete or damaged ({reason}); delete {_and(wrong)} there and put "
        f"{_and(needed)} in that folder, {again}"
    )


def _and(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
