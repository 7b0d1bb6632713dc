"""One writer at a time: locks on files, which the system gives back even after SIGKILL, and what they still cover.

A lock is the file that stands at its path, not the name: somebody may remove the file, or its whole folder, and then
another process locks another file of that name. Before anything is stored in the folder of a lock that this process
holds, :mod:`ddbench.base.opening` therefore asks whether it is still the one that others see.

On NFS, Linux makes locks of the server of them (since 2.6.12), so that they hold between nodes, but for mounts with
``nolock`` or ``local_lock``; on Lustre they do with ``-o flock``, and with ``-o localflock`` do not.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ddbench.base.opening import GUARDS, in_place, may_store, refuse_links
from ddbench.base.progress import note, pause
from ddbench.errors import BusyError, DataError

PATIENCE = 2.0  # seconds of waiting that need no word
_POLL = 0.05


@contextmanager
def lock(path: Path, *, wait: bool = True, within: Path | None = None) -> Iterator[None]:
    """Hold ``path`` for this process; the system releases it even after SIGKILL.

    With ``wait=False`` a held lock raises BusyError at once and says who holds it; otherwise a note says it after two
    seconds, and a signal that stops the work is heard. With ``within``, neither the lock nor anything that is stored in
    its folder meanwhile may be reached through a link below that folder. Inside the block, storing in the folder of a
    lock file that is gone raises: DataError if the folder is, BusyError if another process has a lock there now.
    """
    held = _Lock(path, within)
    with held.closing:
        while not held.take(wait=wait):
            pass  # the file was removed, or replaced, between opening and locking it
        GUARDS.append(held.allow)
        try:
            yield
        finally:
            GUARDS.remove(held.allow)


@dataclass(eq=False)
class _Lock:
    path: Path
    within: Path | None
    closing: ExitStack = field(default_factory=ExitStack)

    def take(self, *, wait: bool) -> bool:
        """Open and lock the file; False if it is no longer the one at the path."""
        if self.within is not None:
            refuse_links(self.path, self.within)
        may_store(self.path)  # before a folder is made again that was deleted under a lock around this one
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write in {self.path.parent}: {_why(error)}; choose another folder") from error
        stream = self.closing.enter_context(in_place(self.path, "a+", self.within))
        self._wait(stream, wait=wait)
        if not self._is_there(stream):
            self.closing.close()
            return False
        self._sign(stream)
        return True

    def _wait(self, stream: IO[Any], *, wait: bool) -> None:
        # flock by itself: the library filelock bars others from reading who holds a lock on Windows, where alone it
        # would gain something. Asked again and again, since a call that blocks hears no signal.
        began, said = time.monotonic(), False
        while not _locked(stream):
            holder = _signed(stream) or "another process"
            if not wait:
                raise BusyError(
                    f"{self.path.parent} is being written by {holder}; wait for it, or stop it, and run again"
                )
            if not said and time.monotonic() - began > PATIENCE:
                note(f"waiting for {holder}, which is at work on {self.path.with_suffix('')}")
                said = True
            pause(_POLL)

    def _is_there(self, stream: IO[Any]) -> bool:
        try:
            found, held = os.lstat(self.path), os.fstat(stream.fileno())
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def _sign(self, stream: IO[Any]) -> None:
        self._stream = stream
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()

    def allow(self, path: Path) -> None:
        """Refuse to store ``path`` if the lock covers it, and is no longer the one that others see."""
        folder = self.path.parent
        if path == self.path or not path.is_relative_to(folder):
            return
        if not self._is_there(self._stream):
            self._take_again(folder)
        if self.within is not None and path.parent != folder:
            refuse_links(path.parent, folder)

    def _take_again(self, folder: Path) -> None:
        """A lock file that was removed is made again, unless another process did so first."""
        if not folder.is_dir():
            raise DataError(
                f"{folder} was removed while this process was writing there; run the same command again: what was in "
                "it is made anew"
            )
        stream = self.closing.enter_context(in_place(self.path, "a+", self.within))
        other = not _locked(stream) or not self._is_there(stream)
        if holder := _signed(stream):  # it came, and may be gone again: what it wrote is not to be mixed with ours
            raise BusyError(
                f"{self.path} was removed while this process held it, and {holder} took it: this one stores no more; "
                "run the same command again when the other is done"
            )
        if other:
            self._take_again(folder)
        else:
            self._sign(stream)


def _locked(stream: IO[Any]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(f"cannot lock {stream.name}: {_why(error)}; choose a folder on another disk") from error
    return True


def _signed(stream: IO[Any]) -> str:
    """Who wrote its name into a lock, if anybody did; its machine, where that is another."""
    stream.seek(0)
    found = re.fullmatch(r"(process [0-9]{1,10})(?: on ([A-Za-z0-9._-]{1,64}))?", stream.read(100), re.ASCII)
    if found is None:
        return ""
    return found[1] if found[2] in (None, socket.gethostname()) else found[0]


def _why(error: OSError) -> str:
    return error.strerror or str(error)
