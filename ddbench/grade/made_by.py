"""Third-party code behind an evaluation: its record holds the digests, and what other code made is made again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddbench.base.cache import set_aside
from ddbench.base.code import foreign_code
from ddbench.base.options import label
from ddbench.base.progress import note
from ddbench.grade.distilled import Distilled
from ddbench.hookspecs import Metric

Code = dict[str, str]  # sha256 of its source, by module


def code_of_students(distilled: Distilled) -> Code:
    """What decides students besides ddbench: the network that learns, and teachers where they label every batch."""
    teachers = distilled.curriculum.code if distilled.teaching.recipe.online else {}
    return teachers | foreign_code(type(distilled.network))


def code_of_metrics(metrics: Mapping[str, Metric]) -> dict[str, Code]:
    """The code of each metric that is not built in, by its label."""
    found = {label(metric): foreign_code(type(metric)) for metric in metrics.values()}
    return {words: code for words, code in found.items() if code}


def differing(held: Mapping[str, str], now: Code) -> list[str]:
    """The sources of now that are not those recorded, or of which none were."""
    return [name for name, value in now.items() if held.get(name) != value]


def outdated(record: dict[str, Any], metrics: Mapping[str, Code]) -> dict[str, list[str]]:
    """The metrics in a record that other code measured, with the names of what differs."""
    held = record.get("metric_sources", {})
    found = {
        words: differing(held.get(words, {}), code) for words, code in metrics.items() if record["metrics"].get(words)
    }
    return {words: names for words, names in found.items() if names}


def without_outdated(record: dict[str, Any], metrics: Mapping[str, Code], path: Path) -> None:
    """Take the numbers of metrics that other code measured out of a record; they are measured again."""
    for words, names in outdated(record, metrics).items():
        note(f"metric {words} in {path} was measured by other code of {', '.join(names)}; it is measured again")
        name = words.partition("(")[0]
        del record["metrics"][words]
        for student in record["students"]:
            for number in [n for n in student if n == name or n.startswith(f"{name}.")]:
                del student[number]


def replaced(path: Path, names: list[str]) -> None:
    """Keep an evaluation by other code under another name, and say so."""
    kept = set_aside(path)
    note(
        f"evaluation {path} was made by other code of {', '.join(names)}: it is made anew, and what was there is kept "
        f"as {kept.name}"
    )
