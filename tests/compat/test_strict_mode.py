"""Strict mode over HTTP: limits that need to know what the collection holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.running.rest import Rest

pytestmark = pytest.mark.timeout(60)
ON_N = {"must": {"key": "n", "match": {"value": 1}}}


@pytest.fixture
def path(rest: Rest, collection_name: str) -> Iterator[str]:
    path = f"/collections/{collection_name}"
    assert rest.put(path, {"vectors": {"size": 4, "distance": "Dot"}}).result is True
    _upsert(rest, path, range(10))
    yield path
    rest.delete(path)


def _upsert(rest: Rest, path: str, ids: Any) -> Any:
    points = [{"id": i, "vector": [1, i, 0, 0], "payload": {"n": i, "text": "x" * 1000}} for i in ids]
    return rest.put(f"{path}/points", {"points": points}, wait=True)


def _limit(rest: Rest, path: str, **limits: Any) -> None:
    assert rest.patch(path, {"strict_mode_config": {"enabled": True, **limits}}).result is True


@pytest.mark.parametrize(
    ("place", "body"),
    [
        ("/points/query", {"query": [1, 0, 0, 0], "filter": ON_N}),
        ("/points/query", {"prefetch": {"filter": ON_N}, "query": [1, 0, 0, 0]}),
        ("/points/query/batch", {"searches": [{"filter": ON_N}]}),
        ("/points/query/groups", {"filter": ON_N, "query": [1, 0, 0, 0], "group_by": "n"}),
        ("/points/scroll", {"filter": ON_N}),
        ("/points/count", {"filter": ON_N}),
        ("/facet", {"key": "n", "filter": ON_N}),
        ("/points/search/matrix/pairs", {"filter": ON_N}),
    ],
)
def test_reads_may_need_an_index(rest: Rest, path: str, place: str, body: dict[str, Any]) -> None:
    _limit(rest, path, unindexed_filtering_retrieve=False)
    answer = rest.post(path + place, body)
    assert answer.status == 400
    assert 'Index required but not found for "n"' in answer.error
    assert rest.put(f"{path}/index", {"field_name": "n", "field_schema": "integer"}, wait=True).result
    assert rest.post(path + place, body).status == 200


def test_writes_may_need_an_index(rest: Rest, path: str) -> None:
    _limit(rest, path, unindexed_filtering_update=False)
    writes = [
        ("POST", "/points/payload", {"payload": {"a": 1}, "filter": ON_N}),
        ("PUT", "/points/payload", {"payload": {"a": 1}, "filter": ON_N}),
        ("POST", "/points/vectors/delete", {"vector": [""], "filter": ON_N}),
        ("POST", "/points/batch", {"operations": [{"delete": {"filter": ON_N}}]}),
        ("POST", "/points/delete", {"filter": ON_N}),
    ]
    for method, place, body in writes:
        assert "Index required" in rest.call(method, path + place, body, wait=True).error
    assert rest.post(f"{path}/points/count", {"filter": ON_N}).result == {"count": 1}
    assert rest.put(f"{path}/index", {"field_name": "n", "field_schema": "integer"}, wait=True).result
    for method, place, body in writes:
        assert rest.call(method, path + place, body, wait=True).status == 200


@pytest.mark.parametrize(
    ("limit", "kind"),
    [("max_collection_vector_size_bytes", "vector"), ("max_collection_payload_size_bytes", "payload")],
)
def test_a_collection_may_be_full(rest: Rest, path: str, limit: str, kind: str) -> None:
    _limit(rest, path, **{limit: 1 << 30})
    assert _upsert(rest, path, range(10, 20)).status == 200
    _limit(rest, path, **{limit: 100})
    answer = _upsert(rest, path, [99])
    assert answer.status == 400
    assert f"Max {kind} storage size limit of 100 bytes reached" in answer.error
    assert rest.post(f"{path}/points/delete", {"points": [1]}, wait=True).status == 200
