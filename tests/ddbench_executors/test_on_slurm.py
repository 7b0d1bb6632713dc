"""submitit carries suites out: its local executor for the real thing, and planted jobs for what a queue may answer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clusters
import pytest
from ddbench_executors import on_slurm
from ddbench_executors.on_slurm import Carried, Queue, Queued, Slurm

from ddbench import DataError, LostError, UsageError
from ddbench.base.process import Job


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_a_suite_in_the_queue_has_the_bits_of_this_machine_and_trains_no_expert_twice(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'ddbench[slurm]'")
    clusters.site(tmp_path / "site")
    path = clusters.suite(tmp_path / "s.toml", experts=2)
    queue = ("--executor", "slurm", "-o", "executor.cluster=local", "--out", tmp_path / "far")
    work = clusters.start(tmp_path, path, *queue)
    _, said = work.communicate(timeout=300)
    assert work.returncode == 0, said
    assert said.count("expert 0 of") == said.count("expert 1 of") == 1
    local = clusters.start(tmp_path, path, "--out", tmp_path / "near", DDBENCH_HOME=str(tmp_path / "other"))
    assert local.wait(300) == 0
    assert clusters.sets(tmp_path / "far") == clusters.sets(tmp_path / "near") != {}
    again = clusters.start(tmp_path, path, *queue)  # all is finished, whoever is asked
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0
    assert "2 ok of 2 cells" in said


# ------------------------------------------------------------------------------ without a queue


class FailedJobError(Exception):
    pass


class UncompletedJobError(Exception):
    pass


@pytest.fixture(autouse=True)
def _planted(request, monkeypatch):
    """The names of submitit that are asked for, unless the real ones are."""
    if "slow" not in request.keywords:
        errors = SimpleNamespace(FailedJobError=FailedJobError, UncompletedJobError=UncompletedJobError)
        helpers = SimpleNamespace(DelayedSubmission=lambda *given: given)
        planted = SimpleNamespace(core=SimpleNamespace(utils=errors), helpers=helpers)
        monkeypatch.setattr(on_slurm, "library", lambda: planted)


class Recorder:
    """An executor of submitit that remembers what it was given."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.packs: list[list[str]] = []

    def update_parameters(self, **given: Any) -> None:
        self.asked.append(given)

    def batch(self) -> Any:
        return nullcontext()

    def submit(self, function: Any, jobs: list[Job]) -> list[str]:
        assert isinstance(function, Carried)
        self.packs.append([job.name for job in jobs])
        return self.packs[-1]


def test_a_job_may_meet_its_time_limit_as_often_as_it_takes(tmp_path, monkeypatch):
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(on_slurm, "library", lambda: SimpleNamespace(AutoExecutor=lambda **given: made.append(given)))
    with on_slurm.Slurm().opened(tmp_path):
        pass
    assert made == [{"folder": tmp_path / "submitit", "cluster": "slurm", "slurm_max_num_timeout": 10_000}]


def test_parts_of_a_gpu_share_a_submission_and_those_that_want_the_same_an_array():
    jobs = [Job(n, (), Path("log"), gpus=0.25, memory=10**9) for n in "abcde"]
    jobs[2:2] = [Job("x", (), Path("log"), threads=4, memory=1), Job("y", (), Path("log"), threads=4, memory=1)]
    recorder = Recorder()
    placed = Queue(recorder, {"slurm_partition": "gpu"}).start(jobs)
    assert sorted(recorder.packs) == [["a", "b", "c", "d"], ["e"], ["x"], ["y"]]
    assert [(queued.submitted[queued.place]) for queued in placed] == [job.name for job in jobs]
    wants = {(a["cpus_per_task"], a["gpus_per_node"], a["mem_gb"]) for a in recorder.asked}
    assert wants == {(4, 1, 4), (1, 1, 1), (4, 0, 1)}
    assert all(a["slurm_partition"] == "gpu" for a in recorder.asked)


def ended(result: Any, state: str = "COMPLETED") -> Queued:
    def give() -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return Queued(SimpleNamespace(done=lambda: True, result=give, state=state, job_id="7"), 1)


def test_what_a_queue_answers_is_a_code_a_reason_or_a_loss():
    assert ended([0, 3]).poll() == 3
    assert Queued(SimpleNamespace(done=lambda: False), 0).poll() is None
    with pytest.raises(LostError, match=r"Slurm lost it \(job 7, NODE_FAIL\)"):
        ended(UncompletedJobError(), "NODE_FAIL").poll()
    with pytest.raises(DataError, match="ended it for its memory"):
        ended(UncompletedJobError(), "OUT_OF_MEMORY").poll()
    dashes = "-" * 22
    trace = FailedJobError(f"Failed with trace:\n{dashes}\nTraceback\nModuleNotFoundError: no ddbench\n{dashes}\nlogs")
    with pytest.raises(DataError, match="a node could not begin it: ModuleNotFoundError: no ddbench"):
        ended(trace).poll()


def test_a_queue_that_takes_nothing_is_one_sentence():
    class Refuses(Recorder):
        def submit(self, function: Any, jobs: list[Job]) -> list[str]:
            raise RuntimeError("sbatch: error: invalid partition")

    with pytest.raises(DataError, match=r"Slurm took no job .*invalid partition"):
        Queue(Refuses(), {}).start([Job("a", (), Path("log"))])


def test_options_are_those_of_sbatch():
    found = Slurm(partition="gpu", minutes=60, more=("constraint=a100",))._parameters()
    more = {"slurm_additional_parameters": {"constraint": "a100"}}
    assert found == {"slurm_partition": "gpu", "timeout_min": 60} | more
    with pytest.raises(UsageError, match="must be NAME=VALUE"):
        Slurm(more=("exclusive",))._parameters()


def test_several_jobs_of_a_pack_are_carried_side_by_side_and_a_checkpoint_stops_them(tmp_path):
    jobs = [Job(str(i), ("--version",) if i else ("nonsense",), tmp_path / f"{i}.log") for i in range(2)]
    work = Carried()
    assert work(jobs) == [2, 0]
    again, same = work.checkpoint(jobs)
    assert isinstance(again, Carried)
    assert same == jobs
    assert not again.workers
    assert work.__getstate__() == {"workers": []}
