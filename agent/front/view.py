"""A consistent look at one shard: its points as of the moment it was taken, searched and read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.front.keys import split, tags
from agent.front.searching import Found, nearest
from agent.page import ShardRecord
from agent.points_reader import Row
from core.errors import Unavailable
from core.filters import Filter
from core.hashing import KEY_BYTES
from core.payload import decode_payload, getter, parse_path
from core.query.scoring import F32, I64

if TYPE_CHECKING:
    from agent.front.reader import ShardReader, VectorFiles

Bits = NDArray[np.bool_]
U8 = NDArray[np.uint8]

_BIT = np.left_shift(1, np.arange(8)).astype(np.uint8)


class LookTooOld(Unavailable):
    """Rows of points that died since the look began have been let go. A new look has what is there now."""

    code = "look-too-old"


class Look:
    """Live bits, record and graphs of one moment. `base` is a multiple of 8; bits begin there.

    `bits` end with a byte of zeros. Not `clean`: writes were being published, so that an id may have two
    live slots, of which the newer counts; the newer one is at or above `quiet_high`.
    """

    __slots__ = (
        "_live",
        "_rows",
        "_vectors",
        "base",
        "bits",
        "check",
        "clean",
        "distinct",
        "high",
        "quiet_high",
        "reader",
        "record",
    )

    def __init__(
        self, reader: ShardReader, record: ShardRecord, bits: U8, base: int, quiet_high: int, clean: bool
    ) -> None:
        self.reader, self.record, self.base = reader, record, base
        self.high = record.slot_high
        self.bits = bits[: ((record.slot_high - base + 7) >> 3) + 1]
        self.bits[-1] = 0
        self.quiet_high, self.clean = quiet_high, clean
        self._vectors = reader.vectors
        self._live: Bits | None = None
        self.distinct = clean
        self._rows: dict[int, Row] = {}
        self.check: Callable[[], None] = lambda: None

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        self._live = None

    def heed(self, check: Callable[[], None]) -> None:
        """Ask it now and then in long work."""
        self.check = check

    @property
    def steady_high(self) -> int:
        """Slots below it had been published, live or dead, when the live bits were copied."""
        return self.high if self.clean else self.quiet_high

    def edits_now(self) -> int:
        return self.reader.record().edits

    # -- which slots ----------------------------------------------------------------------------------------

    def live(self) -> Bits:
        """By slot from base to high; each id at most once."""
        if self._live is None:
            if not self.distinct:
                self._remove_replaced()
            self._live = np.unpackbits(self.bits, count=self.high - self.base, bitorder="little").view(
                np.bool_
            )
        return self._live

    def _remove_replaced(self) -> None:
        """Clear the older of two live slots that hold one id."""
        self.distinct = True
        bits = np.unpackbits(self.bits, count=self.high - self.base, bitorder="little")
        newer = np.flatnonzero(bits[max(0, self.quiet_high - self.base) :]) + max(self.quiet_high, self.base)
        if not len(newer):
            return
        keys = self.reader.ids(self.high)
        known = tags(keys[self.base :])
        alike = np.flatnonzero(np.isin(known, known[newer - self.base]) & bits.view(np.bool_)) + self.base
        last: dict[bytes, int] = {}
        for slot, key in zip(alike.tolist(), split(keys[alike]), strict=True):
            if (old := last.get(key)) is not None:
                self.bits[(old - self.base) >> 3] &= ~_BIT[old & 7]
            last[key] = slot

    def live_with(self, files: VectorFiles) -> Bits:
        """Live and with that vector, by slot from base to high."""
        return self.live() & self._unpacked(files.has_bits(self.base, self.high))

    def count_with(self, v: int) -> int:
        """How many points have the vector."""
        return int(np.count_nonzero(self.live_with(self._files(v))))

    def live_from(self, files: VectorFiles, low: int) -> Bits:
        """The same from slot `low` on; an id may be there twice unless the look is distinct."""
        first = (low - self.base) >> 3
        both = self.bits[first:-1] & files.has_bits(self.base, self.high)[first:]
        bits = np.unpackbits(both, bitorder="little").view(np.bool_)
        return bits[(low - self.base) & 7 :][: self.high - low]

    def _unpacked(self, bits: U8) -> Bits:
        return np.unpackbits(bits, count=self.high - self.base, bitorder="little").view(np.bool_)

    def scan(self, where: Filter | None, *, v: int | None = None) -> I64:
        allowed = self.live() if v is None else self.live_with(self._files(v))
        if where is not None and not where.restricts_nothing:
            allowed = allowed & self.reader.bitmaps.mask(self, where)
        return np.flatnonzero(allowed) + self.base

    def count(self, where: Filter | None) -> int:
        if where is None or where.restricts_nothing:
            return int(np.count_nonzero(self.live()))
        return int(np.count_nonzero(self.live() & self.reader.bitmaps.mask(self, where)))

    def has(self, v: int, slots: I64) -> Bits:
        bits = self._files(v).has_bits(0, max(self.high, int(slots.max(initial=-1)) + 1))
        has: Bits = (bits[slots >> 3] & _BIT[slots & 7]) != 0
        return has

    def has_named(self, name: str, low: int, high: int) -> Bits:
        """Which slots of a range have the vector of that name."""
        v = self.reader.names.get(name)
        if v is None or v not in self._vectors:
            return np.zeros(high - low, np.bool_)
        return self._unpacked(self._files(v).has_bits(self.base, self.high))[
            low - self.base : high - self.base
        ]

    def has_ids(self, keys: Collection[bytes], low: int, high: int) -> Bits:
        """Which slots of a range hold one of the ids."""
        out = np.zeros(high - low, np.bool_)
        slots = self.slots(list(keys))
        slots = slots[slots >= 0]
        inside = slots[(slots >= self.base) & (slots < self.high)]
        if len(inside) == len(slots) and self.live()[inside - self.base].all():
            inside = inside[(inside >= low) & (inside < high)]
            out[inside - low] = True
            return out
        # One has been replaced since the look began: find the slot that was its own then.
        ids = self.reader.ids(high)[low:]
        wanted = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        likely = np.flatnonzero(np.isin(tags(ids), tags(wanted)))
        out[[at for at, key in zip(likely.tolist(), split(ids[likely]), strict=True) if key in keys]] = True
        return out

    # -- what they hold -------------------------------------------------------------------------------------

    def rows(self, v: int, slots: I64) -> F32:
        files = self._files(v)
        if len(slots):
            files.reach(int(slots.max()) + 1)
        return files.rows.all.take(slots, axis=0)

    def keys(self, slots: I64) -> list[bytes]:
        if not len(slots):
            return []
        try:
            return split(self.reader.ids(self.high).take(slots, axis=0))
        except IndexError:  # younger than the look
            return split(self.reader.ids(int(slots.max()) + 1).take(slots, axis=0))

    def slots(self, keys: Sequence[bytes]) -> I64:
        found = self.reader.points.slots(keys)
        return np.array([found.get(key, -1) for key in keys], np.int64)

    def payloads(self, slots: I64) -> list[bytes]:
        rows = self._stored(slots)
        try:
            return [rows[slot].payload for slot in slots.tolist()]
        except KeyError:
            raise LookTooOld(
                "a point was replaced while this request ran, and so long ago that its row is gone; retry"
            ) from None

    def seqs(self, slots: I64) -> I64:
        low = self.record.slot_low
        known = self.reader.seqs.table(self.record.edits, low, self.high)
        if known is not None and (not len(slots) or max(slots.tolist()) < self.high):
            found: I64 = known.take(slots - low)
            if np.count_nonzero(found) == len(found):
                return found
        rows = self._stored(slots)
        seqs = np.array([rows[slot].seq if slot in rows else 0 for slot in slots.tolist()], np.int64)
        if known is not None:
            within = (slots >= low) & (slots < self.high)
            known[slots[within] - low] = seqs[within]
        return seqs

    def _stored(self, slots: I64) -> Mapping[int, Row]:
        """Rows of points.db; those that this look has read are kept, as an answer asks twice for them."""
        missing = [slot for slot in slots.tolist() if slot not in self._rows]
        if missing:
            self._rows.update(self.reader.points.by_slots(missing))
        return self._rows

    def values(self, path: str, slots: I64) -> list[list[object]]:
        get = getter(parse_path(path))
        return [list(get(decode_payload(payload))) for payload in self.payloads(slots)]

    def page(self, after: bytes | None, limit: int, where: Filter | None, *, inclusive: bool = True) -> I64:
        if where is None or where.restricts_nothing:
            # Keys have one length, so a key with a byte more is just above it.
            first = b"" if after is None else after if inclusive else after + b"\x00"
            return np.array([slot for _, slot in self.reader.points.keys_from(first, limit)], np.int64)
        slots = self.scan(where)
        keys = self.reader.ids(self.high)[slots].view(f"S{KEY_BYTES}").reshape(-1)
        if after is not None:
            bound = np.array(after, f"S{KEY_BYTES}")
            beyond = np.flatnonzero(keys >= bound if inclusive else keys > bound)
            slots, keys = slots[beyond], keys[beyond]
        return slots[np.argsort(keys, kind="stable")[:limit]]

    def _files(self, v: int) -> VectorFiles:
        files = self._vectors.get(v)
        if files is None:
            self.reader.refresh()
            self._vectors = self.reader.vectors
            files = self._vectors.get(v)
        if files is None:
            raise Unavailable(f"vector {v} is not in shard {self.reader.folder.name} yet; retry")
        return files

    # -- searches -------------------------------------------------------------------------------------------

    def nearest(
        self, v: int, queries: F32, *, limit: int, ef: int | None, exact: bool, where: Filter | None
    ) -> list[Found]:
        return nearest(self, self._files(v), queries, limit=limit, ef=ef, exact=exact, where=where)
