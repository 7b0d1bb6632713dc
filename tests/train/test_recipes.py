"""What a recipe may do to a batch besides descending: flat experts, squared errors, labels made online; and LAMB."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ddbench_networks.convnet import ConvNet
from torch import Tensor, nn
from torch.autograd import grad

from ddbench import (
    Curriculum,
    Examples,
    Network,
    Recipe,
    Seed,
    Student,
    SyntheticSet,
    Teacher,
    Teaching,
    UsageError,
    fit,
    teach,
)
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import named
from ddbench.train.fit import flat_gradient, soft_cross_entropy, squared_error
from ddbench.train.optimisers import Lamb


def network() -> Network:
    return Network(ConvNet(width=4, depth=2), (1, 8, 8), 3, dtype=torch.float64)


def examples(n: int = 6, seed: int = 0) -> Examples:
    with Seed(seed).scope():
        return Examples(torch.randn(n, 1, 8, 8, dtype=torch.float64), torch.eye(3).double()[torch.arange(n) % 3])


def numpy_gsam(theta: np.ndarray, gradient, rho: float, alpha: float) -> np.ndarray:
    """FTD's step, coordinate by coordinate, as its description says."""
    g = gradient(theta)
    scale = math.sqrt(sum((abs(t) * v) ** 2 for t, v in zip(theta, g, strict=True)))
    there = np.array([t + rho * t * t * v / (scale + 1e-12) for t, v in zip(theta, g, strict=True)])
    worst = gradient(there)
    unit = worst / math.sqrt(float((worst**2).sum()))
    along = float((g * unit).sum())
    return np.array([w - alpha * (v - along * u) for w, v, u in zip(worst, g, unit, strict=True)])


@pytest.mark.parametrize(("rho", "alpha"), [(0.01, 0.3), (0.5, 1.0), (0.1, 0.0)])
def test_the_flat_gradient_is_adaptive_gsam(rho, alpha):
    with Seed(1).scope():
        a, theta = torch.randn(7, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        return grad(((a @ leaf).tanh() ** 2).sum(), leaf)[0]

    found = flat_gradient(theta, gradient(theta), gradient, rho, alpha)
    expected = numpy_gsam(theta.numpy(), lambda t: gradient(torch.from_numpy(t)).numpy(), rho, alpha)
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_experts_trained_by_gsam_take_two_gradients_of_the_same_batch():
    net, data = network(), examples()
    start = net.init(Seed(0)).double()
    recipe = Recipe(optimizer="gsam", steps=1, batch=6, lr=0.1, augment="", rho=0.2, alpha=0.7)
    after = fit(net, Student(start), data, recipe, Seed(3)).vector
    with (Seed(3) / "epoch" / 0).scope():
        batch = data[torch.randperm(6)]

    def gradient(at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        return grad(soft_cross_entropy(net.apply(leaf, batch.images), batch.labels), leaf)[0]

    expected = start - 0.1 * flat_gradient(start, gradient(start), gradient, 0.2, 0.7)
    assert torch.allclose(after, expected, rtol=1e-10, atol=1e-12)
    plain = fit(net, Student(start), data, Recipe(steps=1, batch=6, lr=0.1, augment=""), Seed(3)).vector
    assert not torch.allclose(after, plain, atol=1e-6)


def test_gsam_of_no_size_is_plain_descent():
    net, data = network(), examples()
    common = {"steps": 5, "batch": 4, "lr": 0.1, "augment": "color_crop"}
    flat = fit(net, Student(net.init(Seed(0))), data, Recipe(optimizer="gsam", rho=0, alpha=0, **common), Seed(3))
    plain = fit(net, Student(net.init(Seed(0))), data, Recipe(**common), Seed(3))
    assert torch.allclose(flat.vector, plain.vector, atol=1e-12)


def test_squared_error_is_half_the_mean_squared_distance():
    logits, labels = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, -2.0]])
    assert float(squared_error(logits, labels)) == pytest.approx(((1 + 4) + 4) / 2 / 2)


def test_real_valued_labels_are_learned_by_squared_error():
    net, data = network(), examples()
    labels = data.labels - 1 / 3
    made = SyntheticSet(data.images, labels, lr=0.1, label_kind="real", label_type="learned")
    teaching = Teaching(Recipe(batch=6, augment=""), steps=4)
    student = Student(net.init(Seed(0)).double())
    taught = teach(net, student, Curriculum((made,), ((0,),)), teaching, Seed(5)).vector
    module, theta = net, student.vector
    for _ in range(4):
        leaf = theta.detach().requires_grad_()
        error = nn.functional.mse_loss(module.apply(leaf, data.images), labels, reduction="sum") / 6 / 2
        theta = leaf.detach() - 0.1 * grad(error, leaf)[0]
    assert torch.allclose(taught, theta, atol=1e-12)


def teacher() -> Teacher:
    return Teacher(ConvNet(width=3, depth=1), Network(ConvNet(width=3, depth=1), (1, 8, 8), 3).init(Seed(9)))


