"""What stands in files of suites and runs: tables, counts, words. Each is refused in a sentence that says where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ddbench.base.opening import parse_toml, read_text
from ddbench.base.schema import RECORD_BYTES, require_bounded
from ddbench.errors import UsageError, did_you_mean


def table_of(path: Path) -> dict[str, Any]:
    try:
        held = parse_toml(read_text(path, RECORD_BYTES))
        require_bounded(held)
        return held
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def known_keys(given: Any, valid: tuple[str, ...], where: str) -> None:
    if not isinstance(given, dict):
        raise UsageError(f"{where} must be a table, got {given!r}")
    for name in given:
        if name not in valid:
            raise UsageError(f"{where} has no key {name!r}{did_you_mean(name, valid)} (valid ones: {', '.join(valid)})")


def count_of(given: dict[str, Any], name: str, usual: int, path: Path) -> int:
    value = given.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} of {path} must be a number from 1, got {value!r}")
    return value


def word(given: dict[str, Any], name: str, usual: str, where: object) -> str:
    value = given.get(name, usual)
    if not isinstance(value, str) or len(value) > 300:
        raise UsageError(f"{name} of {where} must be a text of at most 300 letters")
    return value


def trackers(given: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = given.get("tracker", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'tracker of {path} must be a name or a list of names, such as "tensorboard", got {names!r}')
    return tuple(names)


def gpus_of(given: dict[str, Any], where: str) -> float | None:
    """``gpus``: whole ones, or the part of one that a cell takes; None where it does not say."""
    value = given.get("gpus")
    if value is None:
        return None
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or not (0 < value <= 1):
        raise UsageError(
            f"gpus of {where} must be the part of one GPU that a cell takes, such as 0.25, or 1 for a whole one, got "
            f"{value!r}"
        )
    return float(value)
