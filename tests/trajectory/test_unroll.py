"""The gradient engine against autograd through a whole training, which ``unrolls`` computes on ordinary modules."""

from __future__ import annotations

import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from modules import module_and_leaves
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from unrolls import (
    CLASSES,
    FULL,
    RULES,
    SHAPE,
    TIGHT,
    Case,
    assert_same,
    case,
    flat,
    rule_case,
    step_gradient,
    unrolled,
)

from ddbench import DSA, Examples, Pool, Seed
from ddbench.data.augment import Draw
from ddbench.train.optimisers import SGD
from ddbench.trajectory.unroll import Plan, Task, autograd_unroll, by_task, matching, reverse

# -- the exact gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["", "color", "crop", "cutout", "flip", "scale", "rotate", FULL])
def test_exact_gradient_is_that_of_autograd_under_every_augmentation(operation):
    c = case(6, augment=operation)
    assert [len(rows) for rows in c.plan.batches] == [3, 4, 3, 4, 3, 4]  # overlapping, and 4 does not divide 7
    assert_same(c.reverse(), unrolled(c))


@pytest.mark.parametrize("name", RULES)
def test_exact_gradient_is_that_of_autograd_for_every_optimiser(name):
    c = rule_case(name, augment=FULL, frozen=3)
    assert_same(c.reverse(optimiser=RULES[name][0]), unrolled(c, RULES[name][1]))


@pytest.mark.parametrize(
    ("new", "frozen", "batch"), [(6, 0, None), (6, 0, 2), (5, 4, 3), (2, 9, 4), (4, 4, 100), (1, 0, 1)]
)
def test_exact_gradient_is_that_of_autograd_for_every_pool(new, frozen, batch):
    c = case(5, new=new, frozen=frozen, batch=batch, augment=FULL)
    assert_same(c.reverse(), unrolled(c))


def test_exact_gradient_is_that_of_autograd_when_a_batch_repeats_a_row():
    c = case(3)
    c.plan = Plan.plain([torch.tensor([0, 2, 2]), torch.tensor([2, 1]), torch.tensor([6, 6, 6, 0])])
    assert_same(c.reverse(), unrolled(c))


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_exact_gradient_is_that_of_autograd_at_any_length(steps):
    c = case(steps, augment=FULL, lr=0.15)
    assert_same(c.reverse(), unrolled(c))


def test_exact_gradient_goes_through_batch_norm():
    c = case(4, source=ConvNet(width=4, depth=2, norm="batch"), augment=FULL)
    assert_same(c.reverse(), unrolled(c))


