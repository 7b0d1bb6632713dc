"""What trajectory matchers share: what they need and begin with, an iteration, labels and results."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from unittest.mock import patch

import pytest
import torch
from ddbench_tesla import Tesla
from ddbench_trajectories.mtt import Mtt
from problems import TINY, begin, gradient_of_ones, play, step_along
from tiny import run, spec

from ddbench import Curriculum, DivergedError, Problem, SyntheticSet, UsageError
from ddbench.base.options import make
from ddbench.problem.labels import teacher_labels
from ddbench.problem.synthetic import share
from ddbench.run.spec import Request, resolve
from ddbench.trajectory.descent import PixelState, catch_up
from ddbench.trajectory.labelling import teacher_epoch
from ddbench.trajectory.method import Method, Swept, ensemble_labels, finish, needs, report_of
from ddbench.trajectory.unroll import Gradient, Task, reverse

METHODS = [Tesla(**TINY, labels="hard"), Tesla(**TINY, labels="hard", curvature="exact"), Mtt(**TINY)]


def test_a_trajectory_matcher_names_the_snapshots_where_a_segment_begins_or_ends(problem):
    found = needs(Tesla(experts=7, span=3, max_start=4))
    assert found.experts == 7
    assert found.snapshots == (0, 1, 2, 3, 4, 5, 6)
    assert needs(Tesla(span=10, max_start=2)).snapshots == (0, 1, 10, 11)


# --------------------------------------------------------------------------------- options that differ by stage


def test_options_of_later_stages_take_the_place_of_the_first_ones_and_the_last_holds_on(problem):
    method = Tesla(**TINY | {"max_start": 9, "lr_init": 0.5}, later_max_start=(4, 3), later_lr_init=(0.25,))
    one = problem.sample()
    found = []
    for stage in range(4):
        done = Curriculum((SyntheticSet(one.images, one.labels),) * stage, ((0,),) * min(stage, 1))
        made = method.staged(replace(problem, frozen=done))
        found.append((made.max_start, made.lr_init))
    assert found == [(9, 0.5), (4, 0.25), (3, 0.25), (3, 0.25)]
    assert Tesla(**TINY).staged(replace(problem, frozen=done)) == Tesla(**TINY)
    for wrong, said in (({"later_max_start": "3,0"}, "from 1, got 0"), ({"later_lr_init": "-1"}, "above 0, got -1")):
        with pytest.raises(UsageError, match=said):
            make(Tesla, wrong, "matcher")


def test_a_run_in_stages_begins_each_at_its_own_student_lr(tmp_path):
    folder = run(tmp_path, spec("tesla", "seqmatch", 4, matcher__lr_init=0.02, matcher__later_lr_init="0.01"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows if row["step"] == 0] == pytest.approx([0.02, 0.01], rel=1e-3)


def test_seqmatchs_recipe_is_that_of_its_script():
    found = resolve(Request("cifar10", "mtt", "seqmatch", ipc=50, device="cpu", protocol="seqmatch-paper")).spec
    method = found.matcher
    assert isinstance(method, Mtt)
    assert (found.scheduler.stages, [share(50, 3, j) for j in range(3)]) == (3, [17, 17, 16])
    assert (method.max_start, method.later_max_start) == (20 - 2, (20 - 2, 10 - 2))  # to end in the range
    assert (method.lr_init, method.later_lr_init, found.dataset.zca) == (0.001, (0.01,), True)
    assert (found.protocol.epochs, found.protocol.carry) == (1001, False)


# --------------------------------------------------------------------------------- the first state


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


# --------------------------------------------------------------------------------- iterations


def test_the_same_seed_gives_the_same_iterations_and_another_gives_others(problem):
    for method in METHODS:
        (a, trail), (b, again) = play(method, problem), play(method, problem)
        assert trail == again
        assert torch.equal(a.images, b.images)
        _, other = play(method, replace(problem, seed=problem.seed / "other"))
        assert other != trail


def test_one_iteration_reports_the_loss_and_the_student_lr(problem):
    _, trail = play(METHODS[0], problem, 1)
    assert set(trail[0]) == {"loss", "lr", "start"}
    assert trail[0]["loss"] > 0
    assert trail[0]["lr"] > 0


def test_without_augmentation_nothing_is_augmented(problem):
    seen = []

    def differentiate(task: Task) -> Gradient:
        pool, plan = task.pool, task.plan
        seen.append((plan, pool.new.images.clone()))
        return gradient_of_ones(state, 0.0)

    for augment in (True, False):
        method = replace(METHODS[0], augment=augment)
        state = method.init(problem)
        with problem.seed.scope():
            step_along(method, problem, state, 0, differentiate)
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
        return gradient_of_ones(state)

    method = METHODS[0]
    state = method.init(problem)
    before = frozen.digest
    object.__setattr__(later, "experts", problem.experts)
    with problem.seed.scope():
        step_along(method, later, state, 0, differentiate)
    assert sizes == [12]
    assert SyntheticSet(frozen.images, frozen.labels).digest == before


# --------------------------------------------------------------------------------- labels and results


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
        return gradient_of_ones(state, 0.0)

    method = Tesla(**TINY, relabel=True)
    state = method.init(problem)
    for k in range(6):
        with (problem.seed / k).scope():
            step_along(method, problem, state, k, differentiate)
    starts = {(i, e): problem.experts.segment(i, e, 1)[0] for i in (0, 1) for e in (0, 1)}
    for first, labels in seen:
        (expert, epoch) = next(key for key, vector in starts.items() if torch.equal(vector, first))
        expected = teacher_labels(problem, state.images, problem.experts.snapshot(expert, epoch + 1))
        assert torch.equal(labels, expected)
    assert len({labels.numpy().tobytes() for _, labels in seen}) > 1


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


def test_an_iteration_reads_labels_and_moves_only_the_rows_of_its_batches(problem):
    method = Tesla(**TINY | {"syn_steps": 2, "batch_syn": 2}, labels="teacher", relabel=True)
    state = begin(method, problem)
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


# --------------------------------------------------------------------------------- methods of other packages


def test_a_method_that_brings_its_gradient_alone_is_complete(problem):
    @dataclass(frozen=True)
    class Mine(Swept):
        name = "mine"

    mine, tesla = Mine(**TINY, labels="hard"), Tesla(**TINY, labels="hard", curvature="exact")
    assert play(mine, problem)[1] == play(tesla, problem)[1]


def test_a_gradient_that_takes_the_parts_of_a_task_one_by_one_is_adapted_with_a_warning(problem):
    @dataclass(frozen=True)
    class Old(Method):
        name = "old"

        def differentiate(self, loss, terminal, start, pool, lr, plan):
            return reverse(loss, terminal, start, pool, lr, plan)

    old, tesla = Old(**TINY, labels="hard"), Tesla(**TINY, labels="hard", curvature="exact")
    with pytest.warns(DeprecationWarning, match="let it take one ddbench.trajectory.unroll.Task"):
        trail = play(old, problem)[1]
    assert trail == play(tesla, problem)[1]


def test_the_default_values_of_options_are_part_of_every_key():
    """Options at their defaults are left out of digests, so a changed default would change old keys in silence."""
    assert {f.name: f.default for f in fields(Method)} == {
        "steps": 500,
        "syn_steps": 10,
        "span": 2,
        "max_start": 10,
        "experts": 10,
        "batch_syn": None,
        "outer": "sgd",
        "lr_img": 100.0,
        "schedule": "constant",
        "lr_lr": 1e-5,
        "lr_label": 2.0,
        "lr_init": 0.03,
        "later_max_start": (),
        "later_lr_init": (),
        "momentum": 0.5,
        "labels": "hard",
        "teacher_epochs": None,
        "relabel": False,
        "clip": 2.0,
        "pix_init": "real",
        "augment": True,
    }


@pytest.mark.parametrize("k", [0, 8, 9, 10, 18, 19, 29])
def test_every_tenth_iteration_asks_whether_the_student_lr_lives(k):
    method = Tesla(**TINY, labels="hard")
    state = PixelState.start(torch.zeros(2, 1, 2, 2), torch.eye(2), 1e-9 * method.lr_init)
    if k % 10 == 9:
        with pytest.raises(DivergedError, match="the learned student lr went from"):
            report_of(method, state, gradient_of_ones(state), k)
    else:
        assert float(report_of(method, state, gradient_of_ones(state), k)["lr"]) == float(state.lr)


def test_experts_label_where_the_last_segment_ends_unless_told():
    assert teacher_epoch(Tesla(max_start=4, span=3)) == 6
    assert teacher_epoch(Tesla(max_start=4, span=1)) == 4
    assert teacher_epoch(Tesla(max_start=4, span=3, teacher_epochs=9)) == 9
    assert needs(Tesla(max_start=4, span=3, labels="teacher", teacher_epochs=9)).snapshots == (*range(7), 9)
    assert needs(Tesla(max_start=4, span=3, labels="hard", teacher_epochs=9)).snapshots == tuple(range(7))


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [("window", 1, 0), ("lr_img", 1e-9, 0.0), ("lr_init", 1e-9, 0.0), ("syn_steps", 1, 0), ("lr_lr", 0.0, -1e-9)],
)
def test_options_go_down_to_their_least_value_and_no_further(name, least, below):
    assert getattr(make(Tesla, {name: least}, "matcher"), name) == least
    with pytest.raises(UsageError, match=rf"matcher\.{name}"):
        make(Tesla, {name: below}, "matcher")
