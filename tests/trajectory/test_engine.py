"""Student steps that are compiled or in a lower precision: their sweep against autograd, and what happens otherwise.

Most tests replace ``torch.compile`` by nothing: the sweep is then the one that is compiled, run eagerly.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from gpus import nothing_waits
from switches import newer
from tiny import TRAJECTORY, run, spec
from unrolls import FULL, RULES, SOURCES, assert_same, case, on_noise, rule_case, same_bits, unrolled

from ddbench import Network, Seed
from ddbench.run.prepare import prepared
from ddbench.run.run import build_task
from ddbench.train import compile as compiling
from ddbench.train.compile import ROUNDED, account
from ddbench.trajectory import derivatives, engine
from ddbench.trajectory.engine import Engine
from ddbench.trajectory.method import engine_for
from ddbench.trajectory.unroll import Gradient, reverse

# torch.func loads parts of torch that are deprecated; the engine silences them while it compiles
pytestmark = [pytest.mark.filterwarnings("ignore:.*torch.jit.script.*"), pytest.mark.usefixtures("nothing_compiled")]

COMPILED = Engine("compiled")
SHAPE, CLASSES = (3, 8, 8), 3


# -- the sweep -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_sweep_is_autograd_for_every_optimiser(name, curvature):
    c = rule_case(name, augment=FULL, frozen=3)
    seen = c.reverse(optimiser=RULES[name][0], curvature=curvature, engine=COMPILED)
    assert_same(seen, unrolled(c, RULES[name][1], detach_theta=curvature == "zero"))
    assert {note["engine"] for note in account()} == {"compiled"}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", SOURCES)
def test_sweep_is_autograd_for_every_kind_of_network(name):
    c = case(4, source=SOURCES[name], augment=FULL)
    assert_same(c.reverse(engine=COMPILED), unrolled(c), 1e-11)
    assert {note["engine"] for note in account()} == {"compiled"}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["sgd", "momentum"])
@pytest.mark.parametrize("window", [1, 3])
def test_windows_hold_in_compiled_sweeps(name, window):
    c = rule_case(name, steps=5, augment=FULL)
    seen = c.reverse(window=window, optimiser=RULES[name][0], engine=COMPILED)
    assert_same(seen, unrolled(c, RULES[name][1], detach_first=5 - window))


@pytest.mark.usefixtures("uncompiled")
def test_memory_of_compiled_sweeps_does_not_grow_with_the_steps(peak_bytes):
    few, many = (case(t, new=12, batch=None, lr=0.01, source=ConvNet(width=16, depth=2)) for t in (5, 50))
    vector = 8 * few.network.parameters
    few.reverse(engine=COMPILED)  # the comparison with eager code is over
    short = peak_bytes(lambda: few.reverse(engine=COMPILED)) - 6 * vector
    long = peak_bytes(lambda: many.reverse(engine=COMPILED)) - 51 * vector
    assert abs(long - short) < 0.1 * short


def test_a_compiled_gradient_is_the_eager_one():
    """The one test that compiles by default: plans have batches of two sizes, and one of them is worth it."""
    c = case(4, new=7, batch=4, augment=FULL)
    state = torch.get_rng_state()
    with patch("ddbench.trajectory.engine.pays", lambda network, batch, steps: batch == 4):
        seen = c.reverse(engine=Engine("auto"))
    assert torch.equal(torch.get_rng_state(), state)
    (note,) = account()
    assert note["engine"] == "compiled", note["reason"]
    assert note["shape"] == [4, *SHAPE]
    assert max(note["errors"].values()) < 1e-12
    assert_same(seen, unrolled(c))

    c.network.apply(c.start, c.pool.new.images, train=False)  # as teachers and judges do, between iterations
    rule = patch("ddbench.trajectory.engine.pays", lambda network, batch, steps: batch == 4)
    with rule, torch._dynamo.config.patch(error_on_recompile=True):
        again = c.reverse(engine=Engine("auto"))
    assert torch.equal(again.images, seen.images)


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["exact", "zero"])
@pytest.mark.parametrize("name", SOURCES)
def test_compiled_gradients_are_eager_ones_for_every_kind_of_network(name, curvature):
    c = case(3, new=4, batch=None, source=SOURCES[name], augment=FULL)
    seen = c.reverse(engine=COMPILED, curvature=curvature)
    assert [note["engine"] for note in account()] == ["compiled"]
    assert_same(seen, c.reverse(curvature=curvature))


# -- where code stays eager ------------------------------------------------------------------------------------


def test_without_a_compiler_the_gradient_is_the_eager_one_to_the_bit_and_the_reason_is_kept(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no compiler is installed\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    c = case(4, batch=None, augment=FULL)
    seen, expected = c.reverse(engine=COMPILED), c.reverse()
    assert torch.equal(seen.images, expected.images)
    (note,) = account()
    assert note["engine"] == "eager"
    assert note["reason"] == "RuntimeError: no compiler is installed"


def test_compiled_code_that_is_wrong_is_not_used(monkeypatch):
    def wrong(function, **options):
        def off(*arguments):
            made = function(*arguments)
            return made._replace(images=1.001 * made.images) if isinstance(made, tuple) else made

        return off

    monkeypatch.setattr(torch, "compile", wrong)
    c = case(4, batch=None, augment=FULL)
    assert torch.equal(c.reverse(engine=COMPILED).images, c.reverse().images)
    (note,) = account()
    assert note["reason"] == "compiled and eager disagree: images by 1.0e-03, at most 0.0001"


def test_only_the_loss_of_a_student_is_compiled():
    c = case(3)
    loss = c.loss
    reverse(lambda *given: loss(*given), c.terminal, c.theta, c.pool, c.lr, c.plan, engine=COMPILED)
    assert account() == []


# -- what is compiled -------------------------------------------------------------------------------------------


def test_auto_decides_by_shapes_and_counts_and_measures_nothing():
    plans = [4, 4, 3, 4]
    with (
        patch("ddbench.trajectory.engine._Shape.passes", lambda shape: shape.size),
        patch("ddbench.trajectory.engine.pays") as rule,
    ):
        rule.side_effect = lambda network, batch, steps: steps > 100
        net = Network(ConvNet(width=8), (3, 32, 32), 10)
        args = (net, torch.empty(0), torch.zeros(net.length), plans, 10, False)
        assert Engine("auto", 30).passes(*args) == {}
        assert Engine("auto", 50).passes(*args) == {4: 4}
        assert Engine("auto", 500).passes(*args) == {3: 3, 4: 4}
        assert Engine("eager", 500).passes(*args) == {}
        assert Engine("compiled", 1).passes(*args) == {3: 3, 4: 4}


def test_nothing_is_compiled_where_tensors_have_no_numbers():
    net = Network(ConvNet(width=8), (3, 32, 32), 10)
    empty = torch.empty(net.length, device="meta")
    assert COMPILED.passes(net, torch.empty(0, device="meta"), empty, [4], 10, False) == {}


# -- in a run --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
def test_a_stage_says_what_it_compiled(tmp_path):
    folder = run(tmp_path, spec("tesla", "single", 2, matcher__engine="compiled"), students=1)
    notes = json.loads((folder / "stage-0" / "result.json").read_text())
    assert {note["engine"] for note in notes["engine"]} == {"compiled"}


def test_a_short_run_compiles_nothing_and_says_nothing(tmp_path):
    folder = run(tmp_path, spec("tesla", "single", 2), students=1)
    assert "engine" not in json.loads((folder / "stage-0" / "result.json").read_text())


def test_the_engine_belongs_to_the_key():
    usual, own = spec("tesla", "single", 2), spec("tesla", "single", 2, matcher__engine="compiled")
    assert usual.matcher.engine == "auto"
    assert usual.key != own.key


# -- near enough, or not ---------------------------------------------------------------------------------------


def test_on_a_cpu_bf16_is_too_far_off_so_that_float32_is_used_and_the_stage_says_so():
    work = on_noise()
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
    work = on_noise(width=4, images=4)
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


@pytest.mark.usefixtures("anything_goes")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_where_it_is_near_enough_steps_are_lowered_and_everything_around_them_is_not(curvature):
    work = on_noise()
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
    work = on_noise()
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
    work, state = on_noise(width=4, images=4), torch.get_rng_state()
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
    work = on_noise(width=4, images=4)
    assert same_bits(work(engine=Engine(precision="bf16")), work())
    (note,) = account()
    assert note["reason"] == "RuntimeError: not implemented for 'BFloat16'; float32 is used"


# -- lowered and compiled --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_what_is_too_far_off_is_compiled_in_float32(curvature):
    work = on_noise()
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
    work = on_noise()
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
    work = on_noise(width=4, images=4)
    seen = work(engine=Engine("compiled", precision="bf16"))
    (note,) = account()
    assert (note["engine"], note["precision"], note["reason"]) == ("eager", "bf16", "RuntimeError: no compiler")
    assert same_bits(seen, work(engine=Engine(precision="bf16")))


@pytest.mark.slow
@pytest.mark.usefixtures("anything_goes")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_a_compiler_knows_how_to_lower(curvature):
    work = on_noise(width=8)
    seen = work(engine=Engine("compiled", precision="bf16"), curvature=curvature)
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("compiled", "bf16"), note
    assert 0.01 < note["errors"]["images"] < 0.2
    assert error(seen.images, work(curvature=curvature).images) < 0.3


# -- lowered on a GPU ------------------------------------------------------------------------------------------


def off(seen: Gradient, expected: Gradient) -> float:
    """The relative error of the median image's gradient."""
    return compiling.relative_error(seen.images.cpu(), expected.images.cpu())


