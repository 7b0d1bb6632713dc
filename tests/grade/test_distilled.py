"""The file that describes itself, and checkpoints: round trips to the bit, and refusals of anything else."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ddbench_networks import ConvNet
from hypothesis import given
from hypothesis import strategies as st
from tiny import spec
from torch import Tensor

from ddbench import Curriculum, Preprocessing, Recipe, SyntheticSet, Teaching
from ddbench.base.cache import home
from ddbench.base.state import load_state, save_state
from ddbench.base.tensors import content_digest, load_tensors, save_tensors
from ddbench.errors import DataError, UsageError
from ddbench.files.target import EvalOptions, evaluated
from ddbench.grade.distilled import FORMAT, Distilled
from ddbench.trajectory.descent import PixelState

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "öre")


def some_set(seed: int, count: int = 3, kind: str = "probability", **more: Any) -> SyntheticSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randn(count, 3, generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return SyntheticSet(images, labels.softmax(1) if kind == "probability" else labels, 0.02, kind, **more)


def distilled(preprocessing: Preprocessing | None = None, name: str = "toy") -> Distilled:
    sets = (some_set(0), some_set(1, kind="logit", label_type="learned"))
    about = {"dataset": {"name": name, "digest": "x"}, "selection": "validation", "spec": spec("random").record()}
    step = preprocessing or Preprocessing(torch.tensor([0.4]), torch.tensor([0.3]))
    teaching = Teaching(Recipe(batch=7, lr=0.03, momentum=0.9, augment=""), steps=11, phases=2)
    return Distilled(Curriculum(sets, ((0,), (0, 1))), step, CLASSES, (1, 8, 8), ConvNet(width=8), teaching, about)


@pytest.fixture
def path(tmp_path) -> Path:
    distilled().save(tmp_path / "distilled.safetensors")
    return tmp_path / "distilled.safetensors"


def test_a_set_comes_back_from_its_file_to_the_bit(path):
    made, back = distilled(), Distilled.load(path)
    for a, b in zip(made.curriculum.sets, back.curriculum.sets, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.lr, a.label_kind, a.label_type, a.digest) == (b.lr, b.label_kind, b.label_type, b.digest)
    assert back.curriculum.phases == made.curriculum.phases
    assert torch.equal(back.preprocessing.mean, made.preprocessing.mean)
    assert torch.equal(back.preprocessing.std, made.preprocessing.std)
    assert (back.classes, back.shape) == (CLASSES, (1, 8, 8))
    assert (back.network, back.teaching) == (ConvNet(width=8), made.teaching)
    assert back.about == made.about


def test_saving_the_same_set_twice_gives_the_same_bytes(path, tmp_path):
    distilled().save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_whitening_matrices_travel_with_the_set(tmp_path):
    pixels = torch.randint(256, (90, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    step = Preprocessing.fit(pixels, zca=True)
    distilled(step).save(tmp_path / "zca.safetensors")
    back = Distilled.load(tmp_path / "zca.safetensors").preprocessing
    assert back.kind == "zca"
    assert torch.equal(back(pixels), step(pixels))


def test_a_set_without_a_learning_rate_keeps_none(tmp_path):
    made = distilled()
    first = replace(made.curriculum.sets[0], lr=None)
    replace(made, curriculum=Curriculum((first,), ((0,),))).save(tmp_path / "f.safetensors")
    assert Distilled.load(tmp_path / "f.safetensors").curriculum.sets[0].lr is None


def test_the_file_says_what_it_is_in_plain_json(path):
    document = json.loads(load_tensors(path)[1]["ddbench"])
    options = {"width": 8, "depth": None, "norm": "instance", "activation": "relu", "pooling": "avg"}
    assert document["format"] == FORMAT
    assert document["classes"] == list(CLASSES)
    assert document["preprocessing"] == "meanstd"
    assert document["network"] == {"name": "convnet", "options": options}
    assert document["phases"] == [[0], [0, 1]]
    assert document["sets"][0]["decoder"] == {"factor": 1}
    assert document["training"]["steps"] == 11
    assert [s["label_kind"] for s in document["sets"]] == ["probability", "logit"]
    assert set(document["about"]["spec"]) >= {"seed", "matcher", "versions"}


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with parts of its document changed; None takes a part away."""
    tensors, metadata = load_tensors(path)
    document = json.loads(metadata["ddbench"]) | changes
    document = {k: v for k, v in document.items() if v is not None}
    save_tensors(path, tensors, {"ddbench": json.dumps(document)})
    return path


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    return {
        name: tuple(8 + size + at for at in entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


PARTS = [f"set{j}.{what}" for j in (0, 1) for what in ("images", "labels")]


@pytest.mark.parametrize("name", [*PARTS, "preprocessing.mean", "preprocessing.std"])
def test_one_flipped_bit_in_any_tensor_is_noticed(path, name):
    raw = bytearray(path.read_bytes())
    begin, end = tensor_offsets(path)[name]
    raw[(begin + end) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError):
        Distilled.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataError, match="damaged"):
        Distilled.load(path)


def test_any_damage_is_a_data_error_and_never_another_exception(path):
    raw = path.read_bytes()
    for at in range(0, len(raw), 37):
        damaged = bytearray(raw)
        damaged[at] ^= 0x11
        path.write_bytes(damaged)
        try:
            Distilled.load(path)
        except DataError:
            continue


def test_a_file_that_is_not_there_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Distilled.load(tmp_path / "none.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", {"w": torch.zeros(2)})
    with pytest.raises(DataError, match="not one that ddbench wrote"):
        Distilled.load(tmp_path / "weights.safetensors")


def test_a_newer_format_asks_for_an_update(path):
    with pytest.raises(DataError, match=f"format {FORMAT + 1}.*update"):
        Distilled.load(rewritten(path, format=FORMAT + 1))


@pytest.mark.parametrize("name", ["format", "sets", "phases", "classes", "shape", "network", "training"])
def test_a_file_without_one_of_its_parts_is_incomplete(path, name):
    with pytest.raises(DataError, match=name):
        Distilled.load(rewritten(path, **{name: None}))


def test_a_file_without_one_of_its_tensors_is_incomplete(path):
    tensors, metadata = load_tensors(path)
    for name in (*PARTS, "preprocessing.mean"):
        save_tensors(path, {k: v for k, v in tensors.items() if k != name}, metadata)
        with pytest.raises(DataError):
            Distilled.load(path)


def test_a_description_that_is_not_json_is_a_data_error(path):
    tensors, _ = load_tensors(path)
    for text in ("{", "[]", '"text"', ""):
        save_tensors(path, tensors, {"ddbench": text})
        with pytest.raises(DataError):
            Distilled.load(path)


def test_a_set_for_a_network_that_is_not_installed_names_it(path):
    with pytest.raises((DataError, UsageError), match="vgg"):
        Distilled.load(rewritten(path, network={"name": "vgg", "options": {}}))


def test_test_data_with_other_classes_are_refused(path):
    found = spec("random").dataset.load()
    with pytest.raises(DataError, match=r"cat, dog, öre.*'toy' has 0, 1, 2"):
        Distilled.load(path).check_dataset(found)


def test_test_data_of_another_size_are_refused_with_the_option_that_mends_it(path):
    found = replace(spec("random", dataset__size=16).dataset.load(), classes=CLASSES)
    with pytest.raises(DataError, match=r"\(1, 8, 8\).*\(1, 16, 16\).*-o dataset.size=8"):
        Distilled.load(path).check_dataset(found)


def test_fitting_test_data_are_accepted(path):
    Distilled.load(path).check_dataset(replace(spec("random").dataset.load(), classes=CLASSES))


def test_test_data_pass_through_the_preprocessing_of_the_set(tmp_path, monkeypatch):
    """A set made with other statistics is graded with those, not with the ones of the data at hand."""
    seen: list[Preprocessing] = []

    def predict(network: Any, vector: Tensor, data: Any) -> tuple[Tensor, Tensor]:
        seen.append(data.preprocessing)
        return torch.zeros(len(data), 3), data.targets

    monkeypatch.setattr("ddbench.grade.student.predict", predict)
    made = replace(distilled(), classes=("0", "1", "2"))
    made.save(tmp_path / "f.safetensors")
    evaluated(str(tmp_path / "f.safetensors"), tmp_path, EvalOptions(students=1))
    (used,) = seen
    assert torch.equal(used.mean, made.preprocessing.mean)
    assert torch.equal(used.std, made.preprocessing.std)


def test_the_same_images_with_another_preprocessing_are_another_evaluation(tmp_path):
    for mean in (0.4, 0.9):
        made = replace(distilled(Preprocessing(torch.tensor([mean]), torch.tensor([0.3]))), classes=("0", "1", "2"))
        made.save(tmp_path / f"{mean}.safetensors")
        evaluated(str(tmp_path / f"{mean}.safetensors"), tmp_path, EvalOptions(students=1))
    assert len(list(tmp_path.glob("*/evaluations/*.json")) + list((home() / "files").glob("*/evaluations/*.json"))) == 2


# --------------------------------------------------------------------------------- checkpoints


@dataclass
class Inner:
    values: Tensor
    names: tuple[str, ...] = ()


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
        torch.tensor(1.5), torch.tensor([True, False]), torch.arange(3, dtype=torch.uint8), torch.zeros(0, 4),
        torch.randn(4, 3).T, torch.randn(6)[::2], torch.randn(3).to(torch.bfloat16), torch.tensor([-0.0, torch.inf]),
    ],
    ids=["scalar", "bool", "uint8", "empty", "transposed", "strided", "bfloat16", "special"],
)  # fmt: skip
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


