"""``questions/images.md``: what anybody's images get with nothing chosen but the network's width."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from question_tables import MADE, NOTHING, devices, method_of, percent, places, row_of, table

from ddbench.results.aggregate import Line, aggregate
from ddbench.run.below import Gap, Sample, gap
from ddbench.run.defaults import BASELINE

NEAR = 0.95  # of what the whole training set teaches: random images that reach it leave little to gain

HEAD = f"""# Do settings carry over?

{MADE}

`ddbench run --dataset images:ARCHIVE --ipc N -o network.width=W` and no other option, on a CPU: the settings follow
from [the rule](../tesla.md#settings-that-follow-the-work-the-rule-for-your-own-images) and the rules of grading are
those of [`quick`](../evaluation.md#protocols). Test accuracy in %, ± the deviation of students, or over seeds where
there are several. **Bold**: above random images of the same budget; ‡: not above them (95 % interval of the
difference, Welch). A tenth of the training images is held out to select on and is not counted among them.

```sh
python benchmarks/digits_folder.py digits && export DDBENCH_DIGITS=$PWD/digits DDBENCH_THREADS=1
ddbench suite run anybodys-images --only dataset="digits 500" --out runs
ddbench run --dataset images:digits -o dataset.limit=500 -o network.width=16 --matcher random --out runs
python benchmarks/questions.py images --only dataset="digits 500" --out runs
python docs/questions.py
```

The rows are in `docs/results/questions-images.json.gz`; the
[suite](../../leaderboards/suites/anybodys-images.toml) has 152 runs for each seed, and the page shows those that are
on record. `ddbench run` grades the whole training set beside random images; a suite does not."""


def images_page(held: Sequence[dict[str, Any]]) -> str:
    """The page on anybody's images."""
    parts = [HEAD]
    for (dataset, _), rows in places(held, "dataset", "protocol_digest"):
        parts += [f"## {dataset}", *_section(rows)]
    return "\n\n".join([*parts, *([] if held else [NOTHING])]) + "\n"


def _section(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each number of images, width and budget, and how many of them each method is above random in."""
    cells: dict[tuple[int, str, int], dict[str, Line]] = {}
    known = {row["run"]: row for row in rows}
    wholes = {(row["train_images"], row["network"]): row["whole"] for row in rows if row.get("whole") is not None}
    for line in aggregate([row_of(row) for row in rows]):
        if line.scores:
            one = known[line.rows[0].run]
            cells.setdefault((one["train_images"], one["network"], one["ipc"]), {})[method_of(line.row)] = line
    names = sorted({name for lines in cells.values() for name in lines}, key=lambda name: (name != BASELINE, name))
    body = []
    for (images, network, ipc), lines in sorted(
        cells.items(), key=lambda cell: (cell[0][0], _width(cell[0][1]), cell[0][2])
    ):
        whole, random = wholes.get((images, network)), lines.get(BASELINE)
        shown = [_shown(lines[name], random) if name in lines else "" for name in names]
        body.append([f"{images:,}", str(_width(network)), str(ipc), *shown, "" if whole is None else percent([whole])])
    seeds = sorted({row["seed"] for row in rows})
    said = [f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}, {rows[0]['n']} students; {devices(rows)}."]
    said += [_count(name, cells, wholes) for name in names if name != BASELINE]
    return ["\n".join(f"- {text}" for text in said), table(["images", "width", "ipc", *names, "whole set"], body)]


def _width(network: str) -> int:
    return int(re.findall(r"width=(\d+)", network)[0])


def _sample(line: Line) -> Sample:
    """Of seeds where there are several, else of the students of one."""
    values = list(line.scores.values())
    return Sample.of(values) if len(values) > 1 else Sample.of_row(line.rows[0])


def apart(line: Line, random: Line | None) -> Gap | None:
    """A method beside random images."""
    return None if random is None else gap(_sample(line), _sample(random))


def _shown(line: Line, random: Line | None) -> str:
    spread = line.row.accuracy_std if len(line.scores) > 1 else line.rows[0].accuracy_std
    text = percent(list(line.scores.values())) + ("" if spread is None else f" ± {100 * spread:.1f}")
    found = None if line is random else apart(line, random)
    above = None if found is None else found.above
    return f"**{text}**" if above else text if above is None else f"{text} ‡"


def _count(
    name: str, cells: Mapping[tuple[int, str, int], Mapping[str, Line]], wholes: Mapping[tuple[int, str], float]
) -> str:
    """In how many cells a method is above random images, and in how many of those that leave something to gain."""
    found = []
    for (images, network, _), lines in cells.items():
        gap_ = apart(lines[name], lines.get(BASELINE)) if name in lines else None
        if gap_ is not None and gap_.above is not None:
            whole, random = wholes.get((images, network)), _sample(lines[BASELINE]).mean
            found.append((gap_.above, whole is not None and random < NEAR * whole))
    room = [above for above, left in found if left]
    rest = f"; where these are below {NEAR:.0%} of the whole set, in {sum(room)} of {len(room)}" if wholes else ""
    return f"`{name}` is above random images in {sum(above for above, _ in found)} of {len(found)} cells{rest}."
