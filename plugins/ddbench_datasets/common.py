"""What the sources share: their common options, and what these options choose from a collection of images."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ddbench import DataError, Dataset, Pixels, Preprocessing, RealData, Store, UsageError, did_you_mean, stratified
from ddbench_datasets.wnids import MEAN, STD

# A constant of the datasets, not of the run: every run with the same options sees the same images.
SEED = 0
# Mirrored digits and patterns are other digits and patterns, so the DSA strategy has no flip.
NO_FLIP = "color_crop_cutout_scale_rotate"
FLIP = "color_crop_cutout_flip_scale_rotate"
TEST_SHARE = 0.2  # of the images of a dataset that is not divided

# by which published code normalises these datasets, and others too (MTT's, TESLA's and PDD's CIFAR-100, RDED's CIFAR)
BORROWED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": (MEAN, STD),
}

# options of several sources
Size = Annotated[int | None, Ge(1), "resize to size x size pixels; by default all must have one size"]
Channels = Annotated[Literal["auto", "1", "3"], "grey (1), colour (3), or grey if all images are grey"]
Flip = Annotated[bool, "whether a mirrored image keeps its class; decides how training augments"]
Ground = Annotated[
    Literal["white", "grey", "black", "drop"],
    "what shows through transparent parts; drop ignores transparency and takes the colours below it",
]
SkipBroken = Annotated[bool, "leave out images that cannot be decoded, and count them; by default they are an error"]

S = TypeVar("S")


@dataclass(frozen=True)
class Choices:
    """The options of every dataset: which of its images, with which labels, prepared how. Fields only."""

    validation: Annotated[
        float,
        Ge(0),
        Lt(1),
        "fraction of train held out to select on, if it has no part for that; 0 where none is needed",
    ] = 0.1
    zca: Annotated[bool, "whiten the images (ZCA) instead of the mean/std step"] = False
    statistics: Annotated[
        Literal["own", "cifar10", "imagenet"], "whose mean and deviation images are normalised by (without zca)"
    ] = "own"
    classes: Annotated[tuple[str, ...] | None, "only these classes, by name, in this order; by default all"] = None
    imbalance: Annotated[float, Ge(1), "largest over smallest class, sizes falling exponentially in between"] = 1.0
    limit: Annotated[int | None, Ge(1), "use only this many train images, in class proportions; none for all"] = None
    noise: Annotated[float, Ge(0), Lt(1), "fraction of train labels replaced by another class, at random"] = 0.0


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which images of a collection a dataset uses: rows ``(n,)`` of each of its parts, and their targets.

    Without rows of a validation part, those images are to be taken from the train part.
    """

    classes: tuple[str, ...]
    train: Tensor
    train_targets: Tensor
    test: Tensor
    test_targets: Tensor
    validation: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    validation_targets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


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


def choose(
    options: Choices, names: tuple[str, ...], train: Tensor, test: Tensor, validation: Tensor | None = None
) -> Chosen:
    """Apply ``classes``, ``imbalance``, ``limit`` and ``noise``, in this order, to targets ``(n,)`` of all parts.

    Pixels are not needed, so that a source can decode just the images that are used. Only train images are thinned
    and mislabelled; validation images are carved from them later, so they share both, as they would for someone
    who has no other data, and those of a part of their own do too. Raises UsageError when too few images are left.
    """
    wanted = names if options.classes is None else named(options.classes, names)
    numbers = _numbers(names, wanted)
    rows, targets = _thinned(*_relabelled(train, numbers), len(wanted), options.imbalance)
    test_rows, test_targets = _relabelled(test, numbers)
    if options.limit is not None:
        kept = _limited(targets, options.limit, len(wanted))
        rows, targets = rows[kept], targets[kept]
    chosen = Chosen(wanted, rows, _noisy(targets, len(wanted), options.noise), test_rows, test_targets)
    if validation is None or not len(validation):
        return chosen
    if options.validation != Choices.validation:
        raise UsageError(
            f"dataset.validation={options.validation:g} asks for a fraction of the train images, but the dataset has a "
            "validation part; leave the option out, or rename the folder of that part"
        )
    rows, targets = _thinned(*_relabelled(validation, numbers), len(wanted), options.imbalance)
    noisy = _noisy(targets, len(wanted), options.noise, SEED + 2)
    return replace(chosen, validation=rows, validation_targets=noisy)


