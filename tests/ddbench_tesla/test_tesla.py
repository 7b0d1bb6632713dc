"""Random images, MTT and TESLA from the inside: what they need, hold, and return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ddbench_coresets.sampled import Random
from ddbench_tesla import Tesla
from ddbench_trajectories.mtt import Mtt
from tiny import TRAJECTORY, spec

from ddbench import Curriculum, DivergedError, Problem, SyntheticSet
from ddbench.problem.labels import teacher_labels
from ddbench.run.run import build_task
from ddbench.run.stage import prepared
from ddbench.trajectory.descent import PixelState, catch_up, check_lr, descend, softmax_pullback
from ddbench.trajectory.method import ensemble_labels, finish, needs
from ddbench.trajectory.unroll import Gradient, Task

TINY = {name.removeprefix("matcher."): value for name, value in TRAJECTORY.items()}
METHODS = [Tesla(**TINY, labels="hard"), Tesla(**TINY, labels="hard", curvature="exact"), Mtt(**TINY)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[str]:
    folder = str(tmp_path_factory.mktemp("home"))
    with patch.dict("os.environ", {"DDBENCH_HOME": folder}):
        yield folder


@pytest.fixture(scope="module")
def problem(home) -> Problem:
    """Toy images, two per class, with two experts that are trained."""
    made = spec("tesla", ipc=2)
    task = build_task(made, made.dataset.load())
    return prepared(task, made.matcher.needs(task))


def play(method: Any, problem: Problem, steps: int = 3) -> tuple[Any, list[dict[str, Any]]]:
    """Some iterations, seeded as the harness does; the last state, and the metrics."""
    with (problem.seed / "init").scope():
        state = method.init(problem)
    trail = []
    for k in range(steps):
        with (problem.seed / "step" / k).scope():
            state, numbers = method.step(problem, state, k)
        trail.append({name: float(value) for name, value in numbers.items()})
    return state, trail


ALL = torch.arange(2)  # the rows of ``start()``


def gradient(state: PixelState, images: float = 1.0, lr: float = 0.0) -> Gradient:
    ones = torch.ones_like
    rate = torch.tensor(lr, dtype=torch.float64)
    return Gradient(torch.tensor(1.0), ones(state.images) * images, ones(state.labels), rate, torch.zeros(1))


def start(labels: torch.Tensor | None = None) -> PixelState:
    labels = torch.eye(2) if labels is None else labels
    return PixelState.start(torch.zeros(2, 1, 4, 4), labels.clone(), 0.01, learn_labels=True)


# --------------------------------------------------------------------------------- what they need


def test_a_matcher_is_its_frozen_hyperparameters():
    for method in (Tesla(), Mtt(), Random()):
        with pytest.raises(FrozenInstanceError):
            method.steps = 1
        assert method == type(method)()
        assert hash(method) == hash(type(method)())
    assert Tesla(span=3) != Tesla()


def test_a_trajectory_matcher_names_the_snapshots_where_a_segment_begins_or_ends(problem):
    found = needs(Tesla(experts=7, span=3, max_start=4))
    assert found.experts == 7
    assert found.snapshots == (0, 1, 2, 3, 4, 5, 6)
    assert needs(Tesla(span=10, max_start=2)).snapshots == (0, 1, 10, 11)


def test_random_images_need_experts_only_to_be_labelled(problem):
    assert Random().needs(problem).experts == 0
    found = Random(labels="teacher", experts=3, teacher_epochs=5).needs(problem)
    assert (found.experts, found.snapshots) == (3, (5,))


# --------------------------------------------------------------------------------- random


def test_random_images_are_in_class_order_with_their_labels(problem):
    made = Random().result(problem, Random().init(problem))
    assert made.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(made.labels, torch.eye(3)[made.labels.argmax(1)])
    assert made.lr is None
    assert made.label_type == "hard"


def test_random_images_depend_on_the_seed_of_the_run_only(problem):
    one = Random().init(problem)
    torch.manual_seed(1)
    assert torch.equal(Random().init(problem).images, one.images)
    other = replace(problem, seed=replace(problem.seed, root=1))
    assert not torch.equal(Random().init(other).images, one.images)


def test_teacher_labels_of_random_images_are_the_mean_prediction_of_the_experts(problem):
    method = Random(labels="teacher", experts=2, teacher_epochs=1)
    made = method.result(problem, method.init(problem))
    parts = [problem.network.apply(problem.experts.snapshot(i, 1), made.images, train=False) for i in (0, 1)]
    expected = (parts[0].softmax(1) + parts[1].softmax(1)) / 2
    assert torch.allclose(made.labels, expected, atol=1e-6)
    assert made.label_type == "teacher"
    assert torch.equal(made.images, Random().init(problem).images)


# --------------------------------------------------------------------------------- trajectory matchers


@pytest.mark.parametrize("method", METHODS)
def test_they_begin_at_real_images_or_at_noise(problem, method):
    real = problem.sample()
    assert torch.equal(method.init(problem).images, real.images)
    assert torch.equal(method.init(problem).labels, real.labels)
    with problem.seed.scope():
        noise = replace(method, pix_init="noise").init(problem)
    assert not torch.equal(noise.images, real.images)
    assert torch.equal(noise.labels, real.labels)
    assert 0.7 < noise.images.std() < 1.3


@pytest.mark.parametrize("method", METHODS)
def test_a_state_shares_no_memory_with_the_real_images(problem, method):
    before = problem.real.digest
    state, _ = play(method, problem)
    assert problem.real.digest == before
    state.images.add_(1)
    assert not torch.equal(method.init(problem).images, state.images)


def test_learned_labels_begin_as_sharp_logits(problem):
    state = Tesla(**TINY, labels="learned").init(problem)
    assert (state.labels.softmax(1) - problem.sample().labels).abs().max() < 1e-3


def test_the_same_seed_gives_the_same_iterations_and_another_gives_others(problem):
    for method in METHODS:
        (a, trail), (b, again) = play(method, problem), play(method, problem)
        assert trail == again
        assert torch.equal(a.images, b.images)
        _, other = play(method, replace(problem, seed=problem.seed / "other"))
        assert other != trail


def test_one_iteration_reports_the_loss_and_the_student_lr(problem):
    _, trail = play(METHODS[0], problem, 1)
    assert set(trail[0]) == {"loss", "lr"}
    assert trail[0]["loss"] > 0
    assert trail[0]["lr"] > 0


@pytest.mark.parametrize("labels", ["teacher", "learned", "hard"])
def test_tesla_with_the_exact_gradient_and_mtt_agree_on_every_number(problem, labels):
    common = TINY | {"labels": labels, "syn_steps": 5, "batch_syn": 4, "lr_lr": 1e-3}
    (a, one), (b, other) = (play(m, problem, 4) for m in (Tesla(**common, curvature="exact"), Mtt(**common)))
    begun = Tesla(**common).init(problem)
    for name in ("images", "labels"):
        got, expected, before = getattr(a, name), getattr(b, name), getattr(begun, name)
        assert (got - expected).norm() <= 1e-5 * (expected - before).norm(), name
    assert float(a.lr) == pytest.approx(float(b.lr), rel=1e-6)
    assert float(b.lr) != 0.01
    for x, y in zip(one, other, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)


def test_zero_curvature_is_another_gradient_unless_there_is_one_step(problem):
    def images(curvature: str, steps: int) -> torch.Tensor:
        method = Tesla(**TINY | {"syn_steps": steps, "lr_init": 0.1, "labels": "hard"}, curvature=curvature)
        return play(method, problem, 1)[0].images

    assert torch.equal(images("zero", 1), images("exact", 1))
    assert not torch.allclose(images("zero", 6), images("exact", 6), rtol=1e-3)


def test_a_window_as_long_as_the_unroll_changes_nothing_and_a_shorter_one_does(problem):
    def images(window: int | None) -> torch.Tensor:
        return play(Tesla(**TINY, labels="hard", window=window), problem, 1)[0].images

    assert torch.equal(images(None), images(3))
    assert not torch.equal(images(None), images(1))


def advance(method: Tesla, problem: Problem, state: Any, k: int, differentiate: Any) -> Any:
    """One step whose gradient is ``differentiate``'s."""
    with patch("ddbench_tesla.tesla.reverse", lambda *task, **_: differentiate(Task(*task))):
        return method.step(problem, state, k)


