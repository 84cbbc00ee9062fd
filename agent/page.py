"""The mapped page by which the store publishes to the fronts, and every process shows that it lives.

One memfd, made by `main` and inherited by all (a file on disk would be stale after a crash, and
SIGBUS on a full one). Records carry a checksum, because Python has no memory barriers: a reader
copies a record and takes it only if the checksum holds. Each record has exactly one writer.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from typing import NamedTuple

from core.errors import InvariantBroken, NoRoom

PROCESSES_MAX = 64
SHARDS_MAX = 4096
METRICS_BYTES = 256 << 10
"""Of one process; see metrics.py."""

_PROCESS_BYTES = 64
_OLDEST_READ_AT = 32
"""In a process's place, behind its tick: a record of its own, since other threads write it."""
_RECORD_BYTES = 256
_PROCESSES_AT = 4096
_NODE_AT = _PROCESSES_AT + PROCESSES_MAX * _PROCESS_BYTES
_SHARDS_AT = _NODE_AT + 4096
_METRICS_AT = _SHARDS_AT + SHARDS_MAX * _RECORD_BYTES
_ACKNOWLEDGED_AT = _METRICS_AT + PROCESSES_MAX * METRICS_BYTES
_ACKNOWLEDGED_BYTES = 32
ACKNOWLEDGED_MAX = 4096
"""Shards, here or elsewhere, of which the page says how far writes were acknowledged."""
PAGE_BYTES = _ACKNOWLEDGED_AT + (1 + ACKNOWLEDGED_MAX) * _ACKNOWLEDGED_BYTES

MAIN, STORE, BUILDER, FIRST_FRONT = 0, 1, 2, 3
"""Which place a process has in the page."""


class ShardFlag(IntFlag):
    OPEN = 1
    IN_SYNC = 2
    DAMAGED = 4
    BUILDING = 8  # a fold or a vacuum runs, or one is due
    PUBLISHING = 16  # new slots are being set live, those that they replace are not cleared yet


class NodeFlag(IntFlag):
    READY = 1
    DISK_LOW = 2
    MEMORY_LOW = 4
    STOPPING = 8
    BUILD_WANTED = 16  # the builder has work; `main` starts it if it is not there


class ShardRecord(NamedTuple):
    """What a search must know of a shard. Counts in slots; `edits` is odd while columns are edited."""

    collection: int = 0
    shard: int = 0
    incarnation: int = 0
    promised: int = 0
    manifest: int = 0
    slot_low: int = 0
    slot_high: int = 0
    applied: int = 0
    edits: int = 0
    points: int = 0
    built: int = 0
    schema: int = 0
    flags: int = 0


class NodeRecord(NamedTuple):
    """What all fronts must know of the node."""

    epoch: int = 0
    settings: int = 0
    flags: int = 0
    shards: int = 0
    """How many shard records have ever been taken; closed ones keep their place."""


class ProcessRecord(NamedTuple):
    pid: int
    tick_ns: int
    """CLOCK_MONOTONIC, the same in all processes of a machine."""


_SHARD = struct.Struct("<13Q")
_NODE = struct.Struct("<4Q")
_PROCESS = struct.Struct("<2Q")
_ACKNOWLEDGED = struct.Struct("<3Q")
_COUNT = struct.Struct("<Q")
_OLDEST_READ = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_READ_TRIES = 10_000


