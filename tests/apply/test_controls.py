"""The control matrix and its scores: thirty cells under the same rules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ddbench, run, spec

from ddbench import SyntheticSet, UsageError
from ddbench.apply.controls import (
    _changed,
    _Controls,
    _hardened,
    _spec,
    augmentation_robust_score,
    control_matrix,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    squashed,
)
from ddbench.base.cache import read_json
from ddbench.data.dataset import Preprocessing
from ddbench.files.asked import EvalOptions
from ddbench.files.pixelspace import applied
from ddbench.files.target import evaluated, opened, planned
from ddbench.grade.distilled import Distilled
from ddbench.run.record import RunRecord
from ddbench.run.run import Settings

FRACTIONS = st.floats(0, 1)


# --------------------------------------------------------------------------------- the scores


@given(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS)
def test_scores_of_fractions_stay_between_0_and_1(distilled, random, full, hard):
    ior, hlr = improvement_over_random(distilled, random), hard_label_recovery(full, hard)
    assert -1e-12 <= label_robust_score(ior, hlr) <= 1 + 1e-12
    assert -1e-12 <= augmentation_robust_score(distilled, random, hard, full) <= 1 + 1e-12


def test_the_label_robust_score_of_a_worked_example():
    """alpha = 0.5 (0.6 - 0.4) - 0.5 (0.9 - 0.5) = -0.1."""
    alpha = -0.1
    by_hand = (math.e**alpha - 1 / math.e) / (math.e - 1 / math.e)
    assert label_robust_score(0.6 - 0.4, 0.9 - 0.5) == pytest.approx(by_hand, abs=1e-15)
    assert by_hand == pytest.approx(0.22845, abs=1e-5)


def test_the_augmentation_robust_score_of_a_worked_example():
    """beta = 0.5 (0.6 - 0.4) + 0.5 (0.5 - 0.45) = 0.125."""
    by_hand = (math.e**0.125 - 1 / math.e) / (math.e - 1 / math.e)
    assert augmentation_robust_score(0.6, 0.4, 0.5, 0.45) == pytest.approx(by_hand, abs=1e-15)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_better_sets_score_higher(a, b):
    assert (squashed(a) <= squashed(b)) == (math.exp(a) <= math.exp(b))
    assert label_robust_score(max(a, b), 0.3) >= label_robust_score(min(a, b), 0.3)
    assert label_robust_score(0.3, max(a, b)) <= label_robust_score(0.3, min(a, b))


def test_the_ends_of_the_scale_are_0_and_1():
    assert squashed(-1) == 0
    assert squashed(1) == pytest.approx(1, abs=1e-15)
    assert label_robust_score(1, -1) == pytest.approx(1, abs=1e-15)


# --------------------------------------------------------------------------------- the cells


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Controls of a run whose labels are learned by experts: its folder, the matrix, the home."""
    base = tmp_path_factory.mktemp("controls")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DDBENCH_HOME", str(base / "home"))
        patched.setenv("DDBENCH_THREADS", "1")
        folder = run(base / "runs", spec("tesla", "pdd", 2), students=2)
        options = EvalOptions(students=2, device="cpu")
        source = opened(str(folder), folder.parent, options)
        found = control_matrix(source, options, Settings(folder.parent))
    return folder, found, base


def cell(found, images: str, labels: str, augmentation: str) -> dict:
    (row,) = [r for r in found.rows if (r["images"], r["labels"], r["augmentation"]) == (images, labels, augmentation)]
    return row


def test_all_thirty_cells_are_there(shop):
    _, found, _ = shop
    assert len(found.rows) == len({(r["images"], r["labels"], r["augmentation"]) for r in found.rows}) == 30
    assert {r["images"] for r in found.rows} == {"distilled", "random", "k-center", "herding", "matched"}
    assert {r["labels"] for r in found.rows} == {"hard", "soft", "online"}
    assert {r["n"] for r in found.rows} == {2}
    assert {r["selection"] for r in found.rows} == {"validation"}


def test_the_sets_own_cell_is_its_ordinary_evaluation(shop):
    folder, found, _ = shop
    own = cell(found, "distilled", "soft", "on")
    assert own["accuracy_mean"] == RunRecord.read(folder).rows()[0].accuracy_mean
    assert own["student_lr"] == "own"  # selected when it was distilled