def test_without_augmentation_nothing_is_augmented(problem):
    seen = []

    def differentiate(task: Task) -> Gradient:
        pool, plan = task.pool, task.plan
        seen.append((plan, pool.new.images.clone()))
        return gradient(state, 0.0)

    for augment in (True, False):
        method = replace(METHODS[0], augment=augment)
        state = method.init(problem)
        with problem.seed.scope():
            advance(method, problem, state, 0, differentiate)
    (with_it, images), (without, _) = seen
    assert torch.equal(without.draws[0](images), images)
    assert not torch.equal(with_it.draws[0](images), images)


def test_student_batches_come_from_frozen_and_new_images(problem):
    """Only the new ones move."""
    frozen = SyntheticSet(*vars(problem.sample()).values())
    later = replace(problem, frozen=Curriculum((frozen,), ((0,),)))
    later = replace(later, starts=replace(later.starts, count=2))
    sizes = []

    def differentiate(task: Task) -> Gradient:
        pool = task.pool
        sizes.append(len(pool))
        assert torch.equal(pool.frozen.images, frozen.images)
        return gradient(state)

    method = METHODS[0]
    state = method.init(problem)
    before = frozen.digest
    object.__setattr__(later, "experts", problem.experts)
    with problem.seed.scope():
        advance(method, later, state, 0, differentiate)
    assert sizes == [12]
    assert SyntheticSet(frozen.images, frozen.labels).digest == before


