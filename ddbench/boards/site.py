"""Pages that need no server and no network: leaderboards as a site, a run as a report. Everything foreign stays text.

``jinja2`` escapes, a content security policy with hashes forbids what the page does not bring, and images are inline.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.base.cache import atomic_write
from ddbench.boards import race
from ddbench.boards.command import command_of
from ddbench.boards.entry import EntryRun, pack, shown
from ddbench.boards.figures import figures, ranked_view, transfers
from ddbench.boards.matched import ABOUT_MATCHED, MATCHED
from ddbench.boards.picture import opened, picture_of
from ddbench.boards.ranking import CAUTION, SHOWN, Place, Standings, first_place, rules
from ddbench.boards.site_data import PageData, experts_view, parts, table_view
from ddbench.boards.verify import told
from ddbench.errors import UsageError
from ddbench.results.aggregate import per_run
from ddbench.results.differences import ABOUT_ONE_THING, ONE_THING
from ddbench.results.tables import REPORTED, cell
from ddbench.run import below
from ddbench.run.record import ControlsRecord, ResultRecord

if TYPE_CHECKING:
    from jinja2 import Environment

    from ddbench.boards.board import Board

INDEX = {
    "title": "board",
    "dataset": "dataset",
    "network": "network",
    "ipc": "ipc",
    "entries": "entries",
    "first": "first place",
    "accuracy_mean": "accuracy %",
}
EVALUATIONS = {
    "network": "network",
    "protocol": "protocol",
    "evaluation_seed": "seed",
    "accuracy_mean": "accuracy %",
    "n": "students",
    "selection": "selected on",
    "steps": "steps",
    "total_bytes": "total kB",
}
CONTROLS = {
    "images": "images",
    "labels": "labels",
    "augmentation": "augmentation",
    "accuracy_mean": "accuracy %",
    "n": "students",
    "student_lr": "student lr",
}


def site(every: Sequence[Standings]) -> dict[str, str]:
    """The pages of the boards, file name to text."""
    page = _environment()
    made = {f"{found.board.name}.html": _board(page, found) for found in every}
    rows = [
        first
        | {
            "title": shown(found.board.title),
            "href": f"{found.board.name}.html",
            "dataset": found.board.dataset.name,
            "network": found.board.network_label,
        }
        for found in every
        for first in (race.leaders(found) if found.board.race else [first_place(found, n) for n in found.board.ipc])
    ]
    boards = table_view("Boards, and who leads them", INDEX, rows) if rows else None
    return {"index.html": _render(page, "index.html", title="Dataset distillation leaderboards", boards=boards)} | made


def write(pages: dict[str, str], out: Path) -> list[Path]:
    """Write pages into a folder."""
    for name, text in pages.items():
        atomic_write(out / name, text.encode())
    return [out / name for name in pages]


def report(folder: Path) -> str:
    """One finished run as a page."""
    run = pack(folder)
    command = command_of([run.spec], max((len(e.students) for e in run.evaluations), default=5))
    seen = run.result.status == "ok" and (folder / "preview.png").exists()
    view = parts(folder.name, [run], command, picture_of(folder) if seen else None)
    result = ResultRecord.from_file(folder / "result.json")
    view["facts"] = [*_facts_of_run(run), *_facts_on_random(result), *_warnings(result)]
    if (seen_experts := experts_view(folder.name, result.stages)) is not None:
        view["charts"].append(seen_experts[0])
        view["folded"].append(seen_experts[1])
    if run.evaluations:
        graded = table_view("Test accuracy, mean ± deviation over students", EVALUATIONS, per_run(run.rows()))
        view["tables"].insert(0, graded)
    return _render(
        _environment(), "report.html", title=f"Run {shown(folder.name)}", run=view, controls=_controls(folder)
    )


def _facts_of_run(run: EntryRun) -> list[tuple[str, str, None]]:
    spec, result, data = run.spec, run.result, run.result.dataset
    found = {
        "method": run.method,
        "dataset": data and f"{data.name}, digest {(data.digest or '')[:12]}",
        "network": result.network or spec.network.name,
        "protocol": f"{spec.protocol.name}, digest {spec.rules[:12]}",
        "selected on": result.selection,
        "images per class": spec.ipc,
        "seed": spec.seed,
        "optimiser steps of a student": result.steps,
        "status": f"{result.status} {result.error or ''}".strip(),
        "finished": result.finished,
        "versions": ", ".join(sorted(set(spec.versions.values()))),
    }
    return [(shown(name), shown(value, 300), None) for name, value in found.items() if value not in (None, "")]


def _warnings(result: ResultRecord) -> list[tuple[str, str, None]]:
    """What the run saw of itself while it was at work."""
    return [("warning", shown(text, 1000), None) for text in result.warnings]


def _facts_on_random(result: ResultRecord) -> list[tuple[str, str, None]]:
    """How the run compared with the random images that were graded beside it; entries do not hold this."""
    words = {True: "above", False: "not above", None: "not known"}
    return [
        (
            f"beside random images, {shown(below.kind(record), 60)}",
            f"{words[record.above]} ({shown(below.told(record), 200)})",
            None,
        )
        for record in result.random
    ]


def _controls(folder: Path) -> list[PageData]:
    """The control matrix and its scores, where they were made."""
    path = folder / "controls.json"
    if not path.exists():
        return []
    held = ControlsRecord.from_file(path)
    scores = [{"score": n, "value": v, "formula": held.formulas.get(n)} for n, v in held.scores.items()]
    source = f"Scores, after {shown(held.source, 200)}"
    return [
        table_view(
            "Images, labels and augmentation apart", CONTROLS, [control.json_value() for control in held.matrix]
        ),
        table_view(source, {"score": "score", "value": "value", "formula": "formula"}, scores),
    ]


def _board(page: Environment, found: Standings) -> str:
    board, places = found.board, found.flat()
    rankings = [
        table_view(f"{title}: ranked by seconds", race.SHOWN, rows) | {"heading": title, "figure": None}
        for title, rows in race.ranked(found)
        if rows
    ]
    rankings += [
        table_view(f"{ipc} per class: ranked by the mean over seeds", SHOWN, [p.cells for p in found.places[ipc]])
        | {"heading": f"{ipc} image{'s' if ipc > 1 else ''} per class", "figure": ranked_view(found.places[ipc])}
        for ipc in board.ipc
        if ipc in found.places
    ]
    drawn, costs = figures(places)
    return _render(
        page,
        "board.html",
        title=shown(board.title),
        about=shown(board.about, 2000),
        rules=rules(board),
        rankings=rankings,
        notes=[*found.notes, *(["All tables count as one in the correction of p."] if places else [])],
        charts=drawn if places else [],
        costs=costs,
        transfer=transfers(places, found.transfer, board.network_label),
        pairs=table_view("Pairs of entries", ONE_THING, found.pairs) if found.pairs else None,
        about_pairs=ABOUT_ONE_THING,
        matched=table_view("What was matched", MATCHED, found.matched) if found.matched else None,
        about_matched=ABOUT_MATCHED,
        reported=table_view("Published accuracies", REPORTED, found.reported) if found.reported else None,
        caution=CAUTION,
        entries=[_entry(board, place) for place in places],
    )


def _entry(board: Board, place: Place) -> PageData:
    entry, row, cells = place.entry, place.line.row, place.cells
    seen = (opened(entry.picture_file), entry.picture) if entry.picture else None
    accuracy = cell("accuracy_mean", cells)
    view = parts(f"{place.title}, ipc {row.ipc}", entry.runs, board.command(entry), seen)
    facts = {
        "test accuracy": f"{accuracy or 'none'} %",
        "by": shown(entry.author),
        "link": shown(entry.link),
        "date": shown(entry.date[:10]),
        "status": row.status,
        "versions": shown(row.versions),
        "graded anew": told(entry, place.verdict) if place.verdict else "",
    }
    linked = [(name, text, _safe(text) if name == "link" else None) for name, text in facts.items() if text]
    heading = f"{place.title}, ipc {row.ipc}: {accuracy or row.status}"
    badge = place.verdict.state if place.verdict else ""
    about = {"id": entry.name, "heading": heading, "badge": badge, "facts": linked, "note": shown(entry.note, 2000)}
    return view | about


def _safe(link: str) -> str | None:
    """The link, if it is one to a web page; anything else is shown and leads nowhere."""
    return link if re.fullmatch(r"https?://[^\s\"'<>`\\…]+", link) else None


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UsageError(f"pages need jinja2 ({error}); pip install jinja2") from error
    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(page: Environment, name: str, **given: Any) -> str:
    from markupsafe import Markup

    assets = {kind: _asset(f"page.{kind}") for kind in ("css", "js")}
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(assets['css'])}; script-src {_hash(assets['js'])}; "
        "base-uri 'none'; form-action 'none'"
    )
    trusted = {kind: Markup(text) for kind, text in assets.items()}  # noqa: S704  (our own files)
    return page.get_template(name).render(**_marked(given), **trusted, policy=policy)


def _marked(value: Any) -> Any:
    """Charts, and nothing else, as they are: they were built from elements, not from text."""
    from markupsafe import Markup

    if isinstance(value, dict):
        return {n: Markup(v) if n == "svg" else _marked(v) for n, v in value.items()}  # noqa: S704
    return [_marked(v) for v in value] if isinstance(value, list) else value


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _asset(name: str) -> str:
    return files("ddbench.boards").joinpath("templates", name).read_text(encoding="utf-8")
