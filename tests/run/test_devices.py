"""Runs on several devices: the same as on one, ended cleanly when a rank is gone, and gone on with on any number."""

from __future__ import annotations

import ast
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from float64 import error
from tiny import THREAD, Answer, ddbench, run, spec, words

import ddbench as ddbench_package
from ddbench.base import rank_start
from ddbench.base.progress import listening
from ddbench.base.rank_start import gathered
from ddbench.base.ranks import current, world
from ddbench.base.state import load_state
from ddbench.errors import RankError, UsageError
from ddbench.run.devices import check_division
from ddbench.run.run import first_problem


def images_of(folder):
    return load_state(folder / "stage-0" / "result.safetensors", torch.device("cpu"))[0].images


@pytest.fixture(scope="module")
def whole(tmp_path_factory, module_home):
    """A run on one device."""
    return run(tmp_path_factory.mktemp("whole"), spec(protocol__checks=1), students=1)


@pytest.fixture(autouse=True)
def _one_cache(monkeypatch, module_home):
    monkeypatch.setenv("DDBENCH_HOME", module_home)


def stopped_at(k, act):
    def listener(event):
        if event.what == "stage 0 distilling" and event.done == k:
            act()

    return listening(listener)


def test_a_run_on_two_devices_is_that_on_one_under_the_same_key_and_records_them(whole, tmp_path):
    made = spec(protocol__checks=1)
    with gathered(2, "cpu") as ranks:
        assert ranks is current()
        folder = run(tmp_path, made, students=1)
        assert ranks._jobs
    assert current() is None
    assert world() == 1
    assert folder.name == whole.name
    assert error(images_of(folder), images_of(whole)) < 1e-5
    assert json.loads((folder / "stage-0" / "result.json").read_text())["ranks"] == [2]
    assert "ranks" not in json.loads((whole / "stage-0" / "result.json").read_text())
    assert json.loads((folder / "result.json").read_text())["stages"][0]["ranks"] == [2]


def test_a_killed_rank_ends_the_run_in_a_sentence_and_another_number_goes_on(whole, tmp_path):
    made = spec(protocol__checks=1)
    with gathered(2, "cpu") as ranks:
        killed = stopped_at(2, ranks.started[0].kill)
        with killed, pytest.raises(RankError, match="rank 1 of 2 was killed by SIGKILL; the same command goes on"):
            run(tmp_path, made, students=1, seconds=0)
    assert not (tmp_path / whole.name / "result.json").exists()
    folder = run(tmp_path, made, students=1)
    assert json.loads((folder / "stage-0" / "result.json").read_text())["ranks"] == [2, 1]
    assert error(images_of(folder), images_of(whole)) < 1e-5


def test_a_rank_that_does_not_answer_is_waited_for_a_while_and_no_longer(tmp_path):
    made = spec(protocol__checks=1)
    with patch.object(rank_start, "SECONDS", 0.5), gathered(2, "cpu") as ranks:
        stop = stopped_at(1, lambda: ranks.started[0].send_signal(signal.SIGSTOP))
        with stop, pytest.raises(RankError, match=r"one of the 2 ranks has not answered for .* the same command goes"):
            run(tmp_path, made, students=1, seconds=0)


def test_a_rank_that_fails_says_why(tmp_path, monkeypatch):
    from ddbench.trajectory import divided

    made = spec(protocol__checks=1)

    monkeypatch.setattr(divided.StudentStep, "record", lambda self: ({}, {}))  # which nobody can make anything of
    with gathered(2, "cpu"), pytest.raises(RankError, match=r"rank 1 of 2 ended with 1 .*KeyError"):
        run(tmp_path, made, students=1)


def test_a_rank_ends_when_rank_0_is_gone():
    code = (
        "import os, time\nfrom ddbench.base.rank_start import gathered\n"
        "with gathered(2, 'cpu') as ranks:\n print(ranks.started[0].pid, flush=True)\n time.sleep(60)"
    )
    env = os.environ | THREAD
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as leader:
        pid = int(leader.stdout.readline())
        leader.kill()
        leader.wait()
        if Path(f"/proc/{pid}").exists():
            handle = os.pidfd_open(pid)
            assert select.select([handle], [], [], 20)[0]
            os.close(handle)


@pytest.mark.parametrize("matcher", ["dm", "random", "frepo"])
def test_matchers_that_do_not_divide_say_so(matcher, tmp_path):
    made = spec(matcher)
    problem = first_problem(made, made.dataset.load())
    check_division(made.matcher, problem)
    several = patch("ddbench.run.devices.world", lambda: 2)
    with (
        several,
        pytest.raises(UsageError, match=f"matcher '{matcher}' cannot be divided over 2 devices: only student"),
    ):
        check_division(made.matcher, problem)


def test_more_devices_than_a_batch_has_images_are_refused():
    made = spec(ipc=1, matcher__batch_syn=2)
    problem = first_problem(made, made.dataset.load())
    several = patch("ddbench.run.devices.world", lambda: 3)
    with several, pytest.raises(UsageError, match="3 devices are too many: a student's batch has 2 images"):
        check_division(made.matcher, problem)


def test_more_devices_than_there_are_refused(tmp_path):
    answer = ddbench("run", *words(), "--device", "cpu", "--devices", 10_000, "--out", tmp_path)
    assert answer.code == 2
    assert "--devices 10000 asked for, but there are" in answer.err
    assert not list(tmp_path.iterdir())


def test_ranks_of_another_version_or_command_are_refused():
    one = {"ddbench": "0.2.0 (abc)", "torch": "2.11", "device": "cpu", "words": ["run", "--ipc", "1"]}
    assert rank_start._disagreement([one, dict(one)]) is None
    said = rank_start._disagreement([one, one, one | {"words": ["run", "--ipc", "10"]}])
    assert said == (
        "rank 2 runs the command ddbench run --ipc 10, and rank 0 the command ddbench run --ipc 1; let all ranks run "
        "the same"
    )
    assert "rank 1 runs torch 2.12, and rank 0 torch 2.11" in rank_start._disagreement([one, one | {"torch": "2.12"}])
    assert "rank 1 runs ddbench 0.1.0, and" in rank_start._disagreement([one, one | {"ddbench": "0.1.0"}])


def test_the_environment_names_a_rank_or_none(monkeypatch):
    assert rank_start.rank_here() == 0
    place = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert rank_start.rank_here() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    rank_start.see_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    with pytest.raises(UsageError, match="torchrun has started 4 ranks"), gathered(2, "cpu"):
        pass
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UsageError, match="RANK=4 of WORLD_SIZE=4 is no rank"):
        rank_start.rank_here()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_of_a_run_and_refuses_in_one_sentence(whole, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ddbench", "run"]

    def started(*arguments) -> Answer:
        given = [*launcher, *map(str, arguments), "--out", str(tmp_path)]
        done = subprocess.run(given, capture_output=True, text=True, env=os.environ | THREAD, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    asked = (*words(protocol__checks=1), "--device", "cpu", "--no-random", "--no-ceiling", "--students", 1)
    assert started(*asked).code == 0
    assert error(images_of(tmp_path / whole.name), images_of(whole)) < 1e-5
    refused = started(*words("dm"), "--device", "cpu")
    assert refused.code == 1
    assert refused.err.count("error: matcher 'dm' cannot be divided over 2 devices") == 1


def test_one_process_loads_nothing_of_it():
    """What asks torch for other processes is loaded where there are several, and torch.distributed with it."""
    for path in sorted(Path(ddbench_package.__file__).parent.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                assert not {"torch.distributed", "ddbench.base.rank_start"} & set(names), path
