"""Charts as inline SVG: drawn by matplotlib, then stripped to what a page under a strict policy may hold.

No script, no style sheet and no style attribute is left; text stays text; what is neutral follows the colour of the
page's text, so that one chart serves light and dark. Colours never stand alone: each series has a marker as well.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddbench.base.cache import digest
from ddbench.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"
NEUTRAL = "#010203"  # drawn in the colour of the page's text
# At least 3 : 1 against both white and the dark page.
COLOURS = ("#3b7dd8", "#c96a10", "#2a9458", "#a45ee5", "#e0484d", "#15919a")
MARKERS = "os^DvP*X<>"
SIZE = (4.6, 3.1)  # inches: about as wide as a phone, so that nothing shrinks there
MOST = 18  # series with a name in the legend

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "ddbench", "text.parse_math": False, "font.size": 9.0,
    "axes.edgecolor": NEUTRAL, "axes.labelcolor": NEUTRAL, "xtick.color": NEUTRAL, "ytick.color": NEUTRAL,
    "text.color": NEUTRAL, "axes.spines.top": False, "axes.spines.right": False, "grid.color": NEUTRAL,
    "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.3,
    "lines.markersize": 5.0, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Points of one method; ``error`` is half of an error bar, None where there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] = ()
    labels: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Ranked:
    """A method's mean, its interval where there is one, and the points it is the mean of."""

    name: str
    mean: float
    interval: tuple[float, float] | None
    points: Sequence[float]


def _figure(draw: Callable[[Any], None], title: str, about: str, size: tuple[float, float] = SIZE) -> str:
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"pages need matplotlib ({error}); pip install matplotlib") from error

    out = io.BytesIO()
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that this machine's font lacks: the reader's browser draws the text
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.04
        )
    return _plain(out.getvalue(), title, about)


def lines(series: Sequence[Series], title: str, about: str, x: str, y: str, *, log: bool = False) -> str:
    """Lines with markers and error bars over numbers, on logarithmic steps where asked."""

    def draw(axes: Any) -> None:
        for i, one in enumerate(series):
            bars = [e or 0.0 for e in one.error] or None
            # each a little beside the next, so that no error bar hides another, and all within 15 % of their place
            aside = 1.0 + 0.3 * (i - (len(series) - 1) / 2) / max(12, len(series)) if log else 1.0
            places = [value * aside for value in one.x]
            axes.errorbar(places, one.y, yerr=bars, capsize=2, **_look(i), **_named(i, one.name))
        if log:
            axes.set_xscale("log")
            _ticks(axes, sorted({value for one in series for value in one.x}))
        _finish(axes, x, y, len(series))

    return _figure(draw, title, about)


def ranked(rows: Sequence[Ranked], title: str, about: str, x: str) -> str:
    """One row per method: its mean with an interval, and each seed as a small point."""

    def draw(axes: Any) -> None:
        for i, row in enumerate(rows):
            axes.plot(row.points, [i] * len(row.points), "|", color=NEUTRAL, markersize=6, markeredgewidth=1.0)
            low, high = row.interval or (row.mean, row.mean)
            axes.plot([low, high], [i, i], color=COLOURS[0], linewidth=2.2, solid_capstyle="butt")
            axes.plot([row.mean], [i], "o", color=COLOURS[0])
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(x)
        ends = [value for row in rows for value in (row.mean, *row.points)]
        room = 0.06 * (max(ends) - min(ends)) or 1.0
        axes.set_xlim(min(ends) - room, min(max(ends) + room, 100.5))  # an interval of two seeds may be far wider

    return _figure(draw, title, about, (SIZE[0] - 1, 0.6 + 0.2 * len(rows)))


