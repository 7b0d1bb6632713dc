"""SelMatch: its window and its iterations, against the released script written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ddbench_networks import ConvNet
from ddbench_trajectories import selmatch
from ddbench_trajectories.selmatch import SelMatch
from float64 import close, precise
from modules import module_and_leaves, module_of
from problems import TINY, begin, everything, play, rows_of, solve_in_stages, task_of, with_experts
from tiny import spec
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ddbench import Problem, UsageError
from ddbench.problem.decode import Decoder
from ddbench.run.prepare import prepared
from ddbench.run.spec import Request, resolve

METHOD = SelMatch(
    experts=3,
    judges=2,
    max_start=2,
    span=2,
    syn_steps=3,
    batch_syn=4,
    lr_img=4.0,
    lr_lr=1e-4,
    lr_init=0.2,
    alpha=0.6,
    beta=0.5,
    clip=None,
    augment=False,
)


def tried(ipc: int, **more) -> Problem:
    """Toy images in float64, and experts that are random networks, near to each other from epoch to epoch."""
    problem = precise(ConvNet(width=4, depth=2), ipc=ipc, **more)
    first = [problem.starts[i] for i in range(3)]
    steps = [problem.starts[10 + i] - problem.starts[20 + i] for i in range(3)]

    def snapshot(i: int, epoch: int) -> Tensor:
        return first[i] + 0.2 * math.sin(1 + epoch + i) * steps[i]

    def segment(i: int, epoch: int, span: int) -> tuple[Tensor, Tensor]:
        p = problem.network.parameters
        return snapshot(i, epoch)[:p], snapshot(i, epoch + span)[:p]

    return with_experts(problem, SimpleNamespace(snapshot=snapshot, segment=segment))


def difficulty(problem: Problem, score: str) -> list[float]:
    """How hard each real image is, image by image: one minus C-score's proxy, or events (never right: all epochs)."""
    images, targets, found = everything(problem.real).images, problem.real.targets.tolist(), []
    said = np.array(
        [
            [
                module_of(problem.network, problem.experts.snapshot(i, e)).eval()(images).detach().numpy()
                for e in (1, 2, 3)
            ]
            for i in (0, 1)
        ]
    )
    for row, label in enumerate(targets):
        total = 0.0
        for expert in said[:, :, row]:
            if score == "forgetting":
                hits = [logits.argmax() == label for logits in expert]
                events = sum(a and not b for a, b in pairwise(hits))
                total += events if any(hits) else 3
            else:
                total -= sum(math.exp(logits[label]) / np.exp(logits).sum() for logits in expert) / 6
        found.append(total)
    return found


