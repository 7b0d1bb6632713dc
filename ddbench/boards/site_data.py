"""What pages show, as plain data for templates: tables, charts with their numbers, images, the parts of an entry."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from ddbench.boards import charts
from ddbench.boards import entry as entries
from ddbench.boards.charts import Ranked, Series
from ddbench.boards.entry import shown
from ddbench.results.aggregate import one_per_run
from ddbench.results.tables import cell
from ddbench.results.where import Row, is_number

View = dict[str, Any]
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


def table(caption: str, titles: dict[str, str], rows: Sequence[Row], *, sortable: bool = True) -> View:
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


def _said(name: str, row: Row) -> str:
    return shown(cell(name, row), 300)


def _cell(name: str, row: Row, number: bool, lead: bool) -> View:
    text, value = _said(name, row), row.get(name)
    css = "number" if number else "long" if len(text) > LONG else ""
    return {
        "text": text,
        "tag": "th" if lead else "td",
        "sort": value if is_number(value) else text,
        "css": f"{css} best".strip() if name == "accuracy_mean" and row.get("best") else css,
        "href": row.get("href") if lead else None,
    }


def picture(png: bytes, layout: View) -> list[View]:
    """The images of a set, a grid per stage with the names of its columns."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.load()
    found, stages = [], layout["stages"]
    for number, stage in enumerate(stages, start=1):
        part = image.crop((0, round(stage["top"] * image.height), image.width, round(stage["bottom"] * image.height)))
        out = io.BytesIO()
        part.save(out, "PNG")
        few = f"{stage['shown']} of {stage['of']}" if stage["shown"] < stage["of"] else str(stage["of"])
        where = f"Stage {number} of {len(stages)}: " if len(stages) > 1 else ""
        some = f"; {len(layout['classes'])} of {layout['of']} classes" if len(layout["classes"]) < layout["of"] else ""
        found.append({
            "caption": f"{where}synthetic images, {few} per class{some}; columns are classes",
            "classes": [shown(name, 40) for name in layout["classes"]],
            "uri": "data:image/png;base64," + base64.b64encode(out.getvalue()).decode(),
            "width": part.width,
            "height": part.height,
        })  # fmt: skip
    return found


def parts(title: str, runs: Sequence[View], command: str, png: tuple[bytes, View] | None) -> View:
    """All there is to say of the runs of one setting: for an entry of a board, and for the report of a run."""
    drawn, folded = [], []
    for view in (_losses(title, runs), _checks(title, runs)):
        if view:
            drawn.append(view[0])
            folded.append(view[1])
    return {
        "command": "\n".join(shown(line, 4000) for line in command.splitlines()),
        "many": len(runs) > 1,
        "images": picture(*png) if png else [],
        "charts": drawn,
        "tables": [table("Runs", RUNS, [_run(run) for run in runs]), _students(runs)],
        "folded": folded,
        "note": "",
        "facts": [],
    }


def _run(run: View) -> Row:
    result = run["result"]
    (own,) = one_per_run([row for row in entries.rows([run]) if _own(row, run["spec"], result)]) or [None]
    rates = [f"{stage['selected']['lr']:.4g}" for stage in run["stages"] if stage.get("selected")]
    machine = result.get("machine", {})
    return result | {
        "seed": run["seed"],
        "accuracy": round(100 * own["accuracy_mean"], 2) if own and own["accuracy_mean"] is not None else None,
        **({name: own[name] for name in ("status", "error") if own.get(name)} if own else {}),
        "lr": ", ".join(rates),
        "device": machine.get("device"),
        "torch": machine.get("torch"),
        "ddbench": machine.get("ddbench"),
        "tensors": (run["tensors"] or "")[:16],
    }


def _own(row: Row, spec: View, result: View) -> bool:
    """Whether a row is an evaluation of a run on its own network and under its own rules."""
    return (row["network"], row["protocol_digest"]) == (result.get("network"), spec["protocol_digest"])


def _students(runs: Sequence[View]) -> View:
    """Every number of every student."""
    rows, metrics = [], dict[str, str]()
    for run in runs:
        for evaluation in run["evaluations"]:
            for i, student in enumerate(evaluation["students"]):
                metrics |= {name: name for name in student}
                rows.append({"network": evaluation["network"], "seed": run["seed"], "student": i, **student})
    return table("Students, as fractions", {n: n for n in ("network", "seed", "student")} | metrics, rows)


