"""seqmatch and boost: what each stage is asked, from which networks; and how students learn in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ddbench_schedulers.boost import Boost
from ddbench_schedulers.seqmatch import SeqMatch
from problems import stage_problems
from tiny import run, spec

from ddbench import Curriculum, Problem, Seed, Student, fit, teach
from ddbench.grade import selection
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


def test_restarts_are_the_phases_of_stages_with_one_set(tmp_path):
    folder = run(tmp_path, spec("random", "restarts", 4, scheduler__restarts=3))
    made = Distilled.load(folder / "distilled.safetensors")
    assert made.curriculum.phases == ((0,), (0,), (0,))
    assert len(made.curriculum.sets[0]) == 4 * 3
    assert [made.teaching.lesson(j).steps for j in range(3)] == [4, 4, 4]
    single = Distilled.load(run(tmp_path, spec("random", "single", 4)) / "distilled.safetensors")
    assert torch.equal(made.curriculum.sets[0].images, single.curriculum.sets[0].images)
    network = made.build_network("cpu")
    start = network.init(Seed(1))
    once = teach(network, Student(start), made.curriculum, made.teaching, Seed(2)).vector
    by_hand = Student(start)
    for phase in range(3):  # a fresh optimiser and the whole schedule, three times
        pool, lesson, lr = made.curriculum.phase(phase), made.teaching.lesson(phase), made.curriculum.lr(phase)
        by_hand = fit(network, Student(by_hand.vector), pool, lesson, Seed(2) / "phase" / phase, lr=lr)
    assert torch.equal(once, by_hand.vector)


def test_judges_of_restarts_learn_the_candidate_in_every_phase(tmp_path, monkeypatch):
    """In stages they know the earlier sets; here there is nothing before the first phase."""
    seen = []
    real = selection.taught_pupils
    monkeypatch.setattr(
        selection,
        "taught_pupils",
        lambda network, pupils, teaching, first, **more: (
            seen.append((first, len(pupils[0].curriculum.phases))) or real(network, pupils, teaching, first, **more)
        ),
    )
    run(tmp_path, spec("random", "restarts", 2, scheduler__restarts=3))
    assert set(seen) == {(0, 3)}
    seen.clear()
    run(tmp_path, spec("random", "pdd", 2, scheduler__stages=2))
    assert set(seen) == {(0, 1), (1, 2)}
