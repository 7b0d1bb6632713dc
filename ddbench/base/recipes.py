"""Recipes: hyperparameters that a plugin brings for situations, in a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

NAMES = ("fast", "paper")  # minutes on the device at hand, or as published
_MATCH = ("dataset", "ipc", "scheduler", "device")
_DEVICES = ("cpu", "cuda")  # of which an entry can have a table with what is other there
_RECORD = {"accuracy", "std", "n", "seconds", "device", "where"}


@dataclass(frozen=True)
class RecipeEntry:
    """Hyperparameters for a situation: ``match`` (dataset, ipc, scheduler, device) -> ``options`` by group.

    ``name`` says what they are for: ``paper`` as published, ``fast`` for minutes on the device at hand. ``record`` is
    a run on record, if there is one: ``accuracy`` and ``std`` (percent) of ``n`` students, ``seconds`` in all,
    ``device``, and ``where`` it is written down. ``shown_in`` names where runs are shown that took these settings, or,
    of a recipe that is not verified, a part of them: fewer images or iterations, a narrower network.
    """

    match: dict[str, Any]
    options: dict[str, dict[str, Any]]
    source: str
    verified: bool
    name: str = "paper"
    record: dict[str, Any] = field(default_factory=dict)
    shown_in: str = ""

    def fits(self, situation: dict[str, Any]) -> bool:
        """Whether every key of ``match`` holds; an ipc may be a number or a range [low, high]."""
        for key, wanted in self.match.items():
            value = situation.get(key)
            if isinstance(wanted, list) and key == "ipc":
                if not wanted[0] <= value <= wanted[1]:
                    return False
            elif value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    @property
    def ran(self) -> str:
        """Whether ddbench has run it: ``yes``, ``reduced`` or ``no``, and where that is on record."""
        where = self.record.get("where") or self.shown_in
        word = "yes" if self.verified or self.record else "reduced" if where else "no"
        return f"{word} ({where})" if where else word

    @property
    def datasets(self) -> list[str]:
        """The datasets that it was made for; none for all."""
        named = self.match.get("dataset", [])
        return named if isinstance(named, list) else [named]

    @property
    def place(self) -> str:
        """The datasets that it was made for, and the device if it was made for one, in words."""
        device = f" on {self.match['device']}" if "device" in self.match else ""
        return (", ".join(self.datasets) or "any") + device


def read(path: Path, name: str) -> tuple[RecipeEntry, ...]:
    """The entries of a TOML file that are for plugin ``name`` (or for all in the file).

    An entry's table ``cpu`` or ``cuda`` holds what is other there: options, the record, what else an entry has.
    """
    entries = _parsed(Path(path).read_text(encoding="utf-8"))["recipe"]
    own = [e for e in entries if e.get("name", name) == name]
    return tuple(_entry(form, path) for entry in own for form in _forms(entry))


def _forms(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """An entry as it is, and as it is on each device that it has a table for."""
    plain = {key: value for key, value in entry.items() if key not in _DEVICES}
    bare = {key: value for key, value in plain.items() if key != "record"}  # of a run with other options
    forms = [plain]
    for device in (name for name in _DEVICES if name in entry):
        other = {key: bare.get(key, {}) | v if isinstance(v, dict) else v for key, v in entry[device].items()}
        forms.append(bare | other | {"match": bare.get("match", {}) | {"device": device}})
    return forms


@lru_cache(maxsize=16)  # a file of several matchers is parsed once: half of what loading all plugins took
def _parsed(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def _entry(entry: dict[str, Any], path: Path) -> RecipeEntry:
    match, record = entry.get("match", {}), entry.get("record", {})
    options = {key: value for key, value in entry.items() if isinstance(value, dict) and key not in ("match", "record")}
    if unknown := set(match) - {*_MATCH}:
        raise ValueError(f"a recipe in {path} matches on {unknown}; it can match on {', '.join(_MATCH)}")
    if "source" not in entry or "verified" not in entry:
        raise ValueError(f"a recipe in {path} lacks its source or its verified flag: {entry}")
    if (called := entry.get("called", "paper")) not in NAMES:
        raise ValueError(f"a recipe in {path} is called {called!r}; it can be called {' or '.join(NAMES)}")
    if record and set(record) != _RECORD:
        raise ValueError(f"the record of a recipe in {path} must hold {', '.join(sorted(_RECORD))}, got {record}")
    return RecipeEntry(match, options, entry["source"], entry["verified"], called, record, entry.get("shown_in", ""))
