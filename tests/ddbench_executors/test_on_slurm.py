"""submitit carries suites out: its local executor for the real thing, and planted jobs for what a queue may answer."""

from __future__ import annotations

import clusters
import pytest


@pytest.mark.slow
def test_a_suite_in_the_queue_has_the_bits_of_this_machine_and_trains_no_expert_twice(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'ddbench[slurm]'")
    clusters.site(tmp_path / "site")
    path = clusters.suite(tmp_path / "s.toml", experts=2)
    queue = ("--executor", "slurm", "-o", "executor.cluster=local", "--out", tmp_path / "far")
    work = clusters.start(tmp_path, path, *queue)
    _, said = work.communicate(timeout=300)
    assert work.returncode == 0, said
    assert said.count("expert 0 of") == said.count("expert 1 of") == 1
    local = clusters.start(tmp_path, path, "--out", tmp_path / "near", DDBENCH_HOME=str(tmp_path / "other"))
    assert local.wait(300) == 0
    assert clusters.sets(tmp_path / "far") == clusters.sets(tmp_path / "near") != {}
    again = clusters.start(tmp_path, path, *queue)  # all is finished, whoever is asked
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0
    assert "2 ok of 2 cells" in said
