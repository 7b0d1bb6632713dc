"""A matcher on trial: driven in every way in which the harness may drive it, it must give the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench import Problem, Seed, SyntheticSet
from ddbench.base.cache import digest
from ddbench.base.state import has_nan, load_state, save_state
from ddbench.base.tensors import load_tensors
from ddbench.hookspecs import Matcher

STEPS = 3  # of a matcher that are taken: enough to stop after each and go on


def require(holds: Any, otherwise: str) -> None:
    """An assertion that python -O keeps."""
    if not holds:
        raise AssertionError(otherwise)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever ``what`` raises into a sentence; its own traceback stays attached."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}") from error


# The ways in which the harness may drive a matcher, and what makes it give other bits than straight on.
MODES = {
    "straight on": "",
    "again, with result() after every step": "draw from torch's global generator alone, keep nothing on the class, "
    "and change nothing in result()",
    "again, from checkpoints": "put all that changes in the state, let no two tensors share memory, and draw nothing "
    "lazily; restored workspaces are empty, and restored tensors are contiguous and want no gradients",
}


@dataclass(frozen=True, eq=False)
class Trial:
    """A matcher at work on one problem."""

    method: Matcher[object]
    problem: Problem
    file: Path
    mode: str = "straight on"

    def check(self) -> SyntheticSet:
        """The set that the matcher makes."""
        name, around = f"matcher {self.method.name!r}", self._around()
        plays = {mode: replace(self, mode=mode)._play() for mode in MODES}
        require(self._around() == around, f"{name} changes frozen sets or real data in place; clone them first")
        state, made, trail = plays[self.mode]
        for mode, play in plays.items():
            for call, bits in play[2].items():
                said = f"{call} of {name} gives other bits when it is driven {mode}; {MODES[mode]}"
                require(bits == trail[call], said)
        result = made.detached()
        _check_set(name, self.problem, result)
        for tensor in (made.images, made.labels):
            torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(1)
        apart = not self.method.steps or self._bits(state) == list(trail.values())[-2]  # no step follows a coreset
        require(apart, f"result() of {name} returns memory of its state, which later steps change; return clones")
        return result

    def _play(self) -> tuple[Any, SyntheticSet, dict[str, Any]]:
        """The last state, the result, and the bits after every call."""
        problem, trail, state = replace(self.problem), {}, None
        for k in range(-1, min(self.method.steps, STEPS)):
            state = self._call("init", problem) if k < 0 else self._step(problem, state, k)
            call = "init()" if k < 0 else f"step() {k}"
            trail[call] = self._bits(state)
            require(not has_nan(state), f"{call} of matcher {self.method.name!r} leaves not-a-number in the state")
            if "result()" in self.mode:
                self._call("result", problem, state)
            if "checkpoints" in self.mode:
                problem, state = replace(self.problem), load_state(self.file, torch.device("cpu"))[0]
        made = self._call("result", problem, state)
        return state, made, trail | {"result()": self._bits(made)}

    def _step(self, problem: Problem, state: Any, k: int) -> Any:
        returned, name = self._call("step", problem, state, k), f"step() of matcher {self.method.name!r}"
        pair = isinstance(returned, tuple) and len(returned) == 2
        require(pair, f"{name} must return (state, metrics), metrics being a dictionary of numbers")
        for metric, value in returned[1].items():
            require(math.isfinite(float(value)), f"{name} reports a {metric} of {float(value)} on the toy task")
        return returned[0]

    def _call(self, hook: str, problem: Problem, *arguments: Any) -> Any:
        """Call the matcher with all generators seeded by the address of the call, as the harness does."""
        what = f"{hook}() of matcher {self.method.name!r}, driven {self.mode},"
        with (Seed(0) / hook / repr(arguments[1:])).scope(), explained(what):
            return getattr(self.method, hook)(problem, *arguments)

    def _bits(self, value: Any) -> list[Any]:
        """What a checkpoint holds of a value: equal for bit-identical ones."""
        advice = "make it of tensors, numbers and text, in dataclasses from the top of a module"
        with explained(f"saving the state of matcher {self.method.name!r} ({advice})"):
            save_state(self.file, value, {})
            load_state(self.file, torch.device("cpu"))
        tensors, metadata = load_tensors(self.file)
        raw = {name: digest(t.reshape(-1).view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}
        return [metadata["state"], {name: (t.dtype, t.shape, raw[name]) for name, t in tensors.items()}]

    def _around(self) -> list[Any]:
        """What a matcher must leave alone."""
        frozen, real = self.problem.frozen, self.problem.real
        return self._bits([*frozen.sets, frozen.frozen_examples, real.pixels[:], real.targets])


def _check_set(name: str, problem: Problem, made: SyntheticSet) -> None:
    """A balanced set of the data's shape with labels that are what they are called."""
    hard = torch.eye(problem.classes).repeat_interleave(problem.ipc, 0)  # (n, k), class by class
    wanted = (len(hard), *problem.real.shape), tuple(hard.shape)
    got = tuple(made.images.shape), tuple(made.labels.shape)
    require(got == wanted, f"{name} must make images and labels of shapes {wanted} (ipc of each class), got {got}")
    floats = made.images.is_floating_point() and made.labels.is_floating_point()
    require(floats and made.finite(), f"{name} must make finite floats, and an lr above 0 or None")
    rows = made.labels.min() >= 0 and torch.allclose(made.labels.sum(1), torch.ones(len(hard)), atol=1e-4)
    said = "must have label rows that sum to 1; call others label_kind='logit' or 'real'"
    require(made.label_kind != "probability" or rows, f"{name} {said}")
    said = "must order its hard labels by class, ipc of each; give soft ones another label_type than 'hard'"
    require(made.label_type != "hard" or torch.equal(made.labels, hard), f"{name} {said}")
