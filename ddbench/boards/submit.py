"""From run folders to entries of a board, and to a board of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddbench.base.cache import atomic_write, file_digest, write_json
from ddbench.base.options import changed, options
from ddbench.boards import entry as entries
from ddbench.boards.board import Board, plugin
from ddbench.errors import UsageError
from ddbench.grade.protocol import named
from ddbench.results.differences import SEEDS_FOR_BEST


def drafted(folder: Path, title: str, ipc: Sequence[int], students: int, seeds: int) -> str:
    """The text of a ``board.toml`` whose data, network and protocol are those of a finished run."""
    run = entries.pack(folder)
    spec = run["spec"]
    if spec["protocol"]["selects"] == "test":
        raise UsageError(
            f"{folder} was made under {spec['protocol']['name']!r}, which selects on test data: no board ranks that"
        )
    base = named(spec["protocol"]["name"].partition("-custom-")[0])
    rules, usual = spec["protocol"], options(base)
    given = {kind: changed(plugin(kind, spec[kind])) for kind in ("dataset", "network")}
    given["protocol"] = {n: rules[n] for n in rules if n not in ("name", "version") and rules[n] != usual[n]}
    lines = [
        "# The rules of this board. docs/leaderboards.md says what each of them is for.",
        f"title = {_toml(title)}",
        f"ipc = {json.dumps(list(ipc or [spec['ipc']]))}",
        f"students = {students}",
        f"seeds = {list(range(seeds))}",
        f"mark_seeds = {SEEDS_FOR_BEST}  # finished seeds that every line needs before a first place is marked",
    ]
    for kind, about in (
        ("dataset", {"name": spec["dataset"]["name"], "digest": run["result"]["dataset"]["digest"]}),
        ("network", {"name": spec["network"]["name"]}),
        ("protocol", {"name": base.name, "digest": spec["protocol_digest"]}),
    ):
        lines += ["", f"[{kind}]", *(f"{name} = {_toml(value)}" for name, value in about.items())]
        pairs = ", ".join(f"{n} = {_toml(v)}" for n, v in given[kind].items())
        lines.append(f"options = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value as TOML writes it; ``none`` is a word, since TOML has no null and options are read from text too."""
    return json.dumps("none" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def submit(folders: Sequence[Path], board: Board, *, replace: bool, **about: str | None) -> list[Path]:
    """Check run folders against a board and write them as entries, one per setting; all of them or none."""
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        run = entries.pack(folder)
        groups.setdefault(entries.rows([run])[0]["setting"], []).append((folder, run))
    ready = []
    for setting, found in groups.items():
        found.sort(key=lambda pair: pair[1]["seed"])
        runs = [run for _, run in found]
        board.check(runs)
        entry = _entry(runs, board, about)
        path = board.folder / "entries" / f"{entries.name_of(runs[0], setting)}.json"
        if path.exists() and not replace:
            raise UsageError(f"{path} holds an entry of these settings already; replace it with --replace")
        ready.append((path, entry, _picture(found)))
    for path, entry, (png, layout) in ready:
        if png:
            atomic_write(path.with_suffix(".png"), png)
            entry["picture"] = layout | {"sha256": file_digest(path.with_suffix(".png"))}
        else:
            path.with_suffix(".png").unlink(missing_ok=True)
        write_json(path, entry)
    return [path for path, _, _ in ready]


def _entry(runs: list[dict[str, Any]], board: Board, about: dict[str, str | None]) -> dict[str, Any]:
    kept: list[dict[str, Any]] = [run | {"evaluations": board.graded(run)} for run in runs]
    done = [run for run in kept if run["result"]["status"] == "ok"]
    networks = sorted({e["network"] for run in done for e in run["evaluations"]} - {board.network_label})
    return {
        "format": entries.FORMAT,
        "method": about.get("method") or entries.method((done or kept)[0]),
        "author": about.get("author") or "",
        "link": about.get("link") or "",
        "note": about.get("note") or "",
        "date": max(run["result"]["finished"] for run in kept),
        "command": entries.command([run["spec"] for run in runs], board.students, networks),
        "picture": None,
        "runs": kept,
    }


def _picture(found: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[bytes, dict[str, Any]]:
    """The picture of the first seed that finished, and where its stages are in it; nothing where none finished."""
    for folder, run in found:
        if run["result"]["status"] == "ok" and (folder / "preview.png").exists():
            return entries.picture(folder)
    return b"", {}
