"""Norm, ReLU and pooling as one kernel: as exact as the layers that it stands for, and off where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import interpreted
import pytest
import torch
from ddbench_networks import ConvNet

from ddbench import Examples, Network, Recipe, Seed, Student, UsageError, fit
from ddbench.train import fused

RECIPE = Recipe(steps=2, batch=4, augment="", kernels="fused")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed here")


def interpret(*asked: str) -> dict:
    """What the interpreter computes, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, interpreted.__file__, *asked]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict:
    return interpret()


def check(cases: dict) -> None:
    for name, case in cases.items():
        assert case["kept"], name  # storage and layout
        for own, eager in zip(case["fused"], case["eager"], strict=True):
            # what is stored in bfloat16 is rounded to 8 bits once
            assert own < (max(1e-6, 2 * eager) if "float32" in name else 4e-3), (name, own, eager)


@needs_triton
def test_output_and_gradients_are_those_of_the_definitions_in_float64(found):
    assert len(found["cases"]) == 3
    check(found["cases"])


@needs_triton
@pytest.mark.slow
def test_so_they_are_for_every_shape_storage_and_layout():
    cases = interpret("all")["cases"]
    assert len(cases) == 20
    check(cases)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("groups", [128, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "layout"), [(32, torch.channels_last), (32, None), (8, None), (128, None)])
def test_the_kernels_of_the_usual_network_compile_for_an_h100_without_a_gpu(side, layout, dtype, groups):
    """The interpreter takes what the compiler does not."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ddbench.train import kernels

    x = torch.empty(2, 128, side, side, dtype=dtype, device="meta")
    x = x.contiguous(memory_format=layout or torch.contiguous_format)
    _, sizes = fused._launch(x, groups)
    warps = sizes.pop("num_warps")
    stored = {"x", "out", "d_out", "d_x"}
    types = {"planes": "i32", "eps": "fp32"}
    for kernel in (kernels.forward, kernels.backward):
        pointers = {n: "*bf16" if n in stored and dtype == torch.bfloat16 else "*fp32" for n in kernel.arg_names}
        signature = pointers | {n: t for n, t in types.items() if n in pointers} | dict.fromkeys(sizes, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n not in {"eps", *sizes}}
        source = ASTSource(kernel, signature, constexprs=sizes, attrs=aligned)
        built = build(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert len(built.asm["cubin"]) > 0
        assert built.metadata.shared < 48 * 1024


@needs_triton
def test_a_training_with_fused_layers_is_that_with_plain_ones_up_to_rounding(found):
    trained = found["trained"]
    assert trained["ran"] == {"plain": 0, "auto": 0, "fused": 4, "graph": 4, "bf16": 4, "gsam": 8, "together": 0}
    assert 0 < trained["fused"] < 1e-5
    assert trained["graph"] == trained["fused"]
    assert trained["plain"] == trained["auto"] == 0  # not measured, so not the default
    assert 1e-4 < trained["bf16"] < 0.1


@needs_triton
def test_fused_layers_are_differentiated_once_and_say_so(found):
    assert "once_differentiable" in found["twice"]


def test_fused_kernels_on_a_cpu_are_refused():
    network = Network(ConvNet(width=4, depth=1), (3, 4, 4), 2)
    with pytest.raises(UsageError, match=r"kernels=fused needs a CUDA device .* use kernels=auto"):
        fit(network, Student(network.init(Seed(0))), Examples(torch.zeros(4, 3, 4, 4), torch.eye(2)), RECIPE, Seed(0))


def test_what_is_not_measured_is_not_the_default(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(fused, "_installed", lambda: True)
    for gain, expected in ((None, False), (1.02, False), (1.4, True)):
        monkeypatch.setattr(fused, "GAIN", gain)
        assert fused.chosen("auto", cuda) is expected
        assert not fused.chosen("auto", torch.device("cpu"))
        assert fused.chosen("fused", cuda)
        assert not fused.chosen("plain", cuda)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "groups"), [*interpreted.CASES, ((64, 128, 32, 32), 128), ((8, 128, 16, 16), 4)])
def test_on_a_gpu_too_and_the_same_in_every_run(shape, groups, layout):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape, device="cuda") + 2, *torch.randn(2, shape[1], device="cuda")
    d_out = torch.randn(*shape[:2], shape[2] // 2, shape[3] // 2, device="cuda")
    given = [x.contiguous(memory_format=layout), weight, bias]
    one, again = (
        interpreted.with_gradients(lambda *a: fused.normed_relu_pooled(*a, interpreted.EPS), given, groups, d_out)
        for _ in range(2)
    )
    exact = interpreted.with_gradients(interpreted.by_hand, [t.double() for t in given], groups, d_out)
    assert max(interpreted.errors(one, exact)) < 2e-6
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_training_on_a_gpu_with_fused_layers_is_that_with_plain_ones(norm):
    network = Network(ConvNet(width=32, norm=norm), (3, 32, 32), 10, torch.device("cuda"))
    examples = Examples(torch.randn(64, 3, 32, 32, device="cuda"), torch.eye(10, device="cuda").repeat(7, 1)[:64])
    begin, recipe = Student(network.init(Seed(0))), Recipe(steps=5, batch=32, augment="", precision="float32")
    plain, one = (
        fit(network, begin, examples, replace(recipe, kernels=kernels), Seed(1), what=None).vector
        for kernels in ("plain", "fused")
    )
    assert 0 < float((one - plain).norm() / (plain - begin.vector).norm()) < 1e-4
