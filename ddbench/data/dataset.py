"""Real data: examples, and datasets that are never held whole as floats.

Shapes: n images, c channels, h x w pixels, k classes. Pixels are uint8, images are floats after
preprocessing, targets are class numbers, labels are rows over classes (hard ones are one-hot).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddbench.base.cache import digest
from ddbench.data.pixels import Pixels
from ddbench.data.preprocessing import Preprocessing
from ddbench.errors import DataError, UsageError

LARGEST_RESIDENT = 2**33  # bytes of uint8 pixels that are kept on a GPU
LARGEST_WHITENED = 2**30  # bytes of float32 images that are kept, once whitened, while a process trains on them


@dataclass(frozen=True, eq=False)
class Examples:
    """Images ``(n, c, h, w)``, preprocessed, with labels ``(n, k)``: a batch, real or synthetic."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Examples:
        return Examples(self.images[index], self.labels[index])

    def batches(self, size: int) -> Iterator[Examples]:
        """All examples in order, ``size`` at a time."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield Examples(images, labels)


@dataclass(frozen=True, eq=False)
class RealData:
    """Real images, kept as uint8 ``pixels`` ``(n, c, h, w)``, with targets ``(n,)`` int64.

    ``real[index]``, ``real.draw(per_class)`` and ``real.batches(size)`` give preprocessed Examples on
    the preprocessing's device. A tensor given as ``pixels`` is taken as :class:`Pixels`.
    """

    pixels: Pixels
    targets: Tensor
    preprocessing: Preprocessing
    classes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", Pixels.of(self.pixels))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return tuple(self.pixels.shape[1:])  # type: ignore[return-value]

    def __getitem__(self, index: Tensor) -> Examples:
        index = index.cpu()
        device = self.preprocessing.mean.device
        labels = one_hot(self.targets[index].to(device), self.classes).float()
        return Examples(self.preprocessing(self.pixels[index]), labels)

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """For each class, the indices of its images, ascending."""
        return by_class(self.targets, self.classes)

    @property
    def smallest_class(self) -> int:
        """The number of images in the smallest class: the largest possible ipc of real images."""
        return min(len(m) for m in self.members)

    def draw(self, per_class: int, classes: Sequence[int] | None = None) -> Examples:
        """``per_class`` random images of each class (or of ``classes``), without replacement, class after class.

        Draws from torch's generator, which the harness seeds around every call into a plugin.
        """
        drawn = self.members if classes is None else [self.members[label] for label in classes]
        smallest = min(len(m) for m in drawn)
        if per_class > smallest:
            raise UsageError(f"{per_class} images per class asked for, but the smallest class has {smallest}")
        return self[torch.cat([m[torch.randperm(len(m))[:per_class]] for m in drawn])]

    def batches(self, size: int) -> Iterator[Examples]:
        """All examples in order, ``size`` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self[index]

    def subset(self, index: Tensor) -> RealData:
        """The images at ``index``; their pixels are not copied."""
        return replace(self, pixels=self.pixels.subset(index), targets=self.targets[index])

    def to(self, device: torch.device | str) -> RealData:
        """The same data whose batches are preprocessed on ``device``; the pixels stay where they are."""
        moved = self.preprocessing.to(device)
        return self if moved is self.preprocessing else replace(self, preprocessing=moved)

    @property
    def at_hand(self) -> RealData | Examples | Resident:
        """What to take batches from when every image is needed many times.

        On CUDA the uint8 pixels move there once, so that a batch costs no transfer. On a CPU with ZCA all images are
        whitened once, since whitening a batch costs more than a narrow network's step. Data above some gigabytes stay
        as they are, mapped from their file.
        """
        device = self.preprocessing.mean.device
        if device.type == "cuda":
            return self._resident if self.pixels.numel() <= LARGEST_RESIDENT else self
        if self.preprocessing.kind != "zca" or self.pixels.numel() * 4 > LARGEST_WHITENED:
            return self
        return self._floats

    @cached_property
    def _resident(self) -> Resident:
        device = self.preprocessing.mean.device
        return Resident(self.pixels[:].to(device), self.targets.to(device), self.preprocessing, self.classes)

    @cached_property
    def _floats(self) -> Examples:
        images = torch.empty(self.pixels.shape)
        for rows in torch.arange(len(self)).split(1000):
            images[rows] = self.preprocessing(self.pixels[rows])
        return Examples(images, one_hot(self.targets, self.classes).float())

    @cached_property
    def digest(self) -> str:
        """sha256 over pixels, targets and preprocessing: what an expert trained on this depends on.

        The statistics count to five digits: those of ZCA depend on the number of threads in their last bits.
        """
        p = self.preprocessing
        statistics = [[round(v, 5) for v in t.tolist()] for t in (p.mean, p.std) if t is not None]
        return digest([self.pixels.digest, digest(self.targets.numpy().tobytes()), self.classes, p.kind, statistics])


