"""Triton kernels of ``relu(norm(x) weight + bias)`` averaged 2x2: :mod:`ddbench.train.fused` calls them.

Planes are the (h, w) maps of one channel of one image, counted n C + c; a quad is the four pixels of a pooled one: top
left, top right, bottom left, bottom right. Where no channels share statistics (``SHARED`` = 1), a program takes
``ROWS`` planes, each by itself; otherwise the ``SHARED`` planes of a group, ``ROWS`` at a time. ``HIGH`` and ``WIDE``
are the sides of pooled maps, ``LAST`` says that channels are stored last. Whatever the storage, numbers are float32
inside. Nothing is added up atomically: results are the same in every run.

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
    """The planes of a block, int64, and which of them are there."""
    plane = first + k + tl.arange(0, ROWS)
    if SHARED == 1:
        return plane.to(tl.int64), plane < planes
    return plane.to(tl.int64), plane < first + SHARED


@triton.jit
def _offsets(plane, pixel, channels, pixels, LAST: tl.constexpr):
    """Where ``pixel`` ``(quads,)`` of each plane lies, ``(rows, quads)``."""
    if LAST:
        image, channel = plane // channels, plane % channels
        return (image[:, None] * pixels + pixel[None, :]) * channels + channel[:, None]
    return plane[:, None] * pixels + pixel[None, :]


@triton.jit
def _pixels(plane, channels, HIGH: tl.constexpr, WIDE: tl.constexpr, QUADS: tl.constexpr, LAST: tl.constexpr):
    """Where the upper pixels of quads lie, pair by pair ``(rows, 2 quads)``, and how far below them the lower ones."""
    column = tl.arange(0, 2 * QUADS)
    pixel = 4 * WIDE * (column // (2 * WIDE)) + column % (2 * WIDE)
    below = 2 * WIDE
    if LAST:
        below = 2 * WIDE * channels
    return _offsets(plane, pixel, channels, 4 * HIGH * WIDE, LAST), below


@triton.jit
def _inside(there, size: tl.constexpr, block: tl.constexpr):
    return there[:, None] & (tl.arange(0, block) < size)[None, :]


@triton.jit
def _load(x, at, below, inside, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """The pixels of each quad, four times ``(rows, quads)``; zeros where there are none. Neighbours come in pairs."""
    upper = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    lower = tl.load(x + at + below, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(upper, [ROWS, QUADS, 2]))
    c, d = tl.split(tl.reshape(lower, [ROWS, QUADS, 2]))
    return a, b, c, d


@triton.jit
def _shared(own, SHARED: tl.constexpr):
    """Of sums for each plane ``(rows,)``: themselves, or their sum where planes share statistics."""
    if SHARED == 1:
        return own
    return tl.zeros_like(own) + tl.sum(own, 0)


@triton.jit
def _moments(a, b, c, d, inside, count, SHARED: tl.constexpr):
    """The mean, and the sum of squared distances from it."""
    mean = _shared(tl.sum(a + b + c + d, 1), SHARED) / count
    m = mean[:, None]
    squares = (a - m) * (a - m) + (b - m) * (b - m) + (c - m) * (c - m) + (d - m) * (d - m)
    return mean, _shared(tl.sum(tl.where(inside, squares, 0.0), 1), SHARED)


@triton.jit
def forward(
    x,
    weight,
    bias,
    out,
    means,
    scales,
    planes,
    channels,
    eps,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Pooled maps, and the mean and scale of each plane."""
    first = _first(SHARED, ROWS)
    mean, spread = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    count = 0.0
    for k in range(0, SHARED, ROWS):
        plane, there = _rows(first, k, planes, SHARED, ROWS)
        at, below = _pixels(plane, channels, HIGH, WIDE, QUADS, LAST)
        a, b, c, d = _load(x, at, below, _inside(there, 2 * HIGH * WIDE, 2 * QUADS), ROWS, QUADS)
        more = 4.0 * HIGH * WIDE * min(ROWS, SHARED - k)
        mean_, spread_ = _moments(a, b, c, d, _inside(there, HIGH * WIDE, QUADS), more, SHARED)
        delta, share = mean_ - mean, more / (count + more)  # Chan et al.: moments of two parts joined
        mean += delta * share
        spread += spread_ + delta * delta * count * share
        count += more
    scale = 1.0 / tl.sqrt(spread / count + eps)
    for k in range(0, SHARED, ROWS):
        plane, there = _rows(first, k, planes, SHARED, ROWS)
        at, below = _pixels(plane, channels, HIGH, WIDE, QUADS, LAST)
        a, b, c, d = _load(x, at, below, _inside(there, 2 * HIGH * WIDE, 2 * QUADS), ROWS, QUADS)
        s = scale * tl.load(weight + plane % channels, mask=there, other=0.0).to(tl.float32)
        t = (tl.load(bias + plane % channels, mask=there, other=0.0).to(tl.float32) - mean * s)[:, None]
        s = s[:, None]
        pooled = tl.maximum(a * s + t, 0.0) + tl.maximum(b * s + t, 0.0)
        pooled += tl.maximum(c * s + t, 0.0) + tl.maximum(d * s + t, 0.0)
        places = out + _offsets(plane, tl.arange(0, QUADS), channels, HIGH * WIDE, LAST)
        tl.store(places, 0.25 * pooled, mask=_inside(there, HIGH * WIDE, QUADS))
        tl.store(means + plane, mean, mask=there)
        tl.store(scales + plane, scale, mask=there)


