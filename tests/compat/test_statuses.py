"""Statuses: each mistake of a caller has its own, names its field, and changes nothing."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.running.rest import Rest

pytestmark = pytest.mark.timeout(60)

VECTOR = [0.1, 0.2, 0.3, 0.4]
UNKNOWN = "no-such-collection"
OPEN = {"points": [{"lat": i, "lon": i % 2} for i in range(4)]}
MULTI = {"comparator": "max_sim"}
POINT = {"id": 1, "vector": VECTOR}


@pytest.fixture(scope="module")
def path(shared_agent: Any) -> Iterator[str]:
    """A collection with one default vector and three points."""
    rest, name = shared_agent.rest(), f"s-{uuid.uuid4().hex[:10]}"
    path = f"/collections/{name}"
    assert rest.put(path, {"vectors": {"size": 4, "distance": "Cosine"}}).result is True
    points = [{"id": i, "vector": [1, i, 0, 0], "payload": {"n": i}} for i in (1, 2, 3)]
    assert rest.put(f"{path}/points", {"points": points}, wait=True).result["status"] == "completed"
    yield path
    rest.delete(path)


@pytest.fixture(scope="module")
def named(shared_agent: Any) -> Iterator[str]:
    rest, path = shared_agent.rest(), f"/collections/s-{uuid.uuid4().hex[:10]}"
    vectors = {"a": {"size": 4, "distance": "Dot"}, "b": {"size": 2, "distance": "Euclid"}}
    assert rest.put(path, {"vectors": vectors}).result is True
    yield path
    rest.delete(path)


def _deep(levels: int) -> bytes:
    """A body whose filter nests so often: made as text, for Python's own encoder gives up at a thousand."""
    inner = '{"must": [' * levels + '{"key": "n", "match": {"value": 1}}' + "]}" * levels
    return f'{{"filter": {inner}}}'.encode()


BAD_QUERIES: list[tuple[int, dict[str, Any], str]] = [
    (400, {"query": "not an id"}, ""),
    (400, {"query": [1, 2, 3]}, "4"),
    (400, {"query": [1, 2, 3, "x"]}, ""),
    (400, {"query": VECTOR, "using": "no"}, "Not existing vector name error"),
    (400, {"query": {"fusion": "rrf"}}, ""),
    (400, {"query": {"fusion": "rrf"}, "using": "x", "prefetch": [{"query": VECTOR}] * 2}, ""),
    (400, {"prefetch": [{"query": VECTOR}]}, ""),
    (400, {"score_threshold": 0.5}, "score_threshold"),
    (400, {"query": {"order_by": "n"}, "score_threshold": 0.5}, "score_threshold"),
    (
        400,
        {"query": {"rrf": {"weights": [1]}}, "prefetch": [{"query": VECTOR}, {"query": VECTOR}]},
        "weights",
    ),
    (400, {"query": VECTOR, "filter": {"must": [{"key": "a..b", "match": {"value": 1}}]}}, ""),
    (
        400,
        {"query": VECTOR, "filter": {"must": [{"key": "p", "geo_polygon": {"exterior": {"points": []}}}]}},
        "",
    ),
    (400, {"query": VECTOR, "filter": {"must": [{"has_id": [-1]}]}}, ""),
    (400, {"query": {"recommend": {"positive": [[1, 2]]}}}, ""),
    (400, {"query": {"indices": [1], "values": [1.0]}}, ""),
    (400, {"query": [VECTOR, VECTOR]}, ""),
    (400, {"query": {"text": "hello", "model": "any"}}, ""),
    (400, {"query": VECTOR, "shard_key": "k"}, "shard_key"),
    (404, {"query": 99}, "99"),
    (404, {"query": 1, "lookup_from": {"collection": UNKNOWN}}, "Not found: Collection"),
    (422, {"query": VECTOR, "limit": 0}, "limit"),
    (422, {"query": []}, ""),
    (422, {"query": {"recommend": {}}}, ""),
    (422, {"query": VECTOR, "filter": {"must": [{"key": "n"}]}}, ""),
]

