"""What tests on a GPU share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Inside the block, whatever makes the host wait for the GPU is an error, as far as torch notices it."""
    torch.cuda.synchronize()
    _mode("error")
    try:
        yield
    finally:
        _mode("default")


def _mode(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it does not notice everything, and means it as such
        torch.cuda.set_sync_debug_mode(name)
