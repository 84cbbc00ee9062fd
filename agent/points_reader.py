"""points.db as anybody reads it: rows by slot, slots by id, pages by id; each row checked against its crc."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.errors import Damaged
from core.hashing import KEY_BYTES, point_id

CACHE_KB = 16 << 10
CACHES_BYTES_MAX = 64 << 20
"""Of all databases of a process together: SQLite lets go of cached pages beyond it."""
_BATCHES = (16, 64, 256)
"""Values bound in one statement; few sizes, so that SQLite keeps the compiled statements."""
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last: our statements are right, so what SQLite does not understand is in the file."""
MASK = (1 << 64) - 1
_ROW_HEAD = struct.Struct("<3Q")

ROW_COLUMNS = "slot, id, seq, born, payload, crc"
_ROWS_BY_SLOTS = {n: f"SELECT {ROW_COLUMNS} FROM rows WHERE slot IN ({','.join('?' * n)})" for n in _BATCHES}
_SLOTS_BY_KEYS = {n: f"SELECT id, slot FROM ids WHERE id IN ({','.join('?' * n)})" for n in _BATCHES}
_LIVE_PAGE = (
    "SELECT r.slot, r.id, r.seq, r.born, r.payload, r.crc FROM ids i JOIN rows r ON r.slot = i.slot "
    "WHERE i.id >= ? ORDER BY i.id LIMIT ?"
)


class Row(NamedTuple):
    """One slot's row. `payload` is JSON, b"" for {}."""

    slot: int
    id: bytes
    seq: int
    born: int
    payload: bytes
    crc: int


@dataclass(slots=True)
class PointsMeta:
    """What is committed along with the rows."""

    applied: int = 0
    slot_high: int = 0
    """Slots below this have been given out; it outlives the rows that are purged."""
    count: int = 0
    digest: int = 0
    """Sum over the live points of a hash of (id, slot): finds rows that SQLite lost without a word."""


def row_crc(slot: int, key: bytes, seq: int, born: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key + _ROW_HEAD.pack(slot, seq, born)))


def checked(row: Row) -> Row:
    """The row itself. Raises Damaged if it is not what was written."""
    try:
        whole = row.crc == row_crc(row.slot, row.id, row.seq, row.born, row.payload)
    except (TypeError, struct.error):  # a damaged record can have values of other types
        whole = False
    if not whole:
        raise Damaged(
            f"points.db: the row of slot {row.slot} ({_named(row.id)}) does not match its checksum; "
            "write the point anew, delete it, or restore the collection from a snapshot"
        )
    return row


def _named(key: object) -> str:
    """The point, as its damaged row has it."""
    try:
        return f"point {point_id(key)}" if isinstance(key, bytes) and len(key) == KEY_BYTES else "of no point"
    except ValueError:
        return "of no point"


def connect_readonly(path: Path, *, cache_kb: int = CACHE_KB) -> sqlite3.Connection:
    """A connection that cannot write, usable from one thread at a time. Each SELECT sees the last commit."""
    uri = f"file:{_quoted(path)}?mode=ro"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    db.execute(f"PRAGMA cache_size = -{cache_kb}")
    db.execute(f"PRAGMA soft_heap_limit = {CACHES_BYTES_MAX}")
    return db


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def rows_by_slots(db: sqlite3.Connection, slots: Sequence[int]) -> dict[int, Row]:
    """The rows that exist, live or lately dead. Raises Damaged."""
    raw_rows = [raw for bound in _batches(slots) for raw in fetch(db, _ROWS_BY_SLOTS[len(bound)], bound)]
    return {raw[0]: checked(Row._make(raw)) for raw in raw_rows}