BAD_UPSERTS: list[tuple[int, Any, str]] = [
    (400, b"{", ""),
    (400, b"\xff\xfe", ""),
    (400, b'{"points": [{"id": 9, "vector": [NaN, 0, 0, 0]}]}', ""),
    (400, b'{"points": [{"id": 9, "vector": [1e999, 0, 0, 0]}]}', ""),
    (400, b'{"points": [{"id": 9, "vector": [1e39, 0, 0, 0]}]}', ""),
    (400, b"[" * 100_000, ""),
    (400, [], ""),
    (400, {"points": [{"id": -9, "vector": VECTOR}]}, "id"),
    (400, {"points": [{"id": 2**64, "vector": VECTOR}]}, "id"),
    (400, {"points": [{"id": 1.5, "vector": VECTOR}]}, "id"),
    (400, {"points": [{"id": "nine", "vector": VECTOR}]}, "id"),
    (400, {"points": [{"id": "12", "vector": VECTOR}]}, "id"),
    (400, {"points": [{"id": 9, "vector": [1, 2]}]}, "4"),
    (400, {"points": [{"id": 9, "vector": {"no": VECTOR}}]}, "Not existing vector name error"),
    (400, {"points": [{"id": 9, "vector": VECTOR, "payload": [1]}]}, "payload"),
    (400, {"points": [{"id": 9, "vector": [VECTOR]}]}, ""),
    (400, {"points": [{"id": 9, "vector": {"indices": [1], "values": [1.0]}}]}, ""),
    (400, {"points": [{"id": 9, "vector": {"text": "x", "model": "m"}}]}, ""),
    (400, {"points": [POINT], "shard_key": "k"}, "shard_key"),
    (422, {"points": [{"id": 9, "vector": []}]}, ""),
    (422, {"batch": {"ids": [8, 9], "vectors": [VECTOR]}}, ""),
]

