"""One named vector of a shard: f32 rows by slot, a checksum each, and a bit for "has it"."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.mapped import GrowingBits, GrowingFile
from agent.store.files import Files
from agent.store.manifest import BLOCK_BYTES
from core.errors import Damaged

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
ABSENT = 0
"""In the checksum file: the slot has no such vector."""


def row_crc(row: memoryview | bytes, slot: int) -> int:
    """The checksum of a row in its slot; never ABSENT."""
    return zlib.crc32(row, slot & 0xFFFFFFFF) or 1


class VectorFile:
    """Rows are written once, to slots never used before, so nothing that a reader looks at changes."""

    def __init__(self, folder: Path, v: int, dim: int, files: Files) -> None:
        self.v = v
        self.dim = dim
        self.row_bytes = dim * 4
        self.rows_file = GrowingFile(folder / "vectors" / f"{v}.f32", files)
        self.crcs_file = GrowingFile(folder / "vectors" / f"{v}.crc", files)
        self.has = GrowingBits(folder / "columns" / f"has.{v}.bin", files)

    def reserve(self, slots: int) -> None:
        """Room for slots 0..slots-1. Raises OSError (ENOSPC)."""
        self.rows_file.reserve(slots * self.row_bytes)
        self.crcs_file.reserve(slots * 4)
        self.has.reserve(slots)

    def put(self, first_slot: int, rows: bytes | memoryview) -> None:
        """Write consecutive slots, all of which have the vector."""
        view = memoryview(rows).cast("B")
        slots = range(first_slot, first_slot + len(view) // self.row_bytes)
        self._write(first_slot, view, self._crcs_of(view, slots))

    def put_scattered(self, slots: I64, rows: F32) -> None:
        """Write rows (n, dim) to ascending slots."""
        for low, high in _runs(slots):
            self.put(int(slots[low]), np.ascontiguousarray(rows[low:high]).data)

    def copy(self, sources: I64, targets: I64) -> I64:
        """Copy rows to ascending new slots. Returns the sources that turned out damaged.

        A damaged row stays one in its new slot: it must not get a checksum that makes it look right.
        """
        present = self.crcs()[sources] != ABSENT
        sources, targets = sources[present], targets[present]
        rows: F32 = self.rows_file.array("<f4", self.dim)[sources]
        bad = np.isin(sources, self.damaged(sources, rows))
        for low, high in _runs(targets):
            view = np.ascontiguousarray(rows[low:high]).data.cast("B")
            crcs = self._crcs_of(view, targets[low:high].tolist())
            crcs[bad[low:high]] ^= np.uint32(0x5A5A5A5A)
            self._write(int(targets[low]), view, crcs)
        return sources[bad]

    def clear(self, slots: I64) -> None:
        """These slots, ascending, have no such vector."""
        if len(slots):
            self.reserve(int(slots[-1]) + 1)  # a crash can leave the files with different sizes
        for low, high in _runs(slots):
            self.crcs_file.write(int(slots[low]) * 4, bytes(4 * (high - low)))
        self.has.clear(slots)

    def has_it(self, slots: I64) -> npt.NDArray[np.bool_]:
        if len(slots) and int(slots.max()) >> 3 >= self.has.file.size:
            self.has.reserve(int(slots.max()) + 1)
        return self.has.get(slots)

    def read(self, slots: I64) -> F32:
        """The rows of slots that have the vector, checked. Raises Damaged."""
        rows: F32 = self.rows_file.array("<f4", self.dim)[slots]
        bad = self.damaged(slots, rows)
        if len(bad):
            raise Damaged(f"{self.rows_file.path}: the row of slot {bad[0]} does not match its checksum")
        return rows

    def damaged(self, slots: I64, rows: F32 | None = None) -> I64:
        """Which of these slots hold a row that differs from its checksum; an absent one does not."""
        if len(slots) == 0:
            return slots
        if rows is None:
            rows = self.rows_file.array("<f4", self.dim)[slots]
        stored = self.crcs()[slots]
        found = self._crcs_of(np.ascontiguousarray(rows).data.cast("B"), slots.tolist())
        bad: I64 = slots[(found != stored) & (stored != ABSENT)]
        return bad

    def _crcs_of(self, view: memoryview, slots: Sequence[int]) -> U32:
        size = self.row_bytes
        crcs = [row_crc(view[i * size : (i + 1) * size], slot) for i, slot in enumerate(slots)]
        return np.array(crcs, np.uint32)

    def _write(self, first_slot: int, rows: memoryview, crcs: U32) -> None:
        self.rows_file.write(first_slot * self.row_bytes, rows)
        self.crcs_file.write(first_slot * 4, crcs.data)
        self.has.reserve(first_slot + len(crcs))
        self.has.set(np.arange(first_slot, first_slot + len(crcs)))

    def crcs_from_rows(self, low: int, high: int) -> U32:
        """What the checksums of slots low..high-1 must be, by the rows and the bits."""
        slots = np.arange(low, high)
        crcs = self._crcs_of(self.rows_file.array("<f4", self.dim)[slots].data.cast("B"), slots.tolist())
        crcs[~self.has.get(slots)] = ABSENT
        return crcs

    def crcs(self) -> U32:
        return self.crcs_file.array("<u4")

    def forget_from(self, slot: int) -> None:
        """Slots from `slot` on have nothing: what a crash left there must not look like a vector."""
        tail = self.crcs_file.size - slot * 4
        if tail > 0:
            self.crcs_file.write(slot * 4, bytes(tail))
        self.has.clear(np.arange(slot, self.has.file.size << 3))

    def rebuild_has(self, low: int, high: int) -> None:
        """Derive the bits of slots low..high-1 from the checksums; there are none outside."""
        self.reserve(high)
        self.has.replace(low + np.flatnonzero(self.crcs()[low:high] != ABSENT), high)

    def sync(self) -> None:
        """Make all durable. A crash may cut this off anywhere: what was not checkpointed is replayed."""
        self.rows_file.sync()
        self.crcs_file.sync()
        self.has.file.sync()

    def punch_below(self, slot: int) -> None:
        self.rows_file.punch_below(slot * self.row_bytes)
        self.crcs_file.punch_below(slot * 4, unit=BLOCK_BYTES)
        self.has.file.punch_below(slot >> 3)

    def close(self) -> None:
        for file in (self.rows_file, self.crcs_file, self.has.file):
            file.close()


def _runs(slots: I64) -> Iterator[tuple[int, int]]:
    """Index ranges within which ascending slots follow each other."""
    if len(slots):
        starts = np.flatnonzero(np.diff(slots, prepend=slots[0] - 2) != 1).tolist()
        yield from pairwise([*starts, len(slots)])
