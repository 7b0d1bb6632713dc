"""What one student step needs of a network: plain autograd, compiled functions, or either at a lower precision.

The formulas are in :mod:`ddbench.trajectory.derivatives`; when they are compiled, and what is good enough, in
:mod:`ddbench.train.compile`. Where passes are not what was asked for, their verdict holds the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import digest
from ddbench.base.progress import report
from ddbench.base.seeds import Seed
from ddbench.errors import DDBenchError
from ddbench.train.compile import (
    BOUNDS,
    ROUNDED,
    Built,
    Kind,
    badness,
    fresh,
    once,
    pays,
    ready,
    relative_error,
    replayed,
)
from ddbench.train.network import Network
from ddbench.train.precision import Precision
from ddbench.trajectory import derivatives
from ddbench.trajectory.derivatives import Passes


@dataclass(frozen=True)
class Probe:
    """A trained network at which a lower precision has to be near enough as well; ``name`` tells it from others."""

    name: str
    vector: Callable[[], Tensor]


@dataclass(frozen=True)
class Engine:
    """How student steps are computed; ``iterations`` are those over which compiling has to pay for itself.

    ``precision`` is that of convolutions and matrix products in them, forwards and backwards; parameters, adjoints and
    sums stay in float32. A shape at which it is off by more than ``ROUNDED``, for a fresh network or for ``probe``, is
    computed in float32, and so says :func:`account`. A probe has to follow from the spec, not from an iteration.
    """

    kind: Kind = "eager"
    iterations: int = 1
    precision: Precision = "float32"
    probe: Probe | None = None
    steps: int | None = None  # student steps of a whole stage, if plans differ in length from iteration to iteration

    def passes(
        self, network: Network, buffers: Tensor, theta: Tensor, batches: Sequence[int], classes: int, curvature: bool
    ) -> dict[int, Passes]:
        """Passes by the size of a batch, for those sizes of a plan where plain autograd is not what is wanted."""
        if theta.device.type == "meta":
            return {}
        found = {}
        for size in sorted(set(batches)):
            passes = self.for_size(network, buffers, theta, size, self.count(batches, size), classes, curvature)
            if passes is not None:
                found[size] = passes
        return found

    def count(self, batches: Sequence[int], size: int) -> int:
        """The student steps of a stage with batches of one ``size``, by the sizes in one plan."""
        return self.steps or batches.count(size) * self.iterations

    def for_size(
        self, network: Network, buffers: Tensor, theta: Tensor, size: int, steps: int, classes: int, curvature: bool
    ) -> Passes | None:
        """Passes for batches of one ``size`` of which there will be ``steps``; None where plain autograd does."""
        build = self.kind == "compiled" or (self.kind == "auto" and pays(network, size, steps))
        if not (build or self.precision != "float32" or theta.is_cuda):
            return None
        shape = _Shape(network, buffers, theta, size, classes, curvature, build, self.precision, self.probe)
        return shape.passes()


EAGER = Engine()


@dataclass(frozen=True, eq=False)
class _Shape:
    """One shape to compile for or to lower, or both, and what the first step there looks like."""

    network: Network
    buffers: Tensor
    theta: Tensor
    size: int
    classes: int
    curvature: bool
    build: bool
    asked: Precision
    probe: Probe | None = None

    @property
    def key(self) -> str:
        probe = self.probe.name if self.probe else None
        shape = [self.size, self.classes, self.curvature, str(self.theta.device), self.build, self.asked, probe]
        return digest({"network": self.network.identity, "shape": shape, "threads": torch.get_num_threads()})

    def passes(self) -> Passes | None:
        """From earlier, or made and checked now; None where plain autograd does."""
        noted = self.build or self.asked != "float32"  # eager steps in float32 are what everyone expects
        return once(self.key, [self.theta.device] if self.theta.is_cuda else [], self._make, noted=noted)

    def _make(self, before: dict[str, Any] | None) -> tuple[Passes | None, Built]:
        if self.build:
            report(f"compiling student steps of {self.size} images", 0, 1)
        began, precision, passes = time.monotonic(), self.asked, None
        errors: dict[str, float] = {}
        reasons = []
        if before and before["precision"] == "float32" and precision != "float32":
            precision = "float32"
            reasons.append(before["reason"])
        elif precision != "float32":
            passes, errors, reason = self._lowered(precision)
            if passes is None:
                precision, errors = "float32", {}
                reasons.append(f"{reason}; float32 is used")
        if passes is None and self.theta.is_cuda:
            passes = derivatives.eagerly(self.network, self.curvature, precision)
        compiled = None
        if self.build and before and before["engine"] == "eager":
            reasons.append(before["reason"])
        elif self.build:
            compiled, found, reason = self._tried(lambda: self._compiled(precision), precision, "compiled and eager")
            errors = errors if compiled is None and errors else found
            reasons += [reason] if reason else []
        engine = "compiled" if compiled else "eager"
        shape, seconds = (self.size, *self.network.shape), time.monotonic() - began
        if before and (engine, precision) != (before["engine"], before["precision"]):
            reasons.append(f"the stage began with {before['engine']} steps in {before['precision']}")
        reason = "; ".join(dict.fromkeys(reasons)) or None
        return compiled or passes, Built(engine, precision, shape, self.curvature, seconds, errors, reason)

    def _lowered(self, precision: Precision) -> tuple[Passes | None, dict[str, float], str | None]:
        """Eager passes at a lower precision, if there is such a thing here and it is near enough."""
        if self.theta.dtype != torch.float32:
            return None, {}, f"{precision} is for networks in float32"
        if precision == "tf32" and not self.theta.is_cuda:
            return None, {}, "tf32 exists on CUDA only"
        make = lambda: derivatives.eagerly(self.network, self.curvature, precision)  # noqa: E731
        return self._tried(make, precision, f"{precision} and float32")

    def _tried(
        self, make: Callable[[], Passes], precision: Precision, pair: str
    ) -> tuple[Passes | None, dict[str, float], str | None]:
        """Passes, their errors, and why they are not used, if they are not."""
        try:
            passes = make()
            errors = self._worst(passes, precision)
        except (torch.OutOfMemoryError, DDBenchError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler does not manage, eager code does
            said = str(error).strip()
            return None, {}, f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"
        each, whole = ROUNDED if precision != "float32" else BOUNDS[self.theta.device.type]
        bounds = {name: each if name in ("images", "labels") else whole for name in errors}
        wrong = [f"{n} by {e:.1e}, at most {bounds[n]:g}" for n, e in errors.items() if not e <= bounds[n]]
        return None if wrong else passes, errors, f"{pair} disagree: {'; '.join(wrong)}" if wrong else None

    def _compiled(self, precision: Precision) -> Passes:
        # A network of its own, called once: dynamo compiles anew when it finds the module evaluating, or what it has
        # cached changed.
        own = replace(self.network)
        with torch.no_grad():
            own.apply(torch.cat([self.theta, self.buffers]), self.theta.new_zeros(self.size, *own.shape))
        ready()
        loss = derivatives.student(own, precision)
        options: dict[str, Any] = {"mode": "reduce-overhead"} if self.theta.is_cuda else {}

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return replayed(torch.compile(fresh(function), fullgraph=True, dynamic=False, **options), self.theta)

        made = Passes(
            compiled(derivatives.gradient(loss)), compiled(derivatives.along(loss, self.curvature, precision))
        )
        return derivatives.at(precision, made, self.theta.device)

    def _worst(self, passes: Passes, precision: Precision) -> dict[str, float]:
        """The larger of the errors for a fresh network and, of a lower precision, for the probe."""
        fresh = self.network.init(Seed(0))
        errors = self._errors(passes, fresh)
        if precision == "float32" or self.probe is None:
            return errors
        length = len(self.theta)
        trained = self._errors(passes, torch.cat([self.probe.vector()[:length].to(fresh), fresh[length:]]))
        return {name: max(off, trained[name], key=badness) for name, off in errors.items()}

    def _errors(self, passes: Passes, vector: Tensor) -> dict[str, float]:
        """Relative errors on a batch like those to come, at a network, against autograd twice in float32."""
        like = {"device": self.theta.device, "dtype": self.theta.dtype}
        theta, buffers = vector.split([len(self.theta), len(self.buffers)])
        generator = torch.Generator().manual_seed(0)  # on the CPU: the same numbers everywhere
        images = torch.randn(self.size, *self.network.shape, generator=generator).to(**like)
        labels = torch.randn(self.size, self.classes, generator=generator).softmax(1).to(**like)
        direction = torch.randn(len(theta), generator=generator).to(**like) * theta.std()
        exact = derivatives.eagerly(self.network, True, "float32")
        g = exact.gradient(theta, buffers, images, labels)
        expected = [g, *exact.along(theta, buffers, images, labels, direction)]
        # copies: with CUDA graphs a function's results are overwritten by its next call
        found = [passes.gradient(theta, buffers, images, labels).clone()]
        found = [*found, *passes.along(theta, buffers, images, labels, direction)]
        names = ("gradient", "images", "labels", "value", "curved")
        scales = {"value": direction.norm() * g.norm()}  # <u, g> itself may be next to nothing
        pairs = zip(names, found, expected, strict=True)
        return {n: relative_error(f, e, scales.get(n)) for n, f, e in pairs if f is not None}
