"""Randomness by address: every draw is a function of where in the run it happens.

``Seed(0) / "stage" / 1 / "step" / 7`` names a place; its sha256 seeds the generators there. There is
nothing to checkpoint, a new consumer shifts nobody else's draws, and a resumed step draws exactly what
the interrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Seed:
    """An address in a run; ``seed / part`` is the address one level down."""

    root: int
    path: tuple[str | int, ...] = ()

    def __truediv__(self, part: str | int) -> Seed:
        return Seed(self.root, (*self.path, part))

    @property
    def integer(self) -> int:
        """A 63-bit integer that depends on the whole address (1 and "1" differ)."""
        address = json.dumps([self.root, *self.path]).encode()
        return int.from_bytes(hashlib.sha256(address).digest()[:8], "big") >> 1

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Seed torch, NumPy and ``random`` from this address, and give the old states back after."""
        python, numpy = random.getstate(), np.random.get_state()
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.integer)
            np.random.seed(self.integer % 2**32)
            random.seed(self.integer)
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy)
