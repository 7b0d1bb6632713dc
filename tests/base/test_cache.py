"""Bytes on disk that can be trusted: atomic writes, damaged files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddbench.base import cache as cache_module
from ddbench.base.cache import (
    SEAL,
    Cache,
    atomic_write,
    canonical,
    data_home,
    digest,
    file_digest,
    home,
    read_json,
    sweep,
    write_json,
)
from ddbench.base.progress import noting
from ddbench.errors import DamagedError, DataError, UsageError


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- digests -------------------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1, "b": [2, 3]}) != digest({"a": 1, "b": [3, 2]})


def test_digest_is_the_sha256_of_canonical_json_or_of_the_bytes():
    assert digest({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()
    assert digest(b"abc") == digest(memoryview(b"abc")) == hashlib.sha256(b"abc").hexdigest()


def test_not_a_number_has_no_canonical_text():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"lr": float("nan")})


def test_file_digest_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 300_000)
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"x" * 300_000).hexdigest()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache"
    assert data_home() == tmp_path / "cache" / "data"
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    assert data_home() == tmp_path / "data"


def test_a_user_without_a_home_is_told_to_name_a_cache_folder(monkeypatch):
    def nobody(_name):
        raise RuntimeError("could not determine the home directory for '~/.cache'")

    monkeypatch.delenv("DDBENCH_HOME", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", nobody)
    with pytest.raises(UsageError, match="no home folder to keep a cache in; set DDBENCH_HOME"):
        home()


def test_cache_folder_tells_what_it_was_made_for_and_differs_by_it(tmp_path):
    cache = Cache(tmp_path)
    first, second = cache.folder("experts", {"seed": 1}), cache.folder("experts", {"seed": 2})
    assert first != second
    assert first == cache.folder("experts", {"seed": 1})
    assert first != cache.folder("lessons", {"seed": 1})
    assert read_json(first / "identity.json") == {"seed": 1}


def test_identity_is_readable_json(tmp_path):
    folder = Cache(tmp_path).folder("lessons", {"seed": [1, "a"]})
    assert json.loads((folder / "identity.json").read_text()) == {"seed": [1, "a"]}
    assert names(folder) == ["identity.json"]


# -- atomic writing ------------------------------------------------------------------------------------------


def test_atomic_write_makes_folders_and_replaces_the_old_bytes(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    atomic_write(path, b"old and longer")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_failed_write_leaves_the_old_bytes_and_no_temporary_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(DataError, match=r"cannot write .*file: No space left on device"):
        atomic_write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_interrupted_write_leaves_the_old_bytes_and_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_new_bytes_are_complete_and_synced_before_they_take_the_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        events.append("sync")
        fsync(handle)

    def note_replace(source, target):
        assert Path(source).read_bytes() == b"new"
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    atomic_write(tmp_path / "file", b"new")
    assert events == ["sync", "rename", "sync"]  # the file, the rename, the folder


def test_full_disk_is_a_data_error(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*file.*free some space"):
            atomic_write(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_mode_of_a_written_file_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "file", b"")
    finally:
        assert os.umask(before) == umask  # writing did not change it
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_file_in_the_place_of_a_folder_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        atomic_write(tmp_path / "file" / "inside" / "it", b"")


def test_very_long_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


def test_json_comes_back_and_refuses_not_a_number(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"b": [1, 2.5, None], "a": "é"})
    assert read_json(path) == {"b": [1, 2.5, None], "a": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"b": float("inf")})
    assert read_json(path) == {"b": [1, 2.5, None], "a": "é"}


def test_json_is_written_for_readers_with_sorted_names(tmp_path):
    write_json(tmp_path / "file.json", {"b": [1], "a": None})
    assert (tmp_path / "file.json").read_text() == '{\n  "a": null,\n  "b": [\n    1\n  ]\n}\n'


def test_unreadable_json_is_a_data_error_that_names_the_file(tmp_path):
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"half\.json is not readable JSON"):
        read_json(tmp_path / "half.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes\.json is not UTF-8 text"):
        read_json(tmp_path / "bytes.json")
    with pytest.raises(DataError, match=r"cannot read .*none\.json"):
        read_json(tmp_path / "none.json")


# -- seals -----------------------------------------------------------------------------------------------------

RECORD = {
    "accuracy": 0.7361,
    "n": 5,
    "phases": ((0,), (0, 1)),
    "none": None,
    "text": "ä",
    "small": 1e-300,
    "zero": -0.0,
}


def test_a_sealed_record_comes_back_without_its_seal(tmp_path):
    write_json(tmp_path / "r.json", RECORD, sealed=True)
    assert read_json(tmp_path / "r.json") == RECORD | {"phases": [[0], [0, 1]]}
    assert SEAL in json.loads((tmp_path / "r.json").read_text())


def test_a_number_that_was_edited_is_damage_and_other_spaces_are_not(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, RECORD, sealed=True)
    text = path.read_text()
    path.write_text(text.replace("0.7361", "0.9361"))
    with pytest.raises(DamagedError, match=r"r\.json is damaged: it was edited, or a bit flipped.*; delete it"):
        read_json(path)
    path.write_text(json.dumps(json.loads(text)))
    assert read_json(path)["accuracy"] == 0.7361


def test_every_flipped_bit_of_a_sealed_record_is_damage_or_changes_nothing(tmp_path):
    path, expected = tmp_path / "r.json", {"a": 0.5, "b": [1, "x"]}
    write_json(path, expected, sealed=True)
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_json(path)
        except DataError:
            continue
        assert {name: found.get(name) for name in expected} == expected, bit


def test_records_of_earlier_versions_have_no_seal_and_are_read(tmp_path):
    write_json(tmp_path / "r.json", {"accuracy": 0.5})
    assert read_json(tmp_path / "r.json") == {"accuracy": 0.5}
    (tmp_path / "r.json").write_text('{"accuracy": 0.5, "seal": [1]}')
    with pytest.raises(DamagedError):
        read_json(tmp_path / "r.json")


def test_the_folder_of_a_cache_says_what_it_is_and_mends_a_note_that_does_not(tmp_path):
    cache, identity, said = Cache(tmp_path), {"a": (1, 2)}, []
    folder = cache.folder("kind", identity)
    assert read_json(folder / "identity.json") == {"a": [1, 2]}
    for words in ('{"a": [1, 3]}', "[]", "{", "\udcff"):
        (folder / "identity.json").write_text(words, errors="surrogateescape")
        cache_module._looked_at.clear()  # as another process
        with noting(said.append):
            assert cache.folder("kind", identity) == folder
            assert cache.folder("kind", identity) == folder
        assert read_json(folder / "identity.json") == {"a": [1, 2]}
    assert said == [f"{folder / 'identity.json'} is damaged; it is made again"] * 4
    (folder / "identity.json").unlink()
    cache.folder("kind", identity)
    assert read_json(folder / "identity.json") == {"a": [1, 2]}


# -- what killed writers leave ---------------------------------------------------------------------------------

ORPHAN = ".r.json.abcd_123.tmp"


def test_the_temporary_file_of_a_killed_writer_goes_when_its_file_is_written_again(tmp_path):
    (tmp_path / ORPHAN).write_text("half")
    others = [".r.json.tmp", ".other.json.abcd_123.tmp", "r.json.abcd_123.tmp", ".r.json.ABCD_123.tmp", ".x.tmp"]
    for name in others:
        (tmp_path / name).write_text("somebody's")
    write_json(tmp_path / "r.json", {})
    assert names(tmp_path) == sorted([*others, "r.json"])


def test_all_temporary_files_of_killed_writers_are_swept_from_a_folder_of_ours(tmp_path):
    for name in (ORPHAN, ".000001.partial.zzzzzzzz.tmp", "kept.json", ".lock"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.abcdefgh.tmp").mkdir()
    (tmp_path / ".link.abcdefgh.tmp").symlink_to(tmp_path / "kept.json")
    sweep(tmp_path)
    assert names(tmp_path) == [".folder.abcdefgh.tmp", ".link.abcdefgh.tmp", ".lock", "kept.json"]
    sweep(tmp_path / "none")


def test_the_temporary_file_of_a_writer_at_work_stays(tmp_path):
    with cache_module.atomic_file(tmp_path / "r.json") as temporary:
        temporary.write_text("{}")
        sweep(tmp_path)
        write_json(tmp_path / "r.json", {"other": 1})
        assert temporary.exists()
    assert read_json(tmp_path / "r.json") == {}
    assert names(tmp_path) == ["r.json"]


def test_a_process_that_is_killed_while_it_writes_leaves_what_the_next_one_sweeps(tmp_path):
    script = (
        "import os, pathlib, signal, sys; from ddbench.base.cache import atomic_file\n"
        "with atomic_file(pathlib.Path(sys.argv[1])) as t: t.write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "r.json")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == []
