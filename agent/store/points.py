"""points.db as the store writes it: ids, rows, remembered requests and how far all is applied, in SQLite."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from agent.points_reader import (
    CACHES_BYTES_MAX,
    MASK,
    PointsMeta,
    Row,
    checked_points,
    damage,
    digest_of,
    fetch,
    meta_crc,
    read_meta,
    row_crc,
    rows_by_slots,
    slots_by_keys,
)
from agent.store.files import Files
from agent.store.formats import refused_format
from core.errors import Damaged, StartRefused
from core.replication.recent import Remembered
from core.wire import Outcome

NAME = "points.db"
FORMAT = 1
"""In the database's user_version."""
I64 = npt.NDArray[np.int64]
_BUSY_WAIT_MS = 5_000
_CHECKPOINT_WAIT_MS = 50
_CACHE_KB = 16 << 10
_SPARE_PAGES_MIN = 64
_SPARE_PART = 16
"""Free pages that stay, as a part of all: they are used again soon."""
_VACUUM_PAGES_MAX = 2_048
"""Moved at once; writes wait for it."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS ids (id BLOB PRIMARY KEY, slot INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    slot INTEGER PRIMARY KEY, id BLOB NOT NULL, seq INTEGER NOT NULL, born INTEGER NOT NULL,
    payload BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recent (
    seq INTEGER PRIMARY KEY, request_id BLOB NOT NULL, number INTEGER NOT NULL, body_hash BLOB NOT NULL,
    time_us INTEGER NOT NULL, outcome BLOB NOT NULL, crc INTEGER NOT NULL);
"""
_INSERT_ROW = "INSERT OR REPLACE INTO rows (slot, id, seq, born, payload, crc) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT_ID = "INSERT OR REPLACE INTO ids (id, slot) VALUES (?, ?)"
_INSERT_RECENT = "INSERT OR REPLACE INTO recent VALUES (?, ?, ?, ?, ?, ?, ?)"
_outcome_encoder = msgspec.msgpack.Encoder()
_outcome_decoder = msgspec.msgpack.Decoder(Outcome)


class NewRow(NamedTuple):
    """A row to write; its crc is made here."""

    slot: int
    id: bytes
    seq: int
    born: int
    payload: bytes


