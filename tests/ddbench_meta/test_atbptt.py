"""AT-BPTT: where its window lies and how wide it is, against the released rules written here, in float64."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from ddbench_meta.atbptt import EARLY, LATE, MIDDLE, AtBptt, State, after_pass, sized
from ddbench_meta.ratbptt import RatBptt
from float64 import close, precise
from modules import Smooth, module_of
from problems import begin
from torch.nn.functional import cross_entropy

from ddbench import Starts, UsageError
from ddbench.run.spec import Request, resolve

SMALL = {"total": 6, "window": 3, "batch_real": 500, "augment": "", "pix_init": "real", "lr_init": 0.02}


def released_size(norms: list[float], t: int, window: int, spread: int) -> int:
    """By the place of a change in the sorted list of all."""
    change = [0.0] + [abs(norms[i] - norms[i - 1]) for i in range(1, len(norms))]
    return int(window - spread + 2 * spread * (sorted(change).index(change[t]) / len(norms)))


def test_the_window_is_as_wide_as_the_rank_of_the_change_of_gradients_says():
    norms = torch.rand(40, generator=torch.Generator().manual_seed(0)).double()
    norms[7] = norms[6]  # two that do not change
    sizes = [sized(norms, t, 15, 5) for t in range(40)]
    assert sizes == [released_size(norms.tolist(), t, 15, 5) for t in range(40)]
    assert (min(sizes), max(sizes)) == (10, 19)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_norms_are_those_of_the_gradients_of_a_fresh_student(optimizer, monkeypatch):
    problem = precise(Smooth(), frozen=1)
    monkeypatch.setattr(Starts, "draw", lambda self: self[5])
    method = AtBptt(**SMALL, spread=2, optimizer=optimizer)
    learned = begin(method, problem).learned
    with problem.seed.scope():
        seen = method.gradient_norms(problem, learned)
    module, old = module_of(problem.network, problem.starts[5]), problem.frozen.sets[0]
    images, labels = torch.cat([old.images, learned.images]), torch.cat([old.labels, learned.labels])
    rules = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.02),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4),
    }
    rule, norms = rules[optimizer](module.parameters()), []
    for _ in range(6):
        rule.zero_grad()
        cross_entropy(module(images), labels).backward()
        norms.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm())
        rule.step()
    assert len(norms) == 6
    assert close(seen, torch.stack(norms))


def test_the_window_lies_where_the_stage_wants_it(monkeypatch):
    problem, method = precise(Smooth()), AtBptt(**SMALL | {"total": 20, "window": 6}, spread=2)
    learned = begin(method, problem).learned
    for t in (0, 5, 13, 19):
        norms = torch.zeros(20).double()
        norms[t] = 1e3  # softmax leaves no other choice
        monkeypatch.setattr(AtBptt, "gradient_norms", lambda *_, norms=norms: norms)
        window = released_size(norms.tolist(), t, 6, 2)
        assert method.placed(problem, State(learned, EARLY)) == (min(t, 20 - window), window)
        assert method.placed(problem, State(learned, LATE)) == (max(0, 20 - t - 4), 4)
    drawn = {method.placed(problem, State(learned, MIDDLE)) for _ in range(300)}
    assert drawn == {(s, 8) for s in range(13)}


@pytest.mark.parametrize("seed", range(6))
def test_stages_follow_the_gain_in_accuracy_as_in_the_released_code(seed):
    """With T = 40, where 0.15 T = 6 and 0.125 T = 5 passes."""
    rng, state = random.Random(seed), State(None)  # type: ignore[arg-type]
    stage, second, third, old, trail = 1, 0, 0, 0.0, []
    for k in range(60):
        accuracy = old + rng.uniform(-2, 1.2 if k > 8 else 4)
        if stage == 1:
            second = second + 1 if accuracy - old < 1.5 else 0
            if second == 6:
                stage = 2
        if stage == 2:
            third = third + 1 if accuracy - old < 1 else 0
            if third == 5:
                stage = 3
        old = accuracy
        after_pass(state, accuracy, 40)
        assert state.stage == stage
        trail.append(stage)
    assert {1, 2, 3} == set(trail)


def test_stages_end_where_a_share_of_the_unroll_is_no_whole_number():
    state = State(None, MIDDLE, before=50.0)  # type: ignore[arg-type]
    for _ in range(38):  # 0.125 x 300 is 37.5
        assert state.stage == MIDDLE
        after_pass(state, 50.0, 300)
    assert state.stage == LATE


def test_an_iteration_is_one_of_rat_bptt_in_the_window_of_the_pass(monkeypatch):
    problem = precise(Smooth())
    batch = -(-len(problem.real) // 2)  # two iterations are a pass
    method = AtBptt(**SMALL | {"batch_real": batch}, spread=1)
    places = iter([(2, 3), (0, 4)])
    monkeypatch.setattr(AtBptt, "placed", lambda self, problem, state: next(places))
    state, learned = begin(method, problem), begin(RatBptt(**SMALL | {"batch_real": batch}), problem)
    for k, (start, window) in enumerate([(2, 3), (2, 3), (0, 4)]):
        rat = RatBptt(**SMALL | {"batch_real": batch, "window": window})
        with (problem.seed / k).scope():
            state, numbers = method.step(problem, state, k)
        with (problem.seed / k).scope():
            learned, expected = rat.moved(learned, rat._gradient(problem, learned, start + window), k)
        assert torch.equal(state.learned.images, learned.images)
        assert numbers["loss"] == expected["loss"]
        assert (numbers["begins"], numbers["window"]) == (start, window)


def test_accuracy_is_in_percent_of_real_images():
    problem, method = precise(Smooth()), AtBptt(**SMALL, spread=1)
    theta = problem.starts[3]
    real = problem.real[torch.arange(len(problem.real))]
    right = module_of(problem.network, theta)(real.images).argmax(1) == real.labels.argmax(1)
    assert method._accuracy(problem, theta) == pytest.approx(100 * float(right.double().mean()))
    assert float(right.sum()) > 1


def test_windows_have_to_fit():
    with pytest.raises(UsageError, match=r"windows of 15 \+- 5 steps do not fit into an unroll of 19"):
        AtBptt(total=19)
    with pytest.raises(UsageError, match="spread below"):
        replace(AtBptt(), spread=15)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar10", (200, 40, 10, 5000, "hard")),
        ("cifar100", (300, 100, 20, 1000, "learned")),
        ("tinyimagenet", (300, 100, 30, 1000, "learned")),
    ],
)
def test_recipes_are_the_released_commands(dataset, expected):
    m = resolve(Request(dataset, "at-bptt", ipc=10, device="cpu")).spec.matcher
    assert isinstance(m, AtBptt)
    assert (m.total, m.window, m.spread, m.batch_real, m.labels) == expected
