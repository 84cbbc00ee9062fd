"""A consistent look at one shard: its points as of the moment it was taken, searched and read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent import exact as exactly
from agent.graphs import Graph
from agent.page import ShardRecord
from agent.points_reader import Row
from core.errors import Unavailable
from core.filters import Filter
from core.hashing import KEY_BYTES
from core.payload import decode_payload, getter, parse_path
from core.query.ranking import best
from core.query.scoring import F32, I64, similarity
from core.search_plan import EXACT, SearchPlan, candidates, filtered, rescored, widened

if TYPE_CHECKING:
    from agent.front.reader import ShardReader, VectorFiles

Bits = NDArray[np.bool_]
U8 = NDArray[np.uint8]
Found = tuple[I64, F32]

_BIT = np.left_shift(1, np.arange(8)).astype(np.uint8)
_BATCH_MIN = 16
"""Smaller batches are slower on two threads than on one."""
_PAGE_ROWS = 1024
_NO_SLOTS = np.empty(0, np.int64)
_NOTHING: Found = (_NO_SLOTS, np.empty(0, np.float32))


class Look:
    """Live bits, record and graphs of one moment. `base` is a multiple of 8; bits begin there.

    Not `clean`: writes were being published, so that an id may have two live slots, of which the newer
    counts; the newer one is at or above `quiet_high`.
    """

    __slots__ = (
        "_distinct",
        "_live",
        "_rows",
        "_vectors",
        "base",
        "bits",
        "clean",
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
        self.bits = bits[: (record.slot_high - base + 7) >> 3]
        self.quiet_high, self.clean = quiet_high, clean
        self._vectors = reader.vectors
        self._live: Bits | None = None
        self._distinct = clean
        self._rows: dict[int, Row] = {}

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        self._live = None

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
            if not self._distinct:
                self._remove_replaced()
            self._live = np.unpackbits(self.bits, count=self.high - self.base, bitorder="little").view(
                np.bool_
            )
        return self._live

    def _remove_replaced(self) -> None:
        """Clear the older of two live slots that hold one id."""
        self._distinct = True
        bits = np.unpackbits(self.bits, count=self.high - self.base, bitorder="little")
        newer = np.flatnonzero(bits[max(0, self.quiet_high - self.base) :]) + max(self.quiet_high, self.base)
        if not len(newer):
            return
        keys = self.reader.ids(self.high)
        tags = _tags(keys[self.base :])
        alike = np.flatnonzero(np.isin(tags, tags[newer - self.base]) & bits.view(np.bool_)) + self.base
        last: dict[bytes, int] = {}
        for slot, key in zip(alike.tolist(), _split(keys[alike]), strict=True):
            if (old := last.get(key)) is not None:
                self.bits[(old - self.base) >> 3] &= ~_BIT[old & 7]
            last[key] = slot

    def live_with(self, v: int) -> Bits:
        """Live and has vector v, by slot from base to high."""
        both: Bits = self.live() & self._unpacked(self._files(v).has_bits(self.base, self.high))
        return both

    def _unpacked(self, bits: U8) -> Bits:
        return np.unpackbits(bits, count=self.high - self.base, bitorder="little").view(np.bool_)

    def scan(self, where: Filter | None, *, v: int | None = None) -> I64:
        allowed = self.live() if v is None else self.live_with(v)
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
        likely = np.flatnonzero(np.isin(_tags(ids), _tags(wanted)))
        out[[at for at, key in zip(likely.tolist(), _split(ids[likely]), strict=True) if key in keys]] = True
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
        return _split(self.reader.ids(max(self.high, int(slots.max()) + 1))[slots])

    def slots(self, keys: Sequence[bytes]) -> I64:
        found = self.reader.points.slots(keys)
        return np.array([found.get(key, -1) for key in keys], np.int64)

    def payloads(self, slots: I64) -> list[bytes]:
        rows = self._stored(slots)
        return [row.payload if (row := rows.get(slot)) is not None else b"" for slot in slots.tolist()]

    def seqs(self, slots: I64) -> I64:
        rows = self._stored(slots)
        return np.array([rows[slot].seq if slot in rows else 0 for slot in slots.tolist()], np.int64)

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
            self.reader.refresh(wait=True)
            self._vectors = self.reader.vectors
            files = self._vectors.get(v)
        if files is None:
            raise Unavailable(f"vector {v} is not in shard {self.reader.folder.name} yet; retry")
        return files

    # -- searches -------------------------------------------------------------------------------------------

    def nearest(
        self, v: int, queries: F32, *, limit: int, ef: int | None, exact: bool, where: Filter | None
    ) -> list[Found]:
        files = self._files(v)
        files.reach(self.high)
        if exact or not files.sealed.graphs:
            return self._exact(files, queries, limit, self._allowed(v, where))
        if where is None or where.restricts_nothing:
            if len(queries) == 1:
                return [self._one(files, queries, limit, ef)]
            return self._many(files, queries, limit, ef)
        return self._filtered(files, queries, limit, ef, self._allowed(v, where))

    def _allowed(self, v: int, where: Filter | None) -> Bits:
        allowed = self.live_with(v)
        if where is None or where.restricts_nothing:
            return allowed
        return allowed & self.reader.bitmaps.mask(self, where)

    def _live_for(self, files: VectorFiles) -> U8:
        """Bits of live slots that have the vector, and a byte of zeros for slots outside."""
        size = len(self.bits)
        live = np.zeros(size + 1, np.uint8)
        np.bitwise_and(self.bits, files.has_bits(self.base, self.high), out=live[:size])
        return live

    def _among(self, slots: I64, live: U8) -> I64:
        """Those of the slots whose bit is set."""
        at = np.minimum((slots - self.base).view(np.uint64), np.uint64((len(live) - 1) << 3)).view(np.int64)
        among: I64 = slots[(live[at >> 3] & _BIT[at & 7]) != 0]
        return among

    def _one(self, files: VectorFiles, queries: F32, limit: int, ef: int | None) -> Found:
        """One query, no filter: what most requests are."""
        sealed, live = files.sealed, self._live_for(files)
        want = rescored(limit)
        count = candidates(limit, ef or sealed.ef, self.record.points / (self.high - self.base or 1))
        asked = queries if sealed.mean is None else queries - sealed.mean
        parts = [self._of_graph(graph, asked, count, live, limit)[:want] for graph in sealed.graphs]
        if self.high > sealed.built:
            parts.append(self._of_tail(files, queries, live, want))
        slots = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._best(files, queries[0], slots, limit)

    def _of_graph(self, graph: Graph, query: F32, count: int, live: U8, limit: int) -> I64:
        """The live ones of a graph's candidates; it is asked for more if `limit` are not among them."""
        while True:
            keys, _, found, _, _ = graph.search_many(query, count=count, exact=False, threads=1)
            slots = self._among(keys[0, : found[0]].view(np.int64), live)
            if len(slots) >= limit or count >= len(graph):
                return slots
            count *= 2

    def _of_tail(self, files: VectorFiles, queries: F32, live: U8, want: int) -> I64:
        """Candidates among the slots that no graph holds yet."""
        low = max(files.sealed.built, self.base)
        first = (low - self.base) >> 3
        allowed = np.unpackbits(live[first:-1], bitorder="little").view(np.bool_)
        allowed = allowed[(low - self.base) & 7 :][: self.high - low]
        return exactly.best_in_range(files.rows, queries, low, self.high, allowed, want)[0]

    def _many(self, files: VectorFiles, queries: F32, limit: int, ef: int | None) -> list[Found]:
        """A batch without a filter, as one search of each graph."""
        sealed, live = files.sealed, self._live_for(files)
        want = rescored(limit)
        count = candidates(limit, ef or sealed.ef, self.record.points / (self.high - self.base or 1))
        asked = queries if sealed.mean is None else queries - sealed.mean
        threads = self.reader.batch_threads if len(queries) >= _BATCH_MIN else 1
        parts: list[list[I64]] = [[] for _ in queries]
        for graph in sealed.graphs:
            slots, _, found = graph.search(asked, count, threads=threads)
            for q, part in enumerate(parts):
                mine = self._among(slots[q, : found[q]], live)
                if len(mine) < limit and count < len(graph):
                    mine = self._of_graph(graph, asked[q : q + 1], 2 * count, live, limit)
                part.append(mine[:want])
        if self.high > sealed.built:
            low = max(sealed.built, self.base)
            allowed = np.unpackbits(live[:-1], count=self.high - self.base, bitorder="little").view(np.bool_)
            tails = exactly.best_in_range(
                files.rows, queries, low, self.high, allowed[low - self.base :], want
            )
            for part, tail in zip(parts, tails, strict=True):
                part.append(tail)
        return [
            self._best(files, query, np.concatenate(part) if len(part) > 1 else part[0], limit)
            for query, part in zip(queries, parts, strict=True)
        ]

    def _filtered(
        self, files: VectorFiles, queries: F32, limit: int, ef: int | None, allowed: Bits
    ) -> list[Found]:
        sealed = files.sealed
        built = min(sealed.built, self.high)
        matching = int(np.count_nonzero(allowed[: max(0, built - self.base)]))
        plan = filtered(limit, ef or sealed.ef, matching=matching, built=sealed.count)
        if plan.exact:
            return self._exact(files, queries, limit, allowed)
        low = max(built, self.base)
        want = rescored(limit)
        asked = queries if sealed.mean is None else queries - sealed.mean
        tails = exactly.best_in_range(files.rows, queries, low, self.high, allowed[low - self.base :], want)
        out: list[Found] = []
        for q, tail in enumerate(tails):
            slots = self._of_graphs_filtered(
                sealed.graphs, asked[q : q + 1], plan, allowed, sealed.count, limit, want
            )
            if slots is None:
                out += self._exact(files, queries[q : q + 1], limit, allowed)
            else:
                out.append(self._best(files, queries[q], np.concatenate((slots, tail)), limit))
        return out

    def _of_graphs_filtered(
        self,
        graphs: Sequence[Graph],
        query: F32,
        plan: SearchPlan,
        allowed: Bits,
        built: int,
        limit: int,
        want: int,
    ) -> I64 | None:
        """Candidates that are allowed; None if an exact search is cheaper than to go on."""
        while plan is not EXACT:
            parts: list[I64] = []
            for graph in graphs:
                slots, _, found = graph.search(query, plan.count, threads=1)
                at = slots[0, : found[0]] - self.base
                at = at[(at >= 0) & (at < len(allowed))]
                parts.append(at[allowed[at]][:want] + self.base)
            if sum(map(len, parts)) >= limit:
                return np.concatenate(parts)
            plan = widened(plan, built=built)
        return None

    def _exact(self, files: VectorFiles, queries: F32, limit: int, allowed: Bits) -> list[Found]:
        chosen = exactly.best_in_range(files.rows, queries, self.base, self.high, allowed, limit)
        return [self._best(files, query, slots, limit) for query, slots in zip(queries, chosen, strict=True)]

    def _best(self, files: VectorFiles, query: F32, slots: I64, limit: int) -> Found:
        """Candidates by their own rows: every score depends on its row alone, not on where it was found."""
        if not len(slots):
            return _NOTHING
        if not self._distinct:
            slots = self._newest(slots)
        scores = similarity(files.state.distance, files.rows.all.take(slots, axis=0), query)
        order = np.argsort(-scores, kind="stable")[: limit + 1]
        ranked = scores[order]
        if (ranked[1:] == ranked[:-1]).any():
            order = best(scores, limit, lambda at: self.keys(slots[at]))
            return slots[order], scores[order]
        return slots[order[:limit]], ranked[:limit]

    def _newest(self, slots: I64) -> I64:
        """Of slots with the same id the newest."""
        newest: dict[bytes, int] = {}
        for key, slot in zip(self.keys(slots), slots.tolist(), strict=True):
            newest[key] = max(slot, newest.get(key, -1))
        return np.fromiter(newest.values(), np.int64, len(newest))


def _split(keys: U8) -> list[bytes]:
    """(n, 17) → the keys as bytes."""
    raw = keys.tobytes()
    return [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]


def _tags(keys: U8) -> NDArray[np.uint64]:
    """A number for each key (n, 17) by which different keys differ almost always."""
    halves = np.ascontiguousarray(keys[:, 1:]).view(np.uint64).reshape(-1, 2)
    return halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1]
