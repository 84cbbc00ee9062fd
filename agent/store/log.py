"""The log on disk: append, group fsync, roll, cut. What is found at a start is read by log_reading.py.

A file is `<first seq>.log`: a header, then entries padded to 8 bytes. `synced` in an entry is the seq
known to be fsynced when it was written: an unreadable entry that a later one knows to be synced is
damage, one that none knows of was torn by a crash.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from agent.store.files import Files
from agent.store.formats import refused_format
from core.errors import Damaged, NoRoom, Unavailable
from core.replication.log import Entry, Position

MAGIC = b"SHOALLOG"
FORMAT = 1
FILE_BYTES_MAX = 64 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STEP_MIN, _STEP_MAX, _STEP_PART = 256 << 10, 8 << 20, 4

HEADER = struct.Struct("<8sII6Q")
"""magic, format, crc32 of the format and what follows, collection, shard, incarnation, history, base term,
base seq. Where these 64 bytes are, and what the crc covers, holds for every format to come."""
ENTRY = struct.Struct("<II4Q16s16sII")
"""length of the op, crc32, term, seq, time µs, synced, request id, body hash, number, schema"""
CRC_FROM = 8
"""An entry's checksum covers what comes after its length and itself, and the length."""
SEQ_AT = 16
"""Where the seq is in an entry, a multiple of 8: what a search for entries behind damage looks at."""
ID_BYTES = 16


class LogOwner(NamedTuple):
    """Whose log it is; in the header of each of its files."""

    collection: int
    shard: int
    incarnation: int
    history: int


def padded(size: int) -> int:
    return (size + 7) & ~7


def encode_entry(entry: Entry, synced: int) -> tuple[bytes, bytes, bytes]:
    """The entry as pieces to write: its head, its op, its padding."""
    rest = ENTRY.pack(
        len(entry.op), 0, entry.term, entry.seq, entry.time_us, synced,
        entry.request_id, entry.body_hash, entry.number, entry.schema,
    )  # fmt: skip
    crc = entry_crc(rest, entry.op)
    head = rest[:4] + crc.to_bytes(4, "little") + rest[8:]
    return head, entry.op, bytes(padded(len(entry.op)) - len(entry.op))


def entry_crc(head: bytes | memoryview, op: bytes | memoryview) -> int:
    return zlib.crc32(op, zlib.crc32(head[CRC_FROM:], zlib.crc32(head[:4])))


def encode_header(owner: LogOwner, base: Position) -> bytes:
    body = HEADER.pack(MAGIC, FORMAT, 0, *owner, *base)[16:]
    return MAGIC + struct.pack("<II", FORMAT, _header_crc(FORMAT, body)) + body


def _header_crc(version: int, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(version.to_bytes(4, "little")))


def decode_header(path: Path, raw: bytes | memoryview) -> tuple[LogOwner, Position]:
    """Raises Damaged, and StartRefused if it is whole and of a later format."""
    if len(raw) < HEADER.size:
        raise Damaged(f"{path}: {len(raw)} bytes are no log file; its header has {HEADER.size}")
    magic, version, crc, *fields = HEADER.unpack_from(raw)
    if magic != MAGIC or crc != _header_crc(version, raw[16 : HEADER.size]):
        raise Damaged(f"{path}: the header at offset 0 does not match its checksum")
    if version != FORMAT:
        raise refused_format(path, version, FORMAT)
    return LogOwner(*fields[:4]), Position(*fields[4:])


def file_name(first_seq: int) -> str:
    return f"{first_seq:020d}.log"


def first_seq_of(path: Path) -> int:
    return int(path.stem)


def list_files(folder: Path) -> list[Path]:
    """The log's files, oldest first."""
    return sorted(p for p in folder.glob("*.log") if p.stem.isdigit())


