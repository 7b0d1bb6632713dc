"""Checkpoints: any state of a matcher comes back to the bit, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sets import some_set
from torch import Tensor

from ddbench import SyntheticSet
from ddbench.base.state import load_state, save_state
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.errors import DataError, UsageError
from ddbench.trajectory.descent import PixelState

CPU = torch.device("cpu")


@dataclass
class Inner:
    values: Tensor
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Later:
    count: int
    note: str = "as it was"


@dataclass(frozen=True)
class Frozen:
    scale: float


@dataclass
class State:
    images: Tensor
    momenta: dict[str, Tensor]
    inner: Inner
    history: list[float]
    pairs: tuple[tuple[int, float], ...]
    frozen: Frozen
    nothing: None = None
    flag: bool = True
    count: int = 0
    table: dict[int, Any] = field(default_factory=dict)
    derived: int = field(default=0, init=False)


def same(a: Any, b: Any) -> bool:
    """Equal in type, value and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and bits(a) == bits(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, n), getattr(b, n)) for n in a.__dataclass_fields__)
    return repr(a) == repr(b)  # tells 0.0 from -0.0, and nan equals nan


def bits(t: Tensor) -> bytes:
    return t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""


def state() -> State:
    generator = torch.Generator().manual_seed(0)
    made = State(
        images=torch.randn(2, 3, 4, generator=generator),
        momenta={"a": torch.randn(3, dtype=torch.float64, generator=generator), "b": torch.tensor(float("nan"))},
        inner=Inner(torch.arange(4), ("x", "ü")),
        history=[0.1, 1e-300, 1 / 3, float("inf")],
        pairs=((1, 0.5), (2, -0.0)),
        frozen=Frozen(2**0.5),
        count=2**60,
        table={1: [None, {"deep": (True, False)}], 2: torch.zeros(0)},
    )
    made.derived = 7
    return made


def test_a_state_comes_back_to_the_bit(tmp_path):
    save_state(tmp_path / "c.safetensors", state(), {"step": 3, "note": None})
    back, notes = load_state(tmp_path / "c.safetensors", CPU)
    assert same(back, state())
    assert notes == {"step": 3, "note": None}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.tensor([True, False]),
        torch.arange(3, dtype=torch.uint8),
        torch.zeros(0, 4),
        torch.randn(4, 3).T,
        torch.randn(6)[::2],
        torch.randn(3).to(torch.bfloat16),
        torch.tensor([-0.0, torch.inf]),
    ],
    ids=["scalar", "bool", "uint8", "empty", "transposed", "strided", "bfloat16", "special"],
)
def test_every_kind_of_tensor_comes_back_to_the_bit(tmp_path, tensor):
    save_state(tmp_path / "c.safetensors", tensor, {})
    assert same(load_state(tmp_path / "c.safetensors", CPU)[0], tensor.contiguous())


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | inner.map(lambda value: Inner(torch.zeros(2), (repr(value),)))
    ),
    max_leaves=12,
)


@given(nested)
def test_any_nesting_of_plain_values_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "nested.safetensors"
    save_state(path, value, {})
    assert same(load_state(path, CPU)[0], value)


def test_tensors_go_back_to_the_kind_of_device_they_came_from(tmp_path):
    path, meta = tmp_path / "c.safetensors", torch.device("meta")
    save_state(path, {"cpu": torch.ones(2), "other": torch.ones(3)}, {})
    tensors, metadata = load_tensors(path)
    shape = metadata["state"].replace('"t1", "cpu": true', '"t1", "cpu": false')
    assert shape != metadata["state"]
    save_tensors(path, tensors, metadata | {"state": shape})
    back, _ = load_state(path, meta)
    assert {name: tensor.device for name, tensor in back.items()} == {"cpu": CPU, "other": meta}


def test_a_set_and_the_state_of_a_trajectory_matcher_come_back(tmp_path):
    made = {"state": PixelState.start(torch.randn(2, 1, 4, 4), torch.eye(2), 0.01), "best": some_set(3, 3, lr=0.02)}
    save_state(tmp_path / "c.safetensors", made, {})
    back, _ = load_state(tmp_path / "c.safetensors", CPU)
    assert same(back["state"], made["state"])
    assert back["best"].digest == made["best"].digest


class Pair(NamedTuple):
    first: float
    second: Tensor