def assert_tensor_cores(seen: Gradient, exact: Gradient) -> None:
    """At width 128 with 100 images; at width 32 with 16 an H200 used none, and the images moved by 2.0e-4."""
    moved = off(seen, exact)
    said = f"TF32 moved the images' gradient by {moved:.1e}; on an H200 it was 3.0e-2 with three blocks"
    assert moved > 2e-3, f"{said}: tensor cores were not used"
    assert moved < 2 * ROUNDED[0], said


@pytest.mark.gpu
def test_float32_on_a_gpu_is_float32_and_tf32_is_near_it():
    before = newer()
    small = off(on_noise(device="cuda")(engine=Engine()), on_noise()())
    assert small < 1e-3, f"float32 on the GPU is off by {small:.1e} from float32 on the CPU"
    work = on_noise(width=128, images=100, device="cuda")
    exact = work(engine=Engine())
    for precision in ("tf32", "bf16"):
        seen = work(engine=Engine(precision=precision))
        note = account()[-1]
        if note["precision"] == "tf32":
            assert_tensor_cores(seen, exact)
        else:
            assert note["precision"] == precision or "float32 is used" in note["reason"]
            assert off(seen, exact) < 2 * ROUNDED[0]
    assert newer() == before


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_nothing_in_an_eager_sweep_waits_for_the_gpu(precision):
    work = on_noise(device="cuda", augment=FULL, steps=6)
    work(engine=Engine(precision=precision))  # compared
    with nothing_waits():
        work(engine=Engine(precision=precision))


