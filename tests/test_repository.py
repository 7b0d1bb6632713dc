"""What is tracked stays small: whoever clones it gets sources, records and small pictures, and no data."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST, ALL = 200_000, 10_000_000  # bytes of a file, and of all of them


def tracked() -> dict[str, int]:
    """The tracked files that are there, with their bytes."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout: it has no .git")
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip(f"git cannot read this checkout: {told.stderr.strip()}")
    return {name: (ROOT / name).lstat().st_size for name in told.stdout.split("\0") if (ROOT / name).is_file()}


def test_no_tracked_file_is_large():
    sizes = tracked()
    assert "pyproject.toml" in sizes
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}


def test_all_tracked_files_together_are_small():
    assert sum(tracked().values()) <= ALL


def test_the_formatter_is_overruled_ten_times_at_most():
    """Each such place is a table that would be ten lines or more longer."""
    mark = "# fmt: " + "skip"
    found = {name: (ROOT / name).read_text().count(mark) for name in tracked() if name.endswith(".py")}
    assert sum(found.values()) <= 10, {name: count for name, count in found.items() if count}
