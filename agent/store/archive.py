"""The container of snapshots: our own names, sizes and hashes in a table at the end, regular bytes only.

Layout: head; the files' bytes, one behind the other; the table (JSON); a trailer that says where the table
is and what its hash is. Reading trusts nothing: names must match one pattern, files must fill the container
exactly, and what is copied out is compared with its hash. A path is never taken from the container.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from agent.store.manifest import VectorState
from core.cluster import Collection
from core.errors import BadRequest

Kind = Literal["collection", "shard", "node"]

MAGIC = b"SHOALSNP"
FORMAT = 1
_HEAD = struct.Struct("<8sII")
_TRAILER = struct.Struct("<QQ32s8s")
_NAME = re.compile(r"\d{1,19}-\d{1,5}/(points\.db|vectors/\d{1,9}\.(f32|crc)|segments/[\w.]{1,120})")
_TABLE_BYTES_MAX = 64 << 20
_FILES_MAX = 100_000
_CHUNK_BYTES = 4 << 20
_ROOM_EVERY_BYTES = 64 << 20


class Entry(Struct, frozen=True):
    """One file: where its bytes are, and their blake2b (32 bytes)."""

    name: str
    offset: int
    size_bytes: int
    hash: str


class SavedShard(Struct, frozen=True):
    """A shard as of the entry `applied` of its log. Slots slot_low..slot_high-1 have rows in the files."""

    number: int
    applied: int
    slot_low: int
    slot_high: int
    points: int
    vectors: dict[int, VectorState]


class SavedCollection(Struct, frozen=True):
    """`shard_count`: of the whole collection, also if only one shard is here."""

    collection: Collection
    aliases: tuple[str, ...]
    shard_count: int
    shards: tuple[SavedShard, ...]


class Table(Struct, frozen=True):
    kind: Kind
    cluster: str
    made_us: int
    collections: tuple[SavedCollection, ...]
    files: tuple[Entry, ...] = ()


class ArchiveWriter:
    """Writes a container to a new file. Raises OSError, and what `check_room` raises."""

    def __init__(self, path: Path, check_room: Callable[[], None]) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._check_room = check_room
        self._room_at = 0
        self._offset = 0
        self._all = hashlib.sha256()
        self._entries: list[Entry] = []
        self._put(_HEAD.pack(MAGIC, FORMAT, 0))

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        assert _NAME.fullmatch(name), name
        begin, digest = self._offset, hashlib.blake2b(digest_size=32)
        for chunk in chunks:
            digest.update(chunk)
            self._put(chunk)
        self._entries.append(Entry(name, begin, self._offset - begin, digest.hexdigest()))

    def finish(self, table: Table) -> tuple[int, str]:
        """Writes the table with the files that were added, fsyncs. Size and sha256 of the whole file."""
        encoded = msgspec.json.encode(msgspec.structs.replace(table, files=tuple(self._entries)))
        at = self._offset
        self._put(encoded)
        self._put(_TRAILER.pack(at, len(encoded), hashlib.sha256(encoded).digest(), MAGIC))
        os.fsync(self._fd)
        return self._offset, self._all.hexdigest()

    def close(self) -> None:
        os.close(self._fd)

    def _put(self, data: bytes | memoryview) -> None:
        if self._offset >= self._room_at:
            self._check_room()
            self._room_at = self._offset + _ROOM_EVERY_BYTES
        self._all.update(data)
        self._offset += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class ArchiveReader:
    """A container whose table was checked. Raises BadRequest for one that is not whole, or is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.table = self._read_table()
        except BaseException:
            os.close(self._fd)
            raise
        self._by_name = {entry.name: entry for entry in self.table.files}

    def close(self) -> None:
        os.close(self._fd)

    def entry(self, name: str) -> Entry:
        found = self._by_name.get(name)
        if found is None:
            raise _bad(f"its file {name} is missing")
        return found

    def total_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.table.files)

    def sha256(self) -> str:
        """Of the whole file."""
        size = os.fstat(self._fd).st_size
        digest = hashlib.sha256()
        for chunk in _read(self._fd, 0, size):
            digest.update(chunk)
        return digest.hexdigest()

    def copy(self, name: str, target: Path, *, at: int = 0) -> None:
        """The file's bytes into the new file `target`, from offset `at` on, fsynced. Checks the hash."""
        entry = self.entry(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(target, flags, 0o640)
        try:
            digest = hashlib.blake2b(digest_size=32)
            for chunk in _read(self._fd, entry.offset, entry.size_bytes):
                digest.update(chunk)
                view, offset = memoryview(chunk), at
                while view:
                    done = os.pwrite(fd, view, offset)
                    view, offset = view[done:], offset + done
                at += len(chunk)
            os.ftruncate(fd, at)
            os.fsync(fd)
        finally:
            os.close(fd)
        if digest.hexdigest() != entry.hash:
            raise _bad(f"its file {name} does not match its hash")

    def _read_table(self) -> Table:
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size < _HEAD.size + _TRAILER.size:
            raise _bad("it is too short, or no regular file")
        magic, version, reserved = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))
        end = info.st_size - _TRAILER.size
        at, length, digest, last = _TRAILER.unpack(os.pread(self._fd, _TRAILER.size, end))
        if magic != MAGIC or last != MAGIC:
            raise _bad("it does not begin and end like a snapshot of Shoal: it is another file, or cut short")
        if version != FORMAT or reserved:
            raise _bad(f"it has format {version}, this version of Shoal reads {FORMAT}")
        if length > _TABLE_BYTES_MAX or at + length != end or at < _HEAD.size:
            raise _bad("its table is not where its end says")
        encoded = os.pread(self._fd, length, at)
        if hashlib.sha256(encoded).digest() != digest:
            raise _bad("its table does not match its hash")
        try:
            table = msgspec.json.decode(encoded, type=Table)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise _bad(f"its table cannot be read: {str(e)[:200]}") from None
        _check_entries(table.files, at)
        return table


def _check_entries(entries: tuple[Entry, ...], end: int) -> None:
    if len(entries) > _FILES_MAX:
        raise _bad(f"it has {len(entries)} files, at most {_FILES_MAX} are read")
    expected, names = _HEAD.size, set[str]()
    for entry in entries:
        if not _NAME.fullmatch(entry.name) or entry.name in names:
            raise _bad(f"its file name {entry.name[:60]!r} is not one that Shoal gives, or comes twice")
        if entry.offset != expected or entry.size_bytes < 0:
            raise _bad(f"its file {entry.name} is at {entry.offset}, expected {expected}")
        names.add(entry.name)
        expected += entry.size_bytes
    if expected != end:
        raise _bad(f"its files end at {expected}, its table begins at {end}")


def _read(fd: int, offset: int, size: int) -> Iterable[bytes]:
    while size:
        chunk = os.pread(fd, min(size, _CHUNK_BYTES), offset)
        if not chunk:
            raise _bad("it became shorter while it was read")
        yield chunk
        offset, size = offset + len(chunk), size - len(chunk)


def _bad(why: str) -> BadRequest:
    return BadRequest(f"Wrong input: the snapshot cannot be used: {why}")
