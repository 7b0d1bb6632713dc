"""Compiled student steps: their formulas against autograd, their sweep against autograd, and what happens otherwise.

Most tests replace ``torch.compile`` by nothing: formulas and sweep are then the ones that are compiled, run eagerly.
"""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from tiny import run, spec
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from unrolls import FULL, RULES, assert_same, case, rule_case, unrolled

from ddbench import Network, Seed
from ddbench.train import compile as compiling
from ddbench.train.compile import account, forward_flops, pays
from ddbench.trajectory import derivatives
from ddbench.trajectory.engine import Engine
from ddbench.trajectory.unroll import reverse

# torch.func loads parts of torch that are deprecated; the engine silences them while it compiles
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")

COMPILED = Engine("compiled")
SHAPE, CLASSES = (3, 8, 8), 3
SOURCES = {
    "instance": ConvNet(width=4, depth=2),
    "batch": ConvNet(width=4, depth=2, norm="batch"),
    "layer": ConvNet(width=4, depth=2, norm="layer"),
    "none": ConvNet(width=4, depth=2, norm="none"),
    "swish": ConvNet(width=4, depth=2, activation="swish"),
    "sigmoid": ConvNet(width=4, depth=2, activation="sigmoid"),
    "leaky": ConvNet(width=4, depth=2, activation="leakyrelu"),
    "max": ConvNet(width=4, depth=2, pooling="max"),
    "no pooling": ConvNet(width=4, depth=1, pooling="none"),
}


@pytest.fixture(autouse=True)
def _nothing_made(monkeypatch):
    """Every test compiles for itself."""
    monkeypatch.setattr(compiling, "_made", {})
    monkeypatch.setattr(compiling, "_used", {})


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


# -- formulas --------------------------------------------------------------------------------------------------


def double(source, curvature: bool, precision="float32"):
    """Derivatives along a direction by the formula, and by autograd twice through a plain module."""
    network = Network(source, SHAPE, CLASSES, dtype=torch.float64)
    vector = network.init(Seed(3))
    theta, buffers = vector[: network.parameters], vector[network.parameters :]
    generator = torch.Generator().manual_seed(1)

    def noise(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    images, labels, u = noise(5, *SHAPE), noise(5, CLASSES).softmax(1), noise(len(theta))
    seen = derivatives.along(derivatives.student(network, precision), curvature, precision)(
        theta, buffers, images, labels, u
    )

    module = source.build(SHAPE, CLASSES).double().train()
    leaves = [t.clone().requires_grad_() for t in (images, labels, theta)]
    pieces = leaves[2].split([p.numel() for p in module.parameters()])
    named = zip(module.named_parameters(), pieces, strict=True)
    parameters = {name: piece.view(p.shape) for (name, p), piece in named}
    loss = cross_entropy(functional_call(module, parameters, (leaves[0],)), leaves[1])
    g = torch.autograd.grad(loss, leaves[2], create_graph=True)[0]
    return seen, (*torch.autograd.grad(g @ u, leaves), g.detach() @ u)


@pytest.mark.parametrize("name", SOURCES)
def test_derivatives_along_a_direction_are_those_of_autograd_twice(name):
    seen, (images, labels, curved, value) = double(SOURCES[name], curvature=True)
    for found, expected in zip((seen.images, seen.labels, seen.curved, seen.value), (images, labels, curved, value),
                               strict=True):  # fmt: skip
        assert expected.norm() > 0
        assert error(found, expected) < 1e-12


@pytest.mark.parametrize("precision", ["float32", "bf16"])  # by forward mode, and without; float64 is not lowered
def test_without_curvature_the_hessian_product_is_left_out(precision):
    seen, (images, labels, _, value) = double(SOURCES["instance"], curvature=False, precision=precision)
    assert seen.curved is None
    for found, expected in zip((seen.images, seen.labels, seen.value), (images, labels, value), strict=True):
        assert error(found, expected) < 1e-12


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


@pytest.mark.gpu
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_compiled_gradients_are_eager_ones_on_a_gpu(curvature):
    network = Network(ConvNet(width=16), (3, 32, 32), 10, torch.device("cuda"))
    from ddbench import DSA, Examples, Pool
    from ddbench.trajectory.unroll import Plan, matching, student_loss

    start, target = (network.init(Seed(0) / end) for end in ("start", "target"))
    with Seed(0).scope():
        pool = Pool(Examples(torch.randn(20, 3, 32, 32).cuda(), torch.randn(20, 10).softmax(1).cuda()))
        plan = Plan.draw(20, 5, None, DSA(FULL))
    task = (student_loss(network), matching(start, target), start, pool, torch.tensor(0.01, device="cuda"), plan)
    for _ in range(3):  # a CUDA graph is recorded, then replayed
        seen = reverse(*task, curvature=curvature, engine=COMPILED)
    assert [note["engine"] for note in account()] == ["compiled"]
    assert_same(seen, reverse(*task, curvature=curvature), 1e-2)


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


# -- when it pays ----------------------------------------------------------------------------------------------


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


def test_auto_compiles_where_it_was_measured_and_threads_share_what_it_saves():
    assert not pays(Network(ConvNet(), (3, 32, 32), 10, torch.device("cuda")), 100, 100_000)
    steps = next(n for n in range(10, 10_000, 10) if pays(network(128), 50, n))
    with patch("torch.get_num_threads", lambda: 4):
        assert not pays(network(128), 50, 3 * steps)
        assert pays(network(128), 50, 4 * steps + 10)


def test_auto_decides_by_shapes_and_counts_and_measures_nothing():
    plans = [4, 4, 3, 4]
    with (
        patch("ddbench.trajectory.engine._Shape.passes", lambda shape: shape.size),
        patch("ddbench.trajectory.engine.pays") as rule,
    ):
        rule.side_effect = lambda network, batch, steps: steps > 100
        net = network(8)
        args = (net, torch.empty(0), torch.zeros(net.length), plans, 10, False)
        assert Engine("auto", 30).passes(*args) == {}
        assert Engine("auto", 50).passes(*args) == {4: 4}
        assert Engine("auto", 500).passes(*args) == {3: 3, 4: 4}
        assert Engine("eager", 500).passes(*args) == {}
        assert Engine("compiled", 1).passes(*args) == {3: 3, 4: 4}


def test_nothing_is_compiled_where_tensors_have_no_numbers():
    net = network(8)
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
