"""What only a CUDA device shows; run with ``pytest -m gpu``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from ddbench.base.cache import read_json
from ddbench.run.record import RunRecord


@pytest.mark.gpu
@pytest.mark.parametrize("matcher", ["random", "tesla", "mtt"])
@pytest.mark.parametrize("scheduler", ["single", "pdd"])
def test_a_run_on_cuda_ends_with_an_evaluated_set(tmp_path, matcher, scheduler):
    spec = replace(tiny.spec(matcher, scheduler, ipc=2), device="cuda")
    folder = tiny.run(tmp_path, spec)
    (row,) = RunRecord.read(folder).rows()
    assert row.status == "ok"
    assert row.n == 2
    assert row.peak_bytes > 0
    assert torch.cuda.get_device_name() == read_json(folder / "result.json")["machine"]["device"]


@pytest.mark.gpu
def test_the_first_loss_on_cuda_is_that_on_the_cpu(tmp_path):
    losses = []
    for device in ("cpu", "cuda"):
        folder = tiny.run(tmp_path / device, replace(tiny.spec("tesla"), device=device))
        first = (folder / "metrics.jsonl").read_text().splitlines()[0]
        losses.append(float(first.split('"loss": ')[1].split(",")[0].rstrip("}")))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
