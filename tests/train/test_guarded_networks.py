"""Networks that misbehave while they are built or used: a sentence, or nothing that anybody else would see."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench import Network, Recipe, Seed, Student, fit, predict
from ddbench.errors import PluginError
from ddbench.testing import toy_task
from ddbench.train.fit_together import fit_together


def changes() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    print("hello from a network")


class Linear(nn.Module):
    """Linear in the pixels; what it does in its forward pass is a test's."""

    def __init__(self, pixels: int, classes: int, forward: Callable[[], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, classes)
        self.done = forward

    def forward(self, x: Tensor) -> Tensor:
        self.done()
        return self.layer(x.flatten(1))


def nothing() -> None: ...


@dataclass(frozen=True)
class Made:
    name = "made"
    build_does: Callable[[], object] = nothing
    forward_does: Callable[[], object] = nothing

    def build(self, shape: tuple[int, int, int], classes: int) -> Any:
        replaced = self.build_does()
        if replaced is not None:
            return replaced
        return Linear(shape[0] * shape[1] * shape[2], classes, self.forward_does)


def network(**does: Callable[[], object]) -> Network:
    return Network(Made(**does), (1, 8, 8), 3)


@pytest.mark.parametrize("where", ["build_does", "forward_does"])
def test_a_network_that_changes_the_process_is_trained_and_changes_nobody_else(where, capsys):
    task, recipe = toy_task(), Recipe(epochs=1, batch=32, augment="")
    before = torch.get_rng_state()
    net = network(**{where: changes})
    alone = fit(net, Student(net.init(Seed(0))), task.real, recipe, Seed(1))
    two = [Student(net.init(Seed(i))) for i in range(2)]
    for student in (alone, *fit_together(net, two, task.real, recipe, [Seed(1)] * 2, lrs=[None] * 2)):
        predict(net, student.vector, task.real)
        assert torch.get_default_dtype() == torch.float32
        assert torch.get_num_threads() == 1
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before, torch.get_rng_state())
    said = capsys.readouterr()
    assert said.out == ""
    assert "hello from a network" in said.err


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda: sys.exit(0), "build.. of network 'made' raised SystemExit"),
        (lambda: 1 / 0, "build.. of network 'made' raised ZeroDivisionError"),
        (lambda: "a module", "build.. of network 'made' must return a torch.nn.Module, not str"),
    ],
)
def test_a_network_that_cannot_be_built_is_a_sentence(does, said):
    with pytest.raises(PluginError, match=said):
        network(build_does=does).init(Seed(0))


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()], ids=lambda e: type(e).__name__)
def test_a_network_that_exits_in_its_forward_pass_fails(error):
    def leaves() -> None:
        raise error

    task, net = toy_task(), network(forward_does=leaves)
    with pytest.raises(PluginError, match=f"training network 'made' raised {type(error).__name__}"):
        fit(net, Student(net.init(Seed(0))), task.real, Recipe(epochs=1, augment=""), Seed(1))
    with pytest.raises(PluginError, match=f"network 'made' raised {type(error).__name__}"):
        predict(net, net.init(Seed(0)), task.real)
