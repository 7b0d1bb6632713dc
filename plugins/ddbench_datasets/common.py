"""What the sources share: their common options, and what these options choose from a collection of images."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ddbench import DataError, Dataset, Pixels, Preprocessing, Store, UsageError, did_you_mean, stratified

# A constant of the datasets, not of the run: every run with the same options sees the same images.
SEED = 0
# Mirrored digits and patterns are other digits and patterns, so the DSA strategy has no flip.
NO_FLIP = "color_crop_cutout_scale_rotate"
FLIP = "color_crop_cutout_flip_scale_rotate"
TEST_SHARE = 0.2  # of the images of a dataset that is not divided

# options of several sources
Size = Annotated[int | None, Ge(1), "resize to size x size pixels; by default all must have one size"]
Channels = Annotated[Literal["auto", "1", "3"], "grey (1), colour (3), or grey if all images are grey"]
Flip = Annotated[bool, "whether a mirrored image keeps its class; decides how training augments"]
SkipBroken = Annotated[bool, "leave out images that cannot be decoded, and count them; by default they are an error"]

S = TypeVar("S")


@dataclass(frozen=True)
class Choices:
    """The options of every dataset: which of its images, with which labels, prepared how. Fields only."""

    validation: Annotated[float, Gt(0), Lt(1), "fraction of the train images held out to select on"] = 0.1
    zca: Annotated[bool, "whiten the images (ZCA) instead of the mean/std step"] = False
    classes: Annotated[tuple[str, ...] | None, "only these classes, by name, in this order; by default all"] = None
    imbalance: Annotated[float, Ge(1), "largest over smallest class, sizes falling exponentially in between"] = 1.0
    limit: Annotated[int | None, Ge(1), "use only this many train images, in class proportions; none for all"] = None
    noise: Annotated[float, Ge(0), Lt(1), "fraction of train labels replaced by another class, at random"] = 0.0


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which images of a collection a dataset uses: rows ``(n,)`` of its train and test part, and their targets."""

    classes: tuple[str, ...]
    train: Tensor
    train_targets: Tensor
    test: Tensor
    test_targets: Tensor


@dataclass(frozen=True, eq=False)
class Whole:
    """Both parts of a dataset as its authors divided them: pixels ``(n, c, h, w)`` uint8, targets ``(n,)`` int64."""

    classes: tuple[str, ...]
    train: Pixels | Tensor
    train_targets: Tensor
    test: Pixels | Tensor
    test_targets: Tensor

    @classmethod
    def divided(cls, classes: tuple[str, ...], pixels: Pixels | Tensor, targets: Tensor, share: float) -> Whole:
        """A ``share`` of all images held out, stratified: for images whose authors published no test part."""
        held = torch.zeros(len(targets), dtype=torch.bool)
        held[stratified(targets, round(len(targets) * share), SEED)] = True
        train, test = (_picked(pixels, torch.nonzero(part).flatten()) for part in (~held, held))
        return cls(classes, train, targets[~held], test, targets[held])


def told(missing: Callable[[S], str | None]) -> Callable[[S], str | None]:
    """A source's ``missing``, of which an error is the answer: the sentence that ``load`` would refuse with."""

    @wraps(missing)
    def answer(source: S) -> str | None:
        try:
            return missing(source)
        except (DataError, UsageError) as error:
            return str(error)

    return answer


def origin(source: Any) -> dict[str, Any]:
    """The facts that a source says about itself."""
    return {"source": source.about["homepage"], "licence": source.about["licence"]}


