"""What every test gets: a cache folder of its own, one thread, and no hidden state between runs."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count

import pytest
import torch
from hypothesis import settings
from problems import toy_with_experts
from tiny import Forks

from ddbench import Problem
from ddbench.base.cache import Cache
from ddbench.train import compile as compiling

settings.register_profile("ddbench", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("ddbench")
torch.set_num_threads(1)
# Compiled code is not found anew in the cache folder of every test.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/ddbench_compiled_{os.getuid()}")


_number = count()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What needs a GPU is skipped where there is none, before any fixture looks for it."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's caches and data. A folder is made by who wants one: most tests do not."""
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path_factory.getbasetemp() / "homes" / f"{next(_number)}"))
    monkeypatch.delenv("DDBENCH_DATA", raising=False)


@pytest.fixture
def cache(tmp_path) -> Cache:
    """A cache folder that starts empty."""
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def module_home(tmp_path_factory) -> Iterator[str]:
    """A cache that all tests of a module share, for what their fixtures make; each test has its own besides."""
    with pytest.MonkeyPatch.context() as patched:
        folder = str(tmp_path_factory.mktemp("home"))
        patched.setenv("DDBENCH_HOME", folder)
        yield folder


@pytest.fixture(scope="module")
def problem(module_home) -> Problem:
    """The usual problem of trajectories: toy images, two per class, with two experts of two epochs."""
    return toy_with_experts()


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> Iterator[Forks]:
    """A server that starts commands as processes."""
    server = Forks(tmp_path_factory.mktemp("processes"))
    yield server
    server.close()


@pytest.fixture
def nothing_compiled(monkeypatch) -> None:
    """No compiled steps and no verdicts from earlier tests."""
    for held in ("_made", "_used", "_settled"):
        monkeypatch.setattr(compiling, held, {})


@pytest.fixture
def uncompiled(monkeypatch) -> None:
    """``torch.compile`` does nothing: what would be compiled runs eagerly."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def anything_goes(monkeypatch) -> None:
    """No error of steps in a lower precision is too large."""
    monkeypatch.setattr("ddbench.trajectory.engine.ROUNDED", (10.0, 10.0))


def _peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` held on the CPU at one time, by the allocator's own account.

    Every allocation and release that torch's CPU allocator makes is an event of the profiler; their
    running sum is the memory in use. Unlike the process's resident size it is the same on every run.
    """
    from torch.autograd.profiler import profile

    gc.collect()
    with profile(profile_memory=True) as record:
        work()
    events = [e for e in record.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler saw no allocation"
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.fixture(scope="session")
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """A function that tells the peak memory of a call without arguments."""
    return _peak_bytes
