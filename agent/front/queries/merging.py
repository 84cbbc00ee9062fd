"""Lists of hits from several shards, made into one: the same answer as from a single shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from agent.front.queries.leaves import Chosen, Hits
from core.query.order import first
from core.query.ranking import ranked
from core.query.scoring import F32, I64

NOTHING = Hits([], np.empty(0, np.int64), np.empty(0, np.float32), None, np.empty(0, np.int64))


def together(lists: Sequence[Hits]) -> Hits:
    """All hits, shard after shard."""
    if len(lists) == 1 and lists[0].source is not None:
        return lists[0]
    return Hits(
        keys=[key for hits in lists for key in hits.keys],
        slots=np.concatenate([hits.slots for hits in lists]),
        scores=np.concatenate([hits.scores for hits in lists]),
        order=None if lists[0].order is None else [value for hits in lists for value in hits.order or ()],
        source=np.repeat(np.arange(len(lists)), [len(hits) for hits in lists]),
    )


def by_score(lists: Sequence[Hits], limit: int) -> Hits:
    """The best of all, larger scores first."""
    if len(lists) == 1:
        return taken(together(lists), slice(limit))
    hits = together(lists)
    return taken(hits, ranked(hits.scores, hits.keys)[:limit])


def by_key(lists: Sequence[Hits], limit: int) -> Hits:
    """The first of all in id order."""
    hits = together(lists)
    order = sorted(range(len(hits)), key=hits.keys.__getitem__)
    return taken(hits, np.array(order[:limit], np.int64))


def by_order(lists: Sequence[Hits], limit: int, *, descending: bool) -> Hits:
    """The first of all by their order values."""
    hits = together(lists)
    values = hits.order or []
    at = {(value, key): i for i, (value, key) in enumerate(zip(values, hits.keys, strict=True))}
    return taken(hits, np.array([at[row] for row in first(at, limit, descending=descending)], np.int64))


def appended(*lists: Hits) -> Hits:
    """Merged lists one after the other."""
    return Hits(
        keys=[key for each in lists for key in each.keys],
        slots=np.concatenate([each.slots for each in lists]),
        scores=np.concatenate([each.scores for each in lists]),
        source=np.concatenate([_source(each) for each in lists]),
    )


def union(lists: Sequence[Hits]) -> Hits:
    """Each point of some merged lists once."""
    hits = appended(*lists)
    at: dict[bytes, int] = {}
    for i, key in enumerate(hits.keys):
        at.setdefault(key, i)
    return taken(hits, np.fromiter(at.values(), np.int64, len(at)))


def looked_up(hits: Hits, keys: Sequence[bytes], scores: F32) -> Hits:
    """Hits for these keys, which are all among `hits`, with new scores."""
    at = {key: i for i, key in enumerate(hits.keys)}
    order = np.fromiter((at[key] for key in keys), np.int64, len(keys))
    return Hits(list(keys), hits.slots[order], scores, None, _source(hits)[order])


def of_source(hits: Hits, source: int) -> tuple[I64, Chosen]:
    """The part of merged hits that one shard gave, and its positions."""
    at = np.flatnonzero(_source(hits) == source)
    return at, Chosen([hits.keys[i] for i in at.tolist()], hits.slots[at])


def taken(hits: Hits, at: I64 | slice) -> Hits:
    """The hits at some positions, in that order."""
    picked: Iterable[int] = range(len(hits))[at] if isinstance(at, slice) else at.tolist()
    if isinstance(at, slice) and len(range(len(hits))[at]) == len(hits):
        return hits
    positions = list(picked)
    return Hits(
        keys=[hits.keys[i] for i in positions],
        slots=hits.slots[at],
        scores=hits.scores[at],
        order=None if hits.order is None else [hits.order[i] for i in positions],
        source=None if hits.source is None else hits.source[at],
    )


def rescored(hits: Hits, scores: F32) -> Hits:
    """The same points with other scores."""
    return Hits(hits.keys, hits.slots, scores, hits.order, hits.source)


def ranked_anew(hits: Hits, scores: F32) -> Hits:
    """The same points in the order of other scores."""
    return taken(rescored(hits, scores), ranked(scores, hits.keys))


def _source(hits: Hits) -> I64:
    assert hits.source is not None, "lists are merged before they are combined"
    return hits.source
