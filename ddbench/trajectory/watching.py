"""Whether a trajectory matcher gets anywhere, told from a tenth of its iterations.

The matching loss is 1 for a student that stays where its expert began, and 0 for one that arrives. Where settings do
not fit, it stays near 1 from beginning to end; where they do, it has come down after some tens of iterations. Late
segments are harder than early ones and may stand near 1 in a run that is good, so only early ones are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CLOSES = 0.9  # a mean loss above this one closes hardly any of the distance
EARLY = 4  # the first quarter of the epochs at which segments begin
AWAY = 1.02  # above this one, students end farther away than they began
FEW = 3  # losses that a mean is taken of, at least: of twice as many, the last half


def early_loss(rows: Sequence[Mapping[str, float]]) -> float | None:
    """The mean loss of the last half of those segments that begin in the first quarter of all; None of too few.

    Rows without ``start``, of matchers that do not tell where a segment begins, all count.
    """
    known = [row for row in rows if "loss" in row]
    starts = sorted({row.get("start", 0.0) for row in known})
    if not starts:
        return None
    latest = starts[0] + (starts[-1] - starts[0]) / EARLY
    losses = [row["loss"] for row in known if row.get("start", 0.0) <= latest]
    if len(losses) < 2 * FEW:
        losses = [row["loss"] for row in known]
    kept = losses[len(losses) // 2 :]
    return sum(kept) / len(kept) if len(kept) >= FEW else None


def stuck(rows: Sequence[Mapping[str, float]], walk: float, reach: float) -> str | None:
    """A sentence where students close hardly any of the distance that experts went, with what decides it; else None.

    ``walk`` is how far experts go in a segment, ``reach`` how far students can: steps times learning rate.
    """
    loss = early_loss(rows)
    if loss is None or loss <= CLOSES:
        return None
    away = loss > AWAY
    what = "moves away from where its expert goes" if away else "closes hardly any of the distance"
    lower = "a smaller matcher.lr_init or fewer matcher.syn_steps" if away else "matcher.lr_init=auto"
    return (
        f"the student {what}: after {len(rows)} iterations the matching loss of early segments is {loss:.2f} (1 is "
        f"nothing, 0 all of it). A segment of the experts is {walk:.3g} long (steps x lr), a student goes {reach:.3g}; "
        f"where runs are good these are about 4 and 0.6: try {lower}, a shorter matcher.span, or experts.epoch_steps, "
        "experts.batch and experts.lr that make segments shorter (docs/tesla.md)"
    )
