"""Networks by their names, as a matcher's option ``teachers`` gives them: ``own``, ``vit``, ``convnet(width=16)``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ddbench.base.options import make
from ddbench.errors import UsageError
from ddbench.hookspecs import Matcher
from ddbench.plugins import Plugin, registry
from ddbench.train.source import NetworkSource

OWN = "own"  # the run's network, with its options
_NAMED = re.compile(r"([^()]+?)\s*(?:\((.*)\))?")


def networks_named(names: Sequence[str], own: NetworkSource) -> tuple[NetworkSource, ...]:
    """The network sources of ``names``, in their order, where ``own`` stands for the network ``own``.

    Options that differ from a network's defaults stand in brackets, as tables show them: ``convnet(width=16,depth=2)``.
    Raises UsageError for names and options that there are not.
    """
    return tuple(own if name == OWN else _made(name) for name in names)


def teachers_named(matcher: Matcher[object]) -> dict[str, Plugin]:
    """The plugins of the networks that a matcher names in its option ``teachers``, but for the run's own, by name."""
    named = getattr(matcher, "teachers", ())
    if not isinstance(named, tuple) or not all(isinstance(name, str) for name in named):
        return {}
    found = [_made(name).name for name in named if name != OWN]
    return {name: registry().get("network", name) for name in found}


def _made(text: str) -> NetworkSource:
    name, options = _parts(text)
    return make(registry().get("network", name).cls, options, f"network {name}")


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """The name in ``name(option=value,...)``, and its options."""
    found = _NAMED.fullmatch(text.strip())
    given = [part.partition("=") for part in (found[2] or "").split(",") if part.strip()] if found else []
    if found is None or not all(equals for _, equals, _ in given):
        raise UsageError(f"{text!r} names no network; write NAME or NAME(OPTION=VALUE,...), such as convnet(width=16)")
    return found[1], {option.strip(): value.strip() for option, _, value in given}