def curves(series: Sequence[Series], title: str, about: str, x: str, y: str) -> str:
    """Lines over iterations, with a marker here and there to tell them apart."""

    def draw(axes: Any) -> None:
        for i, one in enumerate(series):
            every = max(1, len(one.x) // 8)
            axes.plot(one.x, one.y, markevery=(i % every, every), **_look(i), **_named(i, one.name))
        _finish(axes, x, y, len(series))

    return _figure(draw, title, about, (SIZE[0], 2.6))


def scatter(series: Sequence[Series], front: Sequence[tuple[float, float]], title: str, about: str, x: str) -> str:
    """Accuracy against a cost on a logarithmic axis, with the front of what nothing beats in both."""

    def draw(axes: Any) -> None:
        for i, one in enumerate(series):
            axes.plot(one.x, one.y, **(_look(i) | {"linestyle": "none"}), **_named(i, one.name))
            for place in zip(one.x, one.y, one.labels, strict=False):
                axes.annotate(place[2], place[:2], xytext=(0, 6), textcoords="offset points", ha="center")
        if len(front) > 1:
            axes.step(
                *zip(*front, strict=True),
                where="post",
                color=NEUTRAL,
                linestyle=":",
                linewidth=1.1,
                label="Pareto front",
                zorder=1,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.xaxis.set_minor_formatter(lambda _value, _: "")
        axes.margins(x=0.12, y=0.12)
        _finish(axes, x, "accuracy %", len(series) + 1)

    return _figure(draw, title, about)


def heat(names: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float | None]], title: str) -> str:
    """Accuracies of sets (rows) on networks (columns); each cell says its number."""
    from math import nan

    def draw(axes: Any) -> None:
        values = [[nan if cell is None else cell for cell in line] for line in cells]
        said = [cell for line in cells for cell in line if cell is not None]
        middle = (min(said) + max(said)) / 2
        axes.pcolormesh(values, cmap="cividis", edgecolors="none")
        for i, line in enumerate(cells):
            for j, cell in enumerate(line):
                if cell is not None:
                    tone = "#ffffff" if cell < middle else "#111111"
                    axes.text(j + 0.5, i + 0.5, f"{cell:.1f}", ha="center", va="center", color=tone)
        axes.set_xticks([j + 0.5 for j in range(len(columns))], columns, rotation=20, ha="right")
        axes.set_yticks([i + 0.5 for i in range(len(names))], names)
        axes.invert_yaxis()
        axes.grid(visible=False)

    size = (max(2.2, 0.8 * len(columns)), 0.6 + 0.32 * len(names))
    return _figure(draw, title, "The same numbers are in the table below.", size)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy), those that no other beats in both: dearer is only worth it where it is better."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _named(i: int, name: str) -> dict[str, str]:
    """A label that matplotlib shows whatever it begins with; beyond ``MOST`` the table tells."""
    return {"label": f"{i + 1}. {_short(name)}" if i < MOST else "_"}


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"


def _ticks(axes: Any, values: Sequence[float]) -> None:
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def _finish(axes: Any, x: str, y: str, count: int) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if count > 1:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.1, -0.17),
            ncol=2,
            fontsize=8,
            columnspacing=1.2,
            handletextpad=0.4,
            borderaxespad=0.2,
        )


def _plain(raw: bytes, title: str, about: str) -> str:
    """The drawing as one SVG element with a name, without styles, metadata, or identifiers that others have."""
    root = ET.fromstring(raw.split(b"<svg", 1)[1].join([b"<svg", b""]))  # noqa: S314  (matplotlib wrote it)
    mark = f"c{digest(title.encode() + raw)[:8]}"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("metadata", "}style")):
                parent.remove(child)
    used = {m for e in root.iter() for v in e.attrib.values() for m in re.findall(r"(?:url\(#|^#)([\w-]+)", v)}
    for element in root.iter():
        _attributes(element, used, mark)
    box = root.get("viewBox", "0 0 100 100")
    width = float(box.split()[2])
    root.attrib = {
        "viewBox": box,
        "width": f"{width * 1.25:.0f}",
        "role": "img",
        "class": "chart",
        "aria-labelledby": f"{mark}t {mark}d",
    }
    for kind, text in (("desc", about), ("title", title)):
        named = ET.Element(f"{SVG}{kind}", {"id": f"{mark}{kind[0]}"})
        named.text = text
        root.insert(0, named)
    ET.register_namespace("", SVG[1:-1])
    ET.register_namespace("xlink", XLINK[1:-5])
    return ET.tostring(root, encoding="unicode")


def _attributes(element: ET.Element, used: set[str], mark: str) -> None:
    """Styles as attributes, neutral colours as the page's, identifiers as this chart's own."""
    for part in element.attrib.pop("style", "").split(";"):
        name, _, value = (text.strip() for text in part.partition(":"))
        if name in ("font", "font-size"):  # which of the two it writes depends on its version
            size = re.search(r"([\d.]+)px", value)
            element.set("font-size", size[1] if size else "9")
        elif name and not name.startswith("font"):
            element.set(name, value)
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.attrib.pop(name)
            if value in used:
                element.set("id", f"{mark}{value}")
        elif value == NEUTRAL:
            element.set(name, "currentColor")
        else:
            element.set(
                name, re.sub(r"(url\(#|^#)([\w-]+)", lambda m: m[1] + (mark if m[2] in used else "") + m[2], value)
            )
    if element.tag == f"{SVG}text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")
