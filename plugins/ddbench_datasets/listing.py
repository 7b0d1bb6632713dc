"""A folder of a million files, listed once: the next command asks for its folders, and not for each file.

A name that is added, removed or renamed changes the times of its folder. So an earlier listing is believed as long as
every folder that was searched has the times and the number that it had then, none of them so young that a change within
the clock's grain could have been missed, and a sample of the files has the sizes that it had: files that are rewritten
in their place change no folder. ``ddbench prepare``, which wants to be sure, lists all of them again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddbench import DDBenchError
from ddbench.base import cache
from ddbench_datasets.places import Place
from ddbench_datasets.sources import Enter, Folder, is_image, stamp_of

SAMPLE = 1000  # files whose sizes are asked for again
GRAIN = 2_000_000_000  # nanoseconds: no file system's clock is coarser
SHORT = 10_000  # files that are listed faster than an earlier listing is worth


class Listed:
    """A folder whose files have sizes that stand for their content: ``Folder`` with ``times=False``, made when needed.

    ``key`` (JSON) tells which folders ``enter`` searches.
    """

    def __init__(self, root: Path, enter: Enter, key: Any) -> None:
        self.ignored: list[str] = []
        self._root, self._enter = root, enter
        self._path = cache.home() / "listings" / f"{cache.digest([str(root), key])[:20]}.json"
        self._folder: Folder | None = None

    @property
    def _whole(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(self._root, self._enter, times=False)
        return self._folder

    def identity(self) -> Any:
        """That of the folder, from an earlier listing where nothing has changed since."""
        if self._folder is None and not cache.thorough() and (known := self._known()) is not None:
            return known
        began = time.time_ns()
        identity = self._whole.identity()
        self._keep(identity, began)
        return identity

    def _known(self) -> Any:
        with suppress(DDBenchError, OSError, KeyError, TypeError, ValueError):
            held = cache.read_json(self._path)
            same = all(stamp_of(self._root / name) == stamp for name, stamp in held["folders"].items())
            if same and all((self._root / name).stat().st_size == size for name, size in held["sample"].items()):
                return held["identity"]
        return None

    def _keep(self, identity: Any, began: int) -> None:
        files = [name for name in self._whole.names() if is_image(name)]
        if len(files) < SHORT:
            return
        folders = self._whole.searched
        if max(max(stamp[1:]) for stamp in folders.values()) > began - GRAIN:
            return  # something may be at work there
        sample = {name: self._whole.size(name) for name in files[:: -(-len(files) // SAMPLE)]}
        with suppress(DDBenchError):  # it is listed again next time
            cache.write_json(self._path, {"identity": identity, "folders": folders, "sample": sample}, sealed=True)

    def names(self) -> list[str]:
        return self._whole.names()

    def size(self, name: str) -> int:
        return self._whole.size(name)

    def order(self, names: Sequence[str]) -> list[int]:
        return self._whole.order(names)

    def places(self, names: Sequence[str]) -> Iterator[Place]:
        return self._whole.places(names)
