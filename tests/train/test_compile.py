"""When compiling pays, and verdicts about what was compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet
from tiny import TRAJECTORY, run, spec
from unrolls import on_noise, same_bits

from ddbench import Network
from ddbench.base.cache import home
from ddbench.base.progress import listening, noting
from ddbench.base.state import load_state
from ddbench.errors import InterruptedRun
from ddbench.plugins import registry
from ddbench.train import compile as compiling
from ddbench.train.compile import account, forward_flops, pays
from ddbench.trajectory import engine
from ddbench.trajectory.engine import Engine

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def network(width: int, side: int = 32, channels: int = 3, **options) -> Network:
    return Network(ConvNet(width=width, **options), (channels, side, side), 10)


def test_flops_of_a_forward_pass_are_those_counted_by_hand():
    convolutions = 9 * (3 * 16 * 1024 + 16 * 16 * 256 + 16 * 16 * 64)
    assert forward_flops(network(16)) == 2 * (convolutions + 16 * 16 * 10)


@pytest.mark.parametrize(
    ("net", "batch", "steps", "expected"),
    [
        (network(32, 8, 1), 10, 300 * 10, False),  # the recipe for digits at ipc 1
        (network(32, 8, 1), 100, 150 * 10, False),  # at ipc 10
        (network(16, 16, 1), 20, 40 * 10, False),  # toy
        (network(128), 100, 10, False),  # a trial of one iteration
        (network(128), 100, 1000 * 10, True),  # CIFAR-10
        (network(128), 50, 500 * 30, True),
    ],
)
def test_long_runs_of_large_students_are_compiled_and_others_are_not(net, batch, steps, expected):
    assert pays(net, batch, steps) is expected


def test_what_is_too_small_to_pay_is_known_without_counting():
    """Counting loads torch's compiler, which takes longer than a small run."""
    with patch("ddbench.train.compile.forward_flops", side_effect=AssertionError):
        assert not pays(network(32, 8, 1), 100, 150 * 10)
    known = registry()
    for name in known.names("network"):
        net = Network(known.get("network", name).cls(), (3, 32, 32), 10, torch.device("meta"))
        assert forward_flops(net) <= 2 * net.parameters * 32 * 32, f"{name} counts more than its parameters can do"


def test_auto_compiles_where_it_was_measured_and_threads_share_what_it_saves():
    steps = next(n for n in range(10, 10_000, 10) if pays(network(128), 50, n))
    with patch("torch.get_num_threads", lambda: 4):
        assert not pays(network(128), 50, 3 * steps)
        assert pays(network(128), 50, 4 * steps + 10)


def test_on_cuda_it_is_the_steps_that_count_whatever_their_size():
    for width, batch in ((128, 100), (32, 10)):
        usual = Network(ConvNet(width=width), (3, 32, 32), 10, torch.device("cuda"))
        assert not pays(usual, batch, 150 * 20)
        assert pays(usual, batch, 200 * 20)
    assert not pays(Network(ConvNet(), (3, 32, 32), 10, torch.device("meta")), 100, 100_000)


SCRIPT = """
import json, torch
from ddbench.train.compile import ready
from torch._dynamo.utils import counters
ready()
scale = torch.compile(lambda x: (x * 2).sin(), fullgraph=True)
assert torch.equal(scale(torch.ones(3)), torch.full((3,), 2.0).sin())
print(json.dumps(counters["inductor"]))
"""


@pytest.mark.slow
def test_a_second_process_finds_compiled_code_in_the_cache_folder_and_nothing_is_said_of_cuda(tmp_path):
    environment = os.environ | {"DDBENCH_HOME": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    del environment["TORCHINDUCTOR_CACHE_DIR"]
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    runs = [
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
        for _ in range(2)
    ]
    first, second = (json.loads(run.stdout) for run in runs)
    assert first["fxgraph_cache_miss"] == 1
    assert second["fxgraph_cache_hit"] == 1
    assert any((tmp_path / f"compiled-{os.getuid()}").iterdir())
    assert [run.stderr for run in runs] == ["", ""]


def test_a_folder_that_the_user_names_for_compiled_code_is_used(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    compiling.ready()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiling.ready()
    folder = home() / f"compiled-{os.getuid()}"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", [lambda folder: folder.chmod(0o770), lambda folder: folder.rmdir()])
def test_compiled_code_is_not_kept_where_others_could_put_code(monkeypatch, tmp_path, spoil):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder, said = home() / f"compiled-{os.getuid()}", []
    folder.mkdir(parents=True, mode=0o700)
    spoil(folder)
    if not folder.exists():
        folder.symlink_to(tmp_path)  # a folder that somebody else may have chosen
    with noting(said.append):
        compiling.ready()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR", "").find(str(home())) < 0
    assert "compiled code is not kept there" in str(said)


def test_a_verdict_holds_in_later_processes_even_where_another_would_be_reached(monkeypatch):
    """A stage that is resumed elsewhere goes on with what it began with, and keeps the reason."""
    work = on_noise()
    work(engine=Engine(precision="bf16"))
    notes = compiling.verdicts()
    (first,) = account()
    monkeypatch.setattr(compiling, "_made", {})
    monkeypatch.setattr(engine, "ROUNDED", (10.0, 10.0))  # here it would be near enough
    compiling.settle(json.loads(json.dumps(notes)))
    assert same_bits(work(engine=Engine(precision="bf16")), work())
    (later,) = account()
    assert later["precision"] == "float32"
    assert later["reason"].startswith(first["reason"])


@pytest.mark.usefixtures("anything_goes")
def test_a_verdict_that_cannot_be_kept_is_not_kept_silently(monkeypatch):
    work = on_noise()
    work(engine=Engine(precision="bf16"))
    notes = compiling.verdicts()
    account()
    monkeypatch.setattr(compiling, "_made", {})
    monkeypatch.setattr(engine, "ROUNDED", (1e-3, 1e-3))
    compiling.settle(notes)
    work(engine=Engine(precision="bf16"))
    (later,) = account()
    assert later["precision"] == "float32"
    assert later["reason"].endswith("the stage began with eager steps in bf16")


def test_a_stage_stores_its_verdicts_with_its_checkpoints(tmp_path):
    with patch.dict("os.environ", {"DDBENCH_HOME": str(tmp_path / "home")}):
        made, seen = spec("tesla", **TRAJECTORY | {"matcher.precision": "tf32"}), []

        def stop(event):
            if event.what.endswith("distilling") and event.done == 2:
                raise InterruptedRun("now")

        with listening(stop), suppress(InterruptedRun):
            run(tmp_path, made)
        (checkpoint,) = tmp_path.glob("*/stage-0/checkpoint.safetensors")
        _, ledger = load_state(checkpoint, torch.device("cpu"))
        seen = [note["reason"] for note in ledger["engine"].values()]
        assert seen == ["tf32 exists on CUDA only; float32 is used"]
        folder = run(tmp_path, made)
    (note,) = json.loads((folder / "stage-0" / "result.json").read_text())["engine"]
    assert note["reason"] == seen[0]
