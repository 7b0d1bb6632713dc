"""The student's first learning rate, found before the first iteration: the one with which students follow best.

A student takes T steps of size beta, its expert walked some way in ``span`` epochs. Which beta makes the two comparable
follows from the data, the network and the images that distillation starts from, and least of all from another
dataset's recipe; for later stages of a progressive schedule, whose experts start from taught networks, a guess is
hardest. So a few segments are drawn, and students walk along them, forwards only, with one beta after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

AUTO: Literal["auto"] = "auto"
FIRST, FACTOR = 0.02, 2.0  # where the search begins, and the ratio of neighbours
LEAST, MOST = 1e-5, 10.0
SEGMENTS = 3  # on whose mean loss the choice rests: the same segments, batches and augmentations for every beta


def least(loss: Callable[[float], float]) -> float:
    """The beta of ``FIRST`` * ``FACTOR`` ** k, within ``LEAST`` and ``MOST``, downhill from ``FIRST``, of least loss.

    The walk goes on while it descends, first towards larger steps, so that it costs about as many evaluations as the
    answer is far away. What is no number counts as infinite: such a student ran away.
    """

    def measured(beta: float) -> float:
        found = loss(beta)
        return found if math.isfinite(found) else math.inf

    best, value = FIRST, measured(FIRST)
    for factor in (FACTOR, 1 / FACTOR):
        at, began = best, value
        while LEAST <= at * factor <= MOST:
            at *= factor
            found = measured(at)
            if found < value:
                best, value = at, found
            elif factor > 1 or value < math.inf:
                break
        if value < began:
            break
    return best
