"""Trajectories under decoders: each number against one computed otherwise."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ddbench_tesla import Tesla
from problems import TINY, step_along, with_experts

from ddbench import Curriculum, Problem, SyntheticSet
from ddbench.plugins import registry
from ddbench.problem.decode import Decoder
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.method import ensemble_labels
from ddbench.trajectory.unroll import Gradient, Plan, Task, reverse


def doubled(problem: Problem, factor: int) -> tuple[Problem, torch.Tensor, torch.Tensor, SyntheticSet]:
    """A problem in float64 whose experts are two made-up vectors; stored images and label logits; a frozen set."""
    network = replace(problem.network, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    start = network.init(problem.seed / "start").double()
    target = start + 0.02 * torch.randn(len(start), generator=generator, dtype=torch.float64)
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    held = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    frozen = SyntheticSet(held, torch.eye(3, dtype=torch.float64), decoder=Decoder(factor))
    experts = SimpleNamespace(segment=lambda i, epoch, span: (start, target))
    made = with_experts(
        problem,
        experts,
        starts=replace(problem.starts, network=network),
        decoder=Decoder(factor),
        frozen=Curriculum((frozen,), ((0,),)),
    )
    return made, images, logits, frozen


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_stored_images_and_logits_move_along_the_gradient_through_decoder_and_unroll(problem, factor):
    """Against autograd through the decoder and a plain loop of SGD over all decoded images, frozen ones first."""
    made, images, logits, frozen = doubled(problem, factor)
    common = {"lr_img": 3.0, "lr_label": 2.0, "momentum": 0.0, "clip": None, "lr_lr": 0.0, "lr_init": 0.05}
    method = Tesla(**TINY | common | {"batch_syn": 5}, labels="learned", curvature="exact")
    state = PixelState.start(images.clone(), logits.clone(), method.lr_init, learn_labels=True)
    torch.manual_seed(11)
    method.step(made, state, 0)

    torch.manual_seed(11)
    torch.randint(method.experts, ()), torch.randint(method.max_start, ())
    copies = factor**2
    plan = Plan.draw((3 + 6) * copies, method.syn_steps, 5, made.dsa)
    x, y = images.clone().requires_grad_(), logits.clone().requires_grad_()
    shown = torch.cat([Decoder(factor)(frozen.images), Decoder(factor)(x)])
    wanted = torch.cat([frozen.labels.repeat_interleave(copies, 0), y.softmax(1).repeat_interleave(copies, 0)])
    start, target = made.experts.segment(0, 0, 1)
    theta = start.clone().requires_grad_()
    for rows, draw in zip(plan.batches, plan.draws, strict=True):
        said = made.network.apply(theta, draw(shown[rows])).log_softmax(1)
        loss = -(said * wanted[rows]).sum() / len(rows)
        theta = theta - method.lr_init * torch.autograd.grad(loss, theta, create_graph=True)[0]
    value = (theta - target).square().sum() / (start - target).square().sum()
    by_x, by_y = torch.autograd.grad(value, (x, y))
    torch.testing.assert_close((images - state.images) / 3.0, by_x, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close((logits - state.labels) / 2.0, by_y, rtol=1e-8, atol=1e-12)
    assert by_x.any()
    used = torch.cat(plan.batches).unique()
    shown_of_each = torch.bincount((used[used >= 3 * copies] - 3 * copies) // copies, minlength=6)
    assert factor == 1 or ((shown_of_each > 0) & (shown_of_each < copies)).any()
    assert ((images - state.images).flatten(1).any(1) == (shown_of_each > 0)).all()


def test_only_stored_images_of_which_a_copy_is_in_a_batch_are_touched(problem):
    made, images, logits, _ = doubled(problem, 2)
    made = with_experts(made, made.experts, frozen=Curriculum())
    method = Tesla(**TINY | {"syn_steps": 1, "batch_syn": 1}, labels="learned")
    state = PixelState.start(images.clone(), logits.clone(), 0.05, learn_labels=True)
    method.step(made, state, 0)
    moved = (state.images != images).flatten(1).any(1)
    assert int(moved.sum()) == 1
    assert state.seen.tolist() == moved.int().tolist()
    quarters = (state.images != images)[moved][0, 0].unflatten(0, (2, 4)).unflatten(2, (2, 4)).any(1).any(2)
    assert int(quarters.sum()) == 1  # of its four cells, one was shown


def test_teacher_labels_of_a_stored_image_are_the_mean_over_what_it_decodes_to(problem):
    packed = replace(problem, decoder=Decoder(2), ipc=1)
    made = with_experts(packed, problem.experts)
    stored = made.sample().images
    method = Tesla(**TINY | {"batch_syn": 2})
    found = ensemble_labels(method, made, stored)
    for image, label in zip(stored, found, strict=True):
        parts = [
            problem.network.apply(problem.experts.snapshot(i, 2), piece[None], train=False).softmax(1)[0]
            for i in (0, 1)
            for piece in Decoder(2)(image[None])
        ]
        torch.testing.assert_close(label, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-5)


def test_relabelled_batches_have_the_mean_label_of_all_copies(problem):
    made = with_experts(replace(problem, decoder=Decoder(2), ipc=1), problem.experts)
    method, seen = Tesla(**TINY | {"syn_steps": 1, "batch_syn": 1, "max_start": 1, "experts": 1}, relabel=True), []

    def differentiate(task: Task) -> Gradient:
        seen.append(task.pool.new)
        return reverse(*task)

    with made.seed.scope():
        state = method.init(made)
        stored = state.images.clone()
        step_along(method, made, state, 0, differentiate)
    (shown,) = seen
    assert len(shown) == 1
    decoded = Decoder(2)(stored)
    row = int((decoded == shown.images).flatten(1).all(1).nonzero())
    said = problem.network.apply(problem.experts.snapshot(0, 1), decoded, train=False).softmax(1)
    torch.testing.assert_close(shown.labels[0], said[row // 4 * 4 : row // 4 * 4 + 4].mean(0), rtol=1e-4, atol=1e-5)


def test_every_trajectory_matcher_handles_decoders(problem):
    for name in ("tesla", "mtt", "datm", "ftd"):
        assert registry().get("matcher", name).cls.decodes
