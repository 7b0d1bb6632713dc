"""Which space stored pixels are in: [0, 1], after a mean/std step, or whitened; found by what images look like.

Every candidate is undone, and what comes out is compared with real images: how much of it lies in [0, 1], its
mean and spread, and how alike neighbouring pixels are, which whitening destroys. Shapes: n images, c channels,
h x w pixels, d = c*h*w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.data.dataset import RealData
from ddbench.data.preprocessing import Preprocessing
from ddbench.errors import UsageError, did_you_mean

SAMPLE = 500  # images that are looked at: their statistics are known to a few percent
TOLERANCE = 0.02  # beyond [0, 1] that rounding explains
CLEAR = 0.4  # by which the best candidate leads where the numbers decide
INSIDE = 3.0  # added to every other space when all stored values lie in [0, 1]

# The constants of the field's code: means and standard deviations per channel of train images in [0, 1].
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # MTT, TESLA, PDD: also for CIFAR-100
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),  # DC, DSA, DM
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashionmnist": ((0.2861,), (0.3530,)),
}
SPACES = ("auto", "unit", "dataset", "zca", *CONSTANTS)


@dataclass(frozen=True)
class Looks:
    """What images in [0, 1] look like: mean, spread, likeness of neighbours, and the share outside [0, 1]."""

    mean: float
    std: float
    neighbours: float
    outside: float

    @classmethod
    def of(cls, images: Tensor) -> Looks:
        """Means over channels; ``images`` (n, c, h, w) need not lie in [0, 1]."""
        x = images.double()
        outside = ((x < -TOLERANCE) | (x > 1 + TOLERANCE)).double().mean()
        spread = x.std((0, 2, 3)).mean() if len(x) * x.shape[2:].numel() > 1 else torch.zeros(())
        return cls(float(x.mean()), float(spread), _likeness(x), float(outside))

    def distance(self, real: Looks) -> float:
        """How unlike ``real`` these are; 0 is the same.

        Distilling raises contrast, often twofold, and adds noise; another space changes contrast fourfold or more.
        Hence the square. How alike neighbours are does not depend on contrast and counts most.
        """
        contrast = math.log((self.std + 1e-4) / (real.std + 1e-4)) ** 2
        shift = abs(self.mean - real.mean) / (max(self.std, real.std) + 1e-4)
        unlike = abs(math.log((1.01 - self.neighbours) / (1.01 - real.neighbours)))
        return contrast + shift + self.outside / 4 + 2.5 * unlike

    def __str__(self) -> str:
        return (
            f"mean {self.mean:.2f}, std {self.std:.2f}, neighbours correlate {self.neighbours:.2f}, "
            f"{self.outside:.0%} outside [0, 1]"
        )


@dataclass(frozen=True)
class Finding:
    """The space that fits best, a sentence with the numbers, and the distance of every candidate (0 is best)."""

    space: str
    evidence: str
    scores: dict[str, float]

    @property
    def clear(self) -> bool:
        """Whether the best candidate leads the next by enough."""
        first, *others = sorted(self.scores.values())
        return not others or others[0] - first >= CLEAR

    def doubt(self, stated: str) -> str | None:
        """A warning where the numbers speak against the space that was stated."""
        if stated == self.space or self.scores[stated] - self.scores[self.space] < CLEAR:
            return None
        return (
            f"Warning: the pixels were stated to be in {stated!r} space, but look like {self.space!r} "
            f"(distance from real images {self.scores[stated]:.2f} against {self.scores[self.space]:.2f})"
        )


def unit(channels: int) -> Preprocessing:
    """The step that changes nothing."""
    return Preprocessing(torch.zeros(channels), torch.ones(channels))


def stated(name: str, real: RealData, whitened: Callable[[], Preprocessing] | None) -> Preprocessing:
    """The step that a user names: one of ``SPACES`` but auto, or ``m1,m2,m3/s1,s2,s3``."""
    channels = real.shape[0]
    if name == "unit":
        return unit(channels)
    if name == "dataset":
        return plain(real)
    if name == "zca":
        if real.preprocessing.kind == "zca":
            return real.preprocessing
        if whitened is None:
            raise UsageError("--pixels zca needs the dataset's ZCA; give -o dataset.zca=true")
        return whitened()
    if "/" in name:
        mean, std = _explicit(name, channels)
    elif name in CONSTANTS:
        mean, std = CONSTANTS[name]
    else:
        hint = did_you_mean(name, SPACES)
        raise UsageError(f"--pixels {name!r} is no space{hint} (valid: {', '.join(SPACES)}, or means/stds like .5/.25)")
    if len(mean) != channels:
        raise UsageError(f"--pixels {name} has {len(mean)} channels, but images of the dataset have {channels}")
    return Preprocessing(torch.tensor(mean), torch.tensor(std))


def plain(real: RealData) -> Preprocessing:
    """The dataset's own mean/std step; where it is whitened, that of its train images."""
    return real.preprocessing if real.preprocessing.kind == "meanstd" else Preprocessing.fit(real.pixels)


