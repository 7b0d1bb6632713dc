"""Places that are no folders of this machine: object storage and the like, by URL, read through fsspec.

A prepared store (``pixels.npy`` and ``about.json``, as ``ddbench prepare`` leaves them in a folder of
``DDBENCH_HOME/datasets``) is copied to this machine once; what was copied before it was interrupted is kept.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ddbench import DataError, report
from ddbench.base import cache
from ddbench_datasets import store
from ddbench_datasets.store import Made

ABOUT, PIXELS = "about.json", "pixels.npy"
BLOCK = 2**24  # bytes that are read at a time


def is_url(root: str) -> bool:
    """Whether a root names a place elsewhere: ``s3://bucket/folder``, ``memory://set``, ``file:///mnt/set``."""
    return "://" in root


class Remote:
    """A folder by its URL. Raises DataError for one that cannot be read, or for which a package is missing."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise DataError(
                f"reading {url} needs a package that is not installed ({error}); pip install 'ddbench[remote]' brings "
                "fsspec with s3fs, other kinds of storage have theirs (gcsfs, adlfs)"
            ) from error
        except ValueError as error:
            raise DataError(f"{url} is no place that fsspec knows ({error}); give another dataset.root") from error

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except (DataError, EOFError, ValueError, tarfile.TarError):  # of what is in a file, for whoever reads it
            raise
        except Exception as error:  # every kind of storage raises its own
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{self.url} cannot be read ({said}); check it, and run again to go on") from error

    def names(self) -> dict[str, int]:
        """The files there, and their sizes."""
        with self._saying():
            found = self._system.ls(self._root, detail=True)
            return {f["name"].rpartition("/")[2]: int(f["size"] or 0) for f in found if f["type"] == "file"}

    @contextmanager
    def open(self, name: str, first: int = 0) -> Iterator[IO[bytes]]:
        """The bytes of a file from ``first`` on."""
        with self._saying(), self._system.open(f"{self._root}/{name}", "rb") as stream:
            if first:
                stream.seek(first)
            yield stream

    def text(self, name: str) -> str:
        """A text file."""
        with self.open(name) as stream, self._saying():
            return stream.read(store.ABOUT_BYTES).decode()


def copied(remote: Remote) -> Made:
    """The store at a URL, as it is on this machine from the first time on."""
    try:
        about = json.loads(remote.text(ABOUT))
        identity, content, size = about["identity"], about["content"], remote.names()[PIXELS]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{remote.url} holds no prepared images ({error!r}); copy a whole folder of them there"
        ) from error

    def write(folder: Path) -> dict[str, Any]:
        _copy(remote, folder, size)
        return {name: value for name, value in about.items() if name not in store.MEASURED}

    made = store.brought(identity, write)
    if made[1]["content"] != content:
        shutil.rmtree(store.place(identity))
        raise DataError(f"what came from {remote.url} has another sha256 than it says; run again to copy it anew")
    return made


def _copy(remote: Remote, folder: Path, size: int) -> None:
    """Stream the pixels to ``folder``, and go on where an earlier call was stopped."""
    part = folder / f"{PIXELS}.part"
    begun = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(folder).free
    if size - begun > free:
        raise DataError(
            f"{remote.url} takes {size / 1e9:.3g} GB in {cache.home()}, where {free / 1e9:.3g} GB are free; free some "
            "space, or let DDBENCH_HOME name a folder on another disk"
        )
    with remote.open(PIXELS, begun) as source, part.open("ab") as target:
        while block := source.read(BLOCK):
            target.write(block)
            begun += len(block)
            report("copying", begun, max(size, begun))
    part.replace(folder / PIXELS)
