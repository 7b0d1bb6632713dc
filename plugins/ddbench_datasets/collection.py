"""From image files to the parts of a dataset: what is chosen is decoded once, and what is broken told or left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ddbench import DataError, Pixels, Store, report
from ddbench_datasets import store
from ddbench_datasets.building import Plan, refusal
from ddbench_datasets.common import Choices, Chosen, choose
from ddbench_datasets.layout import Layout, targets
from ddbench_datasets.left import listed
from ddbench_datasets.sources import Files

PARTS = ("train", "test", "validation")  # in the order of their rows


class Elsewhere(Protocol):
    """Another place with decoded images, or with what they are decoded from."""

    def bring(self, decided: dict[str, Any], *, skip_broken: bool) -> tuple[Store, dict[str, Any]]:
        """The images on this machine; ``decided`` are the options that decide the pixels."""
        ...

    def missing(self, decided: dict[str, Any]) -> str | None:
        """What that takes, in one sentence, if anything."""
        ...


@dataclass(frozen=True)
class Collection:
    """Image files that lie in classes: ``content`` (JSON) stands for all of their bytes, ``origin`` for the place.

    ``arrange`` lists them; it is only called when they have not been decoded yet. ``ground`` shows through transparent
    parts; ``more`` (JSON) are options that decide the pixels and are not at their defaults.
    """

    files: Files
    content: Any
    origin: str
    arrange: Callable[[], Layout]
    size: int | None
    channels: str
    skip_broken: bool
    ground: str = "drop"
    more: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Elsewhere | None = None  # what brings decoded images from another place

    def identity(self, options: Choices) -> dict[str, Any]:
        """Everything that decides the decoded pixels."""
        return {"format": 2, "content": self.content, **self.decided(options)}

    def missing(self, options: Choices) -> str | None:
        """What ``load`` has to do first, in one sentence, if anything."""
        if self.elsewhere is not None:
            return self.elsewhere.missing(self.decided(options))
        return None if store.there(self.identity(options)) else f"the images of {self.origin} have to be decoded, once"

    def decided(self, options: Choices) -> dict[str, Any]:
        """The options that decide the decoded pixels."""
        chosen = {"classes": options.classes, "imbalance": options.imbalance, "limit": options.limit}
        return {"pillow": store.pillow(), "size": self.size, "channels": self.channels, **chosen, **self.more}

    def load(self, options: Choices) -> tuple[Chosen, list[Pixels], dict[str, Any]]:
        """What the options choose, the pixels of the parts (train, test, validation), and facts about them."""
        if self.elsewhere is not None:
            images, about = self.elsewhere.bring(self.decided(options), skip_broken=self.skip_broken)
        else:
            images, about = store.decoded(self.identity(options), lambda: self._plan(options))
        chosen = choose(options, tuple(about["classes"]), *(targets(about.get(part, ())) for part in PARTS))
        facts = dict(about["notes"])
        if through := about["transparent"]:
            total = len(images.array)
            facts["transparent"] = f"{through} of {total} images have transparent parts, shown on {self.ground}"
        kept = torch.ones(len(images.array), dtype=torch.bool)
        if broken := about["broken"]:
            if not self.skip_broken:
                raise DataError(refusal([(name, reason) for _, name, reason in broken], len(kept)))
            names = [name for _, name, _ in broken]
            report("skipped broken images", len(names), len(kept), files=listed(names))
            facts["skipped"] = f"{len(names)} of {len(kept)} images, which cannot be decoded: {listed(names)}"
            kept[[row for row, _, _ in broken]] = False
            chosen = _without(chosen, kept)
        rows = torch.nonzero(kept).flatten().split([len(getattr(chosen, part)) for part in PARTS])
        return chosen, [Pixels(images, part) for part in rows], facts

    def _plan(self, options: Choices) -> Plan:
        layout = self.arrange()
        parts = {part: side for part in PARTS if (side := getattr(layout, part))}
        counts = {part: [len(names) for names in side] for part, side in parts.items()}
        chosen = choose(options, layout.classes, *(targets(numbers) for numbers in counts.values()))
        names = []
        for part, side in parts.items():
            held = [name for of_class in side for name in of_class]
            names += [held[row] for row in getattr(chosen, part).tolist()]
        about = {"classes": layout.classes, **counts, "notes": layout.notes}
        origin = [self.origin, self.decided(options)]
        return Plan(self.files, names, self.channels, self.size, self.skip_broken, origin, about, ground=self.ground)


def _without(chosen: Chosen, kept: torch.Tensor) -> Chosen:
    """``chosen`` without the images, part by part, that are not ``kept``."""
    sizes = [len(getattr(chosen, part)) for part in PARTS]
    for part, whole in zip(PARTS, kept.split(sizes), strict=True):
        rows, labels = getattr(chosen, part)[whole], getattr(chosen, f"{part}_targets")[whole]
        counts = labels.bincount(minlength=len(chosen.classes)).tolist()
        if len(whole) and (empty := [c for c, count in zip(chosen.classes, counts, strict=True) if not count]):
            raise DataError(f"all {part} images of {listed(empty)} are broken; replace them, or leave out the class")
        chosen = replace(chosen, **{part: rows, f"{part}_targets": labels})
    return chosen
