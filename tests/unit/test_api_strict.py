"""Strict mode: each limit lets through what it allows and refuses what is over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from core.api import points, queries, searches, strict
from core.api.config import CollectionParams, Distance, StrictMode, VectorParams
from core.api.decode import decode
from core.errors import BadRequest

VECTORS = {"": VectorParams(1, Distance.DOT)}


def search(**body: Any) -> searches.Search:
    return searches.parse_query(decode(queries.QueryBody, json.dumps(body).encode()), VECTORS)


def upsert(count: int) -> points.Operation:
    body = {"points": [{"id": i, "vector": [1]} for i in range(count)]}
    return points.parse_upsert(decode(points.Upsert, json.dumps(body).encode()), VECTORS)


ANY_OF_THREE = {"must": [{"key": "a", "match": {"any": [1, 2, 3]}}, {"must_not": {"has_id": [1]}}]}
Check = Callable[[StrictMode], None]


@pytest.mark.parametrize(
    ("limits", "allowed", "over"),
    [
        (
            {"max_query_limit": 5},
            lambda s: strict.check_search(s, search(limit=5), ()),
            lambda s: strict.check_search(s, search(query=[1], prefetch={"query": [1], "limit": 6}), ()),
        ),
        ({"max_query_limit": 5}, lambda s: strict.check_limit(s, 5), lambda s: strict.check_limit(s, 6)),
        ({"max_timeout": 5}, lambda s: strict.check_timeout(s, 5), lambda s: strict.check_timeout(s, 5.5)),
        (
            {"filter_max_conditions": 2},
            lambda s: strict.check_search(s, search(filter=ANY_OF_THREE), ()),
            lambda s: strict.check_search(s, search(filter={"should": [ANY_OF_THREE, {"has_id": [1]}]}), ()),
        ),
        (
            {"condition_max_size": 3},
            lambda s: strict.check_search(s, search(filter=ANY_OF_THREE), ()),
            lambda s: strict.check_search(s, search(filter={"must": {"has_id": [1, 2, 3, 4]}}), ()),
        ),
        (
            {"search_max_hnsw_ef": 64},
            lambda s: strict.check_search(s, search(params={"hnsw_ef": 64}), ()),
            lambda s: strict.check_search(s, search(params={"hnsw_ef": 65}), ()),
        ),
        (
            {"search_allow_exact": False},
            lambda s: strict.check_search(s, search(), ()),
            lambda s: strict.check_search(s, search(params={"exact": True}), ()),
        ),
        ({"search_max_batchsize": 2}, lambda s: strict.check_batch(s, 2), lambda s: strict.check_batch(s, 3)),
        (
            {"upsert_max_batchsize": 2},
            lambda s: strict.check_write(s, upsert(2), ()),
            lambda s: strict.check_write(s, upsert(3), ()),
        ),
        (
            {"max_points_count": 2},
            lambda s: strict.check_points_count(s, 1),
            lambda s: strict.check_points_count(s, 2),
        ),
        (
            {"max_collection_vector_size_bytes": 100},
            lambda s: strict.check_storage(s, 99, 1_000),
            lambda s: strict.check_storage(s, 100, 0),
        ),
        (
            {"max_collection_payload_size_bytes": 100},
            lambda s: strict.check_storage(s, 1_000, 99),
            lambda s: strict.check_storage(s, 0, 100),
        ),
        (
            {"max_payload_index_count": 2},
            lambda s: strict.check_index_count(s, 2),
            lambda s: strict.check_index_count(s, 3),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_limit_holds_when_strict_mode_is_on(limits: dict[str, Any], allowed: Check, over: Check) -> None:
    on = strict.strict_mode(CollectionParams(strict_mode_config=StrictMode(enabled=True, **limits)))
    assert on is not None
    allowed(on)
    with pytest.raises(BadRequest, match="strict mode"):
        over(on)


@pytest.mark.parametrize("config", [None, StrictMode(max_query_limit=1), StrictMode(enabled=False)])
def test_without_strict_mode_nothing_is_limited(config: StrictMode | None) -> None:
    off = strict.strict_mode(CollectionParams(strict_mode_config=config))
    assert off is None
    strict.check_search(off, search(limit=100, filter=ANY_OF_THREE, params={"exact": True}), ())
    strict.check_write(off, upsert(3), ())
    strict.check_batch(off, 1_000)


PATHS = {"a", "l[].b"}


def test_filters_may_be_limited_to_indexed_fields() -> None:
    nested = {"nested": {"key": "l", "filter": {"must": {"key": "b", "match": {"value": 1}}}}}
    where = {"must": [{"is_null": {"key": "a"}}, nested, {"has_id": [1]}]}
    reads = StrictMode(enabled=True, unindexed_filtering_retrieve=False)
    writes = StrictMode(enabled=True, unindexed_filtering_update=False)
    found, write = search(filter=where), deletion(where)
    for mode in (reads, writes):
        strict.check_search(mode, found, PATHS)
        strict.check_write(mode, write, PATHS)
    strict.check_write(reads, write, ())
    strict.check_search(writes, found, ())
    strict.check_search(StrictMode(enabled=True, unindexed_filtering_retrieve=True), found, ())
    for path in PATHS:
        with pytest.raises(BadRequest, match="Index required but not found"):
            strict.check_search(reads, found, PATHS - {path})
        with pytest.raises(BadRequest, match="Index required but not found"):
            strict.check_write(writes, write, PATHS - {path})


def test_filters_of_writes_have_the_limits_of_others() -> None:
    few = StrictMode(enabled=True, filter_max_conditions=1)
    strict.check_write(few, deletion({"must": {"has_id": [1]}}), ())
    with pytest.raises(BadRequest, match="filter conditions"):
        strict.check_write(few, deletion(ANY_OF_THREE), ())


def deletion(where: dict[str, Any]) -> points.Operation:
    return points.parse_delete(decode(points.Selector, json.dumps({"filter": where}).encode()))
