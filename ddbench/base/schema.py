"""What every record of a file is checked by: models that do not change, and types with bounds.

A model says which fields a JSON or TOML document has; the types say how long a text, how large a number and of which
letters a name may be. ``require_bounded`` holds for all the rest of a document, which a newer version may have added.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from ddbench.base.cache import read_json
from ddbench.errors import DamagedError, DataError

RECORD_BYTES = 8_000_000  # of a JSON file; the largest on file has 0.2 MB
LARGEST = 1e100  # of a number: its square is still one
LONGEST = 100_000  # of a text: the error of a plugin may be long


def number(value: object) -> float:
    """A finite number as it is, whole or not. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("should be a number")
    if not (abs(value) <= LARGEST and isfinite(value)):
        raise ValueError(f"should be a number of at most {LARGEST:g}")
    return value


def _fraction(value: object) -> float:
    if not 0 <= number(value) <= 1:
        raise ValueError("should be a number from 0 to 1")
    return number(value)


Number = Annotated[float, PlainValidator(number)]  # whole numbers stay whole, so that what is read is what was written
Fraction = Annotated[float, PlainValidator(_fraction)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
# No letter of a name leads to another folder, and no first one hides a file or is an option of a command.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
Digest = Annotated[str, Field(max_length=128)]  # compared, shown, and never a part of a path
Text = Annotated[str, Field(max_length=LONGEST)]


def require_bounded(value: Any) -> None:
    """Refuse a document with numbers or texts beyond all bounds, by ValueError with the reason."""
    level = [value]
    while level:
        for part in level:
            if isinstance(part, str):
                if len(part) > LONGEST:
                    raise ValueError(f"a text of {len(part):,} letters, where {LONGEST:,} are the most")
                _ = part.encode()  # a ValueError for half a surrogate pair, which JSON can hold
            if isinstance(part, (int, float)) and not isinstance(part, bool):
                number(part)
        level = [
            inner
            for whole in level
            if isinstance(whole, (dict, list))
            for inner in ([*whole, *whole.values()] if isinstance(whole, dict) else whole)
        ]


class Held(BaseModel):
    """Something read from a file. It does not change, and holds whatever else the file held."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """What a JSON file holds. Raises DataError for one that is missing or damaged."""
        way = "restore it, or delete its folder" if path.name == "spec.json" else "delete it to have it made again"
        try:
            held = read_json(path, RECORD_BYTES)
        except DamagedError as error:
            raise DamagedError(f"{str(error).rpartition(';')[0]}; {way}") from error
        return cls.checked(held, f"{path} is damaged ({{}}); {way}")

    @classmethod
    def checked(cls, value: object, complaint: str) -> Self:
        """The same of a value; ``complaint`` is the sentence of the DataError, with braces for what is wrong."""
        try:
            made = cls.model_validate(value)
            require_bounded(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])[:200]
            said = first["msg"].removeprefix("Value error, ")
            raise DataError(_filled(complaint, f"{place}: {said}" if place else said)) from error
        except ValueError as error:
            raise DataError(_filled(complaint, str(error))) from error
        return made

    def json_value(self) -> dict[str, Any]:
        """What it was read from, to the last digit: defaults are not filled in."""
        return self.model_dump(exclude_unset=True)


def _filled(complaint: str, reason: str) -> str:
    """The sentence with its reason; a path in it may have braces, too."""
    head, _, tail = complaint.rpartition("{}")
    return f"{head}{reason}{tail}"
