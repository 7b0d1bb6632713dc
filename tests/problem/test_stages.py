"""What staged schedulers share: sizes that divide a budget, and networks that earlier stages taught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ddbench_pdd.progressive import Progressive
from ddbench_schedulers.boost import Boost
from ddbench_schedulers.seqmatch import SeqMatch
from problems import stage_problems

from ddbench import Curriculum, Problem, UsageError
from ddbench.base.options import make
from ddbench.problem.stages import Staged
from ddbench.testing import toy_task


@pytest.fixture
def task(tmp_path) -> Problem:
    return toy_task(ipc=7, folder=tmp_path)


@pytest.mark.parametrize("kind", [Progressive, SeqMatch, Boost])
def test_unequal_stages_get_the_sizes_that_are_named(kind, task):
    assert [p.ipc for p in stage_problems(kind(stages=3, sizes=(4, 1, 2)), task)] == [4, 1, 2]
    assert [p.ipc for p in stage_problems(kind(stages=3), task)] == [3, 2, 2]


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


@pytest.mark.parametrize("plan", [SeqMatch(stages=3), Progressive(stages=3, chain=False)])
def test_fresh_stages_draw_other_initialisations_and_learn_all_earlier_sets(plan, task):
    stages = stage_problems(plan, task)
    inits = [p.network.init(p.starts.seed / 0 / "init") for p in stages]
    assert not torch.equal(inits[0], inits[1])
    assert not torch.equal(inits[1], inits[2])
    assert [len(p.starts.taught.sets) for p in stages] == [0, 1, 2]
    assert stages[2].starts.taught.phases == ((0,), (0, 1))
    assert torch.equal(stages[0].starts[3], task.starts[3])


@pytest.mark.parametrize("kind", [Staged, Progressive, SeqMatch, Boost])
def test_fewer_than_one_stage_is_refused(kind):
    assert make(kind, {"stages": 1}, "scheduler").stages == 1
    with pytest.raises(UsageError, match=r"scheduler\.stages"):
        make(kind, {"stages": 0}, "scheduler")
