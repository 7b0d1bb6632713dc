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

from ddbench.base.cache import atomic_write, read_json
from ddbench.boards import entry as entries
from ddbench.boards import site_data
from ddbench.boards.entry import shown
from ddbench.boards.ranking import CAUTION, SHOWN, Standings, first_place, rules
from ddbench.boards.site_data import View
from ddbench.errors import UsageError
from ddbench.results import pairs
from ddbench.results.aggregate import per_run
from ddbench.results.tables import REPORTED, cell
from ddbench.results.where import Row

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX = {"title": "board", "dataset": "dataset", "network": "network", "ipc": "ipc", "entries": "entries",
         "first": "first place", "accuracy_mean": "accuracy %"}  # fmt: skip
EVALUATIONS = {"network": "network", "protocol": "protocol", "evaluation_seed": "seed", "accuracy_mean": "accuracy %",
               "n": "students", "selection": "selected on", "steps": "steps", "total_bytes": "total kB"}  # fmt: skip
CONTROLS = {"images": "images", "labels": "labels", "augmentation": "augmentation", "accuracy_mean": "accuracy %",
            "n": "students", "student_lr": "student lr"}  # fmt: skip


def site(every: Sequence[Standings]) -> dict[str, str]:
    """The pages of the boards, file name to text."""
    page = _environment()
    made = {f"{found.board.name}.html": _board(page, found) for found in every}
    rows = [
        first_place(found, ipc)
        | {
            "title": shown(found.board.title), "href": f"{found.board.name}.html",
            "dataset": found.board.dataset["name"], "network": found.board.network_label,
        }
        for found in every
        for ipc in found.board.ipc
    ]  # fmt: skip
    boards = site_data.table("Boards, and who leads them", INDEX, rows) if rows else None
    return {"index.html": _render(page, "index.html", title="Dataset distillation leaderboards", boards=boards)} | made


def write(pages: dict[str, str], out: Path) -> list[Path]:
    """Write pages into a folder."""
    for name, text in pages.items():
        atomic_write(out / name, text.encode())
    return [out / name for name in pages]


def report(folder: Path) -> str:
    """One finished run as a page."""
    run = entries.pack(folder)
    done = run["result"]["status"] == "ok"
    sizes = [len(e["students"]) for e in run["evaluations"]]
    command = entries.command([run["spec"]], max(sizes, default=5))
    seen = done and (folder / "preview.png").exists()
    view = site_data.parts(folder.name, [run], command, entries.picture(folder) if seen else None)
    view["facts"] = _facts_of_run(run)
    if run["evaluations"]:
        graded = site_data.table(
            "Test accuracy, mean ± deviation over students", EVALUATIONS, per_run(entries.rows([run]))
        )
        view["tables"].insert(0, graded)
    return _render(
        _environment(), "report.html", title=f"Run {shown(folder.name)}", run=view, controls=_controls(folder)
    )


def _facts_of_run(run: View) -> list[tuple[str, str, None]]:
    spec, result = run["spec"], run["result"]
    found = {
        "method": entries.method(run),
        "dataset": f"{result['dataset']['name']}, digest {result['dataset']['digest'][:12]}",
        "network": result.get("network", spec["network"]["name"]),
        "protocol": f"{spec['protocol']['name']}, digest {spec['protocol_digest'][:12]}",
        "selected on": result.get("selection"),
        "images per class": spec["ipc"],
        "seed": spec["seed"],
        "optimiser steps of a student": result.get("steps"),
        "status": f"{result['status']} {result.get('error', '')}".strip(),
        "finished": result.get("finished"),
        "versions": ", ".join(sorted(set(spec.get("versions", {}).values()))),
    }
    return [(shown(name), shown(value, 300), None) for name, value in found.items() if value not in (None, "")]


def _controls(folder: Path) -> list[View]:
    """The control matrix and its scores, where they were made."""
    if not (folder / "controls.json").exists():
        return []
    held = read_json(folder / "controls.json")
    formulas = held.get("formulas", {})
    scores = [{"score": n, "value": v, "formula": formulas.get(n)} for n, v in held["scores"].items()]
    source = f"Scores, after {shown(held.get('source'), 200)}"
    return [site_data.table("Images, labels and augmentation apart", CONTROLS, held["matrix"]),
            site_data.table(source, {"score": "score", "value": "value", "formula": "formula"}, scores)]  # fmt: skip


def _board(page: Environment, found: Standings) -> str:
    board, rows = found.board, found.flat()
    for row in rows:
        row["href"] = f"#{row['entry']}"
    rankings = [
        site_data.table(f"{ipc} per class: ranked by the mean over seeds", SHOWN, found.rows[ipc])
        | {"heading": f"{ipc} image{'s' if ipc > 1 else ''} per class", "figure": site_data.ranked(found.rows[ipc])}
        for ipc in board.ipc
        if ipc in found.rows
    ]
    drawn, costs = site_data.figures(rows)
    return _render(
        page, "board.html", title=shown(board.title), about=shown(board.about, 2000), rules=rules(board),
        rankings=rankings, notes=[*found.notes, *(["All tables count as one in the correction of p."] if rows else [])],
        charts=drawn if rows else [], costs=costs,
        transfer=site_data.transfers(rows, found.transfer, board.network_label),
        pairs=site_data.table("Pairs of entries", pairs.SHOWN, found.pairs) if found.pairs else None,
        about_pairs=pairs.ABOUT,
        reported=site_data.table("Published accuracies", REPORTED, found.reported) if found.reported else None,
        caution=CAUTION, entries=[_entry(found, row) for row in rows],
    )  # fmt: skip


def _entry(found: Standings, row: Row) -> View:
    entry = found.entries[row["entry"]]
    picture = entry.get("picture")
    png = (entry["file"].with_suffix(".png").read_bytes(), picture) if picture else None
    view = site_data.parts(f"{row['title']}, ipc {row['ipc']}", entry["runs"], entry["command"], png)
    facts = {"test accuracy": f"{cell('accuracy_mean', row) or 'none'} %", "by": row["author"], "link": row["link"],
             "date": row["date"], "status": row["status"], "versions": shown(row["versions"])}  # fmt: skip
    linked = [(name, text, _safe(text) if name == "link" else None) for name, text in facts.items() if text]
    heading = f"{row['title']}, ipc {row['ipc']}: {cell('accuracy_mean', row) or row['status']}"
    return view | {"id": row["entry"], "heading": heading, "facts": linked, "note": shown(entry.get("note"), 2000)}


def _safe(link: str) -> str | None:
    """The link, if it is one to a web page; anything else is shown and leads nowhere."""
    return link if re.fullmatch(r"https?://[^\s\"'<>`\\…]+", link) else None


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UsageError(f"pages need jinja2 ({error}); pip install 'ddbench[html]'") from error
    return Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


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
