"""Real data: examples, preprocessing, and datasets that are never held whole as floats.

Shapes: n images, c channels, h x w pixels, k classes, d = c*h*w. Pixels are uint8, images are floats
after preprocessing, targets are class numbers, labels are rows over classes (hard ones are one-hot).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddbench.cache import digest
from ddbench.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Examples:
    """Images ``(n, c, h, w)``, preprocessed, with labels ``(n, k)``: a batch, real or synthetic."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Examples:
        return Examples(self.images[index], self.labels[index])


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
        """``(n, c, h, w)`` uint8 -> preprocessed float32."""
        images = pixels.to(self.mean.device).float() / 255
        if self.whiten is not None:
            return ((images.flatten(1) - self.mean) @ self.whiten).view_as(images)
        assert self.std is not None
        return (images - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def invert(self, images: Tensor) -> Tensor:
        """Preprocessed images back to [0, 1], for pictures; values outside are clamped."""
        if self.whiten is not None:
            flat = images.flatten(1).double()
            restored = torch.linalg.solve(self.whiten.double(), flat, left=False) + self.mean.double()
            return restored.to(images.dtype).view_as(images).clamp(0, 1)
        assert self.std is not None
        return (images * self.std.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)).clamp(0, 1)

    def to(self, device: torch.device | str) -> Preprocessing:
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
    def fit(cls, pixels: Tensor, *, zca: bool = False, eps: float = 0.1) -> Preprocessing:
        """Statistics of ``pixels`` in [0, 1], in float64 over blocks, so memory stays bounded.

        ZCA: ``W = U (S + eps)^(-1/2) U^T`` from the covariance over n - 1 (as kornia's, eps 0.1).
        """
        blocks = [slice(i, i + 2000) for i in range(0, len(pixels), 2000)]
        if not zca:
            total = torch.zeros(pixels.shape[1], dtype=torch.float64)
            square = torch.zeros_like(total)
            for block in blocks:
                x = pixels[block].double() / 255
                total += x.sum((0, 2, 3))
                square += (x * x).sum((0, 2, 3))
            count = pixels.numel() / pixels.shape[1]
            mean = total / count
            std = (square / count - mean**2).clamp_min(0).sqrt()
            if bool((std < 1e-6).any()):  # one grey level of 255 in a million pixels is more
                raise DataError(
                    "a colour channel is constant over the whole train set; check the images, they seem to be blank"
                )
            return cls(mean.float(), std.float())
        size = pixels[0].numel()
        mean = sum((pixels[b].double().flatten(1) / 255).sum(0) for b in blocks) / len(pixels)
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for block in blocks:
            x = pixels[block].double().flatten(1) / 255 - mean
            covariance.addmm_(x.T, x)
        values, vectors = torch.linalg.eigh(covariance / (len(pixels) - 1))
        whiten = (vectors * (values.clamp_min(0) + eps).rsqrt()) @ vectors.T
        return cls(torch.as_tensor(mean).float(), whiten=whiten.float())


