"""Networks that a file asks for: built without numbers, and refused as soon as they are larger than networks are."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ddbench.errors import DataError
from ddbench.train.network import Network

PARAMETERS = 200_000_000  # a ViT-L of ImageNet has 304 million: whoever means it says --network
MODULES = 10_000  # a network of a thousand layers is built in a second

_N = TypeVar("_N", bound=Network)


def require_modest(network: _N, what: str) -> _N:
    """The network, whose shapes are known now. Raises DataError while it is being built, if it is too large."""
    counts = [0, 0]

    def parameter(_module: nn.Module, _name: str, value: Tensor | None) -> None:
        counts[0] += 0 if value is None else value.numel()
        _refuse(counts, what)

    def module(_module: nn.Module, _name: str, _inner: nn.Module | None) -> None:
        counts[1] += 1
        _refuse(counts, what)

    hooks = [
        register_module_parameter_registration_hook(parameter),
        register_module_module_registration_hook(module),
    ]
    try:
        _ = network.length
    finally:
        for hook in hooks:
            hook.remove()
    return network


def _refuse(counts: list[int], what: str) -> None:
    if counts[0] > PARAMETERS or counts[1] > MODULES:
        raise DataError(
            f"{what} has more than {PARAMETERS:,} parameters or {MODULES:,} modules; if that is what you want, name "
            "the network yourself, with --network"
        )
