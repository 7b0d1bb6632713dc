"""The first numbers of each built-in on toy: a change of any of them is a change of a method.

After a change that is meant to move them: ``python tests/test_golden.py`` writes ``golden.json`` anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from tiny import run, spec

from ddbench.files import Distilled
from ddbench.results import rows

GOLDEN = Path(__file__).with_name("golden.json")
CASES = {
    "tesla zero single": ("tesla", "single", {"matcher__curvature": "zero", "matcher__labels": "teacher"}),
    "tesla exact single": ("tesla", "single", {"matcher__curvature": "exact", "matcher__labels": "teacher"}),
    "tesla learned single": ("tesla", "single", {"matcher__curvature": "exact", "matcher__labels": "learned"}),
    "tesla batched single": ("tesla", "single", {"matcher__batch_syn": 4, "matcher__labels": "hard"}),
    "mtt single": ("mtt", "single", {"matcher__labels": "hard"}),
    "tesla zero pdd": ("tesla", "pdd", {"matcher__curvature": "zero", "matcher__labels": "teacher"}),
    "mtt pdd": ("mtt", "pdd", {"matcher__labels": "hard"}),
    "random single": ("random", "single", {"matcher__labels": "hard"}),
    "random teacher pdd": ("random", "pdd", {"matcher__labels": "teacher"}),
}


def measure(case: str, out: Path) -> dict[str, list[float]]:
    """Losses and student lr of the first iterations, and the mean image and label of each set."""
    matcher, scheduler, more = CASES[case]
    folder = run(out, spec(matcher, scheduler, 2, **more), students=1)
    assert rows(folder)[0]["status"] == "ok"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sets = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    return {
        "loss": [line["loss"] for line in lines],
        "lr": [line["lr"] for line in lines],
        "image_mean_of_squares": [float(s.images.double().square().mean()) for s in sets],
        "label_of_first_image": [float(s.labels[0, 0]) for s in sets],
    }


@pytest.mark.parametrize("case", CASES)
def test_the_first_numbers_of_every_built_in_are_the_golden_ones(case, tmp_path):
    golden, found = json.loads(GOLDEN.read_text())[case], measure(case, tmp_path)
    assert set(found) == set(golden)
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


def test_every_golden_number_is_tested():
    assert set(json.loads(GOLDEN.read_text())) == set(CASES)


def regenerate() -> None:
    with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", {"DDBENCH_HOME": f"{folder}/home"}):
        found = {case: measure(case, Path(folder) / "runs") for case in CASES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    regenerate()