@pytest.mark.parametrize(
    "value", [Pair(1.0, torch.zeros(1)), torch.randn(2, 3).shape], ids=["namedtuple", "torch.Size"]
)
def test_what_could_not_be_read_back_is_refused_when_it_is_written(tmp_path, value):
    try:
        save_state(tmp_path / "c.safetensors", {"value": value}, {})
    except UsageError:
        return
    back = load_state(tmp_path / "c.safetensors", CPU)[0]["value"]
    assert repr(tuple(back)) == repr(tuple(value))


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, b"bytes", torch.nn.Linear(1, 1), complex(1, 2)])
def test_a_state_of_something_else_is_refused_by_name(tmp_path, value):
    with pytest.raises(UsageError, match="a matcher's state may hold"):
        save_state(tmp_path / "c.safetensors", {"value": value}, {})


def hostile(path: Path, module: str, name: str, fields: dict[str, Any]) -> Path:
    shape = {"record": [module, name], "fields": fields}
    save_tensors(path, {}, {"state": json.dumps(shape), "notes": "{}"})
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("pathlib", "Path"),
        ("ddbench.base.state", "sys.modules"),
        ("no.such.module", "Thing"),
        ("antigravity", "fly"),
        ("", ""),
        ("ddbench.run.stage", "Stage.solve"),
        ("ddbench.base.state", "__builtins__"),
    ],
)
def test_a_checkpoint_can_name_nothing_but_loaded_dataclasses(tmp_path, module, name):
    with pytest.raises(DataError, match="not a checkpoint of this version"):
        load_state(hostile(tmp_path / "c.safetensors", module, name, {}), CPU)


def test_a_checkpoint_imports_no_module(tmp_path):
    import sys

    with pytest.raises(DataError):
        load_state(hostile(tmp_path / "c.safetensors", "this", "Zen", {}), CPU)
    assert "this" not in sys.modules


def test_a_state_that_lacks_a_field_of_the_plugin_of_now_is_refused_with_what_to_do(tmp_path):
    made = hostile(tmp_path / "c.safetensors", Inner.__module__, "Inner", {"names": {"tuple": []}})
    with pytest.raises(DataError, match="delete it to start the stage again"):
        load_state(made, CPU)


def test_a_state_that_lacks_a_field_with_a_default_takes_the_default(tmp_path):
    made = hostile(tmp_path / "c.safetensors", Later.__module__, "Later", {"count": {"value": 3}})
    assert load_state(made, CPU)[0] == Later(3, "as it was")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', '{"tensor": "t9"}', '{"dict": 3}', '{"record": ["a"]}'])
def test_a_checkpoint_whose_shape_is_nonsense_is_a_data_error(tmp_path, text):
    save_tensors(tmp_path / "c.safetensors", {}, {"state": text, "notes": "{}"})
    with pytest.raises(DataError):
        load_state(tmp_path / "c.safetensors", CPU)


def test_a_truncated_checkpoint_is_a_data_error(tmp_path):
    path = tmp_path / "c.safetensors"
    save_state(path, state(), {})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="damaged"):
        load_state(path, CPU)


def test_notes_that_are_not_numbers_of_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path / "c.safetensors", None, {"loss": float("nan")})
    assert not (tmp_path / "c.safetensors").exists()


# -- earlier versions ------------------------------------------------------------------------------------------


def test_a_checkpoint_of_an_earlier_version_finds_its_classes_where_they_are_now(tmp_path):
    """They stood in ``ddbench.sets`` and ``ddbench.descent``, and so the file names them."""
    path = tmp_path / "c.safetensors"
    made = {"state": PixelState.start(torch.randn(2, 1, 4, 4), torch.eye(2), 0.01), "best": some_set(3, 3, lr=0.02)}
    save_state(path, made, {"step": 7})
    tensors, metadata = load_tensors(path)
    document = metadata["state"]
    for now, then in (
        (["ddbench.problem.synthetic", "SyntheticSet"], ["ddbench.sets", "SyntheticSet"]),
        (["ddbench.trajectory.descent", "PixelState"], ["ddbench.descent", "PixelState"]),
    ):
        assert document.count(json.dumps(now)) == 1
        document = document.replace(json.dumps(now), json.dumps(then))
    save_tensors(path, tensors, metadata | {"state": document})
    back, notes = load_state(path, CPU)
    assert (type(back["state"]), type(back["best"])) == (PixelState, SyntheticSet)
    assert same(back, made)
    assert notes == {"step": 7}
