"""Hostile files: each ends in a sentence, without a traceback, a hang, code that runs, or memory beyond its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from ddbench.grade.distilled import Distilled
from ddbench.testing.hostile import hostile_files, sound_set

SECONDS, SLACK = 5.0, 64 << 20  # of work on one file (one that waits ends at the timeout); bytes that may be kept

# One process for all files: memory is what it had at most beyond what it had before a file.
TRY = """
import contextlib, io, json, sys, time, traceback
from pathlib import Path
from ddbench.cli import main as command
from ddbench.testing.hostile import hostile_files

def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) << 10

def given(words):
    sys.argv = ["ddbench", *words]
    try:
        command.main()
    except SystemExit as end:
        return end.code
    except BaseException:
        return traceback.format_exc()[-400:]

folder, seed, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rules = ["--students", "1", "--quiet", "--device", "cpu", "-o", "protocol.steps=2", "--out", str(folder / "runs")]
out = sys.stdout
sound = folder / "files" / "sound.safetensors"
for number, (name, path) in enumerate(hostile_files(seed, folder / "files")):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        if number == 0:  # what is imported and kept once is nobody's memory
            assert given(["eval", str(sound), *rules]) == 0, err.getvalue()
            given(["eval", str(folder), "--dataset", "toy", *rules])
        if number % every:
            continue
        err.truncate(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, began = status("VmRSS"), time.process_time()
        own = [] if path.suffix == ".safetensors" else ["--dataset", "toy"]
        code = given(["eval", str(path), *own, *rules])
        peak, seconds = status("VmHWM") - before, time.process_time() - began
    files = path.iterdir() if path.is_dir() else [path]
    size = sum(p.lstat().st_size for p in files)
    last = [line for line in err.getvalue().splitlines() if "error:" in line]
    print(json.dumps([name, code, seconds, peak, size, len(last)]), file=out, flush=True)
"""


def verdicts(tmp_path: Path, seed: int, every: int) -> list[list]:
    env = os.environ | {"DDBENCH_HOME": str(tmp_path / "home"), "DDBENCH_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRY, str(tmp_path), str(seed), str(every)]
    made = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stderr[-2000:]
    return [json.loads(line) for line in made.stdout.splitlines()]


def judged(tmp_path: Path, seed: int, every: int) -> int:
    found = verdicts(tmp_path, seed, every)
    wrong = [
        line
        for line in found
        if line[1] not in (2, 3) or line[2] > SECONDS or line[3] > 2 * line[4] + SLACK or line[5] != 1
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert not (tmp_path / "files" / "CODE_RAN").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) in (["files", "home"], ["files", "home", "runs"])
    return len(found)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are told by Linux alone")
def test_hostile_files_end_in_a_sentence(tmp_path):
    assert judged(tmp_path, 0, 17) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_all_hostile_files_end_in_a_sentence(tmp_path, seed):
    assert judged(tmp_path, seed, 1) > 450


@pytest.mark.parametrize("count", [40, pytest.param(None, marks=pytest.mark.slow)])
def test_a_seed_gives_the_same_files_and_another_one_others(tmp_path, count):
    def read(seed: int, name: str) -> dict[str, bytes]:
        made = islice(hostile_files(seed, tmp_path / name), count)
        return {name: path.read_bytes() for name, path in made if name.startswith(("documents", "raw"))}

    first, again, other = read(3, "a"), read(3, "b"), read(4, "c")
    assert len(first) >= 40
    assert first == again
    assert first.keys() != other.keys()


def test_what_the_files_are_made_from_is_sound(tmp_path):
    sound_set().save(tmp_path / "set.safetensors")
    assert len(Distilled.load(tmp_path / "set.safetensors").curriculum.sets[0]) == 6
