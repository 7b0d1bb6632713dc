"""Zips and tars as names and places. They are untrusted: nothing is extracted, and what inflates is bounded.

Links and devices in an archive are never followed. A member that is named twice cannot be told apart.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ddbench import DataError, report
from ddbench.base import cache
from ddbench.data.pictures import Broken, read
from ddbench_datasets.places import Place, oversize

# An archive of photos is about as large as the photos, and one of blank bitmaps a hundred times smaller.
RATIO = 200  # bytes unpacked per byte of the archive,
HARMLESS = 1_000_000_000  # if it unpacks to more than this
HEADER = 1_000_000  # bytes that a tar may want to describe one member
WORTH_KEEPING = 100_000_000  # bytes of an archive whose sha256 is kept
LINK = "is a link, which is not followed in an archive; pack it again with the files themselves"
TWICE = "is in the archive twice, so which one is meant is unclear; pack it again"
CHECKSUM = "cannot be read (the zip's checksum is another)"
OPEN: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
PACKED = (zlib.error, lzma.LZMAError, EOFError, OSError)  # what unpacking damaged bytes raises,
HEADERS = (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, LookupError)
DAMAGED = (*PACKED, *HEADERS, OverflowError)  # and what reading damaged headers does


def is_tar(path: Path) -> bool:
    """By content, since a tar may end with a zip; ``.tar`` itself or packed by gzip, bzip2 or xz."""
    try:
        with _unpacked(path) as stream:
            tarfile.TarInfo.frombuf(stream.read(512), "utf-8", "surrogateescape")
    except DAMAGED:
        return False
    return True


def sha256(path: Path) -> str:
    """The digest of an archive; that of a large one is kept until the file changes."""
    status = path.stat()
    if status.st_size < WORTH_KEEPING:
        return cache.file_digest(path)
    identity = [str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    kept = cache.home() / "datasets" / "archives" / f"{cache.digest(identity)[:20]}.json"
    with suppress(Broken, ValueError, TypeError, KeyError):  # damaged: it is read again
        known = json.loads(read(kept))["sha256"]
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    report("reading the archive", 0, 1)
    cache.write_json(kept, {"path": str(path), "sha256": (digest := cache.file_digest(path))})
    report("reading the archive", 1, 1)
    return digest


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive: where it begins, what it unpacks to, and what is wrong with it, if anything."""

    offset: int
    size: int
    fault: str | None
    info: zipfile.ZipInfo | None = None


class _Archive:
    """What zips and tars have in common: members by name, in the order in which they are stored."""

    def __init__(self, path: Path) -> None:
        self.ignored: list[str] = []
        self._path = path
        self._folders: list[str] = []
        self._members: dict[str, _Member] = {}

    def names(self) -> list[str]:
        return [*self._folders, *self._members]

    def identity(self) -> Any:
        return {"sha256": sha256(self._path)}

    def size(self, name: str) -> int:
        return self._members[name].size

    def order(self, names: Sequence[str]) -> list[int]:
        return sorted(range(len(names)), key=lambda i: self._members[names[i]].offset)

    def _add(self, name: str, member: _Member) -> None:
        name = name.replace("\\", "/").removeprefix("./")
        known = self._members.get(name)
        self._members[name] = replace(known, fault=TWICE) if known else member


