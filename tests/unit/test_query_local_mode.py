"""Randomised queries answered as qdrant-client's local mode answers them, on one shard and on three."""

from __future__ import annotations

import random
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

from agent.front.queries.reads import Reads
from core.api import queries, searches
from core.api import reads as read_bodies
from core.api.config import Distance, VectorParams
from core.api.decode import decode
from tests.unit.query_shards import Point, collection, reads

METRICS = list(Distance)
SIZE, OTHER_SIZE, COUNT = 8, 5, 160
CITIES = ["Berlin", "London", "Oslo", "Rome"]


def a_vector(random_: random.Random, size: int = SIZE) -> list[float]:
    row = np.array([random_.gauss(0.1, 1) for _ in range(size)])
    return [float(np.float32(x)) for x in row / np.linalg.norm(row) * (0.5 + random_.random())]


def a_payload(random_: random.Random, i: int) -> dict[str, Any]:
    payload: dict[str, Any] = {"n": random_.randrange(40), "price": round(random_.uniform(1, 9), 3)}
    if random_.random() < 0.9:
        payload["city"] = random_.choice(CITIES)
    if random_.random() < 0.8:
        payload["tags"] = random_.sample(["a", "b", "c", "d", 1, 2], random_.randrange(4))
    if random_.random() < 0.5:
        payload["ok"] = random_.random() < 0.5
    if random_.random() < 0.8:
        payload["when"] = f"20{random_.randrange(10, 30)}-0{random_.randrange(1, 10)}-11T10:00:{i % 60:02}Z"
    if random_.random() < 0.8:
        payload["scores"] = [random_.randrange(100) for _ in range(random_.randrange(3))]
    payload["at"] = {"lat": random_.uniform(-80, 80), "lon": random_.uniform(-170, 170)}
    return payload


@cache
def the_points() -> list[Point]:
    random_ = random.Random(7)
    points = []
    for i in range(COUNT):
        id_ = i + 1 if i % 3 else str(uuid.UUID(int=random_.getrandbits(128)))
        vectors = {"a": a_vector(random_), "b": a_vector(random_, OTHER_SIZE)}
        if i % 7 == 3:
            del vectors["b"]
        points.append(Point(id_, vectors, a_payload(random_, i)))
    random_.shuffle(points)
    return points


def params(distance: Distance) -> dict[str, VectorParams]:
    return {"a": VectorParams(SIZE, distance), "b": VectorParams(OTHER_SIZE, Distance.DOT)}


def elsewhere() -> list[Point]:
    random_ = random.Random(8)
    return [Point(i, {"a": a_vector(random_)}, {"who": i}) for i in range(1, 60)]


@cache
def reference(distance: Distance) -> QdrantClient:
    client = QdrantClient(":memory:")
    for name, points in (("here", the_points()), ("there", elsewhere())):
        client.create_collection(
            name,
            vectors_config={
                vector: models.VectorParams(size=each.size, distance=models.Distance(each.distance.value))
                for vector, each in params(distance).items()
            },
        )
        client.upsert(
            name, [models.PointStruct(id=p.id, vector=dict(p.vectors), payload=p.payload) for p in points]
        )
    return client


@cache
def ours(distance: Distance, shards: int) -> Reads:
    here = collection("here", params(distance), the_points(), shards)
    return reads(here, collection("there", params(distance), elsewhere(), 2))


# -- random requests ----------------------------------------------------------------------------------------


def a_condition(random_: random.Random) -> models.Condition:
    return random_.choice(
        [
            models.FieldCondition(key="city", match=models.MatchValue(value=random_.choice(CITIES))),
            models.FieldCondition(key="tags", match=models.MatchAny(any=["a", "c"])),
            models.FieldCondition(key="n", range=models.Range(gte=random_.randrange(20), lt=35)),
            models.FieldCondition(key="price", range=models.Range(lt=random_.uniform(3, 9))),
            models.IsEmptyCondition(is_empty=models.PayloadField(key="ok")),
            models.HasVectorCondition(has_vector="b"),
        ]
    )


