"""Writes: vectors packed into rows, payloads kept as they came, points chosen by ids or filter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api import points
from core.api.checks import Limits
from core.api.config import Distance, VectorParams
from core.api.decode import decode
from core.api.filters import read_filter
from core.api.vectors import normalise, query_row
from core.errors import BadRequest, NotSupported, ShoalError, Unprocessable
from core.filters import Filter, HasId
from core.hashing import id_key
from core.payload import parse_path

DOT = {"": VectorParams(3, Distance.DOT)}
COSINE = {"": VectorParams(3, Distance.COSINE)}
NAMED = {"a": VectorParams(3, Distance.DOT), "b": VectorParams(2, Distance.COSINE)}
F32_MAX = 3.4028234663852886e38


def upsert(vectors: dict[str, VectorParams] = DOT, **body: Any) -> points.UpsertPoints:
    return points.parse_upsert(decode(points.Upsert, json.dumps(body).encode()), vectors)


def point(id_: Any, vector: Any, **rest: Any) -> dict[str, Any]:
    return {"id": id_, "vector": vector, **rest}


def test_points_become_rows() -> None:
    found = upsert(points=[point(7, [1, 2, 3], payload={"a": 1}), point(8, [4.5, 5, 6])])
    assert found.keys == (id_key(7), id_key(8))
    assert found.vectors[""].rows.tolist() == [[1, 2, 3], [4.5, 5, 6]]
    assert found.vectors[""].rows.dtype == np.float32
    assert found.vectors[""].has.tolist() == [True, True]
    assert found.payloads == (b'{"a": 1}', b"")
    assert (found.mode, found.update_where) == ("upsert", None)


@pytest.mark.parametrize("vectors", [[[1, 2, 3], [4, 5, 6]], {"": [[1, 2, 3], [4, 5, 6]]}])
def test_columns_mean_the_same_as_points(vectors: Any) -> None:
    columns = upsert(batch={"ids": [7, 8], "vectors": vectors, "payloads": [{"a": 1}, None]})
    rows = upsert(points=[point(7, [1, 2, 3], payload={"a": 1}), point(8, {"": [4, 5, 6]}, payload=None)])
    assert columns.keys == rows.keys
    assert columns.vectors[""].rows.tolist() == rows.vectors[""].rows.tolist()
    assert columns.payloads == (b'{"a": 1}', b"") == rows.payloads


def test_a_point_may_lack_any_vector() -> None:
    found = upsert(
        NAMED, points=[point(1, {"a": [1, 2, 3]}), point(2, {}), point(3, {"b": [3, 4], "a": [4, 5, 6]})]
    )
    assert found.vectors["a"].has.tolist() == [True, False, True]
    assert found.vectors["a"].rows.tolist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6]]
    assert found.vectors["b"].has.tolist() == [False, False, True]
    assert found.vectors["b"].rows[2].tolist() == pytest.approx([0.6, 0.8])
    assert upsert(DOT, points=[point(1, {})]).vectors == {}


def test_of_an_id_that_comes_twice_the_last_counts() -> None:
    twice = "00000000-0000-0000-0000-00000000000a"
    found = upsert(
        points=[
            point(twice, [1, 1, 1], payload={"n": 1}),
            point(5, [2, 2, 2]),
            point(twice.upper(), [3, 3, 3], payload={"n": 3}),
        ]
    )
    assert found.keys == (id_key(twice), id_key(5))
    assert found.vectors[""].rows.tolist() == [[3, 3, 3], [2, 2, 2]]
    assert found.payloads == (b'{"n": 3}', b"")


def test_a_point_that_is_overridden_is_checked_all_the_same() -> None:
    with pytest.raises(BadRequest, match="expected dim: 3, got 1"):
        upsert(points=[point(1, [1]), point(1, [1, 2, 3])])


@given(st.lists(st.lists(st.floats(-F32_MAX, F32_MAX, width=32), min_size=3, max_size=3), min_size=1))
def test_cosine_rows_have_unit_length_or_none(vectors: list[list[float]]) -> None:
    body = {"points": [point(i, vector) for i, vector in enumerate(vectors)]}
    rows = upsert(COSINE, **body).vectors[""].rows.astype(np.float64)
    for row, vector in zip(rows, vectors, strict=True):
        assert np.linalg.norm(row) == pytest.approx(1 if any(vector) else 0, abs=1e-6)


def test_a_zero_vector_stays_zero() -> None:
    assert upsert(COSINE, points=[point(1, [0, 0, 0])]).vectors[""].rows.tolist() == [[0, 0, 0]]
    assert normalise(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_vectors_of_other_distances_stay_as_they_are() -> None:
    for distance in (Distance.DOT, Distance.EUCLID, Distance.MANHATTAN):
        found = upsert({"": VectorParams(3, distance)}, points=[point(1, [3, 4, 0.1])])
        assert found.vectors[""].rows.tolist() == [[3, 4, float(np.float32(0.1))]]


@pytest.mark.parametrize(
    ("vectors", "body", "error", "says"),
    [
        (
            DOT,
            {"points": [point(1, [1, 2, 3]), point(2, [1])]},
            BadRequest,
            "Vector dimension error: expected dim: 3, got 1 (points[1], point 2)",
        ),
        (DOT, {"points": [point(1, {"": [1]})]}, BadRequest, "expected dim: 3, got 1"),
        (DOT, {"points": [point(1, [])]}, Unprocessable, "empty"),
        (DOT, {"points": [point(1, [1e39, 0, 0])]}, BadRequest, "points[0], point 1: a value is not finite"),
        (DOT, {"points": [point(1, {"x": [1, 2, 3]})]}, BadRequest, "Not existing vector name error: x"),
        (NAMED, {"points": [point(1, [1, 2, 3])]}, BadRequest, "Not existing vector name error"),
        ({}, {"points": [point(1, [1, 2, 3])]}, BadRequest, "Not existing vector name error"),
        (DOT, {"points": []}, BadRequest, "Empty update request"),
        (DOT, {"batch": {"ids": [], "vectors": []}}, BadRequest, "Empty update request"),
        (DOT, {}, BadRequest, "points"),
        (DOT, {"points": [], "batch": {"ids": [], "vectors": []}}, BadRequest, "both"),
        (DOT, {"points": [point(-1, [1, 2, 3])]}, BadRequest, "-1"),
        (DOT, {"points": [point(2**64, [1, 2, 3])]}, BadRequest, "18446744073709551616"),
        (DOT, {"points": [point("12", [1, 2, 3])]}, BadRequest, "not a valid point ID"),
        (DOT, {"points": [point(1, [1, 2, 3], payload=[1])]}, BadRequest, "payload"),
        (DOT, {"points": [point(1, [1, 2, 3])], "shard_key": "x"}, NotSupported, "shard_key"),
        (
            DOT,
            {"points": [point(1, [1, 2, 3])], "update_filter": {"must": {"key": "a"}}},
            Unprocessable,
            "'a'",
        ),
        (DOT, {"batch": {"ids": [1, 2], "vectors": [[1, 2, 3]]}}, Unprocessable, "2 != 1"),
        (DOT, {"batch": {"ids": [1], "vectors": [[1, 2, 3]], "payloads": []}}, Unprocessable, "1 != 0"),
        (NAMED, {"batch": {"ids": [1], "vectors": {"x": [[1]]}}}, BadRequest, "name error: x"),
    ],
)
def test_a_wrong_upsert_is_refused(
    vectors: dict[str, VectorParams], body: dict[str, Any], error: type[ShoalError], says: str
) -> None:
    with pytest.raises(error) as caught:
        upsert(vectors, **body)
    assert says in str(caught.value)


def test_modes_and_filters_of_an_upsert_are_kept() -> None:
    found = upsert(
        points=[point(1, [1, 2, 3])], update_mode="update_only", update_filter={"must": {"has_id": [1]}}
    )
    assert found.mode == "update_only"
    assert found.update_where is not None
    assert read_filter(found.update_where) == Filter(must=(HasId(frozenset({id_key(1)})),))


def test_vectors_of_a_point_that_is_updated_twice_are_folded_by_name() -> None:
    body = {
        "points": [
            point(1, {"a": [1, 1, 1]}),
            point(2, {"a": [2, 2, 2]}),
            point(1, {"b": [0, 5], "a": [3, 3, 3]}),
        ]
    }
    found = points.parse_update_vectors(decode(points.UpdateVectors, json.dumps(body).encode()), NAMED)
    assert found.keys == (id_key(1), id_key(2))
    assert found.vectors["a"].rows.tolist() == [[3, 3, 3], [2, 2, 2]]
    assert found.vectors["b"].has.tolist() == [True, False]
    assert found.vectors["b"].rows[0].tolist() == [0, 1]


def operation(**body: Any) -> points.Operation:
    batch = decode(points.UpdateBatch, json.dumps({"operations": [body]}).encode())
    return points.parse_operations(batch, NAMED)[0]


IDS = points.Chosen(keys=(id_key(1), id_key(2)))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"delete": {"points": [1, 2, 1]}}, points.DeletePoints(IDS)),
        ({"delete": {"filter": {}}}, points.DeletePoints(points.Chosen(where=b"{}"))),
        ({"delete": {"points": [1, 2], "filter": {}}}, points.DeletePoints(IDS)),
        ({"clear_payload": {"points": [1, 2]}}, points.ClearPayload(IDS)),
        ({"set_payload": {"points": [1, 2], "payload": {"x": 1}}}, points.MergePayload({"x": 1}, IDS)),
        (
            {"set_payload": {"points": [1, 2], "payload": {"x": 1}, "key": "a.b"}},
            points.MergePayload({"x": 1}, IDS, parse_path("a.b")),
        ),
        (
            {"overwrite_payload": {"points": [1, 2], "payload": {}, "key": "a"}},
            points.ReplacePayload({}, IDS),
        ),
        (
            {"delete_payload": {"points": [1, 2], "keys": ["a", "b[].c"]}},
            points.DropPayloadKeys((parse_path("a"), parse_path("b[].c")), IDS),
        ),
        (
            {"delete_vectors": {"points": [1, 2], "filter": {"must": []}, "vector": ["b", "a", "b"]}},
            points.DropVectors(("b", "a"), points.Chosen(IDS.keys, b'{"must":[]}')),
        ),
    ],
)
def test_operations_choose_points_by_ids_or_filter(body: dict[str, Any], expected: points.Operation) -> None:
    assert operation(**body) == expected


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ({}, BadRequest, "operations[0]: expected one of upsert"),
        (
            {"delete": {"points": [1]}, "clear_payload": {"points": [1]}},
            BadRequest,
            "delete and clear_payload",
        ),
        ({"delete": {}}, BadRequest, "points"),
        ({"delete": {"points": []}}, BadRequest, "empty"),
        ({"delete": {"points": ["x"]}}, BadRequest, "'x'"),
        ({"delete": {"filter": {"must": {"key": "a"}}}}, Unprocessable, "'a'"),
        ({"set_payload": {"points": [1]}}, BadRequest, "payload"),
        ({"set_payload": {"points": [1], "payload": None}}, BadRequest, "null"),
        ({"set_payload": {"points": [1], "payload": {}, "key": "a."}}, BadRequest, "a."),
        ({"delete_payload": {"points": [1], "keys": ["["]}}, BadRequest, "["),
        ({"delete_vectors": {"points": [1], "vector": []}}, Unprocessable, "vector names"),
        ({"delete_vectors": {"points": [1], "vector": ["x"]}}, BadRequest, "name error: x"),
        ({"delete_vectors": {"vector": ["a"]}}, BadRequest, "points"),
        ({"update_vectors": {"points": []}}, Unprocessable, "points to update"),
        ({"update_vectors": {"points": [point(1, {"x": [1]})]}}, BadRequest, "name error: x"),
    ],
)
def test_a_wrong_operation_is_refused(body: dict[str, Any], error: type[ShoalError], says: str) -> None:
    with pytest.raises(error) as caught:
        operation(**body)
    assert says in str(caught.value)


def test_a_batch_is_bounded() -> None:
    batch = decode(points.UpdateBatch, json.dumps({"operations": [{"delete": {"points": [1]}}] * 3}).encode())
    with pytest.raises(BadRequest, match="limit of 2"):
        points.parse_operations(batch, NAMED, Limits(batch_max=2))


def test_a_query_vector_is_checked_and_normalised() -> None:
    assert query_row([3, 0, 4], COSINE[""]).tolist() == pytest.approx([0.6, 0, 0.8])
    assert query_row([3, 0, 4], DOT[""]).tolist() == [3, 0, 4]
    assert query_row([0, 0, 0], COSINE[""]).tolist() == [0, 0, 0]
    with pytest.raises(BadRequest, match="expected dim: 3, got 2"):
        query_row([1, 2], DOT[""])
    with pytest.raises(BadRequest, match="not finite"):
        query_row([1, 2, 1e39], DOT[""])
    with pytest.raises(Unprocessable, match="empty"):
        query_row([], DOT[""])
