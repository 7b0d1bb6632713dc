"""Ways to spoil a file: what a disk, an editor, another program or somebody with intentions may leave in its place."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

VICTIM = "victim.txt"  # a file of the user beside the runs, at which a link points
DEEP = 100_000
_LONG = "x" * 200_000
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "../../escaped",
    "/etc/passwd",
    "a\nb\x1b[2J\u202e\u0000",
    "<script>alert(1)</script>",
    "\ud800",
    _LONG,
    [],
    {},
    [[[[[]]]]],
    [1] * 5000,
    {"": 0},
    {str(i): i for i in range(3000)},
)


def spoil(path: Path, draw: random.Random) -> str:
    """Spoil a file in a drawn way; says in which."""
    ways = [*_FILES, *_STRUCTURED.get(path.suffix, ()) * 8]
    way = draw.choice(ways)
    return way(path, draw) or way.__name__.strip("_").replace("_", " ")


def mutated(value: Any, draw: random.Random, times: int = 1) -> Any:
    """A JSON value with some of its nodes replaced, removed, repeated or renamed."""
    for _ in range(times):
        places = list(_places(value))
        if not places:
            return deepcopy(draw.choice(_VALUES))
        holder, key = draw.choice(places)
        act = draw.randrange(6)
        if act == 0:
            del holder[key]
        elif act == 1 and isinstance(holder, dict):
            holder[draw.choice(("", "__class__", "seed\u202e", "x" * 5000, str(key).upper()))] = holder.pop(key)
        elif act == 2 and isinstance(holder, list):
            holder[key:key] = [holder[key]] * (draw.choice((1, 2000)) if times == 1 else 1)
        else:
            holder[key] = deepcopy(draw.choice(_VALUES))  # or a later change would be one of all that hold it
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value; texts that are JSON themselves are left as they are."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def _empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def _cut_short(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data) or 1)])


def _other_bytes(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 4, 40))):
        if data:
            data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)


def _random_bytes(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.choice((7, 500, 50_000))))


def _doubled(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def _other_encoding(path: Path, draw: random.Random) -> None:
    text = path.read_bytes().decode("latin-1")
    path.write_bytes(text.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig"))))


def _a_page_of_html(path: Path, draw: random.Random) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


def _a_pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _a_link(path: Path, draw: random.Random) -> str:
    target = draw.choice(("/nowhere/at/all", "/dev/zero", "/dev/urandom", path.name, "/dev"))
    path.unlink()
    path.symlink_to(target)
    return f"a link to {'itself' if target == path.name else target if target.startswith('/dev') else 'elsewhere'}"


def _a_link_to_a_file_of_the_user(path: Path, draw: random.Random) -> None:
    root = next(parent for parent in path.parents if (parent / VICTIM).exists())
    path.unlink()
    path.symlink_to(root / VICTIM)


def _two_gigabytes(path: Path, draw: random.Random) -> None:
    os.truncate(path, 2 << 30)  # with holes: it takes no room


_FILES: tuple[Callable[[Path, random.Random], str | None], ...] = (
    _empty,
    _cut_short,
    _other_bytes,
    _random_bytes,
    _doubled,
    _other_encoding,
    _a_page_of_html,
    _a_pipe,
    _a_folder,
    _a_link,
    _a_link_to_a_file_of_the_user,
    _two_gigabytes,
)


def _nodes_of_json(path: Path, draw: random.Random) -> None:
    path.write_text(json.dumps(mutated(json.loads(path.read_text()), draw, draw.choice((1, 1, 2, 8)))))


def _deep_json(path: Path, draw: random.Random) -> None:
    deep = draw.choice((65, 990, DEEP))
    begin, end = draw.choice((("[", "]"), ('{"a":', "}")))
    path.write_text(draw.choice(("", '{"a": ')) + begin * deep + "0" + end * deep)


def _lines_of_json(path: Path, draw: random.Random) -> None:
    lines = path.read_text().splitlines() or ["{}"]
    place = draw.randrange(len(lines))
    lines[place] = json.dumps(mutated(json.loads(lines[place]), draw, 2))
    path.write_text("\n".join(lines))


def _values_of_toml(path: Path, draw: random.Random) -> None:
    values = (
        "-1",
        "1e400",
        "nan",
        '""',
        '"../x"',
        "[]",
        "{}",
        "99999999999999999999",
        '"\\u202e"',
        "1979-05-27",
        "[[[1]]]",
    )
    lines = path.read_text().splitlines()
    places = [i for i, line in enumerate(lines) if re.match(r"[\w.\"]+ *=", line)]
    if places:
        place = draw.choice(places)
        lines[place] = lines[place].partition("=")[0] + "= " + draw.choice((*values, json.dumps(_LONG)))
    path.write_text("\n".join(lines))


def _deep_toml(path: Path, draw: random.Random) -> None:
    deep = draw.choice((65, 990, DEEP))
    path.write_text("a = " + "[" * deep + "]" * deep + "\n" + path.read_text())


def _header_of_tensors(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    about = header.get("__metadata__", {})
    inside = [name for name in sorted(about) if about[name][:1] in ("{", "[")]
    if inside and draw.random() < 0.7:
        name = draw.choice(inside)
        about[name] = json.dumps(mutated(json.loads(about[name]), draw, draw.choice((1, 1, 3))))
    else:
        header = mutated(header, draw)
    text = json.dumps(header).encode()
    said = draw.choice((len(text), len(text), len(text), 2**62, 0))
    path.write_bytes(said.to_bytes(8, "little") + text + data[8 + size :])


_STRUCTURED: dict[str, tuple[Callable[[Path, random.Random], str | None], ...]] = {
    ".json": (_nodes_of_json, _nodes_of_json, _deep_json),
    ".jsonl": (_lines_of_json,),
    ".toml": (_values_of_toml, _values_of_toml, _deep_toml),
    ".safetensors": (_header_of_tensors,),
}
