"""What pages show, as plain data for templates: tables, charts with their numbers, images, the parts of an entry."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddbench.boards import charts
from ddbench.boards.charts import Series
from ddbench.boards.entry import EntryRun, shown
from ddbench.boards.picture import TALLEST, WIDEST, Picture, encoded
from ddbench.boards.tiles import clear
from ddbench.results.aggregate import one_per_run
from ddbench.results.tables import cell
from ddbench.results.where import is_number
from ddbench.run.row import Cells, Row

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddbench.run.record import StageRecord

PageData = dict[str, Any]
Fact = tuple[str, str, str | None]  # what it is of, what it says, and where that leads
FALLING = {"accuracy_mean", "n", "difference", "accuracy"}  # whose best are the largest: sorted so at the first click
MACHINE = ("device", "torch", "ddbench", "image_bytes", "label_bytes")
Levels = Sequence[tuple[str, float]]  # what is drawn as a level, and where
LONG = 28
DOTTED = ". Dotted: where stages begin"
RUNS = {
    "seed": "seed", "status": "status", "accuracy": "accuracy %", "lr": "student lr", "distil_seconds": "distil s",
    "expert_seconds": "experts s", "selection_seconds": "selection s", "peak_bytes": "peak MB",
    "image_bytes": "images kB", "label_bytes": "labels kB", "device": "hardware", "torch": "torch",
    "ddbench": "ddbench", "error": "error", "tensors": "sha256 of the tensors",
}  # fmt: skip


def table_view(
    caption: str, titles: dict[str, str], rows: Sequence[Cells], *, sortable: bool = True, once: Sequence[str] = ()
) -> PageData:
    """Rows as a table with a caption; columns in which no row says anything are left out.

    Of the columns ``once``, those that all of several rows agree on are said once, in the caption.
    """
    kept = {name: title for name, title in titles.items() if any(_said(name, row) for row in rows)}
    told = {name: {_said(name, row) for row in rows} for name in once if name in kept and len(rows) > 1}
    agreed = {name: found.pop() for name, found in told.items() if len(found) == 1}
    kept = {name: title for name, title in kept.items() if name not in agreed}
    numbers = {name for name in kept if all(is_number(row.get(name)) or not _said(name, row) for row in rows)}
    head = [
        {"title": shown(title, 60), "css": _css(name, "", name in numbers), "falling": name in FALLING}
        for name, title in kept.items()
    ]
    lead = "title" if "title" in kept else next(iter(kept), "")
    body = [[_cell(name, row, name in numbers, name == lead) for name in kept] for row in rows]
    same = ", ".join(f"{titles[name]} {text}" for name, text in agreed.items())
    about = shown(caption, 200) + (f". In all rows: {same}" if same else "")
    return {"caption": about, "columns": head, "rows": body, "sortable": sortable and len(rows) > 1}


def _said(name: str, row: Cells) -> str:
    return shown(cell(name, row), 300)


def _cell(name: str, row: Cells, number: bool, lead: bool) -> PageData:
    text, value = _said(name, row), row.get(name)
    css = _css(name, text, number)
    return {
        "text": text,
        "tag": "th" if lead else "td",
        "sort": f"{value}" if is_number(value) else text,
        "css": f"{css} best".strip() if name == "accuracy_mean" and row.get("best") else css,
        "href": row.get("href") if lead else None,
    }


def _css(name: str, text: str, number: bool) -> str:
    wide = "long" if len(text) > LONG else ""
    return f"{'number' if number else wide}{' rank' if name == 'rank' else ''}".strip()


def inline(data: bytes) -> str:
    """A WebP as an address that holds it: for pages that are one file."""
    return "data:image/webp;base64," + base64.b64encode(data).decode()


@dataclass(frozen=True)
class Seen:
    """A picture of a set and where its stages are in it; the sides (h, w) of an image, where they are known."""

    image: Image
    layout: Picture
    sides: Sequence[int] | None = None

    def views(self, keep: Callable[[bytes], str] = inline) -> list[PageData]:
        """The images, a grid per stage with the names of its columns; ``keep`` stores a WebP and gives its address.

        Pages hold pixels that were read and written anew, not whatever bytes a file had.
        """
        found, layout, stages = [], self.layout, self.layout.stages
        for number, (stage, part) in enumerate(zip(stages, layout.crops(self.image), strict=True), start=1):
            part.thumbnail((WIDEST, TALLEST))
            few = f"{stage.shown} of {stage.of}" if stage.shown < stage.of else str(stage.of)
            where = f"Stage {number} of {len(stages)}: " if len(stages) > 1 else ""
            some = f"; {len(layout.classes)} of {layout.of} classes" if len(layout.classes) < layout.of else ""
            tiled = clear(part, len(layout.classes), stage.shown, self.sides)
            found.append(
                {
                    "caption": f"{where}synthetic images, {few} per class{some}; columns are classes",
                    "classes": [shown(name, 40) for name in layout.classes],
                    "uri": keep(encoded(tiled)),
                    "width": part.width,
                    "height": part.height,
                }
            )
        return found


def parts(title: str, runs: Sequence[EntryRun], levels: Levels = ()) -> PageData:
    """All there is to say of the runs of one setting: for an entry of a board, and for the report of a run.

    ``levels`` are test accuracies, in percent, that those of checkpoints are drawn beside.
    """
    views = [view for view in (_losses(title, runs), _checks(title, runs, levels)) if view]
    return {
        "many": len(runs) > 1,
        "charts": [chart for chart, _ in views],
        "tables": [table_view("Runs", RUNS, [_run(run) for run in runs], once=("status", *MACHINE))],
        "folded": [_students(runs), *(table for _, table in views)],
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
        series += [Series(f"seed {run.seed}", x, y, tone=_tone(len(series)))] if x else []
    if not series:
        return None
    titles = {n: n for n in ("stage", "iteration", *(s.name for s in series))}
    about = "The numbers are in the table of losses."
    borders = _borders(runs)
    drawn = charts.curves(series, f"Loss of {title}", about, "iteration", "loss", borders=borders)
    return (
        {"svg": drawn, "caption": f"Loss of the matcher over all stages, thinned{DOTTED if borders else ''}"},
        table_view("Losses", titles, [cells[key] for key in sorted(cells)]),
    )


def _checks(title: str, runs: Sequence[EntryRun], levels: Levels = ()) -> tuple[PageData, PageData] | None:
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
                tried = ", ".join(f"{rate}: {100 * score:.2f}" for rate, score in check.tried.items())
                chosen = "selected" if stage.selected and check.step == stage.selected.step else ""
                about = {"seed": run.seed, "stage": i, "iteration": check.step, "choice": chosen, "tried": tried}
                rows.append(about | {"lr": check.lr, "accuracy": round(y[-1], 2)})
        series += [Series(f"seed {run.seed}", x, y, tone=_tone(len(series)))] if x else []
    if not series:
        return None
    about = "The numbers are in the table of selection checks."
    split = "test" if any(run.result.selection == "test" for run in runs) else "validation"
    borders, named = _borders(runs), f"Accuracy on {split} images of {title}"
    drawn = charts.curves(series, named, about, "iteration", "accuracy %", borders=borders, levels=levels)
    titles = {
        "seed": "seed",
        "stage": "stage",
        "iteration": "iteration",
        "lr": "best lr",
        "accuracy": "accuracy %",
        "choice": "chosen",
        "tried": "accuracy % by lr",
    }
    caption = f"Accuracy of the checkpoints compared, on the {split} images that select"
    caption += " (†: so the test accuracy of this run is not an independent one)" if split == "test" else ""
    caption += DOTTED if borders else ""
    caption += ". Dashed: test accuracies" if levels else ""
    return {"svg": drawn, "caption": caption}, table_view("Selection checks", titles, rows)


def experts_view(title: str, stages: Sequence[StageRecord]) -> tuple[PageData, PageData] | None:
    """What the first expert of each stage reaches on validation images, snapshot by snapshot."""
    series, rows = [], list[Cells]()
    for i, seen in enumerate(stage.experts for stage in stages):
        if seen is None:
            continue
        scores = [100 * accuracy for accuracy in seen.accuracies]
        series.append(Series(f"stage {i}", list(map(float, seen.epochs)), scores, tone=_tone(i)))
        for epoch, score in zip(seen.epochs, scores, strict=True):
            rows.append({"stage": i, "epoch": epoch, "accuracy": round(score, 2), "images": seen.images})
    if not series:
        return None
    about = "The numbers are in the table of experts."
    drawn = charts.curves(series, f"Accuracy of the experts of {title}", about, "epoch of the expert", "accuracy %")
    titles = {"stage": "stage", "epoch": "epoch", "accuracy": "accuracy %", "images": "validation images"}
    caption = (
        "Accuracy of the first expert's snapshots on validation images: a set teaches no more than its targets know"
    )
    return {"svg": drawn, "caption": caption}, table_view("Experts", titles, rows)


def _tone(i: int) -> int | None:
    """The tone of the i-th line of a chart: the first ones are coloured, and as many as there are colours."""
    return i if i < len(charts.COLOURS) else None


def _borders(runs: Sequence[EntryRun]) -> list[float]:
    """The iterations at which the later stages of the first run begin; other seeds have the same."""
    return list(map(float, sorted({*_offsets(runs[0]).values()})[1:-1])) if runs else []


def _offsets(run: EntryRun) -> dict[int, int]:
    """At which iteration, counted over all stages, each stage begins."""
    found, total = {}, 0
    for i in range(len(run.curves) + len(run.stages) + 1):
        found[i] = total
        total += run.stages[i].steps if i < len(run.stages) else 0
    return found
