"""The log as a start finds it: what is valid, what a crash tore, what is damaged and where."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

import numpy as np

from agent.store.files import Files
from agent.store.log import (
    ENTRY,
    HEADER,
    ID_BYTES,
    SEQ_AT,
    LogOwner,
    decode_header,
    entry_crc,
    first_seq_of,
    list_files,
    padded,
)
from core.errors import Damaged
from core.replication.log import START, Entry, Position
from core.wire import ENTRY_BYTES_MAX

_NO_ID = bytes(ID_BYTES)
_OP_BYTES_MAX = ENTRY_BYTES_MAX + (1 << 16)
_SEQ_AHEAD_MAX = 1 << 24
"""How far beyond damage a following entry's seq is believed."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries first_seq..last_seq cannot be read, though others follow or knew them to be on disk."""

    path: Path
    offset: int
    first_seq: int
    last_seq: int

    def __str__(self) -> str:
        return f"{self.path}: entries {self.first_seq}..{self.last_seq} at offset {self.offset} are damaged"


@dataclass(slots=True)
class FoundLog:
    """All that can be read. `end` is where the newest file's valid part ends."""

    base: Position = START
    entries: list[Entry] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    bad_headers: list[str] = field(default_factory=list)
    newest: Path | None = None
    newest_is_headless: bool = False
    end: int = 0
    torn_bytes: int = 0
    """How much behind the end is not zero: an append that a crash cut off."""

    @property
    def last(self) -> Position:
        return self.entries[-1].position if self.entries else self.base


def read_log(folder: Path, owner: LogOwner) -> FoundLog:
    """Read all files, from the disk itself. What is unreadable becomes gaps; the caller knows which matter.

    Raises Damaged if a file is intact and another shard's.
    """
    log = FoundLog()
    paths = list_files(folder)
    if paths:
        log.base = Position(0, first_seq_of(paths[0]) - 1)
    next_seq = log.base.seq + 1
    for path in paths:
        begins = first_seq_of(path)
        if begins > next_seq:
            log.gaps.append(Gap(path if log.newest is None else log.newest, log.end, next_seq, begins - 1))
        next_seq = _read_file(log, path, owner, newest=path is paths[-1])
    return log


def _read_file(log: FoundLog, path: Path, owner: LogOwner, *, newest: bool) -> int:
    """Add what the file holds; returns the seq that must come next."""
    data = _read_from_disk(path)
    try:
        found, base = decode_header(path, data)
    except Damaged as error:
        # The name says where it begins, and entries check themselves.
        log.bad_headers.append(str(error))
        log.newest_is_headless = newest
    else:
        if found != owner:
            raise Damaged(f"{path}: belongs to {found}, expected {owner}")
        if log.newest is None:
            log.base = base
    log.newest = path
    offset, next_seq = HEADER.size, first_seq_of(path)
    while True:
        entry, size = entry_at(data, offset, next_seq)
        if entry is None:
            follower = _find_entry(data, offset, next_seq)
            # If nobody knew the unreadable one to be on disk, it is one torn append, with all behind it.
            if follower is None or (newest and follower[1] < next_seq):
                break
            at = follower[0]
            entry, size = entry_at(data, at, None)
            assert entry is not None
            log.gaps.append(Gap(path, offset, next_seq, entry.seq - 1))
            offset = at
        log.entries.append(entry)
        offset, next_seq = offset + size, entry.seq + 1
    log.end = offset
    if newest:
        log.torn_bytes = int(np.count_nonzero(np.frombuffer(data, np.uint8)[offset:]))
    return next_seq


def _read_from_disk(path: Path) -> bytes:
    """The file's bytes, not those of a page cache that may hold what never reached the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(fd).st_size
        pieces = []
        while size > 0 and (piece := os.read(fd, size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def entry_at(data: bytes | mmap, offset: int, seq: int | None) -> tuple[Entry | None, int]:
    """The entry at `offset` if it is whole (and has that seq), and its padded size."""
    if offset + ENTRY.size > len(data):
        return None, 0
    length, crc, term, found_seq, time_us, _, request_id, body_hash, number, schema = ENTRY.unpack_from(
        data, offset
    )
    end = offset + ENTRY.size + length
    if length > _OP_BYTES_MAX or end > len(data) or seq not in (None, found_seq):
        return None, 0
    op = data[offset + ENTRY.size : end]
    if crc != entry_crc(data[offset : offset + ENTRY.size], op):
        return None, 0
    if request_id == _NO_ID:
        request_id = b""
    if body_hash == _NO_ID:  # a router's own request ids have none
        body_hash = b""
    return (
        Entry(term, found_seq, time_us, op, request_id, number, body_hash, schema),
        ENTRY.size + padded(length),
    )


def _find_entry(data: bytes, offset: int, seq: int) -> tuple[int, int] | None:
    """Where the first whole entry with a later seq is, behind `offset`, and what it knew to be synced."""
    start = padded(offset) + 8
    if start >= len(data):
        return None
    words = np.frombuffer(data, dtype="<u8", count=(len(data) - start) // 8, offset=start)
    for index in np.flatnonzero((words > seq) & (words < seq + _SEQ_AHEAD_MAX)):
        at = start + int(index) * 8 - SEQ_AT
        if at >= start and entry_at(data, at, int(words[index]))[0] is not None:
            return at, int(ENTRY.unpack_from(data, at)[5])
    return None


def keep_valid_part(log: FoundLog, files: Files) -> None:
    """Replace the newest file by a durable copy of its valid part.

    Only then do its entries count: after a failed fsync the page cache may show what the disk does not have.
    """
    assert log.newest is not None
    data = _read_from_disk(log.newest)[: log.end]
    files.replace(log.newest, data)
