"""Cells of papers' tables: every line is a run, and the table shows misses as it shows hits."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from pathlib import Path

import pytest
from tiny import ddbench

from ddbench.run.spec import Request, resolve

ROOT = Path(__file__).parents[2]
ABOUT = {"device": "NVIDIA Imaginary", "torch": "2.99", "ddbench": "0.1.0 (abc)", "date": "2026-01-01"}


@pytest.fixture
def published(monkeypatch):
    """The benchmarks are scripts of a checkout, and not installed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.gpu_published

    return benchmarks.gpu_published


@pytest.fixture
def orders(published, tmp_path) -> dict:
    from benchmarks.gpu import _images

    _images(tmp_path / "images.zip", 60)
    return {"device": "cpu", "data": str(tmp_path / "images.zip"), "tiny": True, "seconds": 60.0, "known": []}


def test_a_cell_has_the_same_settings_on_any_device(published):
    """Its accuracy stands for all of them, so that no recipe or rule of a device may fill it in."""
    for cell in published.cells():
        words = shlex.split(cell.words)
        given = dict(itertools.pairwise(words))
        named = {
            name: given[f"--{name}"] for name in ("matcher", "scheduler", "protocol", "recipe") if f"--{name}" in given
        }
        flags = tuple(tuple(b.split("=", 1)) for a, b in itertools.pairwise(words) if a == "-o")
        asked = {"dataset": "images:photos", "ipc": int(given["--ipc"]), "flags": flags, "here": False} | named
        cpu, cuda = (resolve(Request(**asked, device=device)).spec.record() for device in ("cpu", "cuda"))
        assert cpu | {"device": ""} == cuda | {"device": ""}, cell.name


@pytest.mark.slow
def test_every_line_is_a_run_that_resolves(published, orders, tmp_path, capsys):
    for cell in published.cells():
        line = published.words(cell, orders | {"tiny": False}, str(tmp_path / "runs"))
        line = [word for word in line if word not in ("--quiet", "--format", "json")]
        answer = ddbench(*line, "--dry-run")
        assert answer.code == 0, (cell.name, answer.err)
        assert "no recipe" not in answer.err


def test_a_cell_is_on_record_when_it_ends_and_is_not_run_again(published, orders):
    heard: list[dict] = []
    published.part("evaluator", orders, lambda **told: heard.append(told))
    (figure,) = [told for told in heard if "value" in told]
    assert figure["variant"] == "random, ipc 1"
    assert figure["n"] == 2
    assert figure["protocol"].startswith("dsa-paper")
    assert 0 <= figure["value"] <= 100
    heard.clear()
    published.part("evaluator", orders | {"known": ["random, ipc 1"]}, lambda **told: heard.append(told))
    assert heard == []


def test_a_cell_that_fails_says_why(published, orders):
    heard: list[dict] = []
    published.part("dm", orders | {"data": "nowhere.zip"}, lambda **told: heard.append(told))
    assert "nowhere.zip" in heard[-1]["error"]


def test_the_table_shows_hits_misses_failures_and_what_was_not_run(published):
    from benchmarks.gpu_records import Record

    cell = published.Cell("dm", "dm, ipc 1", "", "as published", 26.0, 0.8, "datm")
    figure = {"part": "dm", "variant": "dm, ipc 1", "unit": "%", "value": 24.5, "std": 0.4, "n": 5, "seconds": 61.2}
    failed = {"part": "dm", "variant": "dm, ipc 10", "unit": "%", "error": "a\nout of memory"}
    record = Record(Path("a.json"), ABOUT, figures=[figure, failed])
    others = [dataclasses.replace(cell, name=name) for name in ("dm, ipc 10", "dm, ipc 50")]
    table = published.table([cell, *others], [record])
    assert "| dm, ipc 1 | 26.0 ± 0.8 [1] | 24.5 ± 0.4 (n = 5) | \N{MINUS SIGN}1.5 | as published | Imaginary" in table
    assert "| dm, ipc 10 | 26.0 ± 0.8 [1] | failed: out of memory |" in table
    assert "| dm, ipc 50 | 26.0 ± 0.8 [1] | not run |" in table


def test_the_page_is_that_of_the_records(published):
    from benchmarks.gpu_records import RECORDS, read_all

    text = published.PAGE.read_text()
    assert published.page(text, read_all(RECORDS)) == text
    with pytest.raises(ValueError, match="once each"):
        published.page("", [])


def test_sources_are_all_named(published):
    import tomllib

    named = tomllib.loads(published.FILE.read_text())["sources"]
    assert {cell.source for cell in published.cells() if cell.source} == set(named)
