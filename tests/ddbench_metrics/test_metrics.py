"""The metrics of the box: numbers worked out by hand, and students measured through the evaluator."""

from __future__ import annotations

import math
from statistics import mean

import pytest
import torch
from ddbench_metrics import KINDS, Accuracy, CalibrationError, Corruptions, Curve, corrupt, kinds
from tiny import run, spec
from torch import Tensor

from ddbench import Examinee, Network, RealData, Recipe, Seed, Student, UsageError, fit, predict
from ddbench.files.asked import EvalOptions
from ddbench.files.target import evaluated
from ddbench.grade.student import measured_students
from ddbench.plugins import registry
from ddbench.problem.starts import Teaching
from ddbench.problem.synthetic import Curriculum, SyntheticSet


@pytest.fixture(scope="module")
def data() -> RealData:
    """Toy test images, 20 of each of three classes."""
    return registry().get("dataset", "toy").cls(per_class=40).load().test


@pytest.fixture(scope="module")
def network(data) -> Network:
    return Network(registry().get("network", "convnet").cls(width=8, depth=2), data.shape, data.classes)


def examinee(network: Network, data: RealData, seed: int = 0, trained: bool = True) -> Examinee:
    begun = Student(network.init(Seed(seed)))
    recipe = Recipe(epochs=8 if trained else 1, batch=20, lr=0.03 if trained else 1e-9, augment="")
    vector = fit(network, begun, data, recipe, Seed(seed)).vector
    logits, targets = predict(network, vector, data)
    return Examinee(network, vector, data, logits, targets)


def by_hand(network: Network, vector: Tensor, pixels: Tensor, data: RealData) -> float:
    """Accuracy without the harness: normalise, forward, count."""
    p = data.preprocessing
    assert p.std is not None
    images = (pixels.double() / 255 - p.mean.view(1, -1, 1, 1)) / p.std.view(1, -1, 1, 1)
    best = network.apply(vector, images.float(), train=False).argmax(1)
    return sum(int(a == b) for a, b in zip(best.tolist(), data.targets.tolist(), strict=True)) / len(pixels)


# --------------------------------------------------------------------------------- predictions


def test_accuracy_is_the_share_of_right_answers():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 9.0]])
    assert Accuracy()(logits, torch.tensor([0, 1, 1, 0])) == 0.5


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_is_the_gap_over_bins_of_confidence(bins):
    logits = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * 2
    targets = torch.arange(300) % 4
    shares = [[math.exp(v) for v in row] for row in logits.double().tolist()]
    rows = [(max(s) / sum(s), s.index(max(s)) == t) for s, t in zip(shares, targets.tolist(), strict=True)]
    expected = 0.0
    for b in range(bins):
        inside = [(c, right) for c, right in rows if b / bins < c <= (b + 1) / bins]
        if inside:
            gap = mean(c for c, _ in inside) - mean(float(right) for _, right in inside)
            expected += len(inside) / len(rows) * abs(gap)
    assert CalibrationError(bins)(logits, targets) == pytest.approx(expected, abs=1e-9)


def test_metrics_that_cost_much_are_measured_only_when_asked_for():
    costly = {n for n in registry().names("metric") if getattr(registry().get("metric", n).cls, "costly", False)}
    assert {"corruptions", "curve"} <= costly
    assert not {"accuracy", "ece"} & costly


# --------------------------------------------------------------------------------- corruptions


def test_corruptions_are_the_accuracy_on_corrupted_test_images(network, data):
    student = examinee(network, data)
    metric = Corruptions(severities=(2, 5), kinds=("contrast", "gaussian_noise", "jpeg"))
    found = metric.examine(student)
    pixels = data.pixels[:]
    expected = {
        kind: mean(by_hand(network, student.vector, corrupt(pixels, kind, s), data) for s in (2, 5))
        for kind in metric.kinds
    }
    assert set(found) == {*expected, "mean", "relative"}
    assert {kind: found[kind] for kind in expected} == pytest.approx(expected)
    assert found["mean"] == pytest.approx(mean(expected.values()))
    clean = by_hand(network, student.vector, pixels, data)
    assert found["relative"] == pytest.approx(found["mean"] / clean)
    assert clean > 0.6, "an untrained student would show nothing"
    assert found["gaussian_noise"] < clean or found["contrast"] < clean


def test_all_kinds_at_three_severities_are_the_default():
    assert Corruptions().kinds == tuple(KINDS)
    assert len(KINDS) == 12
    assert Corruptions().severities == (1, 3, 5)


