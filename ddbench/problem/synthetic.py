"""Synthetic sets, and the order in which a student learns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import digest
from ddbench.base.code import foreign_code
from ddbench.data.dataset import Examples
from ddbench.errors import UsageError
from ddbench.problem.decode import IDENTITY, Decoder
from ddbench.train.network import Network
from ddbench.train.source import NetworkSource

OUT_OF_RANGE = 1e4  # pixels are of the order of 1; such ones come of a distillation that diverged
LABEL_KINDS = ("probability", "logit", "real")


def share(total: int, parts: int, index: int) -> int:
    """The size of part ``index`` when ``total`` is divided into ``parts`` as evenly as possible."""
    if total < parts:
        raise UsageError(f"{total} cannot be divided into {parts} parts of at least one; ask for {parts} or more")
    return total // parts + (index < total % parts)


def first_with(index: int, phases: Sequence[tuple[int, ...]]) -> int:
    """The first of the phases in which students see set ``index``."""
    return next(place for place, phase in enumerate(phases) if index in phase)


def targets(labels: Tensor, kind: str) -> Tensor:
    """What the soft cross-entropy is taken against: logits pass through a softmax, the rest as they are."""
    return labels.softmax(1) if kind == "logit" else labels


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that labels images: the source of its architecture, and its ``vector`` ``(p,)``.

    ``others`` label together with it, of the same architecture or of others: ``logits`` are the mean over all.
    """

    source: NetworkSource
    vector: Tensor
    others: tuple[Teacher, ...] = ()

    @property
    def members(self) -> tuple[Teacher, ...]:
        """It and the others, each alone."""
        return (replace(self, others=()), *self.others) if self.others else (self,)

    def network(self, shape: tuple[int, int, int], classes: int) -> Network:
        """Its architecture for images of ``shape``, on the device where the vector is."""
        return Network(self.source, shape, classes, self.vector.device)

    @torch.no_grad()
    def logits(self, images: Tensor, classes: int, batch: int = 256) -> Tensor:
        """``(n, classes)`` for images ``(n, c, h, w)``, in evaluation mode, ``batch`` at a time."""
        if self.others:
            return torch.stack([member.logits(images, classes, batch) for member in self.members]).mean(0)
        c, h, w = images.shape[1:]
        network = self.network((c, h, w), classes)
        return torch.cat([network.apply(self.vector, part, train=False) for part in images.split(batch)])

    def detached(self, device: torch.device | str | None = None) -> Teacher:
        """A copy that shares no memory with the original, without gradients."""
        vector = self.vector.detach()
        others = tuple(other.detached(device) for other in self.others)
        return Teacher(self.source, vector.to(device or vector.device, copy=True), others)


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """What a matcher makes: images ``(n, c, h, w)``, labels ``(n, k)``, and how to learn from them.

    ``label_kind`` says what the labels mean: probabilities (one-hot included), logits, or real values, which
    students learn by squared error. ``lr`` is the student learning rate that the method learned or recommends; None
    leaves it to the protocol. ``label_type`` is the word shown in tables (hard, teacher, learned).
    ``decoder`` makes training images of the stored ones; the harness fills in the run's. ``teacher`` is for
    protocols that label every batch anew; under all others the stored labels count.
    """

    images: Tensor
    labels: Tensor
    lr: float | None = None
    label_kind: str = "probability"
    label_type: str = "hard"
    decoder: Decoder = IDENTITY
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.ndim != 2 or len(self.images) != len(self.labels):
            raise UsageError(
                f"a synthetic set needs images (n, c, h, w) and labels (n, k), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        if self.label_kind not in LABEL_KINDS:
            raise UsageError(f"label_kind {self.label_kind!r} is none of {', '.join(LABEL_KINDS)}")

    def __len__(self) -> int:
        return len(self.images)

    def examples(self) -> Examples:
        """Images, decoded, with the targets that a student is trained on."""
        labels = self.decoder.labels(targets(self.labels, self.label_kind))
        return Examples(self.decoder(self.images), labels)

    def detached(self, device: torch.device | str | None = None) -> SyntheticSet:
        """A copy that shares no memory with the original, without gradients."""
        copies: dict[str, Any] = {
            "images": self.images.detach().to(device or self.images.device, copy=True),
            "labels": self.labels.detach().to(device or self.labels.device, copy=True),
        }
        if self.teacher is not None:
            copies["teacher"] = self.teacher.detached(device)
        return replace(self, **copies)

    def finite(self) -> bool:
        numbers = bool(torch.isfinite(self.images).all() & torch.isfinite(self.labels).all())
        return numbers and (self.lr is None or 0 < self.lr < float("inf"))

    @property
    def image_bytes(self) -> int:
        return self.images.numel() * self.images.element_size()

    @property
    def label_bytes(self) -> int:
        """Hard labels cost one byte or two each (a class number); soft ones cost what is stored.

        A teacher that protocols with online labels need is not counted here: see ``teacher_bytes``.
        """
        if self.label_type == "hard":
            return len(self.labels) * (1 if self.labels.shape[1] <= 256 else 2)
        return self.labels.numel() * self.labels.element_size()

    @property
    def teacher_bytes(self) -> int:
        """What the teacher takes, which must be there wherever labels are made while students train."""
        return sum(vector.numel() * vector.element_size() for vector in self._vectors)

    @property
    def _vectors(self) -> list[Tensor]:
        """The vector of each network of the teacher."""
        return [] if self.teacher is None else [member.vector for member in self.teacher.members]

    @cached_property
    def digest(self) -> str:
        tensors = [self.images, self.labels, *self._vectors]
        arrays = [digest(t.detach().cpu().contiguous().numpy().tobytes()) for t in tensors]
        decoded = [] if self.decoder.factor == 1 else [self.decoder.factor]
        return digest([list(self.images.shape), self.lr, self.label_kind, *arrays, *decoded])


@dataclass(frozen=True, eq=False)
class Curriculum:
    """Disjoint sets, and for each phase of a student's training which of them it sees."""

    sets: tuple[SyntheticSet, ...] = ()
    phases: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.sets)

    def phase(self, index: int) -> Examples:
        """The examples of one phase, in the order of the sets."""
        return _joined([self.sets[i] for i in self.phases[index]])

    def at(self, lr: float) -> Curriculum:
        """The same sets, learned at one student learning rate."""
        return replace(self, sets=tuple(replace(s, lr=lr) for s in self.sets))

    def lr(self, index: int) -> float | None:
        """The student learning rate of a phase: that of the newest set in it."""
        return self.sets[max(self.phases[index])].lr

    def of_class(self, label: int, classes: int) -> Tensor | None:
        """The decoded images ``(m, c, h, w)`` of a class in all sets, which are ordered by class; None without sets."""
        parts = []
        for s in self.sets:
            per_class = len(s) // classes
            parts.append(s.decoder(s.images[label * per_class : (label + 1) * per_class]))
        return torch.cat(parts) if parts else None

    def identity(self, phases: int) -> list[object]:
        """What the first ``phases`` phases depend on, as JSON: the key of a lesson."""
        used = self.phases[:phases]
        return [[list(p) for p in used], [self.sets[i].digest for i in sorted({i for p in used for i in p})]]

    @property
    def code(self) -> dict[str, str]:
        """The digests of the third-party source of the sets' teachers, by module."""
        teachers = [member for s in self.sets if s.teacher is not None for member in s.teacher.members]
        return {name: value for t in teachers for name, value in foreign_code(type(t.source)).items()}

    @cached_property
    def frozen_examples(self) -> Examples | None:
        """All sets together, stage by stage."""
        return _joined(self.sets) if self.sets else None

    def pool(self, images: Tensor, labels: Tensor) -> Pool:
        """An index over the frozen sets followed by new images with their targets."""
        return Pool(Examples(images, labels), self.frozen_examples)