# --------------------------------------------------------------------------------- labels


def ensemble(problem: Problem, images: torch.Tensor, epoch: int) -> torch.Tensor:
    vectors = [problem.experts.snapshot(i, epoch) for i in (0, 1)]
    return torch.stack([problem.network.apply(v, images, train=False).softmax(1) for v in vectors]).mean(0)


def test_teacher_labels_are_the_mean_prediction_of_all_experts_at_their_last_epoch(problem):
    images = problem.sample().images
    made = ensemble_labels(Tesla(**TINY), problem, images)
    assert torch.allclose(made, ensemble(problem, images, 2), atol=1e-6)
    assert torch.allclose(made.sum(1), torch.ones(6), atol=1e-5)


def test_teacher_labels_are_given_to_the_real_images_and_stay(problem):
    method = Tesla(**TINY)
    state, _ = play(method, problem)
    made = method.result(problem, state)
    assert torch.equal(made.labels, ensemble_labels(method, problem, problem.sample().images))
    assert (made.label_type, made.label_kind) == ("teacher", "probability")


def test_noise_has_the_teacher_labels_of_the_real_images_it_stands_for(problem):
    method = Tesla(**TINY)
    with problem.seed.scope():
        noise = replace(method, pix_init="noise").init(problem)
    assert torch.equal(noise.labels, method.init(problem).labels)


def test_relabelled_images_are_stored_with_the_labels_of_all_experts_and_not_of_the_last_segment(problem):
    method = Tesla(**TINY, relabel=True)
    state, trail = play(method, problem)
    torch.manual_seed(0)
    one = finish(method, problem, state)
    torch.manual_seed(1)
    assert finish(method, problem, state).digest == one.digest
    assert torch.allclose(one.labels, ensemble(problem, state.images, 2), atol=1e-6)
    assert trail != play(Tesla(**TINY), problem)[1]


def test_relabelling_trains_each_student_on_the_predictions_of_its_own_target(problem):
    seen = []

    def differentiate(task: Task) -> Gradient:
        begin, pool = task.start, task.pool
        seen.append((begin, pool.new.labels.clone()))
        return gradient(state, 0.0)

    method = Tesla(**TINY, relabel=True)
    state = method.init(problem)
    for k in range(6):
        with (problem.seed / k).scope():
            advance(method, problem, state, k, differentiate)
    starts = {(i, e): problem.experts.segment(i, e, 1)[0] for i in (0, 1) for e in (0, 1)}
    for begin, labels in seen:
        (expert, epoch) = next(key for key, vector in starts.items() if torch.equal(vector, begin))
        expected = teacher_labels(problem, state.images, problem.experts.snapshot(expert, epoch + 1))
        assert torch.equal(labels, expected)
    assert len({labels.numpy().tobytes() for _, labels in seen}) > 1


