"""This machine: what is put on which GPU, and when there is room; with planted workers and GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ddbench_executors import local
from ddbench_executors.local import Local, Place, Places, free_memory

from ddbench.base.process import Job


class Still:
    """A worker that works until it is told otherwise."""

    def __init__(self, job: Job) -> None:
        self.job, self.code = job, None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture(autouse=True)
def _workers(monkeypatch):
    monkeypatch.setattr(local, "Worker", Still)


def job(name: str = "a", **takes: Any) -> Job:
    return Job(name, (), Path("log"), **takes)


def places(*gpus: int, host: int = 100) -> Places:
    return Places(host, gpus=[Place(str(i), memory) for i, memory in enumerate(gpus)])


def gpu(worker: Any) -> str:
    return worker.job.environment[local.VISIBLE]


def test_cells_go_where_most_memory_is_left_and_never_more_than_fits():
    here = places(10, 8)
    made: list[Any] = here.start([job(gpu_memory=4) for _ in range(5)])
    assert [None if worker is None else gpu(worker) for worker in made] == ["0", "1", "0", "1", None]
    made[1].code = 0
    again: list[Any] = here.start([job(gpu_memory=4), job(gpu_memory=4)])
    assert gpu(again[0]) == "1"
    assert again[1] is None


def test_a_part_of_a_gpu_is_a_part_however_little_memory_it_takes():
    here = places(10)
    made = here.start([job(gpus=0.25, gpu_memory=1) for _ in range(5)])
    assert [worker is None for worker in made] == [False] * 4 + [True]


def test_a_cell_of_unknown_memory_has_a_gpu_to_itself():
    here = places(10, 10)
    made: list[Any] = here.start([job(gpus=1.0), job(gpus=1.0), job(gpus=1.0), job(gpu_memory=1)])
    assert [gpu(worker) for worker in made[:2]] == ["0", "1"]
    assert made[2] is None


def test_what_fits_nowhere_is_tried_alone():
    here = places(10)
    assert here.start([job(gpu_memory=50)])[0] is not None
    assert here.start([job(gpu_memory=1)])[0] is None
    host = places(host=3)
    assert [worker is None for worker in host.start([job(memory=5), job(memory=1)])] == [False, True]


def test_a_machine_without_gpus_leaves_it_to_the_job_to_say_so():
    (worker,) = places().start([job(gpu_memory=5)])
    assert worker is not None
    assert local.VISIBLE not in worker.job.environment


def test_gpus_are_named_as_this_process_sees_them(monkeypatch):
    monkeypatch.setenv(local.VISIBLE, "3,GPU-9")
    monkeypatch.setattr(local, "free_memory", lambda: [int(20e9), int(8e9)])
    here = Places(10**12, gpu_memory=10.0)
    (worker,) = here.start([job(gpu_memory=int(9e9))])
    assert gpu(worker) == "3"
    assert [(place.name, place.memory) for place in here.gpus or []] == [("3", int(1e9)), ("GPU-9", int(8e9))]


@pytest.mark.gpu
def test_free_memory_is_asked_of_every_gpu():
    import torch

    assert len(free_memory()) == torch.cuda.device_count()
    assert all(0 < free < 10**12 for free in free_memory())


def test_the_host_has_what_is_available_or_what_is_given(tmp_path):
    with Local().opened(tmp_path) as here:
        assert here.host_memory > 10**8
    with Local(memory=2.0).opened(tmp_path) as here:
        assert here.host_memory == 2 * 10**9
