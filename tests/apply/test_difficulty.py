"""Real images as hard as those of a set: the score, and the pairing."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import everything, toy_with_experts

from ddbench import UsageError
from ddbench.apply.difficulty import as_hard, difficulty, matched

SCORES = st.floats(0, 1.4, allow_nan=False)


@given(st.lists(SCORES, min_size=1, max_size=3), st.lists(SCORES, min_size=3, max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_pairing_is_the_nearest_of_all_pairings_without_repeats(wanted, scores):
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (wanted, scores))
    found = as_hard(a, b)
    assert len(set(found.tolist())) == len(a)
    best = min(
        sum(abs(w - scores[i]) for w, i in zip(wanted, chosen, strict=True))
        for chosen in permutations(range(len(scores)), len(wanted))
    )
    assert float((a - b[found]).abs().sum()) == pytest.approx(best, abs=1e-12)


def test_each_image_gets_a_real_one_of_its_class_and_none_is_taken_twice():
    problem = toy_with_experts()
    n, k = len(problem.real), problem.classes
    scores = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([k - 1, 0, 1, 0, 0])
    wanted = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2], dtype=torch.float64)
    rows = matched(problem, classes, wanted, scores)
    assert problem.real.targets[rows].tolist() == sorted(classes.tolist())
    assert len(set(rows.tolist())) == 5
    own = {int(r) for r in problem.real.members[1]}
    assert int(rows[3]) == min(own, key=lambda i: abs(float(scores[i]) - 0.5))  # alone in its class: simply the nearest
    with pytest.raises(UsageError, match="leave matched out"):
        matched(problem, torch.zeros(n, dtype=torch.int64), torch.rand(n).double(), scores)


def test_difficulty_is_the_mean_length_of_the_error_over_the_networks():
    problem = toy_with_experts()
    found = difficulty(problem, problem.real.at_hand, 2, 2)
    shown = everything(problem.real)
    expected = torch.zeros(len(shown), dtype=torch.float64)
    for expert in range(2):
        logits = problem.network.apply(problem.experts.snapshot(expert, 2), shown.images, train=False).double()
        for i, label in enumerate(problem.real.targets.tolist()):
            p = [float(v) for v in logits[i].exp() / logits[i].exp().sum()]
            expected[i] += sum((v - (j == label)) ** 2 for j, v in enumerate(p)) ** 0.5 / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(found.std()) > 0.01  # images differ
