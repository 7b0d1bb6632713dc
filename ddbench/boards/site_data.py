"""What pages show, as plain data for templates: tables, charts with their numbers, images, the parts of an entry."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddbench.boards import charts
from ddbench.boards.charts import Ranked, Series
from ddbench.boards.entry import EntryRun, shown
from ddbench.boards.picture import TALLEST, WIDEST, Picture, encoded
from ddbench.boards.ranking import Place
from ddbench.results.aggregate import one_per_run
from ddbench.results.tables import cell
from ddbench.results.where import is_number
from ddbench.run.row import Cells, Row

if TYPE_CHECKING:
    from PIL.Image import Image

PageData = dict[str, Any]
FALLING = {"accuracy_mean", "n", "difference", "accuracy"}  # whose best are the largest: sorted so at the first click
LONG = 28
COSTS = {  # what a cost is called, the least that is told apart, and the title of its axis
    "kilobytes": ("bytes stored", 0.0, "stored kB (images and labels)"),
    "seconds": ("seconds", 1.0, "seconds of distilling and experts"),
}
RUNS = {
    "seed": "seed", "status": "status", "accuracy": "accuracy %", "lr": "student lr", "distil_seconds": "distil s",
    "expert_seconds": "experts s", "selection_seconds": "selection s", "peak_bytes": "peak MB",
    "image_bytes": "images kB", "label_bytes": "labels kB", "device": "hardware", "torch": "torch",
    "ddbench": "ddbench", "error": "error", "tensors": "sha256 of the tensors",
}  # fmt: skip


def table_view(caption: str, titles: dict[str, str], rows: Sequence[Cells], *, sortable: bool = True) -> PageData:
    """Rows as a table with a caption; columns in which no row says anything are left out."""
    kept = {name: title for name, title in titles.items() if any(_said(name, row) for row in rows)}
    numbers = {name for name in kept if all(is_number(row.get(name)) or not _said(name, row) for row in rows)}
    head = [
        {"title": shown(title, 60), "number": name in numbers, "falling": name in FALLING}
        for name, title in kept.items()
    ]
    lead = "title" if "title" in kept else next(iter(kept), "")
    body = [[_cell(name, row, name in numbers, name == lead) for name in kept] for row in rows]
    return {"caption": shown(caption, 200), "columns": head, "rows": body, "sortable": sortable and len(rows) > 1}


def _said(name: str, row: Cells) -> str:
    return shown(cell(name, row), 300)


def _cell(name: str, row: Cells, number: bool, lead: bool) -> PageData:
    text, value = _said(name, row), row.get(name)
    css = "number" if number else "long" if len(text) > LONG else ""
    return {
        "text": text,
        "tag": "th" if lead else "td",
        "sort": value if is_number(value) else text,
        "css": f"{css} best".strip() if name == "accuracy_mean" and row.get("best") else css,
        "href": row.get("href") if lead else None,
    }


def pictures_view(image: Image, layout: Picture) -> list[PageData]:
    """The images of a set, a grid per stage with the names of its columns.

    Pages hold pixels that were read and written anew, not whatever bytes a file had.
    """
    found, stages = [], layout.stages
    for number, (stage, part) in enumerate(zip(stages, layout.crops(image), strict=True), start=1):
        part.thumbnail((WIDEST, TALLEST))
        few = f"{stage.shown} of {stage.of}" if stage.shown < stage.of else str(stage.of)
        where = f"Stage {number} of {len(stages)}: " if len(stages) > 1 else ""
        some = f"; {len(layout.classes)} of {layout.of} classes" if len(layout.classes) < layout.of else ""
        found.append({
            "caption": f"{where}synthetic images, {few} per class{some}; columns are classes",
            "classes": [shown(name, 40) for name in layout.classes],
            "uri": "data:image/webp;base64," + base64.b64encode(encoded(part)).decode(),
            "width": part.width,
            "height": part.height,
        })  # fmt: skip
    return found


def parts(title: str, runs: Sequence[EntryRun], command: str, seen: tuple[Image, Picture] | None) -> PageData:
    """All there is to say of the runs of one setting: for an entry of a board, and for the report of a run."""
    drawn, folded = [], []
    for view in (_losses(title, runs), _checks(title, runs)):
        if view:
            drawn.append(view[0])
            folded.append(view[1])
    return {
        "command": "\n".join(shown(line, 4000) for line in command.splitlines()),
        "many": len(runs) > 1,
        "images": pictures_view(*seen) if seen else [],
        "charts": drawn,
        "tables": [table_view("Runs", RUNS, [_run(run) for run in runs]), _students(runs)],
        "folded": folded,
        "note": "",
        "facts": [],
    }


def _run(run: EntryRun) -> Cells:
    """A run with its costs, and the accuracy of its evaluation on its own network and under its own rules."""
    result, machine = run.result, run.result.machine
    (own,) = one_per_run([row for row in run.rows() if _own(row, run)]) or [None]
    rates = [f"{stage.selected.lr:.4g}" for stage in run.stages if stage.selected and stage.selected.lr is not None]
    mean = own.accuracy_mean if own else None
    return result.json_value() | {
        "seed": run.seed,
        "status": own.status if own else result.status,
        "error": (own and own.error) or result.error,
        "accuracy": None if mean is None else round(100 * mean, 2),
        "lr": ", ".join(rates),
        "device": machine.device,
        "torch": machine.torch,
        "ddbench": machine.ddbench,
        "tensors": (run.tensors or "")[:16],
    }


def _own(row: Row, run: EntryRun) -> bool:
    return (row.network, row.protocol_digest) == (run.result.network, run.spec.protocol_digest)


def _students(runs: Sequence[EntryRun]) -> PageData:
    """Every number of every student."""
    rows, metrics = [], dict[str, str]()
    for run in runs:
        for evaluation in run.evaluations:
            for i, student in enumerate(evaluation.students):
                numbers = student.json_value()
                metrics |= {name: name for name in numbers}
                rows.append({"network": evaluation.network, "seed": run.seed, "student": i, **numbers})
    return table_view("Students, as fractions", {n: n for n in ("network", "seed", "student")} | metrics, rows)


def _losses(title: str, runs: Sequence[EntryRun]) -> tuple[PageData, PageData] | None:
    series, cells = [], dict[tuple[int, int], Cells]()
    for run in runs:
        ends, x, y = _offsets(run), list[float](), list[float]()
        for curve in run.curves:
            for step, loss in zip(curve.step, curve.loss, strict=True):
                x.append(ends[curve.stage] + step)
                y.append(loss)
                row = cells.setdefault((curve.stage, step), {"stage": curve.stage, "iteration": step})
                row[f"seed {run.seed}"] = loss
        series += [Series(f"seed {run.seed}", x, y)] if x else []
    if not series:
        return None
    titles = {n: n for n in ("stage", "iteration", *(s.name for s in series))}
    drawn = charts.curves(series, f"Loss of {title}", "The numbers are in the table of losses.", "iteration", "loss")
    return ({"svg": drawn, "caption": "Loss of the matcher over all stages, thinned"},
            table_view("Losses", titles, [cells[key] for key in sorted(cells)]))  # fmt: skip


def _checks(title: str, runs: Sequence[EntryRun]) -> tuple[PageData, PageData] | None:
    """What selection saw: the best accuracy on validation images of each checkpoint."""
    series, rows = [], list[Cells]()
    for run in runs:
        ends, x, y = _offsets(run), list[float](), list[float]()
        for i, stage in enumerate(run.stages):
            for check in stage.checks:
                if check.accuracy is None:
                    continue
                x.append(ends[i] + check.step)
                y.append(100 * check.accuracy)
                tried = {f"lr {rate}": round(100 * score, 2) for rate, score in check.tried.items()}
                chosen = "selected" if stage.selected and check.step == stage.selected.step else ""
                rows.append({"seed": run.seed, "stage": i, "iteration": check.step, "lr": check.lr,
                             "accuracy": round(y[-1], 2), "choice": chosen, **tried})  # fmt: skip
        series += [Series(f"seed {run.seed}", x, y)] if x else []
    if not series:
        return None
    about = "The numbers are in the table of selection checks."
    split = "test" if any(run.result.selection == "test" for run in runs) else "validation"
    drawn = charts.curves(series, f"Accuracy on {split} images of {title}", about, "iteration", "accuracy %")
    titles = {"seed": "seed", "stage": "stage", "iteration": "iteration", "lr": "best lr", "accuracy": "accuracy %",
              "choice": "chosen", **{n: f"{n}: %" for row in rows for n in row if n.startswith("lr ")}}  # fmt: skip
    caption = f"Accuracy of the checkpoints compared, on the {split} images that select"
    caption += " (†: so the test accuracy of this run is not an independent one)" if split == "test" else ""
    return {"svg": drawn, "caption": caption}, table_view("Selection checks", titles, rows)


def _offsets(run: EntryRun) -> dict[int, int]:
    """At which iteration, counted over all stages, each stage begins."""
    found, total = {}, 0
    for i in range(len(run.curves) + len(run.stages) + 1):
        found[i] = total
        total += run.stages[i].steps if i < len(run.stages) else 0
    return found


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
        )
        for place, mean in done
    ]
    title = f"Accuracies of {done[0][0].line.row.ipc} per class"
    about = "Means and intervals are in the table above; each seed is in the table of runs of its entry."
    caption = "Point: mean over seeds. Bar: 95 % confidence interval, cut where it leaves the chart. Strokes: seeds"
    return {"svg": charts.ranked(drawn, title, about, "accuracy %"), "caption": caption}


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


def figures(places: Sequence[Place]) -> tuple[list[PageData], PageData]:
    """Accuracy against images per class, bytes and seconds, and the table of all that is drawn."""
    done = [Spent.of(place) for place in places if place.mean is not None]
    done.sort(key=lambda spent: (spent.ipc, spent.place.entry.name))
    by_title: dict[str, list[Spent]] = {}
    for spent in done:
        by_title.setdefault(spent.place.title, []).append(spent)
    found = [{"svg": _budgets(by_title), "caption": "Mean over seeds; bars are ± one sample deviation over seeds"}]
    parts = [("", "kilobytes", done)]
    machines = {spent.place.hardware for spent in done}
    for ipc, machine in dict.fromkeys((spent.ipc, spent.place.hardware) for spent in done):
        where = f", {ipc} per class" + (f", on {machine or 'an unnamed machine'}" if len(machines) > 1 else "")
        parts.append((where, "seconds", [s for s in done if (s.ipc, s.place.hardware) == (ipc, machine)]))
    for where, name, part in parts:
        found += _against(part, where, name, by_title)
    shown_ = {"title": "method", "ipc": "ipc", "accuracy_mean": "accuracy %", "n": "seeds", "total_bytes": "total kB",
              "seconds": "distil and experts s", "hardware": "hardware", "kilobytes_front": "Pareto: bytes",
              "seconds_front": "Pareto: seconds, within ipc and hardware"}  # fmt: skip
    return found, table_view("Accuracies and costs, as drawn above", shown_, [spent.cells for spent in done])


def _budgets(by_title: dict[str, list[Spent]]) -> str:
    series = [
        Series(title, [s.ipc for s in group], [s.percent for s in group],
               [None if (std := s.place.line.row.accuracy_std) is None else 100 * std for s in group])
        for title, group in by_title.items()
    ]  # fmt: skip
    about = "Mean test accuracy and deviation over seeds of each method; the table of costs has all values."
    return charts.lines(series, "Accuracy against images per class", about, "images per class", "accuracy %", log=True)


def _against(part: Sequence[Spent], where: str, name: str, by_title: dict[str, list[Spent]]) -> list[PageData]:
    """Accuracy against a cost; what costs less than the clock is worth, a second, is drawn and judged as a second."""
    words, least, axis = COSTS[name]
    points = {id(spent): (max(cost, least), spent.percent) for spent in part if (cost := spent.costs[name]) is not None}
    if not points:
        return []
    front = charts.pareto(list(points.values()))
    drawn = [spent for spent in part if id(spent) in points]
    tops: dict[int, Spent] = {}
    for spent in drawn:
        if points[id(spent)] in front:
            spent.fronts.add(name)
        best = tops.setdefault(spent.ipc, spent)
        tops[spent.ipc] = max(best, spent, key=lambda s: (s.percent, s.place.entry.name))
    said = {id(spent): f"ipc {ipc}" for ipc, spent in tops.items()} if not where else {}
    series = []
    for title, group in by_title.items():
        own = [spent for spent in group if spent in drawn]
        x, y = ([points[id(spent)][i] for spent in own] for i in (0, 1))
        series.append(Series(title, x, y, labels=[said.get(id(spent), "") for spent in own]))
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
