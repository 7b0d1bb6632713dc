"""Student steps divided over two processes: the gradients of one, and of an independent computation."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from problems import play, toy_with_experts
from unrolls import FULL, RULES, Case, assert_same, case, on_noise, rule_case, unrolled

from ddbench import Examples, Network, Pool, Recipe, Seed, Student, fit
from ddbench.base.rank_start import gathered
from ddbench.base.ranks import CURRENT, share
from ddbench.plugins import registry
from ddbench.problem.experts import Experts
from ddbench.run.devices import check_network
from ddbench.train import divided as training
from ddbench.trajectory import divided
from ddbench.trajectory.engine import Engine, Probe
from ddbench.trajectory.unroll import autograd_unroll, student_loss
from ddbench.trajectory.unroll import play as play_student


@pytest.fixture(scope="module")
def two():
    """Two ranks, of which this process is the first; they work inside of a test's block alone."""
    with gathered(2, "cpu") as ranks:
        token = CURRENT.set(None)
        yield ranks
        CURRENT.reset(token)


@pytest.fixture
def ranks(two):
    token = CURRENT.set(two)
    yield two
    CURRENT.reset(token)


def alone(work):
    """What one process makes of it."""
    token = CURRENT.set(None)
    try:
        return work()
    finally:
        CURRENT.reset(token)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_all_rows_once_and_as_even_as_possible(count, world):
    rows = [list(range(count))[share(count, rank, world)] for rank in range(world)]
    assert [i for part in rows for i in part] == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("curvature", ["zero", "exact"])
@pytest.mark.parametrize("name", RULES)
def test_divided_gradients_are_those_of_autograd_in_float64(ranks, name, curvature):
    c = rule_case(name, batch=5, frozen=3, augment=FULL)  # batches of 5: shares of two and three rows
    seen = c.reverse(optimiser=RULES[name][0], curvature=curvature)
    assert_same(seen, unrolled(c, RULES[name][1], detach_theta=curvature == "zero"), 1e-12)


def halfway(c: Case) -> Case:
    """The case in float32, with a target where training on other images leads: no sum of it cancels itself."""
    network = replace(c.network, dtype=torch.float32)
    pool = Pool(Examples(c.pool.new.images.float(), c.pool.new.labels.float()))
    start, lr = c.start.float(), c.lr.float()
    other = Pool(Examples(pool.new.images + 0.1, pool.new.labels))
    return Case(network, start, play_student(student_loss(network), start, other, 2 * lr, c.plan), pool, lr, c.plan)


@pytest.mark.parametrize("curvature", ["zero", "exact"])
def test_divided_gradients_are_those_of_one_process_in_float32(ranks, curvature):
    c = alone(lambda: halfway(case(4, batch=5, augment=FULL, lr=0.05)))
    seen, expected = c.reverse(curvature=curvature), alone(lambda: c.reverse(curvature=curvature))
    for name in ("images", "labels", "lr", "end"):
        assert getattr(seen, name).dtype == torch.float32
        assert error(getattr(seen, name), getattr(expected, name)) < 1e-6, name


@pytest.mark.parametrize("curvature", ["zero", "exact"])
def test_the_whole_unroll_by_autograd_is_divided_too(ranks, curvature):
    c = case(4, batch=5, frozen=3, augment=FULL)
    task = (c.loss, c.terminal, c.theta, c.pool, c.lr, c.plan)
    assert_same(autograd_unroll(*task, curvature=curvature), unrolled(c, detach_theta=curvature == "zero"), 1e-12)


def test_a_rank_without_rows_adds_nothing(ranks):
    c = case(3, new=1, batch=None)
    assert_same(c.reverse(), unrolled(c), 1e-12)


def test_the_other_rank_does_its_share(ranks, monkeypatch):
    """Rank 0 keeps its part to itself: what is left of the sum is the other's."""
    c = case(1, batch=None)
    whole = c.reverse()
    answer = divided.StudentStep.answer
    monkeypatch.setattr(divided.StudentStep, "answer", lambda self, *given: answer(self, *given) * 0)
    other = c.reverse()
    first = share(7, 0, 2).stop
    places = c.plan.batches[0]
    assert not other.images[places[:first]].any()
    assert torch.equal(other.labels[places[first:]] != 0, whole.labels[places[first:]] != 0)


def test_a_window_and_compiled_steps_are_asked_of_every_rank(ranks):
    c = case(5, batch=5, augment=FULL)
    assert_same(c.reverse(window=2), unrolled(c, detach_first=3), 1e-12)