def test_teacher_labels_do_not_depend_on_how_many_images_are_labelled_at_once(problem):
    images = problem.sample().images
    vector = problem.experts.snapshot(0, 2)
    together = teacher_labels(problem, images, vector)
    assert torch.allclose(teacher_labels(problem, images, vector, batch=2), together, atol=1e-6)
    assert not together.requires_grad


def test_hard_labels_stay_hard_and_learned_labels_move(problem):
    hard, _ = play(METHODS[0], problem)
    assert torch.equal(hard.labels, problem.sample().labels)
    method = Tesla(**TINY, labels="learned")
    learned, _ = play(method, problem)
    assert not torch.equal(learned.labels, method.init(problem).labels)
    made = method.result(problem, learned)
    assert (made.label_kind, made.label_type) == ("logit", "learned")
    assert torch.equal(made.labels, learned.labels)


def test_a_result_is_a_copy_with_the_learned_lr(problem):
    state, _ = play(METHODS[0], problem)
    made = METHODS[0].result(problem, state)
    assert made.lr == float(state.lr)
    kept = made.images.clone()
    state.images.add_(1)
    state.labels.add_(1)
    assert torch.equal(made.images, kept)
    assert torch.equal(made.labels, problem.sample().labels)


def test_the_gradient_of_logits_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    (expected,) = torch.autograd.grad((logits.softmax(1) * upstream).sum(), logits)
    assert torch.allclose(softmax_pullback(logits.detach(), upstream), expected, atol=1e-14)


# --------------------------------------------------------------------------------- descent


def test_descent_on_images_has_momentum():
    method, state = Tesla(lr_img=2.0, momentum=0.5), start()
    for expected in (-2.0, -5.0, -8.5):  # velocities 1, 1.5, 1.75
        descend(method, state, ALL, gradient(state))
        assert torch.allclose(state.images, torch.full_like(state.images, expected))


@pytest.mark.parametrize("push", [1e12, -1e12, 1.0, -1.0])
def test_the_student_lr_cannot_leave_the_positive_numbers(push):
    method, state = Tesla(lr_lr=1.0, momentum=0.9), start()
    for _ in range(200):
        before = float(state.lr)
        descend(method, state, ALL, gradient(state, 0.0, push))
        after = float(state.lr)
        assert after > 0
        assert 1 / 3 < after / before < 3


def test_a_small_step_of_the_student_lr_is_the_published_one():
    method, state = Tesla(lr_lr=1e-7, momentum=0.5), start()
    descend(method, state, ALL, gradient(state, 0.0, 3.0))
    assert float(state.lr) == pytest.approx(0.01 - 1e-7 * 3.0, rel=1e-9)


