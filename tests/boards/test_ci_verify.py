"""What a pull request with entries has verified: those that changed and say where their sets are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "verify"
WORKFLOW = SCRIPT.parents[1] / ".github" / "workflows" / "entries.yml"
AUTHOR = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("code", [0, 1])
def test_entries_that_changed_and_name_their_sets_are_verified(tmp_path, code):
    fake = tmp_path / "bin" / "ddbench"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*"\nexit {code}\n')
    fake.chmod(0o755)
    env = os.environ | AUTHOR | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    repo = tmp_path / "repo"
    sets = {"given": "https://example.org/sets", "unsaid": "", "same": "https://example.org/sets"}
    rules = {"digits": "digits", "photos": "images"}
    for board, dataset in rules.items():
        (repo / "leaderboards" / board / "entries").mkdir(parents=True)
        (repo / "leaderboards" / board / "board.toml").write_text(f'[dataset]\nname = "{dataset}"\n')

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=repo, env=env, check=True, capture_output=True)

    def write(*names: str) -> None:
        for board in rules:
            for name in names:
                path = repo / "leaderboards" / board / "entries" / f"{name}-ipc1-01234567.json"
                path.write_text(f'{{\n"method": "m",\n"sets": "{sets[name]}",\n"runs": []\n}}\n')
        git("add", "-A")
        git("commit", "-m", "entries")

    git("init", "-b", "main")
    write("same")
    git("switch", "-c", "more")
    write("given", "unsaid")
    done = subprocess.run([SCRIPT, "main"], cwd=repo, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    unsaid = "unsaid-ipc1-01234567.json says nothing of where its sets are: nobody can verify it"
    assert done.stdout.splitlines() == [
        "leaderboard verify digits given-ipc1-01234567 --by continuous integration",
        f"leaderboards/digits/entries/{unsaid}",
        "leaderboards/photos/entries/given-ipc1-01234567.json is of a board whose data are not here: verify it where "
        "they are",
        f"leaderboards/photos/entries/{unsaid}",
    ]
    assert '.ci/verify "origin/$GITHUB_BASE_REF"' in WORKFLOW.read_text()
