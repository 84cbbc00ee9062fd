"""points.db of one shard, as a front reads it: from any thread, one query at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent import points_reader
from agent.points_reader import Row
from core.errors import Unavailable

_CACHE_KB = 4 << 10


I64 = NDArray[np.int64]


class KnownSeqs:
    """Versions of points by slot, kept while no payload is edited: a new vector makes a new slot, so
    nothing else changes them. They spare a plain search its only SELECT."""

    def __init__(self) -> None:
        self._valid_for = (-1, -1)
        self._seqs = np.zeros(0, np.int64)

    def table(self, edits: int, low: int, high: int) -> I64 | None:
        """By slot - low, 0 where unknown, to be looked up and filled; None while payloads are edited."""
        if edits & 1:
            return None
        seqs = self._seqs
        if self._valid_for != (edits, low):
            seqs = np.zeros(max(1024, high - low), np.int64)
        elif len(seqs) < high - low:
            seqs = np.concatenate((seqs, np.zeros(high - low, np.int64)))
        # Who still fills a former table fills one that nobody looks at.
        self._seqs, self._valid_for = seqs, (edits, low)
        return seqs


class StoredRows:
    """Rows by slot and slots by id, as last committed; opened at the first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._is_closed = False

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open(self) -> sqlite3.Connection:
        if self._is_closed:  # while a thread still read; the next request meets what is there now
            raise Unavailable("the collection was changed or deleted during this request; retry")
        if self._db is None:
            self._db = points_reader.connect_readonly(self._path, cache_kb=_CACHE_KB)
        return self._db

    def by_slots(self, slots: Sequence[int]) -> dict[int, Row]:
        with self._lock:
            return points_reader.rows_by_slots(self._open(), slots)

    def between(self, low: int, high: int, limit: int) -> list[Row]:
        with self._lock:
            return points_reader.rows_from(self._open(), low, high, limit)

    def slots(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        with self._lock:
            return points_reader.slots_by_keys(self._open(), keys)

    def keys_from(self, first: bytes, limit: int) -> list[tuple[bytes, int]]:
        with self._lock:
            return points_reader.keys_from(self._open(), first, limit)
