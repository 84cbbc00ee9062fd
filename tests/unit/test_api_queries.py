"""Queries and reads: the trees they become, their defaults, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from core.api import old_searches, queries, reads, searches
from core.api.checks import Limits
from core.api.config import Distance, VectorParams
from core.api.decode import decode
from core.api.searches import (
    Context,
    Dbsf,
    Discover,
    Feedback,
    Formula,
    Mmr,
    Nearest,
    OrderBy,
    Recommend,
    Rrf,
    Sample,
)
from core.errors import BadRequest, NotSupported, ShoalError, Unprocessable
from core.filters import Filter, MatchValue
from core.hashing import id_key
from core.payload import EVERYTHING, NOTHING, PayloadSelector, parse_path
from core.query import formula as e

VECTORS = {"": VectorParams(3, Distance.COSINE), "a": VectorParams(2, Distance.DOT)}
V = [3, 0, 4]


def search(limits: Limits | None = None, **body: Any) -> searches.Search:
    return searches.parse_query(
        decode(queries.QueryBody, json.dumps(body).encode()), VECTORS, limits or Limits()
    )


def query(given: Any, **body: Any) -> Any:
    return search(query=given, **body).node.query


def plain(example: searches.Example) -> Any:
    """An example as something that compares."""
    return example if isinstance(example, bytes) else pytest.approx(np.asarray(example).tolist())


def test_a_query_without_anything_goes_by_id_with_the_defaults() -> None:
    found = search()
    assert found.node.query is None
    assert (found.node.limit, found.node.offset, found.node.using) == (10, 0, "")
    assert (found.with_payload, found.with_vector) == (NOTHING, False)


def test_everything_around_a_query_is_kept() -> None:
    found = search(
        query=V,
        limit=5,
        offset=2,
        filter={"must": {"key": "x", "match": {"value": 1}}},
        params={"hnsw_ef": 99, "exact": True, "quantization": {"ignore": 1}, "acorn": 1, "indexed_only": "?"},
        score_threshold=0.5,
        with_payload=["x"],
        with_vector=["a"],
        lookup_from={"collection": "other", "vector": "v"},
    )
    node = found.node
    assert (node.limit, node.offset, node.ef, node.exact, node.threshold) == (5, 2, 99, True, 0.5)
    assert node.filter == Filter(must=(MatchValue(parse_path("x"), 1),))
    assert node.lookup == searches.Lookup("other", "v")
    assert found.with_payload == PayloadSelector(True, include=(parse_path("x"),))
    assert found.with_vector == ("a",)


@pytest.mark.parametrize("using", [None, ""])
def test_the_default_vector_has_no_name_or_an_empty_one(using: str | None) -> None:
    found = query(V, using=using)
    assert found.example.tolist() == pytest.approx([0.6, 0, 0.8])


def test_examples_are_vectors_for_the_name_in_using_or_ids() -> None:
    assert query([1, 2], using="a").example.tolist() == [1, 2]
    assert query(7).example == id_key(7)
    uuid = "0000000000000000000000000000000C"
    assert query({"nearest": uuid}).example == id_key(uuid)


def test_every_kind_of_query_is_read() -> None:
    found = query({"nearest": V, "mmr": {"diversity": 0.25, "candidates_limit": 7}})
    assert isinstance(found, Mmr)
    assert (found.diversity, found.candidates) == (0.25, 7)
    assert query({"nearest": 1, "mmr": {}}).diversity == 0.5
    found = query({"recommend": {"positive": [1, V], "negative": [2]}})
    assert isinstance(found, Recommend)
    assert (found.positive[0], found.negative, found.strategy) == (id_key(1), (id_key(2),), "average_vector")
    found = query({"discover": {"target": 1, "context": {"positive": 2, "negative": 3}}})
    assert isinstance(found, Discover)
    assert (found.target, found.pairs) == (id_key(1), ((id_key(2), id_key(3)),))
    assert query({"discover": {"target": 1, "context": None}}).pairs == ()
    found = query({"context": [{"positive": 2, "negative": V}]})
    assert isinstance(found, Context)
    assert found.pairs[0][0] == id_key(2)
    strategy = {"naive": {"a": 1, "b": 0.5, "c": 2}}
    feedback = {"target": 1, "feedback": [{"example": 2, "score": 0.5}], "strategy": strategy}
    found = query({"relevance_feedback": feedback})
    assert isinstance(found, Feedback)
    assert (found.target, found.items, found.a, found.b, found.c) == (
        id_key(1),
        ((id_key(2), 0.5),),
        1,
        0.5,
        2,
    )
    assert query({"sample": "random"}) == Sample()
    prefetch = [{"query": 1}, {"query": 2}]
    assert query({"fusion": "rrf"}, prefetch=prefetch) == Rrf()
    assert query({"fusion": "dbsf"}, prefetch=prefetch, using="") == Dbsf()
    assert query({"rrf": {"k": 60, "weights": [1, 0.5]}}, prefetch=prefetch) == Rrf(60, (1, 0.5))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.b", OrderBy(parse_path("a.b"))),
        ({"key": "a", "direction": "desc", "start_from": 5}, OrderBy(parse_path("a"), True, 5)),
        ({"key": "a", "start_from": 1.5}, OrderBy(parse_path("a"), False, 1.5)),
        ({"key": "a", "start_from": "1970-01-01T00:00:01Z"}, OrderBy(parse_path("a"), False, 1_000_000)),
    ],
)
def test_an_order_is_a_path_or_more(given: Any, expected: OrderBy) -> None:
    assert query({"order_by": given}) == expected
    assert (
        reads.parse_scroll(decode(reads.ScrollBody, json.dumps({"order_by": given}).encode())).order_by
        == expected
    )


def test_prefetches_nest_one_or_several() -> None:
    inner = {"query": 1, "limit": 50, "filter": {"must": {"has_id": [1]}}}
    found = search(query=V, prefetch={"query": V, "prefetch": [inner, inner], "using": ""}).node
    assert found.prefetch[0].limit == 10
    assert [node.limit for node in found.prefetch[0].prefetch] == [50, 50]
    assert found.prefetch[0].prefetch[0].filter is not None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, e.Constant(2.0)),
        ("$score", e.Score(0)),
        ("$score[3]", e.Score(3)),
        ('a."b c"', e.Field('a."b c"')),
        ({"sum": [1, "a"]}, e.Many("sum", (e.Constant(1), e.Field("a")))),
        ({"mult": []}, e.Many("mult", ())),
        ({"neg": {"abs": "a"}}, e.Unary("neg", e.Unary("abs", e.Field("a")))),
        ({"div": {"left": 1, "right": "a", "by_zero_default": 0}}, e.Div(e.Constant(1), e.Field("a"), 0.0)),
        ({"pow": {"base": 2, "exponent": 3}}, e.Pow(e.Constant(2), e.Constant(3))),
        ({"datetime": "1970-01-01T00:00:02.5Z"}, e.Constant(2.5)),
        ({"datetime_key": "a"}, e.DatetimeField("a")),
        ({"geo_distance": {"origin": {"lat": 1, "lon": 2}, "to": "a"}}, e.GeoDistance(1, 2, "a")),
        ({"lin_decay": {"x": "a"}}, e.Decay("lin", e.Field("a"))),
        (
            {"gauss_decay": {"x": "a", "target": 3, "scale": 2, "midpoint": 0.25}},
            e.Decay("gauss", e.Field("a"), e.Constant(3), 2.0, 0.25),
        ),
        (
            {"key": "a", "match": {"value": 1}},
            e.Condition(Filter(must=(MatchValue(parse_path("a"), 1),))),
        ),
        (
            {"must": {"key": "a", "match": {"value": 1}}},
            e.Condition(Filter(must=(MatchValue(parse_path("a"), 1),))),
        ),
    ],
)
def test_a_formula_is_read_into_an_expression(given: Any, expected: e.Expression) -> None:
    found = query({"formula": given, "defaults": {"$score": 1, '"a"': 2}}, prefetch={"query": 1})
    assert isinstance(found, Formula)
    assert found.expression == expected
    assert found.defaults == {"$score[0]": 1, "a": 2}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (True, "expected a number"),
        ([], "expected a number"),
        ({"sum": 1}, "query.formula.sum: expected a list"),
        ({"sum": [{"abs": [1]}]}, "query.formula.sum[0].abs"),
        ({"sum": [1], "mult": [1]}, "sum and mult"),
        ({"div": {"left": 1}}, "missing field right"),
        ({"datetime": "soon"}, "'soon'"),
        ({"geo_distance": {"origin": {"lat": 91, "lon": 2}, "to": "a"}}, "lat 91"),
        ("$scores", "$scores"),
        ("a..b", "a..b"),
        ({"exp_decay": {"x": 1, "midpoint": 1}}, "midpoint"),
        ({"exp_decay": {"x": 1, "scale": 0}}, "scale"),
        ({"musst": []}, "musst"),
        (10**400, "out of range"),
    ],
)
def test_a_wrong_formula_is_refused_at_its_place(given: Any, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        query({"formula": given}, prefetch={"query": 1})
    assert says in str(caught.value)


def test_a_formula_is_bounded() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = {"neg": deep}
    with pytest.raises(BadRequest, match="levels"):
        query({"formula": deep}, prefetch={"query": 1})
    with pytest.raises(BadRequest, match="parts"):
        query({"formula": {"sum": [1] * 5_000}}, prefetch={"query": 1})


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ({"query": [1, 2]}, BadRequest, "Vector dimension error: expected dim: 3, got 2"),
        ({"query": []}, Unprocessable, "empty"),
        ({"query": [1, 2, 1e39]}, BadRequest, "finite"),
        ({"query": V, "using": "x"}, BadRequest, "Not existing vector name error: x"),
        ({"query": 1, "using": "x"}, BadRequest, "Not existing vector name error: x"),
        ({"query": "x"}, BadRequest, "not a valid point ID"),
        ({"query": {}}, BadRequest, "query: expected a vector, an id, or one of nearest"),
        ({"query": {"nearest": 1, "fusion": "rrf"}}, BadRequest, "nearest and fusion"),
        ({"query": {"mmr": {}}}, BadRequest, "query"),
        ({"query": {"nearest": 1, "mmr": {"diversity": 1.1}}}, Unprocessable, "diversity"),
        ({"query": {"nearest": 1, "mmr": {"candidates_limit": 16_385}}}, Unprocessable, "candidates_limit"),
        ({"query": {"recommend": {}}}, Unprocessable, "example"),
        ({"query": {"recommend": {"negative": [1]}}}, BadRequest, "average_vector"),
        ({"query": {"fusion": "rrf"}}, BadRequest, "without prefetches"),
        ({"query": {"formula": 1}}, BadRequest, "without prefetches"),
        ({"query": {"fusion": "rrf"}, "prefetch": {"query": 1}, "using": "a"}, BadRequest, "'using'"),
        ({"query": {"rrf": {"k": 0}}, "prefetch": {"query": 1}}, Unprocessable, "k"),
        ({"query": {"rrf": {"weights": [1, 2]}}, "prefetch": {"query": 1}}, BadRequest, "2 weights for 1"),
        ({"query": {"fusion": "sum"}, "prefetch": {"query": 1}}, BadRequest, "fusion"),
        ({"query": {"sample": "all"}}, BadRequest, "sample"),
        ({"query": {"order_by": {"key": "a", "start_from": "soon"}}}, BadRequest, "start_from"),
        ({"prefetch": {"query": 1}}, BadRequest, "A query is needed to merge the prefetches"),
        ({"query": V, "prefetch": {"prefetch": {"query": 1}}}, BadRequest, "A query is needed"),
        ({"score_threshold": 0}, BadRequest, "score_threshold"),
        ({"score_threshold": 0, "query": {"order_by": "a"}}, BadRequest, "score_threshold"),
        ({"query": V, "limit": 0}, Unprocessable, "limit"),
        ({"query": V, "limit": 10**9}, BadRequest, "limit"),
        ({"query": V, "offset": -1}, Unprocessable, "offset"),
        ({"query": V, "prefetch": {"query": 1, "limit": 0}}, Unprocessable, "limit"),
        ({"query": V, "params": {"idf": "global"}}, NotSupported, "params.idf"),
        ({"query": V, "shard_key": ["x"]}, NotSupported, "shard_key"),
        (
            {"query": V, "lookup_from": {"collection": "c", "shard_key": 1}},
            NotSupported,
            "lookup_from.shard_key",
        ),
        ({"query": {"indices": [1], "values": [1]}}, NotSupported, "sparse"),
        ({"query": {"text": "a", "model": "m"}}, NotSupported, "inference"),
        ({"query": {"object": {"a": 1}, "model": "m"}}, NotSupported, "inference"),
    ],
)
def test_a_wrong_query_is_refused(body: dict[str, Any], error: type[ShoalError], says: str) -> None:
    with pytest.raises(error) as caught:
        search(**body)
    assert says in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_prefetches_are_bounded() -> None:
    deep: dict[str, Any] = {"query": 1}
    for _ in range(20):
        deep = {"query": 1, "prefetch": deep}
    with pytest.raises(BadRequest, match="levels deep"):
        search(**deep)
    with pytest.raises(BadRequest, match="prefetch"):
        search(Limits(prefetches_max=2), query=V, prefetch=[{"query": 1}] * 3)


def test_a_batch_is_bounded_and_each_of_it_is_checked() -> None:
    def batch(several: list[Any], limits: Limits) -> tuple[searches.Search, ...]:
        body = decode(queries.QueryBatchBody, json.dumps({"searches": several}).encode())
        return searches.parse_query_batch(body, VECTORS, limits)

    assert [one.node.limit for one in batch([{"query": V}, {"query": 1, "limit": 3}], Limits())] == [10, 3]
    with pytest.raises(BadRequest, match="dim"):
        batch([{"query": V}, {"query": [1]}], Limits())
    with pytest.raises(BadRequest, match="searches"):
        batch([{}, {}], Limits(batch_max=1))


def groups(**body: Any) -> searches.Groups:
    return searches.parse_query_groups(decode(queries.QueryGroupsBody, json.dumps(body).encode()), VECTORS)


def test_groups_have_defaults_and_may_look_records_up() -> None:
    found = groups(query=V, group_by="a[].b")
    assert (found.search.node.limit, found.group_size, found.group_by, found.lookup) == (
        10,
        3,
        parse_path("a[].b"),
        None,
    )
    assert groups(group_by="a", with_lookup="c").lookup == searches.GroupLookup("c", EVERYTHING, False)
    lookup = {"collection": "c", "with_payload": False, "with_vectors": True}
    assert groups(group_by="a", with_lookup=lookup).lookup == searches.GroupLookup("c", NOTHING, True)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"group_by": ""}, Unprocessable),
        ({"group_by": "a."}, BadRequest),
        ({"group_by": "a", "group_size": 0}, Unprocessable),
        ({"group_by": "a", "limit": 0}, Unprocessable),
        ({}, BadRequest),
        ({"group_by": "a", "query": {"order_by": "a"}}, BadRequest),
    ],
)
def test_wrong_groups_are_refused(body: dict[str, Any], error: type[ShoalError]) -> None:
    with pytest.raises(error):
        groups(**body)


def test_the_searches_of_older_clients_mean_queries() -> None:
    def older(**body: Any) -> searches.Search:
        return old_searches.parse_search(decode(queries.SearchBody, json.dumps(body).encode()), VECTORS)

    found = older(vector={"name": "a", "vector": [1, 2]}, top=3, with_payload=True, params={"exact": True})
    assert (found.node.limit, found.node.using, found.node.exact) == (3, "a", True)
    assert found.with_payload == EVERYTHING
    assert isinstance(found.node.query, Nearest)
    assert older(vector=V, limit=4, top=3).node.limit == 4
    body = decode(queries.SearchGroupsBody, json.dumps({"vector": V, "group_by": "a", "limit": 2}).encode())
    assert old_searches.parse_search_groups(body, VECTORS).search.node.limit == 2
    given = decode(queries.RecommendBody, b'{"positive":[1],"negative":[2],"using":{"name":"a"},"limit":6}')
    recommended = old_searches.parse_recommend(given, VECTORS).node
    assert (recommended.limit, recommended.using) == (6, "a")
    assert isinstance(recommended.query, Recommend)


# -- reads that rank nothing --------------------------------------------------------------------------------


def test_retrieve_keeps_the_order_of_its_ids_and_shows_payloads() -> None:
    body = decode(reads.RetrieveBody, b'{"ids": [3, 1, 3], "with_vectors": true}')
    assert reads.parse_retrieve(body) == reads.Retrieve((id_key(3), id_key(1)), EVERYTHING, True)


def test_a_scroll_has_defaults() -> None:
    assert reads.parse_scroll(reads.ScrollBody()) == reads.Scroll(10, EVERYTHING, False)
    assert reads.parse_scroll(reads.ScrollBody(offset=5)).offset == id_key(5)


def test_the_other_reads_have_defaults() -> None:
    assert reads.parse_count(reads.CountBody()) == reads.Count(None, True)
    assert reads.parse_facet(reads.FacetBody("a")) == reads.Facet(parse_path("a"), 10)
    assert reads.parse_matrix(reads.MatrixBody(), VECTORS) == reads.Matrix(10, 3, "")


@pytest.mark.parametrize(
    ("text", "key"),
    [("12", id_key(12)), ("0000000000000000000000000000000C", id_key("0000000000000000000000000000000c"))],
)
def test_an_id_in_a_path_is_a_number_or_a_uuid(text: str, key: bytes) -> None:
    assert reads.id_in_path(text) == key


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "18446744073709551616", "9" * 400, "١٢"])
def test_a_wrong_id_in_a_path_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        reads.id_in_path(text)


def test_wrong_reads_are_refused() -> None:
    for error, read in (
        (BadRequest, lambda: reads.parse_scroll(reads.ScrollBody(offset=1, order_by="a"))),
        (Unprocessable, lambda: reads.parse_scroll(reads.ScrollBody(limit=0))),
        (BadRequest, lambda: reads.parse_facet(reads.FacetBody("a["))),
        (Unprocessable, lambda: reads.parse_facet(reads.FacetBody("a", limit=0))),
        (Unprocessable, lambda: reads.parse_matrix(reads.MatrixBody(sample=1), VECTORS)),
        (BadRequest, lambda: reads.parse_matrix(reads.MatrixBody(sample=10**6), VECTORS)),
        (BadRequest, lambda: reads.parse_matrix(reads.MatrixBody(using="x"), VECTORS)),
        (NotSupported, lambda: reads.parse_count(reads.CountBody(shard_key="x"))),
        (BadRequest, lambda: reads.parse_retrieve(reads.RetrieveBody([1, 2]), Limits(limit_max=1))),
    ):
        with pytest.raises(error):
            read()