class Zip(_Archive):
    """The members of a zip, by its directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        _refuse_bomb(path, _most(path), sum(member.file_size for member in members))
        for member in members:
            if member.filename.endswith("/"):  # is_dir() wants a name
                self._folders.append(member.filename.replace("\\", "/").removeprefix("./"))
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                self.ignored.append(member.filename)
            self._add(member.filename, _Member(member.header_offset, member.file_size, _fault(member), member))

    def places(self, names: Sequence[str]) -> Iterator[Place]:
        with explained(self._path), zipfile.ZipFile(self._path) as archive:
            for name in names:
                yield _unzipped(archive, self._members[name])


def _fault(member: zipfile.ZipInfo) -> str | None:
    """Why a member of a zip is not to be read, if there is a reason."""
    if stat.S_ISLNK(member.external_attr >> 16):
        return LINK
    if member.flag_bits & 1:
        return "is encrypted; unpack the zip and pass the folder"
    if fault := oversize(member.file_size):
        return fault
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {member.compress_type}; pack the zip again with the usual one, deflate"
    return oversize(member.compress_size)


def _unzipped(archive: zipfile.ZipFile, member: _Member) -> Place:
    fault = member.fault
    if fault is None:
        assert member.info is not None
        try:
            with archive.open(member.info) as stream:
                data = stream.read(member.size + 1)  # that much inflates at most, whatever it holds
            if len(data) == member.size:
                return Place(size=len(data), data=data)
            fault = CHECKSUM
        except zipfile.BadZipFile as error:
            fault = CHECKSUM if "CRC" in str(error) else "is not where the zip's directory says; the zip is damaged"
        except EOFError:
            fault = "cannot be read (the archive ends before it)"
        except (*DAMAGED, RuntimeError) as error:
            fault = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return Place(fault=fault)


class Tar(_Archive):
    """The members of a tar, found by one pass over it, and read by another."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._listed = False

    def names(self) -> list[str]:
        self._list()
        return super().names()

    def places(self, names: Sequence[str]) -> Iterator[Place]:
        self._list()
        with _unpacked(self._path) as stream, explained(self._path):
            for name in names:
                member = self._members[name]
                if member.fault:
                    yield Place(fault=member.fault)
                    continue
                stream.seek(member.offset)
                data = stream.read(member.size)
                if len(data) != member.size:
                    raise tarfile.ReadError("it ends too early")
                yield Place(size=len(data), data=data)

    def _list(self) -> None:
        """Not before it is needed: of a packed tar all bytes have to be unpacked for it."""
        if self._listed:
            return
        with _unpacked(self._path) as stream, explained(self._path):
            for member in _walk(stream):
                if member.isdir():
                    self._folders.append(member.name.removeprefix("./").rstrip("/") + "/")
                    continue
                fault = oversize(member.size)
                if not member.isreg() or member.issparse():
                    fault = LINK if member.issym() or member.islnk() else "is not a plain file"
                    self.ignored.append(member.name)
                self._add(member.name, _Member(member.offset_data, member.size, fault))
        self._listed = True


@dataclass
class _Stream:
    """An unpacked tar, read forward, that refuses to become much larger than its file."""

    raw: IO[bytes]
    path: Path
    most: int

    def read(self, size: int) -> bytes:
        data = self.raw.read(size)
        self.tell()
        return data

    def tell(self) -> int:
        at = self.raw.tell()
        _refuse_bomb(self.path, self.most, at)
        return at

    def seek(self, offset: int) -> int:
        _refuse_bomb(self.path, self.most, offset)
        return self.raw.seek(offset)


class _Headers(_Stream):
    """The same for reading headers, none of which is large; a member's own bytes are skipped."""

    def read(self, size: int) -> bytes:
        if size > HEADER:
            raise DataError(f"{self.path} describes a member by {size / 1e6:.0f} MB; it is damaged, or a bomb")
        return super().read(size)


def _walk(stream: _Stream) -> Iterator[tarfile.TarInfo]:
    """The members, without keeping them. Raises TarError where the archive ends or breaks off too early."""
    headers = _Headers(stream.raw, stream.path, stream.most)
    archive = tarfile.TarFile(fileobj=headers, errorlevel=2)  # type: ignore[arg-type]
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[assignment]  # a million of them take gigabytes
        yield member
    headers.seek(archive.offset)
    if any(headers.read(512)):  # tarfile takes a broken header for the end
        raise tarfile.ReadError("there is something else where a member's header should be")
    while headers.read(HEADER):
        pass  # the checksum of a packed archive comes last


def _most(path: Path) -> int:
    return max(HARMLESS, RATIO * path.stat().st_size)


def _refuse_bomb(path: Path, most: int, size: int) -> None:
    if size > most:
        raise DataError(
            f"{path} unpacks to {size / 1e9:.1f} GB or more, over {RATIO} times its size: no archive of images does; "
            "if it is one, unpack it and pass the folder"
        )


def _opener(path: Path) -> Callable[..., Any] | None:
    with path.open("rb") as stream:
        start = stream.read(8)
    return next((opener for mark, opener in OPEN.items() if start.startswith(mark)), None)


@contextmanager
def _unpacked(path: Path) -> Iterator[_Stream]:
    with (_opener(path) or Path.open)(path, mode="rb") as raw:
        yield _Stream(raw, path, _most(path))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What readers of archives raise, as the sentence that the archive is damaged."""
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is a damaged archive ({reason}); get it again") from error
