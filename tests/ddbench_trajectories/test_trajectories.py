"""What the descendants of MTT add: each number against one computed otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ddbench_networks import ConvNet
from ddbench_tesla import Tesla
from ddbench_trajectories import correct
from ddbench_trajectories.correct import agreed, correct_images, expert_logits
from ddbench_trajectories.datm import PATIENCE, Datm
from ddbench_trajectories.ftd import Ftd
from ddbench_trajectories.mtt import Mtt
from problems import TINY, assert_frozen, begin, everything, play, rows_of, task_of, with_experts
from tiny import spec

from ddbench import Curriculum, DivergedError, Problem, SyntheticSet, UsageError
from ddbench.problem.decode import Decoder
from ddbench.run.prepare import prepared
from ddbench.trajectory.check import compare_gradients
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.method import advance, finish, needs
from ddbench.trajectory.unroll import Gradient, Plan


@pytest.fixture(scope="module")
def task(module_home) -> Problem:
    return task_of(spec("tesla", ipc=2))


@pytest.fixture(scope="module")
def problem(task) -> Problem:
    """Toy images, two per class, with two experts of three epochs."""
    endless = replace(task, expert_recipe=replace(task.expert_recipe, epochs=None))
    return prepared(endless, needs(Tesla(**TINY | {"max_start": 3})))


# --------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("method", [Datm(), Ftd()])
def test_the_gradient_is_that_of_autograd_through_the_unroll(method):
    for row in compare_gradients(method.differentiate, ConvNet(width=8, depth=2), steps=6, lr=0.05, seed=0):
        assert row["relative_error"] < 1e-10, row


def test_zero_curvature_is_an_option_of_datm():
    rows = compare_gradients(Datm(curvature="zero").differentiate, ConvNet(width=8, depth=2), steps=6, lr=0.05, seed=0)
    assert rows[0]["relative_error"] > 1e-3


# --------------------------------------------------------------------------------- datm: segments


def test_the_range_of_start_epochs_grows_as_published():
    method = Datm(min_start=2, cur_max=10, max_start=20, expansion_end=1000, steps=2000)
    for k in (0, 1, 99, 100, 550, 999, 1000, 1500):
        upper = min(10 + math.floor(10 * k / 1000), 20)
        assert method.starts(k) == range(2, upper), k
    assert Datm(min_start=40, max_start=60).starts(0) == range(40, 60)
    assert Datm(cur_max=30, max_start=20, expansion_end=10).starts(25) == range(20)


def test_start_epochs_are_drawn_from_the_range_of_their_iteration(problem):
    drawn = []

    def segment(expert: int, epoch: int, span: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append((expert, epoch, span))
        return problem.experts.segment(expert, 0, 1)

    def nothing(method, task, problem) -> Gradient:
        zeros, new = torch.zeros_like, task.pool.new
        return Gradient(torch.tensor(0.5), zeros(new.images), zeros(new.labels), zeros(task.lr), task.start)

    method = Datm(experts=2, span=1, syn_steps=1, min_start=3, cur_max=5, max_start=9, expansion_end=100, threshold=9.0)
    watched = with_experts(problem, SimpleNamespace(segment=segment, snapshot=problem.experts.snapshot))
    state = PixelState.start(*vars(problem.sample()).values(), 0.01, learn_labels=True)
    for k, allowed in ((0, {3, 4}), (30, {3, 4, 5}), (100, set(range(3, 9)))):
        drawn.clear()
        for _ in range(60):
            with patch("ddbench_trajectories.datm.swept", nothing):
                method.step(watched, state, k)
        assert {epoch for _, epoch, _ in drawn} == allowed


def test_datm_asks_for_the_snapshots_that_it_reads_and_no_others(problem):
    method = Datm(experts=7, span=2, min_start=1, max_start=4)
    assert method.needs(problem).snapshots == (1, 2, 3, 4, 5)
    assert method.needs(problem).experts == 7
    longer = replace(problem, expert_recipe=replace(problem.expert_recipe, epochs=30))
    assert method.needs(longer).snapshots == (1, 2, 3, 4, 5, 30)
    assert replace(method, labels="hard").needs(longer).snapshots == (1, 2, 3, 4, 5, 30)
    assert replace(method, labels="hard", pix_init="real").needs(longer).snapshots == (1, 2, 3, 4, 5)
    assert replace(method, labels="hard", pix_init="real", min_start=3).needs(longer).snapshots == (3, 5)
    growing = Datm(span=1, labels="hard", pix_init="real", max_start=9, cur_max=2, expansion_end=100, steps=50)
    assert growing.needs(longer).snapshots == (0, 1, 2, 3, 4, 5)  # starts 0..4 are reached after 50 iterations


def test_a_range_without_start_epochs_is_refused():
    with pytest.raises(UsageError, match=r"min_start 3 leaves no start epoch below 3"):
        Datm(min_start=3, max_start=3)
    with pytest.raises(UsageError, match="below 2"):
        Datm(min_start=2, max_start=9, cur_max=2, expansion_end=5)


# --------------------------------------------------------------------------------- datm: skipping


def test_a_skipped_iteration_is_no_step_of_any_momentum(problem):
    """Against torch.optim.SGD in float64 that does not step where the loss is too large, with lazily moved rows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=generator)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    method = Datm(**TINY | {"lr_lr": 1e-4, "batch_syn": 2, "syn_steps": 1}, clip=None, threshold=0.5, lr_label=0.3)
    state = PixelState.start(images.clone(), logits.clone(), method.lr_init, learn_labels=True)
    made = with_experts(problem, problem.experts)
    dense, soft = images.clone().requires_grad_(), logits.clone().requires_grad_()
    optimisers = [torch.optim.SGD([dense], 10.0, 0.5), torch.optim.SGD([soft], 0.3, 0.9)]
    losses = [0.1, 0.6, 0.5, math.nan, math.inf, 0.2, 0.7, 0.3, 0.1]
    rate, velocity = method.lr_init, 0.0
    for k, value in enumerate(losses):
        x, y = torch.randn(2, 1, 8, 8, generator=generator).double(), torch.randn(2, 3, generator=generator).double()

        def differentiate(task, x=x, y=y, value=value):
            return Gradient(torch.tensor(value), x, y, torch.tensor(0.7, dtype=torch.float64), task.start)

        torch.manual_seed(k)
        state, numbers = advance(method, made, state, k, differentiate, range(1), method.threshold)
        assert numbers["skipped"] == float(not value <= 0.5)
        torch.manual_seed(k)
        torch.randint(method.experts, ()), torch.randint(1, ())
        rows = Plan.draw(6, 1, 2, made.dsa).batches[0].sort().values
        if value <= 0.5:
            dense.grad, soft.grad = torch.zeros_like(dense), torch.zeros_like(soft)
            dense.grad[rows] = x
            soft.grad[rows] = torch.autograd.grad((soft[rows].softmax(1) * y).sum(), soft)[0][rows]
            for optimiser in optimisers:
                optimiser.step()
            velocity = 0.5 * velocity + 0.7
            rate *= math.exp(-1e-4 * velocity / rate)
    result = finish(method, made, state)
    torch.testing.assert_close(result.images, dense.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(result.labels, soft.detach(), rtol=1e-11, atol=1e-11)
    assert float(state.lr) == pytest.approx(rate, rel=1e-10)
    assert state.steps == sum(value <= 0.5 for value in losses) == 5


def test_skips_are_reported_and_a_run_of_nothing_but_skips_ends_with_advice(problem):
    method = Datm(**TINY | {"steps": 4}, threshold=1e-6)
    with pytest.raises(DivergedError, match=r"all 4 losses exceeded matcher\.threshold 1e-06.*matcher\.lr_init"):
        play(method, problem, 4)
    _, trail = play(method, problem, 3)
    assert [numbers["skipped"] for numbers in trail] == [1.0] * 3
    _, trail = play(replace(method, threshold=100.0), problem, 4)
    assert [numbers["skipped"] for numbers in trail] == [0.0] * 4
    long = replace(method, steps=1000, syn_steps=1)
    with pytest.raises(DivergedError, match=f"all {PATIENCE} losses"):
        play(long, problem, PATIENCE)


# --------------------------------------------------------------------------------- datm: images and labels


def test_first_labels_are_the_mean_of_the_experts_that_are_right():
    rng = np.random.default_rng(0)
    said, labels = rng.normal(size=(4, 9, 5)), rng.integers(0, 5, 9)
    said[:, 7, labels[7]], said[:, 8, labels[8]] = -9.0, -9.0  # images that no expert gets right
    expected = np.zeros((9, 5))
    for i in range(9):
        right = [logits[i] for logits in said if logits[i].argmax() == labels[i]]
        expected[i] = np.mean(right or [logits[i] for logits in said], 0)
        if not right:
            top = expected[i].argmax()
            expected[i, [top, labels[i]]] = expected[i, [labels[i], top]]
    found = agreed(torch.from_numpy(said), torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (found.argmax(1) == labels).all()
    np.testing.assert_allclose(np.sort(found[7:]), np.sort(said.mean(0)[7:]), rtol=1e-12)


def fake(problem: Problem, table: torch.Tensor) -> tuple[Problem, Any]:
    """A problem whose experts say ``table[expert, row]`` of real image ``row``; and the patch that lets them."""
    pixels = everything(problem.real).images
    experts = SimpleNamespace(snapshot=lambda i, epoch: torch.tensor(i))

    def said(problem: Problem, vector: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        rows = torch.cdist(images.flatten(1), pixels.flatten(1)).argmin(1)
        return table[int(vector), rows]

    return with_experts(problem, experts), patch.object(correct, "_logits", said)


def test_images_start_at_those_that_are_classified_correctly_and_else_nearest_to_that(problem):
    """Class 0: expert 0 is right on enough. Class 1: on one, expert 1 on another. Class 2: nobody is right on any."""
    targets, (a, b, c) = problem.real.targets, problem.real.members
    table = torch.full((2, len(targets), 3), 0.0)
    wrong = (targets + 1) % 3
    table[:, torch.arange(len(targets)), wrong] = 5.0
    good = a[[1, 4, 6, 7]]
    table[0, good, 0] = 9.0
    table[0, b[3], 1] = 9.0
    table[1, b[[3, 5]], 1] = 9.0
    table[:, c, 2] = torch.linspace(0, 3, len(c))  # the last ones are nearest to correct
    made, patched = fake(replace(problem, ipc=2), table)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        with patched:
            examples = correct_images(made, 2, 3)
            logits = expert_logits(made, examples, 2, 3)
        rows = rows_of(examples.images, made.real)
        assert set(rows[:2]) <= set(good.tolist())
        assert len(set(rows)) == 6
        assert rows[2:4] == b[[3, 5]].tolist()  # expert 0's first
        assert rows[4:] == c[[-1, -2]].tolist()
        assert torch.equal(examples.labels, torch.eye(3).repeat_interleave(2, 0))
        assert logits.isfinite().all()
        assert logits.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
        seen |= set(rows[:2])
    assert seen == set(good.tolist())  # a random one of them, not the first


def test_trained_experts_agree_with_the_images_that_they_chose(problem):
    torch.manual_seed(0)
    examples = correct_images(problem, 2, 3)
    said = [problem.network.apply(problem.experts.snapshot(i, 3), examples.images, train=False) for i in (0, 1)]
    right = torch.stack([logits.argmax(1) == examples.labels.argmax(1) for logits in said])
    possible = everything(problem.real)
    first = problem.network.apply(problem.experts.snapshot(0, 3), possible.images, train=False).argmax(1)
    for label in range(3):
        enough = int(((first == label) & (problem.real.targets == label)).sum()) >= 2
        assert right[0, 2 * label : 2 * label + 2].all() or not enough
    found = expert_logits(problem, examples, 2, 3)
    expected = agreed(torch.stack(said), examples.labels.argmax(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    state = Datm(**TINY | {"max_start": 3}).init(problem)
    assert not torch.equal(state.labels.softmax(1), problem.sample().labels)
    assert (state.labels.argmax(1) == problem.sample().labels.argmax(1)).all()


def test_first_labels_under_a_decoder_are_the_mean_over_the_copies(problem):
    made = with_experts(replace(problem, decoder=Decoder(2), ipc=1), problem.experts)
    stored = made.sample()
    found = expert_logits(made, stored, 2, 3)
    decoded, labels = Decoder(2)(stored.images), stored.labels.argmax(1).repeat_interleave(4)
    said = torch.stack([problem.network.apply(problem.experts.snapshot(i, 3), decoded, train=False) for i in (0, 1)])
    singles = torch.cat([agreed(said[:, i : i + 1], labels[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(found, singles.unflatten(0, (3, 4)).mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_no_real_image_is_where_two_stages_start(problem, factor):
    """Although earlier images have moved far, and experts think otherwise; until there are none left."""
    torch.manual_seed(5)
    table, ipc = torch.randn(2, len(problem.real), 3), 2 if factor == 1 else 1
    whole, started = with_experts(problem, None, ipc=ipc, decoder=Decoder(factor)), []
    sets: tuple[SyntheticSet, ...] = ()
    stages = problem.real.smallest_class // whole.shown
    for _ in range(stages):
        later = replace(whole, frozen=Curriculum(sets, (tuple(range(len(sets))),)))
        made, patched = fake(later, table.roll(len(sets), 1))
        held = []
        with (
            patched,
            patch.object(Problem, "pack", lambda self, index, held=held: held.append(index) or pack(self, index)),
        ):
            examples = correct_images(made, 2, 3)
        started.append(held[0])
        moved = examples.images + (0.7 if factor == 1 else 0.2) * torch.randn_like(examples.images)
        sets = (*sets, SyntheticSet(moved, examples.labels, decoder=Decoder(factor)))
    rows = torch.cat(started)
    assert stages >= 3
    assert len(rows.unique()) == len(rows)
    with pytest.raises(UsageError, match="real images per class to start from, but the smallest class has"):
        Datm().needs(replace(whole, frozen=Curriculum((*sets, *sets), ())))


pack = Problem.pack


# --------------------------------------------------------------------------------- ftd


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.97])
def test_the_result_is_the_moving_average_of_all_iterates_from_the_real_images_on(problem, decay):
    """Against a plain loop over the iterates of the same descent with lazily moved rows."""
    common = TINY | {"batch_syn": 2, "syn_steps": 1, "lr_img": 30.0, "steps": 6}
    method = Ftd(**common, decay=decay)
    plain = Tesla(**common, labels="hard", curvature="exact")
    state = begin(plain, problem)
    average = state.images.double().numpy().copy()
    for k in range(6):
        with (problem.seed / "step" / k).scope():
            state, _ = plain.step(problem, state, k)
        average = decay * average + (1 - decay) * finish(plain, problem, state).images.double().numpy()
    averaged, trail = play(method, problem, 6)
    made = method.result(problem, averaged)
    np.testing.assert_allclose(made.images.numpy(), average, rtol=1e-4, atol=2e-5)
    assert made.lr == pytest.approx(float(state.lr), rel=1e-6)
    assert np.abs(average - problem.sample().images.numpy()).max() > 0.01
    assert set(trail[0]) == {"loss", "lr", "start"}
    assert not torch.equal(made.images, averaged.pixels.images) or decay == 0


def test_a_result_is_memory_of_its_own(problem):
    method = Ftd(**TINY)
    state, _ = play(method, problem, 1)
    made = method.result(problem, state)
    state.average.add_(1)
    assert not torch.equal(made.images, state.average)
    assert torch.equal(made.labels, problem.sample().labels)


@pytest.mark.parametrize("cls", [Ftd, Datm])
def test_flat_experts_are_trained_by_gsam_and_are_others(task, cls):
    method = cls(**TINY, flat=True, rho=0.2, alpha=0.7, pix_init="real", labels="hard")
    asked = method.needs(task)
    assert asked.recipe == replace(task.expert_recipe, optimizer="gsam", rho=0.2, alpha=0.7)
    assert replace(method, flat=False).needs(task).recipe is None
    flat, sharp = prepared(task, asked).experts, prepared(task, replace(asked, recipe=None)).experts
    assert torch.equal(flat.snapshot(0, 0), sharp.snapshot(0, 0))
    assert not torch.equal(flat.snapshot(0, 2), sharp.snapshot(0, 2))


# --------------------------------------------------------------------------------- mtt


def test_mtt_is_its_frozen_hyperparameters():
    assert_frozen(Mtt())