@pytest.mark.gpu
@pytest.mark.filterwarnings(r"ignore:::torch\..*")  # its compiler says much, and differently in every version
@pytest.mark.parametrize(("curvature", "precision", "depth"), [("exact", "float32", 1), ("zero", "tf32", 2)])
def test_compiled_steps_on_a_gpu_are_eager_ones_and_wait_for_nothing(curvature, precision, depth):
    """As few blocks as show it: the compiler takes most of the time of these tests, and more with each block."""
    work = on_noise(width=128, images=100, steps=4, depth=depth, device="cuda", augment=FULL)
    asked = Engine("compiled", precision=precision)
    for _ in range(3):  # a CUDA graph is recorded, then replayed
        seen = work(curvature=curvature, engine=asked)
    (note,) = account()
    assert (note["engine"], note["precision"]) == ("compiled", precision), note
    exact = work(curvature=curvature)
    if precision == "tf32":
        assert_tensor_cores(seen, exact)
    else:
        assert_same(seen, exact, 1e-2)
    with nothing_waits():
        again = work(curvature=curvature, engine=asked)
    assert off(again, exact) == pytest.approx(off(seen, exact), abs=1e-2)


# -- a run that asks for less ----------------------------------------------------------------------------------


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
        probe = engine_for(made.matcher, problem).probe
        assert torch.equal(probe.vector(), problem.experts.snapshot(0, 1))
        assert problem.experts.folder.name in probe.name, "other experts, other judgement"
        plain = spec("tesla")
        assert engine_for(plain.matcher, problem).probe is None
        assert engine_for(made.matcher).probe is None, "without a problem there are no experts"


