"""What one student step needs of a network, as compiled functions or at a lower precision; else a reason why not.

The formulas are in :mod:`ddbench.derivatives`. ``auto`` compiles where that pays for itself, a rule of shapes and
counts: the same spec always runs the same code. Whether code or precision is good enough for a shape is asked once, of
a fresh network and random images: it is not the iteration at which a run resumes that decides.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddbench import derivatives
from ddbench.cache import digest
from ddbench.derivatives import Passes
from ddbench.errors import DDBenchError
from ddbench.networks import Network
from ddbench.precision import Precision
from ddbench.progress import report
from ddbench.seeds import Seed

Kind = Literal["auto", "eager", "compiled"]

# Relative errors, against eager code in float32, up to which other code is used: of the middle image's gradient, and
# of sums over the batch. Sums may differ more: where rounding takes a ReLU across its kink, one image's gradient
# jumps, and the sum's with it (2e-3 seen at width 128); a wrong formula is wrong for all of them. On CUDA neither side
# rounds to TF32, but kernels are chosen from more algorithms (Winograd's rounds more): nothing is measured there.
BOUNDS = {"cpu": (1e-4, 1e-2), "cuda": (1e-3, 1e-2)}
# The same for lower precisions. An error of a twentieth, at a right angle, takes a thousandth from what a step along
# the gradient gains. For fresh ConvNets of width 32 and 128, TF32 (its rounding imitated on a CPU) is off by 1 to 4 %,
# bfloat16 by 6 to 11 %. Errors grow with training: after 30 and 150 steps on noise those of TF32 are 5 and 14 %.
ROUNDED = (5e-2, 5e-2)
COMPILE_SECONDS = 120.0  # both functions of one shape; 20 to 120 were seen
# Seconds that a compiled student step saves, for each 10^9 operations of its forward pass and on one thread:
# between 0.03 (width 128, exact) and 0.11 (width 32, zero) were seen.
SAVED = 0.03


@dataclass(frozen=True)
class Built:
    """How one shape came out: for the record of a stage. ``errors`` are those against eager code in float32."""

    engine: Literal["compiled", "eager"]
    precision: Precision
    shape: tuple[int, ...]
    curvature: bool
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)
    reason: str | None = None  # why it is not what was asked for

    def note(self) -> dict[str, Any]:
        return {**{k: v for k, v in vars(self).items() if v is not None}, "shape": list(self.shape)}


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
            steps = self.steps or batches.count(size) * self.iterations
            build = self.kind == "compiled" or (self.kind == "auto" and pays(network, size, steps))
            if build or self.precision != "float32" or theta.is_cuda:
                task = _Task(network, buffers, theta, size, classes, curvature, build, self.precision, self.probe)
                passes = task.passes()
                if passes is not None:
                    found[size] = passes
        return found


EAGER = Engine()

_made: dict[str, tuple[Passes | None, Built]] = {}
_used: dict[str, None] = {}  # keys of _made, in order
_settled: dict[str, dict[str, Any]] = {}  # notes of earlier processes, by the same keys


def verdicts() -> dict[str, dict[str, Any]]:
    """What was to be compiled or lowered since the last account, and how it came out, as JSON, by a key of each."""
    return {key: _made[key][1].note() for key in _used}


def account() -> list[dict[str, Any]]:
    """The verdicts; a new account begins."""
    notes = list(verdicts().values())
    _used.clear()
    return notes


def settle(notes: dict[str, dict[str, Any]]) -> None:
    """Hold to earlier verdicts: what a stage began with it ends with, wherever it is resumed."""
    _settled.update(notes)


def pays(network: Network, batch: int, steps: int) -> bool:
    """Whether ``steps`` student steps on ``batch`` images win back the time of compiling: a rule, not a measurement.

    On the CPU only: nothing has been measured elsewhere.
    """
    if network.device.type != "cpu":
        return False
    saved = SAVED * batch * forward_flops(network) / 1e9 / torch.get_num_threads()
    return steps * saved > COMPILE_SECONDS


_flops: dict[str, int] = {}


def forward_flops(network: Network) -> int:
    """Multiplications and additions of a forward pass of one image, counted on the meta device."""
    key = digest(network.identity)
    if key not in _flops:
        shapes = Network(network.source, network.shape, network.classes, torch.device("meta"), network.dtype)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            images = torch.empty(2, *network.shape, dtype=network.dtype)  # batch norm wants more than one
            shapes.apply(torch.empty(network.length, dtype=network.dtype), images)
        _flops[key] = counter.get_total_flops() // 2
    return _flops[key]


@dataclass(frozen=True, eq=False)
class _Task:
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
        key = self.key
        if self.build or self.asked != "float32":  # eager steps in float32 are what everyone expects
            _used[key] = None
        if key not in _made:
            if self.build:
                report(f"compiling student steps of {self.size} images", 0, 1)
            devices = [self.theta.device] if self.theta.is_cuda else []
            with torch.random.fork_rng(devices), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about parts of itself
                _made[key] = self._make(_settled.get(key))
        return _made[key][0]

    def _make(self, before: dict[str, Any] | None) -> tuple[Passes | None, Built]:
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
        loss = derivatives.student(own, precision)
        options: dict[str, Any] = {"mode": "reduce-overhead"} if self.theta.is_cuda else {}

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return _replayed(torch.compile(_fresh(function), fullgraph=True, dynamic=False, **options), self.theta)

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
        return {name: max(off, trained[name], key=_badness) for name, off in errors.items()}

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
        return {n: _error(f, e, scales.get(n)) for n, f, e in pairs if f is not None}


def _badness(error: float) -> float:
    """What is not a number is the worst."""
    return math.inf if math.isnan(error) else error


def _error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The relative error of a vector or number; of rows, the median of theirs."""
    rows = 1 if expected.ndim < 2 else len(expected)
    off = (found.double() - expected.double()).view(rows, -1).norm(dim=1)
    size = expected.double().view(rows, -1).norm(dim=1) if scale is None else scale.double()
    return float((off / size.clamp_min(1e-30)).median())


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with code of its own: dynamo counts recompilations by code object, and gives up after a few."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )


def _replayed(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """On CUDA, marks each call as the start of a replay, so that results of earlier calls may be overwritten."""
    if not like.is_cuda:
        return function

    def replayed(*arguments: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return function(*arguments)

    return replayed
