"""A collection held in numpy arrays, cut into shards, for tests of queries."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np

from agent.front.queries.collection import Collection
from agent.front.queries.deadline import Deadline
from agent.front.queries.plan import VectorSpec
from agent.front.queries.port import F32, I64, Bits
from agent.front.queries.reads import Reads
from agent.front.queries.source import LocalSource
from agent.front.remote_source import RemoteSource, answer
from core.api.config import Distance, VectorParams
from core.api.vectors import normalise
from core.errors import NotFound
from core.filters import Filter, compile_filter
from core.hashing import PointId, id_key, shard_of
from core.payload import Payload, elements_at, parse_path
from core.query.ranking import best
from core.query.scoring import similarity

ASKERS = ThreadPoolExecutor(8, thread_name_prefix="ask")


@dataclass(frozen=True)
class Point:
    id: PointId
    vectors: Mapping[str, Sequence[float]]
    payload: Payload = field(default_factory=dict)


class MemoryShard:
    """A ShardView whose slots are the points' positions; every second slot is a hole."""

    def __init__(self, points: Sequence[Point], specs: Sequence[VectorSpec]) -> None:
        self._points = {2 * i: point for i, point in enumerate(points)}
        self._keys: dict[int, bytes] = {slot: id_key(point.id) for slot, point in self._points.items()}
        self._slots = {key: slot for slot, key in self._keys.items()}
        self._names = {spec.v: spec.name for spec in specs}
        self._metrics = {spec.v: spec.metric for spec in specs}
        self._rows: dict[int, F32] = {}
        for spec in specs:
            rows = np.zeros((2 * len(points), spec.size), np.float32)
            for slot, point in self._points.items():
                if spec.name in point.vectors:
                    rows[slot] = point.vectors[spec.name]
            self._rows[spec.v] = normalise(rows) if spec.metric is Distance.COSINE else rows

    def heed(self, check: Callable[[], None]) -> None:
        """Its work is short."""

    def nearest(
        self, v: int, queries: F32, *, limit: int, ef: int | None, exact: bool, where: Filter | None
    ) -> list[tuple[I64, F32]]:
        slots = self.scan(where, v=v)
        found = []
        for query in queries:
            s = similarity(self._metrics[v], self._rows[v][slots], query)
            at = best(s, limit, lambda positions: self.keys(slots[positions]))
            found.append((slots[at], s[at]))
        return found

    def scan(self, where: Filter | None, *, v: int | None = None) -> I64:
        test = None if where is None else compile_filter(where)
        return np.array(
            [
                slot
                for slot, point in self._points.items()
                if (v is None or self._names[v] in point.vectors)
                and (test is None or test(self._keys[slot], point.payload, point.vectors))
            ],
            np.int64,
        )

    def rows(self, v: int, slots: I64) -> F32:
        return self._rows[v][slots]

    def has(self, v: int, slots: I64) -> Bits:
        return np.array([self._names[v] in self._points[slot].vectors for slot in slots.tolist()], np.bool_)

    def keys(self, slots: I64) -> list[bytes]:
        return [self._keys[slot] for slot in slots.tolist()]

    def slots(self, keys: Sequence[bytes]) -> I64:
        return np.array([self._slots.get(key, -1) for key in keys], np.int64)

    def payloads(self, slots: I64) -> list[bytes]:
        payloads = [self._points[slot].payload for slot in slots.tolist()]
        return [msgspec.json.encode(payload) if payload else b"" for payload in payloads]

    def seqs(self, slots: I64) -> I64:
        return slots + 100

    def page(self, after: bytes | None, limit: int, where: Filter | None, *, inclusive: bool = True) -> I64:
        slots = sorted(self.scan(where).tolist(), key=self._keys.__getitem__)
        if after is not None:
            slots = [s for s in slots if self._keys[s] > after or (inclusive and self._keys[s] == after)]
        return np.array(slots[:limit], np.int64)

    def count(self, where: Filter | None) -> int:
        return len(self.scan(where))

    def values(self, path: str, slots: I64) -> list[list[object]]:
        parsed = parse_path(path)
        return [elements_at(self._points[slot].payload, parsed) for slot in slots.tolist()]


def collection(
    name: str, vectors: Mapping[str, VectorParams], points: Iterable[Point], shards: int = 1
) -> Collection:
    """A collection whose points lie on as many shards: the first is here, the others on other nodes."""
    specs = [VectorSpec(vector, v, params) for v, (vector, params) in enumerate(vectors.items(), start=3)]
    parts: list[list[Point]] = [[] for _ in range(shards)]
    for point in points:
        parts[shard_of(id_key(point.id), shards)].append(point)
    return Collection(
        name=name,
        vectors={spec.name: spec for spec in specs},
        sources=[
            elsewhere(LocalSource(MemoryShard(part, specs))) if i else LocalSource(MemoryShard(part, specs))
            for i, part in enumerate(parts)
        ],
        is_here=shards == 1,
    )


def elsewhere(source: LocalSource) -> RemoteSource:
    """The shard as another node sees it: all that is asked and answered goes through bytes."""
    never = Deadline(None, time.monotonic)
    return RemoteSource(lambda kind, body: answer(source, kind, body, never), ASKERS.submit)


def reads(
    home: Collection,
    *others: Collection,
    deadline_s: float | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Reads:
    """The read calls over a collection, beside which there are others to look ids up in."""
    known = {each.name: each for each in (home, *others)}

    def named(name: str) -> Collection:
        if name not in known:
            raise NotFound.collection(name)
        return known[name]

    seeds = itertools.count(1)
    return Reads(home, named, Deadline(deadline_s, now), lambda: next(seeds))
