"""ImageNet from another place by its URL: prepared images, copied once, or shards, each read once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ddbench import DataError, Store, UsageError
from ddbench_datasets import remote, shards, store
from ddbench_datasets.common import Choices
from ddbench_datasets.remote import ABOUT, Remote
from ddbench_datasets.store import Made

CLASSES = "classes.txt"  # beside shards: the WordNet numbers of their classes, one a line
USUAL = 1000  # classes of shards without that file


@dataclass(frozen=True)
class Bucket:
    """A URL with a prepared store, or with shards."""

    remote: Remote

    @cached_property
    def _names(self) -> dict[str, int]:
        return self.remote.names()

    @property
    def _prepared(self) -> bool:
        return ABOUT in self._names

    @cached_property
    def _about(self) -> dict[str, Any]:
        try:
            found = json.loads(self.remote.text(ABOUT))
            return {"classes": list(found["classes"]), "identity": dict(found["identity"])}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{ABOUT} of {self.remote.url} is damaged ({error!r}); copy the prepared images anew"
            ) from error

    def classes(self) -> list[str]:
        """The numbers of the classes, in their order."""
        if self._prepared:
            return self._about["classes"]
        return self.remote.text(CLASSES).split() if CLASSES in self._names else [f"{i:04}" for i in range(USUAL)]

    def bring(self, decided: dict[str, Any], *, skip_broken: bool) -> tuple[Store, dict[str, Any]]:
        """All images, and what is known of them. Raises UsageError for options that would need others."""
        self._check(decided)
        array, about = self._made(decided, skip_broken=skip_broken)
        return Store(torch.from_numpy(array), about["content"]), about

    def missing(self, decided: dict[str, Any]) -> str | None:
        """What is to be brought first."""
        self._check(decided)
        identity = self._about["identity"] if self._prepared else shards.identity_of(self.remote, decided)
        if store.there(identity):
            return None
        size = sum(size for name, size in self._names.items() if name.endswith((".npy", ".tar"))) / 1e9
        how = "copied" if self._prepared else "read and decoded"
        return f"the {size:.3g} GB of {self.remote.url} have to be {how}, once"

    def _made(self, decided: dict[str, Any], *, skip_broken: bool) -> Made:
        if self._prepared:
            return remote.copied(self.remote)
        return shards.streamed(self.remote, tuple(self.classes()), decided, decided["size"], skip_broken)

    def _check(self, decided: dict[str, Any]) -> None:
        plain = {"classes": None, "imbalance": Choices.imbalance, "limit": None}
        held = self._about["identity"] if self._prepared else decided | plain
        for name, asked in decided.items():
            if name != "pillow" and held.get(name) != asked:
                raise UsageError(
                    f"the images at {self.remote.url} are those of dataset.{name}={_shown(held.get(name))}, and "
                    f"{_shown(asked)} is asked for; prepare them so, or leave the option out"
                )


def _shown(value: Any) -> str:
    return "none" if value is None else ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
