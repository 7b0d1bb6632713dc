"""Synthetic sets, curricula, and the pool that never joins frozen and new images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gpus import nothing_waits
from hypothesis import given
from hypothesis import strategies as st
from sets import some_set as any_set
from sets import some_teacher

from ddbench import Curriculum, Examples, Pool, SyntheticSet, UsageError, share
from ddbench.problem.decode import Decoder
from ddbench.problem.synthetic import targets

some_set = partial(any_set, shape=(2, 3, 3), classes=4)


# -- shares --------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 300))
def test_shares_sum_to_the_total_and_differ_by_one_at_most(parts, extra):
    shares = [share(parts + extra, parts, i) for i in range(parts)]
    assert sum(shares) == parts + extra
    assert max(shares) - min(shares) <= 1
    assert min(shares) >= 1
    assert shares == sorted(shares, reverse=True)


def test_total_below_the_number_of_parts_is_refused():
    with pytest.raises(UsageError, match="3 cannot be divided into 5 parts of at least one; ask for 5 or more"):
        share(3, 5, 0)


# -- synthetic sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"), [((2, 3, 3), (2, 4)), ((2, 1, 3, 3), (2,)), ((2, 1, 3, 3), (3, 4)), ((2, 1, 3, 3), (2, 4, 1))]
)
def test_images_and_labels_that_do_not_fit_are_refused(images, labels):
    with pytest.raises(UsageError, match="needs images"):
        SyntheticSet(torch.zeros(images), torch.zeros(labels))


def test_unknown_label_kind_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="label_kind 'logits' is none of probability, logit, real"):
        some_set(2, label_kind="logits")


def test_logit_labels_pass_through_a_softmax_and_the_others_do_not():
    raw = some_set(3).labels
    exponentials = raw.exp()
    torch.testing.assert_close(
        some_set(3, label_kind="logit").examples().labels, exponentials / exponentials.sum(1, keepdim=True)
    )
    assert torch.equal(some_set(3, label_kind="real").examples().labels, raw)
    assert torch.equal(some_set(3, label_kind="probability").examples().labels, raw)
    assert torch.equal(targets(raw, "probability"), raw)


def test_detached_copy_shares_no_memory_and_no_graph():
    original = SyntheticSet(torch.zeros(1, 2, 3, 3, requires_grad=True) * 1, torch.zeros(1, 4), lr=0.5)
    copy = original.detached()
    original.labels.fill_(1)
    assert not copy.images.requires_grad
    assert copy.labels.sum() == 0
    assert copy.images.data_ptr() != original.images.data_ptr()
    assert copy.lr == 0.5


def test_set_is_finite_only_with_finite_numbers_and_a_live_learning_rate():
    assert some_set(2).finite()
    assert some_set(2, lr=0.1).finite()
    for lr in (0.0, -0.1, float("nan"), float("inf")):
        assert not some_set(2, lr=lr).finite()
    for part in ("images", "labels"):
        for value in (float("nan"), float("inf")):
            broken = some_set(2)
            getattr(broken, part).view(-1)[3] = value
            assert not broken.finite()


def test_bytes_count_what_is_stored():
    learned = some_set(5, label_type="learned")
    assert learned.image_bytes == 5 * 2 * 3 * 3 * 4
    assert learned.label_bytes == 5 * 4 * 4
    assert some_set(5).label_bytes == 5
    half = SyntheticSet(torch.zeros(2, 1, 4, 4, dtype=torch.float16), torch.zeros(2, 1000))
    assert half.image_bytes == 2 * 16 * 2
    assert half.label_bytes == 2 * 2  # more classes than a byte can number


def test_set_digest_changes_with_whatever_a_student_sees():
    base = some_set(3)
    image, label = some_set(3), some_set(3)
    image.images[2, 1, 2, 2] += 1e-6
    label.labels[2, 3] += 1e-6
    reshaped = SyntheticSet(base.images.view(3, 2, 1, 9), base.labels)
    sets = [base, image, label, reshaped, some_set(3, lr=0.1), some_set(3, lr=0.2), some_set(3, label_kind="logit")]
    assert len({s.digest for s in sets}) == len(sets)
    assert some_set(3).digest == base.digest
    assert base.detached().digest == base.digest


@pytest.mark.parametrize("factor", [1, 2])
def test_set_digest_is_what_it_was_in_earlier_versions(factor):
    """Evaluations and experts lie under it. A factor is only part of it where there is a decoder."""
    held = SyntheticSet(torch.arange(16.0).view(2, 2, 2, 2), torch.eye(2), lr=0.5, decoder=Decoder(factor))
    parts = [
        hashlib.sha256(array.tobytes()).hexdigest() for array in (np.arange(16, dtype="f4"), np.eye(2, dtype="f4"))
    ]
    document = [[2, 2, 2, 2], 0.5, "probability", *parts, *([2] if factor == 2 else [])]
    text = json.dumps(document, separators=(",", ":"))
    assert held.digest == hashlib.sha256(text.encode()).hexdigest()


# -- curricula -----------------------------------------------------------------------------------------------


@pytest.fixture
def curriculum() -> Curriculum:
    sets = (some_set(2, 0, lr=0.1, label_kind="logit"), some_set(3, 1), some_set(1, 2, lr=0.3))
    return Curriculum(sets, ((0,), (0, 1), (0, 1, 2)))


def test_phase_holds_its_sets_one_after_another(curriculum):
    phase = curriculum.phase(1)
    assert torch.equal(phase.images, torch.cat([curriculum.sets[0].images, curriculum.sets[1].images]))
    assert torch.equal(phase.labels[:2], curriculum.sets[0].labels.softmax(1))
    assert torch.equal(phase.labels[2:], curriculum.sets[1].labels)


def test_learning_rate_of_a_phase_is_that_of_its_newest_set(curriculum):
    assert [curriculum.lr(i) for i in range(3)] == [0.1, None, 0.3]


def test_frozen_examples_are_all_sets_together(curriculum):
    assert torch.equal(curriculum.frozen_examples.images, curriculum.phase(2).images)
    assert torch.equal(curriculum.frozen_examples.labels, curriculum.phase(2).labels)
    assert Curriculum().frozen_examples is None
    assert len(curriculum) == 3


def test_identity_of_a_prefix_ignores_what_comes_after_it(curriculum):
    shorter = Curriculum(curriculum.sets[:2], curriculum.phases[:2])
    for phases in (1, 2):
        assert curriculum.identity(phases) == shorter.identity(phases)
    assert curriculum.identity(3) != curriculum.identity(2)


def test_identity_changes_with_sets_and_phases(curriculum):
    one_shot = Curriculum(curriculum.sets[:2], ((0, 1),))
    other = Curriculum((curriculum.sets[0], some_set(3, 7)), curriculum.phases[:2])
    keys = [curriculum.identity(2), one_shot.identity(1), other.identity(2), curriculum.identity(1)]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])


# -- pool ----------------------------------------------------------------------------------------------------


@st.composite
def pools(draw):
    frozen, new = draw(st.integers(0, 5)), draw(st.integers(1, 5))
    index = draw(st.lists(st.integers(0, frozen + new - 1), max_size=9))
    return frozen, new, torch.tensor(index, dtype=torch.int64)


def some_pool(frozen: int, new: int) -> tuple[Pool, torch.Tensor, torch.Tensor]:
    """A pool, and the joined images and labels that it stands for."""
    old, fresh = some_set(frozen, 1), some_set(new, 2)
    curriculum = Curriculum((old,), ((0,),)) if frozen else Curriculum()
    pool = curriculum.pool(fresh.images, fresh.labels)
    return pool, torch.cat([old.images, fresh.images]), torch.cat([old.labels, fresh.labels])


@given(pools())
def test_pool_indexes_like_the_joined_sets(case):
    frozen, new, index = case
    pool, images, labels = some_pool(frozen, new)
    batch = pool[index]
    assert len(pool) == frozen + new
    assert torch.equal(batch.images, images[index])
    assert torch.equal(batch.labels, labels[index])


@given(pools())
def test_scattering_adds_up_like_the_gradient_of_the_joined_sets(case):
    frozen, new, index = case
    pool, images, _ = some_pool(frozen, new)
    rows = torch.arange(len(index) * 18, dtype=torch.float64).view(-1, 2, 3, 3)
    joined = torch.zeros_like(images, dtype=torch.float64)
    for i, row in zip(index.tolist(), rows, strict=True):
        joined[i] += row
    into = torch.ones(new, 2, 3, 3, dtype=torch.float64)
    pool.scatter(into, index, rows)
    assert torch.equal(into, 1 + joined[frozen:])


def test_frozen_images_receive_no_gradient_through_the_pool():
    frozen = Examples(torch.ones(2, 1, 2, 2, requires_grad=True), torch.ones(2, 2))
    new = Examples(torch.ones(3, 1, 2, 2, requires_grad=True), torch.ones(3, 2))
    detached = Examples(frozen.images.detach(), frozen.labels)
    batch = Pool(new, detached)[torch.tensor([0, 2, 3, 2])]
    (batch.images.sum((1, 2, 3)) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert new.images.grad.amax((1, 2, 3)).tolist() == [6.0, 3.0, 0.0]


def test_pool_without_frozen_sets_is_its_new_examples():
    pool = Curriculum().pool(torch.rand(3, 1, 2, 2), torch.rand(3, 2))
    assert pool.frozen is None
    assert torch.equal(pool[torch.tensor([2, 0])].images, pool.new.images[[2, 0]])


def test_examples_are_indexed_together():
    examples = Examples(torch.arange(3.0).view(3, 1, 1, 1), torch.eye(3))
    part = examples[torch.tensor([2, 0])]
    assert part.images.flatten().tolist() == [2.0, 0.0]
    assert part.labels.argmax(1).tolist() == [2, 0]
    assert len(examples) == 3


@pytest.mark.gpu
def test_batches_of_a_pool_on_a_gpu_are_taken_and_scattered_without_waiting():
    pixels, labels = torch.randn(9, 3, 4, 4), torch.randn(9, 2)
    on_cpu = Pool(Examples(pixels[4:], labels[4:]), Examples(pixels[:4], labels[:4]))
    pool = Pool(*(Examples(e.images.cuda(), e.labels.cuda()) for e in (on_cpu.new, on_cpu.frozen)))
    index = torch.tensor([8, 0, 4, 3, 8])
    into = torch.zeros_like(pool.new.images)
    with nothing_waits():
        batch = pool[index]
        pool.scatter(into, index, batch.images)
        Pool(pool.new)[index[:3] % 5]
    assert torch.equal(batch.images.cpu(), pixels[index])
    assert torch.equal(batch.labels.cpu(), labels[index])
    expected = torch.zeros(5, 3, 4, 4)
    on_cpu.scatter(expected, index, pixels[index])
    assert torch.equal(into.cpu(), expected)


@pytest.mark.parametrize(
    ("images", "labels"), [((2, 1, 1, 3, 3), (2, 4)), ((2, 3), (2, 4)), ((2, 1, 3, 3), (1, 4)), ((3, 1, 3, 3), (4, 4))]
)
def test_too_many_or_too_few_dimensions_and_rows_are_refused(images, labels):
    with pytest.raises(UsageError, match="needs images"):
        SyntheticSet(torch.zeros(images), torch.zeros(labels))


@pytest.mark.parametrize(("classes", "each"), [(2, 1), (255, 1), (256, 1), (257, 2), (1000, 2)])
def test_the_number_of_a_class_takes_a_byte_as_long_as_it_fits(classes, each):
    assert SyntheticSet(torch.zeros(3, 1, 2, 2), torch.zeros(3, classes)).label_bytes == 3 * each


def test_a_teacher_costs_its_numbers_and_a_set_without_one_nothing():
    teacher = some_teacher()
    with_one = any_set(2, shape=(1, 8, 8), teacher=teacher)
    assert any_set(2).teacher_bytes == 0
    assert with_one.teacher_bytes == 4 * len(teacher.vector) > 0
    double = replace(with_one, teacher=replace(teacher, vector=teacher.vector.double()))
    assert double.teacher_bytes == 8 * len(teacher.vector)


def test_a_detached_copy_has_a_teacher_of_its_own():
    original = any_set(2, shape=(1, 8, 8), teacher=some_teacher())
    copy = original.detached()
    assert torch.equal(copy.teacher.vector, original.teacher.vector)
    original.teacher.vector.zero_()
    assert copy.teacher.vector.abs().sum() > 0


def test_a_phase_of_one_set_is_that_set_and_no_copy_of_it(curriculum):
    """It may be gigabytes."""
    assert curriculum.phase(0).images.data_ptr() == curriculum.sets[0].images.data_ptr()
