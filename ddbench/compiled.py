"""What one student step needs of a network, as compiled functions; where that cannot be, a reason why not.

Along a direction u in parameter space, the second-order pass gives d<u, g>/d(images, labels), <u, g>, and H u where
that is wanted. With F the convolutions of a forward pass (backward to images and to parameters: F each):

| formulation | d<u, g>/d(a, y) | and <u, g> | and H u |
| --- | ---: | ---: | ---: |
| autograd twice (what eager steps do) | 7F | 7F | 9F |
| reverse over reverse, g itself left out | 6F | 6F | 8F |
| reverse over forward: the gradient of dl(theta + tau u)/dtau | 6F | 6F | 8F |
| forward over reverse: d/dtau of the gradient at theta + tau u | 6F | 6F | 8F |

Eager, the last two lose in elementwise kernels what they save in convolutions; compiled, those are fused.
``auto`` compiles where that pays for itself, a rule of shapes and counts: the same spec always runs the same code.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp
from torch.utils.flop_counter import FlopCounterMode

from ddbench.cache import digest
from ddbench.networks import Network
from ddbench.progress import report
from ddbench.training import soft_cross_entropy

Kind = Literal["auto", "eager", "compiled"]

# Relative errors, against eager code, up to which compiled code is used: of the middle image's gradient, and of
# sums over the batch. Sums may differ more: where rounding takes a ReLU across its kink, one image's gradient
# jumps, and the sum's with it (2e-3 seen at width 128); a wrong formula is wrong for all of them. On CUDA
# convolutions round to TF32 unless torch is told otherwise, each kernel in its own way.
BOUNDS = {"cpu": (1e-4, 1e-2), "cuda": (2e-2, 5e-2)}
COMPILE_SECONDS = 120.0  # both functions of one shape; 20 to 120 were seen
# Seconds that a compiled student step saves, for each 10^9 operations of its forward pass and on one thread:
# between 0.03 (width 128, exact) and 0.11 (width 32, zero) were seen.
SAVED = 0.03


class Along(NamedTuple):
    """Derivatives of g along a direction u: d<u, g>/d(images, labels), <u, g>, and H u when asked for."""

    images: Tensor
    labels: Tensor
    value: Tensor
    curved: Tensor | None


@dataclass(frozen=True, eq=False)
class Passes:
    """A student step on batches of one shape: ``(theta, buffers, images, labels[, direction])``."""

    gradient: Callable[..., Tensor]
    along: Callable[..., Along]


@dataclass(frozen=True)
class Built:
    """How one shape came out: for the record of a stage."""

    shape: tuple[int, ...]
    curvature: bool
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)
    reason: str | None = None  # why it runs eagerly after all

    def note(self) -> dict[str, Any]:
        engine = "eager" if self.reason else "compiled"
        return {"engine": engine, **{k: v for k, v in vars(self).items() if v is not None}, "shape": list(self.shape)}


@dataclass(frozen=True)
class Engine:
    """How student steps are computed; ``iterations`` are those over which compiling has to pay for itself."""

    kind: Kind = "eager"
    iterations: int = 1

    def passes(
        self, network: Network, buffers: Tensor, theta: Tensor, batches: Sequence[int], classes: int, curvature: bool
    ) -> dict[int, Passes]:
        """Compiled passes by the size of a batch, for those sizes of a plan that are to be compiled and can be."""
        if self.kind == "eager" or theta.device.type == "meta":
            return {}
        found = {}
        for size in sorted(set(batches)):
            steps = batches.count(size) * self.iterations
            if self.kind == "compiled" or pays(network, size, steps):
                task = _Task(network, buffers, theta, size, classes, curvature)
                passes = task.passes()
                if passes is not None:
                    found[size] = passes
        return found


EAGER = Engine()

_made: dict[str, tuple[Passes | None, Built]] = {}
_used: dict[str, None] = {}  # keys of _made, in order


def account() -> list[dict[str, Any]]:
    """What was asked to be compiled since the last account, and how it came out, as JSON."""
    notes = [_made[key][1].note() for key in _used]
    _used.clear()
    return notes


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
    """One shape to compile for, and what the first step there looks like."""

    network: Network
    buffers: Tensor
    theta: Tensor
    size: int
    classes: int
    curvature: bool

    @property
    def key(self) -> str:
        shape = [self.size, self.classes, self.curvature, str(self.theta.device)]
        return digest({"network": self.network.identity, "shape": shape, "threads": torch.get_num_threads()})

    def passes(self) -> Passes | None:
        """From earlier, or made and checked now."""
        key = self.key
        _used[key] = None
        if key not in _made:
            report(f"compiling student steps of {self.size} images", 0, 1)
            devices = [self.theta.device] if self.theta.is_cuda else []
            with torch.random.fork_rng(devices), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about parts of itself
                _made[key] = self._make()
        return _made[key][0]

    def _make(self) -> tuple[Passes | None, Built]:
        began = time.monotonic()
        shape = (self.size, *self.network.shape)
        try:
            passes = self._compiled()
            errors = self._errors(passes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler does not manage, eager code does
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            return None, Built(shape, self.curvature, time.monotonic() - began, {}, reason)
        seconds, (each, whole) = time.monotonic() - began, BOUNDS[self.theta.device.type]
        bounds = {name: each if name in ("images", "labels") else whole for name in errors}
        wrong = [f"{n} by {e:.1e}, at most {bounds[n]:g}" for n, e in errors.items() if not e <= bounds[n]]
        reason = f"compiled and eager disagree: {'; '.join(wrong)}" if wrong else None
        built = Built(shape, self.curvature, seconds, errors, reason)
        return (None if wrong else passes), built

    def _compiled(self) -> Passes:
        # A network of its own, called once: dynamo compiles anew when it finds the module evaluating, or what it has
        # cached changed.
        own = replace(self.network)
        with torch.no_grad():
            own.apply(torch.cat([self.theta, self.buffers]), self.theta.new_zeros(self.size, *own.shape))
        loss = _loss(own)
        options: dict[str, Any] = {"mode": "reduce-overhead"} if self.theta.is_cuda else {}

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return _replayed(torch.compile(_fresh(function), fullgraph=True, dynamic=False, **options), self.theta)

        return Passes(compiled(_gradient(loss)), compiled(_along(loss, self.curvature)))

    def _errors(self, passes: Passes) -> dict[str, float]:
        """Relative errors on a batch like those to come, against autograd twice."""
        like = {"device": self.theta.device, "dtype": self.theta.dtype}
        generator = torch.Generator().manual_seed(0)  # on the CPU: the same numbers everywhere
        images = torch.randn(self.size, *self.network.shape, generator=generator).to(**like)
        labels = torch.randn(self.size, self.classes, generator=generator).softmax(1).to(**like)
        direction = torch.randn(len(self.theta), generator=generator).to(**like) * self.theta.std()
        theta, buffers = self.theta.detach(), self.buffers.detach()
        expected = _eagerly(_loss(self.network), theta, buffers, images, labels, direction)
        # copies: with CUDA graphs a function's results are overwritten by its next call
        found = [passes.gradient(theta, buffers, images, labels).clone()]
        along = passes.along(theta, buffers, images, labels, direction)
        found += [along.images, along.labels, along.value] + ([along.curved] if along.curved is not None else [])
        names = ("gradient", "images", "labels", "value", "curved")
        scales = {"value": direction.norm() * expected[0].norm()}  # <u, g> itself may be next to nothing
        return {n: _error(f, e, scales.get(n)) for n, f, e in zip(names, found, expected, strict=False)}


def _error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The relative error of a vector or number; of rows, the median of theirs."""
    rows = 1 if expected.ndim < 2 else len(expected)
    off = (found.double() - expected.double()).view(rows, -1).norm(dim=1)
    size = expected.double().view(rows, -1).norm(dim=1) if scale is None else scale.double()
    return float((off / size.clamp_min(1e-30)).median())


