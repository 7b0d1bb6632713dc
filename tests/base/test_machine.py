"""What a figure was measured with."""

import re
import resource
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from ddbench.base import machine


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that ddbench seems to run from."""
    place = tmp_path / "checkout"
    (place / "ddbench" / "base").mkdir(parents=True)
    (place / "ddbench" / "base" / "machine.py").write_text("1\n")
    monkeypatch.setattr(machine, "__file__", str(place / "ddbench" / "base" / "machine.py"))
    machine.code.cache_clear()
    yield place
    machine.code.cache_clear()


def git(place, *words):
    said = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *words],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.strip()


def test_an_installed_package_is_its_version(checkout):
    assert machine.machine("cpu")["ddbench"] == version("ddbench")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_is_its_commit_and_edits_show(checkout):
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    git(checkout, "tag", "v9")  # a tag is no commit: the same code must have the same name before and after
    commit = git(checkout, "rev-parse", "HEAD")[:10]
    assert machine.code() == f"{version('ddbench')} ({commit})"

    (checkout / "ddbench" / "base" / "machine.py").write_text("2\n")
    machine.code.cache_clear()
    assert machine.code() == f"{version('ddbench')} ({commit}-dirty)"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_without_a_commit_is_its_version(checkout):
    git(checkout, "init", "-q")
    assert machine.code() == version("ddbench")


# -- memory --------------------------------------------------------------------------------------------------


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
LARGE = 64 << 20


def told(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(kilobytes) * 1024


@needs_proc
def test_the_peak_is_what_the_system_says_and_a_reset_starts_it_anew():
    held = np.ones(LARGE, dtype=np.uint8)
    del held
    machine.reset_peak("cpu")
    before = machine.peak_bytes("cpu")
    assert before == pytest.approx(told("VmHWM"), rel=0.01)
    held = np.ones(LARGE, dtype=np.uint8)
    assert machine.peak_bytes("cpu") - before == pytest.approx(LARGE, rel=0.1)
    del held
    assert machine.peak_bytes("cpu") - before == pytest.approx(LARGE, rel=0.1)
    machine.reset_peak("cpu")
    assert machine.peak_bytes("cpu") - before < LARGE / 2


@needs_proc
def test_without_the_systems_file_the_peak_is_that_of_the_whole_process(monkeypatch):
    def gone(*_args, **_kwargs):
        raise OSError(2, "No such file")

    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    monkeypatch.setattr(Path, "read_text", gone)
    assert machine.peak_bytes("cpu") == pytest.approx(whole, rel=5e-4)


@needs_proc
def test_anonymous_memory_is_what_no_file_backs(tmp_path):
    before = machine.anonymous_bytes()
    assert before == pytest.approx(told("RssAnon"), rel=0.05)
    held = np.ones(LARGE, dtype=np.uint8)
    assert machine.anonymous_bytes() - before == pytest.approx(LARGE, rel=0.1)
    held.tofile(tmp_path / "large")
    mapped = np.memmap(tmp_path / "large", mode="r")
    assert mapped.sum() == LARGE
    assert machine.anonymous_bytes() - before == pytest.approx(LARGE, rel=0.1)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc")
def test_the_machine_is_named_by_its_processor():
    named = re.findall(r"^model name\s*:\s*(.*\S)\s*$", Path("/proc/cpuinfo").read_text(), re.M)
    assert machine.machine("cpu")["device"] == (named[0] if named else "CPU")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own report")
def test_freed_memory_is_kept_until_the_next_measurement(tmp_path):
    """In a process of its own: the setting stays. A block of 64 MB goes back to the system unless told otherwise."""
    code = (
        "import torch\n"
        "from ddbench.base.machine import anonymous_bytes, keep_freed_memory, reset_peak\n"
        "def freed(mib):\n"
        "    large = torch.ones(mib << 18)\n"
        "    del large\n"
        "    return anonymous_bytes()\n"
        "start = freed(64)\n"
        "keep_freed_memory()\n"
        "kept = freed(64)\n"
        "reset_peak('cpu')\n"
        "print((kept - start) >> 20, (anonymous_bytes() - start) >> 20)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, after = map(int, said.stdout.split())
    assert kept >= 60
    assert after <= 8
