"""A voter's durable acceptor: two copies of one log on disk, each request fsynced before it is answered.

A copy is a header and records, numbered from 1, each with a checksum. Two copies tell a torn tail (the
record is in neither, and was never answered) from damage (one has it: it is healed; both lost an older
one: refused), and keep the one node's truth through a rotten sector. Every start, and every growth past
a bound, writes both anew: what is served was written and fsynced by this process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.store.files import Files
from core.consensus.register import Answer, Cell, Request, on_request
from core.errors import Damaged, NoRoom, ShoalError, StartRefused, Unavailable

COPIES = ("a.log", "b.log")
LOG_BYTES_MIN = 1 << 20
"""Preallocated, so that the register has room for some time after the disk is full."""
BATCH_MAX = 256
GROWTH_MAX = 4  # rewritten when the log is this many times what it holds, and LOG_BYTES_MIN at least

_WHAT_NOW = "restore this node from a snapshot, or move the data folder away and begin anew"
_UNREADABLE = -1  # the generation of a copy without a valid header
_MAGIC = b"SHOALACC\x01"  # the last byte is the format
_HEADER = struct.Struct("<9sQQI")  # magic, generation, records in it from the start, crc of these
_MARK = b"\xa5acc"
_RECORD = struct.Struct("<4sIIQ")  # mark, body bytes, crc of number and body, number


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    """One key's new state, and the voter set's number. An empty key carries the number alone."""

    voters: int
    key: str
    cell: Cell


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is readable in one copy. Its numbers have holes where it is damaged."""

    path: Path
    generation: int
    initial: int  # records that it had when it took its name
    records: dict[int, bytes]
    valid: bytes  # all to the end of the last record
    flaw: str


@dataclass(frozen=True, slots=True)
class Loaded:
    voters: int
    cells: dict[str, Cell]
    generation: int
    damage: tuple[str, ...]
    """What was found wrong and healed from the other copy, for the log."""
    number: int = 0
    identical: bytes | None = None
    """The bytes of both copies, if they are the same and whole."""