# -- what a stage began with -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
def test_a_stage_that_began_with_compiled_steps_goes_on_with_them():
    c = case(3, batch=None)
    began = time.monotonic()
    c.reverse(engine=COMPILED)
    notes = compiling.verdicts()
    assert 0 < account()[0]["seconds"] <= time.monotonic() - began
    compiling._made.clear()
    compiling.settle(notes)
    c.reverse(engine=COMPILED)
    (note,) = account()
    assert note["engine"] == "compiled"
    assert "reason" not in note


def test_a_stage_that_began_without_a_compiler_goes_on_without(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no compiler is installed")

    c = case(3, batch=None)
    with monkeypatch.context() as then:
        then.setattr(torch, "compile", broken)
        c.reverse(engine=COMPILED)
    notes = compiling.verdicts()
    compiling._made.clear()
    compiling.settle(notes)
    c.reverse(engine=COMPILED)  # now there would be one
    (note,) = account()
    assert (note["engine"], note["reason"]) == ("eager", "RuntimeError: no compiler is installed")


@pytest.mark.parametrize("good", [True, False])
def test_a_stage_goes_on_in_the_precision_that_it_began_with(monkeypatch, good):
    work = on_noise(width=4, images=4)
    with monkeypatch.context() as then:
        then.setattr(engine, "ROUNDED", (10.0, 10.0) if good else (0.0, 0.0))
        first = work(engine=Engine(precision="bf16"))
    notes = compiling.verdicts()
    compiling._made.clear()
    compiling.settle(notes)
    monkeypatch.setattr(engine, "ROUNDED", (10.0, 10.0))
    assert same_bits(work(engine=Engine(precision="bf16")), first)
    (note,) = account()
    assert note["precision"] == ("bf16" if good else "float32")


# -- how far off is too far ------------------------------------------------------------------------------------


def off_by(share, name, loss):
    """In place of ``torch.compile``: what is named is off by a share of its size, and ``value`` by one of |u| |g|."""

    def compiled(function, **options):
        def wrong(theta, buffers, images, labels, *direction):
            made = function(theta, buffers, images, labels, *direction)
            if not direction:
                return made * (1 + share) if name == "gradient" else made
            if name == "value":
                leaf = theta.detach().requires_grad_()
                (g,) = torch.autograd.grad(loss(leaf, images, labels), leaf)
                return made._replace(value=made.value + share * g.norm() * direction[0].norm())
            return made if name == "gradient" else made._replace(**{name: (1 + share) * getattr(made, name)})

        return wrong

    return compiled


@pytest.mark.parametrize(
    ("name", "share", "good"),
    [
        *(("images", 2e-5, True), ("images", 1e-2, False), ("labels", 1e-2, False)),
        *(("gradient", 5e-3, True), ("gradient", 3e-2, False), ("value", 5e-3, True), ("value", 3e-2, False)),
    ],
)
def test_compiled_code_is_compared_in_each_of_what_it_computes(monkeypatch, name, share, good):
    """Errors relative to the size of a tensor; that of <u, g>, which may be next to nothing, to |u| |g|."""
    c = case(2, batch=None)
    monkeypatch.setattr(torch, "compile", off_by(share, name, c.loss))
    c.reverse(engine=COMPILED)
    (note,) = account()
    assert note["engine"] == ("compiled" if good else "eager")
    if good:
        assert note["errors"][name] == pytest.approx(share, rel=1e-6)
    else:
        assert f"{name} by {share:.1e}" in note["reason"]
