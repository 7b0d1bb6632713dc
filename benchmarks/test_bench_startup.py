"""The time that ``ddbench --help`` takes, as a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def test_help(benchmark):
    command = shutil.which("ddbench", path=Path(sys.executable).parent)
    assert command, "install ddbench in this environment: pip install -e '.[dev]'"
    shown = benchmark.pedantic(
        lambda: subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout,
        rounds=10,
        warmup_rounds=2,
    )
    assert "distil" in shown