def slots_by_keys(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    """The slots of those ids that exist now."""
    found: dict[bytes, int] = {}
    for bound in _batches(keys):
        found.update(fetch(db, _SLOTS_BY_KEYS[len(bound)], bound))
    return found


def page_by_id(db: sqlite3.Connection, first_key: bytes, limit: int) -> list[Row]:
    """Up to `limit` live rows in the order of ids, from `first_key` on (included). Raises Damaged."""
    return [checked(Row._make(raw)) for raw in fetch(db, _LIVE_PAGE, (first_key, limit))]


def keys_from(db: sqlite3.Connection, first_key: bytes, limit: int) -> list[tuple[bytes, int]]:
    """Up to `limit` (id, slot) of live points in the order of ids; no payload is read."""
    return fetch(db, "SELECT id, slot FROM ids WHERE id >= ? ORDER BY id LIMIT ?", (first_key, limit))


def rows_from(db: sqlite3.Connection, low: int, high: int, limit: int) -> list[Row]:
    """Up to `limit` rows of the slots low..high-1, live or dead, ascending. Raises Damaged."""
    sql = f"SELECT {ROW_COLUMNS} FROM rows WHERE slot >= ? AND slot < ? ORDER BY slot LIMIT ?"
    return [checked(Row._make(raw)) for raw in fetch(db, sql, (low, high, limit))]


def count(db: sqlite3.Connection) -> int:
    """How many points live."""
    return meta(db).get("count", 0)


def meta(db: sqlite3.Connection) -> dict[str, int]:
    """applied, slot_high, count, digest (as a signed number), and a crc of these, unchecked."""
    return dict(fetch(db, "SELECT key, value FROM meta"))


def read_meta(db: sqlite3.Connection) -> PointsMeta:
    """What `meta` says, checked; all zero in a new database. Raises Damaged."""
    stored = meta(db)
    if not stored:
        return PointsMeta()
    try:
        crc = stored.pop("crc")
        found = PointsMeta(**{**stored, "digest": stored["digest"] & MASK})
        whole = crc == meta_crc(found)
    except (KeyError, TypeError, struct.error):
        whole, found = False, PointsMeta()
    if not whole:
        raise Damaged("points.db: meta does not match its checksum")
    return found


def meta_crc(m: PointsMeta) -> int:
    return zlib.crc32(struct.pack("<4Q", m.applied, m.slot_high, m.count, m.digest))


def checked_points(db: sqlite3.Connection) -> PointsMeta:
    """Meta, after count and digest were compared with the points that are there, as of one transaction.

    Also finds each point's row as a search does. Raises Damaged. SQLite has no checksums of pages: a
    damaged one can lose rows without a word.
    """
    db.execute("BEGIN")
    try:
        expected = read_meta(db)
        ids = fetch(db, "SELECT id, slot FROM ids")
        with_row = fetch(db, "SELECT count(*) FROM ids i CROSS JOIN rows r ON r.slot = i.slot")[0][0]
    finally:
        db.execute("COMMIT")
    try:
        found = digest_of([key for key, _ in ids], [slot for _, slot in ids])
    except (TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"points.db: an id or a slot is none ({error})") from None
    if len(ids) != expected.count or found != expected.digest:
        raise Damaged(f"points.db: holds {len(ids)} points (digest {found:x}), should be {expected}")
    if with_row != len(ids):
        raise Damaged(f"points.db: {len(ids) - with_row} of {len(ids)} points have no row")
    return expected


def fetch(db: sqlite3.Connection, sql: str, bound: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query. Raises Damaged where SQLite sees that the file is."""
    try:
        return db.execute(sql, bound).fetchall()
    except sqlite3.DatabaseError as error:
        raise damage(error) from error


def damage(error: sqlite3.DatabaseError) -> Damaged | sqlite3.DatabaseError:
    """What an error of SQLite's means: Damaged if the file is no (whole) database, else the error itself."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE_CODES:
        return Damaged(f"points.db: {error}")
    return error


def _batches(values: Sequence[int] | Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
    for at in range(0, len(values), _BATCHES[-1]):
        batch = tuple(values[at : at + _BATCHES[-1]])
        size = next(n for n in _BATCHES if n >= len(batch))
        # NULL equals nothing: one statement serves any count up to its size.
        yield batch + (None,) * (size - len(batch))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def digest_of(keys: Sequence[bytes], slots: Sequence[Any]) -> int:
    """Sum mod 2^64 of a hash of each (id, slot): the order does not matter, and parts can be taken away."""
    if not keys:
        return 0
    raw = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
    halves = np.ascontiguousarray(raw[:, 1:]).view(">u8").astype(np.uint64)
    kinds = raw[:, 0].astype(np.uint64) << np.uint64(63)
    numbers = np.asarray(slots, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes = _mix(_mix(halves[:, 1] ^ kinds) ^ halves[:, 0] ^ numbers)
    return int(hashes.sum(dtype=np.uint64))
