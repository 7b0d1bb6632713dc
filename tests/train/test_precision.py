"""Arithmetic in lower precisions: torch's switches, the older and the newer ones, and casts to bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from switches import WHERE, newer

from ddbench.train.precision import arithmetic, autocast, switched


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
    before = newer()
    assert before[0] == "tf32"
    with arithmetic(torch.device("cpu"), "tf32"):
        assert newer() == before
        assert newer()[2] != "tf32"


def test_only_bf16_casts_and_only_what_is_inside():
    x = torch.randn(4, 4)
    for precision, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(x.device, precision):
            assert (x @ x).dtype == dtype
        assert (x @ x).dtype == torch.float32
