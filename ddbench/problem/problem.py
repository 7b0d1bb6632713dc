"""Problem: what a matcher is asked to solve. A scheduler restates it; it never touches the matcher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddbench.base.seeds import Seed
from ddbench.data.augment import DSA, strategy
from ddbench.data.dataset import Examples, RealData
from ddbench.errors import DDBenchError, UsageError
from ddbench.problem.decode import IDENTITY, Decoder
from ddbench.problem.experts import Experts
from ddbench.problem.starts import Starts
from ddbench.problem.synthetic import Curriculum, Teacher
from ddbench.train.fit import Recipe
from ddbench.train.network import Network
from ddbench.train.source import NetworkSource


@dataclass(frozen=True)
class Needs:
    """What a matcher wants made before ``init``: ``experts`` trajectories with these ``snapshots``.

    ``recipe`` replaces the run's expert recipe (flat experts, say); None keeps it. ``teachers`` are networks trained
    on the real data to the end, from initialisations that no stage has taught: of another architecture when
    ``teacher_network`` (a network source) is given, by the recipe ``teacher_recipe``, which counts epochs. Of several
    network sources in a tuple (:func:`ddbench.networks_named` makes one of their names) each has ``teachers`` networks.
    """

    experts: int = 0
    snapshots: tuple[int, ...] = ()
    recipe: Recipe | None = None
    teachers: int = 0
    teacher_network: NetworkSource | tuple[NetworkSource, ...] | None = None
    teacher_recipe: Recipe | None = None

    def architectures(self, own: NetworkSource) -> tuple[NetworkSource, ...]:
        """What teachers are built by, ``own`` where nothing else is asked for; none where no teacher is wanted."""
        if not self.teachers:
            return ()
        asked = self.teacher_network or own
        return asked if isinstance(asked, tuple) else (asked,)


def state_bytes(images: int, image: int, classes: int, moments: int = 1) -> int:
    """Images with their momentum (two moments for Adam), and labels, in float32; ``image``: values of one image."""
    return 4 * images * ((1 + moments) * image + classes)


@dataclass(frozen=True)
class Memory:
    """Bytes that a matcher takes on the device: its ``state``, and the peak of an ``iteration`` where that is known."""

    state: int
    iteration: int | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """ "Make ``ipc`` images per class of ``real``, for networks drawn from ``starts``, given ``frozen``."

    It has no test split and no validation split: a matcher cannot choose images by their accuracy.
    ``workspace`` is for derived things worth keeping between steps; it is never saved or compared.
    """

    real: RealData
    ipc: int
    starts: Starts
    expert_recipe: Recipe
    augment: str
    seed: Seed
    frozen: Curriculum = field(default_factory=Curriculum)
    decoder: Decoder = IDENTITY
    teachers: tuple[Experts, ...] = ()  # one of each architecture
    workspace: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> Network:
        return self.starts.network

    @property
    def classes(self) -> int:
        return self.real.classes

    @property
    def dsa(self) -> DSA:
        """The augmentation that keeps this dataset's labels valid."""
        return DSA(self.augment)

    def strategy(self, asked: str) -> DSA:
        """The augmentation that an option asks for, where ``dataset`` stands for the dataset's own."""
        return DSA(strategy(asked, self.augment))

    @cached_property
    def experts(self) -> Experts:
        """Trajectories on the real data from these starts; changed starts are other experts."""
        return Experts(self.starts, self.real, self.expert_recipe)

    def state_bytes(self, moments: int = 1) -> int:
        """What ``ipc`` stored images per class take with their labels and ``moments`` of an outer optimiser."""
        return state_bytes(self.ipc * self.classes, math.prod(self.real.shape), self.classes, moments)

    @property
    def shown(self) -> int:
        """Decoded images per class: what a student sees of the ``ipc`` that are stored."""
        return self.ipc * self.decoder.copies

    def teacher(self, index: int) -> Teacher:
        """Trained network ``index`` of those that :class:`Needs` asked for as ``teachers``.

        Of several architectures: the first network of each, in their order, then the second of each, and so on.
        """
        if not self.teachers:
            raise DDBenchError("a matcher that reads problem.teacher must ask for teachers in needs()")
        made = self.teachers[index % len(self.teachers)]
        vector = made.snapshot(index // len(self.teachers), made.recipe.epochs or 0)
        return Teacher(made.starts.network.source, vector)

    def sample(self) -> Examples:
        """``ipc`` stored images per class with hard labels, in class order: real ones that no earlier stage drew.

        Under a decoder each is packed from several. A function of the run's seed alone: stage by stage, the same
        images as one stage would draw.
        """
        before = sum(len(s) * s.decoder.copies for s in self.frozen.sets) // self.classes
        if before + self.shown > self.real.smallest_class:
            packed = "" if self.decoder.factor == 1 else " (images packed into those that are stored)"
            raise UsageError(
                f"ipc {before + self.shown} asked for{packed}, but the smallest class has "
                f"{self.real.smallest_class} training images; choose a smaller --ipc"
            )
        generator = torch.Generator().manual_seed((self.seed / "sample").integer)
        chosen = [
            members[torch.randperm(len(members), generator=generator)[before : before + self.shown]]
            for members in self.real.members
        ]
        return self.pack(torch.cat(chosen))

    def pack(self, index: Tensor) -> Examples:
        """The real images ``index`` ``(classes shown,)``, class after class, as stored ones with hard labels."""
        chosen = self.real[index]
        return Examples(self.decoder.pack(chosen.images), chosen.labels[:: self.decoder.copies])
