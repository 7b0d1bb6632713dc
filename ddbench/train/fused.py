"""Norm, ReLU and 2x2 average pooling of a block as one kernel forwards and one backwards, for training on a GPU.

On an H200 these three took 52 % of the time of a step of 256 images that kernels took (docs/performance.md). Fused, the
map that a convolution gives is read once forwards, and once with its gradient backwards.

It is first-order code for one network at a time: :func:`~ddbench.train.fit.fit` alone switches it on. Student steps of
the gradient engine, functions that torch.func transforms or a compiler takes, float64 and CPUs have the plain layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddbench.errors import UsageError

Kernels = Literal["auto", "plain", "fused"]
# How many times as fast as with plain layers ConvNet-D3 of width 128 trains on batches of 256, on CUDA; None: nobody
# has measured it. ``auto`` is fused where it gains a twentieth.
GAIN: float | None = None
WORTH = 1.05

LARGEST = 4096  # quads that a program holds in registers: a map of 128x128
AT_ONCE = 1024  # where planes are small
NEIGHBOURS = 8  # planes at least that a program takes where channels lie last: 32 bytes are read at once
_on: ContextVar[bool] = ContextVar("ddbench_fusing", default=False)


def chosen(asked: Kernels, device: torch.device) -> bool:
    """Whether training on ``device`` fuses. Raises UsageError where it is asked for and cannot be."""
    if asked == "fused" and not _can(device):
        raise UsageError(
            f"kernels=fused needs a CUDA device and the package triton, and trains on {device.type}; use kernels=auto"
        )
    return asked == "fused" or (asked == "auto" and (GAIN or 0) >= WORTH and _can(device))


def _can(device: torch.device) -> bool:
    return (device.type == "cuda" or _interpreted()) and _installed()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether Triton executes kernels on the CPU, to check them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def fusing(on: bool) -> Iterator[None]:
    """Inside the block, blocks of layers may fuse what they can."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def on() -> bool:
    """Whether the caller wants fused layers, and no transform or compiler takes apart what is called."""
    return not torch.compiler.is_compiling() and _on.get() and not torch._C._are_functorch_transforms_active()


def serves(x: Tensor, groups: int) -> bool:
    """Whether :func:`normed_relu_pooled` is made for maps ``x`` ``(n, c, h, w)``."""
    _, channels, high, wide = x.shape
    fits = not (high % 2 or wide % 2 or channels % groups) and 0 < high * wide // 4 <= LARGEST // _least(x)
    known = x.dtype in (torch.float32, torch.bfloat16) and (x.is_cuda or _interpreted())
    return fits and known and x.numel() < 2**31


def normed_relu_pooled(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``avg_pool2d(relu(group_norm(x, groups, weight, bias, eps)), 2)`` of maps ``(n, c, h, w)`` with even sides.

    Differentiable once. Maps are stored as ``x`` is, in float32 or bfloat16, channels-last or not; statistics and
    everything in between are float32. A group norm with a group per channel is what the field calls instance norm.
    """
    return _Fused.apply(x, groups, weight.contiguous(), bias.contiguous(), eps)  # type: ignore[return-value]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        from ddbench.train import kernels

        n, channels, high, wide = x.shape
        layout = torch.channels_last if _last(x) else torch.contiguous_format
        x = x.contiguous(memory_format=layout)
        out = torch.empty((n, channels, high // 2, wide // 2), dtype=x.dtype, device=x.device, memory_format=layout)
        moments = torch.empty((2, n * channels), dtype=torch.float32, device=x.device)
        grid, sizes = _launch(x, groups)
        with torch.cuda.device_of(x):
            kernels.forward[grid](x, weight, bias, out, moments, n * channels, eps, **sizes)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.groups, ctx.layout = groups, layout
        return out

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[reportIncompatibleMethodOverride] # the decorator's doing
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, Tensor, Tensor, None]:
        from ddbench.train import kernels

        x, weight, bias, moments = ctx.saved_tensors
        n, channels = x.shape[:2]
        d_out, d_x = grad_outputs[0].contiguous(memory_format=ctx.layout), torch.empty_like(x)
        parts = torch.empty((2, n, channels), dtype=torch.float32, device=x.device)
        grid, sizes = _launch(x, ctx.groups)
        with torch.cuda.device_of(x):
            kernels.backward[grid](x, weight, bias, d_out, moments, d_x, parts, n * channels, **sizes)
        d_weight, d_bias = parts.sum(1)
        return d_x, None, d_weight.to(weight.dtype), d_bias.to(bias.dtype), None


def _last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _least(x: Tensor) -> int:
    """The planes that a program takes at least."""
    return NEIGHBOURS if _last(x) else 1


def _launch(x: Tensor, groups: int) -> tuple[tuple[int], dict[str, Any]]:
    """The number of programs, and the constants that they are compiled for."""
    n, channels, high, wide = x.shape
    shared, quads = channels // groups, _power_of_two(high * wide // 4)
    rows = max(_least(x), AT_ONCE // quads)
    if shared > 1:
        rows = min(rows, _power_of_two(shared))
    programs = n * groups if shared > 1 else -(-n * channels // rows)
    sizes = {
        "CHANNELS": channels,
        "SHARED": shared,
        "ROWS": rows,
        "HIGH": high // 2,
        "WIDE": wide // 2,
        "QUADS": quads,
        "LAST": _last(x),
    }
    return (programs,), sizes | {"num_warps": min(16, max(4, rows * quads // 256))}


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
