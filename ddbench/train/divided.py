"""Training whose batches are divided over ranks: experts of large images.

Rank 0 draws and augments a batch, as on one device; every rank finds the gradient of its rows' share, and an all-reduce
adds the shares up. The network is updated by rank 0 (:mod:`ddbench.base.ranks`).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from ddbench.base.cache import digest
from ddbench.base.options import make, options
from ddbench.base.ranks import current
from ddbench.data.dataset import Examples
from ddbench.train.fit import Divided, Lessons, Recipe
from ddbench.train.network import Network
from ddbench.train.precision import training

WORTH = 1_000_000  # numbers in a batch of images: 256 of 3x32x32 have fewer, and would wait for parameters to travel


def worth_dividing(recipe: Recipe, shape: tuple[int, int, int]) -> bool:
    """Whether batches of images ``shape`` (c, h, w) can be divided, and are large enough for it."""
    return recipe.batch * math.prod(shape) >= WORTH and not recipe.online


def over_ranks(network: Network, lessons: Lessons) -> Divided | None:
    """The gradient of a batch by all ranks; None where there is one, or batches are not worth it."""
    ranks = current()
    if ranks is None or not worth_dividing(lessons.recipe, network.shape):
        return None
    job = Gradient(network, lessons)

    def divided(parameters: Tensor, batch: Examples) -> Tensor:
        return ranks.ask(job, len(batch), (parameters, batch.images, batch.labels))

    return divided


def record_of(network: Network) -> dict[str, Any]:
    """A network as JSON, of which any process with the same plugins makes it again: :func:`network_of`."""
    source = type(network.source)
    return network.identity | {"class": [source.__module__, source.__qualname__]}


def network_of(record: dict[str, Any], device: torch.device) -> Network:
    """The network of a record, on another device of its kind."""
    module, name = record["class"]
    source = make(getattr(importlib.import_module(module), name), record["source"]["options"], "network")
    return Network(source, tuple(record["shape"]), record["classes"], device, getattr(torch, record["dtype"]))


@dataclass(frozen=True, eq=False)
class Gradient:
    """The share of a batch's gradient: given are parameters ``(p,)``, images ``(n, c, h, w)`` and labels, flat."""

    network: Network
    lessons: Lessons

    def record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The network and the lessons as they are described."""
        known = {"network": record_of(self.network), "recipe": options(self.lessons.recipe)}
        return known | {"fused": self.lessons.fused}, {}

    @classmethod
    def of_record(cls, record: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Gradient:  # noqa: ARG003
        """The same on another rank."""
        lessons = Lessons(make(Recipe, record["recipe"], "recipe"), None, fused=record["fused"])
        return cls(network_of(record["network"], device), lessons)

    @property
    def key(self) -> str:
        return digest([self.network.identity, options(self.lessons.recipe), self.lessons.fused])

    def answer(self, given: Tensor, rows: slice, count: int) -> Tensor:
        """g of ``rows`` of ``count``, times their share of the batch, ``(p,)``."""
        p, network = self.network.parameters, self.network
        parameters, images, labels = given.split([p, count * math.prod(network.shape), count * network.classes])
        size = rows.stop - rows.start
        if not size:
            return torch.zeros_like(parameters)
        images, labels = images.view(count, *network.shape)[rows], labels.view(count, -1)[rows]
        leaf = parameters.detach().requires_grad_()
        with torch.enable_grad(), training(network.device, self.lessons.recipe.precision):
            logits, _ = self.lessons.logits(network, leaf, images)
            return grad(self.lessons.loss(logits, labels), leaf)[0] * (size / count)
