"""The acceptor's log on disk: its format, in two copies, and what both together prove at a start.

A copy is a header and records, numbered from 1, each with a checksum and the number up to which all were
fsynced when it was written. So a record that a crash tore can be told from one that was damaged later:
nobody knew the torn one to be synced, it was never answered, and it and what follows it are dropped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.store.files import Files
from agent.store.formats import refused_format
from core.consensus.register import Cell
from core.errors import Damaged

COPIES = ("a.log", "b.log")

_WHAT_NOW = "restore this node from a snapshot, or move the data folder away and begin anew"
_UNREADABLE = -1  # the generation of a copy without a valid header
FORMAT = 1
_NAME = b"SHOALACC"
_MAGIC = _NAME + bytes([FORMAT])
_HEADER = struct.Struct("<9sQQI")  # magic, generation, records in it from the start, crc of these
_MARK = b"\xa5acc"
_RECORD = struct.Struct("<4sIIQQ")  # mark, body bytes, crc of what follows, number, synced


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """One key's new state, and the voter set's number. An empty key carries the number alone."""

    voters: int
    key: str
    cell: Cell


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the acceptor had promised and accepted. `damage`: what was wrong and is healed, for the log."""

    voters: int
    cells: dict[str, Cell]
    generation: int
    damage: tuple[str, ...]
    number: int = 0
    identical: bytes | None = None
    """The bytes of both copies, if they are the same and whole."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is readable in one copy. Its numbers have holes where it is damaged or torn."""

    path: Path
    generation: int
    synced: int  # records that were fsynced for sure
    records: dict[int, bytes]
    valid: bytes  # all to the end of the last record
    flaw: str


def encode_log(generation: int, saved: Iterable[Saved]) -> tuple[bytes, int]:
    """A whole new copy, and how many records it has."""
    bodies = [msgspec.msgpack.encode(s) for s in saved]
    records = b"".join(_record(n, len(bodies), body) for n, body in enumerate(bodies, 1))
    return _header(generation, len(bodies)) + records, len(bodies)


def encode_records(saved: Iterable[Saved], *, synced: int) -> bytes:
    """The records that follow the last one, `synced`, in one append."""
    return b"".join(_record(n, synced, msgspec.msgpack.encode(s)) for n, s in enumerate(saved, synced + 1))


def load(folder: Path, files: Files, *, fresh: bool) -> Loaded:
    """The newest state that both copies together prove. Raises Damaged, naming the files, StartRefused."""
    folder.mkdir(mode=0o700, exist_ok=True)
    files.sync_folder(folder.parent)
    copies = [copy for name in COPIES if (copy := _read_copy(folder / name)) is not None]
    missing = tuple(f"{folder / n} is missing" for n in COPIES if n not in {c.path.name for c in copies})
    if not copies and fresh:
        return Loaded(0, {}, 0, ())
    if fresh:  # it crashed in its first moments
        missing = ()
    newest = max((c.generation for c in copies), default=_UNREADABLE)
    # A copy of an older generation is left only by a crash between the two renames, when both are complete.
    older = [c for c in copies if _UNREADABLE < c.generation < newest]
    for group in ([c for c in copies if _UNREADABLE < c.generation == newest], older):
        records: dict[int, bytes] = {}
        for copy in group:
            records |= copy.records
        last = next(n for n in range(len(records) + 1) if n + 1 not in records)
        if group and last >= max(copy.synced for copy in group):
            damage = tuple(f"{c.path} {c.flaw}" for c in copies if c.flaw)
            return _state([records[n] for n in range(1, last + 1)], newest, damage + missing, group)
    flaws = [f"{c.path} {c.flaw or 'lacks records'}" for c in copies]
    raise Damaged(f"the register has no whole copy ({'; '.join([*flaws, *missing])}): {_WHAT_NOW}")


def _state(records: list[bytes], generation: int, damage: tuple[str, ...], group: list[_Copy]) -> Loaded:
    voters, cells = 0, {}
    for record in records:
        saved = msgspec.msgpack.decode(record, type=Saved)
        voters = saved.voters
        if saved.key:
            cells[saved.key] = saved.cell
    same = len(group) == len(COPIES) and all(c.valid == group[0].valid and not c.flaw for c in group)
    return Loaded(voters, cells, generation, damage, len(records), group[0].valid if same else None)


def _read_copy(path: Path) -> _Copy | None:
    """What can be read of one copy, from the disk rather than from the page cache."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        data = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)
    format_ = _whole_format(data)
    if format_ is not None and format_ != FORMAT:
        raise refused_format(path, format_, FORMAT)
    header = _read_header(data)
    if header is None:
        return _Copy(path, _UNREADABLE, 0, {}, b"", "has a damaged header")
    generation, initial = header
    records, synced, end, hole = _scan(data)
    flaw = "has a damaged record" if hole else "ends in a torn record" if data[end:].strip(b"\0") else ""
    return _Copy(path, generation, max(initial, synced), records, data[:end], flaw)


def _scan(data: bytes) -> tuple[dict[int, bytes], int, int, bool]:
    """The valid records, what they know to be synced, where the last ends, whether there are holes."""
    records: dict[int, bytes] = {}
    synced, hole = 0, False
    end = at = _HEADER.size
    while (at := data.find(_MARK, at)) >= 0:
        found = _read_record(data, at)
        if found is None:
            at += 1
            continue
        number, known, body = found
        hole = hole or at != end
        records[number] = body
        synced = max(synced, known)
        end = at = at + _RECORD.size + len(body)
    return records, synced, end, hole


def _read_record(data: bytes, at: int) -> tuple[int, int, bytes] | None:
    if at + _RECORD.size > len(data):
        return None
    _, length, crc, number, synced = _RECORD.unpack_from(data, at)
    body = data[at + _RECORD.size : at + _RECORD.size + length]
    right = len(body) == length and _crc(number, synced, body) == crc
    return (number, synced, body) if right else None


def _record(number: int, synced: int, body: bytes) -> bytes:
    return _RECORD.pack(_MARK, len(body), _crc(number, synced, body), number, synced) + body


def _crc(number: int, synced: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<QQ", number, synced)))


def _header(generation: int, initial: int) -> bytes:
    plain = _HEADER.pack(_MAGIC, generation, initial, 0)[:-4]
    return plain + zlib.crc32(plain).to_bytes(4, "little")


def _whole_format(data: bytes) -> int | None:
    """The format of a header whose checksum is right: where it stands holds for every format to come."""
    if len(data) < _HEADER.size or not data.startswith(_NAME):
        return None
    *_, crc = _HEADER.unpack_from(data)
    return data[len(_NAME)] if zlib.crc32(data[: _HEADER.size - 4]) == crc else None


def _read_header(data: bytes) -> tuple[int, int] | None:
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        return None
    _, generation, initial, crc = _HEADER.unpack_from(data)
    return (generation, initial) if zlib.crc32(data[: _HEADER.size - 4]) == crc else None