@dataclass(frozen=True, eq=False)
class RealData:
    """Real images, kept as uint8 pixels ``(n, c, h, w)``, with targets ``(n,)`` int64.

    ``real[index]``, ``real.draw(per_class)`` and ``real.batches(size)`` give preprocessed Examples on
    the preprocessing's device.
    """

    pixels: Tensor
    targets: Tensor
    preprocessing: Preprocessing
    classes: int

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return tuple(self.pixels.shape[1:])  # type: ignore[return-value]

    def __getitem__(self, index: Tensor) -> Examples:
        index = index.cpu()
        device = self.preprocessing.mean.device
        labels = one_hot(self.targets[index], self.classes).to(device, torch.float32)
        return Examples(self.preprocessing(self.pixels[index]), labels)

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """For each class, the indices of its images."""
        order = torch.argsort(self.targets, stable=True)
        counts = torch.bincount(self.targets, minlength=self.classes)
        return order.split(counts.tolist())

    @property
    def smallest_class(self) -> int:
        """The number of images in the smallest class: the largest possible ipc of real images."""
        return min(len(m) for m in self.members)

    def draw(self, per_class: int) -> Examples:
        """``per_class`` random images of each class without replacement, in class order.

        Draws from torch's generator, which the harness seeds around every call into a plugin.
        """
        if per_class > self.smallest_class:
            raise UsageError(
                f"{per_class} images per class asked for, but the smallest class has {self.smallest_class}"
            )
        return self[torch.cat([m[torch.randperm(len(m))[:per_class]] for m in self.members])]

    def batches(self, size: int) -> Iterator[Examples]:
        """All examples in order, ``size`` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self[index]

    def subset(self, index: Tensor) -> RealData:
        return replace(self, pixels=self.pixels[index], targets=self.targets[index])

    def to(self, device: torch.device | str) -> RealData:
        """The same data whose batches are preprocessed on ``device``; the pixels stay where they are."""
        return replace(self, preprocessing=self.preprocessing.to(device))

    @cached_property
    def digest(self) -> str:
        """sha256 over pixels, targets and preprocessing: what an expert trained on this depends on.

        The statistics count to five digits: their last bits depend on the number of threads.
        """
        parts = [digest(np.ascontiguousarray(block).tobytes()) for block in self._blocks()]
        p = self.preprocessing
        statistics = [[round(v, 5) for v in t.tolist()] for t in (p.mean, p.std) if t is not None]
        return digest([list(self.pixels.shape), self.classes, p.kind, statistics, *parts])

    def _blocks(self) -> Iterator[Any]:
        for start in range(0, len(self), 10_000):
            yield self.pixels[start : start + 10_000].numpy()
        yield self.targets.numpy()


def stratified(targets: Tensor, count: int, seed: int) -> Tensor:
    """Indices of ``count`` items that keep the class proportions, in ascending order.

    Shares are rounded by largest remainder; every class keeps at least one item when ``count`` allows.
    """
    if not 0 < count <= len(targets):
        raise UsageError(f"cannot take {count} of {len(targets)} images; choose between 1 and {len(targets)}")
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(targets)
    exact = sizes.double() * count / len(targets)
    shares = exact.floor().long()
    if count >= int((sizes > 0).sum()):
        shares = shares.maximum((sizes > 0).long())
    while int(shares.sum()) != count:
        step = 1 if int(shares.sum()) < count else -1
        gap = (exact - shares) * step
        gap[(shares + step > sizes) | (shares + step < 1)] = -torch.inf
        shares[int(gap.argmax())] += step
    chosen = []
    for label, share in enumerate(shares.tolist()):
        members = torch.nonzero(targets == label).flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:share]])
    return torch.cat(chosen).sort().values


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named classification task: ``train`` to distil, ``validation`` to select on, ``test`` to report.

    ``augment`` is the DSA strategy that keeps labels valid (no flip for digits).
    """

    name: str
    classes: tuple[str, ...]
    train: RealData
    validation: RealData
    test: RealData
    augment: str = "color_crop_cutout_flip_scale_rotate"
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def split(
        cls,
        name: str,
        classes: tuple[str, ...],
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        validation: float = 0.1,
        seed: int = 0,
        zca: bool = False,
        preprocessing: Preprocessing | None = None,
        augment: str = "color_crop_cutout_flip_scale_rotate",
        facts: dict[str, Any] | None = None,
    ) -> Dataset:
        """Fit the preprocessing on all of ``train`` (pixels, targets), then carve out validation.

        The split is stratified and seeded by the dataset's own seed, so every run on the dataset
        selects on the same images.
        """
        for part, (pixels, targets) in {"train": train, "test": test}.items():
            _check_part(name, part, pixels, targets, len(classes))
        pixels, targets = train
        if preprocessing is None:
            preprocessing = Preprocessing.fit(pixels, zca=zca)
        held = stratified(targets, max(1, round(len(targets) * validation)), seed)
        keep = torch.ones(len(targets), dtype=torch.bool)
        keep[held] = False
        for label in range(len(classes)):  # the only image of a class is for training
            if not bool(keep[targets == label].any()):
                keep[held[targets[held] == label]] = True
        held = torch.nonzero(~keep).flatten()
        if not len(held):
            raise DataError(
                f"dataset {name!r} is too small to hold out validation images: {len(targets)} in {len(classes)} classes"
            )
        whole = RealData(pixels, targets, preprocessing, len(classes))
        return cls(
            name=name,
            classes=classes,
            train=whole.subset(torch.nonzero(keep).flatten()),
            validation=whole.subset(held),
            test=RealData(*test, preprocessing, len(classes)),
            augment=augment,
            facts=facts or {},
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the three parts and the class names."""
        return digest([self.train.digest, self.validation.digest, self.test.digest, list(self.classes)])

    def to(self, device: torch.device | str) -> Dataset:
        parts = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return replace(self, **parts)


def _check_part(name: str, part: str, pixels: Tensor, targets: Tensor, classes: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise DataError(
            f"dataset {name!r}: {part} pixels must be uint8 (n, c, h, w), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    if len(pixels) != len(targets):
        raise DataError(f"dataset {name!r}: {len(pixels)} {part} images but {len(targets)} targets")
    if classes < 2:
        raise DataError(f"dataset {name!r} has {classes} class; classification needs at least two")
    if not len(targets):
        raise DataError(f"dataset {name!r} has no {part} images")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise DataError(f"dataset {name!r}: {part} targets must lie in 0..{classes - 1}")
    counts = torch.bincount(targets, minlength=classes)
    if part == "train" and int(counts.min()) == 0:
        raise DataError(f"dataset {name!r}: class {int(counts.argmin())} has no {part} images")