def test_every_student_sees_the_same_corrupted_images(network, data, monkeypatch):
    seen: list[list[Tensor]] = []

    def watched(*given) -> Tensor:
        seen[-1].append(corrupt(*given))
        return seen[-1][-1]

    monkeypatch.setattr("ddbench_metrics.corruptions.corrupt", watched)
    for seed in (0, 1):
        seen.append([])
        torch.manual_seed(seed)
        Corruptions(kinds=("shot_noise", "fog"), severities=(3,)).examine(examinee(network, data, seed))
    assert len(seen[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_test_images_are_corrupted_block_by_block_each_with_draws_of_its_own(network, data, monkeypatch):
    monkeypatch.setattr(kinds, "VALUES_AT_ONCE", 25 * 64)
    student = examinee(network, data)
    found = Corruptions(kinds=("gaussian_noise",), severities=(4,)).examine(student)
    blocks = [corrupt(data.pixels[rows], "gaussian_noise", 4, b) for b, rows in enumerate(torch.arange(60).split(25))]
    assert [len(b) for b in blocks] == [25, 25, 10]
    assert found["gaussian_noise"] == pytest.approx(by_hand(network, student.vector, torch.cat(blocks), data))


def test_a_larger_test_set_takes_no_more_memory(monkeypatch, peak_bytes):
    """Beyond what there is of each image anyway: its logits, its target, its place."""
    large = registry().get("dataset", "toy").cls(size=16, channels=3).load().test
    network = Network(registry().get("network", "convnet").cls(width=2, depth=1), large.shape, 3)
    monkeypatch.setattr(kinds, "VALUES_AT_ONCE", 100 * 3 * 256)
    metric = Corruptions(kinds=("motion_blur", "elastic"), severities=(5,))

    def peak(times: int) -> int:
        data = large.subset(torch.arange(60).repeat(times))
        student = examinee(network, data, trained=False)
        return peak_bytes(lambda: metric.examine(student))

    floats = 4 * 60 * 3 * 256  # of all images once
    assert peak(12) - peak(4) < 0.1 * 8 * floats


def test_a_limit_keeps_the_proportions_of_the_classes(network, data):
    student = examinee(network, data)
    metric = Corruptions(kinds=("brightness",), severities=(5,), limit=12)
    rows = metric._chosen(student.targets)
    assert torch.bincount(student.targets[rows]).tolist() == [4, 4, 4]
    part = data.subset(rows)
    expected = by_hand(network, student.vector, corrupt(part.pixels[:], "brightness", 5), part)
    found = metric.examine(student)
    assert found["brightness"] == pytest.approx(expected)
    assert found["relative"] == pytest.approx(expected / by_hand(network, student.vector, part.pixels[:], part))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ("fogg",)}, "no corruption called 'fogg'; did you mean 'fog'"),
        ({"severities": (0,)}, "severities of corruptions are 1 to 5, got 0"),
        ({"kinds": ()}, "at least one"),
    ],
)
def test_corruptions_that_there_are_not_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        Corruptions(**options)


# --------------------------------------------------------------------------------- the curve


def test_a_curve_marks_shares_of_the_steps_and_no_step_before_the_first():
    assert Curve().marks(500) == [5, 10, 25, 50, 100, 250, 500]
    assert Curve().marks(20) == [1, 2, 4, 10, 20]
    with pytest.raises(UsageError, match=r"above 0 and up to 1, got 1\.5"):
        Curve(fractions=(0.5, 1.5))


def test_a_curve_is_the_accuracy_of_the_student_after_each_marked_step(network, data):
    """One phase of one batch per epoch, so that the trainer's own epochs are the steps."""
    labels = torch.eye(3).repeat_interleave(4, 0)
    images = data[torch.cat([m[:4] for m in data.members])].images
    curriculum = Curriculum((SyntheticSet(images, labels, lr=0.03),), ((0,),))
    teaching = Teaching(Recipe(steps=20, batch=12, momentum=0.9, augment="", schedule="step"), 20)
    (found,) = measured_students(curriculum, network, teaching, data, {"curve": Curve()}, Seed(3), [0])
    seed, kept = Seed(3) / 0, {}
    fit(
        network,
        Student(network.init(seed / "init")),
        curriculum.phase(0),
        teaching.lesson(0),
        seed / "phase" / 0,
        lr=0.03,
        on_epoch=lambda epoch, student: kept.update({epoch: student.vector.clone()}),
    )
    expected = {f"curve.{step}": by_hand(network, kept[step], data.pixels[:], data) for step in (1, 2, 4, 10, 20)}
    assert {name: value for name, value in found.items() if name.startswith("curve.")} == pytest.approx(expected)
    assert found["curve.20"] == found["accuracy"]
    assert len(set(expected.values())) > 2, "the student learned nothing on the way"


# --------------------------------------------------------------------------------- through the evaluator


def test_costly_metrics_of_a_run_are_added_when_named(tmp_path):
    folder = run(tmp_path, spec("random"))
    flags = (("metric.corruptions.kinds", "contrast,pixelate"), ("metric.corruptions.severities", "5"))
    options = EvalOptions(students=2, metrics="accuracy,corruptions,curve", flags=flags, device="cpu")
    (row,) = evaluated(str(folder), tmp_path, options)
    named = {name for name in row.metrics if name.startswith(("corruptions.", "curve."))}
    steps = Curve().marks(12)
    assert named == {
        *(f"corruptions.{name}_mean" for name in ("contrast", "pixelate", "mean", "relative")),
        *(f"curve.{step}_mean" for step in steps),
    }
    assert row.metrics["curve.12_mean"] == row.accuracy_mean
    assert row.metrics["corruptions.mean_mean"] == pytest.approx(
        (row.metrics["corruptions.contrast_mean"] + row.metrics["corruptions.pixelate_mean"]) / 2
    )