def test_coresets_are_ordinary_runs_under_the_same_rules(shop):
    folder, found, _ = shop
    for matcher in ("random", "k-center", "herding"):
        for labels, kind in (("hard", "hard"), ("soft", "teacher")):
            made = [
                r
                for f in folder.parent.iterdir()
                for r in RunRecord.read(f).rows()
                if (r.matcher, r.label_type) == (matcher, kind)
            ]
            assert len(made) == 1
            assert made[0].accuracy_mean == cell(found, matcher, labels, "on")["accuracy_mean"]
            assert made[0].protocol == RunRecord.read(folder).rows()[0].protocol


def test_other_cells_select_their_own_student_lr_on_validation_data(shop):
    folder, found, _ = shop
    tried = [read_json(path)["tried"] for path in (folder / "controls").glob("*.json")]
    assert len(tried) == 5 + 6  # of the set all but its own cell, and all of the images that are as hard
    for matcher in ("random", "k-center", "herding"):  # of coresets in their own runs, for all sets of the budget
        (hard, soft) = sorted(p for p in folder.parent.glob(f"*-{matcher}-*"))
        own = [read_json(path)["tried"] for f in (hard, soft) for path in (f / "controls").glob("*.json")]
        assert len(own) == 2 + 2
        tried += own
    # an own lr of 0.03 is not tried twice, and images that are as hard bring none
    assert all(set(t) in ({"0.03", "own"}, {"own"}, {"0.03"}) for t in tried)
    assert cell(found, "distilled", "hard", "off")["protocol"] != cell(found, "distilled", "hard", "on")["protocol"]


def test_hard_labels_cost_a_byte_each_and_soft_ones_what_they_take(shop):
    _, found, _ = shop
    assert cell(found, "distilled", "hard", "on")["label_bytes"] == 6
    assert cell(found, "distilled", "soft", "on")["label_bytes"] == 6 * 3 * 4
    assert cell(found, "random", "soft", "on")["label_bytes"] == 6 * 3 * 4


def test_online_labels_cost_what_their_teacher_takes(shop):
    folder, found, _ = shop
    spec_of = RunRecord.read(folder).spec
    network = Distilled.load(folder / "distilled.safetensors").build_network("cpu")
    assert spec_of.ipc == 2
    assert {cell(found, i, "online", "on")["label_bytes"] for i in ("distilled", "random", "matched")} == {
        4 * network.length
    }


def test_an_online_cell_is_the_evaluation_under_such_a_protocol_of_a_set_that_brings_the_teacher(shop, monkeypatch):
    folder, found, base = shop
    monkeypatch.setenv("DDBENCH_HOME", str(base / "home"))
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    (brought,) = [f for f in folder.parent.glob("*-random-*") if RunRecord.read(f).rows()[0].label_type == "teacher"]
    options = EvalOptions(students=2, device="cpu", flags=(("protocol.online", "true"),))
    rows = evaluated(str(brought), base / "elsewhere", options)
    (row,) = [r for r in rows if r.protocol == cell(found, "random", "online", "on")["protocol"]]
    assert row.accuracy_mean == cell(found, "random", "online", "on")["accuracy_mean"]


def test_a_set_in_another_input_space_is_brought_to_the_one_that_the_teacher_knows(shop, monkeypatch):
    folder, _, base = shop
    monkeypatch.setenv("DDBENCH_HOME", str(base / "home"))
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    options = EvalOptions(students=2, device="cpu")
    plan = planned(Distilled.load(folder / "distilled.safetensors"), options)
    controls = _Controls(folder, plan, _spec(plan), Settings(folder.parent), ("random", "matched"))
    own = controls.distilled
    other = Preprocessing(torch.tensor([0.3]).expand(own.shape[0]), torch.tensor([0.7]).expand(own.shape[0]))
    moved = _changed(own, lambda s: replace(s, images=applied(own.preprocessing.invert(s.images), other)))
    seen = controls._online(replace(moved, preprocessing=other))
    assert seen.preprocessing.digest == own.preprocessing.digest
    for s, wanted in zip(seen.curriculum.sets, own.curriculum.sets, strict=True):
        real = own.preprocessing
        clipped = (wanted.images * real.std.view(1, -1, 1, 1) + real.mean.view(1, -1, 1, 1)).clamp(0, 1)
        assert torch.allclose(s.images * real.std.view(1, -1, 1, 1) + real.mean.view(1, -1, 1, 1), clipped, atol=1e-5)
        assert s.teacher is not None


