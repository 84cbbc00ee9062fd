"""The rules of queries over shards: what is left out, in which order, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.front.queries.collection import Collection
from core.api import queries, searches
from core.api import reads as bodies
from core.api.config import Distance, VectorParams
from core.api.decode import decode
from core.errors import BadRequest, DeadlineExceeded, NotFound
from tests.unit.query_shards import Point, collection, reads

LINE = {"": VectorParams(1, Distance.DOT)}
"""One dimension: a point's score for [1] is its value."""


def line(*values: float | None, shards: int = 1, name: str = "here") -> Collection:
    """Points 0, 1, 2, …, None without a vector."""
    points = [Point(i, {} if x is None else {"": [x]}, {"n": i}) for i, x in enumerate(values)]
    return collection(name, LINE, points, shards)


def search(body: dict[str, Any], vectors: dict[str, VectorParams] = LINE) -> searches.Search:
    return searches.parse_query(decode(queries.QueryBody, msgspec.json.encode(body)), vectors)


def ids(home: Collection, body: dict[str, Any], *others: Collection) -> list[Any]:
    return [point.id for point in reads(home, *others).query(search(body))]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "query",
    [
        4,
        {"nearest": 4},
        {"nearest": 4, "mmr": {"diversity": 0.0}},
        {"recommend": {"positive": [4]}},
        {"recommend": {"positive": [4], "strategy": "best_score"}},
        {"recommend": {"positive": [[9]], "negative": [4], "strategy": "sum_scores"}},
        {"discover": {"target": 4, "context": []}},
        {"context": {"positive": 4, "negative": [0]}},
        {
            "relevance_feedback": {
                "target": [1],
                "feedback": [{"example": 4, "score": 1}],
                "strategy": {"naive": {"a": 1, "b": 1, "c": 1}},
            }
        },
    ],
)
def test_an_example_given_by_id_is_left_out(query: Any, shards: int) -> None:
    home = line(0, 1, 2, 3, 4, 5, shards=shards)
    assert sorted(ids(home, {"query": query})) == [0, 1, 2, 3, 5]
    # Also inside, and its place is taken by the next one.
    inside = {"prefetch": {"query": [1.0], "limit": 2}, "query": query}
    assert sorted(ids(home, inside)) == [3, 5]
    # Not outside, nor beside.
    outside = {"prefetch": [{"query": query}, {"query": [1.0], "limit": 1}], "query": {"fusion": "rrf"}}
    assert sorted(ids(home, outside)) == [0, 1, 2, 3, 5]
    beside = {"prefetch": [{"query": query}, {"query": [1.0], "limit": 2}], "query": [1.0]}
    assert ids(home, beside) == [5, 4, 3, 2, 1, 0]


def test_an_example_from_another_collection_is_not_left_out() -> None:
    there = line(1, 1, 1, name="there")
    assert ids(line(3, 2, 1), {"query": 0, "lookup_from": {"collection": "there"}}, there) == [0, 1, 2]
    assert ids(line(3, 2, 1), {"query": 0, "lookup_from": {"collection": "here"}}) == [1, 2]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"query": 77}, "Not found: No point with id 77"),
        ({"query": 3}, "Not found: Vector with name `` for point 3"),
        ({"query": 0, "lookup_from": {"collection": "nowhere"}}, "Not found: Collection `nowhere`"),
        ({"query": [1.0], "lookup_from": {"collection": "nowhere"}}, "Not found: Collection `nowhere`"),
        ({"prefetch": {"prefetch": {"query": 77}, "query": [1.0]}, "query": [1.0]}, "Not found: No point"),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_what_an_example_lacks_is_not_found(body: dict[str, Any], text: str, shards: int) -> None:
    with pytest.raises(NotFound, match=text):
        ids(line(0, 1, 2, None, shards=shards), body)


def test_an_example_of_another_size_is_refused() -> None:
    there = collection("there", {"": VectorParams(2, Distance.DOT)}, [Point(1, {"": [1, 2]})])
    with pytest.raises(BadRequest, match="expected dim: 1, got 2"):
        ids(line(0, 1), {"query": 1, "lookup_from": {"collection": "there"}}, there)
    with pytest.raises(BadRequest, match="Not existing vector name error: other"):
        ids(line(0, 1), {"query": 1, "lookup_from": {"collection": "there", "vector": "other"}}, there)


@pytest.mark.parametrize(("shards", "using"), [(1, "plain"), (3, "plain"), (1, "tree"), (3, "tree")])
def test_a_threshold_keeps_what_is_better(shards: int, using: str) -> None:
    query: Any = [1.0] if using == "plain" else {"recommend": {"positive": [[1.0]]}}
    dot = line(0, 1, 2, 3, shards=shards)
    assert ids(dot, {"query": query, "score_threshold": 1.0}) == [3, 2]
    assert ids(dot, {"query": query, "score_threshold": 1.0, "limit": 1, "offset": 1}) == [2]
    near = collection(
        "here", {"": VectorParams(1, Distance.EUCLID)}, [Point(i, {"": [i]}) for i in range(5)], shards
    )
    assert ids(near, {"query": query, "score_threshold": 2.0}) == [1, 0, 2]


