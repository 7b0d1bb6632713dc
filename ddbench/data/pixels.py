"""Real images as they are kept: uint8, possibly mapped from a file larger than memory, and never copied whole.

Shapes: n images, c channels, h x w pixels; N images in a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.base.cache import digest

BLOCK = 50_000_000  # bytes that are read at a time when all images are needed once


@dataclass(frozen=True, eq=False)
class Store:
    """An array ``(N, c, h, w)`` uint8, in memory or mapped from a file.

    ``known`` is the digest of its content where whoever wrote the file has computed it, so that gigabytes
    need not be read again to name them.
    """

    array: Tensor
    known: str | None = None

    def __post_init__(self) -> None:
        if not self.array.is_contiguous():  # batches would take over its strides, and convolutions give other bits
            object.__setattr__(self, "array", self.array.contiguous())

    @cached_property
    def content(self) -> str:
        """sha256 over the shape and all bytes in order."""
        return self.known or self.measured()

    def measured(self) -> str:
        """The same of what it holds now."""
        blocks = (np.ascontiguousarray(block.numpy()).data for block in self.array.split(10_000))
        return digest([list(self.array.shape[1:]), *(digest(block) for block in blocks)])


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images ``(n, c, h, w)`` uint8: all of a store, or those ``rows`` ``(n,)`` of it.

    ``pixels[index]`` gathers what is asked for; ``pixels[:]`` copies everything. Parts of a dataset share one
    store, so dividing it costs no memory.
    """

    store: Store
    rows: Tensor | None = None

    @classmethod
    def of(cls, images: Pixels | Tensor) -> Pixels:
        """A tensor as Pixels; Pixels as they are."""
        return images if isinstance(images, Pixels) else cls(Store(images))

    def __len__(self) -> int:
        return len(self.store.array) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.store.array.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.store.array.dtype

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, index: Any) -> Tensor:
        """The images at ``index`` (a number, a slice, a mask or indices) as a tensor."""
        if self.rows is None:
            return self.store.array[index]
        if isinstance(index, tuple) or index is Ellipsis:
            return self[:][index]
        return self.store.array[self.rows[index]]

    def __iter__(self) -> Iterator[Tensor]:
        return (image for block in self.blocks() for image in block)

    def blocks(self) -> Iterator[Tensor]:
        """All images in order, about 50 MB at a time."""
        per_block = max(1, BLOCK // max(1, self.shape[1:].numel()))
        for start in range(0, len(self), per_block):
            yield self[start : start + per_block]

    def subset(self, index: Tensor) -> Pixels:
        """The images at ``index``, indices or a mask, of the same store."""
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        return Pixels(self.store, rows[index])

    @cached_property
    def digest(self) -> str:
        """sha256 of the store's content and of which of its images these are."""
        return digest([self.store.content, None if self.rows is None else digest(self.rows.numpy().tobytes())])
