"""A disk that is full from a drawn moment on: a sentence, nothing lost, and with room again the same bits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ddbench.testing.faults.cells import References, cells, outcome
from ddbench.testing.faults.commands import Command, Moment
from ddbench.testing.faults.kills import begin, difference
from ddbench.testing.faults.record import Trial

_ROOMS = (0, 0, 100, 1000, 4096)  # bytes that a file may still have


@dataclass
class Full:
    """Trials of full disks in a folder."""

    folder: Path
    seed: int
    references: References
    part = "full"

    def trial(self, number: int) -> Trial:
        """A run on a disk that fills up, and the same command when there is room."""
        draw = random.Random(f"{self.seed} {self.part} {number}")
        every = cells()
        place = (number * 7 + self.seed) % len(every)  # 7: so that a few trials meet many matchers
        cell = every[place]
        reference = self.references[place]
        folder = begin(reference, self.folder / "trial", draw)
        moment = Moment(draw.randint(1, reference.operations), what="full", room=draw.choice(_ROOMS))
        answer = Command(cell.words, folder).run(moment)
        wrong = answer.broken
        if not wrong and answer.code not in (0, 3):
            wrong = f"exit code {answer.code}: {answer.said}"
        if not wrong:
            again = Command(cell.words, folder).run()
            wrong = again.broken or ("" if again.code == 0 else f"again: exit code {again.code}: {again.said}")
        wrong = wrong or difference(outcome(folder), reference)
        note = f"{wrong} after {moment}" if wrong else ""
        met = int(answer.code != 0)  # or it ended before the disk was full
        return Trial(self.part, str(cell), "wrong" if wrong else "identical", met, note)
