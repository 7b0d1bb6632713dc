"""What a set of another tool is before anything of it is converted: its sets, and what was found beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ddbench.data.preprocessing import Preprocessing
from ddbench.problem.synthetic import SyntheticSet


@dataclass(frozen=True, eq=False)
class Foreign:
    """What a foreign file or folder holds. ``classes`` are folder names, where no dataset told their labels.

    ``files`` are sha256 by name.

    ``notes`` say what was found and what was assumed. Images are float32, in whatever space they were stored in;
    those of ``unit`` space, [0, 1], are known to be so.
    """

    format: str
    sets: tuple[SyntheticSet, ...]
    phases: tuple[tuple[int, ...], ...] = ((0,),)
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    unit: bool = False
    step: Preprocessing | None = None  # the one that the file itself says its pixels passed
