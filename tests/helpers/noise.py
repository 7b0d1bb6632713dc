"""Pixels of noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Every pixel by itself, from 0 to 255."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth_noise(n: int, shape: tuple[int, ...] = (3, 4, 5), seed: int = 0) -> Tensor:
    """Random pixels whose channels differ in level and spread, and whose neighbours correlate."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(n, *shape)).cumsum(-1) * 20 + 120 + 15 * np.arange(shape[0])[:, None, None]
    return torch.from_numpy(smooth.clip(0, 255).astype(np.uint8))
