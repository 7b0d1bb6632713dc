"""Coresets from the inside: what they choose, that no image is taken twice, and what they refuse."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_coresets.clusters import KMeans, k_means, pairs
from ddbench_coresets.coreset import Coreset
from ddbench_coresets.greedy import Herding, KCenter, herding, k_center
from ddbench_coresets.prototypes import Ssp
from ddbench_coresets.pruning import D2, Ccs, Moderate
from ddbench_coresets.sampled import Random
from ddbench_coresets.scored import El2n, Forgetting, error_lengths, forgotten, rank
from ddbench_coresets.taken import taken
from problems import everything, rows_of, solve, solve_in_stages, toy
from sklearn.cluster import KMeans as Lloyd
from torch import nn

from ddbench import Curriculum, Network, Problem, SyntheticSet, UsageError
from ddbench.run.baseline import baseline
from ddbench.run.prepare import prepared
from ddbench.run.spec import Request, resolve

COMMON: dict[str, Any] = {"experts": 2, "teacher_epochs": 2}
BY_FEATURES = [Herding(**COMMON, epochs=1), KCenter(**COMMON, epochs=1), KMeans(**COMMON, epochs=1)]
BY_SCORE = [
    *(Forgetting(**COMMON, epochs=3, order=order) for order in ("easiest", "moderate", "hardest")),
    *(El2n(**COMMON, epochs=1, order=order) for order in ("easiest", "moderate", "hardest")),
]
PRUNING = [Moderate(**COMMON, epochs=1), Ccs(**COMMON, epochs=2), D2(**COMMON, epochs=2), Ssp(**COMMON, epochs=1)]
CHOOSING = [*BY_FEATURES, *BY_SCORE, *PRUNING]
ALL = [Random(**COMMON), *CHOOSING]
NONE = torch.empty(0, dtype=torch.int64)


def name_of(method: Coreset) -> str:
    return f"{method.name}-{getattr(method, 'order', 'x')}"  # pyright: ignore[reportAttributeAccessIssue]


def features(seed: int, m: int = 30, f: int = 5) -> torch.Tensor:
    return torch.randn(m, f, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).exp()


# --------------------------------------------------------------------------------- the algorithms, in float64


@pytest.mark.parametrize("gone", [[], [4], [7, 0, 19]])
@pytest.mark.parametrize("seed", range(4))
def test_herding_takes_the_image_that_brings_the_sum_nearest_to_that_many_means(seed, gone):
    x = features(seed).numpy()
    mean, chosen = sum(x) / len(x), list(gone)
    while len(chosen) < len(gone) + 12:
        gaps = {}
        for candidate in range(len(x)):
            if candidate not in chosen:
                total = sum((x[c] for c in chosen), np.zeros(5)) + x[candidate]
                gaps[candidate] = np.sqrt((((len(chosen) + 1) * mean - total) ** 2).sum())
        chosen.append(min(gaps, key=gaps.__getitem__))
    found = herding(torch.from_numpy(x), torch.tensor(gone, dtype=torch.int64), 12)
    assert found.tolist() == chosen[len(gone) :]


def test_herding_follows_the_mean_where_the_argmax_of_deepcore_would_run_away():
    x = features(0, 200)
    near = (x[herding(x, NONE, 10)].mean(0) - x.mean(0)).norm()
    generator = torch.Generator().manual_seed(0)
    drawn = [(x[torch.randperm(200, generator=generator)[:10]].mean(0) - x.mean(0)).norm() for _ in range(50)]
    assert near < min(drawn) / 2


@pytest.mark.parametrize("gone", [[], [4], [7, 0, 19]])
@pytest.mark.parametrize("seed", range(4))
def test_k_center_takes_the_farthest_image_and_first_the_nearest_to_the_centre(seed, gone):
    x = features(seed).numpy()
    chosen = list(gone) or [min(range(len(x)), key=lambda i: np.linalg.norm(x[i] - x.mean(0)))]
    while len(chosen) < len(gone) + 12:
        reach = {i: min(np.linalg.norm(x[i] - x[c]) for c in chosen) for i in range(len(x)) if i not in chosen}
        chosen.append(max(reach, key=reach.__getitem__))
    found = k_center(torch.from_numpy(x), torch.tensor(gone, dtype=torch.int64), 12)
    assert found.tolist() == chosen[len(gone) :]


@pytest.mark.parametrize("gone", [[], [3], [11, 2]])
def test_k_means_takes_the_nearest_free_image_to_each_centroid_that_none_before_is_nearest_to(gone):
    x = np.random.default_rng(1).random((120, 3))  # no cluster of two: they are equally far from their mean
    torch.manual_seed(5)
    state = int(torch.randint(2**31 - 1, ()))
    lloyd: Any = Lloyd
    centroids = list(lloyd(len(gone) + 6, n_init=2, random_state=state).fit(x).cluster_centers_)
    left = list(gone)
    while left:  # images that are there close centroids, nearest pair first
        c, row = min(
            ((c, r) for c in range(len(centroids)) for r in left),
            key=lambda p: np.linalg.norm(centroids[p[0]] - x[p[1]]),
        )
        left.remove(row)
        del centroids[c]
    expected, free = set(), set(range(120)) - set(gone)
    while centroids:
        c, row = min(
            ((c, r) for c in range(len(centroids)) for r in free),
            key=lambda p: np.linalg.norm(centroids[p[0]] - x[p[1]]),
        )
        free.remove(row)
        expected.add(row)
        del centroids[c]
    torch.manual_seed(5)
    found = k_means(torch.from_numpy(x), torch.tensor(gone, dtype=torch.int64), 6, restarts=2).tolist()
    assert len(found) == 6
    assert set(found) == expected


def test_k_means_finds_the_middle_of_each_of_four_clouds():
    clouds = [
        torch.tensor([[a, b]]) * 100.0 + features(i, 9, 2) for i, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)])
    ]
    middles = {9 * i + int((c - c.mean(0)).norm(dim=1).argmin()) for i, c in enumerate(clouds)}
    torch.manual_seed(0)
    assert set(k_means(torch.cat(clouds), NONE, 4).tolist()) == middles


def test_k_means_takes_no_image_twice_where_images_are_alike():
    x = torch.ones(6, 3, dtype=torch.float64)
    assert sorted(k_means(x, torch.tensor([2]), 5).tolist()) == [0, 1, 3, 4, 5]


def test_k_means_draws_from_the_generator_of_torch_alone():
    x = features(2, 60)
    torch.manual_seed(1)
    one = k_means(x, NONE, 8)
    np.random.seed(99)
    torch.manual_seed(1)
    assert torch.equal(k_means(x, NONE, 8), one)
    assert any(not torch.equal(k_means(x, NONE, 8).sort().values, one.sort().values) for _ in range(5))


def test_pairs_are_made_nearest_first():
    distances = torch.tensor([[1.0, 2.0, 9.0], [0.5, 3.0, 4.0]])
    assert pairs(distances) == [(0, 1), (1, 0)]
    assert pairs(distances.T) == [(0, 1), (1, 0)]
    assert pairs(distances[:, :0]) == []


def test_forgetting_counts_each_fall_from_right_to_wrong_and_never_right_as_always_forgotten():
    right = torch.rand(7, 200, generator=torch.Generator().manual_seed(0)) < 0.4
    right[:, :3] = torch.tensor([[False, True, True]] * 7)
    right[0, 2] = False  # learned, and never forgotten
    expected = []
    for image in range(200):
        events, was = 0, False
        for epoch in range(7):
            now = bool(right[epoch, image])
            events += was and not now
            was = now
        expected.append(events if any(right[:, image].tolist()) else 7)
    assert forgotten(right).tolist() == expected
    assert expected[:3] == [7, 0, 0]
    assert max(expected[3:]) == 7 or max(expected[3:]) <= 3


def test_error_is_the_length_of_softmax_minus_one_hot():
    logits = torch.randn(20, 4, dtype=torch.float64)
    labels = torch.arange(20) % 4
    for row, label, found in zip(
        logits.tolist(), labels.tolist(), error_lengths(logits, torch.eye(4)[labels]), strict=True
    ):
        shares = np.exp(row) / np.exp(row).sum()
        shares[label] -= 1
        assert float(found) == pytest.approx(np.sqrt((shares**2).sum()), rel=1e-12)


def test_orders_are_low_middle_and_high_scores():
    scores = torch.tensor([5.0, 1.0, 9.0, 3.0, 4.0])
    assert rank(scores, "easiest").tolist() == [1, 3, 4, 0, 2]
    assert rank(scores, "hardest").tolist() == [2, 0, 4, 3, 1]
    assert rank(scores, "moderate")[0] == 4
    assert set(rank(scores, "moderate")[:3].tolist()) == {4, 3, 0}
    assert rank(scores, "moderate")[-1] == 2


@pytest.mark.parametrize("order", ["easiest", "moderate", "hardest"])
def test_equal_scores_are_in_random_order(order):
    first = Counter()
    for seed in range(300):
        torch.manual_seed(seed)
        first[int(rank(torch.tensor([0, 0, 0, 0]), order)[0])] += 1
    assert len(first) == 4
    assert min(first.values()) > 45


# --------------------------------------------------------------------------------- on a problem


@pytest.mark.parametrize("method", ALL, ids=name_of)
def test_a_coreset_is_of_different_real_images_in_class_order(method):
    problem = toy(4)
    made = solve(method, problem)
    rows = rows_of(made.images, problem.real)
    assert len(set(rows)) == 12
    assert problem.real.targets[rows].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(made.labels, torch.eye(3).repeat_interleave(4, 0))
    assert made.label_type == "hard"
    assert torch.equal(made.images, solve(method, problem).images)


@pytest.mark.parametrize("method", BY_FEATURES, ids=name_of)
def test_features_are_those_of_all_experts_side_by_side_in_evaluation_mode(method):
    problem = prepared(toy(3, network__norm="batch"), method.needs(toy(3, network__norm="batch")))
    real, network, experts = problem.real, problem.network, problem.experts
    table = torch.cat(
        [network.features(experts.snapshot(i, 1), everything(real).images, train=False) for i in (0, 1)], 1
    )
    pick = {"herding": herding, "k-center": k_center, "k-means": lambda *a: k_means(*a, restarts=3)}[method.name]
    with (problem.seed / "init").scope():
        rows = [int(m[r]) for m in real.members for r in pick(table[m].detach(), NONE, 3)]
    assert rows_of(solve(method, problem).images, real) == rows


@pytest.mark.parametrize("method", BY_SCORE[:3], ids=name_of)
def test_forgetting_sums_events_over_experts_on_unaugmented_images(method):
    problem = prepared(toy(4), method.needs(toy(4)))
    real, network = problem.real, problem.network
    counts = []
    for row in range(len(real)):
        image, target, events = real[torch.tensor([row])].images, int(real.targets[row]), 0
        for expert in (0, 1):
            right = [
                int(network.apply(problem.experts.snapshot(expert, e), image, train=False).argmax()) == target
                for e in (1, 2, 3)
            ]
            events += sum(a and not b for a, b in pairwise(right)) if any(right) else 3
        counts.append(events)
    made = rows_of(solve(method, problem).images, real)
    assert len(set(counts)) > 2
    for label, members in enumerate(real.members):
        mine = [counts[m] for m in members.tolist()]
        sign, center = {"easiest": (1, 0), "hardest": (-1, 0), "moderate": (1, float(np.median(mine)))}[method.order]
        chosen = [sign * abs(counts[row] - center) for row in made[4 * label : 4 * label + 4]]
        assert chosen == sorted(sign * abs(count - center) for count in mine)[:4]


def test_el2n_averages_the_errors_of_experts_at_one_epoch():
    method = BY_SCORE[3]
    problem = prepared(toy(4), method.needs(toy(4)))
    real, shown = problem.real, everything(problem.real)
    scores = np.zeros(len(real))
    for expert in (0, 1):
        logits = problem.network.apply(problem.experts.snapshot(expert, 1), shown.images, train=False).detach()
        shares = np.exp(logits.double().numpy())
        shares /= shares.sum(1, keepdims=True)
        scores += np.sqrt(((shares - shown.labels.numpy()) ** 2).sum(1)) / 2
    expected = [m for members in real.members for m in sorted(members.tolist(), key=lambda r: scores[r])[:4]]
    assert rows_of(solve(method, problem).images, real) == expected


def test_needs_are_the_snapshots_that_are_read():
    problem = toy(1)
    assert Herding(epochs=7).needs(problem).snapshots == (7,)
    assert Herding(epochs=7, labels="teacher", teacher_epochs=3).needs(problem).snapshots == (3, 7)
    assert Forgetting(epochs=4).needs(problem).snapshots == (1, 2, 3, 4)
    assert (El2n().needs(problem).experts, El2n(epochs=2).needs(problem).snapshots) == (10, (2,))
    assert Random().needs(problem).experts == 0


# --------------------------------------------------------------------------------- labels and decoders


@pytest.mark.parametrize("method", [Random, Herding], ids=lambda m: m.name)
@pytest.mark.parametrize("factor", [1, 2])
def test_teacher_labels_are_the_mean_prediction_of_experts_for_what_is_decoded(method, factor):
    problem = toy(2, decoder__factor=factor)
    hard, soft = (method(**COMMON, labels=labels) for labels in ("hard", "teacher"))
    problem = prepared(problem, soft.needs(problem))
    made = solve(soft, problem)
    if method is Random:
        assert torch.equal(made.images, problem.sample().images)
    for stored, label in zip(made.images, made.labels, strict=True):
        seen = problem.decoder(stored[None])
        assert len(seen) == factor**2
        shares = [
            problem.network.apply(problem.experts.snapshot(i, 2), s[None], train=False).softmax(1)[0].detach()
            for i in (0, 1)
            for s in seen
        ]
        assert torch.allclose(label, torch.stack(shares).mean(0), atol=1e-6)
    assert made.label_type == "teacher"
    assert hard.labels == "hard"


@pytest.mark.parametrize("method", ALL, ids=name_of)
def test_a_stored_image_is_packed_from_several_that_were_chosen(method):
    problem = toy(2, decoder__factor=2)
    made = solve(method, problem)
    assert made.images.shape == (6, *problem.real.shape)
    assert made.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    one = toy(8)  # the same images, each in a place of its own
    if method.name != "random":
        single = solve(method, one)
        assert torch.equal(made.images, problem.decoder.pack(single.images))


# --------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("variant", [{}, {"dataset__zca": True, "dataset__channels": 3}], ids=["plain", "zca"])
@pytest.mark.parametrize("method", ALL, ids=name_of)
def test_stages_together_take_every_image_of_a_class_once(method, variant):
    whole = toy(1, **variant)
    whole = replace(whole, ipc=whole.real.smallest_class)
    images = torch.cat([s.images for s in solve_in_stages(method, whole, "pdd", 3)])
    real = whole.real[torch.arange(len(whole.real))].images
    nearest = torch.cdist(images.flatten(1), real.flatten(1), p=torch.inf)
    assert nearest.min(1).values.max() < 1e-4
    per_class = Counter(whole.real.targets[nearest.argmin(1)].tolist())
    assert per_class == dict.fromkeys(range(3), whole.ipc)
    assert len(set(nearest.argmin(1).tolist())) == 3 * whole.ipc


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("method", CHOOSING[:4], ids=name_of)
def test_no_image_is_packed_twice_in_stages(method, factor):
    """A factor of 3 does not divide the 8 pixels: the last cells are cut."""
    whole = toy(2 if factor == 2 else 1, decoder__factor=factor, dataset__per_class=30)
    if factor == 3:
        whole = replace(whole, ipc=2)
    made = solve_in_stages(method, whole, "pdd", 2)
    done = Curriculum(tuple(made), ((0,), (0, 1)))
    gone = taken(replace(whole, frozen=done))
    for rows in gone:
        assert len(set(rows.tolist())) == len(rows) == whole.shown


@pytest.mark.parametrize("method", [BY_FEATURES[0], BY_FEATURES[1], BY_SCORE[3]], ids=name_of)
def test_stages_that_judge_by_the_same_networks_choose_what_one_stage_does(method):
    whole = toy(6)
    one = solve(method, whole).images.view(3, 6, -1)
    parts = solve_in_stages(method, whole, "boost", 3)
    assert torch.equal(torch.cat([s.images.view(3, 2, -1) for s in parts], 1), one)


def twins(problem: Problem, ipc: int) -> Problem:
    """The problem with every image of the first class twice."""
    real = problem.real
    members = real.members[0]
    rows = torch.cat([members, members, torch.arange(len(real))[real.targets > 0]])
    return replace(problem, real=real.subset(rows), ipc=ipc)


@pytest.mark.parametrize("method", [BY_FEATURES[0], BY_FEATURES[2], BY_SCORE[3]], ids=name_of)
def test_of_images_that_are_alike_each_is_there_to_be_taken(method):
    whole = twins(toy(1), 1)
    size = whole.real.smallest_class
    images = torch.cat(
        [
            s.images.view(3, -1, *whole.real.shape)[0]
            for s in solve_in_stages(method, replace(whole, ipc=size), "pdd", 2)
        ]
    )
    assert max(Counter(rows_of(images, whole.real)).values()) <= 2
    assert len(images) == size


def test_taken_images_are_found_in_their_order_and_others_take_none():
    problem = toy(2)
    rows = torch.cat([m[torch.tensor([5, 1])] for m in problem.real.members])
    real, labels = problem.real[rows].images, torch.eye(3).repeat_interleave(2, 0)
    frozen = Curriculum((SyntheticSet(real, labels), SyntheticSet(real + 1, labels)), ((0,), (0, 1)))
    assert [t.tolist() for t in taken(replace(problem, frozen=frozen))] == [[5, 1]] * 3
    assert [t.tolist() for t in taken(problem)] == [[]] * 3


# --------------------------------------------------------------------------------- what they refuse


@pytest.mark.parametrize("method", CHOOSING, ids=name_of)
def test_more_images_than_a_class_has_are_refused_before_experts_are_trained(method):
    problem = toy(1)
    most = problem.real.smallest_class
    with pytest.raises(UsageError, match=rf"{most + 1} real images per class .* has {most} .*smaller --ipc"):
        method.needs(replace(problem, ipc=most + 1))
    method.needs(replace(problem, ipc=most))
    packed = replace(problem, ipc=most, decoder=replace(problem.decoder, factor=2))
    with pytest.raises(UsageError, match=rf"{4 * most} real images per class asked for \(4 to each"):
        method.needs(packed)
    made = SyntheticSet(torch.zeros(6, *problem.real.shape), torch.eye(3).repeat_interleave(2, 0))
    with pytest.raises(UsageError, match=rf"{most + 1} real images"):
        method.needs(replace(problem, ipc=most - 1, frozen=Curriculum((made,), ((0,),))))


@dataclass(frozen=True)
class Plain:
    name = "plain"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


@pytest.mark.parametrize("method", BY_FEATURES, ids=name_of)
def test_a_network_without_features_is_refused_before_experts_are_trained(method):
    problem = toy(1)
    starts = replace(problem.starts, network=Network(Plain(), problem.real.shape, 3))
    with pytest.raises(UsageError, match=r"'plain' has no features\(x\)"):
        method.needs(replace(problem, starts=starts))


@pytest.mark.parametrize("method", BY_SCORE[2:4], ids=name_of)
def test_scores_need_no_features(method):
    problem = toy(1)
    starts = replace(problem.starts, network=Network(Plain(), problem.real.shape, 3))
    assert len(solve(method, replace(problem, starts=starts))) == 3


# --------------------------------------------------------------------------------- recipes

PUBLISHED = [
    *(("cifar10", ipc, 1, epochs) for ipc, epochs in [(1, 20), (10, 44), (50, 128), (100, 164)]),
    *(("cifar100", ipc, 1, epochs) for ipc, epochs in [(1, 13), (10, 36), (50, 125), (100, 125)]),
]


@pytest.mark.parametrize(("dataset", "ipc", "experts", "epochs"), PUBLISHED)
def test_labelling_experts_stop_later_where_there_are_more_images(dataset, ipc, experts, epochs):
    made = resolve(
        Request(dataset, "random", "single", ipc=ipc, device="cpu", flags=(("matcher.labels", "teacher"),))
    ).spec
    assert (made.matcher.experts, made.matcher.teacher_epochs) == (experts, epochs)
    assert made.experts.lr == (1e-3 if dataset == "cifar10" else 1e-2)
    assert made.experts.epochs is None or made.experts.epochs >= epochs


def test_random_images_beside_a_run_are_labelled_by_experts_that_train_as_long_as_their_recipe_says():
    flags = (("matcher.labels", "teacher"),)
    beside = baseline(resolve(Request("cifar10", "tesla", "single", ipc=50, device="cpu", flags=flags)).spec, "teacher")
    assert (beside.experts.epochs, beside.experts.lr) == (128, 1e-3)
    assert beside.matcher.teacher_epochs == 128
