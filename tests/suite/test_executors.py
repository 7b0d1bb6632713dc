"""Executors without an engine: planted ones that carry jobs out here, lose them, or answer as broken nodes do."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import RULES, TRAJECTORY

from ddbench.base.cache import file_digest, lock, read_json, write_json
from ddbench.base.process import Job
from ddbench.errors import DataError, LostError, PluginError, UsageError
from ddbench.suite import node, runner
from ddbench.suite.grid import Suite, read
from ddbench.suite.jobs import Desk, Part
from ddbench.suite.placing import MANY, executor_of, local, places
from ddbench.suite.runner import Orders, Work
from ddbench.suite.status import append, records
from ddbench.suite.taking import Pool, around, memory

TESLA = {name.removeprefix("matcher."): value for name, value in TRAJECTORY.items()}


@dataclass(eq=False)
class Here:
    """A job that is carried out in this process when somebody asks for its end."""

    job: Job
    troubles: list[Exception]
    asked: list[str]

    def poll(self) -> int | None:
        if self.troubles:
            raise self.troubles.pop(0)
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        answer = tiny.ddbench(*self.job.words)
        self.job.log.write_text(answer.err)
        return answer.code

    def stop(self) -> None:
        self.asked.append("stop")

    def kill(self) -> None:
        self.asked.append("kill")


@dataclass(frozen=True)
class Planted:
    """An executor whose jobs may run elsewhere, as far as anybody knows."""

    name = "planted"
    remote = True
    troubles: dict[str, list[Exception]] = field(default_factory=dict)  # of jobs whose name begins so
    jobs: list[Job] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Planted]:
        yield self

    def start(self, jobs: Sequence[Job]) -> list[Here]:
        self.jobs.extend(jobs)
        return [
            Here(job, next((t for n, t in self.troubles.items() if job.name.startswith(n)), []), self.asked)
            for job in jobs
        ]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)


def suite(folder: Path, matchers: str = '"random"', seeds: str = "[0]", top: str = "", device: str = "cpu") -> Suite:
    rules = "\n".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in RULES.items())
    path = folder / "s.toml"
    path.write_text(
        f'students = 1\ndataset = "toy"\nipc = 1\nseeds = {seeds}\n{top}\n[options]\n{rules}\n[[matrix]]\n'
        f"matcher = {matchers}\n"
    )
    return read(path, device=device, remote=True)


def tesla(**more: Any) -> str:
    return f"{{name = 'tesla', options = {{{', '.join(f'{n} = {v}' for n, v in (TESLA | more).items())}}}}}"


def carried(asked: Suite, out: Path, executor: Any, **more: Any) -> tuple[Work, list[str]]:
    said: list[str] = []
    work = Work(asked, Orders(out, jobs=more.pop("jobs", MANY), **more), said.append, lambda _: None, executor)
    work.carry_out()
    return work, said


def sets(out: Path) -> dict[str, str]:
    return {path.parent.name: file_digest(path) for path in out.glob("*/distilled.safetensors")}


def test_experts_are_jobs_of_their_own_and_cells_come_after_with_the_bits_of_a_run(tmp_path):
    asked, executor = suite(tmp_path, tesla(), seeds="[0, 1]"), Planted()
    work, said = carried(asked, tmp_path / "far", executor)
    assert [job.name.partition(" of ")[0] for job in executor.jobs[:2]] == ["expert 0", "expert 1"]
    assert [job.words[:2] for job in executor.jobs] == [("suite", "work")] * 4
    assert work.summary() == "suite 's' finished: 2 ok of 2 cells"
    assert sum("expert 0 of toy" in text for text in said) == 1
    made = list((tmp_path / "home" / "experts").glob("*/*.safetensors"))
    assert len(made) == 2
    before = {path: path.stat().st_mtime_ns for path in made}
    near = tmp_path / "near"
    folders = [tiny.run(near, cell.spec, students=1) for cell in asked.cells]
    assert {path: path.stat().st_mtime_ns for path in made} == before  # the same content addresses
    assert sets(tmp_path / "far") == sets(near)
    assert len(folders) == 2


def test_experts_that_are_there_are_not_asked_for_again(tmp_path):
    asked, first = suite(tmp_path, tesla()), Planted()
    carried(asked, tmp_path / "a", first)
    assert len(first.jobs) == 3
    for out in ("a", "b"):  # known by the records, and by the files
        other = Planted()
        carried(asked, tmp_path / out, other, retry_failed=True)
        assert [job.name for job in other.jobs if job.name.startswith("expert")] == []


def test_matchers_with_the_same_experts_have_them_trained_once_with_the_snapshots_of_both(tmp_path):
    mtt = tesla(experts=1, max_start=3).replace("'tesla'", "'mtt'")
    executor = Planted()
    carried(suite(tmp_path, f"[{tesla()}, {mtt}]"), tmp_path / "far", executor)
    orders = [read_json(Path(job.words[2])) for job in executor.jobs if job.name.startswith("expert")]
    assert [(o["experts"]["first"], o["experts"]["snapshots"]) for o in orders] == [
        (0, [0, 1, 2, 3]),
        (1, [0, 1, 2, 3]),
    ]


def test_what_a_lost_node_took_is_placed_again_and_goes_on(tmp_path):
    executor = Planted({"toy": [LostError("node7 died"), LostError("node8 died")]})
    work, said = carried(suite(tmp_path), tmp_path / "far", executor)
    assert [text for text in said if "died" in text] == [
        f"toy, random, single, ipc 1, seed 0: node{n} died; it goes on from its last checkpoint (try {k} of 3 more)"
        for n, k in ((7, 1), (8, 2))
    ]
    assert work.summary().endswith("1 ok of 1 cells")
    assert len(executor.jobs) == 3


def test_what_is_lost_again_and_again_is_recorded_with_its_reason(tmp_path):
    executor = Planted({"toy": [LostError("node7 died") for _ in range(9)]})
    work, _ = carried(suite(tmp_path), tmp_path / "far", executor)
    (record,) = records(tmp_path / "far")
    assert (record["status"], record["error"]) == ("killed", "node7 died")
    assert len(executor.jobs) == 4
    assert work.summary().endswith("1 killed of 1 cells")


def test_an_end_that_was_lost_after_the_result_was_written_is_an_end(tmp_path):
    asked = suite(tmp_path)
    executor = Planted()
    done = Here.poll

    class Forgets(Here):
        def poll(self):
            done(self)
            raise LostError("its answer was lost")

    object.__setattr__(executor, "start", lambda jobs: [Forgets(job, [], []) for job in jobs])
    work, _ = carried(asked, tmp_path / "far", executor)
    assert work.summary().endswith("1 ok of 1 cells")


def test_a_node_that_cannot_begin_is_the_failure_of_its_cell_alone(tmp_path):
    said = "a node has no ddbench that can carry out jobs"
    executor = Planted({"toy, random, single, ipc 1, seed 0": [DataError(said)]})
    work, _ = carried(suite(tmp_path, seeds="[0, 1]"), tmp_path / "far", executor)
    assert work.summary().endswith("1 ok, 1 failed of 2 cells")
    assert records(tmp_path / "far")[0]["error"] == said


def test_an_executor_that_breaks_is_named_and_everything_at_work_is_ended(tmp_path):
    executor = Planted({"toy": [ZeroDivisionError("a bug")]})
    with pytest.raises(PluginError, match="executor 'planted' failed: ZeroDivisionError: a bug"):
        carried(suite(tmp_path), tmp_path / "far", executor)
    assert executor.asked == ["kill"]


def test_a_full_disk_is_one_sentence_and_ends_what_is_at_work_first(tmp_path, monkeypatch):
    executor = Planted()

    def full(*_: Any) -> None:
        raise DataError(f"cannot write s.jsonl: {os.strerror(errno.ENOSPC)}; free some space and run again")

    monkeypatch.setattr(runner, "append", full)
    with pytest.raises(DataError, match="No space left on device; free some space and run again"):
        carried(suite(tmp_path, seeds="[0, 1]"), tmp_path / "far", executor)
    assert executor.asked == ["kill"]  # the other one
    monkeypatch.undo()
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    work, _ = carried(suite(tmp_path, seeds="[0, 1]"), tmp_path / "far", Planted())
    assert work.summary().endswith("2 ok of 2 cells")


def test_a_folder_that_a_node_does_not_see_is_said_of(tmp_path):
    class Elsewhere(Here):
        def poll(self):
            return 3  # its log is in a folder of that node

    executor = Planted()
    object.__setattr__(executor, "start", lambda jobs: [Elsewhere(job, [], []) for job in jobs])
    carried(suite(tmp_path), tmp_path / "far", executor)
    (record,) = records(tmp_path / "far")
    assert "all nodes must share that folder, under the same path" in record["error"]


# ------------------------------------------------------------------------------ the other end


def order(tmp_path: Path, **changes: Any) -> Path:
    """An order as a suite writes it, with some of it changed."""
    asked, executor = suite(tmp_path), Planted({"toy": [DataError("not now")]})
    carried(asked, tmp_path / "far", executor)
    path = Path(executor.jobs[0].words[2])
    write_json(path, read_json(path) | changes)
    return path


def refused(path: Path) -> str:
    answer = tiny.ddbench("suite", "work", path)
    assert answer.code == 3
    assert answer.err.count("\n") <= 3
    return " ".join(answer.err.split())


def test_a_node_without_the_plugin_says_what_to_install(tmp_path):
    versions = {"matcher wandering": "ddbench-wandering 1.2", "dataset toy": "ddbench 1"}
    said = refused(order(tmp_path, versions=versions))
    here = socket.gethostname()
    assert f"node {here} has no matcher 'wandering', which ddbench-wandering 1.2 brings" in said
    assert "install ddbench-wandering there" in said


def test_another_version_on_a_node_is_refused(tmp_path):
    said = refused(order(tmp_path, sources={"ddbench": "0" * 64}, ddbench="0.0.1 (abc)"))
    assert "has another version of ddbench" in said
    assert "0.0.1 (abc) where the suite was started" in said


def test_an_order_that_a_node_does_not_see_is_said_of(tmp_path):
    assert "--out must lie on a file system that all nodes share" in refused(tmp_path / "a.order.json")


def test_a_node_whose_clock_differs_by_hours_is_said_of_and_nothing_else_happens(tmp_path, monkeypatch):
    now = time.time
    monkeypatch.setattr(node, "skew", lambda _: 3 * 3600.0)
    work, said = carried(suite(tmp_path), tmp_path / "far", Planted())
    assert any("clock" in text and "3.0 hours ahead of this machine's" in text for text in said)
    assert work.summary().endswith("1 ok of 1 cells")
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    assert node.skew(tmp_path) == pytest.approx(7200, abs=60)
    assert not list(tmp_path.glob(".clock*"))


def test_locks_that_do_not_hold_between_nodes_are_said_of(tmp_path):
    path = order(tmp_path)
    with lock(tmp_path / "far" / "suites" / "held.lock"):
        write_json(path, read_json(path) | {"lock": str(tmp_path / "far" / "suites" / "held.lock")})
        node.arrive(path)
        assert read_json(node.report_of(path))["locks"] is True
    node.arrive(path)
    report = read_json(node.report_of(path))
    assert report["locks"] is False
    (said,) = node.warnings_of(report, 0.0, tmp_path)
    assert "do not hold between this machine and" in said


def test_records_of_one_file_keep_their_order_whatever_the_clock_did(tmp_path):
    path = tmp_path / "suites" / "a.jsonl"
    for status, finished in (("failed", "2026-01-01T12:00"), ("removed", "2026-01-01T09:00")):
        append(path, {"key": "1", "status": status, "finished": finished})
    append(tmp_path / "suites" / "b.jsonl", {"key": "2", "status": "ok", "finished": "2026-01-01T10:00"})
    assert [record["status"] for record in records(tmp_path)] == ["ok", "failed", "removed"]


# ------------------------------------------------------------------------------ what is asked for


def test_executors_and_their_options_are_checked():
    assert executor_of("local", (("executor.gpu_memory", "12"),)).gpu_memory == 12.0
    with pytest.raises(UsageError, match="did you mean 'slurm'"):
        executor_of("slrum", ())
    with pytest.raises(UsageError, match="did you mean 'partition'"):
        executor_of("slurm", (("executor.partitoin", "gpu"),))
    with pytest.raises(UsageError, match="takes options of its executor alone"):
        executor_of("local", (("matcher.steps", "3"),))


@pytest.mark.parametrize(("name", "package"), [("ray", "ddbench[ray]"), ("slurm", "ddbench[slurm]")])
def test_an_engine_that_is_not_installed_is_said_with_its_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(__import__("sys").modules, {"ray": "ray", "slurm": "submitit"}[name], None)
    with pytest.raises(UsageError, match=f"--executor {name} needs") as error:
        carried(suite(tmp_path), tmp_path / "far", executor_of(name, ()))
    assert package in str(error.value)


def test_places_and_threads_do_not_depend_on_this_machine_on_a_cluster_or_with_auto(tmp_path, monkeypatch):
    monkeypatch.delenv("DDBENCH_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    suite(tmp_path)
    asked = {jobs: places(tmp_path / "s.toml", local(), jobs, device="cpu", dry=False) for jobs in (None, 4, "auto")}
    shared = {jobs: (found.cells[0].spec.threads, n) for jobs, (found, n) in asked.items()}
    assert shared == {None: (8, 1), 4: (2, 4), "auto": (1, 8)}
    for jobs, n in ((None, MANY), ("auto", MANY), (7, 7)):
        found, at_once = places(tmp_path / "s.toml", Planted(), jobs, device="cuda", dry=False)
        assert (found.cells[0].spec.threads, found.cells[0].spec.device, at_once) == (1, "cuda", n)


@pytest.mark.parametrize("gpus", ["0", "-0.5", '"half"', "true", "2"])
def test_a_part_of_a_gpu_that_is_none_is_refused(tmp_path, gpus):
    with pytest.raises(UsageError, match=r"gpus of matrix 1 of .*must be the part of one GPU that a cell takes"):
        suite(tmp_path, top=f"gpus = {gpus}")


def test_what_jobs_ask_for_follows_from_the_suite_and_the_forecast(tmp_path):
    on_gpu = suite(tmp_path, tesla(), top="gpus = 0.25", device="cuda").cells[0]
    taking = runner.Takings(lambda _: None).of(on_gpu)
    assert taking is not None
    assert taking.problem is not None
    held, step = around(on_gpu, taking.problem, taking.pool)
    assert held == taking.problem.real.pixels.numel()
    needed = int(1.25 * (held + max(taking.memory_bytes, step))) + 700_000_000
    asked = suite(tmp_path, device="cuda")
    far, near = (Desk(asked, tmp_path, tmp_path / "suites" / "a", remote) for remote in (True, False))
    known, plain = far.job(Part(on_gpu), taking, None), Part(replace(on_gpu, gpus=None))
    assert (known.gpus, known.gpu_memory) == (0.25, needed)
    assert far.job(plain, taking, None).gpus == 1.0  # an engine is told whole GPUs
    assert (near.job(plain, taking, None).gpus, near.job(plain, taking, None).gpu_memory) == (0.0, needed)
    untold = Part(asked.cells[0])  # random images: no iteration is known
    assert near.job(untold, runner.Takings(lambda _: None).of(untold.cell), None).gpus == 1.0
    measured = near.job(untold, None, 10**9)
    assert (measured.gpus, measured.gpu_memory) == (0.0, 1_950_000_000)
    assert near.job(Part(suite(tmp_path).cells[0]), None, 10**9).memory == 1_250_000_000
    assert plain.key == on_gpu.key  # which part of a GPU is no part of a run's key


def test_a_gpu_also_holds_the_real_images_and_the_largest_step_of_experts_and_students(tmp_path):
    """Counted by hand: all outputs of the network, for sixteen students together twice; the larger of both steps."""
    asked = suite(tmp_path, tesla(), device="cuda")
    cell = asked.cells[0]
    taking = runner.Takings(lambda _: None).of(cell)
    assert taking is not None
    assert taking.problem is not None
    problem, sizes = taking.problem, []
    built = problem.network.source.build(problem.network.shape, problem.network.classes)
    for part in built.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda _module, _given, made: sizes.append(made.numel()))
    built.eval()(torch.randn(1, *problem.network.shape))
    batch = min(problem.expert_recipe.batch, len(problem.real))
    alone = Pool("a", 1, (), 1)
    images = min(cell.spec.protocol.batch, cell.spec.ipc * problem.real.classes)
    assert around(cell, problem, alone)[1] == 4 * sum(sizes) * max(batch, 2 * 16 * images)
    assert around(cell, problem, replace(alone, at_once=16))[1] == 4 * sum(sizes) * 2 * 16 * max(batch, images)
    real = problem.real.pixels.numel()
    assert memory(cell, taking, 10**9)["gpu_memory"] == int(1.25 * (real + 10**9)) + 700_000_000
    assert memory(cell, taking, 10**9)["memory"] == 3_000_000_000 + real
    assert memory(cell, None, None)["gpu_memory"] == 0


def test_messages_of_the_hidden_command_are_those_of_the_run(tmp_path):
    path = order(tmp_path)
    with redirect_stderr(StringIO()):
        assert tiny.ddbench("suite", "work", path).code == 0
    assert len(sets(tmp_path / "far")) == 1