def titled(text: str, otherwise: str) -> str:
    """A dataset's name after what the user calls it: lower case letters, digits, and ``._-``."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-") or otherwise


def halves(images: Store, rows: Tensor, first: int) -> tuple[Pixels, Pixels]:
    """The train part of stored images, which are the ``first`` ones of ``rows`` ``(n,)``, and the test part."""
    return Pixels(images, rows[:first]), Pixels(images, rows[first:])


def assemble(
    options: Choices,
    name: str,
    whole: Whole,
    *,
    augment: str,
    preprocessing: Preprocessing | None = None,
    facts: dict[str, Any] | None = None,
) -> Dataset:
    """The dataset that the options choose from images that are all at hand."""
    chosen = choose(options, whole.classes, whole.train_targets, whole.test_targets)
    train, test = _picked(whole.train, chosen.train), _picked(whole.test, chosen.test)
    return build(options, chosen, name, train, test, augment=augment, preprocessing=preprocessing, facts=facts)


def choose(options: Choices, names: tuple[str, ...], train: Tensor, test: Tensor) -> Chosen:
    """Apply ``classes``, ``imbalance``, ``limit`` and ``noise``, in this order, to targets ``(n,)`` of both parts.

    Pixels are not needed, so that a source can decode just the images that are used. Only train images are thinned
    and mislabelled; validation images are carved from them later, so they share both, as they would for someone
    who has no other data. Raises UsageError when too few images are left.
    """
    wanted = names if options.classes is None else options.classes
    numbers = _numbers(names, wanted)
    rows, targets = _relabelled(train, numbers)
    test_rows, test_targets = _relabelled(test, numbers)
    if options.imbalance > 1:
        kept = _thinned(targets, len(wanted), options.imbalance)
        rows, targets = rows[kept], targets[kept]
    if options.limit is not None:
        kept = _limited(targets, options.limit, len(wanted))
        rows, targets = rows[kept], targets[kept]
    return Chosen(wanted, rows, _noisy(targets, len(wanted), options.noise), test_rows, test_targets)


def build(
    options: Choices,
    chosen: Chosen,
    name: str,
    train: Pixels | Tensor,
    test: Pixels | Tensor,
    *,
    augment: str,
    preprocessing: Preprocessing | None = None,
    facts: dict[str, Any] | None = None,
) -> Dataset:
    """The dataset of the chosen images; ``train`` and ``test`` hold just those, in the order of ``chosen``.

    ``preprocessing`` replaces fitted statistics, unless the images are whitened.
    """
    return Dataset.split(
        name,
        chosen.classes,
        (train, chosen.train_targets),
        (test, chosen.test_targets),
        validation=options.validation,
        seed=SEED,
        zca=options.zca,
        preprocessing=None if options.zca else preprocessing,
        augment=augment,
        facts=facts,
    )


def _picked(images: Pixels | Tensor, rows: Tensor) -> Pixels | Tensor:
    """The images at ``rows``, ascending: those of a mapped file stay there, those in memory leave the others behind."""
    if len(rows) == len(images):
        return images
    return images.subset(rows) if isinstance(images, Pixels) else images[rows]


def _numbers(names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """(k,): the new number of each class, -1 for those left out."""
    for name in wanted:
        if name not in names:
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise UsageError(f"dataset.classes names {name!r}{did_you_mean(name, names)}; the classes are {shown}")
    if len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise UsageError(f"dataset.classes must name two or more different classes, got {', '.join(wanted)}")
    numbers = torch.full((len(names),), -1)
    numbers[torch.tensor([names.index(name) for name in wanted])] = torch.arange(len(wanted))
    return numbers


def _relabelled(targets: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of wanted classes, ascending, and their new numbers."""
    renumbered = numbers[targets]
    rows = torch.nonzero(renumbered >= 0).flatten()
    return rows, renumbered[rows]


def _thinned(targets: Tensor, classes: int, imbalance: float) -> Tensor:
    """Rows, ascending, of a long-tailed choice: class c keeps ``n imbalance^(-c / (k - 1))`` of its images.

    The profile of long-tailed CIFAR (Cui et al., CVPR 2019), n being the size of the smallest class, so that
    sizes fall whatever they were before. Every class keeps two: one to train on, one to select on.
    """
    sizes = torch.bincount(targets, minlength=classes)
    generator = torch.Generator().manual_seed(SEED)
    chosen = []
    for label in range(classes):
        members = torch.nonzero(targets == label).flatten()
        share = max(2, round(int(sizes.min()) * imbalance ** (-label / (classes - 1))))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:share]])
    return torch.cat(chosen).sort().values


def _limited(targets: Tensor, limit: int, classes: int) -> Tensor:
    if limit < 2 * classes:
        raise UsageError(
            f"dataset.limit={limit} is too small: {classes} classes need one image each to train on and one to "
            f"select on; ask for at least {2 * classes}"
        )
    if limit > len(targets):
        raise UsageError(f"dataset.limit={limit} asks for more than the {len(targets)} train images there are")
    return stratified(targets, limit, SEED)


def _noisy(targets: Tensor, classes: int, noise: float) -> Tensor:
    """``targets`` with exactly ``round(noise n)`` of them replaced by one of the other classes, uniformly."""
    generator = torch.Generator().manual_seed(SEED + 1)
    wrong = torch.randperm(len(targets), generator=generator)[: round(noise * len(targets))]
    shift = torch.randint(1, classes, (len(wrong),), generator=generator)
    noisy = targets.clone()
    noisy[wrong] = (targets[wrong] + shift) % classes
    return noisy
