"""What is made for a bare GPU machine, without asking a package index; and that it runs where there is nothing else."""

from __future__ import annotations

import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def images(tmp_path) -> Path:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train/b/1.png", "train/a/0.png", "test/a/0.png"):
            archive.writestr(name, f"the bytes of {name}")
    return path


@pytest.fixture
def packed(tmp_path, images) -> tuple[Path, str]:
    from benchmarks.gpu_pack import pack

    folder = tmp_path / "pack"
    return folder, pack(folder, images, wheels=False)


def test_a_pack_holds_what_such_a_machine_needs_and_says_the_one_command(packed):
    folder, said = packed
    assert "sh pack/go results 8" in said
    (wheel,) = (folder / "wheels").iterdir()
    assert {"ddbench/__init__.py", "ddbench_tesla/recipes.toml"} <= set(zipfile.ZipFile(wheel).namelist())
    for name in ("tests/conftest.py", "benchmarks/gpu_parts.py", "leaderboards/speedrun/suite.toml", "pyproject.toml"):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert {p.name for p in (folder / "records").iterdir()} >= {"h200-2026-11-27.json"}
    with lzma.open(folder / "images.tar.xz") as stream:
        held = io.BytesIO(stream.read())
    with tarfile.open(fileobj=held) as archive:
        assert archive.getnames() == ["test/a/0.png", "train/a/0.png", "train/b/1.png"]
        assert archive.extractfile("train/b/1.png").read() == b"the bytes of train/b/1.png"


def test_a_folder_that_holds_something_is_left_alone(tmp_path, images):
    from benchmarks.gpu_pack import pack

    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        pack(tmp_path / "pack", images, wheels=False)
    assert [p.name for p in (tmp_path / "pack").iterdir()] == ["mine"]


@pytest.mark.slow
def test_what_is_packed_runs_without_this_checkout(packed, tmp_path):
    """Without a GPU it says so, and ends with exit code 3, by the ddbench that it brought."""
    folder, _ = packed
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own |= {"PYTHON": sys.executable, "TMPDIR": str(tmp_path / "scratch"), "CUDA_VISIBLE_DEVICES": ""}
    words = ["sh", str(folder / "go"), "results", "1", "--only", "tests"]
    done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "no CUDA device" in done.stderr
    assert (tmp_path / "scratch" / "ddbench-gpu" / "site" / "ddbench" / "__init__.py").exists()
    assert (tmp_path / "scratch" / "ddbench-gpu" / "images.tar").exists()
    assert (tmp_path / "results" / "h200-2026-11-27.json").exists()


def test_the_script_of_a_pack_is_one_that_a_shell_reads(packed):
    folder, _ = packed
    done = subprocess.run(["sh", "-n", str(folder / "go")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