def a_filter(
    random_: random.Random, clauses: Sequence[str] = ("must", "should", "must_not")
) -> models.Filter | None:
    if random_.random() > 0.5:
        return None
    clause = random_.choice(clauses)
    return models.Filter(**{clause: [a_condition(random_) for _ in range(random_.randrange(1, 3))]})


def an_id(random_: random.Random) -> Any:
    return random_.choice([p.id for p in the_points() if "b" in p.vectors])


def an_example(random_: random.Random, size: int) -> Any:
    return an_id(random_) if random_.random() < 0.5 else unit(a_vector(random_, size))


def unit(vector: Sequence[float]) -> list[float]:
    # Local mode averages examples of any length for cosine, the server normalised ones.
    row = np.array(vector)
    return [float(x) for x in row / np.linalg.norm(row)]


def pairs(random_: random.Random, size: int) -> list[models.ContextPair]:
    return [
        models.ContextPair(positive=an_example(random_, size), negative=an_example(random_, size))
        for _ in range(random_.randrange(1, 4))
    ]


def a_ranked_query(random_: random.Random, size: int) -> Any:
    """A query whose scores have hardly any ties."""
    examples = [an_example(random_, size) for _ in range(4)]
    kinds: list[Callable[[], Any]] = [
        lambda: a_vector(random_, size),
        lambda: an_id(random_),
        lambda: models.NearestQuery(nearest=a_vector(random_, size)),
        lambda: models.NearestQuery(
            nearest=an_example(random_, size),
            mmr=models.Mmr(
                diversity=random_.choice([None, 0.0, 0.3, 1.0]), candidates_limit=random_.choice([None, 40])
            ),
        ),
        lambda: models.RecommendQuery(
            recommend=models.RecommendInput(
                positive=examples[: random_.randrange(1, 3)],
                negative=examples[2 : 2 + random_.randrange(3)],
                strategy=random_.choice([None, *models.RecommendStrategy]),
            )
        ),
        lambda: models.RecommendQuery(
            recommend=models.RecommendInput(
                negative=examples[2:], strategy=models.RecommendStrategy.BEST_SCORE
            )
        ),
        lambda: models.DiscoverQuery(
            discover=models.DiscoverInput(target=examples[0], context=pairs(random_, size))
        ),
        lambda: models.RelevanceFeedbackQuery(
            relevance_feedback=models.RelevanceFeedbackInput(
                # Ids here are left out by local mode at this level only, not in the prefetches inside.
                target=a_vector(random_, size),
                feedback=[
                    models.FeedbackItem(example=a_vector(random_, size), score=random_.random())
                    for _ in range(3)
                ],
                strategy=models.NaiveFeedbackStrategy(
                    naive=models.NaiveFeedbackStrategyParams(a=0.7, b=1.2, c=0.4)
                ),
            )
        ),
    ]
    return random_.choice(kinds)()


def a_prefetch(random_: random.Random, depth: int = 0) -> models.Prefetch:
    using = random_.choice(["a", "b"])
    size = SIZE if using == "a" else OTHER_SIZE
    inner = (
        [a_prefetch(random_, depth + 1) for _ in range(2)] if depth < 2 and random_.random() < 0.25 else None
    )
    lookup = models.LookupLocation(collection="there", vector="a") if random_.random() < 0.2 else None
    query: Any = random_.randrange(1, 50) if lookup and using == "a" else a_ranked_query(random_, size)
    return models.Prefetch(
        query=query,
        using=using,
        limit=random_.choice([None, 5, 30]),
        # Local mode makes one list of an outer and an inner `should`, so that the outer filter may not hold.
        filter=a_filter(random_, ("must", "must_not")),
        prefetch=inner,
        lookup_from=lookup if lookup and using == "a" else None,
    )