class LogWriter:
    """Appends to the newest file. One thread at a time; nothing here runs on an event loop.

    After a failed write or fsync it is `broken`: Linux marks pages that it could not write as clean, so a
    second fsync would succeed without them. Only a start that reads the disk again can go on.
    """

    def __init__(
        self, folder: Path, owner: LogOwner, files: Files, *, file_bytes_max: int = FILE_BYTES_MAX
    ) -> None:
        self.folder = folder
        self._owner = owner
        self.files = files
        self._file_bytes_max = file_bytes_max
        self._fd = -1
        self._end = 0
        self._allocated = 0
        self.broken: str | None = None
        self.last = Position(0, 0)
        self.synced = 0
        """All entries up to this seq are on disk."""

    @property
    def file_bytes(self) -> int:
        """How much of the newest file is used."""
        return self._end

    def begin_file(self, base: Position) -> None:
        """Make a new newest file, for the entry after `base`. Raises NoRoom, Unavailable."""
        path = self.folder / file_name(base.seq + 1)
        fresh = path.with_name(path.name + ".new")
        fd, has_name = -1, False
        try:
            fd = self.files.open(fresh)
            os.ftruncate(fd, 0)
            self.files.allocate(fd, 0, _STEP_MIN)
            self.files.write(fd, encode_header(self._owner, base), 0)
            self.files.sync(fd)
            # Complete under its name, or not there: a crash never leaves a file without a header.
            self.files.rename(fresh, path)
            has_name = True
            self.files.sync_folder(self.folder)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            # With its name it is the newest: to go on in the one before would put entries behind it.
            if error.errno in _FULL and not has_name:
                raise _no_room(error) from None
            raise self._break("making a file", error) from error
        self._take(fd, HEADER.size, _STEP_MIN, base)

    def continue_file(self, path: Path, end: int, last: Position) -> None:
        """Go on behind `end` in a file whose part up to there is known to be on disk."""
        fd = self.files.open(path)
        self._take(fd, end, os.fstat(fd).st_size, last)

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries in one piece. They are not durable before `sync`.

        Raises NoRoom if there is no space: nothing was written and all goes on. Raises Unavailable otherwise.
        """
        self._check_usable()
        if self._end >= self._file_bytes_max:
            self.roll()
        pieces: list[bytes] = []
        for entry in entries:
            pieces += encode_entry(entry, self.synced)
        data = b"".join(pieces)
        self._reserve(self._end + len(data))
        try:
            self.files.write(self._fd, data, self._end)
        except OSError as error:
            raise self._break("write", error) from error
        self._end += len(data)
        self.last = entries[-1].position

    def sync(self) -> None:
        """Make all that was appended durable. Raises Unavailable, and then the log is broken."""
        self._check_usable()
        last = self.last
        try:
            self.files.datasync(self._fd)
        except OSError as error:
            raise self._break("fsync", error) from error
        self.synced = last.seq

    def roll(self) -> None:
        """Go on in a new file. All in the old one is synced first. Raises NoRoom."""
        if self.synced < self.last.seq:
            self.sync()
        self.begin_file(self.last)

    def cut(self, through_seq: int) -> list[Path]:
        """Remove the files all of whose entries are at or below `through_seq`, never the newest."""
        paths = list_files(self.folder)
        gone = [p for p, after in pairwise(paths) if first_seq_of(after) <= through_seq + 1]
        for path in gone:
            self.files.unlink(path)
        if gone:
            self.files.sync_folder(self.folder)
        return gone

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, fd: int, end: int, allocated: int, last: Position) -> None:
        self.close()
        self._fd, self._end, self._allocated = fd, end, allocated
        self.last, self.synced = last, last.seq

    def _reserve(self, size: int) -> None:
        if size <= self._allocated:
            return
        step = min(max(self._allocated // _STEP_PART, _STEP_MIN), _STEP_MAX)
        target = max(size, self._allocated + step)
        try:
            self.files.allocate(self._fd, self._allocated, target - self._allocated)
        except OSError as error:
            if error.errno in _FULL:
                raise _no_room(error) from None
            raise self._break("posix_fallocate", error) from error
        self._allocated = target

    def _check_usable(self) -> None:
        if self.broken is not None:
            raise Unavailable(f"{self.broken}; writes are refused until the agent is restarted, reads go on")

    def _break(self, call: str, error: OSError) -> Unavailable:
        self.broken = f"{call} of the log in {self.folder} failed ({error.strerror})"
        return Unavailable(f"{self.broken}; writes are refused until the agent is restarted, reads go on")


def _no_room(error: OSError) -> NoRoom:
    return NoRoom(f"no room for the log ({error.strerror}); free some disk space, writes then go on")