def test_fusion_and_formula_keep_what_meets_the_threshold() -> None:
    prefetch = {"query": [1.0]}
    fused = {"prefetch": prefetch, "query": {"fusion": "rrf"}, "score_threshold": 1 / 3}
    assert ids(line(0, 1, 2, 3), fused) == [3, 2]
    formula = {"prefetch": prefetch, "query": {"formula": "n"}, "score_threshold": 2}
    assert ids(line(0, 1, 2, 3), formula) == [3, 2]


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize(
    "body",
    [
        {"query": [1.0]},
        {"query": {"context": {"positive": [1.0], "negative": [0.0]}}},
        {"prefetch": {"query": [1.0], "limit": 50}, "query": {"formula": 1}},
        {"prefetch": [{"limit": 50}], "query": [1.0]},
        {},
    ],
)
def test_equal_points_come_in_the_order_of_their_ids(body: dict[str, Any], shards: int) -> None:
    home = line(*[1.0] * 40, shards=shards)
    assert ids(home, body | {"limit": 7, "offset": 3}) == [3, 4, 5, 6, 7, 8, 9]


def test_filters_outside_hold_inside() -> None:
    home = line(*range(30))
    prefetch = {"query": [1.0], "limit": 3, "filter": {"must": [{"key": "n", "range": {"lt": 20}}]}}
    outer = {"must": [{"key": "n", "range": {"lt": 10}}]}
    assert ids(home, {"prefetch": prefetch, "query": {"fusion": "rrf"}, "filter": outer}) == [9, 8, 7]


def test_alternatives_outside_and_inside_become_one_list_in_the_prefetch() -> None:
    """As Qdrant joins filters, clause by clause; an outer query that scores again applies its own filter."""
    home = line(*range(30))
    prefetch = {"query": [1.0], "limit": 3, "filter": {"should": [{"key": "n", "range": {"lt": 12}}]}}
    outer = {"should": [{"key": "n", "range": {"lt": 10}}]}
    assert ids(home, {"prefetch": prefetch, "query": {"fusion": "rrf"}, "filter": outer}) == [11, 10, 9]
    assert ids(home, {"prefetch": prefetch, "query": [1.0], "filter": outer}) == [9]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_sample_is_random_and_ignores_the_offset(shards: int) -> None:
    home = line(*range(40), shards=shards)
    calls = reads(home)
    samples = [
        [p.id for p in calls.query(search({"query": {"sample": "random"}, "offset": 5}))] for _ in range(30)
    ]
    assert all(len(set(sample)) == 10 for sample in samples)
    drawn = np.bincount([int(i) for sample in samples for i in sample], minlength=40)
    assert drawn.min() > 0
    assert drawn.max() < 25
    filtered = {"query": {"sample": "random"}, "filter": {"must": [{"key": "n", "range": {"lt": 4}}]}}
    assert sorted(ids(home, filtered)) == [0, 1, 2, 3]


def test_points_without_the_vector_are_left_to_scroll_and_count() -> None:
    home = line(5, None, 3, None)
    assert ids(home, {"query": [1.0]}) == [0, 2]
    assert ids(home, {"query": {"recommend": {"positive": [[1.0]], "strategy": "best_score"}}}) == [0, 2]
    assert ids(home, {"prefetch": {}, "query": [1.0]}) == [0, 2]
    assert ids(home, {}) == [0, 1, 2, 3]
    assert reads(home).count(bodies.Count()).count == 4


def test_mmr_takes_its_candidates_limit_from_the_limit() -> None:
    home = line(9, 8, 1)
    assert ids(home, {"query": {"nearest": [1.0], "mmr": {"diversity": 1.0}}, "limit": 2}) == [0, 1]
    wide = {"query": {"nearest": [1.0], "mmr": {"diversity": 1.0, "candidates_limit": 3}}, "limit": 2}
    assert ids(home, wide) == [0, 2]
    assert ids(home, wide | {"offset": 1}) == [2, 1]
    assert ids(home, {"query": {"nearest": [1.0], "mmr": {"candidates_limit": 0}}}) == []


@pytest.mark.parametrize("shards", [1, 3])
def test_a_batch_answers_as_its_searches_one_by_one(shards: int) -> None:
    calls = reads(line(*range(20), None, shards=shards))
    few = {"filter": {"must": [{"key": "n", "range": {"lt": 7}}]}}
    given = [
        search(body)
        for body in (
            {"query": [1.0]},
            {"query": [-1.0], "limit": 3, "with_vector": True},
            {"query": [1.0], "offset": 4, "limit": 2, "with_payload": True},
            {"query": [1.0], "limit": 30} | few,
            {"query": [-2.0]} | few,
            {"query": 4},
            {"prefetch": {"query": [1.0]}, "query": {"fusion": "dbsf"}},
            {"query": [1.0], "score_threshold": 15.5},
            {},
        )
    ]
    assert calls.query_batch(given) == [calls.query(one) for one in given]
    assert calls.query_batch([]) == []


