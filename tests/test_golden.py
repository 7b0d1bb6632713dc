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

from ddbench.grade.distilled import Distilled
from ddbench.plugins import registry
from ddbench.run.record import RunRecord

GOLDEN = Path(__file__).with_name("golden.json")
SHORT = {"matcher__steps": 4}
EARLY = {"matcher__experts": 2, "matcher__epochs": 2}
TRACED = {
    "matcher__steps": 4,
    "matcher__syn_steps": 3,
    "matcher__experts": 2,
    "matcher__span": 1,
    "matcher__max_start": 2,
    "matcher__lr_img": 10.0,
    "matcher__lr_init": 0.01,
    "experts__epochs": 3,
}
UNROLLED = SHORT | {"matcher__total": 4, "matcher__window": 2, "matcher__batch_real": 9}
REPLACED = {"matcher__networks": 2, "matcher__max_online": 2, "matcher__batch_real": 9}
PACED = {"matcher__threshold": 10, "matcher__all_after": 2, "matcher__drop_after": 2, "matcher__drop": 0.1}
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
    "random seqmatch": ("random", "seqmatch", {}),
    "random restarts": ("random", "restarts", {"scheduler__restarts": 2}),
    "random boost": ("random", "boost", {"scheduler__stages": 2}),
    "random pdd without easy": ("random", "pdd", {"scheduler__drop": "correct", "scheduler__judges": 2}),
    "random decoded": ("random", "single", {"decoder__factor": 2}),
    "herding single": ("herding", "single", EARLY),
    "k-center single": ("k-center", "single", EARLY),
    "k-means single": ("k-means", "single", EARLY),
    "forgetting single": ("forgetting", "single", {"matcher__experts": 2, "matcher__epochs": 3}),
    "el2n single": ("el2n", "single", EARLY),
    "moderate single": ("moderate", "single", EARLY),
    "ccs single": ("ccs", "single", EARLY),
    "d2 single": ("d2", "single", EARLY),
    "ssp single": ("ssp", "single", {"matcher__epochs": 1}),
    "dc single": ("dc", "single", SHORT | {"matcher__batch_real": 9}),
    "dsa single": ("dsa", "single", SHORT | {"matcher__batch_real": 9, "matcher__outer": 2, "matcher__inner": 2}),
    "dm single": ("dm", "single", SHORT | {"matcher__batch_real": 9}),
    "dm pdd": ("dm", "pdd", SHORT | {"matcher__batch_real": 9}),
    "idc single": ("idc", "single", SHORT | {"matcher__n_data": 18, "matcher__batch_real": 9}),
    "idc decoded": ("idc", "single", SHORT | {"matcher__n_data": 18, "matcher__batch_real": 9, "decoder__factor": 2}),
    "dance single": (
        "dance",
        "single",
        SHORT | {"matcher__models": 2, "matcher__epochs": 1, "matcher__batch_real": 9},
    ),
    "tgdd single": ("tgdd", "single", SHORT | {"matcher__models": 2, "matcher__epochs": 2, "matcher__batch_real": 9}),
    "dream single": ("dream", "single", SHORT | {"matcher__n_data": 18, "matcher__batch_real": 9}),
    "idm single": (
        "idm",
        "single",
        SHORT | {"matcher__networks": 4, "matcher__fresh": 2, "matcher__batch_real": 9},
    ),
    "ncfm single": ("ncfm", "single", SHORT | {"matcher__models": 2, "matcher__epochs": 1, "matcher__batch_real": 9}),
    "datm single": ("datm", "single", TRACED | {"matcher__threshold": 10}),
    "datm seqmatch": ("datm", "seqmatch", TRACED | {"matcher__threshold": 10}),
    "pad single": ("pad", "single", TRACED | PACED),
    "ftd single": ("ftd", "single", TRACED),
    "att single": ("att", "single", TRACED),
    "selmatch single": ("selmatch", "single", TRACED | {"matcher__judges": 1}),
    "rat-bptt single": ("rat-bptt", "single", UNROLLED),
    "rat-bptt learned pdd": ("rat-bptt", "pdd", UNROLLED | {"matcher__labels": "learned", "matcher__optimizer": "sgd"}),
    "at-bptt single": ("at-bptt", "single", UNROLLED | {"matcher__spread": 1}),
    "frepo single": ("frepo", "single", SHORT | REPLACED),
    "frepo pdd": ("frepo", "pdd", SHORT | REPLACED),
    "rded single": ("rded", "single", {"matcher__teacher_epochs": 1}),
    "sre2l single": ("sre2l", "single", SHORT | {"matcher__teacher_epochs": 1}),
    "g-vbsm single": (
        "g-vbsm",
        "single",
        SHORT | {"matcher__teacher_epochs": 1, "matcher__teachers": "own,convnet(width=3,depth=2,norm=batch)"},
    ),
    "edc single": (
        "edc",
        "single",
        SHORT
        | {"matcher__teacher_epochs": 1, "matcher__flatness": 1.0}
        | {"matcher__teachers": "own,convnet(width=3,depth=2,norm=batch)"},
    ),
    "ccfs single": (
        "ccfs",
        "single",
        {"matcher__teacher_epochs": 1, "matcher__experts": 2, "matcher__epochs": 2}
        | {"matcher__recover": 2, "matcher__filter_epochs": 1, "matcher__phases": 1},
    ),
    "sre2l curriculum": ("sre2l", "single", SHORT | {"matcher__teacher_epochs": 1, "matcher__curriculum": "cosine"}),
}


def measure(case: str, out: Path) -> dict[str, list[float]]:
    """Losses and student lr of the first iterations, and the mean image and label of each set."""
    matcher, scheduler, more = CASES[case]
    folder = run(out, spec(matcher, scheduler, 2, **more), students=1)
    assert RunRecord.read(folder).rows()[0].status == "ok"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sets = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    return {
        "loss": [line["loss"] for line in lines],
        "lr": [line["lr"] for line in lines if "lr" in line],
        "image_mean_of_squares": [float(s.images.double().square().mean()) for s in sets],
        "label_of_first_image": [float(s.labels[0, 0]) for s in sets],
    }


@pytest.mark.parametrize("case", CASES)
def test_the_first_numbers_of_every_built_in_are_the_golden_ones(case, tmp_path):
    golden, found = json.loads(GOLDEN.read_text())[case], measure(case, tmp_path)
    assert set(found) == set(golden)
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


def test_every_matcher_and_every_scheduler_has_a_golden_number():
    assert {case[0] for case in CASES.values()} == set(registry().names("matcher"))
    assert {case[1] for case in CASES.values()} == set(registry().names("scheduler"))


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
