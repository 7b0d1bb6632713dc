"""Which of the installed plugins this process wants, and how it takes broken ones: the environment says so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint

from ddbench.base.code import BUILT_IN
from ddbench.errors import UsageError, did_you_mean

LOAD = "DDBENCH_LOAD_PLUGINS"
STRICT = "DDBENCH_STRICT_PLUGINS"


def wanted(found: Iterable[EntryPoint]) -> list[EntryPoint]:
    """The entry points to load, by distribution and name: ddbench's own, and of others those that ``LOAD`` names.

    Without the variable all of them; an empty one is none of the others'. Raises UsageError for a distribution that
    is not installed, or brings no plugin.
    """
    entries = sorted(found, key=lambda entry: (_distribution(entry), entry.name))
    given = os.environ.get(LOAD)
    if given is None:
        return entries
    names = {_normalised(name) for name in given.split(",") if name.strip()} | {_normalised(BUILT_IN)}
    there = {_normalised(_distribution(entry)) for entry in entries}
    if lost := sorted(names - there - {_normalised(BUILT_IN)}):
        others = sorted(there - {_normalised(BUILT_IN), ""})
        raise UsageError(
            f"{LOAD} names {lost[0]!r}, which is not an installed distribution with plugins"
            f"{did_you_mean(lost[0], others)} "
            f"({', '.join(others) or 'there is none'}); install it, or take it off the list"
        )
    return [entry for entry in entries if _normalised(_distribution(entry)) in names]


def strict() -> bool:
    """Whether a broken plugin is an error. Raises UsageError for a value that is neither 0 nor 1."""
    given = os.environ.get(STRICT, "")
    if given not in ("", "0", "1"):
        raise UsageError(f"{STRICT} must be 1 (a broken plugin is an error) or 0, and is {given[:40]!r}")
    return given == "1"


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _normalised(name: str) -> str:
    """As package indexes compare names: ``My_Plugin`` is ``my-plugin``."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
