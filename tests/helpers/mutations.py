"""Documents as nobody wrote them: seeded changes of a JSON value, or of the text of a file."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NAMES = [
    "../../evil",
    "/etc/passwd",
    "-o",
    "",
    ".",
    "..",
    "a/b",
    "a\x00b",
    "con\nfig",
    "É",
    "\ud800",
    "x" * 300,
    "%s{}",
    "None",
]
NUMBERS = [-1, 0, -(10**30), 10**30, 10**400, 2**53 + 1, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 0.5, 1.5]
TEXTS = [*NAMES, "\u202eevil", "\x1b[31m", "<script>", "=1+1", "1e999", "true", "[]", "{0}", "\ufeff", "y" * 10_000_000]
OTHERS = [None, True, False, [], {}, [[]], [None], {"": None}, {"name": "x"}, [1, "a", None]]


def deep(levels: int, kind: str = "[") -> Any:
    """A value that is nested so deeply; far beyond what the parser's own recursion allows, as text."""
    held: Any = 1
    for _ in range(levels):
        held = [held] if kind == "[" else {"a": held}
    return held


def mutated(value: Any, rng: random.Random, times: int = 1) -> Any:
    """A copy of a JSON value with some places changed: a key gone, another type, another number, text, or depth."""
    made = copy.deepcopy(value)
    for _ in range(times):
        places = list(_places(made))
        if not places:
            return made
        whole, key = rng.choice(places)
        how = rng.randrange(8)
        if how == 0 and isinstance(whole, dict):
            del whole[key]
        elif how == 1 and isinstance(whole, list):
            whole.append(copy.deepcopy(whole[key]))
        elif how == 2 and isinstance(whole, dict):
            whole[rng.choice(TEXTS[:-1])] = whole.pop(key)
        elif how == 3:
            whole[key] = deep(rng.choice([5, 70, 300]), rng.choice("[{"))
        else:
            whole[key] = _like(whole[key], rng)
    return made


def _like(value: Any, rng: random.Random) -> Any:
    """Most often of the same type, so that what checks types alone lets it through."""
    if rng.random() < 0.6:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return rng.choice([*NUMBERS, value * 1000, -value, value + 1])
        if isinstance(value, str):
            return rng.choice([*TEXTS, value + "x", value.upper()])
        if isinstance(value, list):
            return rng.choice([[], value[:1], value * 3, value[::-1]])
    return copy.deepcopy(rng.choice([*OTHERS, *NUMBERS, *TEXTS]))


def _places(value: Any) -> Any:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield value, key
        yield from _places(part)


def written(value: Any) -> bytes:
    """A value as JSON, with what JSON has no word for."""
    return json.dumps(value).encode()


def torn(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a file cut short, with a byte changed, or with something else at their beginning or end."""
    at = rng.randrange(max(1, len(data)))
    return rng.choice(
        [
            data[:at],
            data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            data[at:],
            b"\xff\xfe" + data,
            data + b"\x00",
            b"\xef\xbb\xbf" + data,
            b"[" * 100_000,
            b'{"a":' * 990 + b"1" + b"}" * 990,
            b"",
            data * 2,
        ]
    )
