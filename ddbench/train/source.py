"""What builds a network: the type of network plugins, here so that trainers know it. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn


class NetworkSource(Protocol):
    """A frozen dataclass that builds a module for images of ``shape`` (c, h, w).

    The module needs ``forward``; with ``features(x)``, the embedding (n, f) before the classifier, matchers
    of distributions can use it, and with ``activations(x)``, a tuple of the maps (n, ...) after each block,
    matchers of maps. Building must not depend on anything but the arguments and torch's generator; raise
    ``ddbench.UsageError`` for images of a size or a number of channels that the network cannot take.
    """

    @property
    def name(self) -> str: ...

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module: ...