@pytest.mark.parametrize("score", ["confidence", "forgetting"])
def test_the_window_is_that_of_the_released_script(score):
    """sorted(..., reverse=True)[ths : ths + spc] stays, [ths + spc : ths + spc + cpc] moves; ths = int(ipc beta)."""
    problem, hard = tried(5), difficulty(tried(5), score)
    method = replace(METHOD, score=score)
    ths, cpc = int(5 * 0.5), int(5 * 0.6)
    spc = 5 - cpc
    kept, moved = [], []
    for members in problem.real.members:
        ranked = sorted(members.tolist(), key=lambda i: hard[i], reverse=True)
        kept += ranked[ths : ths + spc]
        moved += ranked[ths + spc : ths + spc + cpc]
    state = begin(method, problem)
    assert (ths, spc, cpc) == (2, 2, 3)
    assert rows_of(state.kept.images, problem.real) == kept
    assert rows_of(state.pixels.images, problem.real) == moved
    assert state.pixels.labels.argmax(1).tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_iterations_are_those_of_the_released_script():
    """D_distill alone is a leaf, students learn it beside D_select; torch.optim.SGD moves it."""
    problem = tried(5, frozen=1)
    state = begin(METHOD, problem)
    real, label_real = state.kept.images.clone(), state.kept.labels
    image_syn_c = state.pixels.images.clone().requires_grad_()
    label_syn_c, rate, velocity = state.pixels.labels.clone(), 0.2, 0.0
    old = problem.frozen.sets[0]
    optimizer_img = torch.optim.SGD([image_syn_c], lr=4.0, momentum=0.5)
    state, trail = play(METHOD, problem, 4)
    for k in range(4):
        with (problem.seed / "step" / k).scope():
            expert, start_epoch = int(torch.randint(3, ())), int(torch.randint(2, ()))
            permutation = torch.randperm(3 + 6 + 9)
        starting_params, target_params = problem.experts.segment(expert, start_epoch, 2)
        image_syn = torch.cat([old.images, real, image_syn_c])
        label_syn = torch.cat([old.labels, label_real, label_syn_c])
        indices_chunks = list(torch.split(permutation, 4))
        syn_lr = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
        student_net, student = module_and_leaves(problem.network, starting_params)
        for _ in range(3):
            these = indices_chunks.pop()
            ce_loss = cross_entropy(functional_call(student_net, student, (image_syn[these],)), label_syn[these])
            grads = torch.autograd.grad(ce_loss, list(student.values()), create_graph=True)
            student = {n: p - syn_lr * g for (n, p), g in zip(student.items(), grads, strict=True)}
        end = torch.cat([p.flatten() for p in student.values()])
        loss = (end - target_params).square().sum() / (starting_params - target_params).square().sum()
        optimizer_img.zero_grad()
        loss.backward()
        optimizer_img.step()
        assert trail[k]["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
        velocity = 0.5 * velocity + float(syn_lr.grad)
        rate *= math.exp(-1e-4 * velocity / rate)  # ddbench moves it on a log scale
    made = METHOD.result(problem, state)
    together = made.images.unflatten(0, (3, 5))
    assert close(together[:, 2:].flatten(0, 1), image_syn_c.detach())
    assert torch.equal(together[:, :2].flatten(0, 1), real)
    assert made.labels.argmax(1).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert made.lr == pytest.approx(rate, rel=1e-9)
    assert not close(image_syn_c.detach(), begin(METHOD, problem).pixels.images, 1e-3)


def test_the_gradient_is_taken_for_the_images_that_move_alone(monkeypatch):
    problem, seen = tried(5), []
    sweep = selmatch.swept
    monkeypatch.setattr(selmatch, "swept", lambda *args: seen.append(args[1].pool) or sweep(*args))
    play(METHOD, problem, 2)
    assert all(len(pool.new) <= 9 and len(pool.frozen) == 6 for pool in seen)
    play(replace(METHOD, alpha=1.0), problem, 1)
    assert seen[-1].frozen is None


@pytest.mark.parametrize(("ipc", "alpha", "count"), [(1, 0.3, 1), (1, 1.0, 1), (250, 0.6, 150), (1500, 0.1, 150)])
def test_at_least_one_image_of_a_class_moves(ipc, alpha, count):
    assert SelMatch(alpha=alpha).moved(ipc) == count


def test_random_real_images_are_the_other_start_and_need_no_scores():
    problem, method = tried(5), replace(METHOD, pix_init="real", beta=1000.0)
    state = begin(method, problem)
    together = torch.cat([state.kept.images.unflatten(0, (3, 2)), state.pixels.images.unflatten(0, (3, 3))], 1)
    assert torch.equal(together.flatten(0, 1), problem.sample().images)
    assert method.needs(problem).snapshots == (0, 1, 2, 3)
    assert replace(method, span=5).needs(problem).snapshots == (0, 1, 5, 6)
    assert replace(METHOD, span=5).needs(problem).snapshots == (0, 1, 2, 3, 4, 5, 6)


def test_a_window_that_does_not_fit_is_refused_before_experts_train():
    problem = tried(5)
    last = problem.real.smallest_class - 5
    replace(METHOD, beta=last / 5).needs(problem)
    with pytest.raises(UsageError, match=r"ends at real image .* but the smallest class has .* matcher\.beta"):
        replace(METHOD, beta=last / 5 + 0.2).needs(problem)


def test_a_window_that_is_found_is_refused_only_where_none_fits():
    problem = tried(5)
    found = replace(METHOD, beta="auto")
    found.needs(replace(problem, ipc=problem.real.smallest_class))
    with pytest.raises(UsageError, match=r"ends at real image .* choose a smaller --ipc"):
        found.needs(replace(problem, ipc=problem.real.smallest_class + 1))


@pytest.mark.parametrize(("best", "place"), [(0, 0), (2, 16), (4, 31)])
def test_the_window_that_teaches_most_is_taken_and_no_image_judges_that_one_holds(monkeypatch, best, place):
    """Of 36 images of a class 7 judge, and windows of 5 begin at 0, 6, 12, 18 and 24 of the others; 24 is 31 of all."""
    problem, seen = tried(5), []

    def taught(problem: Problem, window: Tensor, judging: Tensor) -> float:
        seen.append((window.tolist(), judging.tolist()))
        return float(len(seen) - 1 == best)

    monkeypatch.setattr(selmatch, "taught_by", taught)
    orders = [members.flip(0) for members in problem.real.members]
    assert {len(order) for order in orders} == {36}
    assert selmatch.teaching_most(problem, orders) == place
    assert len(seen) == 5
    assert {tuple(judging) for _, judging in seen} == {tuple(seen[0][1])}
    assert len(seen[0][1]) == 3 * 7
    for i, (window, judging) in enumerate(seen):
        assert not set(window) & set(judging)
        for j, order in enumerate(orders):
            rest = [row for row in order.tolist() if row not in judging]
            assert window[5 * j : 5 * j + 5] == rest[6 * i :][:5]


def test_a_student_decides_which_window_teaches_most():
    """The window at one end holds images of one class in place of all: nobody learns the others from it."""
    problem = tried(5)
    one, *others = problem.real.members
    orders = [one, *(torch.cat([one[:9], members[9:]]) for members in others)]
    judging, alone = torch.cat([members[-7:] for members in problem.real.members]), torch.cat([one[:5]] * 3)
    every = torch.cat([order[-12:-7] for order in orders])
    assert selmatch.taught_by(problem, alone, judging) == 7  # it calls all images those of one class
    assert selmatch.taught_by(problem, every, judging) > 10
    assert selmatch.teaching_most(problem, orders) > 0
    assert selmatch.teaching_most(problem, [order.flip(0) for order in orders]) < 31


def test_no_window_is_looked_for_where_there_is_one(monkeypatch):
    monkeypatch.setattr(selmatch, "taught_by", None)
    problem = tried(36)
    assert selmatch.teaching_most(problem, list(problem.real.members)) == 0


def test_where_the_window_begins_is_told_in_the_first_iteration_alone(monkeypatch):
    monkeypatch.setattr(selmatch, "teaching_most", lambda problem, orders: 4)
    problem, method = tried(5), replace(METHOD, beta="auto")
    state = begin(method, problem)
    told = []
    for k in range(2):
        state, numbers = method.step(problem, state, k)
        told.append(numbers.get("beta"))
    assert told == [4 / 5, None]
    again = begin(replace(METHOD, beta=4 / 5), problem)
    assert rows_of(again.kept.images, problem.real) == rows_of(begin(method, problem).kept.images, problem.real)
    assert "beta" not in METHOD.step(problem, again, 0)[1]


@pytest.mark.parametrize("factor", [1, 2])
def test_stages_begin_with_images_of_their_own_and_keep_theirs(module_home, factor):
    """Over two stages of pdd, packed or not: no real image serves twice, and what stays is real to the last bit."""
    whole = replace(task_of(spec("tesla", ipc=4 // factor)), decoder=Decoder(factor))
    method = SelMatch(**TINY | {"steps": 1}, alpha=0.5, beta=0.5)
    sets = solve_in_stages(method, whole, "pdd", 2)
    assert len(sets) == 2
    if factor == 1:
        kept = torch.cat([s.images[::2] for s in sets])
        assert len(set(rows_of(kept, whole.real))) == len(kept) == 6
    else:
        assert [len(s) for s in sets] == [3, 3]


def test_what_stays_is_packed_under_a_decoder(module_home):
    whole = replace(task_of(spec("tesla", ipc=2)), decoder=Decoder(2))
    method = SelMatch(**TINY | {"steps": 2}, alpha=0.5, beta=0.25)
    problem = prepared(whole, method.needs(whole))
    rows, first = method.chosen(problem)
    assert (len(rows), first) == (3 * 8, 2)
    state, _ = play(method, problem, 2)
    assert torch.equal(method.result(problem, state).images[::2], problem.pack(rows).images[::2])


@pytest.mark.parametrize(
    ("dataset", "ipc", "options"),
    [
        ("cifar10", 250, (0.6, 0.5, 1000.0)),
        ("cifar10", 500, (0.2, 0.3, 1000.0)),
        ("cifar10", 1000, (0.1, 0.2, 10000.0)),
        ("cifar10", 1500, (0.1, 0.2, 10000.0)),
        ("cifar100", 25, (0.8, 0.8, 1000.0)),
        ("cifar100", 50, (0.6, 0.7, 1000.0)),
        ("cifar100", 100, (0.3, 0.6, 1000.0)),
        ("cifar100", 150, (0.2, 0.4, 1000.0)),
        ("tinyimagenet", 50, (0.6, 0.8, 1000.0)),
        ("tinyimagenet", 100, (0.5, 0.7, 1000.0)),
    ],
)
def test_recipes_are_the_released_commands(dataset, ipc, options):
    found = resolve(Request(dataset, "selmatch", ipc=ipc, device="cpu")).spec
    m = found.matcher
    assert isinstance(m, SelMatch)
    assert (m.alpha, m.beta, m.lr_img) == options
    tiny = dataset == "tinyimagenet"
    assert (m.steps, m.syn_steps, m.span, m.max_start) == (10000, 20 if tiny else 55, 2, 80)
    assert (m.lr_lr, m.lr_init, m.batch_syn, m.clip, m.momentum) == (1e-5, 0.001, 125, None, 0.5)
    assert m.score == ("forgetting" if tiny else "confidence")
    assert (found.experts.batch, found.experts.epochs, found.experts.lr) == (256, 100, 0.01)