def build(
    options: Choices,
    chosen: Chosen,
    name: str,
    train: Pixels | Tensor,
    test: Pixels | Tensor,
    *,
    validation: Pixels | None = None,
    augment: str,
    preprocessing: Preprocessing | None = None,
    facts: dict[str, Any] | None = None,
) -> Dataset:
    """The dataset of the chosen images; the parts hold just those, in the order of ``chosen``.

    ``preprocessing`` replaces fitted statistics, unless the images are whitened; so do those that options borrow.
    """
    fixed = None if options.zca else borrowed(options.statistics, train.shape[1]) or preprocessing
    if validation is not None and len(validation):
        images = Pixels.of(train)
        step = fixed or Preprocessing.cached(images, zca=options.zca)
        parts = ((images, chosen.train_targets), (validation, chosen.validation_targets), (test, chosen.test_targets))
        data = (RealData(Pixels.of(held), targets, step, len(chosen.classes)) for held, targets in parts)
        return Dataset(name, chosen.classes, *data, augment=augment, facts=facts or {})
    return Dataset.split(
        name,
        chosen.classes,
        (train, chosen.train_targets),
        (test, chosen.test_targets),
        validation=options.validation,
        seed=SEED,
        zca=options.zca,
        preprocessing=fixed,
        augment=augment,
        facts=facts,
    )


def borrowed(statistics: str, channels: int) -> Preprocessing | None:
    """The mean/std step of another dataset, as published code has it; None for a dataset's own."""
    if statistics == "own":
        return None
    if channels != 3:
        raise UsageError(f"dataset.statistics={statistics} is of colour images, and these are grey; leave it out")
    return Preprocessing(*(torch.tensor(values) for values in BORROWED[statistics]))


def _picked(images: Pixels | Tensor, rows: Tensor) -> Pixels | Tensor:
    """The images at ``rows``, ascending: those of a mapped file stay there, those in memory leave the others behind."""
    if len(rows) == len(images):
        return images
    return images.subset(rows) if isinstance(images, Pixels) else images[rows]


def composed(name: str) -> str:
    """The name as most systems write it; macOS writes an accented letter as two characters."""
    return unicodedata.normalize("NFC", name)


def named(wanted: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The classes ``wanted`` as they are spelt in ``names``. Raises UsageError for one that is not there."""
    known = {composed(name): name for name in names} | {name: name for name in names}
    for name in wanted:
        if name not in known and composed(name) not in known:
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise UsageError(f"dataset.classes names {name!r}{did_you_mean(name, names)}; the classes are {shown}")
    return tuple(known.get(name) or known[composed(name)] for name in wanted)


def _numbers(names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """(k,): the new number of each class, -1 for those left out."""
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


def _thinned(rows: Tensor, targets: Tensor, classes: int, imbalance: float) -> tuple[Tensor, Tensor]:
    """A long-tailed choice of rows and targets: class c keeps ``n imbalance^(-c / (k - 1))`` of its images.

    The profile of long-tailed CIFAR (Cui et al., CVPR 2019), n being the size of the smallest class, so that
    sizes fall whatever they were before. Every class keeps two: one to train on, one to select on.
    """
    if imbalance <= 1:
        return rows, targets
    sizes = torch.bincount(targets, minlength=classes)
    generator = torch.Generator().manual_seed(SEED)
    chosen = []
    for label in range(classes):
        members = torch.nonzero(targets == label).flatten()
        share = max(2, round(int(sizes.min()) * imbalance ** (-label / (classes - 1))))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:share]])
    kept = torch.cat(chosen).sort().values
    return rows[kept], targets[kept]


def _limited(targets: Tensor, limit: int, classes: int) -> Tensor:
    if limit < 2 * classes:
        raise UsageError(
            f"dataset.limit={limit} is too small: {classes} classes need one image each to train on and one to "
            f"select on; ask for at least {2 * classes}"
        )
    if limit > len(targets):
        raise UsageError(f"dataset.limit={limit} asks for more than the {len(targets)} train images there are")
    return stratified(targets, limit, SEED)


def _noisy(targets: Tensor, classes: int, noise: float, seed: int = SEED + 1) -> Tensor:
    """``targets`` with exactly ``round(noise n)`` of them replaced by one of the other classes, uniformly."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(targets), generator=generator)[: round(noise * len(targets))]
    shift = torch.randint(1, classes, (len(wrong),), generator=generator)
    noisy = targets.clone()
    noisy[wrong] = (targets[wrong] + shift) % classes
    return noisy