def test_a_set_and_the_state_of_a_trajectory_matcher_come_back(tmp_path):
    made = {"state": PixelState.start(torch.randn(2, 1, 4, 4), torch.eye(2), 0.01), "best": some_set(3)}
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
        ("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("pathlib", "Path"),
        ("ddbench.base.state", "sys.modules"), ("no.such.module", "Thing"), ("antigravity", "fly"),
        ("", ""), ("ddbench.run.stage", "Stage.solve"), ("ddbench.base.state", "__builtins__"),
    ],
)  # fmt: skip
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


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    """The library orders metadata anew in every process and file."""
    metadata = {name: f'{name} ä \u0007 \\ / "' for name in "abcdefgh"}
    for i in range(5):
        save_tensors(tmp_path / f"{i}.safetensors", {"x": torch.arange(3.0), "a": torch.eye(2)}, metadata)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(5)}) == 1
    tensors, read = load_tensors(tmp_path / "0.safetensors")
    assert read == metadata
    assert torch.equal(tensors["a"], torch.eye(2))
    assert torch.equal(tensors["x"], torch.arange(3.0))


def test_the_digest_of_a_file_is_that_of_its_tensors_alone(tmp_path):
    held = {
        "b.images": torch.arange(12.0).view(3, 4).t(),  # not contiguous
        "a.labels": torch.tensor([1, 2]),
        "c.half": torch.ones(2, dtype=torch.bfloat16),
        "d.scalar": torch.tensor(True),
        "e.none": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "one", held, {"version": "1"})
    save_tensors(tmp_path / "two", dict(reversed(held.items())), {"version": "2", "more": "words"})
    expected = hashlib.sha256()
    for name, dtype, shape, raw in (
        ("a.labels", "torch.int64", [2], np.array([1, 2]).tobytes()),
        ("b.images", "torch.float32", [4, 3], np.arange(12, dtype="f4").reshape(3, 4).T.tobytes("C")),
        ("c.half", "torch.bfloat16", [2], b"\x80\x3f\x80\x3f"),
        ("d.scalar", "torch.bool", [], b"\x01"),
        ("e.none", "torch.float32", [0, 3], b""),
    ):
        expected.update(f"{name} {dtype} {shape}\n".encode() + raw)
    assert content_digest(tmp_path / "one") == content_digest(tmp_path / "two") == expected.hexdigest()
    save_tensors(tmp_path / "other", held | {"a.labels": torch.tensor([2, 1])})
    assert content_digest(tmp_path / "other") != expected.hexdigest()
