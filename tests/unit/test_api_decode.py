"""Bodies become requests, and every mistake in them a short answer that names its field."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from core.api import cluster, collections, indexes, points, queries, reads, searches
from core.api.config import CollectionParams
from core.api.decode import decode
from core.errors import BadRequest, NotSupported, ShoalError
from tests.unit.api_examples import GOOD
from tests.unit.naive_filters import random_filter

VECTORS = collections.parse_create(
    decode(collections.CreateCollection, b'{"vectors":{"size":3,"distance":"Cosine"}}')
).vectors


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nope",
        b'{"points":[{"id":1,"vector":[1,NaN,3]}]}',
        b'{"points":[{"id":1,"vector":[1e999,1,1]}]}',
        b'{"points":[{"id":1,"vector":[Infinity,1,1]}]}',
        b'{"unknown":"\xff"}',
        b'{"points":null} x',
        b"[]",
        b"null",
        b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xef\xbb\xbf{}",
        b'{"points":"x"}',
    ],
)
def test_what_is_no_json_or_of_a_wrong_type_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(points.Upsert, body)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        (
            points.Upsert,
            '{"points":[{"id":1,"vector":[1]},{"id":1.5,"vector":[1]}]}',
            "points[1].id: expected int | str",
        ),
        (points.Upsert, '{"points":[{"id":true,"vector":[1]}]}', "points[0].id"),
        (points.Upsert, '{"points":[{"vector":[1]}]}', "missing required field id"),
        (points.Upsert, '{"points":[{"id":1}]}', "missing required field vector"),
        (points.Upsert, '{"points":[{"id":1,"vector":null}]}', "points[0].vector"),
        (points.Upsert, '{"points":[{"id":1,"vector":["1"]}]}', "points[0].vector[0]: expected float"),
        (points.Upsert, '{"update_mode":"x"}', "update_mode: invalid enum value 'x'"),
        (queries.QueryBody, '{"limit":"10"}', "limit: expected int"),
        (queries.QueryBody, '{"limit":1.0}', "limit: expected int"),
        (queries.QueryBody, '{"query":{"recommend":{"strategy":"best"}}}', "query.recommend.strategy"),
        (queries.QueryBody, '{"with_payload":"a"}', "with_payload"),
        (reads.ScrollBody, '{"filter":[]}', "filter: expected object"),
        (reads.RetrieveBody, "{}", "missing required field ids"),
        (reads.ScrollBody, "[1]", "expected object, got array"),
    ],
)
def test_the_answer_names_field_found_and_expected(kind: type[Any], body: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(kind, body.encode())
    assert says in str(caught.value)
    assert len(str(caught.value)) <= 200


SPARSE = '{"indices":[1],"values":[0.5]}'
DOCUMENT = '{"text":"hello","model":"some/model"}'


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        (points.Upsert, '{"points":[{"id":1,"vector":{"s":' + SPARSE + "}}]}", "sparse"),
        (points.Upsert, '{"points":[{"id":1,"vector":' + DOCUMENT + "}]}", "inference"),
        (points.Upsert, '{"points":[{"id":1,"vector":{"s":' + DOCUMENT + "}}]}", "inference"),
        (points.Upsert, '{"points":[{"id":1,"vector":[[1,2],[3,4]]}]}', "multivectors"),
        (points.Upsert, '{"points":[{"id":1,"vector":{"m":[[1,2],[3,4]]}}]}', "multivectors"),
        (points.Upsert, '{"batch":{"ids":[1],"vectors":[[[1,2]]]}}', "multivectors"),
        (points.Upsert, '{"batch":{"ids":[1],"vectors":{"s":[' + SPARSE + "]}}}", "sparse"),
        (points.UpdateVectors, '{"points":[{"id":1,"vector":{"s":' + SPARSE + "}}]}", "sparse"),
        (queries.QueryBody, '{"query":[[1,2]]}', "multivectors"),
        (queries.QueryBody, '{"query":{"nearest":' + SPARSE + "}}", "sparse"),
        (queries.QueryBody, '{"prefetch":[{"query":{"nearest":' + DOCUMENT + "}}]}", "inference"),
        (queries.QueryBody, '{"query":{"recommend":{"positive":[1,' + DOCUMENT + "]}}}", "inference"),
        (
            queries.QueryBody,
            '{"query":{"discover":{"target":1,"context":[{"positive":' + SPARSE + ',"negative":1}]}}}',
            "sparse",
        ),
    ],
)
def test_forms_of_vectors_that_shoal_refuses_are_named(kind: type[Any], body: str, says: str) -> None:
    with pytest.raises(NotSupported) as caught:
        decode(kind, body.encode())
    assert says in str(caught.value)
    assert str(caught.value).startswith(("points", "batch", "query", "prefetch"))


def test_an_empty_body_has_no_fields() -> None:
    assert decode(reads.CountBody, b"") == decode(reads.CountBody, b"{}")


def test_null_counts_as_missing_and_unknown_fields_are_ignored() -> None:
    names = queries.QueryBody.__struct_fields__
    body = json.dumps({**dict.fromkeys(names), "unknown": {"a": [1]}}).encode()
    assert decode(queries.QueryBody, body) == decode(queries.QueryBody, b"{}")


# -- whatever comes, only our errors come out ---------------------------------------------------------------

Read = Callable[[bytes], object]
READERS: dict[str, Read] = {
    "create": lambda b: collections.parse_create(decode(collections.CreateCollection, b)),
    "update": lambda b: collections.parse_update(
        decode(collections.UpdateCollection, b), CollectionParams(VECTORS)
    ),
    "aliases": lambda b: collections.parse_aliases(decode(collections.ChangeAliases, b)),
    "index": lambda b: indexes.parse_index(decode(indexes.CreateIndex, b)),
    "vector": lambda b: indexes.parse_vector("v", decode(indexes.CreateVector, b)),
    "cluster": lambda b: cluster.parse_cluster_operation(decode(cluster.ClusterOperation, b)),
    "recover": lambda b: cluster.parse_recover(decode(cluster.RecoverSnapshot, b)),
    "batch": lambda b: points.parse_operations(decode(points.UpdateBatch, b), VECTORS),
    "query": lambda b: searches.parse_query(decode(queries.QueryBody, b), VECTORS),
    "groups": lambda b: searches.parse_query_groups(decode(queries.QueryGroupsBody, b), VECTORS),
    "scroll": lambda b: reads.parse_scroll(decode(reads.ScrollBody, b)),
    "facet": lambda b: reads.parse_facet(decode(reads.FacetBody, b)),
    "matrix": lambda b: reads.parse_matrix(decode(reads.MatrixBody, b), VECTORS),
    "retrieve": lambda b: reads.parse_retrieve(decode(reads.RetrieveBody, b)),
}
NASTY: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e38,
    1e300,
    10**30,
    -(10**30),
    "",
    "a",
    "a..b",
    "\ud7ff\u0000",
    "x" * 300,
    [],
    {},
    [1],
    [[1.0]],
    [None],
    {"a": None},
    {"key": "a"},
    {"indices": [1], "values": [1]},
    [{}],
    {"": {}},
    "2024-01-01",
)


@pytest.mark.parametrize("name", READERS)
def test_the_good_examples_are_read(name: str) -> None:
    for body in GOOD[name]:
        READERS[name](json.dumps(body).encode())


@pytest.mark.parametrize("name", READERS)
def test_spoilt_requests_are_read_or_refused_in_words(name: str) -> None:
    rng = random.Random(name)
    refused = 0
    for _ in range(600):
        body = copy.deepcopy(rng.choice(GOOD[name]))
        for _ in range(rng.choice((1, 1, 2, 3))):
            _spoil(body, rng)
        error = _refusal(READERS[name], json.dumps(body).encode())
        if error is not None:
            refused += 1
            assert error.status in (400, 422), error
            assert len(str(error)) <= 220, error
    assert refused > 50


def _refusal(read: Read, body: bytes) -> ShoalError | None:
    try:
        read(body)
    except ShoalError as error:
        return error
    return None


def _spoil(node: Any, rng: random.Random) -> None:
    """Change one place in the tree, anywhere."""
    places: list[tuple[Any, Any]] = []

    def walk(at: Any) -> None:
        steps = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for step, child in steps:
            places.append((at, step))
            walk(child)

    walk(node)
    if not places:
        return
    at, step = rng.choice(places)
    if isinstance(at, dict) and rng.random() < 0.2:
        del at[step]
    elif rng.random() < 0.1:
        at[step] = random_filter(rng)
    else:
        at[step] = copy.deepcopy(rng.choice(NASTY))
