"""Where leaves are answered: a shard of this process, over its ShardView."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from agent.front.queries.deadline import Deadline
from agent.front.queries.leaves import (
    Among,
    Chosen,
    Hits,
    Judge,
    Leaf,
    Nearest,
    Ordered,
    Page,
    Sampled,
    Scored,
)
from agent.front.queries.port import Bits, ShardView
from core.api.config import Distance
from core.filters import Filter
from core.query import scoring
from core.query.facets import FacetCounts, facet_counts
from core.query.order import OrderValue, first, places
from core.query.ranking import best
from core.query.scoring import F32, I64

T = TypeVar("T")
P = TypeVar("P")
_BLOCK_ROWS = 8192  # rows gathered at once: 12 MB at 384 dimensions


class Source(Protocol):
    """One shard, here or elsewhere. Hits carry their keys; `source` is left to the merge."""

    def later(self, work: Callable[[], T]) -> Callable[[], T]:
        """Work that asks this source: begun now if it only waits, else done when its result is wanted."""

    def heed(self, deadline: Deadline) -> None:
        """Filters that look at many payloads end with it, too."""

    def nearest(self, leaf: Nearest, deadline: Deadline) -> list[Hits]: ...

    def run(self, leaf: Leaf, deadline: Deadline) -> Hits: ...

    def count(self, where: Filter | None) -> int: ...

    def find(self, keys: Sequence[bytes]) -> Chosen:
        """Those of the keys that are here, in the order given."""

    def facet(self, path: str, where: Filter | None) -> FacetCounts:
        """How many matching points have each value."""

    def rows(self, v: int, chosen: Chosen) -> F32: ...

    def has(self, v: int, chosen: Chosen) -> Bits: ...

    def payloads(self, chosen: Chosen) -> list[bytes]: ...

    def seqs(self, chosen: Chosen) -> I64: ...

    def values(self, path: str, chosen: Chosen) -> list[list[object]]: ...


def each(sources: Sequence[Source], ask: Callable[[Source], T]) -> list[T]:
    """Every source's answer. Those elsewhere are asked at once, and those here meanwhile."""
    if len(sources) == 1:
        return [ask(sources[0])]
    begun = [source.later(partial(ask, source)) for source in sources]
    return [done() for done in begun]


def each_with(sources: Sequence[Source], parts: Sequence[P], ask: Callable[[Source, P], T]) -> list[T]:
    """The same, with a part for each."""
    if len(sources) == 1:
        return [ask(sources[0], parts[0])]
    pairs = zip(sources, parts, strict=True)
    begun = [source.later(partial(ask, source, part)) for source, part in pairs]
    return [done() for done in begun]


