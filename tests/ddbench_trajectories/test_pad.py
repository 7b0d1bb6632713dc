"""PAD: its curriculum, its difficulty and its loss, against the released scripts written out in float64."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ddbench_networks import ConvNet
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.pad import Pad, depth
from float64 import close, precise
from modules import module_of
from problems import TINY, begin, everything, play, task_of
from tiny import spec
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from unrolls import Case, case, unrolled

from ddbench import Network, Problem, UsageError
from ddbench.problem import pacing
from ddbench.problem.experts import Experts
from ddbench.problem.pacing import difficulty, errors_of, places
from ddbench.run.prepare import for_experts, prepared
from ddbench.run.spec import Request, resolve
from ddbench.train.fit import Recipe
from ddbench.trajectory.method import following
from ddbench.trajectory.unroll import Task

PACED = {"easy": 0.6, "all_after": 2, "drop_after": (3, 4), "drop": (0.3, 0.5)}
FEW = {"lr_lr": 1e-6, "lr_init": 0.01, "lr_img": 10.0, "threshold": 100.0}


@pytest.fixture(scope="module")
def task(module_home) -> Problem:
    return task_of(spec("tesla", ipc=2))


# --------------------------------------------------------------------------------- the curriculum


def test_an_epoch_shows_what_the_released_script_takes():
    """buffer_CL.py with the README's values, for 5000 sorted images of a class."""
    recipe = Recipe(easy=0.75, all_after=20, drop_after=(40, 60), drop=(0.1, 0.2))
    order = list(range(5000))
    for e in range(100):
        if e <= 20:
            p = min(1, 1.0 * 0.75 + (1 - 0.75) * 1.0 * e / 20)
            expected = order[: int(p * 5000)]
        elif 20 < e <= 40:
            expected = order
        elif 40 < e <= 60:
            expected = order[int(0.1 * 5000) :]
        else:
            expected = order[int(0.2 * 5000) :]
        assert order[places(recipe, e, 5000)] == expected, e
    assert [places(Recipe(), e, 7) for e in (0, 5)] == [slice(0, 7)] * 2
    assert places(Recipe(easy=0.01, all_after=9), 0, 7) == slice(0, 1)  # never nothing