@pytest.fixture
def many() -> Collection:
    """2,000 points: group "rare" has three, the worst of all; "big" nearly all of them."""
    points = []
    for i in range(2000):
        group: Any = "rare" if i in (0, 1, 1990) else i % 50 if i % 400 == 7 else "big"
        points.append(Point(i, {"": [i]}, {"g": group, "n": i}))
    return collection("here", LINE, points, 3)


def grouped(home: Collection, body: dict[str, Any]) -> dict[Any, list[Any]]:
    parsed = searches.parse_query_groups(decode(queries.QueryGroupsBody, msgspec.json.encode(body)), LINE)
    return {group.id: [hit.id for hit in group.hits] for group in reads(home).groups(parsed).groups}


def test_groups_are_filled_however_deep_their_members_lie(many: Collection) -> None:
    body = {"query": [1.0], "group_by": "g", "limit": 2, "group_size": 3}
    expected = {"big": [1999, 1998, 1997], "rare": [1990, 1, 0]}
    assert grouped(many, body) == expected
    assert grouped(many, body | {"prefetch": {"query": [1.0]}, "query": {"fusion": "rrf"}}) == expected
    best = {"query": {"recommend": {"positive": [[1.0]], "strategy": "best_score"}}}
    assert grouped(many, body | best) == expected


def test_groups_go_on_until_there_are_enough(many: Collection) -> None:
    got = grouped(many, {"query": [1.0], "group_by": "g", "limit": 3, "group_size": 1})
    assert got == {"big": [1999], "rare": [1990], 7: [1607]}


def test_an_answer_is_what_the_api_says() -> None:
    vectors = {"": VectorParams(2, Distance.DOT), "b": VectorParams(1, Distance.DOT)}
    points = [Point(1, {"": [1, 2]}, {"a": {"b": 1, "c": 2}, "l": []}), Point(2, {"": [0, 1], "b": [4]})]
    calls = reads(collection("here", vectors, points))

    def told(body: dict[str, Any]) -> Any:
        return msgspec.json.decode(msgspec.json.encode(calls.query(search(body, vectors))))

    plain = [{"id": 1, "version": 100, "score": 3.0}, {"id": 2, "version": 102, "score": 1.0}]
    query: dict[str, Any] = {"query": [1.0, 1.0]}
    assert told(query) == plain
    assert [p["payload"] for p in told(query | {"with_payload": True})] == [points[0].payload, {}]
    assert [p["payload"] for p in told(query | {"with_payload": ["a.b"]})] == [{"a": {"b": 1}}, {}]
    assert [p["payload"] for p in told(query | {"with_payload": {"exclude": ["a"]}})] == [{"l": []}, {}]
    assert [p["vector"] for p in told(query | {"with_vector": True})] == [[1, 2], {"": [0, 1], "b": [4]}]
    assert [p["vector"] for p in told(query | {"with_vector": ["b"]})] == [{}, {"b": [4]}]
    with pytest.raises(BadRequest, match="Not existing vector name error: c"):
        told(query | {"with_vector": ["c"]})
    ordered = told({"query": {"order_by": "a.c"}})
    assert ordered == [{"id": 1, "version": 100, "score": 1.0, "order_value": 2}]


def test_a_page_says_where_the_next_one_begins() -> None:
    calls = reads(line(*range(7), shards=3))

    def pages() -> Iterator[list[Any]]:
        offset: Any = 0
        while offset is not None:
            body = msgspec.json.encode({"limit": 3, "offset": offset, "with_payload": False})
            page = calls.scroll(bodies.parse_scroll(decode(bodies.ScrollBody, body)))
            yield [record.id for record in page.points]
            offset = page.next_page_offset

    assert list(pages()) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_matrix_of_fewer_than_two_points_is_empty() -> None:
    assert reads(line(1, None)).matrix_pairs(bodies.Matrix()).pairs == []
    offsets = reads(line(1, None)).matrix_offsets(bodies.Matrix())
    assert (offsets.ids, offsets.scores) == ([], [])


def test_a_request_past_its_deadline_stops_between_its_steps() -> None:
    seconds = iter(range(100))
    calls = reads(line(*range(9)), deadline_s=3, now=lambda: next(seconds))
    prefetch = {"query": {"recommend": {"positive": [[1.0]], "strategy": "best_score"}}}
    with pytest.raises(DeadlineExceeded):
        calls.query(search({"prefetch": [prefetch] * 3, "query": {"fusion": "rrf"}}))