class Acceptor:
    """Answers requests of proposers, in order, each after its fsync.

    Open with `Acceptor.open(folder, fresh=…)`. After a failed fsync it refuses everything until a restart.
    """

    def __init__(self, folder: Path, loaded: Loaded, files: Files) -> None:
        self._folder = folder
        self._disk = files
        self._voters = loaded.voters
        self._cells = loaded.cells
        self._generation = loaded.generation
        self.damage = loaded.damage
        self._files: list[int] = []
        self._number = 0
        self._size_bytes = 0
        self._allocated_bytes = 0
        self._broken: str | None = None
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._turn: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="acceptor")

    @classmethod
    async def open(cls, folder: Path, *, fresh: bool, files: Files | None = None) -> Acceptor:
        """`fresh`: this node never belonged to a cluster, so an empty folder is right; else it is damage."""
        loaded = await asyncio.to_thread(load, folder, fresh=fresh)
        acceptor = cls(folder, loaded, files or Files())
        await asyncio.get_running_loop().run_in_executor(acceptor._thread, acceptor._begin, loaded)
        return acceptor

    async def keys(self, prefix: str) -> list[str]:
        """Keys accepted here under the prefix, deleted ones too."""
        return sorted(k for k, cell in self._cells.items() if k.startswith(prefix) and cell.value.version)

    def cell(self, key: str) -> Cell:
        return self._cells.get(key) or Cell()

    async def wait_accepted(self, key: str, after_version: int) -> Cell:
        async with self._changed:
            await self._changed.wait_for(lambda: self.cell(key).value.version > after_version)
        return self.cell(key)

    async def handle(self, request: Request) -> Answer:
        """A caller that is cancelled gives up its answer; what was begun is finished, in order."""
        if self._broken is not None:
            raise self._refusal()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._turn is None:
            self._turn = asyncio.create_task(self._answer_all())
        return await answer

    async def close(self) -> None:
        if self._turn is not None:
            await self._turn
        self._thread.shutdown(wait=True)
        for fd in self._files:
            os.close(fd)
        self._files = []
        self._broken = self._broken or "it is closed"

    async def _answer_all(self) -> None:
        """Requests that came while the last fsync ran share the next one."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            try:
                answers = await self._answer_batch([request for request, _ in batch])
            except ShoalError as e:
                answers = [e] * len(batch)
            for (_, waiter), answer in zip(batch, answers, strict=True):
                if waiter.done():  # cancelled
                    continue
                if isinstance(answer, ShoalError):
                    waiter.set_exception(answer)
                else:
                    waiter.set_result(answer)
        self._turn = None

    async def _answer_batch(self, requests: Sequence[Request]) -> list[Answer | ShoalError]:
        if self._broken is not None:
            raise self._refusal()
        voters, cells = self._voters, dict[str, Cell]()
        saved: list[_Saved] = []
        answers: list[Answer | ShoalError] = []
        for request in requests:
            cell = cells.get(request.key) or self.cell(request.key)
            step = on_request(cell, voters, request)
            voters = step.adopt_voters or voters
            if step.persist is not None or step.adopt_voters is not None:
                cells[request.key] = step.persist or cell
                saved.append(_Saved(voters, request.key, cells[request.key]))
            answers.append(step.answer)
        if saved:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._persist, saved)
            self._voters = voters
            self._cells |= cells
            async with self._changed:
                self._changed.notify_all()
        return answers

    def _refusal(self) -> Unavailable:
        return Unavailable(f"this node's register answers nothing: {self._broken}; restart the agent")

    # Below: in the acceptor's thread.

    def _persist(self, saved: Sequence[_Saved]) -> None:
        records = self._records(saved)
        if self._size_bytes + len(records) > self._allocated_bytes:
            # The new log holds the state so far; the records then follow it.
            self._rewrite_if_room()
            records = self._records(saved)
        try:
            for fd in self._files:
                self._disk.allocate(fd, self._size_bytes, len(records))
        except OSError as e:
            if _is_full(e):
                raise NoRoom(f"the register cannot grow in {self._folder}: {e.strerror}; free space") from e
            raise self._fail(e) from e
        try:
            for fd in self._files:
                self._disk.write(fd, records, self._size_bytes)
            for fd in self._files:
                self._disk.datasync(fd)
        except OSError as e:
            # Linux marks the pages clean: a second fsync would succeed and prove nothing.
            raise self._fail(e) from e
        self._number += len(saved)
        self._size_bytes += len(records)

    def _records(self, saved: Sequence[_Saved]) -> bytes:
        return b"".join(_record(n, msgspec.msgpack.encode(s)) for n, s in enumerate(saved, self._number + 1))

    def _begin(self, loaded: Loaded) -> None:
        try:
            self._rewrite()
        except OSError as e:
            if not _is_full(e) or loaded.identical is None:
                raise StartRefused(f"cannot write the register in {self._folder}: {e.strerror}") from e
            self._write_in_place(loaded.identical, loaded.number)

    def _rewrite_if_room(self) -> None:
        try:
            self._rewrite()
        except OSError as e:
            if not _is_full(e):
                raise self._fail(e) from e

    def _fail(self, e: OSError) -> Unavailable:
        self._broken = f"writing to {self._folder} failed: {e.strerror}"
        return Unavailable(f"the register failed: {self._broken}; restart the agent")

    def _rewrite(self) -> None:
        """Both copies anew: both on disk before either takes its name, both named before either grows."""
        saved = [_Saved(self._voters, "", Cell())]
        saved += [_Saved(self._voters, key, cell) for key, cell in sorted(self._cells.items())]
        records = b"".join(_record(n, msgspec.msgpack.encode(s)) for n, s in enumerate(saved, 1))
        content = _header(self._generation + 1, len(saved)) + records
        allocated = max(LOG_BYTES_MIN, GROWTH_MAX * len(content))
        fds: list[int] = []
        try:
            for name in COPIES:
                self._disk.unlink(self._folder / f"{name}.new")  # what a crash left
                fds.append(self._disk.open(self._folder / f"{name}.new"))
                self._disk.allocate(fds[-1], 0, allocated)
                self._disk.write(fds[-1], content, 0)
                self._disk.sync(fds[-1])
        except OSError:
            for fd, name in zip(fds, COPIES, strict=False):
                os.close(fd)
                self._disk.unlink(self._folder / f"{name}.new")
            raise
        try:
            for name in COPIES:
                self._disk.rename(self._folder / f"{name}.new", self._folder / name)
            self._disk.sync_folder(self._folder)
        except OSError as e:
            # Which files have the names now is unknown, so neither old nor new ones may grow.
            raise self._fail(e) from e
        self._use(fds, len(saved), len(content), allocated)
        self._generation += 1

    def _write_in_place(self, content: bytes, number: int) -> None:
        """On a full disk: the same bytes over themselves, so that this process's fsync covers them."""
        fds = [self._disk.open(self._folder / name) for name in COPIES]
        size_bytes = min(os.fstat(fd).st_size for fd in fds)
        for fd in fds:
            self._disk.write(fd, content.ljust(size_bytes, b"\0"), 0)
            self._disk.sync(fd)
        self._use(fds, number, len(content), size_bytes)

    def _use(self, fds: list[int], number: int, size_bytes: int, allocated_bytes: int) -> None:
        for fd in self._files:
            os.close(fd)
        self._files, self._number = fds, number
        self._size_bytes, self._allocated_bytes = size_bytes, allocated_bytes


