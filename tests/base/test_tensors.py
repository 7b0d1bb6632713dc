"""Tensors in files: what comes back, damage, rows, and the digest of what a file holds."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from ddbench.base.tensors import RowFile, content_digest, load_tensors, read_labelled_row, save_tensors
from ddbench.errors import DataError


@pytest.fixture
def tensor_file(tmp_path):
    path = tmp_path / "file.safetensors"
    save_tensors(path, {"vector": torch.arange(6.0), "rows": torch.arange(6.0).view(3, 2).double()}, {"note": "hello"})
    return path


def test_tensors_come_back_with_their_metadata(tensor_file):
    tensors, metadata = load_tensors(tensor_file)
    assert torch.equal(tensors["vector"], torch.arange(6.0))
    assert torch.equal(tensors["rows"], torch.arange(6.0).view(3, 2).double())
    assert tensors["rows"].dtype == torch.float64
    assert metadata == {"note": "hello"}


def test_only_the_named_tensors_are_read(tensor_file):
    assert list(load_tensors(tensor_file, only=("rows",))[0]) == ["rows"]


def test_one_row_is_found_by_its_label(tmp_path):
    path = tmp_path / "rows.safetensors"
    save_tensors(path, {"labels": torch.tensor([7, 3, 5]), "rows": torch.arange(6.0).view(3, 2).double()})
    row, labels = read_labelled_row(path, "labels", 3, "rows")
    assert labels == [7, 3, 5]
    assert row is not None
    assert torch.equal(row, torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert read_labelled_row(path, "labels", 4, "rows") == (None, [7, 3, 5])
    assert read_labelled_row(tmp_path / "none.safetensors", "labels", 3, "rows") == (None, [])


def test_views_of_one_storage_are_saved_apart(tmp_path):
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "file", {"head": whole[:2], "tail": whole[4:], "transposed": whole.view(2, 3).T})
    tensors, _ = load_tensors(tmp_path / "file")
    assert torch.equal(tensors["tail"], torch.tensor([4.0, 5.0]))
    assert torch.equal(tensors["transposed"], whole.view(2, 3).T)


def test_loaded_tensors_outlive_and_do_not_change_the_file(tensor_file):
    tensors, _ = load_tensors(tensor_file)
    tensors["vector"].zero_()
    assert torch.equal(load_tensors(tensor_file)[0]["vector"], torch.arange(6.0))
    tensor_file.unlink()
    assert torch.equal(tensors["rows"][2], torch.tensor([4.0, 5.0], dtype=torch.float64))


def test_no_flipped_bit_in_the_header_gets_past_as_another_error(tensor_file):
    raw = tensor_file.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    refused = 0
    for bit in range(0, 8 * header, 3):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        tensor_file.write_bytes(damaged)
        try:
            load_tensors(tensor_file)
        except DataError:
            refused += 1
    assert refused > header  # most of them are noticed; a changed name or note cannot be


@pytest.mark.parametrize("byte", [0, 3, 8, 9])
def test_flipped_header_byte_is_a_data_error_with_the_way_out(tensor_file, byte):
    damaged = bytearray(tensor_file.read_bytes())
    damaged[byte] ^= 0xFF
    tensor_file.write_bytes(damaged)
    for read in (load_tensors, lambda path: read_labelled_row(path, "vector", 0, "rows")):
        with pytest.raises(DataError, match=r"file\.safetensors is damaged.*delete it"):
            read(tensor_file)


@pytest.mark.parametrize("length", [0, 4, 30, -1])
def test_truncated_tensor_file_is_a_data_error(tensor_file, length):
    tensor_file.write_bytes(tensor_file.read_bytes()[:length])
    with pytest.raises(DataError, match="damaged"):
        load_tensors(tensor_file)


def test_missing_tensor_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors")


def test_missing_tensor_in_a_file_is_a_data_error(tensor_file):
    with pytest.raises(DataError, match="damaged"):
        load_tensors(tensor_file, only=("nothing",))


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


def test_a_trajectory_takes_memory_for_one_row_and_is_whole_or_not_there(tmp_path):
    target = tmp_path / "000000.safetensors"
    file = RowFile(target, (0, 3, 7), 5)
    file.create()
    rows = {epoch: torch.arange(5.0) + epoch for epoch in (7, 0, 3)}
    for epoch, row in rows.items():
        assert not target.exists()
        file.write(epoch, row)
    assert file.begun
    assert not RowFile(target, (0, 3, 8), 5).begun  # other snapshots: not to be gone on with
    file.finish()
    tensors, _ = load_tensors(target)
    assert tensors["epochs"].tolist() == [0, 3, 7]
    assert torch.equal(tensors["snapshots"], torch.stack([rows[e] for e in (0, 3, 7)]))
    row, _ = read_labelled_row(target, "epochs", 3, "snapshots")
    assert row is not None
    assert torch.equal(row, rows[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_keep_their_bits(tmp_path, dtype):
    file = RowFile(tmp_path / "a.safetensors", (1,), 3, dtype)
    file.create()
    row = torch.tensor([1 / 3, -2.5, 1e-8], dtype=dtype)
    file.write(1, row)
    file.finish()
    assert torch.equal(load_tensors(file.target)[0]["snapshots"][0], row)
