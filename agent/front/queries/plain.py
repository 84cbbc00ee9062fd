"""The hot path: vector searches over all points of local shards, without plan, tree or copies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import cast

import numpy as np

from agent.front.queries.answers import ScoredPoint, Wanted, payload_answers, scored_points
from agent.front.queries.collection import Collection
from agent.front.queries.leaves import Hits
from agent.front.queries.port import F32, I64, ShardView
from agent.front.queries.source import LocalSource
from core.api.searches import Nearest, Search
from core.hashing import point_id
from core.query.ranking import ranked
from core.query.scoring import scores_of

Found = tuple[I64, F32]
"""Slots and their similarities s, best first."""


def is_plain(search: Search) -> bool:
    """Whether it is one step: a vector, perhaps a filter and a threshold."""
    node = search.node
    return (
        isinstance(node.query, Nearest)
        and not isinstance(node.query.example, bytes)
        and not node.prefetch
        and node.lookup is None
    )


def batch_key(search: Search) -> Hashable:
    """Plain searches with equal keys run as one batch."""
    node = search.node
    return (node.using, node.ef, node.exact, node.filter)


def answers(
    collection: Collection, searches: Sequence[Search], wanted: Sequence[Wanted]
) -> list[list[ScoredPoint]]:
    """As Reads.query for each of some plain searches with one batch key. Raises BadRequest."""
    node = searches[0].node
    vector = collection.vector(node.using)
    limit = max([search.node.limit + search.node.offset for search in searches])
    vectors = [cast(F32, cast(Nearest, search.node.query).example) for search in searches]
    queries = vectors[0][None] if len(vectors) == 1 else np.stack(vectors)
    views = [cast(LocalSource, source).view for source in collection.sources]
    found = [
        view.nearest(vector.v, queries, limit=limit, ef=node.ef, exact=node.exact, where=node.filter)
        for view in views
    ]
    if len(views) == 1:
        pages = [_page(search, collection, each) for search, each in zip(searches, found[0], strict=True)]
        return _points_of_all(collection, views[0], pages, wanted)
    return [
        _merged(collection, views, [each[i] for each in found], search, wanted[i])
        for i, search in enumerate(searches)
    ]


def _page(search: Search, collection: Collection, found: Found) -> Found:
    """The part of a shard's answer that the search asks for, with API scores."""
    node, (slots, s) = search.node, found
    metric = collection.vectors[node.using].metric
    scores = scores_of(metric, s)
    if node.threshold is not None:
        bound = np.float32(node.threshold)
        passed = scores > bound if metric.larger_is_better else scores < bound
        slots, scores = slots[passed], scores[passed]
    if node.offset or len(slots) > node.limit:
        page = slice(node.offset, node.offset + node.limit)
        slots, scores = slots[page], scores[page]
    return slots, scores


def _points_of_all(
    collection: Collection, view: ShardView, pages: Sequence[Found], wanted: Sequence[Wanted]
) -> list[list[ScoredPoint]]:
    """Each page as points; ids, versions and rows of all of them are read together."""
    slots = pages[0][0] if len(pages) == 1 else np.concatenate([slots for slots, _ in pages])
    keys = view.keys(slots)
    if any(want.payload.wanted for want in wanted):
        view.payloads(slots)  # the look keeps what it has read
    versions = view.seqs(slots).tolist()
    points: list[list[ScoredPoint]] = []
    at = 0
    for page, want in zip(pages, wanted, strict=True):
        to = at + len(page[0])
        points.append(_points(collection, view, page, want, keys[at:to], versions[at:to]))
        at = to
    return points


def _points(
    collection: Collection,
    view: ShardView,
    page: Found,
    wanted: Wanted,
    keys: list[bytes],
    versions: list[int],
) -> list[ScoredPoint]:
    slots, scores = page
    if wanted.vectors is not None:
        source = np.zeros(len(slots), np.int64)
        return scored_points(collection, Hits(keys, slots, scores, source=source), wanted)
    listed = scores.tolist()
    if not wanted.payload.wanted:
        return [
            ScoredPoint(point_id(key), version, score)
            for key, version, score in zip(keys, versions, listed, strict=True)
        ]
    payloads = payload_answers(view.payloads(slots), wanted.payload)
    return [
        ScoredPoint(point_id(key), version, score, payload)
        for key, version, score, payload in zip(keys, versions, listed, payloads, strict=True)
    ]


def _merged(
    collection: Collection, views: Sequence[ShardView], found: Sequence[Found], search: Search, wanted: Wanted
) -> list[ScoredPoint]:
    """The best of all shards; only of those are payloads read."""
    keys = [key for view, (slots, _) in zip(views, found, strict=True) for key in view.keys(slots)]
    slots = np.concatenate([each for each, _ in found])
    s = np.concatenate([each for _, each in found])
    # By s, not by score: a distance's square root makes ties of what s tells apart.
    ranks = ranked(s, keys)
    order, scores = _page(search, collection, (ranks, s[ranks]))
    source = np.repeat(np.arange(len(views)), [len(each) for each, _ in found])
    hits = Hits([keys[i] for i in order.tolist()], slots[order], scores, source=source[order])
    return scored_points(collection, hits, wanted)
