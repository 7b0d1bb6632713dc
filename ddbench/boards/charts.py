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
from dataclasses import dataclass
from typing import Any

from ddbench.base.cache import digest
from ddbench.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"
NEUTRAL = "#010203"  # drawn in the colour of the page's text
# At least 3 : 1 against both white and the dark page; told apart by people who see no red or no green, with markers.
COLOURS = ("#3b7dd8", "#c96a10", "#2a9458", "#a45ee5", "#e0484d", "#15919a")
MARKERS = "os^DvP"
BASE = -1  # the tone of what others are compared with: neutral and dashed
SIZE = (3.1, 2.7)  # inches of the axes; with names beside them as wide as a phone, so that nothing shrinks there
LONGEST = 30  # letters of a name
_FLOAT = re.compile(r"(?<![\w#.])-?\d+\.\d{3,}")  # a hundredth of a pixel is seen by nobody

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "ddbench", "text.parse_math": False, "font.size": 9.0,
    "axes.edgecolor": NEUTRAL, "axes.labelcolor": NEUTRAL, "xtick.color": NEUTRAL, "ytick.color": NEUTRAL,
    "text.color": NEUTRAL, "axes.spines.top": False, "axes.spines.right": False, "grid.color": NEUTRAL,
    "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.3,
    "lines.markersize": 5.0, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Points of one method; ``error`` is half of an error bar, None where there is none.

    ``tone`` is its place among ``COLOURS``, ``BASE`` for what others are compared with, None for one that is grey and
    has no name: a chart shows at most as many names as there are colours, and tables have all.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None] = ()
    tone: int | None = 0


@dataclass(frozen=True)
class Ranked:
    """A method's mean, its interval where there is one, and the points it is the mean of."""

    name: str
    mean: float
    interval: tuple[float, float] | None
    points: Sequence[float]
    base: bool = False  # what others are compared with


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
    """Lines with markers and error bars over numbers, on logarithmic steps where asked; grey ones without bars."""

    def draw(axes: Any) -> None:
        told = [one for one in series if one.tone is not None]
        for one in series:
            if one.tone is None:
                axes.plot(one.x, one.y, **_look(None))
                continue
            bars = [e or 0.0 for e in one.error] or None
            # each a little beside the next, so that no error bar hides another, and all within 15 % of their place
            i = told.index(one)
            aside = 1.0 + 0.3 * (i - (len(told) - 1) / 2) / max(12, len(told)) if log else 1.0
            axes.errorbar([value * aside for value in one.x], one.y, yerr=bars, capsize=2, **_look(one.tone))
        if log:
            axes.set_xscale("log")
            _ticks(axes, sorted({value for one in series for value in one.x}))
        _finish(axes, x, y, series)

    return _figure(draw, title, about)


def ranked(rows: Sequence[Ranked], title: str, about: str, x: str) -> str:
    """One row per method: its mean with an interval, and each seed as a small point."""

    def draw(axes: Any) -> None:
        for i, row in enumerate(rows):
            axes.plot(row.points, [i] * len(row.points), "|", color=NEUTRAL, markersize=6, markeredgewidth=1.0)
            low, high = row.interval or (row.mean, row.mean)
            look = {"color": NEUTRAL if row.base else COLOURS[0]}
            axes.plot([low, high], [i, i], linewidth=2.2, solid_capstyle="butt", **look)
            axes.plot([row.mean], [i], "o", **look)
            if row.base:
                axes.axvline(row.mean, color=NEUTRAL, linestyle=":", linewidth=1.0, zorder=1)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(x)
        ends = [value for row in rows for value in (row.mean, *row.points)]
        room = 0.06 * (max(ends) - min(ends)) or 1.0
        axes.set_xlim(min(ends) - room, min(max(ends) + room, 100.5))  # an interval of two seeds may be far wider

    return _figure(draw, title, about, (SIZE[0] - 0.1, 0.6 + 0.2 * len(rows)))


