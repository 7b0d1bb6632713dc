"""From image files to the parts of a dataset: what is chosen is decoded once, and what is broken told or left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddbench import DataError, Pixels, report
from ddbench_datasets import store
from ddbench_datasets.building import Plan, refusal
from ddbench_datasets.common import Choices, Chosen, choose, halves
from ddbench_datasets.layout import Layout, listed, targets
from ddbench_datasets.sources import Files


@dataclass(frozen=True)
class Collection:
    """Image files that lie in classes: ``content`` (JSON) stands for all of their bytes, ``origin`` for the place.

    ``arrange`` lists them; it is only called when they have not been decoded yet.
    """

    files: Files
    content: Any
    origin: str
    arrange: Callable[[], Layout]
    size: int | None
    channels: str
    skip_broken: bool

    def identity(self, options: Choices) -> dict[str, Any]:
        """Everything that decides the decoded pixels."""
        return {"format": 2, "content": self.content, **self._decided(options)}

    def missing(self, options: Choices) -> str | None:
        """What ``load`` has to do first, in one sentence, if anything."""
        return None if store.there(self.identity(options)) else f"the images of {self.origin} have to be decoded, once"

    def _decided(self, options: Choices) -> dict[str, Any]:
        chosen = {"classes": options.classes, "imbalance": options.imbalance, "limit": options.limit}
        return {"pillow": store.pillow(), "size": self.size, "channels": self.channels, **chosen}

    def load(self, options: Choices) -> tuple[Chosen, Pixels, Pixels, dict[str, Any]]:
        """What the options choose, the pixels of both parts, and facts about them."""
        images, about = store.decoded(self.identity(options), lambda: self._plan(options))
        train, test = (targets(about[part]) for part in ("train", "test"))
        chosen = choose(options, tuple(about["classes"]), train, test)
        facts = dict(about["notes"])
        kept = torch.ones(len(images.array), dtype=torch.bool)
        if broken := about["broken"]:
            if not self.skip_broken:
                raise DataError(refusal([(name, reason) for _, name, reason in broken], len(kept)))
            names = [name for _, name, _ in broken]
            report("skipped broken images", len(names), len(kept), files=listed(names))
            facts["skipped"] = f"{len(names)} of {len(kept)} images, which cannot be decoded: {listed(names)}"
            kept[[row for row, _, _ in broken]] = False
            chosen = _without(chosen, kept)
        return chosen, *halves(images, torch.nonzero(kept).flatten(), len(chosen.train)), facts

    def _plan(self, options: Choices) -> Plan:
        layout = self.arrange()
        parts = (layout.train, layout.test)
        counts = [[len(names) for names in part] for part in parts]
        chosen = choose(options, layout.classes, *(targets(numbers) for numbers in counts))
        train, test = ([name for names in part for name in names] for part in parts)
        names = [train[row] for row in chosen.train.tolist()] + [test[row] for row in chosen.test.tolist()]
        about = {"classes": layout.classes, "train": counts[0], "test": counts[1], "notes": layout.notes}
        origin = [self.origin, self._decided(options)]
        return Plan(self.files, names, self.channels, self.size, self.skip_broken, origin, about)


def _without(chosen: Chosen, kept: torch.Tensor) -> Chosen:
    """``chosen`` without the images, train ones first, that are not ``kept``."""
    train, test = kept[: len(chosen.train)], kept[len(chosen.train) :]
    fewer = replace(
        chosen,
        train=chosen.train[train],
        train_targets=chosen.train_targets[train],
        test=chosen.test[test],
        test_targets=chosen.test_targets[test],
    )
    for part, left in (("train", fewer.train_targets), ("test", fewer.test_targets)):
        counts = left.bincount(minlength=len(chosen.classes)).tolist()
        if empty := [name for name, count in zip(chosen.classes, counts, strict=True) if not count]:
            raise DataError(f"all {part} images of {listed(empty)} are broken; replace them, or leave out the class")
    return fewer
