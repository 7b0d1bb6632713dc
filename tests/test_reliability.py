"""The figures in docs/reliability.md are those of the records beside it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = sorted((DOCS / "results").glob("mutation-*.jsonl.gz"))
PAGE = (DOCS / "reliability.md").read_text().partition("## Mutation")[2]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def mutation():
    """The driver, which is no module of a package; what it needs besides the standard library, it imports late."""
    spec = importlib.util.spec_from_file_location("mutation_driver", DOCS.parent / "benchmarks" / "mutation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_table_of_mutants_is_that_of_the_records(mutation):
    assert {f"mutation-{room}.jsonl.gz" for room in mutation.ROOMS} == {path.name for path in RECORDS}
    assert mutation.table() in PAGE, "run: python -m benchmarks.mutation --table"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_holds_mutants_of_its_room_once_and_says_why_one_is_left(path):
    about, *rows = rows_of(path)
    assert len({(row["file"], row["operator"], row["occurrence"]) for row in rows}) == len(rows)
    assert {row["file"].split("/")[1] for row in rows} == {about["room"]}
    for row in rows:
        assert row["outcome"] in ("killed", "timeout") or re.fullmatch(r"[\w ]+: .+", row["why"]), row


def test_the_page_counts_the_kinds_of_mutants_that_are_left():
    rows = [row for path in RECORDS for row in rows_of(path)[1:]]
    left = [row for row in rows if row["outcome"] not in ("killed", "timeout")]
    kinds = Counter(row["why"].partition(":")[0] for row in left)
    assert dict(re.findall(r"^\| ([\w ]+) \| (\d+) \| \S", PAGE, flags=re.M)) == {k: str(n) for k, n in kinds.items()}