def curves(
    series: Sequence[Series],
    title: str,
    about: str,
    x: str,
    y: str,
    *,
    borders: Sequence[float] = (),
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """Lines over iterations with a marker here and there, borders between stages, and levels that they compare with."""

    def draw(axes: Any) -> None:
        for i, one in enumerate(series):
            every = max(1, len(one.x) // 6)
            thin = {"linewidth": 1.0, "markersize": 3.5} if len(one.x) > len(COLOURS) else {}
            axes.plot(one.x, one.y, **_look(one.tone) | thin, markevery=(i % every, every))
        for _, level in levels:
            axes.axhline(level, color=NEUTRAL, linestyle="--", linewidth=1.1)
        _finish(axes, x, y, [*series, *(Series(n, [axes.get_xlim()[1]], [v], tone=BASE) for n, v in levels)])
        for stage, border in enumerate(borders, start=1):
            axes.axvline(border, color=NEUTRAL, linestyle=":", linewidth=1.1, alpha=0.8)
            if len(borders) <= len(COLOURS):
                axes.annotate(f"stage {stage}", (border, 1), xycoords=("data", "axes fraction"), fontsize=7)

    return _figure(draw, title, about, (SIZE[0] + 0.3, 2.4))


def scatter(series: Sequence[Series], front: Sequence[tuple[float, float]], title: str, about: str, x: str) -> str:
    """Accuracy against a cost on a logarithmic axis; names stand at what nothing beats in both, the rest is grey."""

    def draw(axes: Any) -> None:
        for one in sorted(series, key=lambda one: one.tone is not None):  # what has a name lies on top
            axes.plot(one.x, one.y, **(_look(one.tone) | {"linestyle": "none"}))
        if len(front) > 1:
            line = {"color": NEUTRAL, "linestyle": ":", "linewidth": 1.1, "zorder": 1}
            axes.step(*zip(*front, strict=True), where="post", **line)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.xaxis.set_minor_formatter(lambda _value, _: "")
        axes.margins(x=0.12, y=0.12)
        _finish(axes, x, "accuracy %", series)

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


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones, by least squares, that keep their order and a gap between neighbours."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # mean and size: pool adjacent violators
    for place, i in enumerate(order):
        blocks.append((wanted[i] - place * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (low, n), (high, m) = blocks[-2:]
            blocks[-2:] = [((low * n + high * m) / (n + m), n + m)]
    flat = [mean for mean, size in blocks for _ in range(size)]
    found = dict(zip(order, (mean + place * gap for place, mean in enumerate(flat)), strict=True))
    return [found[i] for i in range(len(wanted))]


def _look(tone: int | None) -> dict[str, Any]:
    if tone is None:
        return {"color": NEUTRAL, "alpha": 0.28, "linewidth": 0.9, "marker": "o", "markersize": 3.0, "zorder": 1}
    if tone == BASE:
        return {"color": NEUTRAL, "linestyle": "--", "marker": "x"}
    return {"color": COLOURS[tone % len(COLOURS)], "marker": MARKERS[tone % len(MARKERS)]}


def _named(axes: Any, series: Sequence[Series]) -> None:
    """Names beside the axes, each at the height of its last point or as near as the others let it, with its marker."""
    told = [(_short(one.name), one.x[-1], one.y[-1], one.tone) for one in series if one.tone is not None]
    low, high = axes.get_ylim()
    height = axes.figure.get_size_inches()[1] * axes.get_position().height
    gap = 10.5 / 72 / height  # of a line of text, as a part of the axes
    places = spread([(y - low) / (high - low) for _, _, y, _ in told], gap)
    sunk = max(0.0, -min(places, default=0.0))  # names do not cover the title of the axis
    for (name, x, y, tone), place in zip(told, places, strict=True):
        look = _look(tone)
        thread = {"arrowstyle": "-", "color": look["color"], "alpha": 0.5, "linewidth": 0.7, "shrinkA": 6, "shrinkB": 3}
        spot = (1.03, place + sunk)
        axes.annotate("", (x, y), spot, textcoords="axes fraction", arrowprops=thread)
        axes.plot(*([part] for part in spot), transform=axes.transAxes, clip_on=False, **look | {"linestyle": "none"})
        axes.text(1.07, spot[1], name, transform=axes.transAxes, va="center", fontsize=8.5)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _ticks(axes: Any, values: Sequence[float]) -> None:
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def _finish(axes: Any, x: str, y: str, series: Sequence[Series]) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(axes.get_xlim())  # as they are: names are no data
    axes.set_ylim(axes.get_ylim())
    _named(axes, series)


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
            own = re.sub(r"(url\(#|^#)([\w-]+)", lambda m: m[1] + (mark if m[2] in used else "") + m[2], value)
            element.set(name, _FLOAT.sub(lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), own))
    if element.tag == f"{SVG}text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")
