"""What a ``board.toml`` may hold."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ddbench.base.schema import Count, Digest, Held, Text, Whole
from ddbench.boards.race import Race
from ddbench.results.differences import SEEDS_FOR_BEST
from ddbench.run.record import Described


def _once(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("should be numbers, none of them twice")
    return values


Once = AfterValidator(_once)


class Rule(Described):
    """A plugin or a protocol that a board prescribes."""

    model_config = ConfigDict(extra="forbid")


class Digested(Rule):
    """One that is known by its digest. Of data, ``classes`` and ``shape`` (c, h, w) say what a budget is."""

    digest: Digest
    classes: Count | None = None
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None


class Rules(Held):
    """``board.toml``."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(min_length=1, max_length=300)]
    dataset: Digested
    network: Rule
    protocol: Digested
    ipc: Annotated[list[Count], Field(min_length=1, max_length=100), Once]
    students: Count
    seeds: Annotated[list[Whole], Field(min_length=1, max_length=1000), Once]
    mark_seeds: Annotated[int, Field(ge=SEEDS_FOR_BEST, le=1000)] = SEEDS_FOR_BEST
    about: Text = ""
    race: Race | None = None  # where entries are ranked by seconds
    fewer_seeds: dict[str, Annotated[list[Whole], Field(min_length=1, max_length=1000), Once]] = Field(default={})

    @model_validator(mode="after")
    def _has_its_ipcs(self) -> Self:
        if odd := sorted({*self.fewer_seeds} - {*map(str, self.ipc)}):
            raise ValueError(f"fewer_seeds says the seeds of an ipc of the board, and {odd[0]!r} is none")
        return self
