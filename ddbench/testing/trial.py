"""A matcher on trial: driven in every way in which the harness may drive it, it must give the same bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench import Problem, Seed, SyntheticSet
from ddbench.base.cache import digest
from ddbench.base.state import has_nan, load_state, save_state
from ddbench.base.tensors import load_tensors
from ddbench.hookspecs import Matcher
from ddbench.run.calls import set_flaw
from ddbench.testing.findings import FailedCheck, Findings, explained, require
from ddbench.testing.watch import watched

STEPS = 3  # of a matcher that are taken: enough to stop after each and go on


# The ways in which the harness may drive a matcher, and what makes it give other bits than straight on.
MODES = {
    "straight on": "",
    "again, with result() after every step": "draw from torch's global generator alone, keep nothing on the class, "
    "and change nothing in result()",
    "again, from checkpoints": "put all that changes in the state, let no two tensors share memory, and draw nothing "
    "lazily; restored workspaces are empty, and restored tensors are contiguous and want no gradients",
}


CHECK = dict(zip(MODES, ("runs", "repeat", "resume"), strict=True))  # of which the ways are


@dataclass(frozen=True, eq=False)
class Trial:
    """A matcher at work on one problem."""

    method: Matcher[object]
    problem: Problem
    file: Path
    found: Findings
    mode: str = "straight on"
    seed: int = 0

    def check(self) -> SyntheticSet:
        """The set that the matcher makes. Raises Unreached where there is none, or none that is the problem's."""
        name, around = f"matcher {self.method.name!r}", self._around()
        with self.found.checking("runs", "returns", "state", vital=True):
            state, made, trail = self._play()
        with self.found.checking("lent", vital=True):
            require(self._around() == around, f"{name} changes frozen sets or real data in place; clone them first")
        for mode, check in list(CHECK.items())[1:]:
            with self.found.checking(check):
                self._compare(mode, trail)
        result = made.detached()
        with self.found.checking("shape", "dtype", "finite", "labels", vital=True):
            _check_set(name, self.problem, result)
        with self.found.checking("memory"):
            for tensor in (made.images, made.labels):
                torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(1)
            apart = not self.method.steps or self._bits(state) == list(trail.values())[-2]  # no step follows a coreset
            require(apart, f"result() of {name} returns memory of its state, which later steps change; return clones")
        with self.found.checking("seed"):
            self._check_seed(trail["result()"])
        return result

    def _compare(self, mode: str, trail: dict[str, Any]) -> None:
        """Drive the matcher in another way: it must give the same bits after every call."""
        for call, bits in replace(self, mode=mode)._play()[2].items():
            said = f"{call} of matcher {self.method.name!r} gives other bits when it is driven {mode}; {MODES[mode]}"
            require(bits == trail[call], said)

    def _check_seed(self, bits: Any) -> None:
        """A method that learns must not give one set for all seeds; a coreset may find the same one."""
        if not self.method.steps:
            return
        problem = replace(self.problem, seed=Seed(1))
        other = replace(self, problem=problem, seed=1, mode=f"{self.mode} with another seed")._play()[2]["result()"]
        said = f"matcher {self.method.name!r} gives the same set for two seeds, so that replicates would be copies"
        require(other != bits, f"{said}; begin with problem.sample(), and draw from torch's global generator")

    def _play(self) -> tuple[Any, SyntheticSet, dict[str, Any]]:
        """The last state, the result, and the bits after every call."""
        problem, trail, state = replace(self.problem), {}, None
        for k in range(-1, min(self.method.steps, STEPS)):
            state = self._call("init", problem) if k < 0 else self._step(problem, state, k)
            call = "init()" if k < 0 else f"step() {k}"
            trail[call] = self._bits(state)
            said = f"{call} of matcher {self.method.name!r} leaves not-a-number in the state"
            require(not has_nan(state), said, "finite")
            if "result()" in self.mode:
                self._call("result", problem, state)
            if "checkpoints" in self.mode:
                problem, state = replace(self.problem), load_state(self.file, torch.device("cpu"))[0]
        made = self._call("result", problem, state)
        said = f"result() of matcher {self.method.name!r} must return a ddbench.SyntheticSet, not {type(made).__name__}"
        require(isinstance(made, SyntheticSet), said, "returns")
        return state, made, trail | {"result()": self._bits(made)}

    def _step(self, problem: Problem, state: Any, k: int) -> Any:
        returned, name = self._call("step", problem, state, k), f"step() of matcher {self.method.name!r}"
        pair = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)
        require(pair, f"{name} must return (state, metrics), metrics being a dictionary of numbers", "returns")
        for metric, value in returned[1].items():
            with explained(f"reading the metric {metric!r} that {name} reports", "returns"):
                number = float(value)
            require(math.isfinite(number), f"{name} reports a {metric} of {number} on the toy task", "finite")
        return returned[0]

    def _call(self, hook: str, problem: Problem, *arguments: Any) -> Any:
        """Call the matcher with all generators seeded by the address of the call, as the harness does."""
        what = f"{hook}() of matcher {self.method.name!r}"
        with (
            (Seed(self.seed) / hook / repr(arguments[1:])).scope(),
            explained(f"{what}, driven {self.mode},"),
            watched(self.found, what),
        ):
            return getattr(self.method, hook)(problem, *arguments)

    def _bits(self, value: Any) -> list[Any]:
        """What a checkpoint holds of a value: equal for bit-identical ones."""
        advice = "make it of tensors, numbers and text, in dataclasses from the top of a module"
        with explained(f"saving the state of matcher {self.method.name!r} ({advice})", "state"):
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
    require(
        got == wanted, f"{name} must make images and labels of shapes {wanted} (ipc of each class), got {got}", "shape"
    )
    floats = made.images.is_floating_point() and made.labels.is_floating_point()
    require(floats, f"{name} must make finite floats, and has {made.images.dtype} and {made.labels.dtype}", "dtype")
    require(made.finite(), f"{name} must make finite floats, and an lr above 0 or None", "finite")
    if flaw := set_flaw(made, wanted[0], problem.classes):  # what the harness looks at after every call
        check = "dtype" if "float32" in flaw else "finite" if " lr" in flaw else "labels"
        raise FailedCheck(f"{name} {flaw}", check)
