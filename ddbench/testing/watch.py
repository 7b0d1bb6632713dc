"""What a plugin does besides returning something: to generators, to the process, and to files.

Files are seen as far as Python's audit events and ``torch.save`` tell; other processes are not watched.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from platformdirs import user_cache_path

from ddbench.base.cache import data_home, home
from ddbench.base.guard import PARTS, guarded
from ddbench.base.seeds import Seed
from ddbench.testing.findings import FailedCheck, Findings, require

_SEEDERS = ((torch, "manual_seed"), (torch, "seed"), (np.random, "seed"), (random, "seed"))
_MOVES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME", "HF_DATASETS_CACHE")  # of libraries
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_HEARD: list[list[str]] = []  # of the blocks that are watched now


@cache
def kept() -> Path:
    """A folder for experts of toy tasks, which vanishes with the process."""
    folder = tempfile.mkdtemp(prefix="ddbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder that all temporary files are in, so that no other place is taken for one."""
    kept()  # outlives it
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="ddbench-") as name:
        tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


@contextmanager
def watched(found: Findings, what: str) -> Iterator[None]:
    """A block that calls a plugin: what it changes besides is noted under its check, and set back."""
    written: list[str] = []
    reseeded: list[str] = []
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with guarded(what, sown=True, mixed=True), ExitStack() as stack:
        seed, before = torch.initial_seed(), [(part, part.look()) for part in PARTS if part.name]
        for owner, name in _SEEDERS:
            stack.enter_context(patch.object(owner, name, _noting(getattr(owner, name), name, reseeded)))
        stack.enter_context(patch.object(torch, "save", _saving(torch.save, written)))
        stack.enter_context(_listening(written))
        try:
            yield
        finally:
            if torch.initial_seed() != seed or reseeded:
                _give_back(*state)
                how = f" ({reseeded[0]})" if reseeded else ""
                said = f"{what} seeds global generators{how}: all runs would draw the same; draw from them as they are"
                found.fail("generators", FailedCheck(said))
            for part, value in before:
                if part.look() != value:
                    said = f"{what} changes {part.name}, which belongs to the whole process; leave it as it was"
                    found.fail("process", FailedCheck(said))
            if outside := [path for path in written if not _inside(path)]:
                where = "ddbench.base.cache.home() or a temporary folder"
                found.fail("folder", FailedCheck(f"{what} writes {outside[0]}; keep files in {where}, or in the state"))
    with found.checking("generators", "process", "folder"):
        pass


def _give_back(python: Any, numpy: Any, torchs: torch.Tensor) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torchs)


def _noting(seeder: Callable[..., Any], name: str, noted: list[str]) -> Callable[..., Any]:
    """A function that seeds, as it is, and notes when anybody but ddbench or torch calls it."""

    def call(*given: Any, **named: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))
        if caller.partition(".")[0] not in ("ddbench", "torch"):
            noted.append(f"{name}({', '.join(map(repr, given))})")
        return seeder(*given, **named)

    return call


def _saving(save: Callable[..., Any], written: list[str]) -> Callable[..., Any]:
    def call(value: Any, file: Any, *given: Any, **named: Any) -> Any:
        if isinstance(file, (str, os.PathLike)):
            written.append(os.path.abspath(file))  # noqa: PTH100 - as the audit events are noted
        return save(value, file, *given, **named)

    return call


@contextmanager
def _listening(written: list[str]) -> Iterator[None]:
    _hooked()
    _HEARD.append(written)
    try:
        yield
    finally:
        _HEARD.pop()


@cache
def _hooked() -> None:
    sys.addaudithook(_hear)  # it stays, and listens to nothing when no block is watched


def _hear(event: str, given: tuple[Any, ...]) -> None:
    if not _HEARD:
        return
    paths: tuple[Any, ...] = ()
    if event == "open":
        path, mode, flags = given
        writes = bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool((flags or 0) & _WRITING)
        paths = (path,) if writes else ()
    elif event in _MOVES and (event == "os.truncate" or given[-1] == -1):  # others are relative to an open folder
        paths = given[:2]
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            with suppress(OSError, ValueError):
                _HEARD[-1].append(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - it may be called anywhere


def _inside(path: str) -> bool:
    """Whether a plugin may write there."""
    found = Path(path).resolve()
    roots = [home(), data_home(), kept(), Path(tempfile.gettempdir()), user_cache_path(), Path("/dev"), Path("/proc")]
    roots += [Path(place) for name in _CACHES if (place := os.environ.get(name))]
    own = {"__pycache__", *(part for part in found.parts if part.startswith("torchinductor_"))}
    return bool(own & set(found.parts)) or any(found.is_relative_to(root.resolve()) for root in roots)


def steady(work: Callable[[], Any], otherwise: str, check: str = "") -> Any:
    """What ``work`` gives, twice the same whatever torch, NumPy and ``random`` were seeded with before."""
    with Seed(1).scope():
        first = work()
    with Seed(2).scope():
        second = work()
    require(torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, otherwise, check)
    return first