BAD_COLLECTIONS: list[tuple[int, dict[str, Any], str]] = [
    (422, {"vectors": {"size": 0, "distance": "Dot"}}, "size"),
    (422, {"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 0}, "shard_number"),
    (400, {"vectors": {"size": 4, "distance": "Angle"}}, "distance"),
    (400, {"vectors": {"size": "four", "distance": "Dot"}}, "size"),
    (400, {"vectors": {"size": 4}}, "distance"),
    (400, {"sparse_vectors": {"s": {}}}, "sparse_vectors"),
    (
        400,
        {"vectors": {"size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}},
        "multi",
    ),
    (400, {"vectors": {"size": 4, "distance": "Dot"}, "sharding_method": "custom"}, "sharding_method"),
]


def _short(value: Any) -> str:
    return repr(value)[:70]


def _must_be(answer: Any, status: int, text: str) -> None:
    assert answer.status == status, answer.text[:300]
    assert text in answer.error


@pytest.mark.parametrize(("status", "body", "text"), BAD_QUERIES, ids=_short)
def test_a_wrong_query(rest: Rest, path: str, status: int, body: dict[str, Any], text: str) -> None:
    _must_be(rest.post(f"{path}/points/query", body), status, text)


@pytest.mark.parametrize(("status", "body", "text"), BAD_QUERIES, ids=_short)
def test_a_wrong_query_in_a_batch(rest: Rest, path: str, status: int, body: Any, text: str) -> None:
    searches = {"searches": [{"query": VECTOR}, body]}
    _must_be(rest.post(f"{path}/points/query/batch", searches), status, text)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(("status", "body", "text"), BAD_UPSERTS, ids=_short)
def test_a_wrong_upsert_changes_nothing(
    rest: Rest, path: str, status: int, body: Any, text: str, wait: bool
) -> None:
    if isinstance(body, dict) and "points" in body:
        body = body | {"points": [{"id": 77, "vector": VECTOR}, *body["points"]]}
    _must_be(rest.put(f"{path}/points", body, wait=wait), status, text)
    assert rest.get(f"{path}/points/77").status == 404
    assert rest.get(f"{path}/points/9").status == 404


@pytest.mark.parametrize(("status", "body", "text"), BAD_COLLECTIONS, ids=_short)
def test_a_wrong_collection_is_not_made(
    rest: Rest, collection_name: str, status: int, body: dict[str, Any], text: str
) -> None:
    _must_be(rest.put(f"/collections/{collection_name}", body), status, text)
    assert rest.get(f"/collections/{collection_name}/exists").result == {"exists": False}


def test_a_duplicate_collection(rest: Rest, path: str) -> None:
    answer = rest.put(path, {"vectors": {"size": 4, "distance": "Dot"}})
    _must_be(answer, 409, "already exists")
    assert "already exists" in answer.text[:200]  # callers look there only


@pytest.mark.parametrize(
    ("method", "rest_of_path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {}),
        ("PUT", "/points", {"points": [POINT]}),
        ("POST", "/points", {"ids": [1]}),
        ("GET", "/points/1", None),
        ("POST", "/points/query", {"query": VECTOR}),
        ("POST", "/points/query/batch", {"searches": [{"query": VECTOR}]}),
        ("POST", "/points/query/groups", {"query": VECTOR, "group_by": "n"}),
        ("POST", "/points/scroll", {}),
        ("POST", "/points/count", {}),
        ("POST", "/points/delete", {"points": [1]}),
        ("POST", "/points/payload", {"payload": {}, "points": [1]}),
        ("POST", "/points/batch", {"operations": [{"delete": {"points": [1]}}]}),
        ("POST", "/facet", {"key": "n"}),
        ("POST", "/points/search/matrix/pairs", {}),
        ("PUT", "/index", {"field_name": "n", "field_schema": "integer"}),
        ("GET", "/cluster", None),
        ("GET", "/aliases", None),
        ("GET", "/snapshots", None),
        ("POST", "/snapshots", None),
    ],
)
def test_an_unknown_collection(rest: Rest, method: str, rest_of_path: str, body: Any) -> None:
    answer = rest.call(method, f"/collections/{UNKNOWN}{rest_of_path}", body)
    _must_be(answer, 404, "Not found: Collection")


def test_what_is_unknown_but_fine(rest: Rest, path: str) -> None:
    assert rest.delete(f"/collections/{UNKNOWN}").result is False
    assert rest.get(f"/collections/{UNKNOWN}/exists").result == {"exists": False}
    assert rest.post(f"{path}/points", {"ids": [99]}).result == []
    assert rest.post(f"{path}/points/delete", {"points": [99]}, wait=True).result["status"] == "completed"
    assert rest.delete(f"{path}/index/none", wait=True).result["status"] == "completed"


def test_a_missing_point(rest: Rest, path: str) -> None:
    assert rest.get(f"{path}/points/99").status == 404
    assert rest.get(f"{path}/points/{uuid.uuid4()}").status == 404
    assert rest.get(f"{path}/points/not-an-id").status == 400
    assert rest.get(f"{path}/points/1").result["payload"] == {"n": 1}


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 256, "a\0b", "a\\b", "é?", "."])
def test_a_bad_collection_name(rest: Rest, name: str) -> None:
    from urllib.parse import quote

    answer = rest.put(f"/collections/{quote(name, safe='')}", {"vectors": {"size": 4, "distance": "Dot"}})
    assert answer.status in (400, 404, 405, 422), (name, answer.text[:200])


def test_unnamed_vectors_where_they_are_named(rest: Rest, named: str) -> None:
    assert rest.put(f"{named}/points", {"points": [POINT]}, wait=True).status == 400
    assert rest.post(f"{named}/points/query", {"query": VECTOR}).status == 400


@pytest.mark.parametrize("spelling", ["hyphens", "hex", "urn", "braces", "upper"])
def test_every_spelling_of_a_uuid_is_one_id(rest: Rest, path: str, spelling: str) -> None:
    value = uuid.UUID("6f9619ff-8b86-4011-b42d-00c04fc964ff")
    spelt = {
        "hyphens": str(value),
        "hex": value.hex,
        "urn": value.urn,
        "braces": f"{{{value}}}",
        "upper": str(value).upper(),
    }[spelling]
    assert rest.put(f"{path}/points", {"points": [{"id": spelt, "vector": VECTOR}]}, wait=True).result
    found = rest.post(f"{path}/points", {"ids": [spelt]}).result
    assert [point["id"] for point in found] == [str(value)]
    assert rest.post(f"{path}/points/delete", {"points": [spelt]}, wait=True).result


def test_filters_too_deep_are_refused(rest: Rest, path: str) -> None:
    assert rest.post(f"{path}/points/count", _deep(5)).status == 200
    assert rest.post(f"{path}/points/count", _deep(5000)).status == 400


def test_payload_edits_of_missing_points_do_the_rest(rest: Rest, path: str) -> None:
    body = {"payload": {"seen": True}, "points": [999, 3]}
    answer = rest.post(f"{path}/points/payload", body, wait=True)
    _must_be(answer, 404, "999")
    assert rest.get(f"{path}/points/3").result["payload"]["seen"] is True


def test_a_cosine_vector_comes_back_normalised(rest: Rest, path: str) -> None:
    points = [{"id": 500, "vector": [3, 4, 0, 0]}, {"id": 501, "vector": [0, 0, 0, 0]}]
    assert rest.put(f"{path}/points", {"points": points}, wait=True).result
    found = rest.post(f"{path}/points", {"ids": [500, 501], "with_vector": True}).result
    assert [point["vector"] for point in found] == [pytest.approx([0.6, 0.8, 0, 0]), [0, 0, 0, 0]]
    assert rest.post(f"{path}/points/delete", {"points": [500, 501]}, wait=True).result


def test_scores_are_finite(rest: Rest, path: str) -> None:
    points = rest.post(f"{path}/points/query", {"query": [0, 0, 0, 0], "limit": 5}).result["points"]
    assert all(math.isfinite(point["score"]) for point in points)


def test_a_formula_that_leaves_f32(rest: Rest, path: str) -> None:
    body = {"prefetch": {"query": VECTOR}, "query": {"formula": {"ln": 0.0}}}
    _must_be(rest.post(f"{path}/points/query", body), 400, "produced a non-finite number")


def test_a_formula_without_a_value_or_default(rest: Rest, path: str) -> None:
    body = {"prefetch": {"query": VECTOR}, "query": {"formula": "no.such.key"}}
    _must_be(rest.post(f"{path}/points/query", body), 400, "in the payload and/or in the formula defaults")


def test_the_root_and_the_probes_have_no_envelope(rest: Rest) -> None:
    root = rest.get("/")
    assert root.status == 200
    assert root.body["version"].startswith("1.19")
    for probe in ("/healthz", "/livez", "/readyz"):
        answer = rest.get(probe)
        assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")


def test_unknown_paths_and_methods_have_an_error_in_words(rest: Rest) -> None:
    assert rest.get("/no/such/path").status == 404
    assert rest.call("TRACE", "/collections").status in (400, 404, 405)
    assert rest.delete("/collections").status in (404, 405)


def test_a_trailing_slash_is_fine(rest: Rest, path: str) -> None:
    assert rest.get("/collections/").status == 200
    assert rest.get(f"{path}/").status == 200


def test_null_counts_as_missing_and_unknown_fields_are_ignored(rest: Rest, path: str) -> None:
    body = {"query": VECTOR, "filter": None, "limit": None, "params": None, "surprise": {"a": 1}}
    assert len(rest.post(f"{path}/points/query", body).result["points"]) >= 3


def test_a_request_id_comes_back(rest: Rest) -> None:
    answer = rest.call("GET", "/collections", headers={"X-Request-Id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"


def test_a_method_that_is_not_allowed_names_those_that_are(rest: Rest, path: str) -> None:
    answer = rest.delete("/collections")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    assert rest.call("HEAD", f"{path}/points/query").headers["allow"] == "POST"


@pytest.mark.parametrize("place", ["/", "/healthz", "/readyz", "/metrics", "/collections", "/telemetry"])
def test_head_is_get_without_its_body(rest: Rest, place: str) -> None:
    """Load balancers ask so."""
    answer = rest.call("HEAD", place)
    assert (answer.status, answer.text) == (200, "")
    assert int(answer.headers["content-length"]) > 0
    assert rest.get("/healthz").status == 200  # the connection is still in step


def test_head_of_what_is_not_there(rest: Rest) -> None:
    assert rest.call("HEAD", f"/collections/{UNKNOWN}").status == 404
    assert rest.call("HEAD", "/no/such/path").status == 404


@pytest.mark.parametrize("wrong", [{"wait": "perhaps"}, {"ordering": "tidy"}, {"timeout": "0"}], ids=_short)
def test_a_wrong_query_string_changes_nothing(rest: Rest, path: str, wrong: dict[str, Any]) -> None:
    calls = [
        ("PUT", f"{path}/points", {"points": [{"id": 78, "vector": VECTOR}]}),
        ("POST", f"{path}/points/delete", {"points": [1]}),
        ("PUT", f"{path}/index", {"field_name": "n", "field_schema": "integer"}),
        ("DELETE", f"{path}/index/n", None),
        ("PUT", f"{path}/vectors/w", {"dense": {"size": 2, "distance": "Dot"}}),
        ("PATCH", path, {"metadata": {"a": 1}}),
    ]
    before = rest.get(path).result
    for method, place, body in calls:
        _must_be(rest.call(method, place, body, **wrong), 400, next(iter(wrong)))
    assert rest.get(path).result == before