def test_a_teacher_labels_batches_after_augmentation_and_mixing_at_the_temperature():
    net = Network(ConvNet(width=4, depth=2), (1, 8, 8), 3)
    data, expert, seen = examples(), teacher(), []
    data = Examples(data.images.float(), data.labels.float())
    recipe = Recipe(
        steps=1, batch=6, lr=0.1, augment="flip", mixing="mixup", mix_probability=1.0, online=True, temperature=4.0
    )

    def label(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return expert.logits(images, 3)

    start = net.init(Seed(0))
    after = fit(net, Student(start), data, recipe, Seed(3), teacher=label).vector
    (images,) = seen
    plain = [image for image in images if any(torch.equal(image, real) for real in data.images)]
    assert len(plain) < 3  # an image may be its own partner
    wanted = (expert.logits(images, 3) / 4).softmax(1)
    leaf = start.clone().requires_grad_()
    loss = nn.functional.kl_div((net.apply(leaf, images) / 4).log_softmax(1), wanted, reduction="batchmean")
    assert torch.allclose(after, start - 0.1 * grad(loss, leaf)[0], atol=1e-6)


def test_stored_labels_do_not_matter_to_online_protocols_and_a_missing_teacher_is_refused():
    net = Network(ConvNet(width=4, depth=2), (1, 8, 8), 3)
    data = examples()
    teaching = Teaching(Recipe(batch=6, augment="", online=True), steps=2)
    student = Student(net.init(Seed(0)))

    def taught(labels: Tensor, by: Teacher | None) -> Tensor:
        made = SyntheticSet(data.images.float(), labels.float(), teacher=by)
        return teach(net, student, Curriculum((made,), ((0,),)), teaching, Seed(5)).vector

    assert torch.equal(taught(data.labels, teacher()), taught(data.labels.flip(0), teacher()))
    with pytest.raises(UsageError, match=r"this set brings no teacher; evaluate it under --protocol default"):
        taught(data.labels, None)
    with pytest.raises(UsageError, match="labelled online, but there is no teacher"):
        fit(net, student, examples(), Recipe(online=True), Seed(0))


def test_teachers_travel_with_their_sets(tmp_path):
    from tiny import run, spec

    folder = run(tmp_path, spec("random"))
    held = Distilled.load(folder / "distilled.safetensors")
    (made,) = held.curriculum.sets
    with_teacher = SyntheticSet(made.images, made.labels, made.lr, teacher=teacher())
    assert with_teacher.digest != made.digest
    assert with_teacher.teacher_bytes == 4 * len(teacher().vector)
    assert made.teacher_bytes == 0
    from dataclasses import replace

    replace(held, curriculum=Curriculum((with_teacher,), ((0,),))).save(tmp_path / "set.safetensors")
    (back,) = Distilled.load(tmp_path / "set.safetensors").curriculum.sets
    assert back.teacher is not None
    assert back.teacher.source == ConvNet(width=3, depth=1)
    assert torch.equal(back.teacher.vector, teacher().vector)
    assert back.digest == with_teacher.digest


def test_half_a_cosine_ends_at_half_the_rate():
    recipe = Recipe(schedule="cosine-half", lr=2.0, steps=10)
    assert [recipe.rate(step, 10, 2.0) for step in (0, 5, 10)] == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0])


@pytest.mark.parametrize("name", ["rded-paper", "sre2l-paper"])
def test_protocols_with_online_labels_train_as_published(name):
    recipe = named(name).evaluation(100, 1).lesson(0)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.online) == ("adamw", 0.001, 0.01, True)
    assert recipe.epochs == {"rded-paper": 300, "sre2l-paper": 400}[name]
    assert recipe.mixing == {"rded-paper": "cutmix", "sre2l-paper": "mixup"}[name]
    assert recipe.temperature == {"rded-paper": 20, "sre2l-paper": 30}[name]


def test_lamb_is_adam_scaled_to_the_norm_of_what_moves():
    rule = Lamb(beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1)
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    state, m, v, theta = rule.init(x), np.zeros(2), np.zeros(2), np.array([3.0, 4.0])
    for t in range(1, 6):
        g = np.array([math.sin(t), math.cos(t)])
        x, state = rule.update(x, state, torch.from_numpy(g), 0.05)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        u = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6) + 0.1 * theta
        theta = theta - 0.05 * np.linalg.norm(theta) / np.linalg.norm(u) * u
        assert np.allclose(x.numpy(), theta, rtol=1e-12)


def test_lamb_moves_what_is_zero_by_adams_step():
    rule = Lamb()
    moved, _ = rule.update(torch.zeros(3), rule.init(torch.zeros(3)), torch.tensor([1.0, -2.0, 0.0]), 0.1)
    assert torch.allclose(moved, torch.tensor([-0.1, 0.1, 0.0]), atol=1e-5)


def test_where_batches_are_labelled_online_a_run_stands_beside_random_images_with_a_teacher(tmp_path):
    from tiny import ddbench, options

    flags = [w for name, value in options("rded").items() if "protocol" not in name for w in ("-o", f"{name}={value}")]
    answer = ddbench(
        "run", "--dataset", "toy", "--matcher", "rded", "--protocol", "rded-paper", "-o", "protocol.epochs=2",
        "-o", "matcher.teacher_epochs=1", "-o", "experts.epochs=20", *flags, "--out", tmp_path, "--students", 1,
        "--no-ceiling", "--format", "json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert [(row["matcher"], row["label_type"]) for row in answer.json] == [("random", "teacher"), ("rded", "teacher")]
    parameters = Network(ConvNet(width=8, depth=2), (1, 8, 8), 3).parameters
    assert answer.json[0]["label_bytes"] == 4 * parameters  # the teacher, not the labels
    under_default = ddbench("eval", next(tmp_path.glob("toy-rded*")), "--protocol", "default", "--students", 1,
                            "-o", "protocol.steps=4", "--format", "json").json  # fmt: skip
    assert sorted(row["label_bytes"] for row in under_default)[0] == 4 * 3 * 3