@triton.jit
def _passed(x, mean, scale, w, b, g):
    """xhat of one pixel of each quad, and its g: what came to the quad, where ReLU let it pass."""
    xhat = (x - mean[:, None]) * scale[:, None]
    return xhat, tl.where(xhat * w[:, None] + b[:, None] > 0, g, 0.0)


@triton.jit
def _recomputed(
    x,
    weight,
    bias,
    d_out,
    means,
    scales,
    plane,
    there,
    channels,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Of a block: xhat and g of each quad's pixels, and the scales and weights of planes."""
    at, below = _pixels(plane, channels, HIGH, WIDE, QUADS, LAST)
    a, b, c, d = _load(x, at, below, _inside(there, 2 * HIGH * WIDE, 2 * QUADS), ROWS, QUADS)
    mean, scale = tl.load(means + plane, mask=there, other=0.0), tl.load(scales + plane, mask=there, other=0.0)
    w = tl.load(weight + plane % channels, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(bias + plane % channels, mask=there, other=0.0).to(tl.float32)
    places = d_out + _offsets(plane, tl.arange(0, QUADS), channels, HIGH * WIDE, LAST)
    g = 0.25 * tl.load(places, mask=_inside(there, HIGH * WIDE, QUADS), other=0.0).to(tl.float32)
    a, g_a = _passed(a, mean, scale, w, shift, g)
    b, g_b = _passed(b, mean, scale, w, shift, g)
    c, g_c = _passed(c, mean, scale, w, shift, g)
    d, g_d = _passed(d, mean, scale, w, shift, g)
    return a, b, c, d, g_a, g_b, g_c, g_d, scale, w


@triton.jit
def backward(
    x,
    weight,
    bias,
    d_out,
    means,
    scales,
    d_x,
    d_weight,
    d_bias,
    planes,
    channels,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    QUADS: tl.constexpr,
    LAST: tl.constexpr,
):
    """The gradient of x, and what each plane adds to those of weight and bias."""
    first = _first(SHARED, ROWS)
    plain, along = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)  # sums of w g, and of w g xhat
    for k in range(0, SHARED, ROWS):
        plane, there = _rows(first, k, planes, SHARED, ROWS)
        a, b, c, d, g_a, g_b, g_c, g_d, scale, w = _recomputed(
            x, weight, bias, d_out, means, scales, plane, there, channels, ROWS, HIGH, WIDE, QUADS, LAST
        )
        own, crossed = tl.sum(g_a + g_b + g_c + g_d, 1), tl.sum(g_a * a + g_b * b + g_c * c + g_d * d, 1)
        tl.store(d_bias + plane, own, mask=there)
        tl.store(d_weight + plane, crossed, mask=there)
        plain += _shared(w * own, SHARED)
        along += _shared(w * crossed, SHARED)
    plain, along = plain[:, None] / (4.0 * HIGH * WIDE * SHARED), along[:, None] / (4.0 * HIGH * WIDE * SHARED)
    for k in range(0, SHARED, ROWS):
        plane, there = _rows(first, k, planes, SHARED, ROWS)
        a, b, c, d, g_a, g_b, g_c, g_d, scale, w = _recomputed(
            x, weight, bias, d_out, means, scales, plane, there, channels, ROWS, HIGH, WIDE, QUADS, LAST
        )
        s, w = scale[:, None], w[:, None]
        upper = tl.join(s * (w * g_a - plain - a * along), s * (w * g_b - plain - b * along))
        lower = tl.join(s * (w * g_c - plain - c * along), s * (w * g_d - plain - d * along))
        at, below = _pixels(plane, channels, HIGH, WIDE, QUADS, LAST)
        inside = _inside(there, 2 * HIGH * WIDE, 2 * QUADS)
        tl.store(d_x + at, tl.reshape(upper, [ROWS, 2 * QUADS]), mask=inside)
        tl.store(d_x + at + below, tl.reshape(lower, [ROWS, 2 * QUADS]), mask=inside)
