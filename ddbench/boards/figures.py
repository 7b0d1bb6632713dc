"""What a board draws of its entries together: their ranking, accuracy against costs, and accuracy on other networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ddbench.boards import charts
from ddbench.boards.charts import Ranked, Series
from ddbench.boards.entry import shown
from ddbench.boards.ranking import Place
from ddbench.boards.site_data import PageData, table_view
from ddbench.run.defaults import BASELINE, ONE_STAGE
from ddbench.run.row import Cells

COSTS = {  # what a cost is called, the least that is told apart, and the title of its axis
    "kilobytes": ("bytes stored", 0.0, "stored kB (images and labels)"),
    "seconds": ("seconds", 1.0, "seconds of distilling and experts"),
}


def ranked_view(places: Sequence[Place]) -> PageData | None:
    """The ranking of one ipc as a chart: means, intervals, and every seed."""
    done = [(place, place.mean) for place in places if place.mean is not None]
    if len(done) < 2:
        return None
    drawn = [
        Ranked(
            place.title,
            100 * mean,
            place.line.bounds and (100 * place.line.bounds[0], 100 * place.line.bounds[1]),
            [100 * score for score in place.line.scores.values()],
            is_base(place),
        )
        for place, mean in done
    ]
    title = f"Accuracies of {done[0][0].line.row.ipc} per class"
    about = "Means and intervals are in the table above; each seed is in the table of runs of its entry."
    caption = "Point: mean over seeds. Bar: 95 % confidence interval, cut where it leaves the chart. Strokes: seeds. "
    caption += "Dotted: random images" if any(row.base for row in drawn) else ""
    return {"svg": charts.ranked(drawn, title, about, "accuracy %"), "caption": caption.strip()}


def is_base(place: Place) -> bool:
    """Whether an entry is what others are compared with: random images with hard labels, in one set."""
    row = place.line.row
    return (row.matcher, row.scheduler, row.label_type) == (BASELINE, ONE_STAGE, "hard")


def tones(places: Sequence[Place]) -> dict[str, int | None]:
    """How charts show each method: those that are first at an ipc and others of high rank by a colour, the rest grey.

    With random images, which have a tone of their own, they are as many as there are colours.
    """
    best: dict[str, tuple[int, float]] = {}
    for place in places:
        if place.mean is not None and place.rank is not None:
            standing = (place.rank, -place.mean)
            best[place.title] = min(best.get(place.title, standing), standing)
    base = {place.title for place in places if is_base(place)}
    order = [title for title in sorted(best, key=lambda title: (best[title], title)) if title not in base]
    named = order[: len(charts.COLOURS) - bool(base)]
    tone = {title: named.index(title) if title in named else None for title in order}
    return tone | dict.fromkeys(base & best.keys(), charts.BASE)


@dataclass(frozen=True, eq=False)
class Spent:
    """An entry that finished, its accuracy in percent and its costs by their names in ``COSTS``.

    ``fronts`` collects those in which nothing beats it.
    """

    place: Place
    ipc: int
    percent: float
    costs: dict[str, float | None]
    fronts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, place: Place) -> Spent:
        row, total = place.line.row, place.line.total_bytes
        known = [s for s in (row.distil_seconds, row.expert_seconds) if s is not None]
        costs = {
            "seconds": sum(known) if len(known) == 2 else None,
            "kilobytes": None if total is None else total / 1000,
        }
        return cls(place, row.ipc or 0, 100 * (place.mean or 0.0), costs)

    @property
    def cells(self) -> Cells:
        return self.place.cells | self.costs | {f"{n}_front": "yes" if n in self.fronts else "" for n in COSTS}


def budgets(places: Sequence[Place]) -> PageData | None:
    """Accuracy against images per class, of six methods at most by name; nothing where no entry finished."""
    by_title, tone = _by_title(places), tones(places)
    if not by_title:
        return None
    series = [
        Series(
            title,
            [s.ipc for s in group],
            [s.percent for s in group],
            [None if (std := s.place.line.row.accuracy_std) is None else 100 * std for s in group],
            tone=tone[title],
        )
        for title, group in by_title.items()
    ]
    about = "Mean test accuracy and deviation over seeds of each method; the table of costs has all values."
    title = "Accuracy against images per class"
    drawn = charts.lines(series, title, about, "images per class", "accuracy %", log=True)
    grey = sum(value is None for value in tone.values())
    rest = f". Grey: {grey} other method{'s' if grey > 1 else ''}, in the tables" if grey else ""
    return {"svg": drawn, "caption": f"{title}: means over seeds ± one sample deviation{rest}"}


def _by_title(places: Sequence[Place]) -> dict[str, list[Spent]]:
    done = [Spent.of(place) for place in places if place.mean is not None]
    done.sort(key=lambda spent: (spent.ipc, spent.place.entry.name))
    found: dict[str, list[Spent]] = {}
    for spent in done:
        found.setdefault(spent.place.title, []).append(spent)
    return found


def figures(places: Sequence[Place]) -> tuple[list[PageData], PageData]:
    """Accuracy against bytes and seconds, and the table of all that is drawn."""
    by_title, found = _by_title(places), []
    done = sorted((s for group in by_title.values() for s in group), key=lambda s: (s.ipc, s.place.entry.name))
    parts = [("", "kilobytes", done)]
    machines = {spent.place.hardware for spent in done}
    for ipc, machine in dict.fromkeys((spent.ipc, spent.place.hardware) for spent in done):
        where = f", {ipc} per class" + (f", on {machine or 'an unnamed machine'}" if len(machines) > 1 else "")
        parts.append((where, "seconds", [s for s in done if (s.ipc, s.place.hardware) == (ipc, machine)]))
    for where, name, part in parts:
        found += _against(part, where, name)
    shown_ = {
        "title": "method",
        "ipc": "ipc",
        "accuracy_mean": "accuracy %",
        "n": "seeds",
        "total_bytes": "total kB",
        "seconds": "distil and experts s",
        "selection_seconds": "selection s",
        "peak_bytes": "peak MB",
        "hardware": "hardware",
        "kilobytes_front": "Pareto: bytes",
        "seconds_front": "Pareto: seconds, within ipc and hardware",
    }
    return found, table_view("Accuracies and costs, as drawn above", shown_, [spent.cells for spent in done])


def _against(part: Sequence[Spent], where: str, name: str) -> list[PageData]:
    """Accuracy against a cost; what costs less than the clock is worth, a second, is drawn and judged as a second."""
    words, least, axis = COSTS[name]
    drawn = [(spent, max(cost, least)) for spent in part if (cost := spent.costs[name]) is not None]
    if not drawn:
        return []
    front = charts.pareto([(cost, spent.percent) for spent, cost in drawn])
    top = [(spent, cost) for spent, cost in drawn if (cost, spent.percent) in front]
    for spent, _ in top:
        spent.fronts.add(name)
    named = sorted(top, key=lambda pair: -pair[0].percent)[: len(charts.COLOURS)]
    rest = [pair for pair in drawn if pair not in named]
    series = [Series("", [cost for _, cost in rest], [spent.percent for spent, _ in rest], tone=None)]
    for tone, (spent, cost) in enumerate(named):
        said = spent.place.title + ("" if where else f", ipc {spent.ipc}")
        series.append(Series(said, [cost], [spent.percent], tone=tone))
    about = "The table of costs has all values."
    svg = charts.scatter(series, front, f"Accuracy against {words}{where}", about, axis)
    return [{"svg": svg, "caption": f"Accuracy against {words}{where}. Dotted: what nothing beats in both"}]


def transfers(places: Sequence[Place], other: dict[str, list[Place]], own: str) -> PageData | None:
    """Sets evaluated on networks that they were not made for: a heat map and its table."""
    # a mean over some of the seeds is no neighbour of one over all: who submits could choose them
    means = {
        place.entry.name: {
            p.line.row.network: p.mean
            for p in other.get(place.entry.name, [])
            if p.line.scores and p.line.scores.keys() == place.line.scores.keys()
        }
        for place in places
    }
    names = sorted({str(network) for found in means.values() for network in found})
    if not names:
        return None
    cells, body, titles = [], [], []
    for place in places:
        if found := means[place.entry.name]:
            accuracies = {own: place.mean} | found
            values = [None if (mean := accuracies.get(n)) is None else round(100 * mean, 1) for n in (own, *names)]
            cells.append(values)
            about = {"title": place.title, "ipc": place.line.row.ipc}
            body.append(about | dict(zip((own, *names), values, strict=True)))
            titles.append(f"{shown(place.title, 24)} ipc {place.line.row.ipc}")
    drawn = charts.heat(titles, [shown(n, 24) for n in (own, *names)], cells, "Accuracy on other networks")
    columns = {"title": "method", "ipc": "ipc"} | {n: f"{shown(n, 60)} %" for n in (own, *names)}
    caption = "Accuracy in percent, mean over all seeds of the entry; the first column is the network of the board"
    return {
        "figure": {"svg": drawn, "caption": caption},
        "table": table_view("Accuracies on other networks", columns, body),
    }
