"""Other people's files of tensors: what is in them is read, what they want to run is not."""

from __future__ import annotations

import os
import pickle
import subprocess
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused
from torch import Tensor, nn

from ddbench.errors import DataError
from ddbench.files.arrays import arrays, is_npz
from ddbench.files.safe_load import is_torch, load, natural, pictures

GENERATOR = torch.Generator().manual_seed(0)


def saved(path: Path, value: Any, **how: Any) -> Path:
    torch.save(value, path, **how)
    return path


def refusal(path: Path) -> str:
    text = refused(lambda: load(path))
    assert str(path) in text
    return text


class Hostile:
    """Runs a function when it is unpickled by anything that unpickles."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


OLD = {"_use_new_zipfile_serialization": False}
WAYS = [{}, OLD, {"pickle_protocol": 4}, OLD | {"pickle_protocol": 4}]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "old"])
def test_tensors_numbers_and_containers_come_back_as_they_were(tmp_path, how):
    value = {
        "data": [[torch.randn(2, 3, 4, 4), torch.arange(2)]],
        "name": "ConvNet",
        "flags": (True, None, 3, 0.5),
        "state": OrderedDict(w=torch.zeros(2, dtype=torch.float16)),
        "view": torch.randn(4, 3).T,
        "empty": torch.zeros(0),
    }
    assert same(load(saved(tmp_path / "a.pt", value, **how)), dict(value, state=dict(value["state"])))


def test_parameters_come_back_as_plain_tensors(tmp_path):
    back = load(saved(tmp_path / "a.pt", [nn.Parameter(torch.ones(2))]))
    assert type(back[0]) is Tensor
    assert not back[0].requires_grad


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", ">f8", ">i2"])
def test_numbers_and_arrays_of_numpy_come_back_exactly(tmp_path, kind):
    array = np.array([[0, 1, 2], [3, 4, 100]]).astype(kind)
    value = {"scalar": array[1, 2], "array": array, "fortran": np.asfortranarray(array)}
    back = load(saved(tmp_path / "a.pt", value))
    assert back["scalar"] == array[1, 2].item()
    for name in ("array", "fortran"):
        assert np.array_equal(back[name], value[name])


def test_numbers_of_numpy_before_version_2_are_read(tmp_path):
    path, old = saved(tmp_path / "a.pt", {"accs": [np.float64(0.625)]}), tmp_path / "old.pt"
    rewrite(path, old, lambda raw: raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load(old) == {"accs": [0.625]}


def rewrite(path: Path, to: Path, change: Any) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(to, "w") as target:
        for record in source.infolist():
            raw = source.read(record)
            target.writestr(record.filename, change(raw) if record.filename.endswith(".pkl") else raw)
    return to


@pytest.mark.parametrize("how", WAYS, ids=["zip", "old", "zip4", "old4"])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "posix.system"), (eval, "eval"), (subprocess.Popen, "Popen"), (os.mkdir, "mkdir")],
)
def test_what_a_file_wants_to_run_is_named_and_not_run(tmp_path, how, function, named):
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')" if function is eval else str(canary)
    code = f"touch {canary}" if function is os.system else code
    for wrapped in (Hostile(function, code), {"data": [[torch.zeros(2), Hostile(function, code)]]}):
        text = refusal(saved(tmp_path / "a.pt", wrapped, **how))
        assert named in text
        assert "safetensors" in text
    assert not canary.exists()


def test_a_plain_pickle_is_refused_before_it_is_loaded(tmp_path):
    for protocol in range(6):
        path = tmp_path / "a.pt"
        path.write_bytes(pickle.dumps(Hostile(os.system, f"touch {tmp_path}/canary"), protocol))
        refusal(path)
    assert not (tmp_path / "canary").exists()


def test_objects_of_other_classes_are_refused_by_name(tmp_path):
    assert "torch.nn.modules.linear.Linear" in refusal(saved(tmp_path / "a.pt", nn.Linear(1, 1)))
    assert "pathlib" in refusal(saved(tmp_path / "a.pt", {"x": Path("a")}))


def test_names_that_numpy_or_torch_would_unpickle_are_refused_too(tmp_path):
    assert "not a plain number" in refusal(saved(tmp_path / "a.pt", np.array([{}], dtype=object)))
    assert "not a plain number" in refusal(saved(tmp_path / "a.pt", np.array(["text"])))
    assert "bytearray" in refusal(saved(tmp_path / "a.pt", bytearray(3)))


def odd_tensors() -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sparse": torch.eye(3).to_sparse(),
            "csr": torch.eye(3).to_sparse_csr(),
            "meta": torch.ones(2, device="meta"),
            "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "expanded": torch.ones(1).expand(10**9),
        }


@pytest.mark.parametrize("name", ["sparse", "csr", "meta", "quantised", "expanded"])
def test_tensors_that_are_not_dense_are_refused(tmp_path, name):
    assert "tensor" in refusal(saved(tmp_path / "a.pt", {"images": odd_tensors()[name]}))


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = saved(tmp_path / "a.pt", torch.ones(4))
    refusal(rewrite(path, tmp_path / "b.pt", lambda raw: raw.replace(b"K\x04", b"K\xf4")))
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
        target.writestr("archive/data/1", bytes(10**7))
    assert "more bytes" in refusal(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\n  <HTML>no</HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\0" * 257 + b"ustar" + b"\0" * 400, "tar"),
        (b"PK\x03\x04 and nothing", "damaged"),
        (b"junk", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80", "damaged"),
        (b"PK\x05\x06" + b"\0" * 18, "no data.pkl"),
    ],
)
def test_what_is_no_file_of_tensors_is_said(tmp_path, raw, said):
    (tmp_path / "a.pt").write_bytes(raw)
    assert said in refusal(tmp_path / "a.pt")


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.pt")
    assert "is a folder" in refusal(tmp_path)


def test_a_list_that_holds_itself_ends(tmp_path):
    loop: list[Any] = [torch.zeros(1)]
    loop.append(loop)
    back = load(saved(tmp_path / "a.pt", loop))
    assert back[1] is back


def test_repeated_references_are_read_once(tmp_path):
    value: Any = [torch.zeros(1)]
    for _ in range(60):  # as a tree, 2 to the 60
        value = [value, value]
    assert isinstance(load(saved(tmp_path / "a.pt", value)), list)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("raw")
    value = {"data": [[torch.randn(2, 1, 3, 3, generator=GENERATOR), torch.arange(2)]], "accs": np.float64(0.5)}
    files = {"zip.pt": saved(folder / "zip.pt", value), "old.pt": saved(folder / "old.pt", value, **OLD)}
    np.savez(folder / "a.npz", images=np.ones((2, 1, 3, 3), np.float32), labels=np.eye(2))
    np.savez_compressed(folder / "b.npz", images=np.ones((2, 1, 3, 3), np.float32), labels=np.eye(2))
    files |= {name: folder / name for name in ("a.npz", "b.npz")}
    return {name: path.read_bytes() for name, path in files.items()}


def harmless(path: Path) -> None:
    try:
        arrays(path) if path.suffix == ".npz" else load(path)
    except DataError:
        return


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "a.npz", "b.npz"])
@given(data=st.data())
@settings(max_examples=80)
def test_a_damaged_file_is_read_or_a_data_error_and_nothing_else(tmp_path_factory, raw, name, data):
    path, whole = tmp_path_factory.getbasetemp() / f"damaged-{name}", bytearray(raw[name])
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for at in data.draw(st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=4)):
        if whole:
            whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    harmless(path)
    is_torch(path)
    is_npz(path)


def test_a_flipped_bit_in_the_numbers_is_noticed(tmp_path):
    path = saved(tmp_path / "a.pt", torch.ones(1000))
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"\x00\x00\x80\x3f" * 20) + 40] ^= 8
    path.write_bytes(whole)
    assert "checksum" in refusal(path)


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([Hostile(os.system, f"touch {tmp_path}/canary")], dtype=object))
    with pytest.raises(DataError, match="objects"):
        arrays(tmp_path / "a.npz")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["f4", "f8", ">f4", "i8", "u1", "?"])
def test_arrays_come_back_as_tensors(tmp_path, kind):
    array = np.arange(6).reshape(2, 3).astype(kind)
    np.savez(tmp_path / "a.npz", a=array, text=np.array("words"))
    back, _ = arrays(tmp_path / "a.npz")
    assert list(back) == ["a"]
    assert np.array_equal(back["a"].numpy(), array)


def test_pictures_are_read_to_the_level_and_a_broken_one_is_named(tmp_path):
    levels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels[..., 0]).save(tmp_path / "b.png")
    made = pictures([tmp_path / "a.png", tmp_path / "b.png"])
    assert torch.equal((made[0] * 255).round().permute(1, 2, 0).byte(), torch.from_numpy(levels))
    assert torch.equal(made[1, 0], made[1, 2])
    assert pictures([tmp_path / "b.png"]).shape == (1, 1, 4, 4)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])
    with pytest.raises(DataError, match=r"c\.png"):
        pictures([tmp_path / "c.png"])
    Image.fromarray(levels[:3]).save(tmp_path / "d.png")
    with pytest.raises(DataError, match="4x3 pixels"):
        pictures([tmp_path / "a.png", tmp_path / "d.png"])


def test_files_are_in_the_order_of_their_numbers():
    names = ["b1", "a10", "a2", "a007", "a2b", "a", "7"]
    assert [p.name for p in natural(map(Path, names))] == ["7", "a", "a2", "a2b", "a007", "a10", "b1"]
