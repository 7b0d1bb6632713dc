"""Where students start: lessons, which are cached by prefix, one student at a time or several together."""

from __future__ import annotations

import math
import shutil
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
    files,
    starts,
)
from cohorts import SEEDS, TEN_STEPS, examples, gap, network
from ddbench_networks.convnet import ConvNet
from sets import some_set, some_teacher
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from ddbench import (
    Curriculum,
    Network,
    Recipe,
    Seed,
    SyntheticSet,
    Teacher,
    Teaching,
    UsageError,
    fit,
    teach,
)
from ddbench.base.cache import Cache
from ddbench.base.progress import listening, noting
from ddbench.base.tensors import save_tensors
from ddbench.errors import InterruptedRun
from ddbench.problem.decode import Decoder
from ddbench.problem.starts import teach_together
from ddbench.train.fit import Student, Watch


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


def test_without_a_count_every_draw_is_another_taught_network_and_nothing_is_stored(cache):
    taught = starts(cache, 2, count=None)
    with Seed(1).scope():
        drawn = [taught.draw() for _ in range(12)]
        rest = torch.rand(3)
    assert len({tuple(v.tolist()) for v in drawn}) == 12
    assert not cache.root.exists()
    with Seed(1).scope():
        indices = [int(torch.randint(2**31, ())) for _ in range(12)]
        assert torch.equal(torch.rand(3), rest)  # teaching moved nobody's random numbers
    seed = Seed(4) / indices[5]
    student = teach(NETWORK, Student(NETWORK.init(seed / "init")), curriculum(2), taught.teaching, seed)
    assert torch.equal(drawn[5], student.vector)
    assert torch.equal(drawn[5], taught[indices[5]])  # what is asked for by its number is kept, and the same
    with Seed(1).scope():
        few = {tuple(starts(cache, 2, count=3).draw().tolist()) for _ in range(12)}
    assert len(few) <= 3


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


@pytest.mark.parametrize(("epochs", "passes"), [(None, 1), (1, 1), (4, 4)])
def test_the_steps_of_a_phase_are_batches_of_all_it_shows_in_every_pass(epochs, passes):
    """Sets of 5, 6 and 3 images, in batches of 4: 2, 3 and 4 steps for a pass."""
    teaching, plan = Teaching(Recipe(batch=4, epochs=epochs)), curriculum(3)
    assert [teaching.steps_of(j, plan) for j in range(3)] == [2 * passes, 3 * passes, 4 * passes]
    assert teaching.total(plan) == 9 * passes


def test_interrupted_lesson_leaves_no_file_and_is_taught_again(cache, tmp_path):
    expected = starts(Cache(tmp_path / "other"), 2)[0]
    with pytest.raises(InterruptedRun), listening(Counting(("teaching a student", 1))):
        starts(cache, 2)[0]
    assert files(cache) == set()
    assert torch.equal(starts(cache, 2)[0], expected)


@pytest.mark.parametrize("carry", [False, True])
def test_a_damaged_lesson_is_taught_again_to_the_same_bits_with_one_line_that_says_so(cache, carry):
    taught = starts(cache, 1, teaching=Teaching(replace(RECIPE, carry=carry), steps=9, phases=3))
    expected = taught[0]
    (path,) = cache.root.rglob("*.safetensors")
    whole = path.read_bytes()
    for damaged in (
        whole[:-1],
        b"",
        whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        whole.replace(b"vector", b"wector"),
    ):
        path.write_bytes(damaged)
        said: list[str] = []
        with noting(said.append), torch.no_grad(), Seed(1).scope():
            drawn = torch.rand(1)
            again = taught[0]
            assert not torch.equal(torch.rand(1), drawn)
        assert torch.equal(again, expected)
        assert said == [f"{path} is damaged; it is made again"]
        assert path.read_bytes() == whole


def test_a_lesson_of_an_earlier_version_without_digests_is_read_and_one_of_another_network_is_not(cache):
    taught = starts(cache, 1)
    expected = taught[0]
    (path,) = cache.root.rglob("*.safetensors")
    save_tensors(path, {"vector": expected + 1})
    assert torch.equal(taught[0], expected + 1)
    save_tensors(path, {"vector": expected[:-1]})
    assert torch.equal(taught[0], expected)


def test_a_lesson_whose_file_is_deleted_is_taught_again(cache):
    taught = starts(cache, 2)
    expected = taught[1]
    shutil.rmtree(cache.root)
    assert torch.equal(taught[1], expected)


def test_on_a_cpu_lessons_are_taken_one_at_a_time(cache):
    one = starts(cache, 2)
    one.student(1)
    assert len(files(cache)) == 2
    assert "together" not in one.identity


