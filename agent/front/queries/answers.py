"""Answers of the read API as values that msgspec encodes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from agent.front.queries.candidates import Candidates
from agent.front.queries.collection import Collection
from agent.front.queries.leaves import Hits
from agent.front.queries.plan import VectorSpec
from core.hashing import PointId, point_id
from core.payload import PayloadSelector, decode_payload
from core.query.order import OrderValue
from core.query.scoring import finite

PayloadAnswer = Raw | dict[str, Any]
VectorAnswer = list[float] | dict[str, list[float]]
_EMPTY = Raw(b"{}")


class ScoredPoint(Struct, frozen=True, gc=False):
    id: PointId
    version: int
    score: float
    payload: PayloadAnswer | UnsetType = UNSET
    vector: VectorAnswer | UnsetType = UNSET
    order_value: OrderValue | UnsetType = UNSET


class Record(Struct, frozen=True, gc=False):
    id: PointId
    payload: PayloadAnswer | UnsetType = UNSET
    vector: VectorAnswer | UnsetType = UNSET
    order_value: OrderValue | UnsetType = UNSET


class Points(Struct, frozen=True):
    points: list[ScoredPoint]


class ScrollPage(Struct, frozen=True):
    points: list[Record]
    next_page_offset: PointId | None


class Group(Struct, frozen=True):
    id: str | int
    hits: list[ScoredPoint]
    lookup: Record | UnsetType = UNSET


class Groups(Struct, frozen=True):
    groups: list[Group]


class Count(Struct, frozen=True):
    count: int


class FacetHit(Struct, frozen=True):
    value: str | int | bool
    count: int


class Facets(Struct, frozen=True):
    hits: list[FacetHit]


class Pair(Struct, frozen=True):
    a: PointId
    b: PointId
    score: float


class MatrixPairs(Struct, frozen=True):
    pairs: list[Pair]


class MatrixOffsets(Struct, frozen=True):
    offsets_row: list[int]
    offsets_col: list[int]
    scores: list[float]
    ids: list[PointId]


_SLICE = 1024
_json = msgspec.json.Encoder().encode


def encoded(answer: object) -> bytes:
    """JSON. Long lists go in slices: encoding holds the interpreter's lock, which the loop needs, too."""
    if isinstance(answer, ScrollPage) and len(answer.points) > _SLICE:
        return b'{"points":%s,"next_page_offset":%s}' % (
            encoded(answer.points),
            _json(answer.next_page_offset),
        )
    if isinstance(answer, list) and len(answer) > _SLICE:
        slices = [_json(answer[at : at + _SLICE])[1:-1] for at in range(0, len(answer), _SLICE)]
        return b"[" + b",".join(slices) + b"]"
    return _json(answer)


class Wanted(Struct, frozen=True):
    """What an answer carries of each point beside its id."""

    payload: PayloadSelector
    vectors: tuple[VectorSpec, ...] | None = None


def scored_points(collection: Collection, hits: Hits, wanted: Wanted) -> list[ScoredPoint]:
    """Hits as the query calls answer them."""
    if not hits.keys:
        return []
    rows = Candidates(collection.sources, hits)
    columns = _columns(rows, wanted)
    versions, scores = rows.seqs().tolist(), finite(hits.scores).tolist()
    return [
        ScoredPoint(point_id(key), version, score, *rest)
        for key, version, score, rest in zip(hits.keys, versions, scores, columns, strict=True)
    ]


def records(collection: Collection, hits: Hits, wanted: Wanted) -> list[Record]:
    """Hits as scroll and retrieve answer them."""
    if not hits.keys:
        return []
    columns = _columns(Candidates(collection.sources, hits), wanted)
    return [Record(point_id(key), *rest) for key, rest in zip(hits.keys, columns, strict=True)]


def payload_answers(payloads: Sequence[bytes], selector: PayloadSelector) -> list[PayloadAnswer]:
    """Stored payloads, spliced in as they are unless only a part is wanted."""
    if selector.whole:
        return [Raw(raw) if raw else _EMPTY for raw in payloads]
    return [selector.apply(decode_payload(raw)) for raw in payloads]


_Rest = tuple[PayloadAnswer | UnsetType, VectorAnswer | UnsetType, OrderValue | UnsetType]


def _columns(rows: Candidates, wanted: Wanted) -> list[_Rest]:
    n = len(rows)
    unset: list[UnsetType] = [UNSET] * n
    payloads = payload_answers(rows.payloads(), wanted.payload) if wanted.payload.wanted else unset
    vectors = unset if wanted.vectors is None else _vectors(rows, wanted.vectors)
    order = unset if rows.hits.order is None else rows.hits.order
    return list(zip(payloads, vectors, order, strict=True))


def _vectors(rows: Candidates, wanted: Sequence[VectorSpec]) -> list[VectorAnswer]:
    """A bare list where the default vector is all a point has of what is wanted, else a dict."""
    named: list[dict[str, list[float]]] = [{} for _ in range(len(rows))]
    for vector in wanted:
        has = np.flatnonzero(rows.has(vector))
        for i, row in zip(has.tolist(), rows.rows(vector)[has].tolist(), strict=True):
            named[i][vector.name] = row
    return [each[""] if len(each) == 1 and "" in each else each for each in named]
