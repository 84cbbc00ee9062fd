"""Filtered searches through graphs find only what matches: all of it if it is little, else nearly all."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import mean

import numpy as np
import pytest

from tests.compat.awkward import Id, Json, stirred_payload
from tests.compat.filtering import SIZES, Twin, own_types, score
from tests.running.agent import RunningAgent
from tests.running.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

POINTS = 3_000
"""A shard."""
FILTERS = 25
LIMIT = 10
WITH_GRAPHS = ("Cosine", "Dot", "Euclid")
EXACT_UP_TO = 500
"""So few matching points of a shard are always compared one by one."""


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "not indexed"])
def test_filtered_searches_through_graphs_agree(
    new_agent: Callable[..., RunningAgent], shards: int, indexed: bool
) -> None:
    agent = new_agent(agent={"fronts": 1}).start()
    assert agent.rest().patch("/shoal/v1/settings", {"values": {"build_start_rows": 500}}).status == 200
    count = POINTS * shards
    twin = Twin([agent.rest()], "graphs", random.Random(f"{shards} {indexed}"), shards=shards)
    twin.create(WITH_GRAPHS)
    if indexed:
        twin.index_all(own_types)
    for low in range(0, count, 1_000):
        vectors = [
            {name: twin.random_vector(name) for name in SIZES if twin.rng.random() < 0.9}
            for _ in range(1_000)
        ]
        payloads = [stirred_payload(twin.rng) for _ in vectors]
        twin.upsert(
            [{"id": low + n, "vector": v, "payload": p} for n, (v, p) in enumerate(zip(vectors, payloads))]
        )
    wait_until(lambda: is_built(twin), 240, "graphs over most of the points")
    assert mean(recalls(twin)) > 0.95
    for _ in range(5):  # the graphs keep the dead, whose slots must not be found
        twin.edit(4)
        twin.delete(twin.rng.sample(sorted(twin.points, key=str), 200))
    twin.check_contents()
    assert mean(recalls(twin)) > 0.95


def is_built(twin: Twin) -> bool:
    info = twin.client.get(f"/collections/{twin.name}").result
    # A tail and a graph for each vector, in each shard.
    return info["status"] == "green" and info["segments_count"] >= (1 + len(SIZES)) * twin.shards


def recalls(twin: Twin) -> list[float]:
    """The share of the best that is found, by random filters that match much; where little matches all is."""
    found: list[float] = []
    while len(found) < FILTERS:
        filter_ = twin.random_filter()
        name = twin.rng.choice(tuple(SIZES))
        matching = [i for i in twin.matching(filter_) if name in twin.points[i].vectors]
        query = twin.random_vector(name)
        share = searched(twin, filter_, name, query, matching)
        if len(matching) <= EXACT_UP_TO:
            assert share == 1
        else:
            found.append(share)
    return found


def searched(twin: Twin, filter_: Json, name: str, query: list[float], matching: list[Id]) -> float:
    scores = {i: score(twin.distances[name], twin.points[i].vectors[name], query) for i in matching}
    body = {"query": query, "using": name, "filter": filter_, "limit": LIMIT}
    hits = twin.client.post(f"/collections/{twin.name}/points/query", body).result["points"]
    assert {hit["id"] for hit in hits} <= scores.keys(), filter_
    assert len({hit["id"] for hit in hits}) == min(LIMIT, len(matching)), filter_
    assert np.allclose([hit["score"] for hit in hits], [scores[hit["id"]] for hit in hits], atol=1e-4)
    sign = 1 if twin.distances[name] in ("Cosine", "Dot") else -1
    best = sorted((sign * s for s in scores.values()), reverse=True)[:LIMIT]
    return float(np.mean([sign * hit["score"] >= best[-1] - 1e-4 for hit in hits])) if best else 1.0
