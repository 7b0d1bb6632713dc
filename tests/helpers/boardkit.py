"""Boards and entries for tests: a board of toy data, real tiny runs, and entries made of them with other numbers."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from tiny import run, spec

from ddbench.base.cache import atomic_write, digest, read_json, write_json
from ddbench.base.options import options
from ddbench.boards.board import Board
from ddbench.boards.entry import FORMAT, pack
from ddbench.boards.picture import file_name, picture_of, small
from ddbench.grade.protocol import altered, named

SEEDS = (0, 1)
HOSTILE = {
    "script": "<script>window.hacked=1</script>",
    "closing": "</script><script>window.hacked=1</script></title></style>",
    "handler": "\"><img src=x onerror='window.hacked=1'>",
    "template": "{{7*7}}{% include 'x' %}${7*7}",
    "markup": "[/x][bold]",
    "ansi": "\x1b[31mred\x1b]0;title\x07\x00",
    "bidi": "abc\u202edcba\u2066x\u200fy\u061cz",
    "unseen": "a\u200bb\u2063c\ufeffd\u2028e",
    "surrogate": "\ud800 and \uffff",
    "table": "a|b\n# heading\n[x](javascript:window.hacked=1)",
    "tex": "$\\frac{1}{0}$ _under",
    "long": "m" * 5000,
}


def made(out: Path, matcher: str = "random", seeds: tuple[int, ...] = SEEDS, **more: Any) -> list[Path]:
    """Run folders of one setting."""
    return [run(out, spec(matcher, seed=seed, **more), students=2) for seed in seeds]


def board(root: Path, folder: Path, name: str = "toys", **rules: Any) -> Board:
    """A board whose rules are those of a run."""
    held, result = read_json(folder / "spec.json"), read_json(folder / "result.json")
    values = {"title": "Toys", "ipc": [1, 2], "students": 2, "seeds": list(SEEDS)} | rules
    data = {"name": "toy", "digest": result["dataset"]["digest"], "options": {"per_class": 20}}
    network = {"name": "convnet", "options": {"width": 8}}
    usual = options(named("default"))
    given = {n: v for n, v in held["protocol"].items() if n != "name" and v != usual[n]}
    given |= rules.get("protocol", {}).pop("options", {})
    protocol = {"name": "default", "digest": altered(named("default"), given).digest, "options": given}
    tables = {"dataset": data, "network": network, "protocol": protocol}
    tables = {group: table | rules.get(group, {}) for group, table in tables.items()}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    for group, table in tables.items():
        lines += [f"[{group}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "board.toml").write_text("\n".join(lines) + "\n")
    return Board.load(root / name)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(v)}" for key, v in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)


@cache
def packed(folder: Path) -> dict[str, Any]:
    """What an entry's file would hold of a run."""
    return pack(folder).json_value()


def pictured(board: Board, folder: Path) -> dict[str, Any]:
    """Put the picture of a run beside the entries of a board: what an entry records of it."""
    data, layout = small(*picture_of(folder))
    sha256 = digest(data)
    atomic_write(board.folder / "entries" / file_name(sha256), data)
    return layout.json_value() | {"sha256": sha256}


def posted(
    board: Board,
    folder: Path,
    name: str,
    accuracies: list[float | None],
    *,
    ipc: int = 1,
    matcher: str = "random",
    **about: Any,
) -> dict[str, Any]:
    """Write an entry with these means, seed by seed; None is a seed that diverged."""
    runs = []
    for seed, mean in enumerate(accuracies):
        made = copy.deepcopy(packed(folder))
        scale = ipc / made["spec"]["ipc"]
        made["result"] |= {n: int(scale * made["result"][n]) for n in ("images", "image_bytes", "label_bytes")}
        made["spec"] |= {"seed": seed, "ipc": ipc, "matcher": {"name": matcher, "options": {}}}
        made |= {"seed": seed, "run": f"{name}-{seed}"}
        evaluation = made["evaluations"][0] | {"seed": seed}
        evaluation["students"] = [{"accuracy": (mean or 0) + apart, "ece": 0.1} for apart in (-0.01, 0.01)]
        made["evaluations"] = [evaluation]
        if mean is None:
            made["evaluations"] = []
            kept = ("dataset", "selection", "machine", "finished")
            made["result"] = {n: made["result"][n] for n in kept} | {"status": "diverged", "error": "the loss exploded"}
        runs.append(made)
    entry = {
        "format": FORMAT,
        "method": matcher,
        "author": "",
        "link": "",
        "note": "",
        "date": "2026-01-02T03:04:05",
        "picture": None,
        "runs": runs,
        **about,
    }
    write_json(board.folder / "entries" / f"{name}.json", entry)
    return entry
