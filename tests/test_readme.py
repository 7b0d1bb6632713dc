"""The commands of README's block on leaderboards, run as they are written, where no checkout is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import THREAD, ddbench, run, spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BOARDS = re.search(r"## Leaderboards\n.*?```sh\n(.*?)```", README, flags=re.S)[1].splitlines()


def words(line: str) -> list[str]:
    """The arguments of ``ddbench`` as a shell would give them here, patterns of file names included."""
    found = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in shlex.split(line)[1:]]
    return [word for some in found for word in some]


def test_runs_of_ones_own_stand_beside_those_of_a_board_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run(tmp_path / "runs", spec("random", ipc=10, matcher__labels="hard"))
    made.rename(made.with_name("digits-dm-single-ipc10-seed0-0123456789ab"))
    (line,) = [line for line in BOARDS if line.startswith("ddbench compare")]
    answer = ddbench(*words(line), "--json")
    assert answer.code == 0, answer.err
    assert {row["dataset"] for row in answer.json} == {"digits", "toy"}
    assert len(answer.json) == 14


@pytest.mark.slow
def test_the_block_on_leaderboards_runs_as_it_is_written_with_the_installed_package(tmp_path):
    site = tmp_path / "site-packages"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(ROOT)], check=True)
    script = tmp_path / "bin" / "ddbench"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m ddbench "$@"\n')
    script.chmod(0o755)
    there = {"PYTHONPATH": str(site), "PATH": f"{script.parent}:{os.environ['PATH']}", "DDBENCH_HOME": str(tmp_path)}
    work = tmp_path / "work"
    work.mkdir()
    for line in BOARDS:
        done = subprocess.run(
            ["bash", "-c", line], cwd=work, env=os.environ | THREAD | there, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
    assert (work / "site" / "digits.html").exists()
    assert len(list((work / "runs").glob("digits-dm-single-ipc10-*"))) == 5
