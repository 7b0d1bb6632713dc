"""``--format latex --layout paper``: methods by images per class, as papers print them.

A row is a method, a column a budget, a cell the mean ± the sample deviation over seeds in percent. What is bold differs
significantly from every other line of its column (``results/differences``); where nothing does, nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence

from ddbench.errors import UsageError
from ddbench.results.tables import MARK, Table, clean, latex_text, marks, method_of
from ddbench.results.where import rank
from ddbench.run.row import Cells

BOLD = r"Bold: differs significantly from every other line of its column ($p < 0.05$, Holm over all pairs)."
CELLS = "Test accuracy in percent, mean $\\pm$ sample deviation over seeds{}; without $\\pm$ for one seed."
PLACE = ("dataset", "network", "protocol")


def paper(table: Table) -> str:
    """A booktabs tabular of lines, a block for each dataset, network and protocol. Raises UsageError for other rows."""
    rows = [row for row in table.rows if row.get("accuracy_mean") is not None]
    if not rows or "students" not in table.shown:
        raise UsageError(
            "--layout paper shows means over seeds, and there are none here; leave --per-run, --reported-only out, "
            "and choose runs that finished"
        )
    budgets = sorted({row.get("ipc") for row in rows}, key=rank)
    blocks: dict[tuple[str, ...], list[Cells]] = {}
    for row in rows:
        blocks.setdefault(tuple(str(row.get(name)) for name in PLACE), []).append(row)
    ipc = [str(budget) for budget in budgets]
    head = [rf"\begin{{tabular}}{{l{'c' * len(ipc)}}}", r"\toprule"]
    head.append(" & ".join(["Images per class", *ipc]) + r" \\")
    body = [line for place, own in blocks.items() for line in _block(place, own, budgets, named=len(blocks) > 1)]
    notes = [rf"\par\footnotesize {note}" for note in _notes(rows, blocks)]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}", *notes]) + "\n"


def _block(place: tuple[str, ...], rows: Sequence[Cells], budgets: Sequence[object], *, named: bool) -> list[str]:
    """The rows of one dataset, network and protocol, in the order of the table."""
    cells: dict[str, dict[object, str]] = {}
    for row in rows:
        own = cells.setdefault(str(method_of(row)), {})
        if row.get("ipc") in own:
            raise UsageError(
                f"{method_of(row)} has several lines at ipc {row.get('ipc')}; choose one with --where, such as "
                "dataset_digest or versions, or take another layout"
            )
        own[row.get("ipc")] = _cell(row)
    lines = [r"\midrule"]
    if named:
        lines.append(rf"\multicolumn{{{len(budgets) + 1}}}{{l}}{{{latex_text(', '.join(place))}}} \\")
    for name, own in cells.items():
        lines.append(" & ".join([latex_text(clean(name)), *(own.get(budget, "--") for budget in budgets)]) + r" \\")
    return lines


def _cell(row: Cells) -> str:
    std = row.get("accuracy_std")
    text = f"{100 * row['accuracy_mean']:.1f}"
    text = rf"\mathbf{{{text}}}" if row.get("best") else text
    spread = "" if std is None else rf" \pm {100 * std:.1f}"
    signs = marks(row | {"best": False}).split()
    raised = "".join({"†": r"\dagger", MARK: r"\ddagger"}[sign] for sign in signs)
    return f"${text}{spread}{f'^{{{raised}}}' if raised else ''}$"


def _notes(rows: Sequence[Cells], blocks: dict[tuple[str, ...], list[Cells]]) -> list[str]:
    counts = sorted({int(row.get("n") or 0) for row in rows})
    seeds = f" ({counts[0]})" if len(counts) == 1 else f" ({counts[0]} to {counts[-1]})"
    place = next(iter(blocks))
    about = [f"{latex_text(', '.join(place))}."] if len(blocks) == 1 else []
    found = [*about, CELLS.format(seeds)]
    found += [BOLD] if any(row.get("best") for row in rows) else []
    found += [r"$\dagger$: selected on test data."] if any("†" in marks(row) for row in rows) else []
    below = r"$\ddagger$: not above random images of its budget (95\,\% interval of the difference, Welch)."
    found += [below] if any(MARK in marks(row) for row in rows) else []
    return found
