"""Where students start: lessons cached by prefix, and expert trajectories that begin there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from beginnings import (
    CLASSES,
    NETWORK,
    RECIPE,
    SETS,
    SHAPE,
    Counting,
    curriculum,
    experts,
    files,
    real,
    starts,
)
from ddbench_networks import ConvNet
from sets import some_set
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddbench import (
    Curriculum,
    Experts,
    Network,
    Problem,
    Seed,
    SyntheticSet,
    Teaching,
    UsageError,
    teach,
)
from ddbench.base.cache import Cache
from ddbench.base.progress import listening
from ddbench.base.tensors import load_tensors
from ddbench.errors import DataError, DDBenchError, InterruptedRun
from ddbench.train.fit import Student

# -- lessons -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_second_stage_starts_where_the_first_stage_student_ended(cache, stages, carry):
    teaching = Teaching(replace(RECIPE, carry=carry), steps=9, phases=3)
    taught = starts(cache, stages, teaching=teaching)
    for index in (0, 2):
        seed = Seed(4) / index
        student = teach(NETWORK, Student(NETWORK.init(seed / "init")), curriculum(stages), teaching, seed)
        assert torch.equal(taught[index], student.vector)
        assert torch.equal(taught[index], student.vector)  # and again, now from the file


def test_teaching_may_go_on_from_a_start_to_the_same_bits_as_from_the_beginning(cache):
    seed, teaching = Seed(4) / 1, Teaching(replace(RECIPE, carry=True), steps=9, phases=3)
    whole = teach(NETWORK, Student(NETWORK.init(seed / "init")), curriculum(3), teaching, seed)
    half = starts(cache, 2, teaching=teaching).student(1)
    cached = starts(cache, 2, teaching=teaching).student(1)
    for begin in (half, cached):
        assert torch.equal(teach(NETWORK, begin, curriculum(3), teaching, seed, first=2).vector, whole.vector)


def test_student_learns_the_phases_one_after_another_as_a_written_out_loop_does(cache):
    taught = starts(cache, 2, teaching=Teaching(replace(RECIPE, augment=""), steps=9, phases=3))
    seed = Seed(4) / 0
    module = NETWORK.source.build(SHAPE, CLASSES)
    position, vector = 0, NETWORK.init(seed / "init")
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(vector[position : position + p.numel()].view_as(p))
            position += p.numel()
    for phase, (n, lr) in enumerate([(5, 0.03), (11, 0.05)]):  # the set's own rate, then the recipe's
        images = torch.cat([s.images for s in SETS[: phase + 1]])
        labels = torch.cat([s.labels for s in SETS[: phase + 1]])
        optimiser = torch.optim.SGD(module.parameters(), lr, momentum=0.9)  # afresh in every phase
        step = epoch = 0
        while step < 3:
            generator = torch.Generator().manual_seed((seed / "phase" / phase / "epoch" / epoch).integer)
            for rows in torch.randperm(n, generator=generator).split(4)[: 3 - step]:
                optimiser.zero_grad()
                cross_entropy(module(images[rows]), labels[rows]).backward()
                optimiser.step()
                step += 1
            epoch += 1
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(taught[0], expected, rtol=1e-4, atol=1e-5)


def test_carried_momentum_makes_a_difference_to_the_second_phase_only(cache):
    fresh, carried = (
        [starts(cache, stages, teaching=Teaching(replace(RECIPE, carry=carry), 9, 3))[0] for stages in (1, 2)]
        for carry in (False, True)
    )
    assert torch.equal(fresh[0], carried[0])
    assert not torch.equal(fresh[1], carried[1])


def test_second_stage_teaches_only_the_second_lesson(cache):
    with listening(first := Counting()):
        starts(cache, 1)[0]
    with listening(second := Counting()):
        starts(cache, 2)[0]
    with listening(third := Counting()):
        starts(cache, 2)[0], starts(cache, 1)[0]
    assert first.trained == 2  # three steps of the first set's two batches: two epochs
    assert second.trained == 1  # three steps of the two sets' three batches
    assert third.trained == 0


def test_every_lesson_is_one_file(cache):
    starts(cache, 1)[0]
    first = files(cache)
    starts(cache, 3)[0]
    third = files(cache)
    starts(cache, 2)[0]
    assert len(first) == 1
    assert len(third) == 3
    assert first < third
    assert files(cache) == third


def test_untaught_starts_write_nothing_and_are_fresh_initialisations(cache):
    untaught = starts(cache)
    for index in (0, 5, 1000):
        assert torch.equal(untaught[index], NETWORK.init(Seed(4) / index / "init"))
    assert not cache.root.exists()


def test_taught_starts_are_as_many_as_their_count(cache):
    taught = starts(cache, 1, count=3)
    vectors = [taught[i] for i in range(3)]
    assert len({tuple(v.tolist()) for v in vectors}) == 3
    assert torch.equal(taught[5], vectors[2])
    assert len(files(cache)) == 3


def test_starts_taught_other_sets_live_in_another_folder(cache):
    variants = [
        starts(cache, 1),
        starts(cache, 2),
        replace(starts(cache), taught=Curriculum((some_set(5, 9, labels="hard", lr=0.03),), ((0,),))),
        replace(starts(cache), taught=Curriculum((replace(SETS[0], lr=0.04),), ((0,),))),
        replace(starts(cache), taught=Curriculum(SETS[:2], ((0, 1),))),
        replace(starts(cache), taught=Curriculum(SETS[:2], ((1,),))),
        starts(cache, 1, teaching=Teaching(RECIPE, steps=12, phases=3)),
        starts(cache, 1, teaching=Teaching(replace(RECIPE, momentum=0.5), steps=9, phases=3)),
        replace(starts(cache, 1), seed=Seed(5)),
        replace(starts(cache, 1), threads=2),
    ]
    for variant in variants:
        variant[0]
    assert len(files(cache)) == len(variants)  # the second also reads the first's
    assert len({str(v.identity) for v in variants}) == len(variants)


def test_sets_that_no_phase_has_used_yet_do_not_change_a_lesson(cache):
    starts(cache, 1)[0]
    with listening(counting := Counting()):
        replace(starts(cache), taught=Curriculum(SETS[:2], ((0,),)))[0]
    assert counting.trained == 0


def test_equal_budgets_add_up_to_the_protocols_steps():
    for steps, phases in ((9, 3), (10, 3), (11, 4), (5, 5), (7, 1)):
        teaching = Teaching(RECIPE, steps=steps, phases=phases)
        lessons = [teaching.lesson(j) for j in range(phases)]
        assert sum(lesson.steps for lesson in lessons) == steps
        assert max(lesson.steps for lesson in lessons) - min(lesson.steps for lesson in lessons) <= 1
        assert all(replace(lesson, steps=None) == RECIPE for lesson in lessons)


def test_budget_below_the_number_of_phases_is_refused():
    with pytest.raises(UsageError, match="2 cannot be divided into 3"):
        Teaching(RECIPE, steps=2, phases=3).lesson(0)


def test_teaching_without_a_budget_gives_every_phase_the_recipes_own_epochs():
    recipe = replace(RECIPE, epochs=7)
    assert [Teaching(recipe).lesson(j) for j in range(3)] == [recipe] * 3


def test_interrupted_lesson_leaves_no_file_and_is_taught_again(cache, tmp_path):
    expected = starts(Cache(tmp_path / "other"), 2)[0]
    with pytest.raises(InterruptedRun), listening(Counting(("teaching a student", 1))):
        starts(cache, 2)[0]
    assert files(cache) == set()
    assert torch.equal(starts(cache, 2)[0], expected)


def test_damaged_lesson_is_a_data_error_that_names_the_file(cache):
    taught = starts(cache, 1)
    taught[0]
    (path,) = cache.root.rglob("*.safetensors")
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match=path.name):
        taught[0]
    path.write_bytes(raw.replace(b"vector", b"wector"))
    with pytest.raises(DataError, match=path.name):
        taught[0]


# -- experts -------------------------------------------------------------------------------------------------


def trained_alone(made: Experts, index: int, epochs: int, start: Tensor | None = None) -> list[Tensor]:
    """Every snapshot of one expert, by a loop over torch's own optimiser."""
    module = NETWORK.source.build(SHAPE, CLASSES)
    nn.utils.vector_to_parameters(made.starts[index] if start is None else start, module.parameters())
    module.requires_grad_()
    optimiser = torch.optim.SGD(module.parameters(), RECIPE.lr, momentum=0.9)
    snapshots = [nn.utils.parameters_to_vector(module.parameters()).detach().clone()]
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed((Seed(4) / "expert" / index / "epoch" / epoch).integer)
        for rows in torch.randperm(len(made.real), generator=generator).split(4):
            batch = made.real[rows]
            optimiser.zero_grad()
            cross_entropy(module(batch.images), batch.labels).backward()
            optimiser.step()
        snapshots.append(nn.utils.parameters_to_vector(module.parameters()).detach().clone())
    return snapshots


