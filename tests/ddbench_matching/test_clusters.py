"""DREAM's real images: clusters as scikit-learn finds them, the nearest images, and who matches them when."""

from __future__ import annotations

from dataclasses import replace

import ddbench_matching.clusters as clusters
import numpy as np
import pytest
import torch
from ddbench_matching.clusters import centroids, chosen_rows, clustered_sample, one_each, representatives
from ddbench_matching.dm import Dm
from ddbench_matching.gradient import Dc, Dsa
from ddbench_matching.idc import Dream, Idc
from ddbench_networks import ConvNet
from float64 import close, precise
from modules import module_of
from problems import play, rows_of, second_stage, toy
from sklearn.cluster import KMeans

from ddbench import UsageError
from ddbench.run.spec import Request, resolve

INSTANCE = ConvNet(width=4)


def scattered(seed: int = 0) -> torch.Tensor:
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("count", [1, 4, 17])
def test_centroids_are_those_of_scikit_learn_from_the_same_beginning(count):
    x = scattered()
    torch.manual_seed(3)
    first = x[torch.randperm(60)[:count]]
    expected = KMeans(count, init=first.numpy(), n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(x.numpy())
    torch.manual_seed(3)
    assert close(centroids(x, count), torch.from_numpy(expected.cluster_centers_))


def test_a_cluster_without_images_stays_where_it_was():
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0]]).double()
    for seed in range(5):
        torch.manual_seed(seed)
        assert set(centroids(x, 3).flatten().tolist()) <= {0.0, 5.0}


def test_representatives_are_the_images_nearest_to_the_centroids_of_the_networks_features():
    problem = precise(INSTANCE)
    vector, members = problem.starts[5], problem.real.members[1]
    x = module_of(problem.network, vector).eval().features(problem.real[members].images).detach().numpy()
    torch.manual_seed(0)
    first = x[torch.randperm(len(x))[:6].numpy()]
    places = KMeans(6, init=first, n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(x).cluster_centers_
    nearest = [int(np.square(x - place).sum(1).argmin()) for place in places]
    torch.manual_seed(0)
    assert representatives(problem, vector, 1, 6).tolist() == members[nearest].tolist()
    assert torch.equal(representatives(problem, vector, 1, len(members)), members)


def test_each_row_takes_the_nearest_column_that_is_free():
    distances = torch.tensor([[1.0, 2.0, 3.0], [0.5, 4.0, 6.0], [0.1, 0.2, 9.0]])
    assert one_each(distances).tolist() == [0, 1, 2]
    assert distances[0, 0] == 1.0


def test_images_start_at_one_image_of_each_cluster_and_later_stages_at_others():
    problem = toy(ipc=3)
    torch.manual_seed(0)
    started = clustered_sample(problem)
    rows = rows_of(started.images, problem.real)
    assert len(set(rows)) == 9
    assert torch.equal(problem.real.targets[rows], torch.arange(3).repeat_interleave(3))
    assert torch.equal(started.labels, torch.eye(3).repeat_interleave(3, 0))
    later = second_stage(problem)
    before = rows_of(later.frozen.sets[0].images, problem.real)
    for seed in range(3):
        torch.manual_seed(seed)
        assert not set(before) & set(rows_of(clustered_sample(later).images, problem.real))
    with pytest.raises(UsageError, match="real images per class to start from, but class 0 has"):
        clustered_sample(replace(problem, ipc=1000))


def test_classes_are_clustered_anew_at_intervals(monkeypatch):
    calls = []

    def found(problem, vector, label, count):
        calls.append((int(vector), label, count))
        return torch.tensor([len(calls)])

    monkeypatch.setattr(clusters, "representatives", found)
    problem, rows, seen = toy(ipc=1), None, []
    for t in range(5):
        rows = chosen_rows(Dm(sampling="k-means", cluster_every=2, batch_real=7), problem, torch.tensor(t), t, rows)
        seen.append([int(r) for r in rows])
    assert seen == [[1, 2, 3]] * 2 + [[4, 5, 6]] * 2 + [[7, 8, 9]]
    assert calls == [(t, label, 7) for t in (0, 2, 4) for label in range(3)]
    assert chosen_rows(Dm(), problem, torch.tensor(0), 0, None) is None


@pytest.mark.parametrize(
    ("method", "clustered"),
    [  # the matching steps of three iterations before which classes are clustered
        (Dm(cluster_every=2), 2),
        (Dc(outer=3, inner=1, cluster_every=2), 6),
        (Dsa(outer=2, inner=1), 3),
        (Idc(inner=2, n_data=9), 2),
        (Dream(inner=5, n_data=9), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_is_matched_is_what_was_chosen(method, clustered, monkeypatch):
    """Real images are then no others than the two that were chosen of each class."""
    method = replace(method, sampling="k-means", batch_real=2)
    problem, fetched, calls = toy(ipc=1), [], []
    kept = type(problem.real).__getitem__

    def spied(self, index):
        fetched.append(index)
        return kept(self, index)

    def found(problem, vector, label, count):
        calls.append(label)
        return problem.real.members[label][[5, 8]]

    monkeypatch.setattr(clusters, "representatives", found)
    for module in ("common", "dm", "gradient", "idc"):
        monkeypatch.setattr(f"ddbench_matching.{module}.fit", lambda n, student, *_, **__: student, raising=False)
    with (problem.seed / "init").scope():
        state = method.init(problem)
    monkeypatch.setattr(type(problem.real), "__getitem__", spied)
    for k in range(3):
        with (problem.seed / k).scope():
            state, numbers = method.step(problem, state, k)
        assert float(numbers["loss"]) > 0
    chosen = {int(m[i]) for m in problem.real.members for i in (5, 8)}
    assert {int(i) for index in fetched for i in index} == chosen
    assert calls == [0, 1, 2] * clustered


def test_dream_is_idc_with_both_options():
    problem = toy(ipc=2)
    small = {"inner": 2, "n_data": 18, "batch_real": 9}
    dream, trail = play(Dream(**small), problem, 3)
    idc, same = play(Idc(**small, sampling="k-means", pix_init="k-means"), problem, 3)
    assert torch.equal(dream.images, idc.images)
    assert trail == same != play(Idc(**small), problem, 3)[1]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_recipe_is_idcs_with_the_released_sampling(dataset):
    found, plain = (resolve(Request(dataset, name, ipc=10, device="cpu")).spec for name in ("dream", "idc"))
    m = found.matcher
    assert isinstance(m, Dream)
    assert (m.batch_real, m.sampling, m.cluster_every, m.pix_init) == (128, "k-means", 10, "k-means")
    assert isinstance(plain.matcher, Idc)
    assert (m.steps, m.inner, m.lr_img, m.n_data) == tuple(
        getattr(plain.matcher, n) for n in ("steps", "inner", "lr_img", "n_data")
    )
    assert found.decoder.factor == 2
