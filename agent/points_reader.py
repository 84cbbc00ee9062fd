"""points.db as anybody reads it: rows by slot, slots by id, pages by id; each row checked against its crc."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import Damaged

CACHE_KB = 16 << 10
_BATCHES = (16, 64, 256)
"""Values bound in one statement; few sizes, so that SQLite keeps the compiled statements."""
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last: our statements are right, so what SQLite does not understand is in the file."""
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


def row_crc(slot: int, key: bytes, seq: int, born: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key + _ROW_HEAD.pack(slot, seq, born)))


def checked(row: Row) -> Row:
    """The row itself. Raises Damaged if it is not what was written."""
    try:
        whole = row.crc == row_crc(row.slot, row.id, row.seq, row.born, row.payload)
    except (TypeError, struct.error):  # a damaged record can have values of other types
        whole = False
    if not whole:
        raise Damaged(f"points.db: the row of slot {row.slot} does not match its checksum")
    return row


def connect_readonly(path: Path, *, cache_kb: int = CACHE_KB) -> sqlite3.Connection:
    """A connection that cannot write, usable from one thread at a time. Each SELECT sees the last commit."""
    uri = f"file:{_quoted(path)}?mode=ro"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    db.execute(f"PRAGMA cache_size = -{cache_kb}")
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
    """applied, slot_high, count, digest (as a signed number), and a crc of these."""
    return dict(fetch(db, "SELECT key, value FROM meta", ()))


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
