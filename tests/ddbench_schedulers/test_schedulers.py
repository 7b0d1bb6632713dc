"""pdd, seqmatch and boost: what each stage is asked, from which networks, and how students learn in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ddbench_pdd.easy import _forgotten
from ddbench_pdd.progressive import Progressive
from ddbench_schedulers.boost import Boost
from ddbench_schedulers.seqmatch import SeqMatch
from tiny import run, spec

from ddbench import Curriculum, Problem, SyntheticSet, UsageError
from ddbench.grade.distilled import Distilled
from ddbench.run.record import RunRecord
from ddbench.testing import toy_task


def problems(plan, task: Problem) -> list[Problem]:
    """The problems of all stages, each solved with the problem's own sample."""
    found, done = [], Curriculum()
    while (problem := plan.next(task, done)) is not None:
        found.append(problem)
        sample = problem.sample()
        sets = (*done.sets, SyntheticSet(sample.images, sample.labels, lr=0.01 * len(found)))
        done = Curriculum(sets, plan.phases(len(sets)))
    return found


@pytest.fixture
def task(tmp_path) -> Problem:
    return toy_task(ipc=7, folder=tmp_path)


@pytest.mark.parametrize("kind", [Progressive, SeqMatch, Boost])
def test_unequal_stages_get_the_sizes_that_are_named(kind, task):
    assert [p.ipc for p in problems(kind(stages=3, sizes=(4, 1, 2)), task)] == [4, 1, 2]
    assert [p.ipc for p in problems(kind(stages=3), task)] == [3, 2, 2]


@pytest.mark.parametrize("kind", [Progressive, SeqMatch, Boost])
def test_sizes_that_do_not_fit_are_refused_with_the_way_out(kind, task):
    with pytest.raises(UsageError, match=r"has 2 stages, but scheduler\.sizes names 3: 1, 2, 4; set -o scheduler\.st"):
        kind(stages=2, sizes=(1, 2, 4))
    with pytest.raises(UsageError, match="needs at least one image per class, got 0, 7"):
        kind(stages=2, sizes=(0, 7))
    with pytest.raises(UsageError, match="add up to 6 images per class, but the budget is 7; ask for --ipc 6"):
        kind(stages=2, sizes=(2, 4)).next(task, Curriculum())
    with pytest.raises(UsageError, match="divides the budget of 2 images per class among 3 stages"):
        kind(stages=3).next(replace(task, ipc=2), Curriculum())


def test_chained_stages_go_on_from_the_same_initialisations(task):
    first, second, third = problems(Progressive(stages=3), task)
    assert first.starts.seed == second.starts.seed == third.starts.seed
    second.starts[0]
    lessons = set(task.starts.cache.root.rglob("lessons/**/*.safetensors"))
    third.starts[0]  # learns S1 and S2 on top of what is there: one more lesson
    assert len(lessons) == 1
    assert len(set(task.starts.cache.root.rglob("lessons/**/*.safetensors"))) == 2


@pytest.mark.parametrize("plan", [SeqMatch(stages=3), Progressive(stages=3, chain=False)])
def test_fresh_stages_draw_other_initialisations_and_learn_all_earlier_sets(plan, task):
    stages = problems(plan, task)
    inits = [p.network.init(p.starts.seed / 0 / "init") for p in stages]
    assert not torch.equal(inits[0], inits[1])
    assert not torch.equal(inits[1], inits[2])
    assert [len(p.starts.taught.sets) for p in stages] == [0, 1, 2]
    assert stages[2].starts.taught.phases == ((0,), (0, 1))
    assert torch.equal(stages[0].starts[3], task.starts[3])


def test_seqmatch_teaches_every_earlier_stage_at_its_own_rate_also_with_three(task):
    """The released code keeps the first learning rate only, so that with three stages networks learn S1 alone."""
    third = problems(SeqMatch(stages=3), task)[2]
    taught = third.starts.taught
    assert [taught.lr(phase) for phase in range(2)] == [0.01, 0.02]
    without = replace(third.starts, taught=Curriculum(taught.sets, taught.phases[:1]))
    assert not torch.equal(third.starts[0], without[0])
    assert [s.lr for s in third.frozen.sets] == [0.01, 0.02]


def test_blocks_meet_fresh_networks_and_students_learn_their_union_at_once(task):
    stages = problems(Boost(stages=3), task)
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


def test_easy_real_examples_are_those_that_all_taught_networks_get_right(task):
    first, second = problems(Progressive(stages=2, drop="correct", judges=2, keep=0.0), task)
    assert len(first.real) == len(task.real)
    assert len(second.real) < len(task.real)
    kept = {image.numpy().tobytes() for image in second.real.pixels}
    right = torch.ones(len(task.real), dtype=torch.bool)
    for judge in range(2):
        logits = task.network.apply(second.starts[judge], task.real[torch.arange(len(task.real))].images, train=False)
        right &= logits.argmax(1) == task.real.targets
    assert right.any()
    for image, easy in zip(task.real.pixels, right.tolist(), strict=True):
        assert easy or image.numpy().tobytes() in kept
    assert second.real.smallest_class >= 7  # what the budget of all stages needs
    assert (torch.bincount(second.real.targets) >= 7).all()


def test_easy_examples_stay_with_the_probability_asked_for(task):
    whole = problems(Progressive(stages=2, drop="correct", judges=1, keep=1.0), task)[1]
    none, some = (problems(Progressive(stages=2, drop="correct", judges=1, keep=k), task)[1] for k in (0.0, 0.5))
    assert len(none.real) < len(some.real) < len(whole.real) == len(task.real)
    again = problems(Progressive(stages=2, drop="correct", judges=1, keep=0.5), task)[1]
    assert torch.equal(again.real.targets, some.real.targets)


def test_forgetting_raises_the_bar_stage_by_stage(task):
    quick = replace(task, expert_recipe=replace(task.expert_recipe, epochs=4, lr=0.1))
    stages = problems(Progressive(stages=3, drop="forgetting", judges=2, interval=1), quick)
    counts = _forgotten(quick, 2)
    assert counts.min() == 0
    assert counts.max() > 0
    sizes = [len(p.real) for p in stages]
    assert sizes[0] == len(task.real) > sizes[1] >= sizes[2]
    kept = {image.numpy().tobytes() for image in stages[1].real.pixels}
    forgotten = [image.numpy().tobytes() for image, c in zip(task.real.pixels, counts.tolist(), strict=True) if c >= 1]
    assert set(forgotten) <= kept


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [("pdd", {"scheduler__drop": "correct", "scheduler__chain": "false"}), ("seqmatch", {}), ("boost", {})],
)
def test_trajectory_matchers_run_under_every_scheduler_and_resume_to_the_same_set(tmp_path, scheduler, more):
    made = spec("tesla", scheduler, 3, scheduler__stages=3 if scheduler == "seqmatch" else 2, **more)
    one, two = run(tmp_path / "one", made), run(tmp_path / "two", made)
    assert (one / "distilled.safetensors").read_bytes() == (two / "distilled.safetensors").read_bytes()
    assert RunRecord.read(one).rows()[0].status == "ok"
