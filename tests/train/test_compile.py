"""When compiling pays, and verdicts about what was compiled."""

from __future__ import annotations

import json
from contextlib import suppress
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet
from tiny import TRAJECTORY, run, spec
from unrolls import on_noise, same_bits

from ddbench import Network
from ddbench.base.progress import listening
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
    assert not pays(Network(ConvNet(), (3, 32, 32), 10, torch.device("cuda")), 100, 100_000)
    steps = next(n for n in range(10, 10_000, 10) if pays(network(128), 50, n))
    with patch("torch.get_num_threads", lambda: 4):
        assert not pays(network(128), 50, 3 * steps)
        assert pays(network(128), 50, 4 * steps + 10)


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
