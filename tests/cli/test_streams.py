"""Streams that are closed, full, or of an encoding without signs: nothing of it ends the work with a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import closing

import pytest
from boardkit import board, made
from tiny import Forks

from ddbench.boards.submit import submit
from ddbench.cli import streams

SPELLED = "66.4 ± 0.8 † … é中"


def shell(line: str, folder) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which ``$ddbench`` is the command."""
    run = f"'{sys.executable}' -P -m ddbench"
    words = ["bash", "-c", line.replace("$ddbench", run)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize("gone", ["2>&-", "2>/dev/full", "2> >(exit)", ">&-", "<&- >&- 2>&-", ">/dev/full"])
def test_a_stream_that_is_gone_ends_nothing_that_needs_it_for_words_alone(tmp_path, gone):
    done = shell(f"$ddbench list runs {gone}", tmp_path)  # there are none, which stderr is told
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_vanished_stderr_would_have_said_lands_in_no_file(tmp_path):
    code = "from ddbench.cli import streams; streams.make_reliable(); f = open('file', 'w'); print(f.fileno())"
    done = shell(f"'{sys.executable}' -c \"{code}\" 2>&- <&-", tmp_path)
    assert int(done.stdout) > 2


@pytest.mark.parametrize("reader", ["head -c1", "true"])
def test_a_reader_who_has_read_enough_is_no_failure(tmp_path, reader):
    done = shell(f"$ddbench --help | {reader} > /dev/null; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_full_disk_under_stdout_is_one_sentence_and_not_said_again_at_the_end(tmp_path):
    done = shell("$ddbench --help > /dev/full", tmp_path)
    assert done.returncode == 3
    assert done.stderr == "error: No space left on device; mend that and run the same command again\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", "66.4 +- 0.8 + ... \\xe9\\u4e2d"), ("latin-1", "66.4 ± 0.8 + ... é\\u4e2d"), ("utf-8", SPELLED)],
)
def test_signs_that_an_encoding_lacks_are_spelled(encoding, written):
    streams.make_reliable()
    held = io.BytesIO()
    stream = io.TextIOWrapper(held, encoding, "ddbench")
    stream.write(SPELLED)
    stream.flush()
    assert held.getvalue().decode(encoding) == written


@pytest.mark.parametrize("width", ["0", "-5", "x", "²", "3", "99999999999999999999"])
def test_a_silly_width_is_none(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    streams.make_reliable()
    assert "COLUMNS" not in os.environ


def test_a_width_that_can_be_is_kept(monkeypatch):
    monkeypatch.setenv("COLUMNS", "132")
    streams.make_reliable()
    assert os.environ["COLUMNS"] == "132"


def test_a_stream_that_a_caller_put_in_place_stays_there(monkeypatch):
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    streams.make_reliable()
    assert sys.stdout is own


def test_a_current_folder_that_was_deleted_is_one_sentence(tmp_path):
    done = shell("mkdir gone; cd gone; rmdir ../gone; $ddbench list datasets", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: the current folder was deleted; change to one that is there and run again\n"


def test_boards_are_built_checked_shown_and_compared_where_nothing_is_utf8(tmp_path, monkeypatch):
    folder = tmp_path / "é"
    runs = made(folder / "runs")
    toys = board(folder / "boards", runs[0], title="Spielzeug ± †")
    submit(runs, toys, replace=False, author="Jürgen 中", note="66.4 ± 0.8 …", method="метод")
    for name, value in {
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
    }.items():
        monkeypatch.setenv(name, value)
    done = shell("$ddbench leaderboard build --check --boards é/boards", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    commands = {
        "leaderboard build --boards é/boards": 0,
        "leaderboard build --check --boards ./é/boards": 0,
        "leaderboard html --boards é/boards --to é/site": 0,
        "compare --out é/runs --board é/boards/toys --reported": 0,
    }
    monkeypatch.chdir(tmp_path)
    with closing(Forks(tmp_path)) as forks:  # of the same encoding: commands get what the system would hand them
        for line, code in commands.items():
            words = [word.encode().decode("ascii", "surrogateescape") for word in line.split()]
            done = forks.run(words, tmp_path / "home")
            assert (done.code, "Traceback" in done.err) == (code, False), (line, done.err)
            assert (done.out + done.err).isascii()
    assert "метод" in (toys.folder / "README.md").read_text(encoding="utf-8")
    assert "Jürgen 中" in (folder / "site" / "toys.html").read_text(encoding="utf-8")
