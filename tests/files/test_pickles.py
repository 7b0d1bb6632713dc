"""What a pickle would do is told before it is loaded: what runs, and what grows."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from ddbench.files.pickles import check
from ddbench.files.safe_load import _ALLOWED, load
from ddbench.testing.hostile_containers import again, doubling


def archive(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", program)
        made.writestr("archive/version", b"3")
    return path


def said(program: bytes, size: int | None = None) -> str:
    return refused(lambda: check(io.BytesIO(program), size or len(program), _ALLOWED))


@pytest.mark.parametrize("program", [again("x" * 500_000, 5000), doubling(25)])
def test_what_would_grow_is_refused(program, tmp_path):
    assert "would grow when it is loaded" in said(program)
    assert "would grow" in refused(lambda: load(archive(tmp_path / "a.pt", program)))


def test_bombs_do_grow_where_nobody_looks(tmp_path):
    """Small ones, so that the large ones are known to be bombs."""
    for program, sizes in ((again("x" * 100, 3), [100] * 4), (doubling(3), [1000, 2000, 4000, 8000])):
        made = torch.load(archive(tmp_path / "a.pt", program), weights_only=True)
        assert [len(part) for part in made] == sizes


def size_of(count: int, times: int) -> bytes:
    """A pickle that copies a tuple so many times, by torch.Size."""
    numbers = b"(" + b"K\x01" * count + b"tq\x01\x85q\x02"
    return b"\x80\x02(ctorch\nSize\nq\x00" + numbers + b"R" + b"h\x00h\x02R" * times + b"t."


def test_copies_of_a_long_tuple_are_refused_and_shapes_are_not(tmp_path):
    assert "would grow" in said(size_of(50_000, 10_000))
    assert load(archive(tmp_path / "a.pt", size_of(3, 2))) == ((1, 1, 1),) * 3


def test_the_memo_does_not_hide_a_function(tmp_path):
    moved = again("x" * 500_000, 5000).replace(b"q\x00", b"q\x00q\x07", 1).replace(b"h\x00", b"h\x07")
    assert "would grow" in said(moved)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (b"\x80\x02(" + b"]" * 3_000_000 + b"t.", "instructions"),
        (b"\x80\x02X" + (2**31).to_bytes(4, "little") + b"x.", None),
        (b"\x80\x02X" + (2**23).to_bytes(4, "little") + b"x" * 2**23 + b".", "longer pickle"),
        (b"\x80\x02}(" + b"\x8a\x0c" + b"\x00" * 11 + b"\x01N" + b"u.", None),
        (b"\x80\x02}(" + (b"\x8a\x0c" + b"\x01" * 12 + b"N") * 20_000 + b"u.", "more than 32 bits"),
    ],
)
def test_pickles_that_are_longer_than_tensors_need_are_refused(program, expected):
    if expected is None:
        try:
            check(io.BytesIO(program), len(program), _ALLOWED)
        except ValueError:
            return
    else:
        assert expected in said(program)


def test_ordinary_files_are_far_from_all_bounds(tmp_path):
    """Trajectories of experts, state dicts, and results with NumPy's numbers among them."""
    values: list[Any] = [
        [[[torch.zeros(3, 3), torch.zeros(3)] * 4 for _ in range(51)] for _ in range(10)],
        OrderedDict((f"layer{i}", torch.zeros(2)) for i in range(500)),
        {"data": [[torch.zeros(2, 3, 4, 4), torch.arange(2)]] * 5, "accs": [np.float64(0.5)] * 300},
        {"shape": torch.zeros(2, 3).shape, "big": np.zeros(10_000), "name": "hexagon"},
    ]
    for value in values:
        for how in ({}, {"_use_new_zipfile_serialization": False}):
            torch.save(value, tmp_path / "a.pt", **how)
            assert type(load(tmp_path / "a.pt")) in (list, dict, OrderedDict)


def test_a_function_that_is_not_let_through_is_named():
    assert "posix.system" in said(pickle.dumps(__import__("os").system, 2))
