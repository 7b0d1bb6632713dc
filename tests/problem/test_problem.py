"""Problems: their experts, and the real images that they sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from beginnings import CLASSES, RECIPE, real, starts

from ddbench import Curriculum, Experts, Problem, Seed, SyntheticSet, UsageError
from ddbench.base.cache import Cache
from ddbench.problem.problem import Needs, state_bytes


def problem(cache: Cache, ipc: int, stages: int = 0) -> Problem:
    return Problem(real(21), ipc, starts(cache, stages), RECIPE, "", Seed(8), frozen=starts(cache, stages).taught)


def test_problems_experts_follow_its_starts(cache):
    one = problem(cache, 2)
    other = replace(one, starts=starts(cache, 1))
    assert one.experts.folder == Experts(one.starts, one.real, RECIPE).folder
    assert other.experts.folder == Experts(other.starts, one.real, RECIPE).folder
    assert other.experts.folder != one.experts.folder


def test_stages_sample_the_images_that_one_stage_would_and_none_twice(cache):
    whole = problem(cache, 5).sample()
    first = problem(cache, 2).sample()
    frozen = Curriculum((SyntheticSet(first.images, first.labels),), ((0,),))
    second = replace(problem(cache, 3), frozen=frozen).sample()
    assert first.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    for label in range(CLASSES):
        parts = [s.images[s.labels.argmax(1) == label] for s in (first, second)]
        assert torch.equal(torch.cat(parts), whole.images[whole.labels.argmax(1) == label])
        assert len(torch.cat(parts).flatten(1).unique(dim=0)) == 5


def test_sample_is_a_function_of_the_runs_seed(cache):
    state = torch.get_rng_state()
    torch.rand(3)
    first = problem(cache, 2).sample().images
    torch.set_rng_state(state)
    assert torch.equal(problem(cache, 2).sample().images, first)
    assert not torch.equal(replace(problem(cache, 2), seed=Seed(9)).sample().images, first)


def test_more_images_than_a_class_has_are_refused(cache):
    with pytest.raises(UsageError, match="ipc 8 asked for, but the smallest class has 7"):
        problem(cache, 8).sample()


def test_the_bytes_of_a_set_are_its_numbers_their_momenta_and_labels_in_float32():
    assert state_bytes(5, 13, 7) == 5 * 13 * 4 + 5 * 13 * 4 + 5 * 7 * 4
    assert state_bytes(5, 13, 7, moments=2) == 5 * 13 * 4 * 3 + 5 * 7 * 4
    assert state_bytes(1, 3, 2, moments=0) == 3 * 4 + 2 * 4


def test_who_needs_nothing_has_nothing_made():
    assert Needs() == Needs(experts=0, snapshots=(), teachers=0)
