"""CCFS from the inside: how the budget is divided, which real images a phase takes, and what filters learn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ddbench_decoupled import ccfs
from ddbench_decoupled.ccfs import Ccfs, held, pick
from ddbench_networks import ConvNet
from problems import everything, rows_of, second_stage, solve, toy
from torch import nn
from torch.nn import functional

from ddbench import Examples, Network, Problem, Seed, Student, UsageError, fit
from ddbench.run.prepare import prepared

QUICK: dict[str, Any] = {"teacher_epochs": 8, "teacher_batch": 20, "recover": 3, "filter_epochs": 2}
CCFS = Ccfs(**QUICK, experts=2, epochs=3, alpha=0.4, phases=2)


def ready(method: Any, ipc: int = 5, **more: Any) -> Problem:
    """The toy task with all that a method asks for."""
    problem = toy(ipc, **more)
    return prepared(problem, method.needs(problem))


@pytest.mark.parametrize(
    ("ipc", "alpha", "phases", "expected"),
    [
        (50, 0.2, 3, (10, [14, 13, 13])),  # as the released commands divide them
        (250, 0.2, 3, (50, [67, 67, 66])),
        (1, 0.2, 3, (1, [0, 0, 0])),
        (3, 0.1, 3, (1, [1, 1, 0])),
        (4, 1.0, 2, (4, [0, 0])),
    ],
)
def test_the_budget_is_divided_into_distilled_images_and_phases(ipc, alpha, phases, expected):
    assert Ccfs(alpha=alpha, phases=phases).counts(ipc) == expected


@pytest.mark.parametrize("seed", range(4))
def test_misclassified_images_come_first_then_known_ones_then_any(seed):
    generator = np.random.default_rng(seed)
    hard = generator.permutation(30).astype(float)
    coarse, free = generator.random(30) < 0.2, generator.random(30) < 0.8
    known = coarse | (generator.random(30) < 0.4)
    order: list[int] = []
    for members in (coarse, known & ~coarse, ~known):
        order += sorted((i for i in range(30) if members[i] and free[i]), key=lambda i: hard[i])
    given = [torch.from_numpy(values) for values in (hard, coarse, known, free)]
    for count in (1, 5, 20):
        assert pick(*given, count).tolist() == order[:count]


def test_images_that_are_equally_hard_come_in_random_order():
    ones = torch.ones(20, dtype=torch.bool)
    torch.manual_seed(0)
    seen = {int(pick(torch.zeros(20), ones, ones, ones, 1)) for _ in range(200)}
    assert len(seen) > 15


def test_a_filter_learns_kl_times_the_square_of_the_temperature():
    """Two steps of torch's own SGD on the loss of the released code, in float64."""
    method = Ccfs(filter_epochs=2, filter_batch=6, filter_lr=0.05, augment="")
    network = Network(ConvNet(width=3, depth=1), (1, 8, 8), 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=generator)
    teach = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    table = {tuple(image.flatten().tolist()): row for image, row in zip(images, teach, strict=True)}

    def label(shown: torch.Tensor) -> torch.Tensor:
        return torch.stack([table[tuple(image.flatten().tolist())] for image in shown])

    start = network.init(Seed(0))
    blank = Examples(images, torch.zeros(6, 3, dtype=torch.float64))
    found = fit(network, Student(start), blank, method.filter_recipe(), Seed(1), teacher=label).vector
    leaf = start.clone().requires_grad_()
    sgd = torch.optim.SGD([leaf], lr=0.05, momentum=0.9, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 2)
    loss_of = nn.KLDivLoss(reduction="batchmean", log_target=True)
    for _ in range(2):
        sgd.zero_grad()
        logits = network.apply(leaf, images)
        (loss_of((logits / 20).log_softmax(1), (teach / 20).log_softmax(1)) * 400).backward()
        sgd.step()
        cosine.step()
    torch.testing.assert_close(found, leaf.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("score", "order"), [("forgetting", "easiest"), ("logits", "easiest"), ("logits", "hardest")])
