"""Opening files: regular ones alone, texts with a bound, documents with a depth, and no link written through."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ddbench.base.opening import (
    DEEPEST,
    TEXT_BYTES,
    in_place,
    parse_json,
    parse_toml,
    read_bytes,
    read_text,
    reading,
    refuse_links,
    require_regular,
)
from ddbench.errors import DataError


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text"
    path.write_text("grün\n", encoding="utf-8")
    return path


@pytest.fixture
def odd(tmp_path) -> dict[str, Path]:
    """What is no regular file, by what it is called."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "led").symlink_to("fifo")
    return {
        "a named pipe": tmp_path / "fifo",
        "a folder": tmp_path / "folder",
        "a device": Path("/dev/zero"),
    }


def promptly(work):
    """What ``work`` returns or raises; a failure where it waits for a writer that never comes."""
    ended: list[object] = []

    def call() -> None:
        try:
            ended.append(work())
        except Exception as error:  # noqa: BLE001 - it is looked at
            ended.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    assert ended, "it waits"
    return ended[0]


READERS = {
    "require_regular": require_regular,
    "reading": lambda path: reading(path).__enter__(),
    "read_bytes": read_bytes,
    "read_text": read_text,
}


# -- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_by_its_kind_and_never_waited_for(odd, reader):
    for kind, path in odd.items():
        said = promptly(lambda path=path: READERS[reader](path))
        assert isinstance(said, DataError)
        assert str(said) == f"{path} is {kind}, not a regular file"


@pytest.mark.parametrize("reader", READERS)
def test_a_socket_is_refused(tmp_path, monkeypatch, reader):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(DataError, match=r"s is a socket, not|cannot read s: No such device"):
            READERS[reader](Path("s"))


@pytest.mark.parametrize("reader", READERS)
def test_a_link_to_a_pipe_is_refused_and_one_to_a_file_is_read(odd, text, tmp_path, reader):
    assert isinstance(promptly(lambda: READERS[reader](tmp_path / "led")), DataError)
    (tmp_path / "link").symlink_to(text)
    READERS[reader](tmp_path / "link")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "reason"), [("none", "does not exist"), ("\0", "null"), ("x" * 300, "too long"), ("text/x", "Not a dir")]
)
def test_a_file_that_cannot_be_opened_is_one_sentence_with_the_reason(text, reader, name, reason):
    with pytest.raises(DataError, match=rf"cannot read .*{reason}"):
        READERS[reader](text.parent / name)


def test_a_regular_file_tells_its_size_and_gives_its_bytes(text):
    assert require_regular(text).st_size == 6
    with reading(text) as stream:
        assert stream.read() == "grün\n".encode()
    assert stream.closed
    assert read_bytes(text) == "grün\n".encode()
    assert read_text(text) == "grün\n"


def test_a_text_has_at_most_as_many_bytes_as_it_may_have(text):
    assert read_bytes(text, 6) == text.read_bytes()
    assert read_text(text, 6) == "grün\n"
    for read in (read_bytes, read_text):
        with pytest.raises(DataError, match="has more than the 5 bytes that such a file may have"):
            read(text, 5)


def test_of_a_file_beyond_the_bound_little_more_than_the_bound_is_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # a hole, which reads as a terabyte of zeros
    with pytest.raises(DataError, match=f"more than the {TEXT_BYTES:,} bytes"):
        read_text(path)


def test_a_text_in_another_encoding_is_refused_with_the_place(tmp_path):
    path = tmp_path / "latin"
    path.write_bytes("grün".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin is not UTF-8 text \(byte 2\); save it as UTF-8"):
        read_text(path)


def test_an_error_while_reading_is_one_sentence(text, monkeypatch):
    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, *_):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdopen", lambda handle, *_: os.close(handle) or Broken())
    with pytest.raises(DataError, match=r"cannot read .*Input/output error"):
        read_bytes(text)


