"""The nearest points of one look: graphs and tail, or exactly; what was found is scored by its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.exact import best_in_range
from agent.graphs import Graph
from core.filters import Filter
from core.query.ranking import best
from core.query.scoring import F32, I64, similarity
from core.search_plan import EXACT, SearchPlan, candidates, filtered, rescored, widened

if TYPE_CHECKING:
    from agent.front.reader import VectorFiles
    from agent.front.view import Look

Bits = NDArray[np.bool_]
Found = tuple[I64, F32]

_BIT = np.left_shift(1, np.arange(8)).astype(np.uint8)
_THREADS_FROM = 8
"""Smaller batches are slower on two threads than on one."""
_NOTHING: Found = (np.empty(0, np.int64), np.empty(0, np.float32))


class Search:
    """One request's search of one vector in one look."""

    __slots__ = (
        "_base", "_ef", "_files", "_limit", "_live_everywhere", "_look", "_queries", "_sealed", "_want",
    )  # fmt: skip

    def __init__(self, look: Look, files: VectorFiles, queries: F32, limit: int, ef: int | None) -> None:
        files.reach(look.high)
        self._look, self._files, self._queries, self._limit = look, files, queries, limit
        self._sealed = files.sealed
        self._ef = ef or files.sealed.ef
        self._want = rescored(limit)
        self._base = look.base
        # The usual case, which needs no look at any bit: all slots live, none was replaced.
        self._live_everywhere = look.clean and look.record.points == look.high - look.base

    def plain(self) -> list[Found]:
        """Without a filter."""
        if not self._sealed.graphs:
            return self.exact(self._look.live_with(self._files))
        if len(self._queries) == 1:
            return [self._one()]
        return self._many()

    def exact(self, allowed: Bits) -> list[Found]:
        """All allowed slots compared; `allowed` is by slot from base to high."""
        look, rows = self._look, self._files.rows
        chosen = best_in_range(rows, self._queries, look.base, look.high, allowed, self._limit)
        return [self._best(q, slots) for q, slots in enumerate(chosen)]

    def filtered(self, allowed: Bits) -> list[Found]:
        """Exactly if few slots are allowed, else by the graphs, which are asked for more than is wanted."""
        sealed, look = self._sealed, self._look
        built = min(max(sealed.built, look.base), look.high)
        matching = int(np.count_nonzero(allowed[: built - look.base]))
        plan = filtered(self._limit, self._ef, matching=matching, built=sealed.count)
        if plan.exact:
            return self.exact(allowed)
        tails = best_in_range(
            self._files.rows, self._queries, built, look.high, allowed[built - look.base :], self._want
        )
        asked = self._asked()
        found: list[Found] = []
        for q, tail in enumerate(tails):
            slots = self._graphs_filtered(asked[q : q + 1], plan, allowed)
            if slots is None:
                alone = Search(look, self._files, self._queries[q : q + 1], self._limit, self._ef)
                found += alone.exact(allowed)
            else:
                found.append(self._best(q, np.concatenate((slots, tail))))
        return found

    # -- parts ----------------------------------------------------------------------------------------------

    def _asked(self) -> F32:
        """The queries as the graphs hold their rows."""
        return self._queries if self._sealed.mean is None else self._queries - self._sealed.mean

    def _count(self) -> int:
        look = self._look
        return candidates(self._limit, self._ef, look.record.points / (look.high - look.base or 1))

    def _one(self) -> Found:
        """One query: what most requests are."""
        asked, count = self._asked(), self._count()
        parts = [self._live_of(graph, asked, count)[: self._want] for graph in self._sealed.graphs]
        if self._look.high > self._sealed.built:
            parts += self._tails()
        return self._best(0, parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _live_of(self, graph: Graph, query: F32, count: int) -> I64:
        """The live ones of a graph's candidates; it is asked for more if `limit` are not among them."""
        while True:
            keys, _, found, _, _ = graph.search_many(query, count=count, exact=False, threads=1)
            slots: I64 = keys[0, : found[0]].view(np.int64)
            if self._live_everywhere:
                return slots
            slots = slots[self._are_live(slots)]
            if len(slots) >= self._limit or count >= len(graph):
                return slots
            count *= 2

    def _are_live(self, slots: I64) -> Bits:
        """By the bits; slots outside stand at the zero byte behind them."""
        bits = self._look.bits
        at = np.minimum((slots - self._base).view(np.uint64), np.uint64((len(bits) - 1) << 3)).view(np.int64)
        live: Bits = (bits[at >> 3] & _BIT[at & 7]) != 0
        return live

    def _tails(self) -> list[I64]:
        """Per query the best of the slots that no graph holds yet."""
        low = max(self._sealed.built, self._base)
        allowed = self._look.live_from(self._files, low)
        return best_in_range(self._files.rows, self._queries, low, self._look.high, allowed, self._want)

    def _many(self) -> list[Found]:
        """A batch, as one search of each graph."""
        asked, count = self._asked(), self._count()
        threads = self._look.reader.batch_threads if len(asked) >= _THREADS_FROM else 1
        found = [graph.search(asked, count, threads=threads) for graph in self._sealed.graphs]
        plain = len(found) == 1 and self._look.high <= self._sealed.built and self._look.clean
        if plain:
            [(slots, _, counts)] = found
            together = self._first_live(slots, counts)
            if together is not None:
                return self._best_of_all(together)
        parts = [[self._live_part(i, q, *one) for i, one in enumerate(found)] for q in range(len(asked))]
        if self._look.high > self._sealed.built:
            for part, tail in zip(parts, self._tails(), strict=True):
                part.append(tail)
        return [self._best(q, np.concatenate(part)) for q, part in enumerate(parts)]

    def _live_part(self, graph: int, q: int, slots: I64, _: F32, counts: I64) -> I64:
        """One query's live candidates of one graph."""
        mine = slots[q, : counts[q]]
        mine = mine[self._are_live(mine)]
        if len(mine) < self._limit and slots.shape[1] < len(self._sealed.graphs[graph]):
            mine = self._live_of(self._sealed.graphs[graph], self._asked()[q : q + 1], 2 * slots.shape[1])
        return mine[: self._want]

    def _first_live(self, slots: I64, counts: I64) -> I64 | None:
        """Each query's first live candidates, as many for each; None if some have too few."""
        want = min(self._want, slots.shape[1])
        if int(counts.min()) < slots.shape[1]:
            return None
        if self._live_everywhere:
            return slots[:, :want]
        live = self._are_live(slots.reshape(-1)).reshape(slots.shape)
        if int(live.sum(axis=1).min()) < want:
            return None
        order = np.argsort(~live, axis=1, kind="stable")[:, :want]
        return np.take_along_axis(slots, order, axis=1)

    def _graphs_filtered(self, query: F32, plan: SearchPlan, allowed: Bits) -> I64 | None:
        """Candidates that are allowed; None if an exact search is cheaper than to go on."""
        while plan is not EXACT:
            parts: list[I64] = []
            for graph in self._sealed.graphs:
                slots, _, found = graph.search(query, plan.count, threads=1)
                at = slots[0, : found[0]] - self._base
                at = at[(at >= 0) & (at < len(allowed))]
                parts.append(at[allowed[at]][: self._want] + self._base)
            if sum(map(len, parts)) >= self._limit:
                return np.concatenate(parts)
            plan = widened(plan, built=self._sealed.count)
        return None

    # -- scores ---------------------------------------------------------------------------------------------

    def _best(self, q: int, slots: I64) -> Found:
        """Candidates by their own rows: a score depends on its row alone, not on where it was found."""
        if not len(slots):
            return _NOTHING
        if not self._look.distinct:
            slots = self._newest(slots)
        rows = self._files.rows.all.take(slots, axis=0)
        scores = similarity(self._files.state.distance, rows, self._queries[q])
        return self._ranked(slots, scores)

    def _best_of_all(self, slots: I64) -> list[Found]:
        """The same for as many candidates (q, n) of each query."""
        metric = self._files.state.distance
        rows = self._files.rows.all.take(slots, axis=0)
        if metric.larger_is_better:
            scores: Sequence[F32] = np.vecdot(rows, self._queries[:, None, :])
        else:
            scores = [similarity(metric, rows[q], query) for q, query in enumerate(self._queries)]
        return [self._ranked(*one) for one in zip(slots, scores, strict=True)]

    def _ranked(self, slots: I64, scores: F32) -> Found:
        order = (-scores).argsort(kind="stable")[: self._limit + 1]
        ranked = scores[order]
        if len(set(ranked.tolist())) < len(ranked):
            order = best(scores, self._limit, lambda at: self._look.keys(slots[at]))
            return slots[order], scores[order]
        return slots[order[: self._limit]], ranked[: self._limit]

    def _newest(self, slots: I64) -> I64:
        """Of slots with the same id the newest."""
        newest: dict[bytes, int] = {}
        for key, slot in zip(self._look.keys(slots), slots.tolist(), strict=True):
            newest[key] = max(slot, newest.get(key, -1))
        return np.fromiter(newest.values(), np.int64, len(newest))


def nearest(
    look: Look,
    files: VectorFiles,
    queries: F32,
    *,
    limit: int,
    ef: int | None,
    exact: bool,
    where: Filter | None,
) -> list[Found]:
    """Per query the slots and similarities of at most `limit` live points, best first, ties by id key."""
    search = Search(look, files, queries, limit, ef)
    restricted = where is not None and not where.restricts_nothing
    if not restricted and not exact:
        return search.plain()
    allowed = look.live_with(files)
    if where is not None and restricted:
        allowed = allowed & look.reader.bitmaps.mask(look, where)
    if exact or not files.sealed.graphs:
        return search.exact(allowed)
    return search.filtered(allowed)