def _losses(title: str, runs: Sequence[View]) -> tuple[View, View] | None:
    series, cells = [], dict[tuple[int, int], Row]()
    for run in runs:
        ends, x, y = _offsets(run), list[float](), list[float]()
        for curve in run["curves"]:
            for step, loss in zip(curve["step"], curve["loss"], strict=True):
                x.append(ends[curve["stage"]] + step)
                y.append(loss)
                row = cells.setdefault((curve["stage"], step), {"stage": curve["stage"], "iteration": step})
                row[f"seed {run['seed']}"] = loss
        series += [Series(f"seed {run['seed']}", x, y)] if x else []
    if not series:
        return None
    titles = {n: n for n in ("stage", "iteration", *(s.name for s in series))}
    drawn = charts.curves(series, f"Loss of {title}", "The numbers are in the table of losses.", "iteration", "loss")
    return ({"svg": drawn, "caption": "Loss of the matcher over all stages, thinned"},
            table("Losses", titles, [cells[key] for key in sorted(cells)]))  # fmt: skip


def _offsets(run: View) -> dict[int, int]:
    """At which iteration, counted over all stages, each stage begins."""
    found, total = {}, 0
    for i in range(len(run["curves"]) + len(run["stages"]) + 1):
        found[i] = total
        total += run["stages"][i]["steps"] if i < len(run["stages"]) else 0
    return found


def _checks(title: str, runs: Sequence[View]) -> tuple[View, View] | None:
    """What selection saw: the best accuracy on validation images of each checkpoint."""
    series, rows = [], list[Row]()
    for run in runs:
        ends, x, y = _offsets(run), list[float](), list[float]()
        for i, stage in enumerate(run["stages"]):
            for check in stage.get("checks", []):
                if check["accuracy"] is None:
                    continue
                x.append(ends[i] + check["step"])
                y.append(100 * check["accuracy"])
                tried = {f"lr {rate}": round(100 * score, 2) for rate, score in check["tried"].items()}
                chosen = "selected" if check["step"] == stage["selected"]["step"] else ""
                rows.append({"seed": run["seed"], "stage": i, "iteration": check["step"], "lr": check["lr"],
                             "accuracy": round(y[-1], 2), "choice": chosen, **tried})  # fmt: skip
        series += [Series(f"seed {run['seed']}", x, y)] if x else []
    if not series:
        return None
    about = "The numbers are in the table of selection checks."
    split = "test" if any(run["result"].get("selection") == "test" for run in runs) else "validation"
    drawn = charts.curves(series, f"Accuracy on {split} images of {title}", about, "iteration", "accuracy %")
    titles = {"seed": "seed", "stage": "stage", "iteration": "iteration", "lr": "best lr", "accuracy": "accuracy %",
              "choice": "chosen", **{n: f"{n}: %" for row in rows for n in row if n.startswith("lr ")}}  # fmt: skip
    caption = f"Accuracy of the checkpoints compared, on the {split} images that select"
    caption += " (†: so the test accuracy of this run is not an independent one)" if split == "test" else ""
    return {"svg": drawn, "caption": caption}, table("Selection checks", titles, rows)


def ranked(rows: Sequence[Row]) -> View | None:
    """The ranking of one ipc as a chart: means, intervals, and every seed."""
    done = [row for row in rows if row["accuracy_mean"] is not None]
    if len(done) < 2:
        return None
    drawn = [
        Ranked(
            row["title"],
            100 * row["accuracy_mean"],
            None if row["ci_low"] is None else (100 * row["ci_low"], 100 * row["ci_high"]),
            [100 * score for score in row["accuracies"]],
        )
        for row in done
    ]
    title = f"Accuracies of {done[0]['ipc']} per class"
    about = "Means and intervals are in the table above; each seed is in the table of runs of its entry."
    caption = "Point: mean over seeds. Bar: 95 % confidence interval, cut where it leaves the chart. Strokes: seeds"
    return {"svg": charts.ranked(drawn, title, about, "accuracy %"), "caption": caption}


