"""SSP from the inside: the turned images, the embedding that sees no label, and distances from prototypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ddbench_coresets.prototypes import Ssp, Turned, distances
from noise import noise
from problems import everything, rows_of, solve, toy
from sklearn.cluster import KMeans as Lloyd

from ddbench import Pixels, RealData, UsageError

QUICK = Ssp(epochs=2, batch=50)


def test_every_image_comes_in_four_turns():
    real = toy(2).real
    turned, held = Turned(real), everything(real).images.numpy()
    assert len(turned) == 4 * len(real)
    rows = torch.tensor([0, 5, 2, 4 * len(real) - 1])
    shown = turned[rows]
    for row, image, label in zip(rows.tolist(), shown.images, shown.labels, strict=True):
        np.testing.assert_array_equal(image.numpy(), np.rot90(held[row // 4], row % 4, (1, 2)))
        assert label.tolist() == [float(t == row % 4) for t in range(4)]


def test_distances_are_cosines_from_the_nearest_prototype():
    generator = torch.Generator().manual_seed(0)
    x, c = (torch.randn(n, 5, dtype=torch.float64, generator=generator).exp() for n in (17, 4))
    wanted = [min(1 - float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)) for b in c.numpy()) for a in x.numpy()]
    np.testing.assert_allclose(distances(x, c).numpy(), wanted, rtol=1e-12, atol=1e-14)


def test_the_embedding_tells_turns_apart_and_sees_no_label():
    problem = toy(2)
    network, vector = Ssp(epochs=40, batch=50).embedding(problem)
    shown = Turned(problem.real)[torch.arange(4 * len(problem.real))]
    right = (network.apply(vector, shown.images, train=False).argmax(1) == shown.labels.argmax(1)).double().mean()
    assert network.classes == 4
    assert float(right) > 0.5  # chance is a quarter
    other = replace(problem.real, targets=problem.real.targets.flip(0))
    assert torch.equal(QUICK.embedding(replace(problem, real=other))[1], QUICK.embedding(problem)[1])
    assert torch.equal(QUICK.embedding(replace(problem, seed=problem.seed / "other"))[1], QUICK.embedding(problem)[1])


@pytest.mark.parametrize("order", ["easiest", "hardest"])
def test_images_are_those_nearest_to_or_farthest_from_prototypes_by_hand(order):
    problem = toy(3)
    method = replace(QUICK, order=order, prototypes=4)
    network, vector = method.embedding(problem)
    shown = everything(problem.real)
    features = network.features(vector, shown.images, train=False).numpy()
    torch.manual_seed(0)
    lloyd = Lloyd(4, n_init=3, random_state=int(torch.randint(2**31 - 1, ()))).fit(features)
    x, c = features.astype(np.float64), lloyd.cluster_centers_.astype(np.float64)
    score = (1 - x @ c.T / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(c, axis=1))).min(1)
    torch.manual_seed(0)
    made = method.choose(problem)
    for label in range(3):
        own = sorted(problem.real.members[label].tolist(), key=lambda i: score[i] * (1 if order == "easiest" else -1))
        chosen = made.images[3 * label : 3 * label + 3]
        for i in own[:3]:
            assert any(torch.equal(shown.images[i], image) for image in chosen)


def test_what_cannot_be_turned_or_clustered_is_refused_before_anything_is_trained():
    problem = toy(2)
    wide = RealData(Pixels.of(noise(60, 1, 8, 9)), torch.arange(60) % 3, problem.real.preprocessing, 3)
    with pytest.raises(UsageError, match="images of 8x9 pixels cannot be turned"):
        QUICK.needs(replace(problem, real=wide))
    with pytest.raises(UsageError, match="41 prototypes asked for, but there are 40"):
        replace(QUICK, prototypes=41).needs(replace(problem, real=problem.real.subset(torch.arange(40))))
    with pytest.raises(UsageError, match="choose a smaller --ipc"):
        QUICK.needs(replace(problem, ipc=1000))


def test_the_labels_of_experts_come_as_for_every_coreset():
    problem = toy(2)
    assert QUICK.needs(problem).experts == 0
    assert replace(QUICK, labels="teacher", experts=2).needs(problem).experts == 2
    assert len(rows_of(solve(QUICK, problem).images, problem.real)) == 6
