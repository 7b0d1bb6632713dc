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

    def sow(self) -> None:
        """Seed torch, NumPy and ``random`` from this address, inside the scope of another: that one gives states back.

        For loops that seed anew every few steps: to read and restore NumPy's state takes ten times as long as this.
        """
        seed = self.integer
        # not torch.manual_seed: for every accelerator that is not in use it keeps a call with its traceback, which
        # takes longer than a step of a small student
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            for generator in torch.cuda.default_generators:
                generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Seed torch, NumPy and ``random`` from this address, and give the old states back after.

        CUDA's generators are part of it once CUDA is in use, which it is before the harness calls a plugin.
        """
        python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        try:
            self.sow()
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torchs)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
