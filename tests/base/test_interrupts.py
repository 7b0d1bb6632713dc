"""Signals from the first moment of a command to its last: 130, one sentence, no traceback."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

SENTENCE = "error: interrupted; everything finished so far is kept; to go on: ddbench "
UNWOUND = """
import os, signal
from ddbench.base import interrupts
interrupts.hear()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("temporary files go")
"""
TWICE = """
import os, signal
from ddbench.base import interrupts
interrupts.hear()
try:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
except BaseException:
    print("the second was swallowed")
"""
CHILD = """
import os, signal
from ddbench.base import interrupts
from ddbench.base.progress import Interrupts
interrupts.hear()
for listening in (False, True):
    if listening:
        Interrupts().__enter__()
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def python(*words: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **more)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_during_imports_ends_the_command_with_130_and_the_command_that_goes_on(tmp_path, number):
    """In the middle of a library that takes every exception for a missing feature of its own."""
    kill = f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{number})\nexcept BaseException:\n    pass\n"
    (tmp_path / "click.py").write_text(kill)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['ddbench', 'run', '--out', 'my runs']; "
    done = python("-c", code + "from ddbench.__main__ import main; main()")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == SENTENCE + "run --out 'my runs'\n"


def test_a_signal_outside_of_imports_unwinds_first():
    assert python("-c", UNWOUND).stdout == "temporary files go\n"


def test_a_second_signal_while_the_first_is_handled_ends_the_process_with_the_same_sentence():
    done = python("-c", TWICE, "compare")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", SENTENCE + "compare\n")


@pytest.mark.parametrize(("code", "ended"), [(130, 130), (0, 0), (3, 3)])
def test_a_signal_after_everything_was_said_changes_nothing(tmp_path, code, ended):
    """What libraries do when Python ends is not interrupted, which would be a traceback or a death by signal."""
    (tmp_path / "click.py").write_text(f"import sys\nsys.exit({code})\n")
    late = (
        f"import atexit, os, signal, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['ddbench', 'list']; "
        "atexit.register(lambda: [print('late'), os.kill(os.getpid(), signal.SIGINT), print('later')]); "
        "from ddbench.__main__ import main; main()"
    )
    done = python("-c", late)
    assert (done.returncode, done.stderr) == (ended, "")
    assert done.stdout.split() == ([] if code == 130 else ["late", "later"])


def test_a_forked_child_ends_by_the_signal_as_any_process_and_says_nothing_for_its_parent():
    done = python("-c", CHILD)
    assert (done.stdout.split(), done.stderr) == (["-15", "-15"], "")


def test_the_command_is_quoted_as_a_shell_reads_it():
    words = ["eval", "a b", "it's", "~nobody", "-o", "dataset.root=x y", "", "é", "$HOME", "plain-1.0"]
    code = "from ddbench.base.interrupts import sentence; print(sentence())"
    said = python("-X", "utf8", "-c", code, *words, encoding="utf-8").stdout
    assert shlex.split(said.partition("to go on: ")[2]) == ["ddbench", *words]


def test_nothing_heavy_is_loaded_before_signals_are_heard():
    code = "import ddbench.__main__, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(python("-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}").stdout.split())
    assert "signal" in loaded
    assert not loaded & {"typing", "click", "logging", "pathlib", "shlex", "difflib"}