@pytest.mark.parametrize("stages", [0, 2])
def test_experts_are_trained_on_real_data_from_their_starts(cache, stages):
    made = experts(cache, stages, recipe=replace(RECIPE, augment=""))
    made.build(2, range(4))
    for index in range(2):
        for epoch, expected in enumerate(trained_alone(made, index, 3)):
            torch.testing.assert_close(made.snapshot(index, epoch), expected, rtol=1e-3, atol=1e-4)


def test_snapshot_zero_is_the_start(cache):
    for stages in (0, 1, 2):
        made = experts(cache, stages)
        made.build(2, (0, 1))
        assert torch.equal(made.snapshot(1, 0), made.starts[1])


def test_snapshots_do_not_alias_each_other(cache):
    made = experts(cache)
    made.build(1, range(4))
    snapshots = [made.snapshot(0, epoch) for epoch in range(4)]
    for i, a in enumerate(snapshots):
        for b in snapshots[:i]:
            assert (a - b).norm() > 1e-3
    snapshots[0].zero_()
    assert torch.equal(made.snapshot(0, 0), made.starts[0])


def test_segment_is_the_parameters_at_two_points(cache):
    made = experts(cache)
    made.build(1, range(4))
    start, target = made.segment(0, 1, 2)
    assert torch.equal(start, made.snapshot(0, 1))
    assert torch.equal(target, made.snapshot(0, 3))


