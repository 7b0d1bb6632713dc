"""seqmatch and boost: what each stage is asked, from which networks; and how students learn in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ddbench_schedulers.boost import Boost
from ddbench_schedulers.seqmatch import SeqMatch
from problems import stage_problems
from tiny import run, spec

from ddbench import Curriculum, Problem
from ddbench.grade.distilled import Distilled
from ddbench.run.record import RunRecord
from ddbench.testing import toy_task


@pytest.fixture
def task(tmp_path) -> Problem:
    return toy_task(ipc=7, folder=tmp_path)


def test_seqmatch_teaches_every_earlier_stage_at_its_own_rate_also_with_three(task):
    """The released code keeps the first learning rate only, so that with three stages networks learn S1 alone."""
    third = stage_problems(SeqMatch(stages=3), task)[2]
    taught = third.starts.taught
    assert [taught.lr(phase) for phase in range(2)] == [0.01, 0.02]
    without = replace(third.starts, taught=Curriculum(taught.sets, taught.phases[:1]))
    assert not torch.equal(third.starts[0], without[0])
    assert [s.lr for s in third.frozen.sets] == [0.01, 0.02]


def test_blocks_meet_fresh_networks_and_students_learn_their_union_at_once(task):
    stages = stage_problems(Boost(stages=3), task)
    for problem in stages:
        assert torch.equal(problem.starts[5], task.starts[5])
    assert [len(p.frozen) for p in stages] == [0, 1, 2]
    assert Boost(stages=3).phases(3) == ((0, 1, 2),)
    assert len(stages[2].frozen.pool(*[getattr(stages[2].sample(), n) for n in ("images", "labels")])) == 3 * 7


def test_students_of_blocks_take_all_steps_in_one_phase(tmp_path):
    folder = run(tmp_path, spec("random", "boost", 3, scheduler__stages=3))
    made = Distilled.load(folder / "distilled.safetensors")
    assert made.curriculum.phases == ((0, 1, 2),)
    assert (made.teaching.steps, made.teaching.phases) == (12, 1)
    assert made.teaching.lesson(0).steps == 12
    assert RunRecord.read(folder).rows()[0].status == "ok"


@pytest.mark.parametrize("scheduler", ["pdd", "seqmatch"])
def test_students_of_stages_divide_their_steps_among_the_phases(tmp_path, scheduler):
    folder = run(tmp_path, spec("random", scheduler, 4, scheduler__stages=3, scheduler__sizes="2,1,1"))
    made = Distilled.load(folder / "distilled.safetensors")
    assert made.curriculum.phases == ((0,), (0, 1), (0, 1, 2))
    assert [made.teaching.lesson(j).steps for j in range(3)] == [4, 4, 4]


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [("pdd", {"scheduler__drop": "correct", "scheduler__chain": "false"}), ("seqmatch", {}), ("boost", {})],
)
def test_trajectory_matchers_run_under_every_scheduler_and_resume_to_the_same_set(tmp_path, scheduler, more):
    made = spec("tesla", scheduler, 3, scheduler__stages=3 if scheduler == "seqmatch" else 2, **more)
    one, two = run(tmp_path / "one", made), run(tmp_path / "two", made)
    assert (one / "distilled.safetensors").read_bytes() == (two / "distilled.safetensors").read_bytes()
    assert RunRecord.read(one).rows()[0].status == "ok"
