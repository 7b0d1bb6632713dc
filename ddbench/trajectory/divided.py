"""Student steps whose batches are divided over ranks: each derives its rows' share, and an all-reduce adds them up.

The gradient g of a batch's mean loss, and the derivatives of <u, g> along a direction u, are sums over its rows. So
what an unroll asks of the network in a step is divided, and nothing else: augmentations, the student's updates and the
outer descent are rank 0's (:mod:`ddbench.base.ranks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import digest
from ddbench.base.ranks import Ranks
from ddbench.train.divided import network_of, record_of
from ddbench.train.network import Network
from ddbench.train.precision import arithmetic
from ddbench.trajectory import derivatives
from ddbench.trajectory.derivatives import Along, Passes
from ddbench.trajectory.engine import Engine, Probe


@dataclass(frozen=True, eq=False)
class StudentStep:
    """The passes of one student step on a share of its batch: the gradient or, ``along`` a direction, derivatives.

    ``steps`` are those that the choice of compiling is made for, as on one device. What is given is flat:
    theta ``(p,)``, buffers, images ``(n, c, h, w)``, labels ``(n, k)`` and, along a direction, that ``(p,)``.
    """

    network: Network
    engine: Engine
    steps: int
    classes: int
    curvature: bool
    along: bool

    def record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All but the network as it is, and what a probe reads instead of from where."""
        e, probe = self.engine, self.engine.probe
        engine = [e.kind, e.iterations, e.precision, probe.name if probe else None, e.steps]
        known = {"network": record_of(self.network), "engine": engine, "steps": self.steps, "classes": self.classes}
        known |= {"curvature": self.curvature, "along": self.along}
        return known, {"probe": probe.vector()} if probe else {}

    @classmethod
    def of_record(cls, record: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> StudentStep:
        """The same on another rank."""
        kind, iterations, precision, name, steps = record["engine"]
        probe = Probe(name, lambda: tensors["probe"]) if name else None
        engine = Engine(kind, iterations, precision, probe, steps)
        asked = (record["steps"], record["classes"], record["curvature"], record["along"])
        return cls(network_of(record["network"], device), engine, *asked)

    @property
    def key(self) -> str:
        e = self.engine
        probe = e.probe.name if e.probe else None
        asked = [e.kind, e.precision, probe, self.steps, self.classes, self.curvature, self.along]
        return digest([self.network.identity, asked])

    def answer(self, given: Tensor, rows: slice, count: int) -> Tensor:
        """The share of ``rows`` ``(m,)``: g ``(p,)``; or d<u, g>/d(images, labels), <u, g> and perhaps H u, flat."""
        theta, buffers, images, labels, *direction = self._parts(given, count)
        size = rows.stop - rows.start
        if not size:
            return given.new_zeros(self._length(count))
        passes = self._passes(buffers, theta, size)
        batch = (theta, buffers, images[rows].contiguous(), labels[rows].contiguous())
        with torch.enable_grad(), arithmetic(theta.device, "float32"):  # it may be asked for inside of a backward pass
            if not self.along:
                return passes.gradient(*batch) * (size / count)
            found = passes.along(*batch, *direction)
        pieces = torch.zeros_like(images), torch.zeros_like(labels)
        for piece, share in zip(pieces, (found.images, found.labels), strict=True):
            piece[rows] = share
        curved = [] if found.curved is None else [found.curved]
        return torch.cat([part.reshape(-1) for part in (*pieces, found.value, *curved)]) * (size / count)

    def _passes(self, buffers: Tensor, theta: Tensor, size: int) -> Passes:
        made = self.engine.for_size(self.network, buffers, theta, size, self.steps, self.classes, self.curvature)
        return made or derivatives.eagerly(self.network, self.curvature, "float32")

    def _sizes(self, count: int) -> list[int]:
        p, image = self.network.parameters, math.prod(self.network.shape)
        return [p, self.network.length - p, count * image, count * self.classes, *[p] * self.along]

    def _parts(self, given: Tensor, count: int) -> Sequence[Tensor]:
        theta, buffers, images, labels, *direction = given.split(self._sizes(count))
        return theta, buffers, images.view(count, *self.network.shape), labels.view(count, -1), *direction

    def _length(self, count: int) -> int:
        p, _, images, labels, *_ = self._sizes(count)
        return images + labels + 1 + p * self.curvature if self.along else p

    def apart(self, found: Tensor, count: int) -> Along:
        """What an answer along a direction holds."""
        _, _, images, labels, *_ = self._sizes(count)
        rest = [self.network.parameters] if self.curvature else []
        pieces = found.split([images, labels, 1, *rest])
        shaped = pieces[0].view(count, *self.network.shape), pieces[1].view(count, -1), pieces[2].squeeze(0)
        return Along(*shaped, pieces[3] if self.curvature else None)


def divided(ranks: Ranks, engine: Engine, network: Network, steps: int, classes: int, curvature: bool) -> Passes:
    """The passes of student steps that all ranks work at."""
    ask = StudentStep(network, engine, steps, classes, curvature, along=False)
    ask_along = replace(ask, along=True)

    def gradient(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return ranks.ask(ask, len(images), (theta, buffers, images, labels))

    def along(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Along:
        found = ranks.ask(ask_along, len(images), (theta, buffers, images, labels, direction))
        return ask_along.apart(found, len(images))

    return Passes(gradient, along)
