"""Random reads of random collections give what qdrant-client's local mode gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("qdrant_client")

from qdrant_client import models as m

from tests.compat import calls
from tests.compat.comparing import Pair
from tests.compat.worlds import World, any_filter, distance, make_world

pytestmark = [pytest.mark.compat, pytest.mark.timeout(300)]

SEEDS = range(12)  # distance × named or not × indexed or not × shards
CALLS = 15


class Scene:
    """A world, its pair of clients, and randomness of its own for each test."""

    def __init__(self, world: World, pair: Pair) -> None:
        self.world, self.pair = world, pair

    def rng(self, test: str) -> random.Random:
        return random.Random(f"{self.world.seed} {test}")


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed{seed}")
def scene(request: pytest.FixtureRequest, make_pair: Callable[..., Pair]) -> Scene:
    world = make_world(request.param)
    return Scene(world, make_pair(world))


@pytest.mark.parametrize("kind", sorted(calls.KINDS))
def test_query(scene: Scene, kind: str) -> None:
    rng = scene.rng(kind)
    for _ in range(CALLS):
        scene.pair.compare("query_points", **calls.any_query(scene.world, rng, kind))


def test_query_with_a_score_threshold(scene: Scene) -> None:
    """The threshold lies between two scores, where rounding can't matter.

    Local mode reads a threshold of discover and the like as a distance where nearest has one: so only nearest
    is tried there.
    """
    rng = scene.rng("threshold")
    larger_is_better = all(
        distance(scene.world, name) in (m.Distance.COSINE, m.Distance.DOT) for name in scene.world.names
    )
    for kind in ("nearest", "nearest", "recommend", "discover") * 4:
        kind = kind if larger_is_better else "nearest"
        arguments = calls.any_query(scene.world, rng, kind) | {"offset": 0, "limit": 30}
        found = scene.pair.compare("query_points", **arguments)
        if found and len(found.points) > 6:
            middle = (found.points[4].score + found.points[5].score) / 2
            scene.pair.compare("query_points", **arguments, score_threshold=middle)


@pytest.mark.parametrize("outer", ["fusion", "formula", "nearest", "order_by"])
def test_query_over_prefetches(scene: Scene, outer: str) -> None:
    rng = scene.rng(outer)
    for _ in range(CALLS):
        prefetch = [calls.any_prefetch(scene.world, rng) for _ in range(rng.randint(1, 3))]
        arguments = calls.any_query(scene.world, rng, "nearest") | {"prefetch": prefetch}
        if outer in ("fusion", "formula"):
            make = getattr(calls, outer)
            arguments |= {"query": make(scene.world, rng, len(prefetch)), "using": None}
        if outer == "order_by":
            arguments |= {"query": calls.order_by(scene.world, rng, ""), "using": None}
        scene.pair.compare("query_points", **arguments)


def test_query_batch(scene: Scene) -> None:
    rng = scene.rng("batch")
    for _ in range(5):
        requests = []
        for kind in rng.sample(sorted(calls.KINDS), 4):
            arguments = calls.any_query(scene.world, rng, kind)
            requests.append(
                m.QueryRequest(
                    query=arguments["query"],
                    using=arguments["using"],
                    filter=arguments["query_filter"],
                    limit=arguments["limit"],
                    offset=arguments["offset"],
                    with_payload=arguments["with_payload"],
                    with_vector=arguments["with_vectors"],
                )
            )
        scene.pair.compare("query_batch_points", requests=requests)


def test_query_groups(scene: Scene) -> None:
    rng = scene.rng("groups")
    for kind in ("nearest", "recommend", "discover") * 5:
        arguments = calls.any_query(scene.world, rng, kind)
        del arguments["offset"]
        arguments |= {"limit": rng.choice([1, 3, 8]), "group_size": rng.choice([1, 2, 4])}
        scene.pair.compare(
            "query_points_groups", group_by=rng.choice(["word", "count", "owner"]), **arguments
        )


def test_examples_of_another_collection(scene: Scene, make_pair: Callable[..., Pair]) -> None:
    """`lookup_from`: ids name points of the other collection, and are not left out of the results."""
    rng = scene.rng("lookup")
    world, pair = scene.world, scene.pair
    other = f"{pair.collection}-other"
    for client in (pair.local, pair.remote):
        client.create_collection(other, vectors_config=world.vectors)
        client.upsert(other, points=world.points[:20], wait=True)
    try:
        name = world.names[0]
        known = [i for i in calls.having(world, name) if i in world.ids[:20]]
        for _ in range(CALLS):
            query = m.RecommendQuery(recommend=m.RecommendInput(positive=rng.sample(known, 2)))
            pair.compare(
                "query_points",
                query=rng.choice([query, known[0]]),
                using=calls.using(name),
                lookup_from=m.LookupLocation(collection=other, vector=calls.using(name)),
                limit=10,
            )
    finally:
        pair.remote.delete_collection(other)


def test_scroll_page_by_page(scene: Scene) -> None:
    rng = scene.rng("scroll")
    for _ in range(5):
        arguments = {"scroll_filter": any_filter(scene.world, rng), "limit": rng.choice([7, 40])}
        offset: Any = None
        while True:
            page = scene.pair.compare("scroll", offset=offset, **arguments, **calls.selectors(rng))
            offset = page[1]
            if offset is None:
                break


def test_scroll_in_the_order_of_a_field(scene: Scene) -> None:
    rng = scene.rng("ordered")
    for _ in range(CALLS):
        scene.pair.compare(
            "scroll",
            scroll_filter=any_filter(scene.world, rng),
            order_by=calls.any_order(rng),
            limit=rng.choice([5, 50, 500]),
        )


def test_count_of_random_filters(scene: Scene) -> None:
    rng = scene.rng("count")
    for _ in range(60):
        scene.pair.compare("count", count_filter=any_filter(scene.world, rng), exact=True)


def test_facet(scene: Scene) -> None:
    rng = scene.rng("facet")
    for _ in range(CALLS):
        scene.pair.compare(
            "facet",
            key=rng.choice(["word", "count", "flag", "owner", "deep.inner", "items[].kind"]),
            facet_filter=any_filter(scene.world, rng),
            limit=rng.choice([3, 50]),
            exact=True,
        )


def test_matrix_of_all_points(scene: Scene) -> None:
    """The sample holds every point that passes the filter: then it is the same on both sides."""
    rng = scene.rng("matrix")
    for method in ("search_matrix_pairs", "search_matrix_offsets"):
        name = rng.choice(scene.world.names)
        some = m.Filter(must=[m.HasIdCondition(has_id=rng.sample(scene.world.ids, 25))])
        local, remote = scene.pair.both(
            method, query_filter=some, limit=4, sample=100, using=calls.using(name)
        )
        assert _matrix(local) == pytest.approx(_matrix(remote), rel=1e-3, abs=1e-4)


def _matrix(answer: Any) -> dict[Any, float]:
    if hasattr(answer, "pairs"):
        return {(pair.a, pair.b): pair.score for pair in answer.pairs}
    ids = answer.ids
    rows = zip(answer.offsets_row, answer.offsets_col, answer.scores, strict=True)
    return {(ids[row], ids[column]): score for row, column, score in rows}


def test_sample_is_random_and_obeys_the_filter(scene: Scene) -> None:
    some = m.Filter(must=[m.HasIdCondition(has_id=scene.world.ids[:40])])
    samples = [
        scene.pair.remote.query_points(
            scene.pair.collection, query=m.SampleQuery(sample=m.Sample.RANDOM), query_filter=some, limit=20
        ).points
        for _ in range(5)
    ]
    assert all(len({p.id for p in sample} & set(scene.world.ids[:40])) == 20 for sample in samples)
    assert len({tuple(sorted(str(p.id) for p in sample)) for sample in samples}) > 1
    assert {p.score for sample in samples for p in sample} == {1.0}


def test_retrieve_keeps_the_order_and_skips_what_is_missing(scene: Scene) -> None:
    rng = scene.rng("retrieve")
    for _ in range(CALLS):
        ids = [*rng.sample(scene.world.ids, 5), 999_999_999]
        rng.shuffle(ids)
        scene.pair.compare("retrieve", ids=ids, **calls.selectors(rng))