class PointsDb:
    """The one writer. One thread at a time; a transaction is `begin` … `commit` or `rollback`."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files
        self._wal_path = path.with_name(path.name + "-wal")
        if path.exists() and not path.is_file():
            raise StartRefused(f"{path} is not a file: move it away, and restore the shard from a snapshot")
        try:
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._prepare()
            self.meta = read_meta(self.db)
        except sqlite3.DatabaseError as error:
            raise damage(error) from error
        self._before = self._copy_of_meta()
        self._wal_fd = -1

    def _prepare(self) -> None:
        self.db.execute(f"PRAGMA busy_timeout = {_BUSY_WAIT_MS}")
        self.db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint fsyncs; on the path of a commit that would be felt by every writer.
        self.db.execute("PRAGMA wal_autocheckpoint = 0")
        self.db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        self.db.execute(f"PRAGMA soft_heap_limit = {CACHES_BYTES_MAX}")
        self.db.execute("PRAGMA temp_store = MEMORY")
        self.db.execute("PRAGMA trusted_schema = OFF")
        self._check_format()
        self.db.executescript(SCHEMA)

    def _check_format(self) -> None:
        (found,) = self.db.execute("PRAGMA user_version").fetchone()
        if found not in (0, FORMAT):
            self.db.close()
            raise refused_format(self.path, found, FORMAT)
        if not found:
            self.db.execute(f"PRAGMA user_version = {FORMAT}")

    # -- transactions -----------------------------------------------------------------------------------

    def begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self._before = self._copy_of_meta()

    def commit(self, applied: int) -> None:
        """Everything since `begin` is visible to readers, as of seq `applied`."""
        self.meta.applied = applied
        values = [
            ("applied", applied),
            ("slot_high", self.meta.slot_high),
            ("count", self.meta.count),
            ("digest", _signed(self.meta.digest)),
            ("crc", meta_crc(self.meta)),
        ]
        self.db.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", values)
        with self._files.commit(self.path):
            self.db.execute("COMMIT")

    def rollback(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self.meta = self._before

    # -- reading ----------------------------------------------------------------------------------------

    def slots_of(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        return slots_by_keys(self.db, keys)

    def rows(self, slots: Sequence[int]) -> dict[int, Row]:
        return rows_by_slots(self.db, slots)

    def births(self, low: int) -> list[tuple[int, bytes, int]]:
        """(slot, id, born) of the rows of slots from `low` on, ascending."""
        return fetch(self.db, "SELECT slot, id, born FROM rows WHERE slot >= ? ORDER BY slot", (low,))

    def keys_between(self, low: int, high: int) -> list[tuple[int, bytes]]:
        """(slot, id) of the rows of slots low..high-1, ascending."""
        return fetch(
            self.db, "SELECT slot, id FROM rows WHERE slot >= ? AND slot < ? ORDER BY slot", (low, high)
        )

    def live_slots(self) -> I64:
        """All live slots, ascending."""
        return np.sort(self._numbers("SELECT slot FROM ids"))

    def row_slots(self) -> I64:
        """The slots of all rows, live and dead, ascending."""
        return self._numbers("SELECT slot FROM rows ORDER BY slot")

    def _numbers(self, sql: str) -> I64:
        try:
            return np.fromiter((n for (n,) in self.db.execute(sql)), np.int64)
        except sqlite3.DatabaseError as error:
            raise damage(error) from error

    # -- writing ----------------------------------------------------------------------------------------

    def take_slots(self, count: int) -> int:
        """The first of `count` slots that were never used."""
        first = self.meta.slot_high
        self.meta.slot_high += count
        return first

    def put(self, rows: Sequence[NewRow], old: dict[bytes, int]) -> None:
        """Write live points in new slots. `old`: where those that exist are; their rows stay for a while."""
        self._write_rows(rows)
        self.db.executemany(_INSERT_ID, [(row.id, row.slot) for row in rows])
        self.meta.count += len(rows) - len(old)
        added = digest_of([row.id for row in rows], [row.slot for row in rows])
        self.meta.digest = (self.meta.digest + added - digest_of(list(old), list(old.values()))) & MASK

    def edit(self, rows: Sequence[NewRow]) -> None:
        """Write other payloads into the slots of live points."""
        self._write_rows(rows)

    def delete(self, points: dict[bytes, int]) -> None:
        """Remove ids; their rows stay for searches under way."""
        self.db.executemany("DELETE FROM ids WHERE id = ?", [(key,) for key in points])
        self.meta.count -= len(points)
        self.meta.digest = (self.meta.digest - digest_of(list(points), list(points.values()))) & MASK

    def purge(self, slots: Iterable[int]) -> None:
        """Remove rows of dead slots for good."""
        self.db.executemany("DELETE FROM rows WHERE slot = ?", [(slot,) for slot in slots])

    def give_back(self) -> None:
        """Shorten the file if much of it is free: pages at its end move there. Outside a transaction."""
        (free,) = self.db.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self.db.execute("PRAGMA page_count").fetchone()
        spare = max(_SPARE_PAGES_MIN, pages // _SPARE_PART)
        if free > 2 * spare:
            pages = min(free - spare, _VACUUM_PAGES_MAX)
            with self._files.commit(self.path):
                # It steps once for each page, which `execute` does not do to the end.
                self.db.executescript(f"PRAGMA incremental_vacuum({pages})")

    def _write_rows(self, rows: Sequence[NewRow]) -> None:
        self.db.executemany(_INSERT_ROW, [(*row, row_crc(*row)) for row in rows])

    # -- remembered requests ----------------------------------------------------------------------------

    def remember(self, answered: Sequence[Remembered]) -> None:
        """Keep the answers of this transaction's entries that have a request id."""
        rows = [
            (r.seq, r.request_id, r.number, r.body_hash, r.time_us, _outcome_encoder.encode(r.outcome))
            for r in answered
        ]
        self.db.executemany(_INSERT_RECENT, [(*row, _recent_crc(row)) for row in rows])

    def forget_requests(self, below_seq: int) -> None:
        self.db.execute("DELETE FROM recent WHERE seq < ?", (below_seq,))

    def remembered(self) -> list[Remembered]:
        sql = "SELECT seq, request_id, number, body_hash, time_us, outcome, crc FROM recent ORDER BY seq"
        rows = fetch(self.db, sql)
        for row in rows:
            if row[-1] != _recent_crc(row[:-1]):
                raise Damaged(f"{self.path}: the remembered request of entry {row[0]} is damaged")
        try:
            return [
                Remembered(request_id, number, body_hash, seq, time_us, _outcome_decoder.decode(outcome))
                for seq, request_id, number, body_hash, time_us, outcome, _ in rows
            ]
        except msgspec.DecodeError as error:
            raise Damaged(f"{self.path}: a remembered request is unreadable ({error})") from None

    def wal_bytes(self) -> int:
        """How long the WAL is: a payload edited here and there takes a page of it each time."""
        try:
            return self._wal_path.stat().st_size
        except FileNotFoundError:
            return 0

    # -- durability -------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make all that is committed survive a power cut."""
        # Never open points.db itself here: closing any descriptor of it would drop SQLite's locks (POSIX).
        if self._wal_fd < 0:
            self._wal_fd = self._files.open(self._wal_path)
            self._files.sync_folder(self.path.parent)
        self._files.sync(self._wal_fd)

    def checkpoint(self) -> None:
        """Move what is in the WAL into the database, and cut the WAL unless a reader still needs it."""
        try:
            # Writes wait meanwhile: rather a longer WAL than a long wait for a reader.
            self.db.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
            with self._files.checkpoint(self.path):
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.execute(f"PRAGMA busy_timeout = {_BUSY_WAIT_MS}")
        except sqlite3.DatabaseError as error:
            raise damage(error) from error

    def checkpoint_beside(self) -> None:
        """Move what is committed so far, on a connection of its own, while the writer goes on."""
        beside = sqlite3.connect(self.path, isolation_level=None)
        try:
            with self._files.checkpoint(self.path):
                beside.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.DatabaseError as error:
            raise damage(error) from error
        finally:
            beside.close()

    def check(self) -> None:
        """Compare count and digest with what is there. Raises Damaged."""
        checked_points(self.db)

    def first_slot_but(self, purged: set[int]) -> int:
        """The lowest slot that has a row and is not to be purged; slot_high if there is none."""
        sql = "SELECT slot FROM rows ORDER BY slot LIMIT ?"
        kept = (slot for (slot,) in fetch(self.db, sql, (len(purged) + 1,)) if slot not in purged)
        return next(kept, self.meta.slot_high)

    def close(self) -> None:
        if self._wal_fd >= 0:
            os.close(self._wal_fd)
            self._wal_fd = -1
        with self._files.checkpoint(self.path):  # the last connection to close makes one
            self.db.close()

    def _copy_of_meta(self) -> PointsMeta:
        m = self.meta
        return PointsMeta(m.applied, m.slot_high, m.count, m.digest)


def _recent_crc(row: Sequence[Any]) -> int:
    return zlib.crc32(repr(tuple(row)).encode())


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
