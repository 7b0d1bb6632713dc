"""Moderate, CCS and D2 against plain loops over their papers' definitions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ddbench_coresets.pruning import Ccs, _left, margin, margins, moderate, spread, stratified
from problems import everything, toy
from torch import Tensor

from ddbench.run.prepare import prepared

NONE = torch.empty(0, dtype=torch.int64)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gone", [[], [4], [7, 0, 19]])
@pytest.mark.parametrize("seed", range(3))
def test_moderate_takes_the_middle_ranks_of_the_distance_from_the_mean(seed, gone):
    x = noise(seed, 31, 4).exp().numpy()
    distance = [float(np.linalg.norm(row - x.mean(0))) for row in x]
    ranked = sorted(range(31), key=lambda i: distance[i])
    outwards = sorted(range(31), key=lambda place: abs(place - 15))
    expected = [ranked[place] for place in outwards if ranked[place] not in gone][:9]
    assert moderate(torch.from_numpy(x), torch.tensor(gone, dtype=torch.int64), 9).tolist() == expected


def test_a_margin_is_the_true_logit_less_the_largest_other():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 4.0]], dtype=torch.float64)
    assert margin(logits, torch.eye(3, dtype=torch.float64)[[0, 0]]).tolist() == [1.0, -4.0]


def test_margins_are_means_over_networks_and_epochs():
    method = Ccs(experts=2, teacher_epochs=2, epochs=2)
    problem = prepared(toy(2), method.needs(toy(2)))
    shown = everything(problem.real)
    found = margins(problem, 2, method.reads())
    expected = torch.zeros(len(problem.real), dtype=torch.float64)
    for expert in range(2):
        for epoch in (1, 2):
            logits = problem.network.apply(problem.experts.snapshot(expert, epoch), shown.images, train=False)
            for i, label in enumerate(problem.real.targets.tolist()):
                others = [float(v) for k, v in enumerate(logits[i]) if k != label]
                expected[i] += (float(logits[i, label]) - max(others)) / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 20, 40])
def test_strata_get_equal_shares_and_the_emptiest_is_served_first(count):
    """Shares counted by hand, as algorithm 1 of the paper has them; 40 images in ranges of 1, 4, 10 and 25."""
    sizes = (1, 4, 10, 25)
    scores = torch.cat([s + 0.5 * noise(s, n).sigmoid() for s, n in enumerate(sizes)])
    scores[0], scores[-1] = 0.0, 4.0  # ranges of width one
    shares, left = [], count
    for done, size in enumerate(sizes):
        shares.append(min(size, left // (4 - done)))
        left -= shares[-1]
    torch.manual_seed(0)
    chosen = stratified(scores, count, 4)
    assert [int((scores[chosen].clamp_max(3.9).long() == s).sum()) for s in range(4)] == shares
    assert len(set(chosen.tolist())) == count == sum(shares)


def test_images_that_are_equally_hard_are_one_range():
    assert sorted(stratified(torch.ones(5, dtype=torch.float64), 5, 50).tolist()) == [0, 1, 2, 3, 4]


def test_the_hardest_are_left_out_but_never_more_than_leave_enough():
    scores = torch.arange(10, dtype=torch.float64)  # 0 is the hardest
    assert _left(scores, NONE, 0.3, 2).tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert _left(scores, torch.tensor([9]), 0.3, 2).tolist() == [3, 4, 5, 6, 7, 8]
    assert _left(scores, torch.tensor([9]), 0.9, 4).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("gammas", [(1.0, 0.1), (0.0, 0.0), (0.5, 2.0)])
@pytest.mark.parametrize("first", [[], [3], [11, 2]])
def test_messages_are_passed_as_in_the_paper(first, gammas):
    x, s = noise(5, 24, 3).numpy(), noise(6, 24).abs().numpy()
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    nearest = {i: sorted((j for j in range(24) if j != i), key=lambda j: distance[i, j])[:4] for i in range(24)}
    edges = {(i, j) for i in range(24) for j in range(24) if j in nearest[i] or i in nearest[j]}
    unit = sum(distance[i, j] for i, j in edges) / len(edges)
    forward, reverse = gammas
    value = [s[i] + sum(np.exp(-forward * distance[i, j] / unit) * s[j] for a, j in edges if a == i) for i in range(24)]
    taken: list[int] = []
    for step in range(len(first) + 8):
        free = [i for i in range(24) if i not in taken]
        best = first[step] if step < len(first) else max(free, key=lambda i: value[i])
        taken.append(best)
        held = value[best]
        for j in range(24):
            if (best, j) in edges:
                value[j] -= np.exp(-reverse * distance[best, j] / unit) * held
    rows = torch.tensor(first, dtype=torch.int64)
    found = spread(torch.from_numpy(x), torch.from_numpy(s), rows, 8, 4, forward, reverse)
    assert found.tolist() == taken[len(first) :]


def test_d2_takes_hard_images_that_do_not_stand_for_each_other():
    """Two clouds, one of them harder: without the reverse pass all images would come from there."""
    clouds = torch.cat([0.01 * noise(0, 12, 2), 5 + 0.01 * noise(1, 12, 2)])
    hard = torch.tensor([2.0] * 12 + [1.5] * 12, dtype=torch.float64)
    assert {int(i) // 12 for i in spread(clouds, hard, NONE, 2, 5, 1.0, 0.1)} == {0, 1}
    assert {int(i) // 12 for i in spread(clouds, hard, NONE, 2, 5, 1.0, 1e9)} == {0}
