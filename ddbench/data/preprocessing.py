"""Pixels to network input and back: per-channel mean/std, or ZCA whitening; fitted once, then cached.

Shapes: n images, c channels, h x w pixels, d = c*h*w.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddbench.base.cache import digest, home, lock
from ddbench.base.progress import note
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.data.pixels import Pixels
from ddbench.errors import DataError, UsageError

EPS = 0.1  # of ZCA, as in MTT, TESLA and PDD
LARGEST_ZCA = 16_384  # dimensions: a covariance of 2 GB, and three times that while it is decomposed
WORTH_KEEPING = 2**26  # pixels; statistics of fewer are computed faster than read


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Pixels in [0, 1] to network input and back: per-channel mean/std, or ZCA whitening.

    ``mean`` and ``std`` are ``(c,)``. With ZCA, ``whiten`` is ``(d, d)`` and ``mean`` is ``(d,)``; there
    is no mean/std step in addition (the convention of MTT, TESLA and PDD).
    """

    mean: Tensor
    std: Tensor | None = None
    whiten: Tensor | None = None

    @property
    def kind(self) -> str:
        return "meanstd" if self.whiten is None else "zca"

    def __call__(self, pixels: Tensor) -> Tensor:
        """``(n, c, h, w)`` uint8 -> preprocessed float32, on the device of the statistics.

        uint8 travels to the device, floats are made there.
        """
        images = pixels.to(self.mean.device).to(torch.float32, copy=True).div_(255)  # a batch may be gigabytes
        if self.whiten is not None:
            return (images.flatten(1).sub_(self.mean) @ self.whiten).view_as(images)
        assert self.std is not None
        return images.sub_(self.mean.view(1, -1, 1, 1)).div_(self.std.view(1, -1, 1, 1))

    def invert(self, images: Tensor) -> Tensor:
        """Preprocessed images back to [0, 1], for pictures; values outside are clamped."""
        if self.whiten is not None:
            flat = images.flatten(1).double() @ self._colour + self.mean.double()
            return flat.to(images.dtype).view_as(images).clamp(0, 1)
        assert self.std is not None
        return (images * self.std.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)).clamp(0, 1)

    @cached_property
    def _colour(self) -> Tensor:
        """The inverse ``(d, d)`` of ``whiten``, float64."""
        assert self.whiten is not None
        return torch.linalg.inv(self.whiten.double())

    def clamp(self, images: Tensor) -> Tensor:
        """A copy of ``images`` ``(n, c, h, w)`` with pixels in [0, 1]; whitened pixels as they are."""
        if self.std is None:
            return images.clone()
        mean, std = self.mean.view(1, -1, 1, 1), self.std.view(1, -1, 1, 1)
        return images.clamp(-mean / std, (1 - mean) / std)

    def to(self, device: torch.device | str) -> Preprocessing:
        if self.mean.device == torch.device(device):
            return self
        move = {name: value.to(device) for name, value in self.tensors().items()}
        return Preprocessing(**move)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that define it, by name, for saving."""
        named = {"mean": self.mean, "std": self.std, "whiten": self.whiten}
        return {name: value for name, value in named.items() if value is not None}

    @cached_property
    def digest(self) -> str:
        """sha256 over the kind and the tensors, to the last bit."""
        return digest([self.kind, *(digest(t.cpu().numpy().tobytes()) for t in self.tensors().values())])

    @classmethod
    def fit(cls, pixels: Tensor | Pixels, *, zca: bool = False, eps: float = EPS) -> Preprocessing:
        """Statistics of ``pixels`` in [0, 1], over blocks, so that memory stays bounded.

        mean/std come from histograms, the same whatever the number of threads. ZCA:
        ``W = U (S + eps)^(-1/2) U^T`` from the covariance over n - 1, in float64 (as kornia's, eps 0.1).
        """
        return _fit_zca(Pixels.of(pixels), eps) if zca else _fit_channels(Pixels.of(pixels))

    @classmethod
    def cached(cls, pixels: Pixels, *, zca: bool = False) -> Preprocessing:
        """:meth:`fit`, whose result is kept under ``DDBENCH_HOME`` when computing it takes long."""
        if pixels.numel() < WORTH_KEEPING and not (zca and pixels.shape[1:].numel() > 256):
            return cls.fit(pixels, zca=zca)
        # the last bits of a covariance depend on the number of threads
        identity = ["preprocessing", 1, pixels.digest, zca, EPS, torch.get_num_threads() if zca else 0]
        path = home() / "preprocessing" / f"{digest(identity)[:20]}.safetensors"
        with lock(path.with_suffix(".lock")):
            if path.exists():
                try:
                    return cls(**load_tensors(path)[0])
                except (DataError, TypeError):
                    note(f"{path} is damaged; it is made again")
            made = cls.fit(pixels, zca=zca)
            save_tensors(path, made.tensors(), sealed=True)
            return made


def _fit_channels(pixels: Pixels) -> Preprocessing:
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.int64)  # how often each channel has each level
    for block in pixels.blocks():
        for channel, levels in enumerate(block.unbind(1)):
            counts[channel] += torch.bincount(levels.reshape(-1), minlength=256)
    level, total = torch.arange(256).double() / 255, counts.sum(1).double()
    mean = counts.double() @ level / total
    std = ((counts.double() * (level - mean[:, None]) ** 2).sum(1) / total).sqrt()
    if bool((std < 1e-6).any()):  # one grey level of 255 in a million pixels is more
        raise DataError(
            "a colour channel is constant over the whole train set; check the images, they seem to be blank"
        )
    return Preprocessing(mean.float(), std.float())


def _fit_zca(pixels: Pixels, eps: float) -> Preprocessing:
    size = pixels.shape[1:].numel()
    if size > LARGEST_ZCA:
        raise UsageError(
            f"ZCA of images with {size} values would take {size**2 * 32 / 1e9:.0f} GB (at most {LARGEST_ZCA} values "
            "are whitened); leave out dataset.zca, or use smaller images"
        )
    mean = torch.zeros(size, dtype=torch.float64)
    for block in pixels.blocks():
        mean += block.flatten(1).sum(0, dtype=torch.int64)
    mean /= 255 * len(pixels)
    covariance = torch.zeros(size, size, dtype=torch.float64)
    for large in pixels.blocks():
        for block in large.split(2000):  # in float64, eight times the bytes
            x = block.double().flatten(1).div_(255).sub_(mean)
            covariance.addmm_(x.T, x)
    values, vectors = torch.linalg.eigh(covariance.div_(len(pixels) - 1))
    del covariance
    whiten = (vectors * (values.clamp_min(0) + eps).rsqrt()) @ vectors.T
    return Preprocessing(mean.float(), whiten=whiten.float())
