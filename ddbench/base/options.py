"""Frozen dataclasses as records: to JSON and back, with validation that their authors need not write."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from ddbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Removed:
    """An option that earlier versions had, or a value of one: its default, why it is gone, and the last such version.

    A class names them in ``removed_options``, by ``option`` or ``option=value``.
    """

    default: Any
    why: str
    last: str = "0.1.0 (7925e25a9d)"


def without_removed(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """``values`` without options that are removed and stand at what was their default; any other value is refused."""
    removed: dict[str, Removed] = getattr(cls, "removed_options", {})
    kept = {}
    for name, value in values.items():
        gone = removed.get(name) or removed.get(f"{name}={value}")
        if gone is None:
            kept[name] = value
        elif f"{name}={value}" in removed or str(value).lower() != str(gone.default).lower():
            raise UsageError(
                f"{where}.{name}={value} is no longer there ({gone.why}); ddbench {gone.last} was the last that had it"
            )
    return kept


def options(record: Any) -> dict[str, Any]:
    """The fields of a dataclass instance as JSON values; nested records become dictionaries."""
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def describe(record: Any, given: Callable[[Any], dict[str, Any]] = options) -> dict[str, Any]:
    """The name and options of a plugin's object: what it is, whole, or only its :func:`changed` options."""
    return {"name": record.name, "options": given(record)}


def changed(record: Any) -> dict[str, Any]:
    """The fields that differ from their defaults, as JSON: what keys are digests of.

    Fields that a later version adds at their defaults then rename nothing. Changing a default changes what an old
    key means, and so needs a new TRAINER_VERSION, or version of a protocol.
    """
    kept = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if dataclasses.is_dataclass(value) or value != f.default:
            kept[f.name] = _plain(value)
    return kept


def label(record: Any) -> str:
    """The name with the options that differ from their defaults: ``convnet(width=32)``."""
    changed = [
        f"{f.name}={getattr(record, f.name)}"
        for f in dataclasses.fields(record)
        if getattr(record, f.name) != f.default
    ]
    return f"{record.name}({','.join(changed)})" if changed else record.name


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return options(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def make(cls: type[_T], values: dict[str, Any], where: str) -> _T:
    """Build a dataclass from ``values`` (text or JSON), checking names, types and bounds.

    ``where`` names the group in messages (``matcher``). Raises UsageError with the valid options.
    """
    from pydantic import ValidationError

    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = without_removed(cls, values, where)
    for name in values:
        if name not in names:
            hint = did_you_mean(name, names)
            valid = ", ".join(names) or "none"
            raise UsageError(f"{where} has no option {name!r}{hint} (valid options: {valid})")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}.{name} must be a finite number, got {value}")
    adapter, hints = _reader(cls)
    try:
        return adapter.validate_python({k: _read(v, hints[k]) for k, v in values.items()})
    except ValidationError as error:
        first, *others = error.errors()
        among = [e for e in others if e["loc"][:1] == first["loc"][:1]]  # what each member of a union says
        name = ".".join(str(part) for part in (first["loc"][:1] if among else first["loc"]))
        message = ", or ".join(dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in (first, *among)))
        shown = f", got {first['input']!r}" if name else ""
        raise UsageError(f"{where}.{name}: {message}{shown}".replace(".:", ":")) from error


@lru_cache(maxsize=256)  # pydantic takes milliseconds to understand a class, and a run is made of dozens
def _reader(cls: type[_T]) -> tuple[TypeAdapter[_T], dict[str, Any]]:
    """What builds a dataclass from checked values, and the types of its fields."""
    from pydantic import ConfigDict, TypeAdapter

    if "__pydantic_config__" not in cls.__dict__:
        cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return TypeAdapter(cls), get_type_hints(cls)


# of a list: quoted, or as it is up to a comma that stands in no brackets
_PART = re.compile(r"""\s*(?:"((?:[^"]|"")+)"\s*(?=,|$)|((?:\([^()]*\)|[^,])+))""")


def _read(value: Any, hint: Any) -> Any:
    """Text from the command line: 'none' where None is allowed, lists divided at commas; the rest is pydantic's.

    A part of a list that has a comma in it, or spaces at its ends, stands in double quotes, as in CSV; commas in
    brackets, as in ``convnet(width=16,depth=2)``, divide nothing.
    """
    if not isinstance(value, str):
        return value
    members = {hint, *get_args(hint)}
    if value.lower() in {"none", "null"} and type(None) in members:
        return None
    if any((get_origin(m) or m) in (list, tuple) for m in members):
        return [
            quoted.replace('""', '"') or plain.strip()
            for quoted, plain in _PART.findall(value)
            if quoted or plain.strip()
        ]
    return value


def option_text(value: Any) -> str:
    """A value as ``-o`` reads it; of a list, what commas, quotes and spaces would change stands in double quotes."""
    if isinstance(value, (list, tuple)):
        return ",".join(_part(option_text(part), alone=len(value) == 1) for part in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _part(text: str, *, alone: bool) -> str:
    """A part of a list; ``none`` alone would be read as no list."""
    plain = text == text.strip() and "," not in text and not text.startswith('"')
    return text if plain and not (alone and text.lower() in ("none", "null")) else '"' + text.replace('"', '""') + '"'