def test_a_probe_travels_as_the_vector_that_it_reads():
    network = Network(ConvNet(width=4, depth=2), (3, 8, 8), 3)
    engine = Engine("eager", 1, "bf16", Probe("7/2", lambda: torch.arange(3.0)))
    step = divided.StudentStep(network, engine, 3, 3, True, False)
    sent = divided.StudentStep.of_record(*step.record(), torch.device("cpu"))
    assert sent.key == step.key
    assert sent.engine.probe.name == "7/2"
    assert sent.engine.probe.vector().tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["tesla", "mtt", "datm", "ftd", "rat-bptt"])
def test_matchers_that_divide_move_their_sets_as_one_process_does(ranks, name):
    cls = registry().get("matcher", name).cls
    assert cls.divides
    options = {"steps": 3} | ({"total": 4, "window": 2} if name == "rat-bptt" else {"syn_steps": 3, "experts": 1})
    options |= {} if name == "rat-bptt" else {"max_start": 1, "span": 1, "lr_init": 0.01, "lr_img": 1.0}
    options |= {"flat": False} if name in ("datm", "ftd") else {}
    options |= {"labels": "hard", "pix_init": "real"} if name == "datm" else {}
    problem = alone(lambda: toy_with_experts(matcher__experts=1))
    expected, _ = alone(lambda: play(cls(**options), problem, 2))
    with patch.object(ranks, "ask", wraps=ranks.ask) as asked:
        seen, _ = play(cls(**options), problem, 2)
    assert asked.call_count > 8  # a gradient, and derivatives along a direction, for each student step
    images = [getattr(s, "pixels", s).images for s in (seen, expected)]
    assert error(*images) < 1e-5


def trained(recipe: Recipe, divide=training.over_ranks) -> torch.Tensor:
    network = Network(ConvNet(width=4, depth=2), (3, 8, 8), 3, dtype=torch.float64)
    with Seed(1).scope():
        source = case(1, new=21).pool.new
    return fit(network, Student(network.init(Seed(0))), source, recipe, Seed(2), divide=divide).vector


@pytest.mark.parametrize("optimizer", ["sgd", "gsam"])
@pytest.mark.parametrize("mixing", ["none", "cutmix"])
def test_divided_training_is_that_of_one_process(ranks, monkeypatch, optimizer, mixing):
    monkeypatch.setattr(training, "WORTH", 1)
    recipe = Recipe(optimizer, epochs=2, batch=8, momentum=0.9, augment=FULL, mixing=mixing)  # and 5 at the end
    asked = len(ranks._jobs)
    seen = trained(recipe)
    assert len(ranks._jobs) == asked + 1
    assert error(seen, alone(lambda: trained(recipe))) < 1e-12
    assert torch.equal(trained(recipe, None), alone(lambda: trained(recipe, None)))


@pytest.mark.parametrize(("batch", "shape"), [(256, (3, 32, 32)), (128, (3, 64, 64))])
def test_batches_are_divided_where_they_are_large(batch, shape):
    assert training.worth_dividing(Recipe(batch=batch), shape) == (batch * math.prod(shape) > 1_000_000)
    assert not training.worth_dividing(Recipe(batch=batch, online=True), shape)


def test_experts_of_large_images_are_divided_and_found_under_the_same_key(ranks, monkeypatch):
    monkeypatch.setattr(training, "WORTH", 1)
    problem = alone(lambda: toy_with_experts(matcher__experts=1))
    one = problem.experts
    other = Experts(replace(one.starts, seed=Seed(5)), one.real, one.recipe)
    asked = len(ranks._jobs)
    other.build(1, (0, 2))
    assert len(ranks._jobs) == asked + 1
    assert alone(lambda: other.folder) == other.folder
    found = other.snapshot(0, 2)
    (other.folder / "000000.safetensors").unlink()
    again = alone(lambda: other.snapshot(0, 2))
    assert not torch.equal(found, other.snapshot(0, 0))
    assert error(found, again) < 1e-4


@pytest.mark.parametrize("source", [ConvNet(width=4, depth=2, norm="batch"), ConvNet(width=4, depth=2)])
def test_networks_that_mix_the_images_of_a_batch_are_refused(ranks, source):
    network = Network(source, (3, 8, 8), 3)
    if source.norm == "batch":
        with pytest.raises(ValueError, match=r"cannot be divided over 2 devices.*depends on the others"):
            check_network(network)
    else:
        check_network(network)
    alone(lambda: check_network(network))


@pytest.mark.gpu
@pytest.mark.parametrize("curvature", ["zero", "exact"])
def test_two_gpus_find_the_gradient_of_one(curvature):
    if torch.cuda.device_count() < 2:
        pytest.skip("torch finds one CUDA device")
    sweep = on_noise(width=32, images=33, device="cuda", augment=FULL)
    expected = sweep(curvature=curvature)
    with gathered(2, "cuda") as ranks:
        seen = sweep(curvature=curvature)
        assert ranks is not None
        assert ranks._jobs
    for name in ("images", "labels", "lr", "end"):
        assert error(getattr(seen, name), getattr(expected, name)) < 1e-3, name