class LocalSource:
    """A shard whose files this process reads."""

    def __init__(self, view: ShardView) -> None:
        self.view = view

    def later(self, work: Callable[[], T]) -> Callable[[], T]:
        return work

    def heed(self, deadline: Deadline) -> None:
        self.view.heed(deadline.check)

    def nearest(self, leaf: Nearest, deadline: Deadline) -> list[Hits]:
        among = leaf.among
        if among.only is not None:
            slots = self._slots(among, leaf.v)
            rows = self.view.rows(leaf.v, slots)
            scores = scoring.similarities(leaf.metric, rows, leaf.queries)
            return [self._best(slots, each, leaf.limit) for each in scores]
        found = self.view.nearest(
            leaf.v,
            leaf.queries,
            limit=leaf.limit + len(among.without),
            ef=leaf.ef,
            exact=leaf.exact,
            where=among.where,
        )
        return [
            self._without(Hits(self.view.keys(slots), slots, s), among.without, leaf.limit)
            for slots, s in found
        ]

    def run(self, leaf: Leaf, deadline: Deadline) -> Hits:
        if isinstance(leaf, Scored):
            return self._scored(leaf, deadline)
        if isinstance(leaf, Page):
            return self._page(leaf)
        if isinstance(leaf, Ordered):
            return self._ordered(leaf)
        return self._sampled(leaf)

    def count(self, where: Filter | None) -> int:
        return self.view.count(where)

    def find(self, keys: Sequence[bytes]) -> Chosen:
        slots = self.view.slots(keys)
        here = np.flatnonzero(slots >= 0)
        return Chosen([keys[i] for i in here.tolist()], slots[here])

    def facet(self, path: str, where: Filter | None) -> FacetCounts:
        return facet_counts(self.view.values(path, self.view.scan(where)))

    def rows(self, v: int, chosen: Chosen) -> F32:
        return self.view.rows(v, chosen.slots)

    def has(self, v: int, chosen: Chosen) -> Bits:
        return self.view.has(v, chosen.slots)

    def payloads(self, chosen: Chosen) -> list[bytes]:
        return self.view.payloads(chosen.slots)

    def seqs(self, chosen: Chosen) -> I64:
        return self.view.seqs(chosen.slots)

    def values(self, path: str, chosen: Chosen) -> list[list[object]]:
        return self.view.values(path, chosen.slots)

    def _slots(self, among: Among, v: int | None) -> I64:
        """The slots of all points that a leaf considers."""
        if among.only is not None:
            slots = among.only.slots
            if v is not None:
                slots = slots[self.view.has(v, slots)]
            where = among.where
            if where is not None and (where.should or where.min_should):
                # The prefetches had more alternatives than this node's own (planner.inherited).
                slots = slots[np.isin(slots, self.view.scan(where))]
        else:
            slots = self.view.scan(among.where, v=v)
        if among.without:
            slots = slots[~np.isin(slots, self.view.slots(sorted(among.without)))]
        return slots

    def _best(self, slots: I64, scores: F32, limit: int) -> Hits:
        at = best(scores, limit, lambda positions: self.view.keys(slots[positions]))
        return Hits(self.view.keys(slots[at]), slots[at], scores[at])

    @staticmethod
    def _without(hits: Hits, without: frozenset[bytes], limit: int) -> Hits:
        if not without:
            return hits
        kept = [i for i, key in enumerate(hits.keys) if key not in without][:limit]
        return Hits([hits.keys[i] for i in kept], hits.slots[kept], hits.scores[kept])

    def _scored(self, leaf: Scored, deadline: Deadline) -> Hits:
        slots = self._slots(leaf.among, leaf.v)
        scores = np.empty(len(slots), np.float32)
        for at in range(0, len(slots), _BLOCK_ROWS):
            deadline.check()
            rows = self.view.rows(leaf.v, slots[at : at + _BLOCK_ROWS])
            scores[at : at + _BLOCK_ROWS] = judged(leaf.metric, rows, leaf.judge)
        return self._best(slots, scores, leaf.limit)

    def _page(self, leaf: Page) -> Hits:
        among = leaf.among
        if among.only is not None:
            chosen = zip(among.only.keys, among.only.slots.tolist(), strict=True)
            ordered = sorted(pair for pair in chosen if pair[0] not in among.without)[: leaf.limit]
            slots = np.array([slot for _, slot in ordered], np.int64)
            return Hits([key for key, _ in ordered], slots, np.ones(len(ordered), np.float32))
        slots = self.view.page(leaf.start, leaf.limit + len(among.without), among.where)
        hits = Hits(self.view.keys(slots), slots, np.ones(len(slots), np.float32))
        return self._without(hits, among.without, leaf.limit)

    def _ordered(self, leaf: Ordered) -> Hits:
        slots = self._slots(leaf.among, None)
        found: list[tuple[OrderValue, int]] = []
        for slot, values in zip(slots.tolist(), self.view.values(leaf.path, slots), strict=True):
            for place in places(values, start_from=leaf.start_from, descending=leaf.descending):
                found.append((place, slot))
        if leaf.limit < len(found):
            pick = heapq.nlargest if leaf.descending else heapq.nsmallest
            bound = pick(leaf.limit, (value for value, _ in found))[-1]
            found = [row for row in found if (row[0] >= bound if leaf.descending else row[0] <= bound)]
        among = np.array([slot for _, slot in found], np.int64)
        keys = self.view.keys(among)
        slot_of = dict(zip(keys, among.tolist(), strict=True))
        rows = first(
            ((value, key) for (value, _), key in zip(found, keys, strict=True)),
            leaf.limit,
            descending=leaf.descending,
        )
        return Hits(
            [key for _, key in rows],
            np.array([slot_of[key] for _, key in rows], np.int64),
            np.ones(len(rows), np.float32),
            [value for value, _ in rows],
        )

    def _sampled(self, leaf: Sampled) -> Hits:
        slots = self._slots(leaf.among, leaf.v)
        draws = np.random.default_rng(leaf.seed).random(len(slots), np.float32)
        return self._best(slots, draws, leaf.limit)


def judged(metric: Distance, rows: F32, judge: Judge) -> F32:
    """The scores of a special query."""
    if judge.kind == "best_score":
        return scoring.best_score(metric, rows, judge.positives, judge.negatives)
    if judge.kind == "sum_scores":
        return scoring.sum_scores(metric, rows, judge.positives, judge.negatives)
    if judge.kind == "context":
        return scoring.context(metric, rows, judge.positives, judge.negatives)
    assert judge.target is not None
    if judge.kind == "discover":
        return scoring.discover(metric, rows, judge.target, judge.positives, judge.negatives)
    return scoring.feedback(metric, rows, judge.target, judge.positives, judge.judged, judge.coefficients)