def test_end_loss_may_be_a_loss_on_real_data():
    c = case(4, augment=FULL)
    x = torch.randn(9, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = torch.arange(9) % CLASSES
    module, start = module_and_leaves(c.network, c.theta)
    sizes, shapes = [p.numel() for p in start.values()], [p.shape for p in start.values()]

    def terminal(end: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(end.split(sizes), shapes, strict=True)]
        return cross_entropy(functional_call(module, dict(zip(start, pieces, strict=True)), (x,)), y)

    seen = reverse(c.loss, terminal, c.theta, c.pool, c.lr, c.plan)
    assert_same(seen, unrolled(c, terminal=terminal))


def test_student_ends_where_torchs_own_optimiser_takes_it():
    c = case(6, frozen=2, augment=FULL, lr=0.05)
    module, start = module_and_leaves(c.network, c.theta)
    with torch.no_grad():
        for p, value in zip(module.parameters(), start.values(), strict=True):
            p.copy_(value)
    torch_sgd = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    images = torch.cat([c.pool.frozen.images, c.pool.new.images])
    labels = torch.cat([c.pool.frozen.labels, c.pool.new.labels])
    for rows, draw in zip(c.plan.batches, c.plan.draws, strict=True):
        torch_sgd.zero_grad()
        cross_entropy(module(draw(images[rows])), labels[rows]).backward()
        torch_sgd.step()
    seen = c.reverse(optimiser=SGD(0.9, 0.01))
    assert error(seen.end, torch.cat([p.detach().flatten() for p in module.parameters()])) < 1e-13
    assert error(seen.end, c.theta) > 1e-3


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_reference_by_autograd_gives_the_same_gradients(name, curvature):
    c = rule_case(name, augment=FULL, frozen=2)
    options = {"optimiser": RULES[name][0], "curvature": curvature}
    seen = autograd_unroll(c.loss, c.terminal, c.theta, c.pool, c.lr, c.plan, **options)
    assert_same(seen, unrolled(c, RULES[name][1], detach_theta=curvature == "zero"))


# -- TESLA's gradient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_zero_curvature_is_autograd_with_every_theta_detached(name, steps):
    c = rule_case(name, steps=steps, augment=FULL, frozen=2)
    assert_same(c.reverse(curvature="zero", optimiser=RULES[name][0]), unrolled(c, RULES[name][1], detach_theta=True))


def test_zero_curvature_is_exact_for_one_step_only():
    one, several = case(1, augment=FULL), case(6, augment=FULL)
    assert_same(one.reverse(curvature="zero"), one.reverse())
    exact, zero = several.reverse(), several.reverse(curvature="zero")
    assert error(zero.loss, exact.loss) < TIGHT
    for name in ("images", "labels", "lr"):
        assert error(getattr(zero, name), getattr(exact, name)) > 1e-3, name


def test_error_of_zero_curvature_grows_with_the_learning_rate_and_vanishes_without_it():
    errors = []
    for lr in (1e-4, 1e-2, 1.0):
        c = case(6, lr=lr)
        errors.append(error(c.reverse(curvature="zero").images, c.reverse().images))
    assert errors[0] < 1e-3 < errors[1] * 10 < errors[2] * 10
    assert errors[0] < errors[1] < errors[2]


def test_zero_curvature_is_teslas_published_formula():
    c = case(5, frozen=3, augment=FULL)
    module, theta = module_and_leaves(c.network, c.theta)
    images = torch.cat([c.pool.frozen.images, c.pool.new.images]).requires_grad_()
    labels = torch.cat([c.pool.frozen.labels, c.pool.new.labels]).requires_grad_()
    beta, total, gradients = c.lr.item(), torch.zeros_like(c.theta), []
    for rows, draw in zip(c.plan.batches, c.plan.draws, strict=True):  # the first pass: G = sum of g_i
        at = {k: p.detach().requires_grad_() for k, p in theta.items()}
        g = step_gradient(module, at, draw(images[rows]), labels[rows])
        theta = {k: p - beta * g[k].detach() for k, p in theta.items()}
        gradients.append(flat(g))
        total = total + flat(g).detach()
    distance = ((c.theta - c.target) ** 2).sum()
    v = 2 * (beta * (c.target - c.theta) + beta**2 * total) / distance
    by_images = sum(torch.autograd.grad(v @ g, images, retain_graph=True)[0] for g in gradients)
    by_labels = sum(torch.autograd.grad(v @ g, labels, retain_graph=True)[0] for g in gradients)
    by_beta = -2 * total @ (c.theta - beta * total - c.target) / distance

    seen = c.reverse(curvature="zero")
    assert error(seen.images, by_images[3:]) < TIGHT
    assert error(seen.labels, by_labels[3:]) < TIGHT
    assert error(seen.lr, by_beta) < TIGHT
    assert error(seen.end, c.theta - beta * total) < TIGHT


# -- windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_window_of_all_steps_is_no_window(curvature):
    c = case(5, augment=FULL)
    whole = c.reverse(curvature=curvature)
    for window in (5, 6, 100):
        seen = c.reverse(curvature=curvature, window=window)
        for name in ("loss", "images", "labels", "lr", "end"):
            assert torch.equal(getattr(seen, name), getattr(whole, name))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_window_is_autograd_with_the_first_steps_detached(name, window):
    c = rule_case(name, steps=5, augment=FULL)
    seen = c.reverse(window=window, optimiser=RULES[name][0])
    assert_same(seen, unrolled(c, RULES[name][1], detach_first=5 - window))
    assert error(seen.images, c.reverse(optimiser=RULES[name][0]).images) > 1e-3


# -- what does and does not receive gradients ----------------------------------------------------------------


def test_frozen_images_receive_nothing_and_shape_the_rest():
    c = case(6, new=4, frozen=5, batch=3)
    seen = c.reverse()
    assert seen.images.shape == c.pool.new.images.shape
    assert seen.labels.shape == c.pool.new.labels.shape
    assert c.pool.frozen.images.grad is None
    shifted = Examples(c.pool.frozen.images + 0.1, c.pool.frozen.labels)
    other = reverse(c.loss, c.terminal, c.theta, Pool(c.pool.new, shifted), c.lr, c.plan)
    assert error(other.images, seen.images) > 1e-6


def test_rows_that_no_step_saw_receive_nothing():
    c = case(3, new=5, frozen=2)
    c.plan = Plan.plain([torch.tensor([0, 3]), torch.tensor([1, 5]), torch.tensor([3, 5])])
    seen = c.reverse()
    assert seen.images.abs().amax((1, 2, 3)).gt(0).tolist() == [False, True, False, True, False]
    assert seen.labels.abs().amax(1).gt(0).tolist() == [False, True, False, True, False]


def test_inputs_are_left_as_they_were_even_when_they_want_gradients():
    c = case(4, frozen=2, augment=FULL)
    expected = c.reverse()
    leaves = Examples(c.pool.new.images.clone().requires_grad_(), c.pool.new.labels.clone().requires_grad_())
    start, lr = c.theta.clone().requires_grad_(), c.lr.clone().requires_grad_()
    before = [t.detach().clone() for t in (leaves.images, leaves.labels, start, lr)]
    seen = reverse(c.loss, c.terminal, start, Pool(leaves, c.pool.frozen), lr, c.plan)
    assert_same(seen, expected)
    for tensor, old in zip((leaves.images, leaves.labels, start, lr), before, strict=True):
        assert tensor.grad is None
        assert torch.equal(tensor, old)
    for name in ("loss", "images", "labels", "lr", "end"):
        assert not getattr(seen, name).requires_grad


def test_engine_draws_no_random_numbers():
    c = case(4, augment=FULL)
    state = torch.get_rng_state()
    first = c.reverse()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(c.reverse().images, first.images)


class Witness:
    """A draw that remembers what it made."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.made = draw, []

    def __call__(self, images: Tensor) -> Tensor:
        out = self.draw(images)
        self.made.append((images.detach().clone(), out.detach().clone()))
        return out


def test_augmentation_is_the_same_in_both_passes():
    c = case(6, augment=FULL)
    witnesses = tuple(Witness(draw) for draw in c.plan.draws)
    c.plan = Plan(c.plan.batches, witnesses)
    c.reverse()
    for witness in witnesses:
        (first_in, first_out), (second_in, second_out) = witness.made
        assert torch.equal(first_in, second_in)
        assert torch.equal(first_out, second_out)
        assert not torch.equal(first_in, first_out)


# -- plans ---------------------------------------------------------------------------------------------------


def test_short_chunk_of_a_pass_comes_first():
    with Seed(0).scope():
        plan = Plan.draw(10, 6, 4, DSA(""))
    assert [len(rows) for rows in plan.batches] == [2, 4, 4, 2, 4, 4]


def test_chunks_are_popped_from_the_end_of_a_permutation_as_in_mtt():
    with Seed(0).scope():
        plan = Plan.draw(10, 7, 4, DSA(""))
    with Seed(0).scope():
        chunks, popped = [], []
        for _ in range(7):  # the loop of the published code
            if not chunks:
                chunks = list(torch.split(torch.randperm(10), 4))
            popped.append(chunks.pop())
    assert [rows.tolist() for rows in plan.batches] == [rows.tolist() for rows in popped]


def test_every_pass_is_a_new_permutation_of_all_rows():
    with Seed(0).scope():
        batches = Plan.draw(10, 6, 4, DSA("")).batches
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("batch", [None, 10, 64])
def test_batch_of_all_rows_is_the_whole_pool_at_every_step(batch):
    plan = Plan.draw(10, 3, batch, DSA(""))
    assert [sorted(rows.tolist()) for rows in plan.batches] == [list(range(10))] * 3


def test_plan_has_a_draw_for_every_step_with_a_row_for_every_image():
    plan = Plan.draw(10, 5, 4, DSA(FULL))
    assert len(plan.draws) == len(plan.batches) == 5
    for rows, draw in zip(plan.batches, plan.draws, strict=True):
        assert len(draw.parameters) == len(rows)


def test_matching_loss_is_one_at_the_start_and_nothing_at_the_target():
    start, target = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert matching(start, target)(start).item() == pytest.approx(1)
    assert matching(start, target)(target).item() == 0
    assert matching(start, target)((start + target) / 2).item() == pytest.approx(0.25)


# -- memory --------------------------------------------------------------------------------------------------


def roomy_case(steps: int) -> Case:
    """A student whose activations take far more room than its parameters."""
    return case(steps, new=12, batch=None, lr=0.01, source=ConvNet(width=16, depth=2))


def test_memory_of_the_engine_does_not_grow_with_the_steps(peak_bytes):
    few, many = roomy_case(5), roomy_case(50)
    vector = 8 * few.network.parameters  # bytes of one stored parameter vector
    for curvature in ("exact", "zero"):
        short = peak_bytes(lambda curvature=curvature: few.reverse(curvature=curvature)) - 6 * vector
        long = peak_bytes(lambda curvature=curvature: many.reverse(curvature=curvature)) - 51 * vector
        assert short > 10 * vector  # or the claim would be about something else
        assert abs(long - short) < 0.1 * short


def test_memory_of_autograd_grows_with_every_step(peak_bytes):
    def peak(steps: int) -> int:
        c = roomy_case(steps)
        return peak_bytes(lambda: autograd_unroll(c.loss, c.terminal, c.theta, c.pool, c.lr, c.plan))

    few, many = peak(5), peak(25)
    assert many > 4 * few


# -- compact plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [0, 4])
def test_a_compact_plan_for_the_rows_it_uses_gives_the_same_gradient(frozen):
    generator = torch.Generator().manual_seed(3)
    batches = [torch.tensor(rows) for rows in ([0, 9, 5], [5, 3, 1], [9, 8])]
    plan = Plan.plain(batches)
    rows, compact = plan.compact(frozen)
    used = sorted({i - frozen for b in batches for i in b.tolist() if i >= frozen})
    assert rows.tolist() == used
    images = torch.randn(10 - frozen, 2, 3, generator=generator, dtype=torch.float64)
    labels = torch.randn(10 - frozen, 2, generator=generator, dtype=torch.float64)
    old = Examples(images[:frozen] * 2, labels[:frozen] * 2) if frozen else None
    for before, after in zip(batches, compact.batches, strict=True):
        whole, small = Pool(Examples(images, labels), old), Pool(Examples(images[rows], labels[rows]), old)
        assert torch.equal(whole[before].images, small[after].images)
        assert torch.equal(whole[before].labels, small[after].labels)
    assert compact.draws == plan.draws


def test_a_plan_of_frozen_rows_alone_uses_no_new_row():
    rows, compact = Plan.plain([torch.tensor([0, 2]), torch.tensor([1])]).compact(frozen=3)
    assert len(rows) == 0
    assert [b.tolist() for b in compact.batches] == [[0, 2], [1]]


def test_a_window_stores_no_vectors_of_the_steps_before_it():
    from ddbench.trajectory.unroll import _forward

    pool = Pool(Examples(torch.randn(4, 1, 8, 8), torch.eye(4)[:, :3]))
    plan = Plan.plain([torch.arange(4)] * 7)

    def loss(theta, images, labels):
        return (theta.sum() * images).square().mean()

    theta = torch.randn(5)
    whole, _, _ = _forward(loss, theta, pool, torch.tensor(0.1), plan, SGD(0.9), 0)
    path, states, kept = _forward(loss, theta, pool, torch.tensor(0.1), plan, SGD(0.9), 4)
    assert (len(whole), len(path), len(states), len(kept)) == (8, 4, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], path, strict=True))


def test_a_compact_plan_counts_all_rows_as_new_unless_told():
    rows = [torch.tensor([5, 2, 2]), torch.tensor([9, 0])]
    used, plan = Plan.plain(rows).compact()
    assert used.tolist() == [0, 2, 5, 9]
    assert [batch.tolist() for batch in plan.batches] == [[2, 1, 1], [3, 0]]


def test_the_warning_about_the_old_form_names_the_place_that_gave_it():
    def old(loss, terminal, start, pool, lr, plan):
        return reverse(loss, terminal, start, pool, lr, plan)

    with pytest.warns(DeprecationWarning, match="old takes the six parts") as told:
        adapted = by_task(old)
    assert [warning.filename for warning in told] == [__file__]
    c = case(2)
    task = Task(c.loss, c.terminal, c.theta, c.pool, c.lr, c.plan)
    assert torch.equal(adapted(task).images, c.reverse().images)
