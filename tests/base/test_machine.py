"""What a figure was measured with."""

import shutil
import subprocess
from importlib.metadata import version

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
