"""Ray carries suites out: two nodes on this machine, one of which is killed. Slow: nodes are real processes."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import clusters
import pytest

from ddbench.suite.status import records

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Any]:
    """A cluster whose head takes no task; its nodes have our matcher."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'ddbench[ray]'")
        from ray.cluster_utils import Cluster

        clusters.site(tmp_path / "site")
        for name, value in clusters.environment(tmp_path, RAY_USAGE_STATS_ENABLED="0").items():
            monkeypatch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield made
        finally:
            made.shutdown()


def on(cluster: Any, tmp_path: Any, path: Any, *more: Any) -> Any:
    where = ("-o", f"executor.address={cluster.address}", "--out", tmp_path / "far")
    return clusters.start(tmp_path, path, "--executor", "ray", *where, *more)


def test_a_suite_on_two_nodes_of_which_one_is_killed_has_the_bits_of_this_machine(cluster, tmp_path):
    path = clusters.suite(tmp_path / "s.toml", seeds="[0]", steps=40, seconds=0.25, experts=2)
    first = cluster.add_node(num_cpus=1)
    work = on(cluster, tmp_path, path)
    clusters.until(lambda: clusters.steps(tmp_path / "far") >= 3, work)
    cluster.add_node(num_cpus=1)
    cluster.remove_node(first, allow_graceful=False)
    _, said = work.communicate(timeout=300)
    assert work.returncode == 0, said
    assert "goes on from its last checkpoint (try 1 of 3 more)" in said
    assert "expert 0 of toy, strolling" in said
    made = records(tmp_path / "far")
    assert [record["status"] for record in made] == ["ok"] * 3  # two experts and the cell
    local = clusters.start(tmp_path, path, "--out", tmp_path / "near", DDBENCH_HOME=str(tmp_path / "other"))
    assert local.wait(300) == 0
    assert clusters.sets(tmp_path / "far") == clusters.sets(tmp_path / "near") != {}


def test_ctrl_c_lets_cells_on_nodes_write_checkpoints_and_leaves_nothing_running(cluster, tmp_path):
    path = clusters.suite(tmp_path / "s.toml", seeds="[0]", steps=400, seconds=0.25)
    cluster.add_node(num_cpus=1)
    work = on(cluster, tmp_path, path)
    clusters.until(lambda: clusters.steps(tmp_path / "far") >= 3, work)
    os.kill(work.pid, signal.SIGINT)
    _, said = work.communicate(timeout=120)
    assert work.returncode == 130, said
    assert "to go on: ddbench suite run" in said
    assert list((tmp_path / "far").glob("*/stage-0/checkpoint.safetensors"))
    assert not clusters.living(str(tmp_path / "far"))