def test_the_scores_follow_from_the_cells(shop):
    _, found, _ = shop
    at = lambda images, labels, augmentation: cell(found, images, labels, augmentation)["accuracy_mean"]
    ior = at("distilled", "soft", "on") - at("random", "soft", "on")
    hlr = found.scores["all real data"] - at("distilled", "hard", "on")
    plain = at("distilled", "soft", "off") - at("random", "soft", "off")
    assert found.scores["IOR"] == pytest.approx(ior)
    assert found.scores["HLR"] == pytest.approx(hlr)
    assert found.scores["LRS"] == pytest.approx(squashed(0.5 * ior - 0.5 * hlr))
    assert found.scores["ARS"] == pytest.approx(squashed(0.5 * ior + 0.5 * plain))
    assert 0 <= found.scores["LRS"] <= 1


def test_the_summary_lies_in_the_run_folder_and_a_second_call_trains_nothing(shop, monkeypatch):
    folder, found, base = shop
    assert read_json(folder / "controls.json")["scores"] == found.scores
    monkeypatch.setenv("DDBENCH_HOME", str(base / "home"))
    monkeypatch.setattr("ddbench.train.fit.fit", None)
    monkeypatch.setattr("ddbench.problem.starts.fit", None)
    options = EvalOptions(students=2, device="cpu")
    again = control_matrix(opened(str(folder), folder.parent, options), options, Settings(folder.parent))
    assert again.rows == found.rows


def test_a_hardened_label_is_the_class_that_the_label_puts_first():
    labels = torch.tensor([[0.2, 0.7, 0.1], [5.0, -1.0, 4.0]])
    made = _hardened(SyntheticSet(torch.zeros(2, 1, 4, 4), labels, label_kind="logit", label_type="learned"))
    assert made.labels.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert (made.label_type, made.label_kind) == ("hard", "probability")


def test_hard_sets_get_the_labels_of_the_experts_that_label_random_images(tmp_path, monkeypatch):
    """A set of random images with hard labels, softened, is the run of random images with a teacher's labels."""
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    folder = run(tmp_path / "runs", spec("random", "single", 1), students=1)
    options = EvalOptions(students=1, device="cpu")
    found = control_matrix(opened(str(folder), folder.parent, options), options, Settings(folder.parent))
    assert found.scores["IOR"] == 0
    same = [cell(found, images, "soft", "off")["accuracy_mean"] for images in ("distilled", "random")]
    assert same[0] == same[1]
    assert found.scores["ARS"] == pytest.approx(squashed(0))


def test_labels_that_a_teacher_makes_while_students_train_have_no_controls(shop, monkeypatch):
    folder, _, base = shop
    monkeypatch.setenv("DDBENCH_HOME", str(base / "home"))
    options = EvalOptions(students=1, device="cpu", protocol="rded-paper")
    with pytest.raises(UsageError, match="add --protocol default"):
        control_matrix(opened(str(folder), folder.parent, options), options, Settings(folder.parent))


def test_the_command_prints_the_matrix_and_the_formulas(shop, monkeypatch):
    folder, found, base = shop
    answer = ddbench(
        "eval", folder, "--controls", "--students", 2, "--device", "cpu", "--out", folder.parent, home=base / "home"
    )
    assert answer.code == 0, answer.err
    assert answer.out.count("k-center") == 6
    assert "0.5 IOR - 0.5 HLR" in answer.out
    assert "arXiv 2505.13300" in answer.out
    whole = ddbench(
        "eval",
        folder,
        "--controls",
        "--students",
        2,
        "--device",
        "cpu",
        "--json",
        "--out",
        folder.parent,
        home=base / "home",
    ).json
    assert whole["scores"] == found.scores
    for words, said in (
        (["--coresets", "matched"], "add --controls"),
        (["--controls", "--coresets", "matched,dm"], "matcher 'dm' learns images"),
    ):
        refused = ddbench("eval", folder, "--device", "cpu", *words, home=base / "home")
        assert refused.code == 2
        assert said in refused.err
    two = ddbench("eval", folder, "--controls", "--network", "mlp,convnet", home=base / "home")
    assert two.code == 2
    assert "one network" in two.err