def test_a_dead_or_runaway_student_lr_ends_the_run_with_advice():
    check_lr(0.01, 0.01)
    for lr in (1e-7, 1e2, float("nan"), float("inf")):
        with pytest.raises(DivergedError, match=r"try a smaller matcher\.lr_lr"):
            check_lr(lr, 0.01)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_row_wise_descent_with_lazy_momentum_equals_dense_sgd(momentum, labels):
    """Against torch.optim.SGD on all rows, in float64: rows come and go, are empty, or wait for many steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 3, 3, dtype=torch.float64, generator=generator)
    logits = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    method = Tesla(lr_img=0.3, lr_label=0.2, momentum=momentum, labels=labels, clip=None)
    state = PixelState.start(images.clone(), logits.clone(), 0.01, learn_labels=labels == "learned")
    dense, soft = images.clone().requires_grad_(), logits.clone().requires_grad_()
    optimisers = [torch.optim.SGD([dense], 0.3, momentum), torch.optim.SGD([soft], 0.2, 0.9)]
    for rows in ([0, 1, 2], [2, 5], [], [1], [1], [6, 0], [5], [3]):
        index = torch.tensor(rows, dtype=torch.int64)
        weights = torch.randn(len(rows), 9, dtype=torch.float64, generator=generator)
        catch_up(method, state, index)
        seen = state.images[index]
        torch.testing.assert_close(seen, dense.detach()[index], rtol=1e-12, atol=1e-12)
        # a gradient that depends on the values, as a real one does
        upstream = torch.randn(len(rows), 4, dtype=torch.float64, generator=generator)
        made = Gradient(torch.tensor(0.0), seen * weights.view_as(seen), upstream, torch.tensor(0.0), torch.zeros(1))
        descend(method, state, index, made)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=False)
        dense.grad, soft.grad = torch.zeros_like(dense), torch.zeros_like(soft)
        dense.grad[index] = dense.detach()[index] * weights.view_as(seen)
        soft.grad[index] = torch.autograd.grad((soft[index].softmax(1) * upstream).sum(), soft)[0][index]
        for optimiser in optimisers:
            optimiser.step()
    catch_up(method, state, torch.arange(7))
    torch.testing.assert_close(state.images, dense.detach(), rtol=1e-12, atol=1e-12)
    expected = soft.detach() if labels == "learned" else logits
    torch.testing.assert_close(state.labels, expected, rtol=1e-12, atol=1e-12)


def test_an_iteration_reads_labels_and_moves_only_the_rows_of_its_batches(problem):
    method = Tesla(**TINY | {"syn_steps": 2, "batch_syn": 2}, labels="teacher", relabel=True)
    with (problem.seed / "init").scope():
        state = method.init(problem)
    before, labelled = state.images.clone(), []

    def counted(problem, images, vector, batch):
        labelled.append(len(images))
        return teacher_labels(problem, images, vector, batch)

    with (problem.seed / "step" / 0).scope(), patch("ddbench.trajectory.method.teacher_labels", counted):
        state, _ = method.step(problem, state, 0)
    moved = (state.images != before).flatten(1).any(1)
    assert labelled == [4]  # two batches of two, of six images
    assert int(moved.sum()) == 4
    assert state.seen.tolist() == moved.int().tolist()


def test_result_brings_every_row_up_to_date_and_leaves_the_state_alone(problem):
    method = Tesla(**TINY | {"syn_steps": 1, "batch_syn": 2, "lr_img": 50.0}, labels="hard")
    state, _ = play(method, problem, 3)
    kept = {name: t.clone() for name, t in vars(state).items() if isinstance(t, torch.Tensor)}
    made = finish(method, problem, state)
    for name, tensor in kept.items():
        assert torch.equal(tensor, getattr(state, name))
    catch_up(method, state, torch.arange(len(state.images)))
    assert torch.equal(made.images, state.images)
    assert not torch.equal(made.images, kept["images"])


def test_clipping_bounds_a_gradient_by_the_running_mean_of_norms():
    method, state = Tesla(lr_img=1.0, momentum=0.0, clip=2.0), start()
    size = float(torch.ones_like(state.images).norm())
    descend(method, state, ALL, gradient(state, 1.0))
    assert torch.allclose(state.images, -torch.ones_like(state.images))
    descend(method, state, ALL, gradient(state, 1000.0))
    moved = float((state.images + 1).norm())
    assert moved == pytest.approx(2 * size, rel=1e-5)
    before = state.images.clone()
    descend(method, state, ALL, gradient(state, 0.5))
    assert float((state.images - before).norm()) == pytest.approx(0.5 * size, rel=1e-5)


def test_a_zero_gradient_with_clipping_is_no_division_by_zero():
    method, state = Tesla(lr_img=1.0, clip=2.0), start()
    descend(method, state, ALL, gradient(state, 0.0))
    descend(method, state, ALL, gradient(state, 0.0))
    assert torch.equal(state.images, torch.zeros_like(state.images))


def test_labels_move_only_when_they_are_learned():
    for labels in ("hard", "teacher", "learned"):
        method, state = Tesla(labels=labels, lr_label=1.0), start(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        before = state.labels.clone()
        made = gradient(state)
        made.labels[:, 0] = 5.0
        descend(method, state, ALL, made)
        assert torch.equal(state.labels, before) is (labels != "learned")