def an_expression(random_: random.Random, depth: int = 0) -> Any:
    leaves: list[Callable[[], Any]] = [
        lambda: round(random_.uniform(-3, 3), 3),
        lambda: "$score",
        lambda: "$score[1]",
        lambda: "price",
        lambda: "n",
        lambda: a_condition(random_),
        lambda: models.DatetimeKeyExpression(datetime_key="when"),
        lambda: models.GeoDistance(
            geo_distance=models.GeoDistanceParams(origin=models.GeoPoint(lat=10.0, lon=20.0), to="at")
        ),
    ]
    if depth > 2:
        return random_.choice(leaves)()

    def some() -> Any:
        return an_expression(random_, depth + 1)

    decay = models.DecayParamsExpression
    nodes: list[Callable[[], Any]] = [
        lambda: models.SumExpression(sum=[some(), some()]),
        lambda: models.MultExpression(mult=[some(), some(), some()]),
        lambda: models.NegExpression(neg=some()),
        lambda: models.AbsExpression(abs=some()),
        lambda: models.DivExpression(div=models.DivParams(left=some(), right=some(), by_zero_default=1.5)),
        lambda: models.SqrtExpression(sqrt=models.AbsExpression(abs=some())),
        lambda: models.PowExpression(
            pow=models.PowParams(base=models.AbsExpression(abs="price"), exponent=0.5)
        ),
        lambda: models.Log10Expression(
            log10=models.SumExpression(sum=[1.0, models.AbsExpression(abs=some())])
        ),
        lambda: models.LnExpression(ln=models.SumExpression(sum=[1.0, models.AbsExpression(abs=some())])),
        lambda: models.ExpExpression(exp=models.NegExpression(neg=models.AbsExpression(abs=some()))),
        lambda: models.LinDecayExpression(lin_decay=decay(x="n", target=5.0, scale=9.0, midpoint=0.2)),
        lambda: models.ExpDecayExpression(exp_decay=decay(x="price", scale=4.0)),
        lambda: models.GaussDecayExpression(
            gauss_decay=decay(x="n", target="price", scale=20.0, midpoint=0.4)
        ),
    ]
    return random_.choice(nodes + leaves)()


def a_query(random_: random.Random) -> dict[str, Any]:
    """The arguments of a query request, by its JSON names."""
    using = random_.choice(["a", "b"])
    size = SIZE if using == "a" else OTHER_SIZE
    request: dict[str, Any] = {
        "filter": a_filter(random_),
        "limit": random_.choice([1, 3, 10, 50, 300]),
        "offset": random_.choice([None, 0, 2, 20]),
        "using": using,
    }
    kind = random_.choice(
        ["ranked", "ranked", "context", "none", "fusion", "rrf", "formula", "nested", "order_by"]
    )
    prefetch = [a_prefetch(random_) for _ in range(random_.randrange(1, 4))]
    if kind == "ranked":
        request["query"] = a_ranked_query(random_, size)
        if isinstance(request["query"], list | models.NearestQuery) and random_.random() < 0.3:
            request["score_threshold"] = random_.uniform(0.2, 1.5)
    elif kind == "context":
        request["query"] = models.ContextQuery(context=pairs(random_, size))
    elif kind in ("fusion", "rrf"):
        weights = [random_.choice([0.5, 1.0, 2.0, 0.0]) for _ in prefetch]
        query: Any = models.FusionQuery(fusion=random_.choice(list(models.Fusion)))
        if kind == "rrf":
            query = models.RrfQuery(rrf=models.Rrf(k=random_.choice([None, 1, 60]), weights=weights))
        request |= {"query": query, "prefetch": prefetch, "using": None}
        if random_.random() < 0.3:
            request["score_threshold"] = 0.41  # not a sum that rounding can miss
    elif kind == "formula":
        defaults = {"when": "2020-01-01T00:00:00Z", "$score[1]": 0.25}
        formula = models.FormulaQuery(formula=an_expression(random_), defaults=defaults)
        request |= {"query": formula, "prefetch": prefetch, "using": None}
    elif kind == "nested":
        request |= {"query": a_ranked_query(random_, size), "prefetch": prefetch}
    elif kind == "order_by":
        # Two of one price are one too many to compare the order of ids.
        order = models.OrderBy(key="price", direction=random_.choice([None, *models.Direction]))
        request |= {"query": models.OrderByQuery(order_by=order), "using": None}
        if random_.random() < 0.5:
            request["prefetch"] = prefetch
    return {name: value for name, value in request.items() if value is not None}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return (
        value.model_dump(mode="json", exclude_none=True, by_alias=True)
        if hasattr(value, "model_dump")
        else value
    )


