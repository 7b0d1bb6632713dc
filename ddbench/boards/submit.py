"""From run folders to entries of a board, and to a board of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddbench.base.cache import atomic_write, digest, read_json
from ddbench.base.opening import read_bytes
from ddbench.base.options import changed, options
from ddbench.boards import sets
from ddbench.boards.board import Board, plugin
from ddbench.boards.budget import check_stored
from ddbench.boards.entry import FORMAT, Entry, EntryRun, pack, write
from ddbench.boards.picture import Picture, file_name, opened, picture_of, remove_unused, small
from ddbench.errors import DataError, UsageError
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import named
from ddbench.results.differences import SEEDS_FOR_BEST
from ddbench.run.spec import current


def drafted(folder: Path, title: str, ipc: Sequence[int], students: int, seeds: int) -> str:
    """The text of a ``board.toml`` whose data, network and protocol are those of a finished run."""
    run = pack(folder)
    spec, rules = run.spec, run.spec.protocol.json_value()
    if spec.protocol.selects == "test":
        raise UsageError(
            f"{folder} was made under {spec.protocol.name!r}, which selects on test data: no board ranks that"
        )
    base = named(spec.protocol.name.partition("-custom-")[0], spec.dataset.name)
    usual = options(base)
    told = {n: rules[n] for n in rules if n not in ("name", "version") and rules[n] != usual[n]}
    lines = [
        "# The rules of this board. docs/leaderboards.md says what each of them is for.",
        f"title = {_toml(title)}",
        f"ipc = {json.dumps(list(ipc or [spec.ipc]))}",
        f"students = {students}",
        f"seeds = {list(range(seeds))}",
        f"mark_seeds = {SEEDS_FOR_BEST}  # finished seeds that every line needs before a first place is marked",
    ]
    digest = run.result.dataset.digest if run.result.dataset else None
    for kind, about, given in (
        (
            "dataset",
            {"name": spec.dataset.name, "digest": digest} | _measured(run, folder),
            changed(plugin("dataset", spec.dataset)),
        ),
        ("network", {"name": spec.network.name}, changed(plugin("network", spec.network))),
        ("protocol", {"name": base.name, "digest": spec.rules}, told),
    ):
        lines += ["", f"[{kind}]", *(f"{name} = {_toml(value)}" for name, value in about.items())]
        lines.append(f"options = {{ {', '.join(f'{n} = {_toml(v)}' for n, v in given.items())} }}")
    return "\n".join(lines) + "\n"


def _measured(run: EntryRun, folder: Path) -> dict[str, Any]:
    """Classes and shape of the images of a finished run, which say what a budget is."""
    if run.result.status != "ok":
        return {}
    distilled = Distilled.load(folder / "distilled.safetensors")
    return {"classes": len(distilled.classes), "shape": list(distilled.shape)}


def _toml(value: Any) -> str:
    """A value as TOML writes it; ``none`` is a word, since TOML has no null and options are read from text too."""
    return json.dumps("none" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def submit(
    folders: Sequence[Path], board: Board, *, replace: bool, keep_in: Path | None = None, **about: str | None
) -> list[Path]:
    """Check run folders against a board and write them as entries, one per setting; all of them or none.

    Their sets are copied to ``keep_in``, if there is such a folder. ``sets`` is the address where people find them.
    """
    about["sets"] = sets.require_url(about.get("sets"))
    groups: dict[str, list[tuple[Path, EntryRun]]] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        run = pack(folder)
        groups.setdefault(run.spec.setting, []).append((folder, run))
    ready: list[tuple[Path, Entry, tuple[bytes, Picture] | None]] = []
    for found in groups.values():
        found.sort(key=lambda pair: pair[1].seed)
        runs = [run for _, run in found]
        board.check(runs)
        for folder, run in found:
            if run.result.status == "ok":
                check_stored(run, folder)
        path = _held(board, runs[0])
        if path.exists() and not replace:
            raise UsageError(f"{path} holds an entry of these settings already; replace it with --replace")
        ready.append((path, _entry(runs, board, about), _picture(found)))
    if keep_in is not None:
        sets.keep([pair for found in groups.values() for pair in found], keep_in)
    before = "".join(read_bytes(path).decode(errors="replace") for path, _, _ in ready if path.exists())
    for path, entry, drawn in ready:
        _write(path, entry.json_value(), drawn)
    remove_unused(board.folder / "entries", before)
    return [path for path, _, _ in ready]


def _held(board: Board, run: EntryRun) -> Path:
    """The file of the entry of a run's setting: the one that is there, whatever version named it, or a new one."""
    usual = board.folder / "entries" / f"{run.entry_name}.json"
    for path in () if usual.exists() else sorted(usual.parent.glob("*.json")):
        with suppress(DataError):  # a damaged one is named whenever tables are made
            if current(Entry.read(path).runs[0]).spec.setting == run.spec.setting:
                return path
    return usual


def _write(path: Path, held: dict[str, Any], drawn: tuple[bytes, Picture] | None) -> None:
    """Write an entry with its picture: the picture first, so that no entry is ever without."""
    told = None
    if drawn:
        sha256 = digest(drawn[0])
        atomic_write(path.with_name(file_name(sha256)), drawn[0])
        told = drawn[1].json_value() | {"sha256": sha256}
    write(path, held | {"format": FORMAT, "picture": told})
    path.with_suffix(".png").unlink(missing_ok=True)  # of an entry of the first version


def convert(board: Path) -> list[Path]:
    """Write the entries of a board as this version does, and their pictures; nothing else in them changes.

    It is not needed: entries of the first version are read. It makes them small.
    """
    paths = sorted((board / "entries").glob("*.json"))
    for path in paths:
        entry = Entry.read(path)  # a damaged one is refused
        held = read_json(path)
        if entry.format == 1:
            _write(path, held, small(opened(entry.picture_file), entry.picture) if entry.picture else None)
        else:
            write(path, held | {"format": FORMAT})
    return paths


def _entry(runs: Sequence[EntryRun], board: Board, about: dict[str, str | None]) -> Entry:
    kept = [run.model_copy(update={"evaluations": board.graded(run)}) for run in runs]
    done = [run for run in kept if run.result.status == "ok"]
    return Entry(
        format=FORMAT,
        method=about.get("method") or (done or kept)[0].method,
        author=about.get("author") or "",
        link=about.get("link") or "",
        note=about.get("note") or "",
        date=max(run.result.finished or "" for run in kept),
        picture=None,
        sets=about.get("sets") or "",
        runs=kept,
    )


def _picture(found: Sequence[tuple[Path, EntryRun]]) -> tuple[bytes, Picture] | None:
    """The picture of the first seed that finished, and where its stages are in it; nothing where none finished."""
    for folder, run in found:
        if run.result.status == "ok" and (folder / "preview.png").exists():
            return small(*picture_of(folder))
    return None
