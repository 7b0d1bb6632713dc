"""A run as a page of one file: its images and how they came about, its accuracy, costs, and what it is shown beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.base.cache import file_digest
from ddbench.boards import charts
from ddbench.boards.charts import Ranked
from ddbench.boards.command import command_of
from ddbench.boards.entry import EntryRun, pack, shown
from ddbench.boards.picture import encoded, picture_of
from ddbench.boards.render import environment, render
from ddbench.boards.site_data import Fact, Levels, PageData, Seen, experts_view, inline, parts, table_view
from ddbench.boards.tiles import clear
from ddbench.errors import DataError
from ddbench.grade.distilled import Distilled
from ddbench.grade.preview import FEW_CLASSES, FEW_ROWS, glimpse_sides
from ddbench.results.aggregate import per_run
from ddbench.run import below, looks
from ddbench.run.record import ControlsRecord, ResultRecord

if TYPE_CHECKING:
    from PIL.Image import Image

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
    "label_bytes": "labels kB",
    "difficulty": "difficulty",
}
WHOLE = "whole training set"


def report(folder: Path) -> str:
    """One finished run as a page."""
    run = pack(folder)
    result = ResultRecord.from_file(folder / "result.json")
    own = below.own(run.rows())
    made = Distilled.load(folder / "distilled.safetensors") if result.status == "ok" else None
    view = parts(folder.name, [run], _levels(result)) | {
        "command": command_of([run.spec], max((len(e.students) for e in run.evaluations), default=5)),
        "images": Seen(*picture_of(folder), _sides(made)).views() if made and (folder / "preview.png").exists() else [],
        "course": _course(folder, result, made) if made else [],
        "accuracy": f"{100 * own.accuracy_mean:.1f} %" if own and own.accuracy_mean is not None else "",
        "standing": f"test accuracy, {own.n} student{'s' if own.n > 1 else ''}" if own else "",
        "beside": _beside(run, result),
        "facts": [*_facts_of_run(run), *_facts_beside(result), *_warnings(result)],
    }
    if (seen_experts := experts_view(folder.name, result.stages)) is not None:
        view["charts"].append(seen_experts[0])
        view["folded"].append(seen_experts[1])
    if run.evaluations:
        graded = table_view("Test accuracy, mean ± deviation over students", EVALUATIONS, per_run(run.rows()))
        view["tables"].insert(0, graded)
    title = f"Run {shown(folder.name)}"
    return render(environment(), "report.html", title=title, run=view, controls=_controls(folder))


def _sides(made: Distilled) -> tuple[int, int]:
    return made.curriculum.sets[0].images.shape[2], made.curriculum.sets[0].images.shape[3]


def _course(folder: Path, result: ResultRecord, made: Distilled) -> list[PageData]:
    """What the images of each stage looked like on their way. Raises DataError for a picture that is damaged."""
    columns, sides = min(len(made.classes), FEW_CLASSES), glimpse_sides(_sides(made))
    found = []
    for i, (stage, part) in enumerate(zip(result.stages, made.curriculum.sets, strict=False)):
        rows = min(len(part) // len(made.classes), FEW_ROWS)
        taken = sorted((int(step), sha256) for step, sha256 in stage.pictures.items() if step.isdecimal())
        paths = [(step, looks.file(folder / f"stage-{i}", step), sha256) for step, sha256 in taken]
        seen = [(step, _opened(path, sha256)) for step, path, sha256 in paths if path.exists()]
        shown_ = [(step, clear(image, columns, rows, sides)) for step, image in seen]
        pictures = [
            {
                "uri": inline(encoded(image)),
                "width": image.width,
                "height": image.height,
                "when": f"{step:,} iterations" if step else "start",
                "caption": f"images after {step:,} iterations",
            }
            for step, image in shown_
        ]
        where = f"Stage {i + 1} of {len(result.stages)}: its" if len(result.stages) > 1 else "Its"
        found.append({"caption": f"{where} images on their way, {rows} of each class", "pictures": pictures})
    return [strip for strip in found if strip["pictures"]]


def _opened(path: Path, sha256: str) -> Image:
    from PIL import Image

    if file_digest(path) != sha256:
        raise DataError(f"{path} is damaged: it is not the picture that was taken; delete it, and it is left out")
    with Image.open(path) as image:
        return image.convert("RGB")


def _levels(result: ResultRecord) -> Levels:
    """The test accuracies that a run lies between, in percent."""
    levels = [(f"random, {below.kind(r)}", 100 * r.accuracy_mean) for r in result.random]
    return [*levels, (WHOLE, 100 * result.whole.accuracy_mean)] if result.whole else levels


def _beside(run: EntryRun, result: ResultRecord) -> PageData | None:
    """The students of a run between random images and the whole training set, as a chart."""
    own = below.own(run.rows())
    graded = next((e for e in run.evaluations if own and e.key == own.evaluation), None)
    levels = _levels(result)
    if own is None or own.accuracy_mean is None or not levels:
        return None
    rows = [Ranked(name, level, None, [], base=name != WHOLE) for name, level in levels]
    rows.append(Ranked("this run", 100 * own.accuracy_mean, None, [100 * s for s in graded.scores] if graded else []))
    rows.sort(key=lambda row: -row.mean)
    drawn = charts.ranked(rows, f"Test accuracy of {run.run}", "The numbers are in the list below.", "test accuracy %")
    return {"svg": drawn, "caption": "Point: mean over students. Strokes: students. Dotted: random images"}


def _facts_of_run(run: EntryRun) -> list[Fact]:
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


def _warnings(result: ResultRecord) -> list[Fact]:
    """What the run saw of itself while it was at work."""
    return [("warning", shown(text, 1000), None) for text in result.warnings]


def _facts_beside(result: ResultRecord) -> list[Fact]:
    """How the run compared with random images and the whole training set beside it; entries do not hold this."""
    words = {True: "above", False: "not above", None: "not known"}
    found: list[Fact] = [
        (
            f"beside random images, {shown(below.kind(record), 60)}",
            f"{words[record.above]} ({shown(below.told(record), 200)})",
            None,
        )
        for record in result.random
    ]
    if (whole := result.whole) is not None:
        students = f"mean of {whole.n} student{'s' if whole.n > 1 else ''}"
        found.append((WHOLE, f"{100 * whole.accuracy_mean:.1f} %, {students}", None))
    return found


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