def body(kind: type[Any], request: Mapping[str, Any]) -> Any:
    return decode(kind, msgspec.json.encode(plain(dict(request))))


def arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"filter": "query_filter", "with_vector": "with_vectors"}
    return {renamed.get(name, name): value for name, value in request.items()}


def at_reference(distance: Distance, request: Mapping[str, Any]) -> Sequence[models.ScoredPoint]:
    return reference(distance).query_points("here", **arguments(request)).points


def assert_same_ranking(got: Sequence[Any], expected: Sequence[Any], why: str, *, cut: bool = False) -> None:
    """Equal scores in order, and equal ids wherever the scores decide the order.

    cut: better ones were skipped, perhaps of the first one's score.
    """
    assert len(got) == len(expected), why
    scores = np.array([each.score for each in expected])
    assert np.array([each.score for each in got]) == pytest.approx(scores, rel=3e-5, abs=3e-6), why
    apart = np.abs(np.diff(scores, prepend=np.nan, append=np.nan)) > 1e-4 * np.maximum(
        1, np.abs(np.append(scores, 0))
    )
    last = len(scores) - 1
    for i, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        if i < last and (apart[i] if i else not cut) and apart[i + 1]:
            assert mine.id == theirs.id, f"rank {i}: {why}"


def answer(call: Callable[[], Any]) -> Any:
    """What a call answers, or the error it raises."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the reference has no error class of its own
        return error


@pytest.mark.parametrize("distance", METRICS)
@pytest.mark.parametrize("seed", range(6))
def test_queries_are_answered_as_by_local_mode(distance: Distance, seed: int) -> None:
    random_ = random.Random(f"{seed} {distance}")
    one, three = ours(distance, 1), ours(distance, 3)
    errors = 0
    for i in range(60):
        request = a_query(random_)
        why = f"{distance} seed {seed} #{i}: {plain(request)}"
        search = searches.parse_query(body(queries.QueryBody, request), params(distance))
        got = answer(partial(one.query, search))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = answer(partial(at_reference, distance, request))
        if isinstance(expected, Exception):
            assert isinstance(got, Exception), f"{why}: {expected}"
            errors += 1
            continue
        if isinstance(got, Exception):
            raise AssertionError(why) from got
        if "order_by" in str(plain(request.get("query"))):
            assert [(p.id, p.order_value) for p in got] == [(p.id, p.order_value) for p in expected], why
        else:
            assert_same_ranking(got, expected, why, cut=bool(request.get("offset")))
        apart = three.query(search)
        assert [(p.id, p.score) for p in apart] == [(p.id, p.score) for p in got], why
    assert errors < 30


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_local_mode(seed: int) -> None:
    random_ = random.Random(seed)
    distance = METRICS[seed % 4]
    for i in range(25):
        request = {
            "query": a_ranked_query(random_, SIZE),
            "using": "a",
            "filter": a_filter(random_),
            "group_by": random_.choice(["city", "tags", "n", "ok", "scores", "at.lat"]),
            "group_size": random_.choice([1, 3, 12]),
            "limit": random_.choice([1, 3, 10, 40]),
            "with_payload": ["city"],
        }
        if random_.random() < 0.3:
            request["with_lookup"] = "there"
        request = {name: value for name, value in request.items() if value is not None}
        why = f"{distance} seed {seed} #{i}: {plain(request)}"
        parsed = searches.parse_query_groups(body(queries.QueryGroupsBody, request), params(distance))
        expected = reference(distance).query_points_groups("here", **arguments(request)).groups
        for shards in (1, 3):
            got = ours(distance, shards).groups(parsed).groups
            assert [group.id for group in got] == [group.id for group in expected], why
            for mine, theirs in zip(got, expected, strict=True):
                assert_same_ranking(mine.hits, theirs.hits, why)
                looked_up = None if mine.lookup is msgspec.UNSET else mine.lookup.id
                assert looked_up == (theirs.lookup.id if theirs.lookup else None), why


@pytest.mark.parametrize("seed", range(4))
def test_scroll_count_facet_and_retrieve_are_those_of_local_mode(seed: int) -> None:
    random_ = random.Random(seed)
    client = reference(Distance.DOT)
    for _ in range(25):
        where = a_filter(random_)
        request: dict[str, Any] = {
            "limit": random_.choice([1, 7, 200]),
            "with_vector": random_.choice([True, ["b"], False]),
        }
        if where is not None:
            request["filter"] = where
        if random_.random() < 0.4:
            key = random_.choice(["n", "price", "when", "scores", "city"])
            start = {"n": 11, "price": 4.5, "when": "2019-05-05T00:00:00Z", "scores": 40, "city": 1}[key]
            direction = random_.choice([None, *models.Direction])
            request["order_by"] = models.OrderBy(
                key=key, direction=direction, start_from=random_.choice([None, start])
            )
        elif random_.random() < 0.7:
            request["offset"] = an_id(random_)
        page = read_bodies.parse_scroll(body(read_bodies.ScrollBody, request))
        renamed = {"filter": "scroll_filter", "with_vector": "with_vectors"}
        expected, following = client.scroll("here", **{renamed.get(k, k): v for k, v in request.items()})
        key_ = random_.choice(["city", "tags", "n", "ok"])
        count = read_bodies.parse_count(
            body(read_bodies.CountBody, {} if where is None else {"filter": where})
        )
        facet = body(
            read_bodies.FacetBody, {"key": key_, "limit": 5} | ({} if where is None else {"filter": where})
        )
        hits = client.facet("here", key_, facet_filter=where, limit=5).hits
        ids = [an_id(random_) for _ in range(5)] + [999_999]
        wanted = read_bodies.parse_retrieve(body(read_bodies.RetrieveBody, {"ids": ids}))
        for shards in (1, 3):
            here = ours(Distance.DOT, shards)
            got = here.scroll(page)
            assert got.next_page_offset == following
            assert_same_records(got.points, expected, ordered="order_by" not in request)
            assert here.count(count).count == client.count("here", count_filter=where).count
            found = here.facet(read_bodies.parse_facet(facet)).hits
            assert [(hit.value, hit.count) for hit in found] == [(hit.value, hit.count) for hit in hits]
            kept = list(dict.fromkeys(record.id for record in client.retrieve("here", ids)))
            assert [record.id for record in here.retrieve(wanted)] == kept


def assert_same_records(got: Sequence[Any], expected: Sequence[Any], *, ordered: bool) -> None:
    if not ordered:
        assert [record.order_value for record in got] == [record.order_value for record in expected]
        if len(got) == 200:
            return
    for mine, theirs in zip(got, expected, strict=True):
        if ordered:
            assert mine.id == theirs.id
            payload = msgspec.json.decode(mine.payload)
            assert payload == theirs.payload
            vectors = {} if mine.vector is msgspec.UNSET else mine.vector
            assert vectors.keys() == (theirs.vector or {}).keys()
            for name, vector in vectors.items():
                assert vector == pytest.approx(theirs.vector[name])


@pytest.mark.parametrize("distance", METRICS)
def test_the_matrix_of_all_points_is_that_of_local_mode(distance: Distance) -> None:
    city = models.Filter(must=[models.FieldCondition(key="city", match=models.MatchValue(value="Oslo"))])
    request = {"sample": 300, "limit": 4, "using": "b", "filter": city}
    parsed = read_bodies.parse_matrix(body(read_bodies.MatrixBody, request), params(distance))
    client = reference(distance)
    expected = client.search_matrix_pairs("here", query_filter=city, limit=4, sample=300, using="b").pairs
    offsets = client.search_matrix_offsets("here", query_filter=city, limit=4, sample=300, using="b")
    for shards in (1, 3):
        got = ours(distance, shards).matrix_pairs(parsed).pairs
        assert [(pair.a, pair.b) for pair in got] == [(pair.a, pair.b) for pair in expected]
        assert [pair.score for pair in got] == pytest.approx([pair.score for pair in expected], rel=1e-5)
        flat = ours(distance, shards).matrix_offsets(parsed)
        assert (flat.ids, flat.offsets_row, flat.offsets_col) == (
            offsets.ids,
            offsets.offsets_row,
            offsets.offsets_col,
        )
