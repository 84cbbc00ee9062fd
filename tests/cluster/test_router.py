"""Reads through any node of a real cluster: the same answers, own writes, consistency, what is missing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.running.cluster import RunningCluster
from tests.running.rest import Rest
from tests.running.waiting import wait_until

POINTS = 400
SERVED = "x-shoal-consistency-served"


def _vector(seed: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.uniform(-1, 1) for _ in range(8)]


def _points() -> list[dict[str, object]]:
    return [{"id": n, "vector": _vector(n), "payload": {"n": n, "kind": n % 7}} for n in range(POINTS)]


def _make(rest: Rest, name: str, shards: int, replicas: int) -> None:
    body = {
        "vectors": {"size": 8, "distance": "Cosine"},
        "shard_number": shards,
        "replication_factor": replicas,
    }
    assert rest.put(f"/collections/{name}", body).status == 200


@pytest.fixture
def cluster(new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return new_cluster().start()


QUESTIONS: list[tuple[str, dict[str, object]]] = [
    ("query", {"query": _vector(1001), "params": {"exact": True}, "limit": 25, "with_payload": True}),
    ("query", {"query": _vector(7), "params": {"exact": True}, "limit": 9, "offset": 4, "with_vector": True}),
    (
        "query",
        {
            "query": _vector(1002),
            "params": {"exact": True},
            "filter": {"must": [{"key": "kind", "match": {"any": [2, 5]}}]},
            "limit": 40,
        },
    ),
    ("query", {"query": {"recommend": {"positive": [3, 4], "strategy": "best_score"}}, "limit": 12}),
    (
        "query",
        {
            "prefetch": [
                {"query": _vector(5), "params": {"exact": True}, "limit": 30},
                {"query": _vector(6), "params": {"exact": True}, "limit": 30},
            ],
            "query": {"fusion": "rrf"},
            "limit": 20,
        },
    ),
    ("query/groups", {"query": _vector(9), "params": {"exact": True}, "group_by": "kind", "limit": 4}),
    ("scroll", {"limit": 60, "offset": 17, "with_vector": True}),
    ("scroll", {"limit": 30, "order_by": {"key": "n", "direction": "desc"}}),
    ("count", {"filter": {"must": [{"key": "n", "range": {"gte": 100}}]}}),
    ("", {"ids": [5, 99999, 300, 4], "with_payload": True}),
]


@pytest.mark.timeout(120)
def test_any_node_answers_like_one_node_over_shards_on_three(cluster: RunningCluster) -> None:
    rests = {name: node.rest() for name, node in cluster.nodes.items()}
    for name, shards in (("one", 1), ("three", 3)):
        _make(rests["n1"], name, shards, 1)
        rest = rests["n1"]
        assert rest.put(f"/collections/{name}/points", {"points": _points()}, wait="true").status == 200
        index = {"field_name": "n", "field_schema": "integer"}
        assert rest.put(f"/collections/{name}/index", index).status == 200
    for call, body in QUESTIONS:
        path = f"points/{call}".rstrip("/")
        expected = _without_versions(rests["n1"].post(f"/collections/one/{path}", body).result)
        for rest in rests.values():
            assert _without_versions(rest.post(f"/collections/three/{path}", body).result) == expected, body
    _check_what_is_missing(cluster, rests["n1"])
    for rest in rests.values():
        rest.close()


def _check_what_is_missing(cluster: RunningCluster, rest: Rest) -> None:
    """The shard on n3, which ends, is named with its points, or the answer is an error that names it."""
    shard = next(one for one in cluster.truth.shards("three") if one.primary == "n3")
    whole = rest.post("/collections/three/points/count", {}, allow_partial="true")
    assert (whole.result["count"], "partial" in whole.body) == (POINTS, False)
    cluster.nodes["n3"].kill()
    partly = rest.post("/collections/three/points/count", {}, allow_partial="true", timeout=10)
    missing = partly.body["partial"]["missing_shards"]
    assert [(one["collection"], one["shard"], one["nodes"]) for one in missing] == [
        ("three", shard.number, ["n3"])
    ]
    assert partly.result["count"] + partly.body["partial"]["missing_points"] == POINTS
    refused = rest.post("/collections/three/points/count", {}, timeout=10)
    assert refused.status == 503
    assert f"shard {shard.number} of collection three (on n3)" in refused.error


@pytest.mark.timeout(120)
def test_a_node_shows_its_own_writes_and_every_node_what_a_quorum_has(cluster: RunningCluster) -> None:
    names = list(cluster.nodes)
    _make(rest := cluster.nodes["n1"].rest(), "docs", 2, 3)
    rest.close()
    wait_until(lambda: all(_knows(cluster, name) for name in names), 10, "docs on all nodes")
    for n in range(90):
        node, other = cluster.nodes[names[n % 3]], cluster.nodes[names[(n + 1) % 3]]
        point = {"id": n, "vector": _vector(n)}
        writer, reader, stranger = node.rest(), node.rest(), other.rest()
        wait, level = ("true", "eventual") if n % 2 else ("false", "quorum")
        assert writer.put("/collections/docs/points", {"points": [point]}, wait=wait).status == 200
        assert [p["id"] for p in reader.post("/collections/docs/points", {"ids": [n]}).result] == [n]
        for asked, served in ((level, level), ("majority", "quorum"), ("all", "strong"), ("2", "quorum")):
            if served == "eventual":
                continue
            answer = stranger.post("/collections/docs/points", {"ids": [n]}, consistency=asked)
            assert [p["id"] for p in answer.result] == [n], asked
            assert answer.headers[SERVED] == served
        for one in (writer, reader, stranger):
            one.close()


@pytest.mark.timeout(120)
def test_a_shard_gets_the_replicas_that_were_asked_for_by_hand(cluster: RunningCluster) -> None:
    rest = cluster.nodes["n2"].rest()
    _make(rest, "docs", 1, 1)
    assert rest.put("/collections/docs/points", {"points": _points()}, wait="true").status == 200
    assert rest.patch("/collections/docs", {"params": {"replication_factor": 3}}).status == 200
    assert "placed 1 of 3" in rest.get("/collections/docs").result["warnings"][0]["message"]
    numbers = {str(name): one.number for name, one in cluster.truth.map().nodes.items()}
    (source,) = cluster.primaries("docs").values()
    change = {"shard_id": 0, "from_peer_id": numbers[source]}
    for name, number in numbers.items():
        asked = {"replicate_shard": {**change, "to_peer_id": number}}
        answer = rest.post("/collections/docs/cluster", asked)
        if name == source:
            assert (answer.status, "has a replica already" in answer.error) == (400, True)
        else:
            assert answer.result is True
    cluster.wait_in_sync("docs", 3)
    assert "warnings" not in rest.get("/collections/docs").result
    for refused in (
        {"replicate_shard": {**change, "to_peer_id": 99}},
        {"replicate_shard": {**change, "shard_id": 7, "to_peer_id": numbers[source]}},
        {"drop_replica": {"shard_id": 0, "peer_id": numbers[source]}},
    ):
        assert rest.post("/collections/docs/cluster", refused).status == 400
    for node in cluster.nodes.values():
        there = node.rest()
        count = {"filter": {"must": [{"key": "n", "range": {"lt": 100}}]}}
        assert there.post("/collections/docs/points/count", count, consistency="all").result["count"] == 100
        there.close()
    rest.close()


@pytest.mark.timeout(120)
def test_the_strategy_of_reads_changes_without_a_restart(cluster: RunningCluster) -> None:
    rest = cluster.nodes["n1"].rest()
    _make(rest, "docs", 1, 3)
    assert rest.put("/collections/docs/points", {"points": _points()}, wait="true").status == 200
    cluster.wait_in_sync("docs", 3)
    query = {"query": _vector(1), "limit": 3}
    assert _asked_elsewhere(rest, query, 60) < 20  # its own replica, but for a look at the others
    values = {"read_strategy": "round_robin"}
    assert rest.patch("/shoal/v1/settings", {"values": values, "why": "a test"}).status == 200
    assert _asked_elsewhere(rest, query, 60) >= 38
    rest.close()


def _asked_elsewhere(rest: Rest, query: dict[str, object], times: int) -> float:
    """How many questions these queries asked of other nodes."""

    def count() -> float:
        lines = rest.get("/metrics").text.splitlines()
        return sum(
            float(one.split()[-1]) for one in lines if one.startswith("shoal_remote_read_seconds_count")
        )

    before = count()
    for _ in range(times):
        assert rest.post("/collections/docs/points/query", query).status == 200
    return count() - before


def _knows(cluster: RunningCluster, name: str) -> bool:
    rest = cluster.nodes[name].rest()
    found = rest.get("/collections/docs/exists").result["exists"]
    rest.close()
    return bool(found)


def _without_versions(answer: object) -> object:
    """A version is a point's place in its shard's log: the shards differ."""
    if isinstance(answer, dict):
        return {key: _without_versions(value) for key, value in answer.items() if key != "version"}
    if isinstance(answer, list):
        return [_without_versions(one) for one in answer]
    return answer