def _loss(network: Network) -> Callable[..., Tensor]:
    """The soft cross-entropy as ``(theta, buffers, images, labels)``."""

    def loss(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        vector = torch.cat([theta, buffers]) if len(buffers) else theta
        return soft_cross_entropy(network.apply(vector, images), labels)

    return loss


def _gradient(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gradient(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return grad(loss)(theta, buffers, images, labels)

    return gradient


def _along(loss: Callable[..., Tensor], curvature: bool) -> Callable[..., Along]:
    """The cheaper form for each: without H u forward over reverse, with it reverse over reverse."""
    return _reverse_over_reverse(loss) if curvature else _forward_over_reverse(loss)


def _forward_over_reverse(loss: Callable[..., Tensor]) -> Callable[..., Along]:
    def along(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Along:
        def both(at: Tensor) -> tuple[Tensor, ...]:
            gradients, value = grad_and_value(loss, argnums=(2, 3))(at, buffers, images, labels)
            return (value, *gradients)

        value, d_images, d_labels = jvp(both, (theta,), (direction,))[1]
        return Along(d_images, d_labels, value, None)

    return along


def _reverse_over_reverse(loss: Callable[..., Tensor]) -> Callable[..., Along]:
    def along(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Along:
        def inner(at: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return grad(lambda p: scale * loss(p, buffers, x, y))(at) @ direction

        # <u, g> is linear in the loss, so its derivative by a factor of the loss is <u, g>. That comes with the
        # others; the value itself would need g, whose convolutions are otherwise left out of the compiled code.
        one = torch.ones((), dtype=theta.dtype, device=theta.device)
        curved, d_images, d_labels, value = grad(inner, argnums=(0, 1, 2, 3))(theta, images, labels, one)
        return Along(d_images, d_labels, value, curved)

    return along


def _eagerly(
    loss: Callable[..., Tensor], theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, u: Tensor
) -> list[Tensor]:
    """g, d<u, g>/d(images, labels), <u, g> and H u by autograd twice."""
    leaves = [t.detach().requires_grad_() for t in (images, labels, theta)]
    g = torch.autograd.grad(loss(leaves[2], buffers, leaves[0], leaves[1]), leaves[2], create_graph=True)[0]
    d_images, d_labels, curved = torch.autograd.grad(g, leaves, u, materialize_grads=True)
    return [g.detach(), d_images, d_labels, g.detach() @ u, curved]


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
