"""Suites by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ddbench

from ddbench.base.shipped import shipped
from ddbench.errors import UsageError
from ddbench.suite.places import suite_file, suites


def test_a_suite_that_comes_with_ddbench_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = shipped("leaderboards") / "suites" / "digits.toml"
    assert suite_file(Path("digits")) == suite_file(Path("digits.toml")) == there
    assert suite_file(Path("speedrun")) == shipped("leaderboards") / "speedrun" / "suite.toml"
    answer = ddbench("suite", "run", "digits", "--dry-run", "--limit", "1", "--json")
    assert answer.json["total"]["to_do"] == 1
    assert "digits" in ddbench("suite", "list").out
    assert list(suites()) == [row["suite"] for row in ddbench("suite", "list", "--json").json]


def test_a_file_of_ones_own_comes_first_and_a_folder_is_no_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert suite_file(Path("digits")).is_file()
    Path("digits.toml").write_text("")
    assert suite_file(Path("digits.toml")) == Path("digits.toml")
    assert suite_file(Path("elsewhere/digits.toml")) == Path("elsewhere/digits.toml")  # its reader says what it lacks


def test_a_name_that_no_suite_has_is_an_error_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no suite of this name comes with ddbench; did you mean 'digits'\?"):
        suite_file(Path("digist.toml"))
