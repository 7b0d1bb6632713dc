"""What a run costs on a device that it does not run on: its work counted, times what such work took elsewhere.

A part of a run is counted in three amounts: ``calls``, student steps times the modules of the network, which is what a
GPU waits for while batches are small; ``flops``, of all images forwards and backwards; and ``numbers``, the outputs of
all modules that go through memory. The seconds of each on a device are fitted to its records by
``python -m benchmarks.cost``, which writes ``rates.json`` beside this module. What a matcher takes beside plain
training of as many images is a factor of its own. A device that nobody measured is scaled from data sheets, and says
so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddbench.base.cache import digest
from ddbench.data.dataset import Dataset
from ddbench.errors import UsageError, did_you_mean
from ddbench.plugins import needs_of
from ddbench.problem.problem import Problem
from ddbench.run.calls import steps_of
from ddbench.run.price import work_of
from ddbench.run.run import build_task
from ddbench.run.spec import RunSpec
from ddbench.train.compile import forward_flops
from ddbench.train.network import Network

FILE = Path(__file__).with_name("rates.json")
SHEET = "h200"  # the measured GPU that others are scaled from
PARTS = ("experts", "distilling", "grading")


@dataclass(frozen=True)
class Amount:
    """The work of a part of a run."""

    calls: float
    flops: float
    numbers: float

    def seconds(self, rates: tuple[float, float, float]) -> float:
        return self.calls * rates[0] + self.flops * rates[1] + self.numbers * rates[2]


@dataclass(frozen=True)
class Rates:
    """Seconds per call, per flop and per number on a device; ``matchers``: times as long as training.

    ``error`` is the typical factor between what was predicted and what was measured, 1 for none.
    """

    name: str
    about: str
    training: tuple[float, float, float]
    matchers: dict[str, float]
    error: float | None


@dataclass(frozen=True)
class Cost:
    """Seconds of the parts of a run on a device; None for distilling whose matcher does not tell its work.

    ``guessed`` says that the matcher was measured on no device like this, and counts as plain training.
    """

    experts: float
    distilling: float | None
    grading: float
    guessed: bool = False

    @property
    def known(self) -> float:
        return self.experts + (self.distilling or 0.0) + self.grading


def counted(spec: RunSpec, task: Problem, students: int) -> dict[str, Amount | None]:
    """The amounts of experts, distilling, the lessons of what it draws, and grading by judges and ``students``."""
    work, network = work_of(spec, task, students), task.network
    recipe, images = needs_of(spec.matcher, task).recipe or task.expert_recipe, len(task.real)
    batch = min(recipe.batch, images)
    shown = min(spec.protocol.batch, spec.ipc * task.classes)
    found: dict[str, Amount | None] = {
        "experts": amount(network, work.experts, batch),
        "distilling": None,
        "lessons": amount(network, work.lessons, shown),
        "grading": amount(network, work.grading, shown),
    }
    if steps_of(spec.matcher) == 0:  # a coreset: what choosing takes beside its networks is little
        found["distilling"] = Amount(0.0, 0.0, 0.0)
    elif work.distilling is not None:
        calls = _steps(spec)
        found["distilling"] = amount(network, work.distilling, work.distilling / calls if calls else 1)
    return found


def _steps(spec: RunSpec) -> float:
    """Student steps of distilling: those of every iteration, for matchers that train a student in it."""
    stages = getattr(spec.scheduler, "stages", 1)
    return float(stages * steps_of(spec.matcher) * getattr(spec.matcher, "syn_steps", 1))


def training_bytes(network: Network, images: int) -> int:
    """What a step on so many images holds: the outputs of all modules, which going backwards needs."""
    return _outputs(network)[1] * images * network.dtype.itemsize


def amount(network: Network, passes: float, batch: float) -> Amount:
    """The work of so many images that go forwards and backwards in batches."""
    modules, numbers = _outputs(network)
    steps = passes / batch if batch else 0.0
    return Amount(steps * modules, 3.0 * passes * forward_flops(network), 3.0 * passes * numbers)


def _outputs(network: Network) -> tuple[int, int]:
    """(modules, outputs of all of them for one image), counted on the meta device."""
    key = digest(network.identity)
    if key not in _found:
        shapes = Network(network.source, network.shape, network.classes, torch.device("meta"), network.dtype)
        sizes: list[int] = []

        def count(_module: nn.Module, _given: object, made: object) -> None:
            sizes.append(made.numel() if isinstance(made, torch.Tensor) else 0)

        with torch.device("meta"):
            built = shapes.source.build(shapes.shape, shapes.classes)
            for module in built.modules():
                if not list(module.children()):
                    module.register_forward_hook(count)
            built(torch.empty(2, *shapes.shape))  # batch norm wants more than one
        _found[key] = len(sizes), sum(sizes) // 2
    return _found[key]


_found: dict[str, tuple[int, int]] = {}


@cache
def table() -> dict[str, Any]:
    """What was measured, what data sheets say, and their sources."""
    return json.loads(FILE.read_text())


def devices() -> list[str]:
    """The devices whose cost can be told: measured ones first."""
    return [*table()["measured"], *(name for name in table()["sheets"] if name not in table()["measured"])]


def rates(name: str) -> Rates:
    """The rates of a device. Raises UsageError with those that there are."""
    held = table()
    if name in held["measured"]:
        own = held["measured"][name]
        return Rates(name, own["about"], tuple(own["training"]), own["matchers"], own["error"])
    if name not in held["sheets"]:
        names = devices()
        raise UsageError(
            f"no rates of a device called {name!r}{did_you_mean(name, names)} (there are: {', '.join(names)})"
        )
    base, sheet, own = rates(SHEET), held["sheets"][SHEET], held["sheets"][name]
    slower = max(sheet[what] / own[what] for what in ("tf32_tflops", "bandwidth_gb"))
    calls, flops, numbers = base.training
    about = (
        f"nobody measured it: scaled from {SHEET.upper()} by {slower:.2f}, the larger of what data sheets say of TF32 "
        f"and of memory ({own['source']}); time per call as there"
    )
    return Rates(name, about, (calls, slower * flops, slower * numbers), base.matchers, None)


def cost(spec: RunSpec, dataset: Dataset, students: int, device: str) -> Cost:
    """What a run will take on a device, experts included. Raises UsageError where the budget cannot be divided."""
    found, known = counted(spec, build_task(replace(spec, device="cpu"), dataset), students), rates(device)
    return priced(spec.matcher.name, found, known)


def priced(matcher: str, amounts: dict[str, Amount | None], known: Rates) -> Cost:
    """Amounts as seconds on a device."""
    factor = known.matchers.get(matcher)
    other = [own["matchers"][matcher] for own in table()["measured"].values() if matcher in own["matchers"]]
    seconds = {part: None if found is None else found.seconds(known.training) for part, found in amounts.items()}
    distilling = seconds["distilling"]
    if distilling is not None:
        distilling = distilling * (factor or (max(other) if other else 1.0)) + (seconds["lessons"] or 0.0)
    guessed = bool(distilling) and factor is None and not other
    return Cost(seconds["experts"] or 0.0, distilling, seconds["grading"] or 0.0, guessed)


def kind_of(name: str) -> str:
    """As what recipes and rules know a device with rates. Raises UsageError where it has none."""
    return "cpu" if rates(name).name == "cpu" else "cuda"


def device_of(device: str, asked: str | None = None) -> str:
    """The name of the rates for a run's device: those ``asked`` for, this machine's GPU if it is known, else H200's."""
    if asked is not None:
        return rates(asked).name
    if not device.startswith("cuda"):
        return "cpu"
    own = torch.cuda.get_device_name().lower().replace(" ", "") if torch.cuda.is_available() else ""
    return next((name for name in devices() if name in own), SHEET)
