"""The elements of a column's lists: appended by the store, and moved together when most are unused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.columns.layout import HEAD_BYTES, Head, Layout
from agent.mapped import GrowingFile

I64 = npt.NDArray[np.int64]

_WASTE_MIN_ITEMS = 16_384
"""Fewer unused items cost less than to move the others."""


class Heading:
    """The numbers at a column's head, which say what readers may look at."""

    def __init__(self, file: GrowingFile) -> None:
        file.reserve(HEAD_BYTES)
        self._file, self._numbers = file, file.array(np.uint64)

    def __getitem__(self, what: Head) -> int:
        return int(self._numbers[what])

    def __setitem__(self, what: Head, value: int) -> None:
        self._numbers[what] = value
        self._file.dirty = True


class Items:
    """Owners (slot + 1, or 0) and values, from Head.ITEMS_LOW to ITEMS_HIGH; a slot's stand together."""

    def __init__(self, owners: GrowingFile, values: GrowingFile, head: Heading, layout: Layout) -> None:
        self._owners, self._values, self._head, self._layout = owners, values, head, layout
        self._promised = 0
        """Items that will be appended, and have their room beyond those that are there."""
        self._unused = 0
        self._places: _Places | None = None
        self._may_move = False

    def promise(self, count: int) -> None:
        """Make room for items that will be appended. Raises OSError (ENOSPC)."""
        self._promised += count
        self._reserve(self._head[Head.ITEMS_HIGH])

    def keep_promise(self, count: int) -> None:
        self._promised = max(0, self._promised - count)

    def break_promises(self) -> None:
        self._promised = 0

    def append(self, owners: I64, values: Sequence[Any] | npt.NDArray[Any]) -> None:
        if not len(owners):
            return
        at = self._head[Head.ITEMS_HIGH]
        self._write(at, owners, np.asarray(values, self._layout.dtype))
        self._head[Head.ITEMS_HIGH] = at + len(owners)
        if self._places is not None:
            self._places.add(owners, at)

    def drop(self, slots: I64) -> None:
        """Nothing belongs to these slots any more."""
        if self._places is None:
            self._places = _Places(self._owners_now(), self._head[Head.ITEMS_LOW])
        owners, found = self._owners.array(np.int64), self._places.take(slots)
        found = found[np.isin(owners[found], slots + 1)]
        owners[found] = 0
        self._owners.dirty = True
        self._unused += len(found)

    def begin_edits(self) -> None:
        """A new edit begins in the page, so nobody looks any more at what was moved during the last one."""
        self._may_move = True

    def move_together(self) -> None:
        """Once most items are unused, copy the others behind them, or before them where that is free.

        Only during an edit, and once in it: who looks at the items meanwhile sees the old ones or the
        new ones, and whoever looks across its end begins again, before the old ones are overwritten.
        """
        low, high = self._head[Head.ITEMS_LOW], self._head[Head.ITEMS_HIGH]
        if not self._may_move or self._unused < max(_WASTE_MIN_ITEMS, (high - low) // 2):
            return
        used = np.flatnonzero(self._owners_now()) + low
        target = 0 if len(used) <= low else high
        try:
            self._reserve(target + len(used))
            self._write(target, self._owners.array(np.int64)[used], self._values_now()[used])
        except OSError:
            return  # there is no room: it goes on as it is
        self._may_move = False
        # In this order: a reader takes low, high and low again, and none but both old or both new.
        self._head[Head.ITEMS_HIGH] = target + len(used)
        self._head[Head.ITEMS_LOW] = target
        self._unused, self._places = 0, None

    def punch_below(self, slot: int) -> None:
        """Give back what belongs to slots below, all dead."""
        low, high = self._head[Head.ITEMS_LOW], self._head[Head.ITEMS_HIGH]
        if high == low:
            return
        needed = np.flatnonzero(self._owners_now() > slot)
        low += int(needed[0]) if len(needed) else high - low
        self._head[Head.ITEMS_LOW] = low
        self._places = None
        self._owners.punch_below(low * 8)
        self._values.punch_below(low * self._layout.value_bytes)

    def reset(self) -> None:
        if self._owners.size:
            self._owners.bytes()[:] = 0
            self._owners.dirty = True
        self._head[Head.ITEMS_LOW] = self._head[Head.ITEMS_HIGH] = 0
        self._unused, self._promised, self._places = 0, 0, None

    def _owners_now(self) -> I64:
        low, high = self._head[Head.ITEMS_LOW], self._head[Head.ITEMS_HIGH]
        owners: I64 = self._owners.array(np.int64)[low:high]
        return owners

    def _values_now(self) -> npt.NDArray[Any]:
        width = self._layout.width
        return self._values.array(self._layout.dtype, None if width == 1 else width)

    def _reserve(self, high: int) -> None:
        """Room for items up to there, and for those that are promised."""
        self._values.reserve((high + self._promised) * self._layout.value_bytes)
        self._owners.reserve((high + self._promised) * 8)

    def _write(self, at: int, owners: I64, values: npt.NDArray[Any]) -> None:
        if not len(owners):
            return
        self._reserve(at + len(owners))
        self._values.write(at * self._layout.value_bytes, np.ascontiguousarray(values).data)
        self._owners.write(at * 8, owners.data)


class _Places:
    """Slot → where its items stand. Made at the first need: few columns are ever edited."""

    def __init__(self, owners: I64, at: int) -> None:
        used = owners[owners > 0]
        self._base = int(used.min()) if len(used) else 0
        self._first = np.zeros(int(used.max()) - self._base + 1 if len(used) else 0, np.int64)
        self._count = np.zeros(len(self._first), np.int64)
        self.add(owners, at)

    def add(self, owners: I64, at: int) -> None:
        """Runs of owners that begin at `at`."""
        if not len(owners):
            return
        begins = np.concatenate(([0], np.flatnonzero(owners[1:] != owners[:-1]) + 1))
        counts = np.diff(np.append(begins, len(owners)))
        runs = owners[begins] > 0
        begins, counts = begins[runs], counts[runs]
        if not len(begins):
            return
        places = owners[begins] - self._base
        self._fit(int(places.min()), int(places.max()))
        places = owners[begins] - self._base
        self._first[places], self._count[places] = begins + at, counts

    def _fit(self, low: int, high: int) -> None:
        before = max(0, -low)
        after = max(0, high + 1 - len(self._first))
        if before or after:
            after += len(self._first) >> 2 if after else 0
            self._base -= before
            self._first = np.pad(self._first, (before, after))
            self._count = np.pad(self._count, (before, after))

    def take(self, slots: I64) -> I64:
        """Where the items of these slots stand; they have none from now on."""
        places = slots + 1 - self._base
        places = places[(places >= 0) & (places < len(self._first))]
        first, count = self._first[places], self._count[places]
        self._count[places] = 0
        ends = np.cumsum(count)
        total = int(ends[-1]) if len(ends) else 0
        return np.repeat(first - ends + count, count) + np.arange(total)
