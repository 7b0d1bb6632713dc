"""Processes that carry out a command: their ends, their last words, and what is said of their deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny

from ddbench.base.process import PARENT, Job, Worker, carry, complaint, death, follow_parent, last_words
from ddbench.errors import DataError

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


def ended(worker: Worker) -> int:
    """The exit code of a worker, once it has one."""
    until = time.monotonic() + 60
    while worker.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    code = worker.poll()
    assert code is not None
    return code


@pytest.fixture
def worker(tmp_path):
    """A command that ends by itself, soon."""
    made = Worker(Job("a worker", ("--version",), tmp_path / "logs" / "worker.log", threads=2))
    yield made
    made.kill()


def test_a_worker_ends_with_the_code_of_its_command_and_nothing_to_say(worker):
    assert ended(worker) == 0
    assert last_words(worker.job.log) == ""
    assert complaint(worker.job.log) == f"it said nothing; see {worker.job.log}"


def test_a_worker_that_fails_says_why_as_the_command_does(tmp_path):
    failed = Worker(Job("", ("run", "--dataset", "toys", "--matcher", "random"), tmp_path / "worker.log"))
    said = tiny.ddbench("run", "--dataset", "toys", "--matcher", "random")
    assert ended(failed) == said.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert complaint(failed.job.log) == line.removeprefix("error: ")


def test_what_an_engine_carries_ends_with_the_code_of_its_command(tmp_path):
    assert carry(Job("", ("--version",), tmp_path / "worker.log")) == 0
    assert carry(Job("", ("nonsense",), tmp_path / "worker.log")) == 2


def test_an_engine_that_cancels_lets_the_command_end_first(tmp_path):
    begun: list[Worker] = []

    def interrupt(worker: Worker) -> None:
        begun.append(worker)
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()

    held = signal.signal(signal.SIGINT, signal.default_int_handler)  # commands in this process leave another one
    try:
        with pytest.raises(KeyboardInterrupt):
            carry(Job("", ("list", "matchers"), tmp_path / "worker.log"), interrupt)
    finally:
        signal.signal(signal.SIGINT, held)
    assert begun[0].poll() is not None


@needs_proc
def test_a_worker_has_our_environment_its_own_number_of_threads_and_a_parent(monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_THREADS", "7")
    monkeypatch.setenv("A_NAME_OF_OURS", "kept")
    made = Worker(Job("", ("list", "matchers"), tmp_path / "worker.log", threads=2))
    until = time.monotonic() + 60
    try:
        while PARENT not in (text := Path(f"/proc/{made._process.pid}/environ").read_text()):
            assert time.monotonic() < until
    finally:
        made.kill()
    own = dict(part.split("=", 1) for part in text.split("\0") if "=" in part)
    assert own["DDBENCH_THREADS"] == own["OMP_NUM_THREADS"] == "2"
    assert own["A_NAME_OF_OURS"] == "kept"
    assert own[PARENT] == str(os.getpid())


def test_a_worker_that_is_killed_is_gone_at_once_and_can_be_killed_again(worker):
    worker.kill()
    assert worker.poll() in (-signal.SIGKILL, 0)  # it may have ended before
    worker.kill()
    worker.stop()


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("many lines of it")
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "worker.log").symlink_to(tmp_path / "precious")
    (tmp_path / "linked").symlink_to(tmp_path / "suite")
    for log in ("suite/worker.log", "linked/other.log"):
        with pytest.raises(DataError, match="is a link"):
            Worker(Job("", ("--version",), tmp_path / log, tmp_path))
    assert (tmp_path / "precious").read_text() == "many lines of it"
    assert not (tmp_path / "suite" / "other.log").exists()


@pytest.mark.parametrize("parent", ["²", "-1", "x", ""])
def test_a_parent_that_is_no_number_is_none(monkeypatch, parent):
    monkeypatch.setenv(PARENT, parent)
    before = threading.active_count()
    follow_parent()
    assert threading.active_count() == before


def test_the_last_words_are_the_last_line_with_something_on_it(worker):
    ended(worker)
    worker.job.log.write_text("first\nerror: a reason  \n  more of it \n\n  \n")
    assert last_words(worker.job.log) == "more of it"
    assert complaint(worker.job.log) == "a reason"


def test_without_an_error_the_last_words_are_the_complaint(worker):
    ended(worker)
    worker.job.log.write_text("first\nsecond\n")
    assert complaint(worker.job.log) == "second"


def test_the_last_of_two_errors_is_the_complaint(worker):
    ended(worker)
    worker.job.log.write_text("error: one\nerror: two\nlater\n")
    assert complaint(worker.job.log) == "two"


def test_of_a_long_log_the_end_is_read(worker):
    ended(worker)
    worker.job.log.write_text("error: long ago\n" + "x" * 4100 + "\nlast\n")
    assert last_words(worker.job.log) == complaint(worker.job.log) == "last"
    worker.job.log.write_text("error: not so long ago\n" + "x" * 3900 + "\nlast\n")
    assert complaint(worker.job.log) == "not so long ago"


def test_a_log_that_is_gone_is_silence(worker):
    ended(worker)
    worker.job.log.unlink()
    assert last_words(worker.job.log) == ""


def test_death_names_the_signal_and_memory_where_that_is_likely():
    assert "killed by signal 9 (SIGKILL), as the system does when memory runs out" in death(-9)
    for code, name in ((-15, "15 (SIGTERM)"), (-11, "11 (SIGSEGV)"), (-6, "6 (SIGABRT)"), (-99, "99 (signal 99)")):
        assert f"killed by signal {name}; a plugin or library crashed it" in death(code)
        assert "memory" not in death(code)


def test_a_process_ends_as_on_sigterm_when_its_parent_is_another_than_it_works_for():
    """One works for us, one for nobody, one for our own parent, one for a number that no process has."""
    code = (
        "import os, sys, time\n"
        "from ddbench.base import process\n"
        "process._WATCH_SECONDS = 0.01\n"
        "os.environ[process.PARENT] = sys.argv[1]\n"
        "process.follow_parent()\n"
        "assert process.PARENT not in os.environ\n"
        "time.sleep(float(sys.argv[2]))\n"
    )
    asked = {str(os.getpid()): "0.5", "nobody": "0.5", str(os.getppid()): "60", "1000000000": "60"}
    begun = [subprocess.Popen([sys.executable, "-c", code, parent, seconds]) for parent, seconds in asked.items()]
    assert [child.wait() for child in begun] == [0, 0, -signal.SIGTERM, -signal.SIGTERM]
