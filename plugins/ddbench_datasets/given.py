"""Images to decode that others have listed: torchvision's files, rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddbench import Store
from ddbench_datasets import store
from ddbench_datasets.places import Place

if TYPE_CHECKING:
    from ddbench_datasets.building import Plan


@dataclass
class Given:
    """Images by name, in the order in which they are read; ``place`` finds one, ``bytes_each`` is about its size."""

    listed: Sequence[str]
    place: Callable[[str], Place]
    bytes_each: int = 0
    ignored: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return list(self.listed)

    def identity(self) -> Any:
        return None

    def size(self, name: str) -> int:
        return self.bytes_each

    def order(self, names: Sequence[str]) -> list[int]:
        return list(range(len(names)))

    def places(self, names: Sequence[str]) -> Iterator[Place]:
        return (self.place(name) for name in names)


def decoded(
    identity: Any,
    given: Callable[[], tuple[Given, dict[str, Any]]],
    *,
    channels: str,
    size: int | None,
    mend: str,
    stretch: bool = False,
    ground: str = "drop",
) -> tuple[Store, dict[str, Any]]:
    """The images of ``given()``, decoded once per ``identity`` (JSON), and what it says about them.

    ``mend`` is what to do about images that cannot be decoded; ``ground`` shows through transparent parts.
    """

    def plan() -> Plan:
        from ddbench_datasets.building import Plan

        images, about = given()
        return Plan(images, images.names(), channels, size, False, identity, about, mend, stretch, ground)

    return store.decoded(identity, plan)