def test_no_handle_stays_open(odd, text):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (*odd.values(), text):
        for read in (read_text, read_bytes):
            with suppress(DataError):
                read(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- documents -------------------------------------------------------------------------------------------------


def lists(levels: int) -> str:
    return "[" * levels + "]" * levels


def objects(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("nested", [lists, objects])
def test_json_may_be_as_deep_as_it_says_and_no_deeper(nested):
    parse_json(nested(DEEPEST))
    for levels in (DEEPEST + 1, 990, 100_000):
        with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels deep"):
            parse_json(nested(levels))


def test_toml_may_be_as_deep_as_it_says_and_no_deeper():
    parse_toml(f"a = {lists(DEEPEST - 1)}")  # the document is a table itself
    for levels in (DEEPEST, 990, 100_000):
        with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels deep"):
            parse_toml(f"a = {lists(levels)}")
    with pytest.raises(ValueError, match="nested more than"):
        parse_toml(".".join("a" * (DEEPEST + 1)) + " = 1")


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_know_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is not a number of JSON"):
        parse_json(f'{{"loss": [{name}]}}')


def test_documents_are_what_the_standard_libraries_make_of_them():
    assert parse_json(b'{"a": [1, 2.5, null, true, "\\u00e4"]}') == {"a": [1, 2.5, None, True, "ä"]}
    assert parse_json("3") == 3
    assert parse_toml('a = [1, 2.5]\n[b]\nc = "ä"') == {"a": [1, 2.5], "b": {"c": "ä"}}


@pytest.mark.parametrize("words", ["", "{", "{'a': 1}", '{"a": 1} 2', "\ud800"])
def test_what_is_no_document_is_a_value_error(words):
    with pytest.raises(ValueError, match=r"."):
        parse_json(words)
    if words:
        with pytest.raises(ValueError, match=r"."):
            parse_toml(words + " =")


# -- writing in place ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "written", "left"),
    [("ab", b"x", b"oldx"), ("a+", "ä", "oldä".encode()), ("wb", b"x", b"x"), ("r+b", b"x", b"xld")],
)
def test_a_file_is_written_as_it_lies(tmp_path, mode, written, left):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = path.stat().st_ino
    with in_place(path, mode) as stream:
        stream.write(written)
    assert path.read_bytes() == left
    assert path.stat().st_ino == before


@pytest.mark.parametrize("mode", ["ab", "a+", "wb"])
def test_a_file_that_is_not_there_is_made_with_the_umasks_mode(tmp_path, mode):
    with in_place(tmp_path / "new", mode):
        pass
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_is_to_be_changed_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*it does not exist"), in_place(tmp_path / "none", "r+b"):
        pass
    with pytest.raises(DataError, match=r"cannot write .*it does not exist"), in_place(tmp_path / "no" / "n", "ab"):
        pass


@pytest.mark.parametrize("mode", ["ab", "a+", "wb", "r+b"])
def test_nothing_is_written_through_a_link(tmp_path, mode):
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "log").symlink_to(theirs)
    (folder / "dangling").symlink_to(tmp_path / "made")
    for name in ("log", "dangling"):
        said = rf"{name} is a link, and what it points at is not written to; delete the link"
        with pytest.raises(DataError, match=said), in_place(folder / name, mode):
            pass
    assert theirs.read_text() == "precious"
    assert not (tmp_path / "made").exists()


def test_a_link_on_the_way_is_refused_and_one_above_the_folder_is_not(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stage").symlink_to(tmp_path / "theirs")
    log = tmp_path / "run" / "stage" / "log"
    with pytest.raises(DataError, match="stage is a link"), in_place(log, "ab", within=tmp_path / "run"):
        pass
    assert not list((tmp_path / "theirs").iterdir())
    (tmp_path / "disk").symlink_to(tmp_path / "run")  # whoever keeps runs on another disk links the whole folder
    with in_place(tmp_path / "disk" / "log", "ab", within=tmp_path / "disk"):
        pass


def test_a_link_that_appears_after_the_look_is_refused_by_the_system(tmp_path, monkeypatch):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "theirs")
    monkeypatch.setattr("ddbench.base.opening.refuse_links", lambda *_: None)
    with pytest.raises(DataError, match="cannot write"), in_place(tmp_path / "log", "wb"):
        pass
    assert (tmp_path / "theirs").read_text() == "precious"


@pytest.mark.parametrize("path", ["a/../../out", "../out", "/etc/out"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, path):
    with pytest.raises(DataError, match=r"is not inside .*, and is not written to"):
        refuse_links(tmp_path / "in" / path, within=tmp_path / "in")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["ab", "a+", "wb", "r+b"])
def test_pipes_folders_and_devices_are_not_written_to_and_not_waited_for(odd, mode):
    for kind, path in odd.items():
        said = promptly(lambda path=path: in_place(path, mode).__enter__())
        assert isinstance(said, DataError), kind
        assert str(path) in str(said)


def test_a_pipe_with_a_reader_is_not_written_to_either(odd):
    pipe = odd["a named pipe"]
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(DataError, match="is a named pipe, and is not written to; delete it"), in_place(pipe, "ab"):
            pass
    finally:
        os.close(reader)
