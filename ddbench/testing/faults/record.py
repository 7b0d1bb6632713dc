"""What a campaign found: counts by part and by what was struck, as lines of JSON, and the table that pages show."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddbench.base.opening import parse_json, read_text

Verdict = Literal["refused", "healed", "identical", "harmless", "wrong"]
VERDICTS: tuple[Verdict, ...] = ("refused", "healed", "identical", "harmless", "wrong")
BEGIN, END = "<!-- faults: generated -->", "<!-- faults: end -->"  # where a page has the text of a record
PARTS = {
    "kills": "SIGKILL, then the same command",
    "flips": "one flipped bit, then a command",
    "full": "a full disk, then room and the same command",
    "hostile": "hostile files given to commands",
}


@dataclass(frozen=True)
class Trial:
    """One trial: what was struck, what came of it, how many faults that was, and what is to be known if it is wrong."""

    part: str
    what: str
    verdict: Verdict
    faults: int = 1
    note: str = ""


@dataclass
class Record:
    """Counts of trials, and every wrong one in words."""

    about: dict[str, Any] = field(default_factory=dict)
    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def add(self, number: int, trial: Trial) -> None:
        """Count a trial; ``number`` repeats it (``--only PART --trial NUMBER``)."""
        held = self.counts.setdefault((trial.part, trial.what), Counter())
        held["trials"] += 1
        held[trial.verdict] += max(trial.faults, int(trial.verdict == "wrong"))
        if trial.verdict == "wrong":
            self.wrong.append({"part": trial.part, "trial": number, "what": trial.what, "note": trial.note[:300]})

    def total(self, part: str) -> Counter[str]:
        """The counts of a part."""
        return sum((held for (name, _), held in self.counts.items() if name == part), Counter())

    def faults(self, part: str) -> int:
        """How many faults a part has injected."""
        held = self.total(part)
        return sum(held[verdict] for verdict in VERDICTS)

    def save(self, path: Path) -> None:
        """Write it: what it was made with, a line for each thing that was struck, a line for each wrong outcome."""
        lines: list[dict[str, Any]] = [self.about]
        lines += [{"part": p, "what": w, **dict(sorted(c.items()))} for (p, w), c in sorted(self.counts.items())]
        path.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines + self.wrong), encoding="utf-8"
        )

    @staticmethod
    def load(path: Path) -> Record:
        """Read what :meth:`save` wrote."""
        first, *lines = [parse_json(line) for line in read_text(path).splitlines()]
        record = Record(first)
        for line in lines:
            if "trial" in line:
                record.wrong.append(line)
            else:
                key = line.pop("part"), line.pop("what")
                record.counts[key] = Counter(line)
        return record

    def table(self) -> str:
        """The counts of each part, as Markdown."""
        head = ("fault", "tried", *VERDICTS)
        lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        for part, title in PARTS.items():
            held = self.total(part)
            cells = [f"{n:,}" if n else "" for n in (held[verdict] for verdict in VERDICTS[:-1])]
            lines.append(f"| {title} | {self.faults(part):,} | {' | '.join(cells)} | {held['wrong']:,} |")
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """What a page says: what the record was made with, the table, and each wrong outcome."""
        held = self.about
        made = f"Seed {held['seed']}, {held['minutes']} minutes, {held['jobs']} processes, {held['system']}"
        versions = ", ".join(f"{name} {held[name]}" for name in ("ddbench", "torch", "python"))
        wrong = [f"- {w['part']} {w['trial']}, {w['what']}: `{w['note'].replace('`', '')}`" for w in self.wrong]
        return f"{made}, {versions}:\n\n{self.table()}" + "".join(f"{line}\n" for line in ("", *wrong) if wrong)

    def onto(self, page: Path) -> None:
        """Put the text into a page, between its marks."""
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        assert end, f"{page} has no marks {BEGIN} and {END}"
        page.write_text(f"{before}{BEGIN}\n\n{self.text()}\n{END}{after}", encoding="utf-8")
