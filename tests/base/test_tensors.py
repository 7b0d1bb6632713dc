"""Tensors in files: what comes back, damage, rows, and the digest of what a file holds."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch

from ddbench.base.tensors import (
    RowFile,
    content_digest,
    is_safetensors,
    load_tensors,
    read_labelled_row,
    save_tensors,
)
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


@pytest.mark.parametrize("extra", range(8))
def test_names_in_the_header_are_in_order_however_long_it_is(tmp_path, extra):
    """The library pads headers to multiples of eight: each remainder, and none."""
    metadata = {"z": "x" * extra, **{name: name for name in "gfedcba"}}
    orders = set()
    for i in range(5):
        save_tensors(tmp_path / f"{i}", {"x": torch.arange(3.0)}, metadata)
        raw = (tmp_path / f"{i}").read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        orders.add(tuple(header["__metadata__"]))
    assert orders == {tuple("abcdefgz")}
    assert torch.equal(load_tensors(tmp_path / "0")[0]["x"], torch.arange(3.0))


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
    for others in ((0, 3, 8), (0, 3, 6)):
        assert not RowFile(target, others, 5).begun  # other snapshots: not to be gone on with
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


@pytest.mark.parametrize("width", [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000])
def test_rows_begin_at_a_multiple_of_eight_bytes_and_few_are_lost_to_that(tmp_path, width):
    """Their header grows with the number of digits in it, and the format wants tensors aligned."""
    file = RowFile(tmp_path / "a.safetensors", (1, 2), width)
    file.create()
    with file.path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length)
    assert length % 8 == 0
    assert len(text) - len(text.rstrip()) < 8
    assert json.loads(text)["snapshots"] == {"dtype": "F32", "shape": [2, width], "data_offsets": [16, 16 + 8 * width]}
    assert file.path.stat().st_size == 8 + length + 16 + 8 * width


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.safetensors", b"", True),
        ("a.pt", b'\x08\0\0\0\0\0\0\0{"a', True),
        ("a.pt", b'\x08\0\0\0\0\0\0\0{"', True),
        ("a.pt", b"\x08\0\0\0\0\0\0\0{", False),
        ("a.pt", b'\x08\0\0\0\0\0\x01\0{"a', False),
        ("a.pt", b'\x08\0\0\0\0\0\0\x01{"a', False),
        ("a.pt", b'\x08\0\0\0\0\xff\0\0{"a', True),
        ("a.pt", b"\x08\0\0\0\0\0\0\0[1, 2]", False),
        ("a.pt", b"\x08\0\0\0\0\0\0\0zz", False),
        ("a.pt", b"\x08\0\0\0\0\0\0\0{a", False),
        ("a.pt", b"PK\x03\x04 and so on", False),
        ("z.zip", b"PK\x03\x04 and so on", False),
    ],
)
def test_a_safetensors_file_is_known_by_its_name_or_its_first_bytes(tmp_path, name, head, expected):
    (tmp_path / name).write_bytes(head)
    assert is_safetensors(tmp_path / name) is expected
    assert not is_safetensors(tmp_path / "none.safetensors")
    assert not is_safetensors(tmp_path)


def test_rows_that_are_not_there_or_cut_off_are_not_gone_on_with(tmp_path):
    file = RowFile(tmp_path / "a.safetensors", (1, 2), 3)
    assert not file.begun
    file.create()
    assert file.begun
    os.truncate(file.path, file.size - 1)
    assert not file.begun


def test_a_tensor_that_can_be_written_as_it_is_is_not_copied(tmp_path, peak_bytes):
    whole = torch.ones(1 << 20, dtype=torch.float64)

    def saved(tensor: torch.Tensor) -> int:
        return peak_bytes(lambda: (torch.ones(1), save_tensors(tmp_path / "file", {"x": tensor})))

    assert saved(whole) < 1 << 22
    assert saved(whole[1:]) > 1 << 22


def test_a_disk_that_is_full_is_a_data_error_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, {"x": torch.arange(3.0)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*file .*; free some space and run again"):
            save_tensors(path, {"x": torch.arange(100_000.0)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(load_tensors(path)[0]["x"], torch.arange(3.0))
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