def figures(rows: Sequence[Row]) -> tuple[list[View], View]:
    """Accuracy against images per class, bytes and seconds, and the table of all that is drawn."""
    done = sorted((row for row in rows if row["accuracy_mean"] is not None), key=lambda r: (r["ipc"], r["entry"]))
    order = {title: i for i, title in enumerate(dict.fromkeys(row["title"] for row in done))}
    by_title = {title: [row for row in done if row["title"] == title] for title in order}
    for row in done:
        known = [s for s in (row.get("distil_seconds"), row.get("expert_seconds")) if s is not None]
        row["seconds"] = sum(known) if len(known) == 2 else None
        row["kilobytes"] = None if row["total_bytes"] is None else row["total_bytes"] / 1000
    found = [{"svg": _budgets(by_title), "caption": "Mean over seeds; bars are ± one sample deviation over seeds"}]
    parts = [("", "kilobytes", done)]
    machines = {row.get("hardware") for row in done}
    for ipc, machine in dict.fromkeys((row["ipc"], row.get("hardware")) for row in done):
        where = f", {ipc} per class" + (f", on {machine or 'an unnamed machine'}" if len(machines) > 1 else "")
        part = [row for row in done if (row["ipc"], row.get("hardware")) == (ipc, machine)]
        parts.append((where, "seconds", part))
    for where, name, part in parts:
        found += _against(part, where, name, by_title)
    shown_ = {"title": "method", "ipc": "ipc", "accuracy_mean": "accuracy %", "n": "seeds", "total_bytes": "total kB",
              "seconds": "distil and experts s", "hardware": "hardware", "kilobytes_front": "Pareto: bytes",
              "seconds_front": "Pareto: seconds, within ipc and hardware"}  # fmt: skip
    return found, table("Accuracies and costs, as drawn above", shown_, done)


def _against(rows: Sequence[Row], where: str, name: str, by_title: dict[str, list[Row]]) -> list[View]:
    """Accuracy against a cost; what costs less than the clock is worth, a second, is drawn and judged as a second."""
    words, least, axis = COSTS[name]
    points = {
        row["entry"]: (max(row[name], least), 100 * row["accuracy_mean"]) for row in rows if row[name] is not None
    }
    front = charts.pareto(list(points.values()))
    for row in rows:
        row[f"{name}_front"] = "yes" if points.get(row["entry"]) in front else ""
    tops: dict[int, tuple[float, str]] = {}
    for row in rows:
        if row["entry"] in points:
            tops[row["ipc"]] = max(tops.get(row["ipc"], (0.0, "")), (row["accuracy_mean"], row["entry"]))
    said = {entry: f"ipc {ipc}" for ipc, (_, entry) in tops.items()} if not where else {}
    series = []
    for title, group in by_title.items():
        own = [row["entry"] for row in group if row["entry"] in points and row in rows]
        x, y = ([points[entry][i] for entry in own] for i in (0, 1))
        series.append(Series(title, x, y, labels=[said.get(entry, "") for entry in own]))
    if not points:
        return []
    about = "The table of costs has all values."
    drawn = charts.scatter(series, front, f"Accuracy against {words}{where}", about, axis)
    return [{"svg": drawn, "caption": f"Accuracy against {words}{where}. Dotted: what nothing beats in both"}]


def _budgets(by_title: dict[str, list[Row]]) -> str:
    series = [
        Series(title, [r["ipc"] for r in group], [100 * r["accuracy_mean"] for r in group],
               [None if r["accuracy_std"] is None else 100 * r["accuracy_std"] for r in group])
        for title, group in by_title.items()
    ]  # fmt: skip
    about = "Mean test accuracy and deviation over seeds of each method; the table of costs has all values."
    return charts.lines(series, "Accuracy against images per class", about, "images per class", "accuracy %", log=True)


def transfers(rows: Sequence[Row], other: dict[str, list[Row]], own: str) -> View | None:
    """Sets evaluated on networks that they were not made for: a heat map and its table."""
    # a mean over some of the seeds is no neighbour of one over all: who submits could choose them
    whole = {
        row["entry"]: [r for r in other.get(row["entry"], []) if row["seeds"] and r["seeds"] == row["seeds"]]
        for row in rows
    }
    held = [row for row in rows if whole[row["entry"]]]
    names = sorted({row["network"] for found in whole.values() for row in found})
    if not names:
        return None
    cells, body = [], []
    for row in held:
        means = {own: row["accuracy_mean"]} | {r["network"]: r["accuracy_mean"] for r in whole[row["entry"]]}
        values = [None if means.get(n) is None else round(100 * means[n], 1) for n in (own, *names)]
        cells.append(values)
        about = {"title": row["title"], "ipc": row["ipc"]}
        body.append(about | dict(zip((own, *names), values, strict=True)))
    titles = [f"{shown(row['title'], 24)} ipc {row['ipc']}" for row in held]
    drawn = charts.heat(titles, [shown(n, 24) for n in (own, *names)], cells, "Accuracy on other networks")
    columns = {"title": "method", "ipc": "ipc"} | {n: f"{shown(n, 60)} %" for n in (own, *names)}
    caption = "Accuracy in percent, mean over all seeds of the entry; the first column is the network of the board"
    return {"figure": {"svg": drawn, "caption": caption}, "table": table("Accuracies on other networks", columns, body)}