@pytest.mark.parametrize("carry", [False, True])
def test_start_networks_that_learn_together_are_those_taught_one_at_a_time(cache, tmp_path, monkeypatch, carry):
    teaching = Teaching(replace(RECIPE, carry=carry), steps=9, phases=3)
    apart = starts(cache, 2, teaching=teaching)
    expected, alone = [apart.student(i) for i in range(apart.count)], apart.identity
    monkeypatch.setattr("ddbench.train.fit_together.pays_together", lambda *_: True)
    shared = Cache(tmp_path / "together")
    together, said = starts(shared, 2, teaching=teaching), []
    found = [together.student(i) for i in range(together.count)]
    assert gap(expected, found) < 1e-5
    assert together.identity == alone | {"together": 3}  # their last bits differ, so each has its own key
    assert len(files(shared)) == 2 * together.count
    path = sorted(shared.root.rglob("*.safetensors"))[0]
    path.write_bytes(b"spoiled")
    with noting(said.append):
        again = [starts(shared, j, teaching=teaching).student(i) for j in (1, 2) for i in range(together.count)]
    assert len(said) == 1
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(again[together.count :], found, strict=True))


@pytest.mark.parametrize("carry", [False, True])
def test_whole_curricula_are_taught_alike_both_ways(carry):
    net = network()
    sets = tuple(
        SyntheticSet(examples(6, j).images, examples(6, j).labels, lr=0.01 * (j + 1), label_type="soft")
        for j in range(2)
    )
    plan = Curriculum(sets, ((0,), (0, 1)))
    teaching = Teaching(replace(TEN_STEPS, steps=None, carry=carry), steps=11, phases=2)
    begins = [Student(net.init(seed / "init")) for seed in SEEDS]
    apart = [teach(net, begin, plan, teaching, seed) for begin, seed in zip(begins, SEEDS, strict=True)]
    together = teach_together(net, begins, [plan] * 3, teaching, SEEDS)
    assert gap(apart, together) < 1e-9


def test_a_watch_counts_the_steps_of_all_phases():
    net = network()
    sets = tuple(SyntheticSet(examples(6, j).images, examples(6, j).labels, lr=0.01) for j in range(2))
    plan, teaching = Curriculum(sets, ((0,), (0, 1))), Teaching(replace(TEN_STEPS, steps=None), steps=11, phases=2)
    for way in ("apart", "together"):
        seen: list[int] = []
        watch = Watch(frozenset({6, 7, 11}), lambda step, _, seen=seen: seen.append(step))
        begin = Student(net.init(Seed(0)))
        if way == "apart":
            teach(net, begin, plan, teaching, Seed(0), watch=watch)
        else:
            teach_together(net, [begin], [plan], teaching, [Seed(0)], watches=[watch])
        assert seen == [6, 7, 11]
    assert teaching.total(plan) == 11
    assert (teaching.steps_of(0, plan), teaching.steps_of(1, plan)) == (6, 5)


def test_real_valued_labels_are_learned_by_squared_error():
    net, data = network(), examples(6)
    labels = data.labels - 1 / data.labels.shape[1]
    made = SyntheticSet(data.images, labels, lr=0.1, label_kind="real", label_type="learned")
    teaching = Teaching(Recipe(batch=6, augment=""), steps=4)
    student = Student(net.init(Seed(0)))
    taught = teach(net, student, Curriculum((made,), ((0,),)), teaching, Seed(5)).vector
    theta = student.vector
    for _ in range(4):
        leaf = theta.detach().requires_grad_()
        error = nn.functional.mse_loss(net.apply(leaf, data.images), labels, reduction="sum") / 6 / 2
        theta = leaf.detach() - 0.1 * grad(error, leaf)[0]
    assert torch.allclose(taught, theta, atol=1e-12)


def test_stored_labels_do_not_matter_to_online_protocols_and_a_missing_teacher_is_refused():
    net = Network(ConvNet(width=4, depth=2), (1, 8, 8), 3)
    data = some_set(6, shape=(1, 8, 8))
    teaching = Teaching(Recipe(batch=6, augment="", online=True), steps=2)
    student = Student(net.init(Seed(0)))

    def taught(labels: Tensor, by: Teacher | None) -> Tensor:
        made = SyntheticSet(data.images, labels, teacher=by)
        return teach(net, student, Curriculum((made,), ((0,),)), teaching, Seed(5)).vector

    assert torch.equal(taught(data.labels, some_teacher()), taught(data.labels.flip(0), some_teacher()))
    with pytest.raises(UsageError, match=r"this set brings no teacher; evaluate it under --protocol default"):
        taught(data.labels, None)
    with pytest.raises(UsageError, match="labelled online, but there is no teacher"):
        fit(net, student, data.examples(), Recipe(online=True), Seed(0))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_passes_over_a_set_count_the_images_that_it_decodes_to(factor):
    sets = (some_set(3, 0, decoder=Decoder(factor)), some_set(2, 1))
    shown = Curriculum(sets, ((0,), (0, 1)))
    teaching = Teaching(Recipe(batch=4, epochs=5))
    expected = [5 * math.ceil(n / 4) for n in (3 * factor**2, 3 * factor**2 + 2)]
    assert [teaching.steps_of(phase, shown) for phase in range(2)] == expected
    assert teaching.total(shown) == sum(expected)
