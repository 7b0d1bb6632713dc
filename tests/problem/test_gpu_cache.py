"""What stays on a device: the right tensors, no more of them than fit, and read before they are asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from beginnings import experts
from gpus import nothing_waits

from ddbench import Network
from ddbench.errors import DataError
from ddbench.problem import gpu_cache as module
from ddbench.problem.gpu_cache import Shelf

CPU = torch.device("cpu")
SIZE = 8 * 4


class File:
    """Vectors of eight floats by key; counts who reads what, and may make readers wait."""

    def __init__(self) -> None:
        self.reads: Counter[tuple[int, int]] = Counter()
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, key: tuple[int, int]) -> torch.Tensor:
        self.open.wait(10)
        self.reads[key] += 1
        self.threads.add(threading.current_thread().name)
        return vector(key)


def vector(key: tuple[int, int]) -> torch.Tensor:
    return torch.arange(8.0) + 100 * key[0] + 10_000 * key[1]


def all_read(shelf: Shelf) -> None:
    """Wait until the thread has nothing to do, without asking for anything that counts."""
    for _, future in list(shelf._waiting):
        future.result(10)


def test_what_is_asked_for_again_is_not_read_again():
    file = File()
    shelf = Shelf(file, CPU, 10 * SIZE)
    for _ in range(3):
        for index in range(5):
            assert torch.equal(shelf[index, 1], vector((index, 1)))
    assert set(file.reads.values()) == {1}
    assert shelf.bytes == 5 * SIZE


def test_nobody_changes_what_others_see():
    shelf = Shelf(File(), CPU, 10 * SIZE)
    first = shelf[1, 2].requires_grad_()
    with torch.no_grad():
        first.zero_()
    assert torch.equal(shelf[1, 2], vector((1, 2)))
    assert not shelf[1, 2].requires_grad


def test_the_least_recently_used_leave_and_the_bound_holds():
    file = File()
    shelf = Shelf(file, CPU, 3 * SIZE + 5)
    for index in (0, 1, 2, 0, 3):  # 1 is the oldest when 3 comes
        shelf[index, 0]
        assert shelf.bytes <= 3 * SIZE
    for index in (0, 2, 3):
        shelf[index, 0]
    assert file.reads == Counter({(0, 0): 1, (1, 0): 1, (2, 0): 1, (3, 0): 1})
    shelf[1, 0]
    assert file.reads[1, 0] == 2
    assert shelf.bytes == sum(t.numel() * t.element_size() for t in shelf._held.values()) == 3 * SIZE


def test_what_is_larger_than_the_bound_is_read_each_time():
    file = File()
    shelf = Shelf(file, CPU, SIZE - 1)
    for _ in range(2):
        assert torch.equal(shelf[0, 0], vector((0, 0)))
    assert file.reads[0, 0] == 2
    assert shelf.bytes == 0


def test_all_that_fits_is_read_ahead_by_a_thread_and_only_once(monkeypatch):
    monkeypatch.setattr("ddbench.problem.gpu_cache.AHEAD", 4 * SIZE)
    file, keys = File(), [(index, epoch) for index in range(5) for epoch in range(4)]
    shelf = Shelf(file, CPU, len(keys) * SIZE)
    shelf.expect(keys, SIZE)
    all_read(shelf)
    assert sum(file.reads.values()) == 4, "memory in which tensors wait is bounded"
    while shelf._waiting:
        shelf[0, 0]
        all_read(shelf)
    assert file.reads == Counter(dict.fromkeys(keys, 1))
    assert all(name.startswith("shelf") for name in file.threads)
    assert shelf.bytes == len(keys) * SIZE
    for key in keys:
        assert torch.equal(shelf[key], vector(key))
    assert sum(file.reads.values()) == len(keys)
    assert shelf._thread is None


def test_what_the_thread_is_reading_is_waited_for_and_not_read_twice():
    file = File()
    file.open.clear()
    shelf = Shelf(file, CPU, 10 * SIZE)
    shelf.expect([(0, 0), (0, 1)], SIZE)
    threading.Timer(0.05, file.open.set).start()
    waiting = list(shelf._waiting)
    assert torch.equal(shelf[0, 1], vector((0, 1)))
    assert torch.equal(shelf[0, 0], vector((0, 0)))
    for _, future in waiting:
        future.result(10)
    assert file.reads == Counter({(0, 0): 1, (0, 1): 1})
    assert shelf.bytes == 2 * SIZE


def test_nothing_is_read_ahead_where_not_all_of_it_fits():
    file = File()
    shelf = Shelf(file, CPU, 3 * SIZE)
    shelf.expect([(i, 0) for i in range(4)], SIZE)
    assert not shelf._waiting
    shelf[0, 0]
    assert file.reads == Counter({(0, 0): 1})


def test_an_error_of_the_thread_is_raised_where_something_is_asked_for():
    def damaged(key: tuple[int, int]) -> torch.Tensor:
        raise DataError("the file is damaged")

    shelf = Shelf(damaged, CPU, 10 * SIZE)
    shelf.expect([(0, 0)], SIZE)
    with pytest.raises(DataError, match="damaged"):
        shelf[0, 0]


# -- experts ---------------------------------------------------------------------------------------------------


def shelved(made, most: int):
    """Experts that keep snapshots as they do on a GPU."""
    made.__dict__["_shelf"] = Shelf(made._read, CPU, most)
    return made


@pytest.mark.parametrize("share", [0, 1, 100])
def test_snapshots_from_the_shelf_are_those_of_the_file(cache, share):
    plain = experts(cache)
    plain.build(2, range(4))
    size = plain.starts.network.length * 4
    made = shelved(experts(cache), share * size)
    made.build(2, range(4))
    for _ in range(2):
        for index in range(2):
            for epoch in range(4):
                assert torch.equal(made.snapshot(index, epoch), plain.snapshot(index, epoch))
            for seen, expected in zip(made.segment(index, 1, 2), plain.segment(index, 1, 2), strict=True):
                assert torch.equal(seen, expected)
    assert made._shelf.bytes == min(share, 8) * size


def test_what_a_build_names_is_expected(cache):
    experts(cache).build(2, range(4))
    made = shelved(experts(cache), 10**9)
    made.build(2, (0, 3))
    keys = [key for key, _ in made._shelf._waiting]
    assert keys == [(0, 0), (0, 3), (1, 0), (1, 3)]


@pytest.mark.parametrize(("rows", "expected"), [(4, 4), (3, 0)])
def test_a_build_is_read_ahead_if_all_of_it_fits_and_not_at_all_otherwise(cache, rows, expected):
    plain = experts(cache)
    plain.build(2, range(4))
    made = shelved(experts(cache), rows * plain.starts.network.length * 4)
    made.build(2, (0, 3))
    assert len(made._shelf._waiting) + len(made._shelf._to_come) == expected
    all_read(made._shelf)
    for index in range(2):
        for epoch in (0, 3):
            assert torch.equal(made.snapshot(index, epoch), plain.snapshot(index, epoch))


def test_after_more_training_nothing_old_is_kept(cache):
    made = shelved(experts(cache), 10**9)
    made.build(1, (0, 1))
    assert vars(made).get("_shelf") is None
    shelved(made, 10**9)
    made.snapshot(0, 1)
    made.build(1, (0, 1, 2))
    assert vars(made).get("_shelf") is None
    made = shelved(made, 10**9)
    assert torch.equal(made.snapshot(0, 2), experts(cache).snapshot(0, 2))


def test_on_a_cpu_there_is_no_shelf(cache):
    made = experts(cache)
    made.build(1, (0,))
    assert made._shelf is None


@pytest.mark.gpu
def test_on_a_gpu_a_snapshot_comes_without_waiting(cache, monkeypatch):
    """Both the first time, through page-locked memory, and when it lies on the device."""
    slow = experts(cache)
    slow.build(2, range(4))
    starts = replace(slow.starts, network=replace(slow.starts.network, device=torch.device("cuda")))
    made = replace(slow, starts=starts)
    made.__dict__["folder"] = slow.folder  # what was trained on the CPU
    made.build(2, range(4))
    with nothing_waits():
        found = [[made.snapshot(index, epoch) for epoch in range(4)] for index in range(2) for _ in range(2)]
    assert isinstance(made.starts.network, Network)
    for index in range(2):
        for epoch in range(4):
            for again in range(2):
                assert torch.equal(found[2 * index + again][epoch].cpu(), slow.snapshot(index, epoch))
    assert made._shelf.bytes == 8 * slow.starts.network.length * 4
    few = module.Shelf(made._read, torch.device("cuda"), 2 * slow.starts.network.length * 4)
    for index, epoch in ((0, 0), (0, 1), (1, 1), (0, 0)):
        assert torch.equal(few[index, epoch].cpu(), slow.snapshot(index, epoch))


def test_what_is_asked_for_while_other_tensors_wait_is_not_one_of_them():
    expected, gate = [(1, 1), (1, 3), (3, 1)], threading.Event()

    def read(key: tuple[int, int]) -> torch.Tensor:
        if key in expected:
            gate.wait(2)
        return vector(key)

    shelf = Shelf(read, CPU, 10 * SIZE)
    shelf.expect(expected, SIZE)
    for key in ((1, 0), (0, 1), (1, 2), (2, 2), (4, 0)):
        assert torch.equal(shelf[key], vector(key))
    gate.set()
    for key in expected:
        assert torch.equal(shelf[key], vector(key))


def test_no_thread_is_left_when_what_was_expected_has_been_asked_for_before_it_was_read(monkeypatch):
    monkeypatch.setattr("ddbench.problem.gpu_cache.AHEAD", 1)  # one at a time
    file = File()
    file.open.clear()
    shelf = Shelf(file, CPU, 10 * SIZE)
    shelf.expect([(0, 0), (0, 1)], SIZE)
    threading.Timer(0.05, file.open.set).start()
    assert torch.equal(shelf[0, 1], vector((0, 1)))  # read by whoever asks: the thread is at the one before
    all_read(shelf)
    assert torch.equal(shelf[0, 0], vector((0, 0)))
    assert file.reads == Counter({(0, 0): 1, (0, 1): 1})
    ends = time.monotonic() + 5
    while own := [t for t in threading.enumerate() if t.name in file.threads and t.name.startswith("shelf")]:
        assert time.monotonic() < ends, own
        time.sleep(0.01)


def test_of_tensors_larger_than_what_may_wait_one_waits(monkeypatch):
    monkeypatch.setattr("ddbench.problem.gpu_cache.AHEAD", SIZE // 2)
    file = File()
    shelf = Shelf(file, CPU, 10 * SIZE)
    shelf.expect([(0, 0), (0, 1), (0, 2)], SIZE)
    all_read(shelf)
    assert file.reads == Counter({(0, 0): 1})
