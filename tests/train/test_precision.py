"""Student steps in lower precisions: torch's switches, what is near enough, and what is said about it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from tiny import TRAJECTORY, run, spec
from unrolls import FULL, RULES, assert_same, case, rule_case, unrolled

from ddbench import DSA, Examples, Network, Pool, Seed
from ddbench.base.progress import listening
from ddbench.base.state import load_state
from ddbench.errors import InterruptedRun
from ddbench.run.run import build_task
from ddbench.run.stage import prepared
from ddbench.train import compile as compiling
from ddbench.train.compile import ROUNDED, account
from ddbench.train.precision import arithmetic, autocast, switched
from ddbench.trajectory import derivatives, engine
from ddbench.trajectory.derivatives import Along, Passes
from ddbench.trajectory.engine import Engine
from ddbench.trajectory.unroll import Gradient, Plan, matching, reverse, student_loss

CUDA = torch.device("cuda")  # a name: no GPU is asked
WHERE = [("cuda", "conv"), ("cuda", "rnn"), ("cuda", "matmul"), ("mkldnn", "matmul")]


@pytest.fixture(autouse=True)
def _nothing_made(monkeypatch):
    monkeypatch.setattr(compiling, "_made", {})
    monkeypatch.setattr(compiling, "_used", {})
    monkeypatch.setattr(compiling, "_settled", {})


@pytest.fixture
def anything_goes(monkeypatch):
    """No error is too large."""
    monkeypatch.setattr(engine, "ROUNDED", (10.0, 10.0))


# -- torch's switches ------------------------------------------------------------------------------------------


def older() -> list[object]:
    """What the older switches say; that they refuse to, where newer ones say something else."""
    found: list[object] = []
    for read in (
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found


def newer() -> list[str]:
    return [torch._C._get_fp32_precision_getter(*place) for place in WHERE]


def usual() -> None:
    """Nothing was set by anybody."""


def one_newer() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def general() -> None:
    torch.backends.fp32_precision = "tf32"


def medium() -> None:
    torch.set_float32_matmul_precision("medium")


@pytest.fixture
def put_back():
    held = [torch.backends.fp32_precision, *newer()]
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.fp32_precision = held[0]
    for place, value in zip(WHERE, held[1:], strict=True):
        torch._C._set_fp32_precision_setter(*place, value)


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("before", [usual, one_newer, general, medium])
def test_both_kinds_of_switches_say_what_is_wanted_and_then_what_they_said_before(before: Callable[[], None], tf32):
    before()
    held = (newer(), older())
    with suppress(KeyError), switched(tf32):
        assert newer()[:3] == ["tf32" if tf32 else "ieee"] * 3
        wanted = [tf32, tf32, "high" if tf32 else "highest"]
        for before_, now, is_wanted in zip(held[1], older(), wanted, strict=True):
            assert now == is_wanted or before_ == "refused"
        with switched(tf32):
            assert newer()[:3] == ["tf32" if tf32 else "ieee"] * 3
        with switched(not tf32):
            assert newer()[:3] == ["ieee" if tf32 else "tf32"] * 3
        assert newer()[:3] == ["tf32" if tf32 else "ieee"] * 3
        raise KeyError
    assert (newer(), older()) == held


def test_out_of_the_box_convolutions_on_cuda_round_to_tf32():
    """What the switches are there for; and on a CPU nothing has to be thrown."""
    assert newer()[0] == "tf32"
    with arithmetic(torch.device("cpu"), "tf32"):
        assert newer() == newer()
        assert newer()[2] != "tf32"


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_on_cuda_every_pass_runs_with_the_switches_of_its_precision(precision, expected):
    def gradient(*given):
        return newer()[:3]

    def along(*given):
        return Along(newer()[:3], None, None, None)

    before = newer()
    passes = derivatives.at(precision, Passes(gradient, along), CUDA)
    assert passes.gradient() == [expected] * 3
    assert newer() == before
    assert passes.along().images == [expected] * 3
    assert newer() == before
    plain = Passes(gradient, along)
    assert derivatives.at(precision, plain, torch.device("cpu")) is plain


def test_only_bf16_casts_and_only_what_is_inside():
    x = torch.randn(4, 4)
    for precision, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(x.device, precision):
            assert (x @ x).dtype == dtype
        assert (x @ x).dtype == torch.float32


# -- near enough, or not ---------------------------------------------------------------------------------------


def noise(
    width: int = 32, images: int = 16, steps: int = 3, device: str = "cpu", augment: str = ""
) -> Callable[..., Gradient]:
    network = Network(ConvNet(width=width), (3, 32, 32), 10, torch.device(device))
    start, target = (network.init(Seed(0) / end) for end in ("start", "target"))
    with Seed(0).scope():
        pool = Pool(Examples(torch.randn(images, 3, 32, 32).to(device), torch.randn(images, 10).softmax(1).to(device)))
        plan = Plan.draw(images, steps, None, DSA(augment))
    task = (student_loss(network), matching(start, target), start, pool, torch.tensor(0.01, device=device), plan)
    return lambda **options: reverse(*task, **options)


def same_bits(seen: Gradient, expected: Gradient) -> bool:
    return all(torch.equal(getattr(seen, n), getattr(expected, n)) for n in ("loss", "images", "labels", "lr", "end"))


def test_on_a_cpu_bf16_is_too_far_off_so_that_float32_is_used_and_the_stage_says_so():
    work = noise()
    assert same_bits(work(engine=Engine(precision="bf16")), work())
    (note,) = account()
    assert note["engine"] == "eager"
    assert note["precision"] == "float32"
    assert note["shape"] == [16, 3, 32, 32]
    assert note["reason"].startswith("bf16 and float32 disagree: ")
    off = re.search(r"images by (\S+), at most (\S+);", note["reason"])
    assert off is not None
    assert 2 * ROUNDED[0] == pytest.approx(float(off[1]), rel=0.2)
    assert float(off[2]) == ROUNDED[0]
    assert note["reason"].endswith("; float32 is used")


def test_tf32_exists_on_cuda_only_and_that_is_said():
    work = noise(width=4, images=4)
    assert same_bits(work(engine=Engine(precision="tf32")), work())
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("eager", "float32")
    assert note["reason"] == "tf32 exists on CUDA only; float32 is used"
    work(engine=Engine(precision="bf16"))
    (note,) = account()
    assert note["reason"].startswith("bf16 and float32 disagree"), "each precision is asked about by itself"


def test_float64_is_not_lowered():
    c = case(3)
    assert torch.equal(c.reverse(engine=Engine(precision="bf16")).images, c.reverse().images)
    assert {note["reason"] for note in account()} == {"bf16 is for networks in float32; float32 is used"}


def test_a_verdict_holds_in_later_processes_even_where_another_would_be_reached(monkeypatch):
    """A stage that is resumed elsewhere goes on with what it began with, and keeps the reason."""
    work = noise()
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
    work = noise()
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


@pytest.mark.usefixtures("anything_goes")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_where_it_is_near_enough_steps_are_lowered_and_everything_around_them_is_not(curvature):
    work = noise()
    seen, expected = work(engine=Engine(precision="bf16"), curvature=curvature), work(curvature=curvature)
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("eager", "bf16")
    assert "reason" not in note
    assert 0.02 < note["errors"]["images"] < 0.2
    assert ("curved" in note["errors"]) == (curvature == "exact")
    for name in ("images", "labels", "lr", "end"):
        assert getattr(seen, name).dtype == torch.float32
    assert 0.01 < error(seen.images, expected.images) < 0.3
    assert 1e-6 < error(seen.end, expected.end) < 1e-2


@pytest.mark.parametrize("bounds", [(0.05, 10.0), (10.0, 1e-3)])
def test_both_bounds_count(monkeypatch, bounds):
    monkeypatch.setattr(engine, "ROUNDED", bounds)
    work = noise()
    assert same_bits(work(engine=Engine(precision="bf16")), work())
    (note,) = account()
    assert ("images by" in note["reason"]) == (bounds[0] < 1)
    assert ("gradient by" in note["reason"]) == (bounds[1] < 1)


@pytest.mark.usefixtures("anything_goes")
def test_what_is_near_enough_does_not_depend_on_where_a_run_resumes():
    network = Network(ConvNet(width=8), (3, 32, 32), 10)
    notes = []
    for scale in (0.0, 1.0, 30.0):
        compiling._made.clear()
        theta = scale * network.init(Seed(5))
        Engine(precision="bf16").passes(network, torch.empty(0), theta, [6], 10, True)
        notes += account()
    assert notes[0]["errors"] == notes[1]["errors"] == notes[2]["errors"]


@pytest.mark.usefixtures("anything_goes")
def test_a_trained_network_may_be_asked_too_and_the_larger_error_counts():
    network = Network(ConvNet(width=8), (3, 32, 32), 10)
    fresh, other = network.init(Seed(0)), network.init(Seed(7))
    errors = {}
    for name, vector in {"none": None, "same": fresh, "other": other, "bad": other * torch.nan}.items():
        probe = None if vector is None else engine.Probe(name, lambda vector=vector: vector)
        Engine(precision="bf16", probe=probe).passes(network, torch.empty(0), other, [6], 10, True)
        (note,) = account()
        errors[name] = note["errors"]
        assert (note["precision"] == "float32") == (name == "bad")
    assert errors["same"] == errors["none"]
    assert errors["other"] != errors["none"]
    assert all(errors["other"][name] >= off for name, off in errors["none"].items())


@pytest.mark.usefixtures("anything_goes")
def test_comparing_draws_nothing_and_is_done_once():
    work, state = noise(width=4, images=4), torch.get_rng_state()
    with patch.object(engine._Shape, "_errors", autospec=True, side_effect=engine._Shape._errors) as compare:
        for _ in range(3):
            work(engine=Engine(precision="bf16"))
    assert compare.call_count == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_an_operation_that_cannot_be_lowered_leaves_steps_in_float32(monkeypatch):
    @contextmanager
    def refuses(device, precision):
        if precision == "bf16":
            raise RuntimeError("not implemented for 'BFloat16'")
        yield

    monkeypatch.setattr(derivatives, "autocast", refuses)
    work = noise(width=4, images=4)
    assert same_bits(work(engine=Engine(precision="bf16")), work())
    (note,) = account()
    assert note["reason"] == "RuntimeError: not implemented for 'BFloat16'; float32 is used"


# -- with compiled code ----------------------------------------------------------------------------------------


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_what_is_too_far_off_is_compiled_in_float32(curvature):
    work = noise()
    expected = work(curvature=curvature)
    seen = work(engine=Engine("compiled", precision="bf16"), curvature=curvature)
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("compiled", "float32")
    assert note["reason"].endswith("; float32 is used")
    assert max(note["errors"].values()) < 1e-4
    assert error(seen.images, expected.images) < 1e-4


@pytest.mark.usefixtures("uncompiled", "anything_goes")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_compiled_code_is_lowered_as_well(curvature):
    work = noise()
    seen = work(engine=Engine("compiled", precision="bf16"), curvature=curvature)
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("compiled", "bf16")
    assert 0.02 < note["errors"]["images"] < 0.2
    assert 0.01 < error(seen.images, work(curvature=curvature).images) < 0.3


@pytest.mark.usefixtures("anything_goes")
def test_without_a_compiler_steps_are_lowered_all_the_same(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    work = noise(width=4, images=4)
    seen = work(engine=Engine("compiled", precision="bf16"))
    (note,) = account()
    assert (note["engine"], note["precision"], note["reason"]) == ("eager", "bf16", "RuntimeError: no compiler")
    assert same_bits(seen, work(engine=Engine(precision="bf16")))


@pytest.mark.slow
@pytest.mark.usefixtures("anything_goes")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_a_compiler_knows_how_to_lower(curvature):
    work = noise(width=8)
    seen = work(engine=Engine("compiled", precision="bf16"), curvature=curvature)
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("compiled", "bf16"), note
    assert 0.01 < note["errors"]["images"] < 0.2
    assert error(seen.images, work(curvature=curvature).images) < 0.3


# -- eager steps on CUDA go through the same passes ------------------------------------------------------------


@pytest.fixture
def eager_passes(monkeypatch):
    """As on CUDA, where plain autograd does not say which precision it wants."""

    def passes(self, network, buffers, theta, batches, classes, curvature):
        return {size: derivatives.eagerly(network, curvature, "float32") for size in batches}

    monkeypatch.setattr(Engine, "passes", passes)


@pytest.mark.usefixtures("eager_passes")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_passes_by_autograd_give_the_gradient_of_every_optimiser(name, curvature):
    c = rule_case(name, augment=FULL, frozen=3)
    seen = c.reverse(optimiser=RULES[name][0], curvature=curvature)
    assert_same(seen, unrolled(c, RULES[name][1], detach_theta=curvature == "zero"))


def test_without_curvature_no_hessian_product_is_computed():
    network = Network(ConvNet(width=4), (3, 32, 32), 10)
    theta, images = network.init(Seed(0)), torch.randn(2, 3, 32, 32)
    given = (theta, theta[:0], images, torch.eye(10)[:2], theta)
    assert derivatives.eagerly(network, False, "float32").along(*given).curved is None
    assert derivatives.eagerly(network, True, "float32").along(*given).curved is not None


# -- on a GPU --------------------------------------------------------------------------------------------------


def median_error(seen: torch.Tensor, expected: torch.Tensor) -> float:
    return compiling.relative_error(seen.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_float32_on_a_gpu_is_float32_and_tf32_is_near_it(kind):
    expected, before = noise()(), newer()
    exact = noise(device="cuda")(engine=Engine(kind))
    assert median_error(exact.images, expected.images) < 1e-3
    for precision in ("tf32", "bf16"):
        seen = noise(device="cuda")(engine=Engine(kind, precision=precision))
        note = account()[-1]
        assert note["precision"] == precision or "float32 is used" in note["reason"]
        assert median_error(seen.images, expected.images) < 2 * ROUNDED[0]
        if note["precision"] == "tf32":
            assert median_error(seen.images, expected.images) > 2e-3, "tensor cores were not used"
    assert newer() == before


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_nothing_in_a_sweep_waits_for_the_gpu(kind, precision):
    work = noise(device="cuda")
    work(engine=Engine(kind, precision=precision))  # compared and compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work(engine=Engine(kind, precision=precision))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_batches_of_a_pool_on_a_gpu_are_taken_and_scattered_without_waiting():
    pixels, labels = torch.randn(9, 3, 4, 4), torch.randn(9, 2)
    on_cpu = Pool(Examples(pixels[4:], labels[4:]), Examples(pixels[:4], labels[:4]))
    pool = Pool(*(Examples(e.images.cuda(), e.labels.cuda()) for e in (on_cpu.new, on_cpu.frozen)))
    index = torch.tensor([8, 0, 4, 3, 8])
    into = torch.zeros_like(pool.new.images)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = pool[index]
        pool.scatter(into, index, batch.images)
        Pool(pool.new)[index[:3] % 5]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(batch.images.cpu(), pixels[index])
    assert torch.equal(batch.labels.cpu(), labels[index])
    expected = torch.zeros(5, 3, 4, 4)
    on_cpu.scatter(expected, index, pixels[index])
    assert torch.equal(into.cpu(), expected)


# --------------------------------------------------------------------------------- in a run


@pytest.mark.parametrize("matcher", ["tesla", "datm", "ftd"])
def test_a_run_whose_steps_cannot_round_says_why_and_is_the_same_as_in_float32(tmp_path, matcher):
    with patch.dict("os.environ", {"DDBENCH_HOME": str(tmp_path / "home")}):
        made = {
            p: run(tmp_path / p, spec(matcher, **TRAJECTORY | {"matcher.precision": p})) for p in ("float32", "tf32")
        }
    notes = {p: json.loads((folder / "stage-0" / "result.json").read_text()) for p, folder in made.items()}
    assert "engine" not in notes["float32"]
    (note,) = notes["tf32"]["engine"]
    assert (note["engine"], note["precision"]) == ("eager", "float32")
    assert note["reason"] == "tf32 exists on CUDA only; float32 is used"
    assert notes["tf32"]["sha256"] == notes["float32"]["sha256"]


def test_a_lower_precision_is_judged_by_the_last_expert_that_segments_begin_at(tmp_path):
    with patch.dict("os.environ", {"DDBENCH_HOME": str(tmp_path)}):
        made = spec("tesla", **{"matcher.precision": "bf16", "matcher.max_start": 2})
        task = build_task(made, made.dataset.load())
        problem = prepared(task, made.matcher.needs(task))
        bound = made.matcher.on(problem)
        assert isinstance(bound, partial)
        probe = bound.keywords["probe"]
        assert torch.equal(probe.vector(), problem.experts.snapshot(0, 1))
        assert problem.experts.folder.name in probe.name, "other experts, other judgement"
        plain = spec("tesla")
        assert not isinstance(plain.matcher.on(problem), partial)
