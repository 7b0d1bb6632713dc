"""PDD: progressive dataset distillation.

Chen, Yang, Wang & Mirzasoleiman, "Data Distillation Can Be Like Vodka: Distilling More Times For Better
Quality", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge

from ddbench import Curriculum, Problem
from ddbench.problem.stages import Networks, Staged, growing, taught
from ddbench_pdd.easy import Keep, without_easy


@dataclass(frozen=True)
class Progressive(Staged):
    """Stages: each sees the earlier sets frozen, and starts from the students they taught.

    A student learns S1, then S1 and S2, and so on (section 4 of the paper; methods of MTT and IDC alike).

    | paper | here |
    | --- | --- |
    | P, number of stages | ``stages`` |
    | expert k of a stage goes on from expert k's own start of the stage before | ``chain=True`` |
    | dropping easy examples in later stages (Table 6) | ``drop`` |

    ``networks`` is the number of taught networks that matchers which draw networks (dm, dc, idc, ...) see in later
    stages. Without it every draw is another one, taught from its initialisation on, as in the released code for IDC:
    faithful, and dear where lessons are long; with it each is taught once and kept.

    ``chain=False`` draws other initialisations for every stage and teaches them all the earlier sets from the
    beginning, as SeqMatch does. ``drop`` leaves real examples that are easy out of the real data of later
    stages, for every matcher: which ones, ``ddbench_pdd.easy`` says. The final code of the paper no longer has it.
    """

    name = "pdd"
    version = "2"  # 1 had ten taught networks in later stages, whatever a matcher drew
    paper = "Chen et al., ICLR 2024"
    paper_url = "https://arxiv.org/abs/2310.06982"
    stages: Annotated[int, Ge(1), "sets distilled one after another, P"] = 5
    chain: Annotated[bool, "each stage goes on from the networks that the stage before started from"] = True
    networks: Networks = None
    drop: Annotated[Literal["none", "correct", "forgetting"], "which easy real examples later stages leave out"] = (
        "none"
    )
    judges: Annotated[int, Ge(1), "networks that say what is easy"] = 5
    interval: Annotated[int, Ge(1), "forgetting events that every stage raises the bar by (drop=forgetting)"] = 1
    keep: Keep = 0.2

    @property
    def published(self) -> str | None:
        """Stages of other sizes, or from other networks, are not those that numbers are published of."""
        return None if self.sizes or not self.chain else f"PDD-P{self.stages}"

    def stage(self, problem: Problem, done: Curriculum) -> Problem:
        problem = replace(problem, starts=taught(problem.starts, done, chain=self.chain, networks=self.networks))
        return without_easy(problem, self.drop, self.judges, self.interval, self.keep)

    def phases(self, n: int) -> tuple[tuple[int, ...], ...]:
        return growing(n)
