"""Which space stored pixels are in: [0, 1], another scale, after a mean/std step, whitened; told by their looks.

Every candidate is undone, and what comes out is compared with real images: how much of it lies in [0, 1], its
mean and spread, and how alike neighbouring pixels are, which whitening destroys. Where even the best is unlike them,
the space is none of the candidates. Shapes: n images, c channels, h x w pixels, d = c*h*w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
CAFFE = (103.939, 116.779, 123.68)  # what Caffe's networks subtract, in the order blue, green, red
SCALES = ("bytes", "symmetric", "half", "centred", "caffe", "standardised")
SPACES = ("auto", "unit", "dataset", "zca", *SCALES, *CONSTANTS)
# Images of these spaces are brought to [0, 1] and put through the dataset's own step: networks are used to such input.
BROUGHT = ("unit", "bytes", "centred", "caffe", "standardised")
EDGES = {"symmetric": 1.0, "half": 0.5}  # spaces whose values lie between -x and x
LARGE = 20.0  # beyond which no value of an image is after a mean/std step, whatever distillation did to it
EXACT = 1e-2  # of the mean and the deviation of an image that was standardised by itself
UNLIKE = (5.0, 2.0, 0.7)  # contrast, shift of the mean in deviations, share outside [0, 1]: more is no image


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

    def unlike(self, real: Looks) -> bool:
        """Whether these are no images at all, distilled ones included: far from ``real`` in level or contrast."""
        contrast, shift, outside = UNLIKE
        spread = math.log((self.std + 1e-4) / (real.std + 1e-4))
        far = abs(self.mean - real.mean) / (max(self.std, real.std) + 1e-4)
        return abs(spread) > math.log(contrast) or far > shift or self.outside > outside

    def __str__(self) -> str:
        return (
            f"mean {self.mean:.2f}, std {self.std:.2f}, neighbours correlate {self.neighbours:.2f}, "
            f"{self.outside:.0%} outside [0, 1]"
        )


@dataclass(frozen=True)
class Finding:
    """The space that fits best, a sentence with the numbers, and the distance of every candidate (0 is best).

    As one of ``strange``, pixels are unlike real images.
    """

    space: str
    evidence: str
    scores: dict[str, float]
    strange: frozenset[str] = frozenset()
    looks: Mapping[str, Looks] = field(default_factory=dict)

    @property
    def unlike(self) -> bool:
        """Whether the pixels are unlike real images even as the best candidate."""
        return self.space in self.strange

    @property
    def clear(self) -> bool:
        """Whether the best candidate leads the next by enough."""
        first, *others = sorted(self.scores.values())
        return not others or others[0] - first >= CLEAR

    def doubt(self, stated: str) -> str | None:
        """A warning where the numbers speak against the space that was stated."""
        if stated in self.strange and self.unlike:
            return f"Warning: the pixels are unlike real images, in {stated!r} space as in all others that were tried"
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
    if name in SCALES:
        return _scales(real)[name] if channels == 3 or name != "caffe" else _three_needed(name, channels)
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
        raise UsageError(
            f"--pixels {name!r} is not a space{hint} (valid: {', '.join(SPACES)}, or means/stds like .5/.25)"
        )
    if len(mean) != channels:
        raise UsageError(f"--pixels {name} has {len(mean)} channels, but images of the dataset have {channels}")
    return Preprocessing(torch.tensor(mean), torch.tensor(std))


def _scales(real: RealData) -> dict[str, Preprocessing]:
    """The steps of ``SCALES``: stored values times ``std`` plus ``mean`` are pixels in [0, 1]."""
    own, channels = plain(real), real.shape[0]
    level, spread = float(own.mean.mean()), float((own.std if own.std is not None else own.mean).mean())
    one, byte = torch.ones(channels), torch.full((channels,), 1 / 255)
    return {
        "bytes": Preprocessing(torch.zeros(channels), byte),
        "symmetric": Preprocessing(one / 2, one / 2),
        "half": Preprocessing(one / 2, one),
        "centred": Preprocessing(own.mean, byte),
        "caffe": Preprocessing(torch.tensor(CAFFE[:channels]) / 255, byte),
        "standardised": Preprocessing(one * level, one * spread),
    }


def _three_needed(name: str, channels: int) -> Preprocessing:
    raise UsageError(f"--pixels {name} has 3 channels, but images of the dataset have {channels}")


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


def brought(images: Tensor, name: str, step: Preprocessing) -> Tensor:
    """Images of a space of ``BROUGHT`` in [0, 1], float32; red, green and blue in this order."""
    if name == "unit":
        return images
    unit = undone(images, step).float()
    return unit.flip(1) if name == "caffe" else unit


def candidates(
    images: Tensor, real: RealData, whitened: Callable[[], Preprocessing] | None
) -> dict[str, Preprocessing]:
    """The spaces worth trying. ZCA, which may take minutes to fit, only where neighbours look less alike than real."""
    found = {"unit": unit(real.shape[0]), "dataset": plain(real)} | _likely_scales(images, real)
    if real.preprocessing.kind == "zca":
        return found | {"zca": real.preprocessing}
    stored, natural = _likeness(sample(images).double()), _likeness(looked_at(real).double())
    if whitened is not None and stored < natural - 0.1:
        found["zca"] = whitened()
    return found


def _likely_scales(images: Tensor, real: RealData) -> dict[str, Preprocessing]:
    """Those of ``SCALES`` that the range of the values, or each image by itself, speaks for."""
    some = sample(images)
    low, high = float(some.min()), float(some.max())
    names = []
    names += [
        name for name, edge in EDGES.items() if -edge - TOLERANCE <= low < -TOLERANCE and high <= edge + TOLERANCE
    ]
    if max(-low, high) > LARGE:
        names += ["bytes", *(["centred"] if low < -LARGE else []), *(["caffe"] * (low < -LARGE and some.shape[1] == 3))]
    flat = some.flatten(1).double()
    if len(flat) > 1 and bool((flat.mean(1).abs() < EXACT).all()) and bool(((flat.std(1) - 1).abs() < EXACT).all()):
        names.append("standardised")
    steps = _scales(real) if names else {}
    return {name: steps[name] for name in names}


def detect(images: Tensor, candidates: Mapping[str, Preprocessing], real: Tensor) -> Finding:
    """The candidate whose images are most like ``real`` (n, c, h, w), real images in [0, 1]."""
    natural, some = Looks.of(real), sample(images)
    looks = {name: Looks.of(undone(some, step)) for name, step in candidates.items()}
    scores = {name: look.distance(natural) for name, look in looks.items()}
    if sure := _sure(some, looks):
        scores = {name: score if name == sure else score + INSIDE for name, score in scores.items()}
    order = sorted(scores, key=lambda name: scores[name])
    best = order[0]
    said = "; ".join(f"as {name!r} {looks[name]}" for name in order[:3])
    strange = frozenset(name for name, look in looks.items() if look.unlike(natural))
    return Finding(best, f"{said}; real images have {natural}", scores, strange, looks)


def _sure(some: Tensor, looks: Mapping[str, Looks]) -> str | None:
    """The one space that the range of the values speaks for, if any does."""
    if "unit" in looks and looks["unit"].outside == 0:  # what is centred has values on both sides of 0
        return "unit"
    low, high = float(some.min()), float(some.max())
    reached = [
        name for name, edge in EDGES.items() if name in looks and low < TOLERANCE - edge and high > edge - TOLERANCE
    ]
    if reached:  # both ends, and nothing beyond
        return reached[-1]
    return "standardised" if "standardised" in looks else None


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
