"""Triton kernels of ``relu(norm(x) weight + bias)`` averaged 2x2: :mod:`ddbench.train.fused` calls them.

Planes are the (h, w) maps of one channel of one image, counted n C + c; a quad is the four pixels of a pooled one. A
block is the upper rows of the quads of some planes, ``(rows, 2 quads)``, and their lower ones. Where no channels share
statistics (``SHARED`` = 1), a program takes ``ROWS`` planes, each by itself; otherwise the ``SHARED`` planes of a
group, ``ROWS`` at a time. ``HIGH`` and ``WIDE`` are the sides of pooled maps, ``LAST`` says that channels are stored
last. Whatever the storage, numbers are float32 inside. Nothing is added up atomically: results are the same in every
run.

With xhat = (x - mean) scale, scale = 1 / sqrt(var + eps), y = w xhat + b, and g = dL/dout / 4 where y > 0:

    dL/dw = sum g xhat      dL/db = sum g      dL/dx = scale (w g - mean(w g) - xhat mean(w g xhat))

with means over the numbers that share statistics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first(SHARED: tl.constexpr, ROWS: tl.constexpr):
    """The first plane of a program."""
    if SHARED == 1:
        return tl.program_id(0) * ROWS
    return tl.program_id(0) * SHARED


@triton.jit
def _rows(first, k, planes, SHARED: tl.constexpr, ROWS: tl.constexpr):
    """The planes of a block, and which of them are there."""
    plane = first + k + tl.arange(0, ROWS)
    if SHARED == 1:
        return plane, plane < planes
    return plane, plane < first + SHARED


@triton.jit
def _pointers(x, plane, pixel, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, LAST: tl.constexpr):
    """Of ``pixel`` ``(n,)`` in each plane of ``PIXELS``: ``(rows, n)``."""
    if LAST:
        first = (plane // CHANNELS).to(tl.int64) * (PIXELS * CHANNELS) + plane % CHANNELS
        return x + first[:, None] + (pixel * CHANNELS)[None, :]
    return x + (plane.to(tl.int64) * PIXELS)[:, None] + pixel[None, :]


@triton.jit
def _load(
    x,
    plane,
    there,
    CHANNELS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Pointers to the upper and lower pixels of quads ``(rows, 2 quads)``, which of them are there, and the pixels."""
    column = tl.arange(0, 2 * QUADS)
    pixel = 4 * WIDE * (column // (2 * WIDE)) + column % (2 * WIDE)
    inside = there[:, None] & (column < 2 * HIGH * WIDE)[None, :]
    above = _pointers(x, plane, pixel, CHANNELS, 4 * HIGH * WIDE, LAST)
    below = _pointers(x, plane, pixel + 2 * WIDE, CHANNELS, 4 * HIGH * WIDE, LAST)
    upper = tl.load(above, mask=inside, other=0.0).to(tl.float32)
    lower = tl.load(below, mask=inside, other=0.0).to(tl.float32)
    return above, below, inside, upper, lower


@triton.jit
def _shared(own, SHARED: tl.constexpr):
    """Of sums for each plane ``(rows,)``: themselves, or their sum where planes share statistics."""
    if SHARED == 1:
        return own
    return tl.zeros_like(own) + tl.sum(own, 0)


@triton.jit
def _moments(upper, lower, inside, count, SHARED: tl.constexpr):
    """The mean, and the sum of squared distances from it."""
    mean = _shared(tl.sum(upper + lower, 1), SHARED) / count
    u, d = upper - mean[:, None], lower - mean[:, None]
    return mean, _shared(tl.sum(tl.where(inside, u * u + d * d, 0.0), 1), SHARED)


@triton.jit
def _affine(weight, bias, plane, there, CHANNELS: tl.constexpr):
    w = tl.load(weight + plane % CHANNELS, mask=there, other=0.0).to(tl.float32)
    return w, tl.load(bias + plane % CHANNELS, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _pool(
    out,
    upper,
    lower,
    mean,
    scale,
    w,
    b,
    plane,
    there,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Store what a block becomes."""
    s, t = (scale * w)[:, None], (b - mean * scale * w)[:, None]
    pairs = tl.maximum(upper * s + t, 0.0) + tl.maximum(lower * s + t, 0.0)
    left, right = tl.split(tl.reshape(pairs, [ROWS, QUADS, 2]))
    quad = tl.arange(0, QUADS)
    inside = there[:, None] & (quad < HIGH * WIDE)[None, :]
    tl.store(_pointers(out, plane, quad, CHANNELS, HIGH * WIDE, LAST), 0.25 * (left + right), mask=inside)


@triton.jit
def forward(
    x,
    weight,
    bias,
    out,
    moments,
    planes,
    eps,
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Pooled maps, and in ``moments`` ``(2, planes)`` the mean and the scale of each plane."""
    first = _first(SHARED, ROWS)
    mean, spread = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    count = 0.0
    for k in range(0, SHARED, ROWS):
        plane, there = _rows(first, k, planes, SHARED, ROWS)
        _, _, inside, upper, lower = _load(x, plane, there, CHANNELS, HIGH, WIDE, QUADS, LAST)
        more = 4.0 * HIGH * WIDE * min(ROWS, SHARED - k)
        mean_, spread_ = _moments(upper, lower, inside, more, SHARED)
        delta, share = mean_ - mean, more / (count + more)  # Chan et al.: moments of two parts joined
        mean += delta * share
        spread += spread_ + delta * delta * count * share
        count += more
    scale = 1.0 / tl.sqrt(spread / count + eps)
    for k in range(0, SHARED, ROWS):
        plane, there = _rows(first, k, planes, SHARED, ROWS)
        _, _, _, upper, lower = _load(x, plane, there, CHANNELS, HIGH, WIDE, QUADS, LAST)
        w, b = _affine(weight, bias, plane, there, CHANNELS)
        _pool(out, upper, lower, mean, scale, w, b, plane, there, CHANNELS, ROWS, HIGH, WIDE, QUADS, LAST)
        tl.store(moments + plane, mean, mask=there)
        tl.store(moments + planes + plane, scale, mask=there)


@triton.jit
def _recomputed(
    x,
    weight,
    bias,
    d_out,
    moments,
    plane,
    there,
    planes,
    CHANNELS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Of a block: xhat of upper and of lower pixels, g of both, and the scales and weights of its planes."""
    _, _, inside, upper, lower = _load(x, plane, there, CHANNELS, HIGH, WIDE, QUADS, LAST)
    mean = tl.load(moments + plane, mask=there, other=0.0)
    scale = tl.load(moments + planes + plane, mask=there, other=0.0)
    w, b = _affine(weight, bias, plane, there, CHANNELS)
    quad = tl.arange(0, 2 * QUADS) // 2  # each is read twice, so that all lies as the pixels do
    g = tl.load(_pointers(d_out, plane, quad, CHANNELS, HIGH * WIDE, LAST), mask=inside, other=0.0)
    g = 0.25 * g.to(tl.float32)
    upper, lower = (upper - mean[:, None]) * scale[:, None], (lower - mean[:, None]) * scale[:, None]
    g_upper = tl.where(upper * w[:, None] + b[:, None] > 0, g, 0.0)
    return upper, lower, g_upper, tl.where(lower * w[:, None] + b[:, None] > 0, g, 0.0), scale, w


@triton.jit
def _summed(upper, lower, g_upper, g_lower, parts, plane, there, planes, w, SHARED: tl.constexpr):
    """Store what planes add to the gradients of weight and bias; sums of w g and of w g xhat."""
    own, crossed = tl.sum(g_upper + g_lower, 1), tl.sum(g_upper * upper + g_lower * lower, 1)
    tl.store(parts + plane, crossed, mask=there)
    tl.store(parts + planes + plane, own, mask=there)
    return _shared(w * own, SHARED), _shared(w * crossed, SHARED)


@triton.jit
def _store(
    d_x,
    upper,
    lower,
    g_upper,
    g_lower,
    scale,
    w,
    plain,
    along,
    plane,
    there,
    CHANNELS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Store dL/dx of a block, from the means of w g and of w g xhat."""
    column = tl.arange(0, 2 * QUADS)
    pixel = 4 * WIDE * (column // (2 * WIDE)) + column % (2 * WIDE)
    inside = there[:, None] & (column < 2 * HIGH * WIDE)[None, :]
    s, w, plain, along = scale[:, None], w[:, None], plain[:, None], along[:, None]
    above = _pointers(d_x, plane, pixel, CHANNELS, 4 * HIGH * WIDE, LAST)
    below = _pointers(d_x, plane, pixel + 2 * WIDE, CHANNELS, 4 * HIGH * WIDE, LAST)
    tl.store(above, s * (w * g_upper - plain - upper * along), mask=inside)
    tl.store(below, s * (w * g_lower - plain - lower * along), mask=inside)


@triton.jit
def backward(
    x,
    weight,
    bias,
    d_out,
    moments,
    d_x,
    parts,
    planes,
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """The gradient of x, and in ``parts`` ``(2, planes)`` what each plane adds to those of weight and bias."""
    first = _first(SHARED, ROWS)
    if SHARED <= ROWS:  # one block, which stays in registers
        plane, there = _rows(first, 0, planes, SHARED, ROWS)
        u, d, g_u, g_d, scale, w = _recomputed(
            x, weight, bias, d_out, moments, plane, there, planes, CHANNELS, HIGH, WIDE, QUADS, LAST
        )
        plain, along = _summed(u, d, g_u, g_d, parts, plane, there, planes, w, SHARED)
        plain, along = plain / (4.0 * HIGH * WIDE * SHARED), along / (4.0 * HIGH * WIDE * SHARED)
        _store(d_x, u, d, g_u, g_d, scale, w, plain, along, plane, there, CHANNELS, HIGH, WIDE, QUADS, LAST)
    else:
        plain, along = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for k in range(0, SHARED, ROWS):
            plane, there = _rows(first, k, planes, SHARED, ROWS)
            u, d, g_u, g_d, scale, w = _recomputed(
                x, weight, bias, d_out, moments, plane, there, planes, CHANNELS, HIGH, WIDE, QUADS, LAST
            )
            own, crossed = _summed(u, d, g_u, g_d, parts, plane, there, planes, w, SHARED)
            plain += own
            along += crossed
        plain, along = plain / (4.0 * HIGH * WIDE * SHARED), along / (4.0 * HIGH * WIDE * SHARED)
        for k in range(0, SHARED, ROWS):
            plane, there = _rows(first, k, planes, SHARED, ROWS)
            u, d, g_u, g_d, scale, w = _recomputed(
                x, weight, bias, d_out, moments, plane, there, planes, CHANNELS, HIGH, WIDE, QUADS, LAST
            )
            _store(d_x, u, d, g_u, g_d, scale, w, plain, along, plane, there, CHANNELS, HIGH, WIDE, QUADS, LAST)
