"""Progressive distillation: stages go on from the same networks, and drop real images that became easy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ddbench_pdd.easy import _forgotten
from ddbench_pdd.progressive import Progressive
from ddbench_schedulers.seqmatch import SeqMatch
from problems import stage_problems

from ddbench import Problem
from ddbench.testing import toy_task


@pytest.fixture
def task(tmp_path) -> Problem:
    return toy_task(ipc=7, folder=tmp_path)


def test_chained_stages_go_on_from_the_same_initialisations(task):
    first, second, third = stage_problems(Progressive(stages=3), task)
    assert first.starts.seed == second.starts.seed == third.starts.seed
    second.starts[0]
    lessons = set(task.starts.cache.root.rglob("lessons/**/*.safetensors"))
    third.starts[0]  # learns S1 and S2 on top of what is there: one more lesson
    assert len(lessons) == 1
    assert len(set(task.starts.cache.root.rglob("lessons/**/*.safetensors"))) == 2


@pytest.mark.parametrize("scheduler", [Progressive, SeqMatch])
def test_later_stages_see_as_many_networks_as_are_drawn_unless_a_number_is_given(task, scheduler):
    """As the first stage does; a number teaches so many and keeps them."""
    first, second = stage_problems(scheduler(stages=2), task)
    (few,) = stage_problems(scheduler(stages=2, networks=2), task)[1:]
    for problem, distinct in ((first, 12), (second, 12), (few, 2)):
        with problem.seed.scope():
            assert len({tuple(problem.starts.draw().tolist()) for _ in range(12)}) == distinct


def test_easy_real_examples_are_those_that_all_taught_networks_get_right(task):
    first, second = stage_problems(Progressive(stages=2, drop="correct", judges=2, keep=0.0), task)
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
    whole = stage_problems(Progressive(stages=2, drop="correct", judges=1, keep=1.0), task)[1]
    none, some = (stage_problems(Progressive(stages=2, drop="correct", judges=1, keep=k), task)[1] for k in (0.0, 0.5))
    assert len(none.real) < len(some.real) < len(whole.real) == len(task.real)
    again = stage_problems(Progressive(stages=2, drop="correct", judges=1, keep=0.5), task)[1]
    assert torch.equal(again.real.targets, some.real.targets)


def test_forgetting_raises_the_bar_stage_by_stage(task):
    quick = replace(task, expert_recipe=replace(task.expert_recipe, epochs=4, lr=0.1))
    stages = stage_problems(Progressive(stages=3, drop="forgetting", judges=2, interval=1), quick)
    counts = _forgotten(quick, 2)
    assert counts.min() == 0
    assert counts.max() > 0
    sizes = [len(p.real) for p in stages]
    assert sizes[0] == len(task.real) > sizes[1] >= sizes[2]
    kept = {image.numpy().tobytes() for image in stages[1].real.pixels}
    forgotten = [image.numpy().tobytes() for image, c in zip(task.real.pixels, counts.tolist(), strict=True) if c >= 1]
    assert set(forgotten) <= kept