def _explicit(text: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise UsageError(
            f"--pixels {text!r} must be {channels} means, a slash and {channels} standard deviations, like "
            f"{','.join(['.5'] * channels)}/{','.join(['.25'] * channels)}"
        ) from None
    if len(mean) != len(std) or not all(0 < s < float("inf") for s in std) or not all(abs(m) < 1e6 for m in mean):
        raise UsageError(f"--pixels {text!r} must have as many means as standard deviations, all of these positive")
    return mean, std


def applied(images: Tensor, step: Preprocessing) -> Tensor:
    """Images in [0, 1], floats, through a preprocessing."""
    if step.whiten is not None:
        return ((images.flatten(1) - step.mean) @ step.whiten).view_as(images)
    assert step.std is not None
    return (images - step.mean.view(1, -1, 1, 1)) / step.std.view(1, -1, 1, 1)


def undone(images: Tensor, step: Preprocessing) -> Tensor:
    """Preprocessed images back to the scale of [0, 1], values outside kept: (n, c, h, w) float64."""
    x = images.double()
    if step.whiten is not None:  # x W = y  <=>  W^T x^T = y^T
        flat = torch.linalg.solve(step.whiten.double().T, x.flatten(1).T).T
        return (flat + step.mean.double()).view_as(x)
    assert step.std is not None
    return x * step.std.double().view(1, -1, 1, 1) + step.mean.double().view(1, -1, 1, 1)


def candidates(
    images: Tensor, real: RealData, whitened: Callable[[], Preprocessing] | None
) -> dict[str, Preprocessing]:
    """The spaces worth trying. ZCA, which may take minutes to fit, only where neighbours look less alike than real."""
    found = {"unit": unit(real.shape[0]), "dataset": plain(real)}
    if real.preprocessing.kind == "zca":
        return found | {"zca": real.preprocessing}
    stored, natural = _likeness(sample(images).double()), _likeness(looked_at(real).double())
    if whitened is not None and stored < natural - 0.1:
        found["zca"] = whitened()
    return found


def detect(images: Tensor, candidates: Mapping[str, Preprocessing], real: Tensor) -> Finding:
    """The candidate whose images are most like ``real`` (n, c, h, w), real images in [0, 1]."""
    natural, some = Looks.of(real), sample(images)
    looks = {name: Looks.of(undone(some, step)) for name, step in candidates.items()}
    scores = {name: look.distance(natural) for name, look in looks.items()}
    if "unit" in looks and looks["unit"].outside == 0:  # what is centred has values on both sides of 0
        scores = {name: score if name == "unit" else score + INSIDE for name, score in scores.items()}
    order = sorted(scores, key=lambda name: scores[name])
    best = order[0]
    said = "; ".join(f"as {name!r} {looks[name]}" for name in order[:3])
    return Finding(best, f"{said}; real images have {natural}", scores)


def same(a: Preprocessing, b: Preprocessing) -> bool:
    """Whether two mean/std steps are too near each other to be told apart by their images, or to matter."""
    if a.std is None or b.std is None:
        return False
    near = float(((a.mean - b.mean).abs() / b.std).max()), float((a.std / b.std).log().abs().max())
    return max(near) < 0.4


def sample(images: Tensor) -> Tensor:
    """At most ``SAMPLE`` images, evenly spread."""
    return images[:: max(1, -(-len(images) // SAMPLE))]


def looked_at(real: RealData) -> Tensor:
    """Some real images in [0, 1]."""
    index = torch.arange(len(real))[:: max(1, -(-len(real) // SAMPLE))]
    return real.pixels[index].float() / 255


def _likeness(x: Tensor) -> float:
    """The correlation of pixels with their right and lower neighbours, within channels."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    pairs = [(centred[..., :-1], centred[..., 1:]), (centred[..., :-1, :], centred[..., 1:, :])]
    products = [(float((a * b).sum()), float((a.square().sum() * b.square().sum()).sqrt())) for a, b in pairs]
    whole = sum(scale for _, scale in products)
    return sum(product for product, _ in products) / whole if whole > 0 else 1.0