def test_real_images_are_those_of_a_search_by_hand(score, order):
    """What filters say is noted, and the choice is made anew from it, in lists."""
    method = replace(CCFS, score=score, order=order)
    problem = ready(method)
    said: list[torch.Tensor] = []
    filtered = Ccfs._filtered

    def noting(self, *given):
        said.append(filtered(self, *given))
        return said[-1]

    with patch.object(Ccfs, "_filtered", noting):
        made = solve(method, problem)
    teacher, shown, targets = problem.teacher(0), everything(problem.real), problem.real.targets.tolist()
    known = [int(row.argmax()) == y for row, y in zip(teacher.logits(shown.images, 3), targets, strict=True)]
    events = [0.0] * len(targets)
    for expert in range(2 if score == "forgetting" else 0):
        rights = [
            problem.network.apply(problem.experts.snapshot(expert, e), shown.images, train=False).argmax(1).tolist()
            for e in (1, 2, 3)
        ]
        for i, y in enumerate(targets):
            trail = [right[i] == y for right in rights]
            events[i] += sum(a and not b for a, b in pairwise(trail)) if any(trail) else 3
    assert len(said) == 2
    distilled, counts = method.counts(5)
    assert (distilled, counts) == (2, [2, 1])
    for label in range(3):
        real = rows_of(made.images[5 * label + 2 : 5 * label + 5], problem.real)
        taken: list[int] = []
        for logits, count in zip(said, counts, strict=True):

            def rank(i: int, logits: torch.Tensor = logits, y: int = label) -> tuple[int, float]:
                wrong = int(logits[i].argmax()) != y
                hard = events[i] if score == "forgetting" else -float(logits[i, y])
                return (0 if known[i] and wrong else 1 if known[i] else 2), hard if order == "easiest" else -hard

            free = [i for i, y in enumerate(targets) if y == label and i not in taken]
            own = real[len(taken) : len(taken) + count]
            assert sorted(rank(i) for i in own) == sorted(map(rank, free))[:count]  # equals may stand for each other
            taken += own
        assert len(set(real)) == 3


def test_a_filter_learns_all_images_so_far_from_the_teacher():
    problem, seen = ready(CCFS), []
    earlier = second_stage(problem)
    trained = ccfs.fit

    def noting(network, student, source, *given, **more):
        seen.append((source, more["teacher"]))
        return trained(network, student, source, *given, **more)

    with patch.object(ccfs, "fit", noting):
        made = CCFS.init(replace(earlier))
    assert [len(source) for source, _ in seen] == [21, 27]  # an earlier stage of 15, 6 distilled, 6 chosen
    images = seen[1][0].images
    assert torch.equal(images[:15], earlier.frozen.sets[0].images)
    assert torch.equal(images[15:21].view(3, 2, 1, 8, 8), made.images.view(3, 5, 1, 8, 8)[:, :2])
    assert torch.equal(images[21:].view(3, 2, 1, 8, 8), made.images.view(3, 5, 1, 8, 8)[:, 2:4])
    torch.testing.assert_close(seen[0][1](images), problem.teacher(0).logits(images, 3))


def test_no_real_image_is_taken_twice_also_not_from_an_earlier_stage():
    problem = second_stage(ready(CCFS))
    earlier = rows_of(problem.frozen.sets[0].images, problem.real)
    assert torch.nonzero(held(problem)).flatten().tolist() == sorted(earlier)
    made = solve(CCFS, problem)
    chosen = rows_of(made.images.view(3, 5, 1, 8, 8)[:, 2:].flatten(0, 1), problem.real)
    assert len(set(chosen) | set(earlier)) == 9 + 15


def test_labels_are_those_of_the_teacher_which_comes_along():
    problem = ready(CCFS)
    made = solve(CCFS, problem)
    assert made.teacher is not None
    wanted = functional.softmax(problem.teacher(0).logits(made.images, 3), 1)
    torch.testing.assert_close(made.labels, wanted)
    assert CCFS.needs(toy(5)).snapshots == (1, 2, 3)
    assert replace(CCFS, score="logits").needs(toy(5)).experts == 0


def test_too_few_real_images_are_refused_before_anything_is_trained():
    with pytest.raises(UsageError, match=r"24 real images per class are to be chosen, .* smallest class has 18"):
        CCFS.needs(replace(toy(2), ipc=40))