def _joined(sets: Sequence[SyntheticSet]) -> Examples:
    parts = [s.examples() for s in sets]
    if len(parts) == 1:
        return parts[0]  # no copy: it may be gigabytes
    return Examples(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))


@dataclass(frozen=True, eq=False)
class Pool:
    """Student batches from frozen and new examples, without joining the two.

    Rows 0..f-1 are frozen, rows f..f+n-1 are new. Only new rows receive gradients: ``scatter`` adds
    those of a batch to an accumulator shaped like the new rows, so nothing needs a mask.
    """

    new: Examples
    frozen: Examples | None = field(default=None)

    def __len__(self) -> int:
        return len(self.new) + (len(self.frozen) if self.frozen else 0)

    def __getitem__(self, index: Tensor) -> Examples:
        """The examples of ``index`` ``(b,)``, in that order."""
        if self.frozen is None:
            return self.new[self._there(index)]
        images = self.new.images.new_empty((len(index), *self.new.images.shape[1:]))
        labels = self.new.labels.new_empty((len(index), self.new.labels.shape[1]))
        offset, fresh = len(self.frozen), index >= len(self.frozen)
        for source, mask, first in ((self.new, fresh, offset), (self.frozen, ~fresh, 0)):
            places = torch.nonzero(mask).flatten()
            rows, places = self._there(index[places] - first), self._there(places)
            images[places], labels[places] = source.images[rows], source.labels[rows]
        return Examples(images, labels)

    def scatter(self, into: Tensor, index: Tensor, rows: Tensor) -> None:
        """``into[i] += rows`` for the new rows of ``index``; frozen rows are dropped."""
        if self.frozen is None:
            into.index_add_(0, self._there(index), rows)
            return
        places = torch.nonzero(index >= len(self.frozen)).flatten()
        into.index_add_(0, self._there(index[places] - len(self.frozen)), rows[self._there(places)])

    def _there(self, index: Tensor) -> Tensor:
        """Rows where the images are. As plans draw them they come from the CPU, and then nobody waits for a GPU."""
        return index.to(self.new.images.device, non_blocking=True)
