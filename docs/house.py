"""Draw the rooms of ddbench from their imports: ``python docs/house.py`` writes docs/house.svg.

Rows are levels: a room stands above everything it imports. An arrow that follows from others is left out (the
transitive reduction), imports for type checkers alone do not count, and neither do ``ddbench/__init__.py`` and
``__main__.py``. A test draws the picture anew and compares it with the file.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from html import escape
from itertools import combinations, pairwise, permutations
from pathlib import Path

import ddbench

ROOT = Path(__file__).parents[1]
CORE = ROOT / "ddbench"
METHODS = "plugins/"  # the folder of built-in plugins, drawn as one room; "plugins" is the module that loads them
WIDTH = 960
GAP, BETWEEN = 18, 34  # between boxes, and between rows
LINE, LANE = 17, 14  # the height of a line of text, the width that a passing arrow gets
STARTS = 12  # arrangements to begin with; the one that ends with the fewest crossings is drawn
STYLE = """
  text { font: 12px system-ui, "Segoe UI", Arial, "DejaVu Sans", sans-serif; fill: #59636e }
  .title { font-size: 15px; font-weight: 600; fill: #1f2328 }
  .modules { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328 }
  .stable, .young { font-weight: 600; fill: #0550ae }
  .young { font-style: italic }
  .back { fill: #ffffff }
  .box { fill: #f3f5f8; stroke: #b6bec8 }
  .plug { stroke-dasharray: 5 3 }
  .arrow { fill: none; stroke: #6e7781; stroke-width: 1.5; marker-end: url(#head) }
  .head { fill: #6e7781 }
  @media (prefers-color-scheme: dark) {
    text { fill: #9da7b1 }
    .title, .modules { fill: #e6edf3 }
    .stable, .young { fill: #79c0ff }
    .back { fill: #0d1117 }
    .box { fill: #1a2029; stroke: #4a535e }
    .arrow { stroke: #8b949e }
    .head { fill: #8b949e }
  }
"""


# ------------------------------------------------------------------------ what the code says


def room_of(module: str) -> str:
    """The room of a module, or of one of the names that ``ddbench`` hands out: ``ddbench.fit`` is train's."""
    name = module.split(".")[1]
    return ddbench._HOME.get(name, name).partition(".")[0]


@cache
def imported(path: Path) -> set[str]:
    """The rooms that a file imports at run time, wherever in it."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    hidden = {id(inner) for block in typing for part in block.body for inner in ast.walk(part)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in hidden:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in hidden:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    rooms = {room_of(name) for name in found if name.startswith("ddbench.")}
    return {room for room in rooms if (CORE / room).is_dir() or (CORE / f"{room}.py").exists()}  # and no constants


def files() -> dict[str, list[Path]]:
    """Every room with its files; a module of its own, such as ``hookspecs``, is a room of one."""
    rooms: dict[str, list[Path]] = {METHODS: sorted((ROOT / METHODS).rglob("*.py"))}
    for path in sorted(CORE.rglob("*.py")):
        inside = path.relative_to(CORE).parts
        if len(inside) > 1 or not path.stem.startswith("__"):
            rooms.setdefault(inside[0].removesuffix(".py"), []).append(path)
    return rooms


def imports() -> dict[str, set[str]]:
    """Room -> rooms that it imports, without those that it reaches through others."""
    direct = {room: set().union(*map(imported, paths)) - {room} for room, paths in files().items()}

    def beyond(room: str) -> set[str]:
        return direct[room].union(*map(beyond, direct[room]))

    return {room: others - set().union(*map(beyond, others)) for room, others in direct.items()}


@cache
def words(room: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Title, purpose, and (module, class in the style sheet) of a room."""
    if room == METHODS:
        families = sorted({path.relative_to(ROOT / METHODS).parts[0] for path in files()[room]})
        return METHODS, "Built-in plugins, which use what is blue", [(family, "") for family in families]
    paths = files()[room]
    first = min(paths, key=lambda path: path.name != "__init__.py")
    purpose = re.split(r"[:.]\s", f"{ast.get_docstring(ast.parse(first.read_text()))} ")[0].replace("\n", " ")
    modules = [(path.stem, ddbench.PUBLIC_MODULES.get(f"ddbench.{room}.{path.stem}", "")) for path in paths]
    if first.name != "__init__.py":
        return f"{room}.py", purpose, []
    return f"{room}/", purpose, [(name, kind) for name, kind in modules if name != "__init__"]


# ------------------------------------------------------------------------------ where it goes


def rows(graph: dict[str, set[str]]) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Rooms by level from the ground up, and arrows between neighbouring levels; long arrows pass through lanes."""

    def level(room: str) -> int:
        return 1 + max(map(level, graph[room]), default=-1)

    levels: list[list[str]] = [[] for _ in range(1 + max(map(level, graph)))]
    arrows: list[tuple[str, str]] = []
    for room in sorted(graph):
        levels[level(room)].append(room)
        for other in sorted(graph[room]):
            lanes = [f"|{room}|{other}|{height}" for height in range(level(room) - 1, level(other), -1)]
            for lane in lanes:
                levels[int(lane.rpartition("|")[2])].append(lane)
            arrows += pairwise([room, *lanes, other])
    found = [arranged(levels, turn, arrows) for turn in range(STARTS)]
    return min(found, key=lambda levels: sum(cost(levels, h, row, arrows) for h, row in enumerate(levels))), arrows


def arranged(levels: list[list[str]], turn: int, arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Each row in the order that suits its neighbours best, row after row, three times; ``turn`` says from where on."""
    levels = [row[turn * h % len(row) :] + row[: turn * h % len(row)] for h, row in enumerate(levels, 1)]
    for _ in range(3):
        for height, row in enumerate(levels):
            orders = map(list, permutations(sorted(row)))
            levels[height] = min(orders, key=lambda order, height=height: cost(levels, height, order, arrows))
    return levels


@cache
def share(name: str) -> int:
    """How much of a row something takes: a single module less than a folder of them, an arrow that passes none."""
    return 0 if name.startswith("|") else 2 if (CORE / f"{name}.py").exists() else 3


@cache
def spans(row: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Left and right of everything in a row, from wall to wall."""
    shares = {name: share(name) for name in row}
    free = WIDTH - GAP * (len(row) + 1) - LANE * list(shares.values()).count(0)
    found, x, whole = {}, float(GAP), sum(shares.values())
    for name, part in shares.items():
        width = round(free * part / whole, 1) if part else LANE
        found[name] = (x, x + width)
        x += width + GAP
    return found


def ends(upper: tuple[float, float], lower: tuple[float, float]) -> tuple[float, float]:
    """Where an arrow leaves the upper box and meets the lower one: straight down if they overlap."""
    left, right = max(upper[0], lower[0]), min(upper[1], lower[1])
    if right - left >= LANE:
        return (left + right) / 2, (left + right) / 2
    inset = [min(20, (b - a) / 2) for a, b in (upper, lower)]
    if upper[0] < lower[0]:
        return upper[1] - inset[0], lower[0] + inset[1]
    return upper[0] + inset[0], lower[1] - inset[1]


def cost(levels: list[list[str]], height: int, row: list[str], arrows: list[tuple[str, str]]) -> float:
    """Crossings first, then detours, of the arrows that touch a row."""
    near = dict(spans(tuple(row)))
    for other in (height - 1, height + 1):
        near |= spans(tuple(levels[other])) if 0 <= other < len(levels) else {}
    here = {*row}
    drawn = [ends(near[a], near[b]) for a, b in arrows if a in here or b in here]
    crossed = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in combinations(drawn, 2))
    return 1e6 * crossed + sum(abs(a - b) for a, b in drawn)


# ------------------------------------------------------------------------------- how it looks


def wrapped(parts: list[tuple[str, str]], width: float, size: float, between: float) -> list[list[tuple[str, str]]]:
    """Words to lines of at most ``width``, at ``size`` per letter."""
    lines: list[list[tuple[str, str]]] = []
    left = 0.0
    for part in parts:
        need = len(part[0]) * size
        if not lines or need > left:
            lines.append([])
            left = width
        lines[-1].append(part)
        left -= need + between
    return lines


def box(room: str, span: tuple[float, float]) -> list[str]:
    """The lines of text in a box, as SVG without a place."""
    title, purpose, modules = words(room)
    width = span[1] - span[0] - 24
    beside = len(title) * 9 + 14 + len(purpose) * 6.6 <= width
    kind = f"title {ddbench.PUBLIC_MODULES.get(f'ddbench.{room}', '')}".strip()
    head = f'<tspan class="{kind}">{escape(title)}</tspan>'
    lines = [f"<text>{head}" + (f'<tspan dx="14">{escape(purpose)}</tspan>' if beside else "") + "</text>"]
    said = [] if beside else wrapped([(word, "") for word in purpose.split()], width, 6.6, 3.3)
    lines += [f"<text>{escape(' '.join(word for word, _ in line))}</text>" for line in said]
    for line in wrapped(modules, width, 7.3, 12):
        names = [f'<tspan class="{kind}">{name}</tspan>' if kind else name for name, kind in line]
        spaced = [f'<tspan dx="12">{name}</tspan>' if at else name for at, name in enumerate(names)]
        lines.append(f'<text class="modules">{"".join(spaced)}</text>')
    return lines


def draw() -> str:
    """The picture as SVG text."""
    levels, arrows = rows(imports())
    out, place, y = [], {}, float(GAP)
    for row in reversed(levels):
        across = spans(tuple(row))
        boxes = {name: box(name, span) for name, span in across.items() if not name.startswith("|")}
        height = max(map(len, boxes.values())) * LINE + 16
        for name, (left, right) in across.items():
            place[name] = (left, right, y, y + height)
            if name in boxes:
                kind = "box plug" if name == METHODS else "box"
                out.append(
                    f'<rect class="{kind}" x="{left:g}" y="{y:g}" width="{right - left:g}" height="{height}" rx="6"/>'
                )
                out += [
                    line.replace("<text", f'<text x="{left + 12:g}" y="{y + 21 + LINE * at:g}"', 1)
                    for at, line in enumerate(boxes[name])
                ]
        y += height + BETWEEN
    y -= BETWEEN
    out += [arrow(place, a, b, arrows) for a, b in arrows if not a.startswith("|")]
    notes = (
        "A room imports those that its arrows lead to, and some of those beyond: arrows that follow from others are "
        "left out.",
        "Blue: public modules, which plugins may import besides the names of ddbench itself; slanted: young, they may "
        "still change.",
    )
    for note in notes:
        y += 22
        out.append(f'<text x="{GAP}" y="{y:g}">{note}</text>')
    return HEAD.format(width=WIDTH, height=f"{y + GAP:g}", style=STYLE) + "\n".join(out) + "\n</svg>\n"


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">
<title>The rooms of ddbench and what they import</title>
<style>{style}</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>
<rect class="back" width="{width}" height="{height}" rx="10"/>
"""


def arrow(place: dict[str, tuple[float, ...]], start: str, step: str, arrows: list[tuple[str, str]]) -> str:
    """One arrow from a room down to another, through its lanes."""
    path, name = "", start
    while True:
        upper, lower = place[name], place[step]
        a, b = ends(upper[:2], lower[:2])
        top, bottom = upper[3], lower[2]
        middle = (top + bottom) / 2
        path += f"M{a:g} {top:g}" if not path else f"L{a:g} {top:g}"
        path += f"V{bottom:g}" if a == b else f"C{a:g} {middle:g} {b:g} {middle:g} {b:g} {bottom:g}"
        if not step.startswith("|"):
            return f'<path class="arrow" d="{path}"/>'
        name, step = step, next(b for a, b in arrows if a == step)


if __name__ == "__main__":
    Path(__file__).with_name("house.svg").write_text(draw())