class Page:
    """A process's view of the mapped page."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._shards_seen: dict[int, tuple[bytes, ShardRecord]] = {}

    @classmethod
    def make(cls) -> Page:
        fd = os.memfd_create("shoal-page", 0)  # no MFD_CLOEXEC: children inherit it
        os.ftruncate(fd, PAGE_BYTES)
        return cls(fd)

    def write_shard(self, place: int, record: ShardRecord) -> None:
        self._write(_SHARDS_AT + place * _RECORD_BYTES, _SHARD.pack(*record))

    def shard(self, place: int) -> ShardRecord:
        at = _SHARDS_AT + place * _RECORD_BYTES
        seen = self._shards_seen.get(place)
        # Every search asks several times; the same bytes with their checksum are the same record.
        if seen is not None and seen[0] == self._map[at : at + _SHARD.size + _CRC.size]:
            return seen[1]
        body = self._read(at, _SHARD.size)
        record = ShardRecord._make(_SHARD.unpack(body))
        self._shards_seen[place] = body + _CRC.pack(zlib.crc32(body)), record
        return record

    def write_node(self, record: NodeRecord) -> None:
        self._write(_NODE_AT, _NODE.pack(*record))

    def node(self) -> NodeRecord:
        return NodeRecord._make(_NODE.unpack(self._read(_NODE_AT, _NODE.size)))

    def write_acknowledged(self, place: int, key_and_seq: tuple[int, int, int]) -> None:
        """See acknowledged.py."""
        self._write(_ACKNOWLEDGED_AT + (1 + place) * _ACKNOWLEDGED_BYTES, _ACKNOWLEDGED.pack(*key_and_seq))

    def acknowledged(self, place: int) -> tuple[int, int, int]:
        at = _ACKNOWLEDGED_AT + (1 + place) * _ACKNOWLEDGED_BYTES
        collection, shard, seq = _ACKNOWLEDGED.unpack(self._read(at, _ACKNOWLEDGED.size))
        return collection, shard, seq

    def write_acknowledged_count(self, count: int) -> None:
        self._write(_ACKNOWLEDGED_AT, _COUNT.pack(count))

    def acknowledged_count(self) -> int:
        (count,) = _COUNT.unpack(self._read(_ACKNOWLEDGED_AT, _COUNT.size))
        return int(count)

    def tick(self, place: int) -> None:
        """Say that this process's loop runs."""
        body = _PROCESS.pack(os.getpid(), time.monotonic_ns())
        self._write(_PROCESSES_AT + place * _PROCESS_BYTES, body)

    def process(self, place: int) -> ProcessRecord:
        """The last tick of a process; pid 0 if it never ticked."""
        return ProcessRecord._make(
            _PROCESS.unpack(self._read(_PROCESSES_AT + place * _PROCESS_BYTES, _PROCESS.size))
        )

    def forget_process(self, place: int) -> None:
        """A new process takes this place and has not ticked yet. Called by `main` only."""
        self._write(_PROCESSES_AT + place * _PROCESS_BYTES, _PROCESS.pack(0, 0))
        self.write_oldest_read(place, 0)

    def write_oldest_read(self, place: int, began_ns: int) -> None:
        """When the oldest read that is under way in a process began; 0 if there is none. See Reads."""
        at = _PROCESSES_AT + place * _PROCESS_BYTES + _OLDEST_READ_AT
        self._write(at, _OLDEST_READ.pack(began_ns))

    def oldest_read_ns(self) -> int | None:
        """When the oldest read that is under way in any process began (CLOCK_MONOTONIC), or None."""
        first = _PROCESSES_AT + _OLDEST_READ_AT
        places = range(first, first + PROCESSES_MAX * _PROCESS_BYTES, _PROCESS_BYTES)
        began_ns = [_OLDEST_READ.unpack(self._read(at, _OLDEST_READ.size))[0] for at in places]
        return min((ns for ns in began_ns if ns), default=None)

    def metrics(self, place: int) -> memoryview:
        """The counters of one process, for metrics.py."""
        at = _METRICS_AT + place * METRICS_BYTES
        return memoryview(self._map)[at : at + METRICS_BYTES]

    def _write(self, at: int, body: bytes) -> None:
        self._map[at : at + len(body) + 4] = body + _CRC.pack(zlib.crc32(body))

    def _read(self, at: int, size: int) -> bytes:
        for _ in range(_READ_TRIES):
            raw = self._map[at : at + size + 4]
            body = raw[:size]
            (crc,) = _CRC.unpack_from(raw, size)
            # A record never written is all zero; crc32 of zeros is not zero.
            if crc == zlib.crc32(body) or not any(raw):
                return body
        raise InvariantBroken(f"page record at {at} does not settle: two writers, or damaged memory")


class Reads:
    """What one process reads of shards just now, shown to the store: rows that died since stay for it.

    `with reads.held():` before the first look at live bits. The store notes the time, then reads the page:
    what had died by then, no later look sees alive.
    """

    def __init__(self, page: Page, place: int) -> None:
        self._page, self._place = page, place
        self._lock = threading.Lock()
        self._began_ns: dict[object, int] = {}
        self._shown_ns = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        read = object()
        with self._lock:
            self._began_ns[read] = time.monotonic_ns()
            self._show()
        try:
            yield
        finally:
            with self._lock:
                del self._began_ns[read]
                self._show()

    def _show(self) -> None:
        oldest_ns = next(iter(self._began_ns.values()), 0)  # a dict keeps the order in which they began
        if oldest_ns != self._shown_ns:
            self._shown_ns = oldest_ns
            self._page.write_oldest_read(self._place, oldest_ns)


class ShardPlaces:
    """The store's side of the shard records: which place each shard has."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._places: dict[tuple[int, int], int] = {}

    def place(self, collection: int, shard: int) -> int:
        """The shard's place; drawn at first use. Raises NoRoom over SHARDS_MAX."""
        key = (collection, shard)
        if key not in self._places:
            node = self._page.node()
            free = self._reusable()
            place = node.shards if free is None else free
            if place >= SHARDS_MAX:
                raise NoRoom(f"this node holds {SHARDS_MAX} shards, the most it can; delete a collection")
            self._places[key] = place
            if free is None:
                self._page.write_node(node._replace(shards=place + 1))
        return self._places[key]

    def release(self, collection: int, shard: int) -> None:
        """The shard is closed: fronts stop using it, and its place may serve another."""
        place = self._places.pop((collection, shard))
        self._page.write_shard(place, ShardRecord())

    def _reusable(self) -> int | None:
        taken = set(self._places.values())
        return next((p for p in range(self._page.node().shards) if p not in taken), None)
