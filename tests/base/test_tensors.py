"""Tensors in files: what comes back, damage, rows, and the digest of what a file holds."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from ddbench.base import tensors as tensors_module
from ddbench.base.cache import sweep
from ddbench.base.tensors import (
    RowFile,
    content_digest,
    is_safetensors,
    load_tensors,
    read_labelled_row,
    save_rows,
    save_tensors,
)
from ddbench.errors import DamagedError, DataError


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
    assert file.path.stat().st_size == 8 + length + 16 + 8 * width + 2 * 32  # and a digest of each row


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


# -- seals -----------------------------------------------------------------------------------------------------


def sealed_tensors(path: Path) -> None:
    held = {"vector": torch.arange(3.0), "b": torch.tensor([True, False]), "empty": torch.zeros(0, 2)}
    save_tensors(path, held, {"note": "ä", "step": "3"}, sealed=True)


def rows_one_by_one(path: Path) -> None:
    file = RowFile(path, (0, 3, 7), 3)
    file.create()
    for epoch in file.epochs:
        file.write(epoch, torch.arange(3.0) + epoch)
    file.finish()


def rows_at_once(path: Path) -> None:
    save_rows(path, [0, 3, 7], torch.stack([torch.arange(3.0) + epoch for epoch in (0, 3, 7)]))


SEALED = {"tensors": sealed_tensors, "rows one by one": rows_one_by_one, "rows at once": rows_at_once}


def content(path: Path) -> tuple:
    """All that callers see of a file."""
    tensors, metadata = load_tensors(path)
    named = sorted((name, str(t.dtype), list(t.shape), t.flatten().tolist()) for name, t in tensors.items())
    return named, {name: text for name, text in metadata.items() if name in ("note", "step")}


@pytest.fixture(params=["tensors", "rows one by one"])
def sealed_file(request, tmp_path) -> Path:
    path = tmp_path / "sealed.safetensors"
    SEALED[request.param](path)
    return path


def flipped(path: Path) -> Iterator[int]:
    """The file with each of its bits flipped in turn."""
    raw = path.read_bytes()
    with path.open("r+b", buffering=0) as stream:
        for bit in range(8 * len(raw)):
            for byte in (raw[bit // 8] ^ 1 << bit % 8, raw[bit // 8]):
                stream.seek(bit // 8)
                stream.write(bytes([byte]))
                if byte != raw[bit // 8]:
                    yield bit


def test_every_flipped_bit_of_a_sealed_file_is_damage_or_changes_nothing(sealed_file):
    """Its length, its header, its metadata, its data: every bit there is."""
    expected, harmless = content(sealed_file), 0
    for bit in flipped(sealed_file):
        try:
            seen = content(sealed_file)
        except DamagedError:
            continue
        assert seen == expected, bit
        harmless += 1
    assert harmless < 8 * 10  # at most the name of the seal, without which a file counts as one of an earlier version
    assert content(sealed_file) == expected


def test_every_flipped_bit_is_noticed_by_who_reads_a_row_or_the_labels_alone(tmp_path):
    path = tmp_path / "rows.safetensors"
    rows_at_once(path)
    for bit in flipped(path):
        with suppress(DamagedError):
            row, labels = read_labelled_row(path, "epochs", 3, "snapshots")
            assert row is not None, bit
            assert (row.tolist(), labels) == ([3, 4, 5], [0, 3, 7]), bit
        with suppress(DamagedError):
            assert load_tensors(path, only=("epochs",))[0]["epochs"].tolist() == [0, 3, 7], bit


def test_a_flipped_label_is_damage_and_neither_another_row_nor_one_that_is_not_there(tmp_path):
    """A flipped bit in an epoch would have experts trained to epoch 2^40."""
    path = tmp_path / "rows.safetensors"
    rows_one_by_one(path)
    raw = bytearray(path.read_bytes())
    place = 8 + int.from_bytes(raw[:8], "little") + 8 + 5
    raw[place] ^= 1
    path.write_bytes(raw)
    for read in (
        lambda: read_labelled_row(path, "epochs", 3, "snapshots"),
        lambda: read_labelled_row(path, "epochs", 0, "snapshots"),
        lambda: load_tensors(path, only=("epochs",)),
    ):
        with pytest.raises(DamagedError, match=r"rows\.safetensors is damaged: its tensor 'epochs' is not what was"):
            read()


def test_a_row_that_stands_under_another_label_is_damage(tmp_path):
    path = tmp_path / "rows.safetensors"
    rows_one_by_one(path)
    raw = path.read_bytes()
    first = raw.index(torch.arange(3.0).numpy().tobytes())
    path.write_bytes(raw[:first] + raw[first + 12 : first + 24] + raw[first : first + 12] + raw[first + 24 :])
    with pytest.raises(DamagedError, match="row 3 is not what was written"):
        read_labelled_row(path, "epochs", 3, "snapshots")
    assert read_labelled_row(path, "epochs", 7, "snapshots")[0] is not None


@pytest.mark.parametrize("written", ["sealed", "unsealed"])
def test_names_and_metadata_are_under_the_seal_and_files_without_one_are_read(tmp_path, written):
    path = tmp_path / "f"
    save_tensors(path, {"abc": torch.ones(2)}, {"state": "one"}, sealed=written == "sealed")
    for old, new in ((b"abc", b"abd"), (b"one", b"two")):
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b'"' + old, b'"' + new))
        if written == "sealed":
            with pytest.raises(DamagedError, match="its header is not what was written"):
                load_tensors(path)
            path.write_bytes(raw)
    if written == "unsealed":
        tensors, metadata = load_tensors(path)
        assert (list(tensors), metadata) == (["abd"], {"state": "two"})


def test_the_seal_covers_what_is_read_and_costs_nothing_for_the_rest(tmp_path):
    path = tmp_path / "f"
    save_tensors(path, {"a": torch.ones(2), "b": torch.full((2,), 7.0)}, sealed=True)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(torch.full((2,), 7.0).numpy().tobytes(), bytes(8)))
    assert load_tensors(path, only=("a",))[0]["a"].tolist() == [1, 1]
    with pytest.raises(DamagedError, match="its tensor 'b'"):
        load_tensors(path)


@pytest.mark.parametrize("text", ["", "[]", "[1]", "{", "[" * 5000, '{"": 3}', "null"])
def test_digests_that_are_none_are_damage(tmp_path, text):
    save_tensors(tmp_path / "f", {"a": torch.ones(2)}, {"sha256": text})
    with pytest.raises(DamagedError, match="f is damaged"):
        load_tensors(tmp_path / "f")


def counted(monkeypatch) -> list[int]:
    """How many numbers each digest was taken of."""
    seen: list[int] = []
    digest = tensors_module.tensor_digest
    monkeypatch.setattr(tensors_module, "tensor_digest", lambda t: seen.append(t.numel()) or digest(t))
    return seen


def test_what_a_process_reads_is_compared_once_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "_SETTLED", -1e9)  # as if all files were old
    rows, whole = tmp_path / "rows.safetensors", tmp_path / "whole.safetensors"
    rows_one_by_one(rows)
    sealed_tensors(whole)
    seen = counted(monkeypatch)
    for _ in range(3):
        read_labelled_row(rows, "epochs", 3, "snapshots")
    assert seen == [3, 3]  # the labels, and the row
    read_labelled_row(rows, "epochs", 7, "snapshots")
    assert seen == [3, 3, 3]
    del seen[:]
    for _ in range(3):
        load_tensors(whole)
    assert sorted(seen) == [0, 2, 3]
    sealed_tensors(whole)
    del seen[:]
    load_tensors(whole)
    assert sorted(seen) == [0, 2, 3], "another file has its place"


def test_a_file_that_changed_a_moment_ago_is_compared_again(tmp_path, monkeypatch):
    """Its times have a tick of milliseconds: a second change within it would not show."""
    sealed_tensors(tmp_path / "f")
    seen = counted(monkeypatch)
    load_tensors(tmp_path / "f")
    load_tensors(tmp_path / "f")
    assert len(seen) == 2 * 3


def test_rows_at_once_are_those_one_by_one(tmp_path):
    for name, write in (("a", rows_one_by_one), ("b", rows_at_once)):
        write(tmp_path / f"{name}.safetensors")
    assert content_digest(tmp_path / "a.safetensors") == content_digest(tmp_path / "b.safetensors")


def test_a_file_that_is_being_written_is_swept_by_nobody_and_reaches_the_disk(tmp_path, monkeypatch):
    """The library puts a file of its own in the place of the temporary one, which was locked."""
    synced, order, sync = [], tensors_module._in_order, os.fsync

    def swept(path: Path) -> None:
        sweep(tmp_path)
        order(path)

    monkeypatch.setattr(tensors_module, "_in_order", swept)
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), sync(handle)))
    save_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)})
    assert (tmp_path / "a.safetensors").stat().st_ino in synced
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_was_swept_before_it_was_locked_is_written_again(tmp_path, monkeypatch):
    real, claims = tensors_module.claimed, []

    def late(path: Path) -> int | None:
        claims.append(path)
        if len(claims) == 1:
            path.unlink()
        return real(path)

    monkeypatch.setattr(tensors_module, "claimed", late)
    save_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)})
    assert len(claims) == 2
    assert load_tensors(tmp_path / "a.safetensors")[0]["x"].tolist() == [0, 1, 2]
