"""Leaderboards as a site that needs no server and no network: an overview, a page per board and per entry, and images.

Images are files beside the pages, named by what they hold, which browsers load when they come into view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.base.cache import atomic_write, digest
from ddbench.boards import links, race
from ddbench.boards.command import NONE, entering
from ddbench.boards.entry import shown
from ddbench.boards.figures import budgets, figures, ranked_view, transfers
from ddbench.boards.matched import ABOUT_MATCHED, MATCHED
from ddbench.boards.picture import opened
from ddbench.boards.ranking import CAUTION, CHANCE, Place, Standings, first_place, rules
from ddbench.boards.render import environment, render
from ddbench.boards.site_data import Fact, PageData, Seen, parts, table_view
from ddbench.boards.verify import told as graded_anew
from ddbench.results.differences import ABOUT_ONE_THING, ONE_THING
from ddbench.results.tables import REPORTED, cell, marks
from ddbench.run.row import Cells

if TYPE_CHECKING:
    from ddbench.boards.board import Board
    from ddbench.boards.render import Environment

INDEX = {
    "title": "board",
    "dataset": "dataset",
    "network": "network",
    "ipc": "ipc",
    "entries": "entries",
    "first": "first place",
    "accuracy_mean": "accuracy %",
}
RANKING = {  # the rest is on the page of an entry, and in the tables below the rankings
    "rank": "#",
    "title": "method",
    "accuracy_mean": "accuracy %",
    "ci_low": "95 % CI",
    "difference": "difference",
    "baseline": "to",
    "p_holm": "p (Holm)",
    "n": "seeds",
    "total_bytes": "total kB",
    "distil_seconds": "distil s",
    "expert_seconds": "experts s",
    "hardware": "hardware",
    "status": "status",
    "author": "by",
}
ONCE = ("n", "total_bytes", "hardware", "status", "author")
Keep = Callable[[bytes], str]  # an image to its address, from the root of the site


def site(every: Sequence[Standings]) -> dict[str, str | bytes]:
    """The pages of the boards and the images beside them, file name to text or bytes."""
    page = environment()
    made: dict[str, str | bytes] = {}
    cards, rows = [], list[Cells]()
    for found in every:
        card, files = _pages(page, found)
        made |= files
        cards.append(card)
        about = {"title": card["title"], "href": card["href"], "dataset": found.board.dataset.name}
        about["network"] = found.board.network_label
        firsts = race.leaders(found) if found.board.race else [first_place(found, n) for n in found.board.ipc]
        rows += [first | about for first in firsts]
    boards = table_view("Boards, and who leads them", INDEX, rows) if rows else None
    index = {"title": "Dataset distillation leaderboards", "boards": boards, "cards": cards, "chance": CHANCE}
    return {"index.html": render(page, "index.html", "", **index)} | made


def write(pages: dict[str, str | bytes], out: Path) -> list[Path]:
    """Write pages, and the images beside them, into a folder."""
    for name, held in pages.items():
        atomic_write(out / name, held if isinstance(held, bytes) else held.encode())
    return [out / name for name in pages if name.endswith(".html")]


def _pages(page: Environment, found: Standings) -> tuple[PageData, dict[str, str | bytes]]:
    """The card of a board for the overview, and the files of its page and of those of its entries."""
    board, files = found.board, dict[str, str | bytes]()

    def keep(data: bytes) -> str:
        name = f"{board.name}/{digest(data)[:16]}.webp"
        files[name] = data
        return name

    entries = [_entry(found, place, keep) for place in found.flat()]
    for entry in entries:
        about = {"board": _card(found), "entry": entry, "none": f"No command: {NONE}.", "title": entry["heading"]}
        files[entry["href"]] = render(page, "entry.html", "../", **about)
    card = _card(found) | {"leaders": _leaders(found, entries), "chart": budgets(found.flat())}
    return card, {f"{board.name}.html": _board(page, found, entries, card)} | files


def _card(found: Standings) -> PageData:
    board, count = found.board, len(found.flat())
    graded = sum(place.verdict is not None and place.verdict.state == "verified" for place in found.flat())
    many = f"{count} entr{'y' if count == 1 else 'ies'}, {graded} verified by others"
    each = f"{', '.join(map(str, board.ipc))} image{'s' if board.ipc != (1,) else ''} per class"
    goals = " or ".join(f"at least {100 * target:g} %" for target in board.race.targets) if board.race else ""
    return {
        "id": f"board-{board.name}",
        "href": f"{board.name}.html",
        "title": shown(board.title),
        "about": f"{board.dataset.name}, {board.network_label}; {each}; {many}",
        "goal": f"{goals} accuracy in the fewest seconds" if goals else "",
    }


def _leaders(found: Standings, entries: Sequence[PageData]) -> list[PageData]:
    """Who is first at each ipc, with the first of its images."""
    held = {entry["id"]: entry for entry in entries}
    leads = [(ipc, place) for ipc in sorted(found.places) for place in found.places[ipc] if place.rank == 1]
    return [
        held[place.entry.name] | {"place": f"{ipc} per class", "image": (held[place.entry.name]["images"] or [None])[0]}
        for ipc, place in leads
    ]


def _board(page: Environment, found: Standings, entries: Sequence[PageData], card: PageData) -> str:
    board, places = found.board, found.flat()
    hrefs = {entry["id"]: {"href": entry["href"]} for entry in entries}
    rankings = [
        table_view(f"{title}: ranked by seconds", race.SHOWN, [row | hrefs.get(row["entry"], {}) for row in rows])
        | {"heading": title, "figure": None}
        for title, rows in race.ranked(found)
        if rows
    ]
    rankings += [
        _ranking(found.places[ipc], ipc, [p.cells | hrefs[p.entry.name] for p in found.places[ipc]])
        for ipc in board.ipc
        if ipc in found.places
    ]
    drawn, costs = figures(places)
    more = (
        [("What counts", board.race.counts), ("What does not count", board.race.does_not_count)] if board.race else []
    )
    return render(
        page,
        "board.html",
        "",
        title=shown(board.title),
        about=shown(board.about, 2000),
        chance=CHANCE,
        leads=card["leaders"],
        chart=card["chart"],
        rules=rules(board),
        more_rules=[(title, [shown(text, 2000) for text in listed]) for title, listed in more],
        entering=entering(board),
        rankings=rankings,
        notes=[*found.notes, *(["All tables count as one in the correction of p."] if places else [])],
        charts=drawn,
        costs=costs,
        transfer=transfers(places, found.transfer, board.network_label),
        pairs=table_view("Pairs of entries", ONE_THING, found.pairs, once=("test",)) if found.pairs else None,
        about_pairs=ABOUT_ONE_THING,
        matched=table_view("The losses of every stage", MATCHED, found.matched) if found.matched else None,
        about_matched=ABOUT_MATCHED,
        reported=table_view("Published accuracies", REPORTED, found.reported) if found.reported else None,
        caution=CAUTION,
        entries=entries,
    )


def _ranking(places: Sequence[Place], ipc: int, rows: Sequence[Cells]) -> PageData:
    title = f"{ipc} per class: ranked by the mean over seeds"
    heading = f"{ipc} image{'s' if ipc > 1 else ''} per class"
    return table_view(title, RANKING, rows, once=ONCE) | {"heading": heading, "figure": ranked_view(places)}


def _entry(found: Standings, place: Place, keep: Keep) -> PageData:
    """All that its page says of an entry, and what cards and leaders say of it."""
    board, entry, row = found.board, place.entry, place.line.row
    accuracy = cell("accuracy_mean", place.cells).removesuffix(marks(place.cells))
    seen = Seen(opened(entry.picture_file), entry.picture, _sides(board)) if entry.picture else None
    images = seen.views(keep) if seen else []
    heading = f"{place.title}, {row.ipc} per class"
    return parts(heading, entry.runs) | {
        "id": entry.name,
        "href": f"{board.name}/{entry.name}.html",
        "title": place.title,
        "heading": heading,
        "ipc": row.ipc,
        "accuracy": f"{accuracy} %{marks(place.cells)}" if accuracy else row.status,
        "badge": place.verdict.state if place.verdict else "",
        "standing": _standing(found, place),
        "images": images,
        "image": images[0] if images else None,
        "command": board.command(entry),
        "install": links.install(entry.runs),
        "facts": _facts(place),
        "note": shown(entry.note, 2000),
    }


def _sides(board: Board) -> tuple[int, int] | None:
    return (board.dataset.shape[1], board.dataset.shape[2]) if board.dataset.shape else None


def _standing(found: Standings, place: Place) -> str:
    """Test accuracy of so many seeds, and which rank that is."""
    if place.rank is None:
        return "no seed finished"
    seeds, among = place.line.row.n, len(found.places[place.line.row.ipc or 0])
    interval = f", 95 % interval {cell('ci_low', place.cells)}" if place.line.bounds else ""
    ranked = "" if found.board.race else f"; rank {place.rank} of {among}"
    return f"test accuracy, mean of {seeds} seed{'s' if seeds > 1 else ''}{interval}{ranked}"


def _facts(place: Place) -> list[Fact]:
    entry, row = place.entry, place.line.row
    author, link = shown(entry.author), shown(entry.link)
    told: list[Fact] = [("by", author, None), ("link", link, links.safe(link)), *links.about(entry.runs[0])]
    told += [("date", shown(entry.date[:10]), None), ("status", row.status, None), ("hardware", place.hardware, None)]
    told += [("versions", shown(row.versions), None), ("note", shown(place.cells.get("note") or "", 300), None)]
    told += [("graded anew", graded_anew(entry, place.verdict), None)] if place.verdict else []
    return [fact for fact in told if fact[1]]