def load(folder: Path, *, fresh: bool) -> Loaded:
    """The newest state that both copies together prove. Raises Damaged, naming the files."""
    folder.mkdir(mode=0o700, exist_ok=True)
    copies = [copy for name in COPIES if (copy := _read_copy(folder / name)) is not None]
    missing = tuple(f"{folder / n} is missing" for n in COPIES if n not in {c.path.name for c in copies})
    if not copies and fresh:
        return Loaded(0, {}, 0, ())
    newest = max((c.generation for c in copies), default=_UNREADABLE)
    # A copy of an older generation is left only by a crash between the two renames, when both are complete.
    older = [c for c in copies if _UNREADABLE < c.generation < newest]
    for group in ([c for c in copies if _UNREADABLE < c.generation == newest], older):
        merged: dict[int, bytes] = {}
        for copy in group:
            merged |= copy.records
        if group and is_whole(merged, max(c.initial for c in group)):
            damage = tuple(f"{c.path} {c.flaw}" for c in copies if c.flaw)
            return _state(merged, newest, damage + missing, group)
    flaws = [f"{c.path} {c.flaw or 'lacks records'}" for c in copies]
    raise Damaged(f"the register has no whole copy ({'; '.join([*flaws, *missing])}): {_WHAT_NOW}")


def is_whole(records: Mapping[int, bytes], initial: int) -> bool:
    """A hole means that a record was lost after its successor was written, thus after its own fsync."""
    return len(records) >= initial and set(records) == set(range(1, len(records) + 1))


def _state(records: dict[int, bytes], generation: int, damage: tuple[str, ...], group: list[_Copy]) -> Loaded:
    voters, cells = 0, {}
    for number in sorted(records):
        saved = msgspec.msgpack.decode(records[number], type=_Saved)
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
    header = _read_header(data)
    if header is None:
        return _Copy(path, _UNREADABLE, 0, {}, b"", "has a damaged header")
    generation, initial = header
    records, end, hole = _scan(data)
    flaw = "has a damaged record" if hole else "ends in a torn record" if data[end:].strip(b"\0") else ""
    return _Copy(path, generation, initial, records, data[:end], flaw)


def _scan(data: bytes) -> tuple[dict[int, bytes], int, bool]:
    """The valid records, where the last ends, and whether bytes between two of them are damaged."""
    records: dict[int, bytes] = {}
    end, at, hole = _HEADER.size, _HEADER.size, False
    while (at := data.find(_MARK, at)) >= 0:
        found = _read_record(data, at)
        if found is None:
            at += 1
            continue
        number, body = found
        hole = hole or at != end
        records[number] = body
        end = at = at + _RECORD.size + len(body)
    return records, end, hole


def _read_record(data: bytes, at: int) -> tuple[int, bytes] | None:
    if at + _RECORD.size > len(data):
        return None
    _, length, crc, number = _RECORD.unpack_from(data, at)
    body = data[at + _RECORD.size : at + _RECORD.size + length]
    return (number, body) if len(body) == length and _crc(number, body) == crc else None


def _record(number: int, body: bytes) -> bytes:
    return _RECORD.pack(_MARK, len(body), _crc(number, body), number) + body


def _crc(number: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(number.to_bytes(8, "little")))


def _header(generation: int, initial: int) -> bytes:
    plain = _HEADER.pack(_MAGIC, generation, initial, 0)[:-4]
    return plain + zlib.crc32(plain).to_bytes(4, "little")


def _read_header(data: bytes) -> tuple[int, int] | None:
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        return None
    _, generation, initial, crc = _HEADER.unpack_from(data)
    return (generation, initial) if zlib.crc32(data[: _HEADER.size - 4]) == crc else None


def _is_full(e: OSError) -> bool:
    return e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
