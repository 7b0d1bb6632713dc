"""Networks that files ask for are no larger than networks are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn

from ddbench import Network
from ddbench.errors import DataError
from ddbench.grade import modest
from ddbench.grade.modest import require_modest


@dataclass(frozen=True)
class Layers:
    """Linear layers, one after another, with biases or without."""

    count: int
    bias: bool = True
    name = "layers"

    def build(self, shape, classes):
        return nn.Sequential(nn.Flatten(), *(nn.Linear(4, 4, bias=self.bias) for _ in range(self.count)))


def network(count: int, bias: bool = True) -> Network:
    return Network(Layers(count, bias), (1, 2, 2), 4)


@pytest.mark.parametrize(("bias", "each"), [(True, 20), (False, 16)])
@pytest.mark.parametrize("layers", [1, 3])
def test_as_many_parameters_as_there_may_be_are_built_and_no_more(monkeypatch, bias, each, layers):
    monkeypatch.setattr(modest, "PARAMETERS", layers * each)
    assert require_modest(network(layers, bias), "a network").length == layers * each
    monkeypatch.setattr(modest, "PARAMETERS", layers * each - 1)
    with pytest.raises(DataError, match=f"a network has more than {layers * each - 1} parameters or 10,000 modules"):
        require_modest(network(layers, bias), "a network")


@pytest.mark.parametrize("layers", [1, 3])
def test_as_many_modules_as_there_may_be_are_built_and_no_more(monkeypatch, layers):
    monkeypatch.setattr(modest, "MODULES", layers + 1)  # the one that flattens is another
    assert require_modest(network(layers), "a network").length == 20 * layers
    monkeypatch.setattr(modest, "MODULES", layers)
    with pytest.raises(DataError, match=f"or {layers} modules"):
        require_modest(network(layers), "a network")


def test_what_is_built_later_is_not_counted():
    require_modest(network(1), "a network")
    for hooks in (
        nn.modules.module._global_parameter_registration_hooks,
        nn.modules.module._global_module_registration_hooks,
    ):
        assert not hooks