def test_segment_leaves_out_batch_statistics(cache):
    network = Network(ConvNet(width=3, depth=2, norm="batch"), SHAPE, CLASSES)
    made = Experts(replace(starts(cache), network=network), real(), RECIPE)
    made.build(1, (0, 1))
    start, target = made.segment(0, 0, 1)
    assert start.shape == target.shape == (network.parameters,)
    assert len(made.snapshot(0, 1)) == network.length > network.parameters
    assert not torch.equal(made.snapshot(0, 1)[network.parameters :], made.snapshot(0, 0)[network.parameters :])


def test_missing_snapshots_are_added_and_the_old_ones_stay_the_same(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    before = {epoch: made.snapshot(0, epoch) for epoch in (0, 2)}
    assert made.missing(2, (0, 2)) == [1]
    assert made.missing(1, (0, 1)) == [0]
    made.build(1, (1, 3))
    for epoch, vector in before.items():
        assert torch.equal(made.snapshot(0, epoch), vector)
    again = experts(cache)
    assert again.missing(1, range(4)) == []
    assert torch.equal(again.snapshot(0, 2), before[2])


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_longer_trajectory_keeps_the_old_snapshots_under_every_schedule(cache, schedule):
    made = experts(cache, recipe=replace(RECIPE, schedule=schedule, epochs=2))
    made.build(1, (0, 2))
    before = made.snapshot(0, 2)
    try:
        made.build(1, (0, 2, 4))
    except UsageError:  # refusing epochs beyond the recipe's is as good
        return
    assert torch.equal(made.snapshot(0, 2), before)


def test_recipe_in_steps_reaches_every_snapshot_or_is_refused(cache):
    made = experts(cache, recipe=replace(RECIPE, steps=7))  # 20 images in fours: five steps an epoch
    try:
        made.build(1, (0, 1, 3))
    except UsageError:
        return
    assert made.missing(1, (0, 1, 3)) == []


def test_snapshots_that_somebody_else_adds_do_not_move_those_that_are_read(cache):
    """Another run of the same experts writes a file with more rows in it, while this one goes on."""
    mine, others = experts(cache), experts(cache)
    mine.build(1, (0, 2))
    before = mine.snapshot(0, 2)
    others.build(1, (0, 1, 2))
    assert torch.equal(mine.snapshot(0, 2), before)
    assert torch.equal(mine.snapshot(0, 1), others.snapshot(0, 1)), "and what was added is there"
    assert not torch.equal(others.snapshot(0, 1), before)


def test_snapshots_that_exist_are_not_made_again(cache):
    made = experts(cache)
    with listening(first := Counting()):
        made.build(2, (0, 3))
    with listening(second := Counting()):
        made.build(2, (0, 3)), experts(cache).build(2, (3,)), made.build(1, ())
    assert first.trained == 6
    assert second.counts == {}


def test_training_stops_at_the_last_snapshot_asked_for(cache):
    with listening(counting := Counting()):
        experts(cache, recipe=replace(RECIPE, epochs=50)).build(1, (0, 2))
    assert counting.trained == 2


def test_more_experts_are_added_to_those_there(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    first = made.snapshot(0, 2)
    with listening(counting := Counting()):
        made.build(3, (0, 2))
    assert counting.counts == {"experts": 3, "expert 1": 2, "expert 2": 2}
    assert torch.equal(made.snapshot(0, 2), first)


def test_snapshot_that_was_not_asked_for_says_which_there_are(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    with pytest.raises(DDBenchError, match=r"expert 0 has no snapshot 1; .*needs\(\), which named \[0, 2\]"):
        made.snapshot(0, 1)


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_interrupted_build_goes_on_and_ends_with_identical_files(tmp_path, epoch, name):
    recipe = replace(RECIPE, optimizer="adam" if name == "adam" else "sgd", schedule="cosine", epochs=4)
    whole, stopped = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped")
    experts(whole, recipe=recipe).build(2, (0, 1, 4))
    with pytest.raises(InterruptedRun), listening(Counting(("expert 1", epoch))):
        experts(stopped, recipe=recipe).build(2, (0, 1, 4))
    assert len(files(stopped)) == 1
    assert len(files(stopped, ".partial")) == 1
    with listening(counting := Counting()):
        experts(stopped, recipe=recipe).build(2, (0, 1, 4))
    assert counting.counts["expert 0"] == 0
    assert counting.counts["expert 1"] == 4 - epoch
    assert files(stopped) == files(whole)
    assert files(stopped, ".partial") == set()
    for name in files(whole):
        assert (stopped.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_interrupted_build_that_then_wants_other_snapshots_gives_the_same_numbers(tmp_path):
    whole, stopped = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped")
    experts(whole).build(1, (0, 1, 4))
    with pytest.raises(InterruptedRun), listening(Counting(("expert 0", 2))):
        experts(stopped).build(1, (0, 4))
    experts(stopped).build(1, (0, 1, 4))
    (name,) = files(whole)
    assert (stopped.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_experts_from_taught_starts_live_in_another_folder(cache):
    made = [
        experts(cache),
        experts(cache, 1),
        experts(cache, 2),
        experts(cache, recipe=replace(RECIPE, lr=0.02)),
        Experts(starts(cache), real(21), RECIPE),
        Experts(replace(starts(cache), seed=Seed(5)), real(), RECIPE),
        Experts(replace(starts(cache), threads=2), real(), RECIPE),
        Experts(replace(starts(cache), network=Network(ConvNet(width=4, depth=2), SHAPE, CLASSES)), real(), RECIPE),
    ]
    assert len({e.folder for e in made}) == len(made)


def test_key_of_untaught_experts_does_not_depend_on_how_students_are_taught(cache):
    other = Teaching(replace(RECIPE, lr=0.5), steps=100, phases=4)
    assert experts(cache, teaching=other).folder == experts(cache).folder


def test_key_of_experts_does_not_depend_on_which_snapshots_were_kept(tmp_path):
    few, many = Cache(tmp_path / "few"), Cache(tmp_path / "many")
    experts(few).build(1, (0, 3))
    experts(many).build(1, range(4))
    assert files(few) == files(many)
    assert torch.equal(experts(few).snapshot(0, 3), experts(many).snapshot(0, 3))


def test_damaged_experts_are_a_data_error_that_names_the_file(cache):
    experts(cache).build(1, (0, 1))
    (path,) = cache.root.rglob("experts/*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=path.name):
        experts(cache).snapshot(0, 0)


def test_kept_snapshots_are_those_asked_for(cache):
    experts(cache).build(1, (0, 3, 1))
    (path,) = cache.root.rglob("experts/*/*.safetensors")
    tensors, _ = load_tensors(path)
    assert tensors["epochs"].tolist() == [0, 1, 3]
    assert tensors["snapshots"].shape == (3, NETWORK.length)


# -- problems ------------------------------------------------------------------------------------------------


def problem(cache: Cache, ipc: int, stages: int = 0) -> Problem:
    return Problem(real(21), ipc, starts(cache, stages), RECIPE, "", Seed(8), frozen=starts(cache, stages).taught)


def test_problems_experts_follow_its_starts(cache):
    one = problem(cache, 2)
    other = replace(one, starts=starts(cache, 1))
    assert one.experts.folder == Experts(one.starts, one.real, RECIPE).folder
    assert other.experts.folder == Experts(other.starts, one.real, RECIPE).folder
    assert other.experts.folder != one.experts.folder


def test_stages_sample_the_images_that_one_stage_would_and_none_twice(cache):
    whole = problem(cache, 5).sample()
    first = problem(cache, 2).sample()
    frozen = Curriculum((SyntheticSet(first.images, first.labels),), ((0,),))
    second = replace(problem(cache, 3), frozen=frozen).sample()
    assert first.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    for label in range(CLASSES):
        parts = [s.images[s.labels.argmax(1) == label] for s in (first, second)]
        assert torch.equal(torch.cat(parts), whole.images[whole.labels.argmax(1) == label])
        assert len(torch.cat(parts).flatten(1).unique(dim=0)) == 5


def test_sample_is_a_function_of_the_runs_seed(cache):
    state = torch.get_rng_state()
    torch.rand(3)
    first = problem(cache, 2).sample().images
    torch.set_rng_state(state)
    assert torch.equal(problem(cache, 2).sample().images, first)
    assert not torch.equal(replace(problem(cache, 2), seed=Seed(9)).sample().images, first)


def test_more_images_than_a_class_has_are_refused(cache):
    with pytest.raises(UsageError, match="ipc 8 asked for, but the smallest class has 7"):
        problem(cache, 8).sample()