def test_experts_are_those_of_a_plain_loop_over_the_easiest_images(task, monkeypatch):
    """Against torch.optim.SGD on the batches of each epoch, the parts of classes chosen by hand."""
    recipe = replace(task.expert_recipe, **PACED, epochs=6, augment="", batch=9, lr=0.05)
    hard = torch.rand(len(task.real), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(pacing, "difficulty", lambda experts, real: hard)
    experts = Experts(task.starts, task.real, recipe)
    experts.build(1, (0, 3, 6))
    module = module_of(task.network, task.starts[0])
    descent = torch.optim.SGD(module.parameters(), lr=0.05)
    for e in range(6):
        shown = []
        for members in task.real.members:
            ranked = sorted(members.tolist(), key=lambda i: float(hard[i]))
            count = len(ranked)
            shown += {
                0: ranked[: int(0.6 * count)],
                1: ranked[: int((0.6 + 0.4 / 2) * count)],
                4: ranked[int(0.3 * count) :],
                5: ranked[int(0.5 * count) :],
            }.get(e, ranked)
        with (task.starts.seed / "expert" / 0 / "epoch" / e).scope():
            order = torch.randperm(len(shown))
        for rows in order.split(9):
            batch = task.real[torch.tensor(shown)[rows]]
            descent.zero_grad()
            cross_entropy(module(batch.images), batch.labels).backward()
            descent.step()
    found = experts.snapshot(0, 6)
    assert close(found, torch.cat([p.detach().flatten() for p in module.parameters()]), 1e-5)
    assert Experts(task.starts, task.real, replace(recipe, drop=(0.3, 0.4))).folder != experts.folder


def test_a_curriculum_goes_on_to_the_same_bits_and_students_together_follow_it(task, tmp_path):
    recipe = replace(task.expert_recipe, **PACED, epochs=6, schedule="cosine")
    whole = Experts(task.starts, task.real, recipe)
    whole.build(2, (3, 6))
    parts = Experts(replace(task.starts, cache=type(task.starts.cache)(tmp_path)), task.real, recipe)
    parts.build(2, (3,))
    parts.build(2, (3, 6))
    together = Experts(task.starts, task.real, recipe, together=True)
    together.build(2, (6,))
    for i in range(2):
        assert torch.equal(whole.snapshot(i, 6), parts.snapshot(i, 6))
        assert close(together.snapshot(i, 6), whole.snapshot(i, 6), 1e-3)


def test_difficulty_is_the_mean_length_of_the_error_of_early_networks(module_home):
    """EL2N (Paul et al., 2021): E |p(w_t, x) - y|_2 over networks that know nothing of the curriculum."""
    problem = precise(ConvNet(width=4, depth=2))
    recipe = replace(problem.expert_recipe, **PACED, epochs=2)
    found = difficulty(Experts(problem.starts, problem.real, recipe), problem.real)
    judges = Experts(problem.starts, problem.real, replace(problem.expert_recipe, epochs=2))
    images, targets = everything(problem.real).images, problem.real.targets.numpy()
    lengths = []
    for i in range(5):
        logits = module_of(problem.network, judges.snapshot(i, 2)).eval()(images).detach().numpy()
        wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[targets]
        lengths.append(np.sqrt((wrong**2).sum(1)))
    np.testing.assert_allclose(found.numpy(), np.mean(lengths, 0), rtol=1e-9)
    assert errors_of(torch.tensor([[0.0, 0.0]]), torch.tensor([1])) == pytest.approx(0.5**0.5)


def test_a_curriculum_that_nothing_can_follow_is_refused(task):
    for wrong, said in (
        ({"easy": 0.5}, "give all_after"),
        ({"drop_after": (3,)}, "names 1 epochs and drop 0 shares"),
        ({"drop_after": (3,), "drop": (1.0,)}, r"outside of 0 \.\. 1"),
    ):
        with pytest.raises(UsageError, match=said):
            Experts(task.starts, task.real, replace(task.expert_recipe, **wrong)).build(1, (1,))


def test_the_method_asks_for_experts_of_its_curriculum(task):
    method = Pad(**TINY | FEW, flat=True, rho=0.2)
    recipe = method.needs(task).recipe
    assert recipe == replace(
        task.expert_recipe,
        optimizer="gsam",
        rho=0.2,
        alpha=0.3,
        easy=0.75,
        all_after=20,
        drop_after=(40, 60),
        drop=(0.1, 0.2),
    )
    plain = replace(method, flat=False, easy=1.0, drop_after=(), drop=())
    same = for_experts(task, Datm(**TINY | FEW).needs(task)).experts.folder
    assert for_experts(task, replace(plain, all_after=0).needs(task)).experts.folder == same


# --------------------------------------------------------------------------------- the loss


def released(theta: Tensor, start: Tensor, target: Tensor, loss_ratio: float) -> Tensor:
    """PAD.py's param_loss."""
    param_losses = mse_loss(theta, target, reduction="none")
    param_dists = mse_loss(start, target, reduction="none")
    _, loss_indices = torch.sort(param_losses)
    keep_indices = loss_indices[int(loss_ratio * len(param_losses)) :]
    return param_losses[keep_indices].sum() / param_dists[keep_indices].sum()


def deep(theta: Tensor, start: Tensor, target: Tensor, module: nn.Module, ratio: float) -> Tensor:
    """The same of all parameters but those of the first int(ratio L) tensors of a module."""
    sizes = [p.numel() for p in module.parameters()]
    parts = [vector.split(sizes)[int(ratio * len(sizes)) :] for vector in (theta, start, target)]
    above = sum(((a - c) ** 2).sum() for a, _, c in zip(*parts, strict=True))
    return above / sum(((b - c) ** 2).sum() for _, b, c in zip(*parts, strict=True))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("select", ["depth", "loss"])
def test_the_gradient_is_that_of_the_loss_of_what_is_kept(select, ratio, norm):
    c: Case = case(4, frozen=2, source=ConvNet(width=4, depth=2, norm=norm))
    module = c.network.source.build(c.network.shape, 3)
    method = Pad(select=select, ratio=ratio)
    terminal = method.terminal(SimpleNamespace(network=c.network), c.theta, c.target)
    found = method.differentiate(Task(c.loss, terminal, c.theta, c.pool, c.lr, c.plan))

    def loss(theta: Tensor) -> Tensor:
        if select == "loss":
            return released(theta, c.theta, c.target, ratio)
        return deep(theta, c.theta, c.target, module, ratio)

    wanted = unrolled(c, terminal=loss)
    for name in ("loss", "images", "labels", "lr"):
        assert close(getattr(found, name), getattr(wanted, name)), name
    everywhere = unrolled(c)
    assert close(wanted.images, everywhere.images, 1e-6) == (ratio == 0)


def test_depth_counts_parameters_and_no_buffers():
    network = Network(ConvNet(width=4, depth=2, norm="batch"), (3, 8, 8), 3)
    conv = 4 * 3 * 9 + 4
    assert depth(network, 0.0) == 0
    assert depth(network, 0.4) == conv + 8  # of ten tensors the first four: convolution and norm of the first block
    assert depth(network, 0.99) == network.parameters - 3


def test_the_loss_is_what_an_iteration_descends_on(task):
    small = TINY | FEW | PACED
    problem = prepared(task, Pad(**small).needs(task))
    _, shallow = play(Pad(**small, ratio=0.0), problem, 2)
    _, datm = play(Datm(**TINY | FEW), problem, 2)
    assert [numbers["loss"] for numbers in shallow] == pytest.approx([numbers["loss"] for numbers in datm], rel=1e-6)
    _, deeper = play(Pad(**small, ratio=0.5), problem, 2)
    assert deeper[0]["loss"] != pytest.approx(datm[0]["loss"], rel=1e-3)
    losses = []
    for method in (Pad(**small, ratio=0.5), Pad(**small, ratio=0.0)):
        state = begin(method, problem)
        with problem.seed.scope():
            losses.append(following(method, problem, state)(0.01))  # what lr_init=auto looks for the least of
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("dataset", "ipc", "options"),
    [
        ("cifar10", 1, (80, 2, 0, 4, None, 100.0, 1e-7, 5.0, 0.0)),
        ("cifar10", 10, (80, 2, 0, 20, 1000, 100.0, 1e-5, 2.0, 0.5)),
        ("cifar10", 50, (80, 3, 0, 40, 2000, 1000.0, 1e-5, 2.0, 0.25)),
        ("cifar10", 500, (40, 2, 40, 70, 2000, 50.0, 1e-5, 10.0, 0.5)),
        ("cifar10", 1000, (100, 2, 40, 60, None, 50.0, 1e-5, 10.0, 0.5)),
        ("cifar100", 1, (40, 3, 0, 30, 1000, 1000.0, 1e-5, 10.0, 0.5)),
        ("cifar100", 10, (80, 2, 0, 50, 2000, 1000.0, 1e-5, 10.0, 0.5)),
        ("cifar100", 50, (80, 2, 20, 70, None, 1000.0, 1e-5, 10.0, 0.0)),
        ("cifar100", 100, (80, 2, 30, 70, None, 50.0, 1e-5, 10.0, 0.5)),
        ("tinyimagenet", 1, (40, 2, 0, 20, 2000, 10000.0, 1e-4, 10.0, 0.5)),
        ("tinyimagenet", 10, (40, 2, 10, 50, None, 100.0, 1e-4, 10.0, 0.5)),
        ("tinyimagenet", 50, (20, 2, 40, 70, None, 100.0, 1e-4, 10.0, 0.5)),
    ],
)
def test_recipes_are_the_released_configurations(dataset, ipc, options):
    found = resolve(Request(dataset, "pad", ipc=ipc, device="cpu")).spec
    m = found.matcher
    assert isinstance(m, Pad)
    seen = (m.syn_steps, m.span, m.min_start, m.max_start, m.expansion_end, m.lr_img, m.lr_lr, m.lr_label, m.ratio)
    assert seen == options
    assert (m.easy, m.all_after, m.drop_after, m.drop) == (0.75, 20, (40, 60), (0.1, 0.2))
    assert (m.steps, m.select, m.flat, m.lr_init, m.clip) == (10000, "loss", True, 0.01, None)
    assert (found.experts.epochs, found.experts.batch, found.experts.lr) == (100, 256, 0.01)