@dataclass(frozen=True, eq=False)
class Resident:
    """Real images as uint8 on the device that trains on them: ``pixels`` ``(n, c, h, w)``, ``targets`` ``(n,)``."""

    pixels: Tensor
    targets: Tensor
    preprocessing: Preprocessing
    classes: int

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Tensor) -> Examples:
        index = index.to(self.pixels.device, non_blocking=True)
        return Examples(self.preprocessing(self.pixels[index]), one_hot(self.targets[index], self.classes).float())

    def batches(self, size: int) -> Iterator[Examples]:
        """All examples in order, ``size`` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self[index]


def by_class(targets: Tensor, classes: int) -> tuple[Tensor, ...]:
    """For each of ``classes``, the ascending indices of its items in ``targets`` ``(n,)``."""
    order = torch.argsort(targets, stable=True)
    return order.split(torch.bincount(targets, minlength=classes).tolist())


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
    for members, share in zip(by_class(targets, len(sizes)), shares.tolist(), strict=True):
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
        train: tuple[Tensor | Pixels, Tensor],
        test: tuple[Tensor | Pixels, Tensor],
        *,
        validation: float = 0.1,
        seed: int = 0,
        zca: bool = False,
        preprocessing: Preprocessing | None = None,
        augment: str = "color_crop_cutout_flip_scale_rotate",
        facts: dict[str, Any] | None = None,
    ) -> Dataset:
        """Fit the preprocessing on all of ``train`` (pixels, targets), then carve out validation.

        Pixels are a tensor ``(n, c, h, w)`` uint8, which may be mapped from a file: parts share it and nothing is
        copied. The split is stratified and seeded by the dataset's own seed, so every run on the dataset
        selects on the same images. ``validation`` 0 holds none out, for protocols that select on other data.
        """
        for part, (pixels, targets) in {"train": train, "test": test}.items():
            _check_part(name, part, pixels, targets, len(classes))
        pixels, targets = Pixels.of(train[0]), train[1]
        preprocessing = preprocessing or Preprocessing.cached(pixels, zca=zca)
        keep = torch.ones(len(targets), dtype=torch.bool)
        if validation:
            held = stratified(targets, max(1, round(len(targets) * validation)), seed)
            keep[held] = False
            left = torch.bincount(targets[keep], minlength=len(classes))
            keep[held[left[targets[held]] == 0]] = True  # the only image of a class is for training
        held = torch.nonzero(~keep).flatten()
        if validation and not len(held):
            raise DataError(
                f"dataset {name!r} is too small to hold out validation images: {len(targets)} in {len(classes)} classes"
            )
        whole = RealData(pixels, targets, preprocessing, len(classes))
        return cls(
            name=name,
            classes=classes,
            train=whole.subset(torch.nonzero(keep).flatten()),
            validation=whole.subset(held),
            test=RealData(Pixels.of(test[0]), test[1], preprocessing, len(classes)),
            augment=augment,
            facts=facts or {},
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the three parts and the class names."""
        return digest([self.train.digest, self.validation.digest, self.test.digest, list(self.classes)])

    def checked(self) -> Dataset:
        """Itself, if it holds what it says. Raises DataError that names what does not fit.

        For sources that build one by themselves: :meth:`split` checks before it divides.
        """
        names = self.classes
        if not (isinstance(names, tuple) and all(isinstance(n, str) for n in names) and len({*names}) == len(names)):
            raise DataError(f"dataset {self.name!r}: classes must be a tuple of names that differ, got {names!r:.200}")
        shape = tuple(self.train.pixels.shape[1:])
        for part in ("train", "validation", "test"):
            real: RealData = getattr(self, part)
            _check_part(self.name, part, real.pixels, real.targets, len(names))
            if tuple(real.pixels.shape[1:]) != shape or real.classes != len(names):
                raise DataError(
                    f"dataset {self.name!r}: {part} has images {tuple(real.pixels.shape[1:])} in {real.classes} "
                    f"classes, but train has {shape}, and there are {len(names)} names"
                )
        return self

    def to(self, device: torch.device | str) -> Dataset:
        parts = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return replace(self, **parts)


def _check_part(name: str, part: str, pixels: Tensor | Pixels, targets: Tensor, classes: int) -> None:
    if pixels.dtype != torch.uint8 or len(pixels.shape) != 4:
        raise DataError(
            f"dataset {name!r}: {part} pixels must be uint8 (n, c, h, w), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise DataError(
            f"dataset {name!r}: {part} targets must be int64 (n,), got {targets.dtype} {tuple(targets.shape)}"
        )
    if len(pixels) != len(targets):
        raise DataError(f"dataset {name!r}: {len(pixels)} {part} images but {len(targets)} targets")
    if classes < 2:
        raise DataError(f"dataset {name!r} has {classes} class; classification needs at least two")
    if not len(targets) and part == "validation":
        return  # nothing is held out: protocols that select on it are refused
    if not len(targets):
        raise DataError(f"dataset {name!r} has no {part} images")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise DataError(f"dataset {name!r}: {part} targets must lie in 0..{classes - 1}")
    counts = torch.bincount(targets, minlength=classes)
    if part == "train" and int(counts.min()) == 0:
        raise DataError(f"dataset {name!r}: class {int(counts.argmin())} has no {part} images")
