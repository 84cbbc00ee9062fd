"""A running agent answers filters exactly as the naive evaluator, whatever is indexed, edited, or killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.compat.awkward import Json
from tests.compat.filtering import Twin, odd_types, own_types
from tests.running.agent import RunningAgent
from tests.running.rest import Rest
from tests.running.waiting import wait_until

POINTS = 60


@contextmanager
def twin(agent: RunningAgent, name: str, seed: str, *, shards: int) -> Iterator[Twin]:
    clients = [agent.rest() for _ in range(3)]
    made = Twin(clients, name, random.Random(seed), shards=shards)
    made.create()
    yield made
    made.client.delete(f"/collections/{name}")
    for client in clients:
        client.close()


@pytest.fixture(params=(1, 3), ids=("one shard", "three shards"))
def pair(request: pytest.FixtureRequest, shared_agent: RunningAgent, collection_name: str) -> Iterator[Twin]:
    with twin(shared_agent, collection_name, request.node.name, shards=request.param) as made:
        yield made


@pytest.mark.parametrize("indexes", ["none", "fitting", "odd"])
def test_filters_agree_before_and_after_edits(pair: Twin, indexes: str) -> None:
    if indexes == "odd":  # before the points, which are put into the columns as they come
        pair.index_all(odd_types(pair.rng))
    pair.fill(POINTS)
    if indexes == "fitting":  # after the points, which are read from points.db
        pair.index_all(own_types)
    pair.check_filters(125)
    pair.edit(40)
    pair.check_contents()
    pair.check_filters(125)
    assert 0.1 < pair.matched / pair.pairs < 0.9, "the random filters are no longer a test"


def scans(agent: RunningAgent) -> float:
    """How many filters had to look at payloads, as /metrics says."""
    lines = agent.rest().get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("shoal_filter_scans_total"))


def test_a_filter_without_an_index_is_counted_and_an_index_tells_its_points(
    pair: Twin, shared_agent: RunningAgent
) -> None:
    pair.fill(POINTS)
    numbers = {"must": {"key": "n", "range": {"gte": -2}}}
    before = scans(shared_agent)
    pair.check(numbers)
    assert scans(shared_agent) > before
    pair.index("n", "integer")
    before = scans(shared_agent)
    pair.check({"must": {"key": "n", "match": {"value": 3}}})
    assert scans(shared_agent) == before, "a filter on an indexed integer looked at payloads"
    for edits in (0, 10, 10):
        pair.edit(edits)
        held = sum(any(map(fits, elements(p.payload.get("n")))) for p in pair.points.values())
        schema = pair.client.get(f"/collections/{pair.name}").result["payload_schema"]
        assert schema == {"n": {"data_type": "integer", "points": held}}


def elements(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def fits(value: Any) -> bool:
    """Into an index of integers."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def test_has_vector_follows_vectors_that_are_dropped_and_made_again(pair: Twin) -> None:
    pair.fill(POINTS)
    extra, path = {"must": {"has_vector": "extra"}}, f"/collections/{pair.name}/vectors/extra"
    for _ in range(2):
        assert pair.client.put(path, {"dense": {"size": 2, "distance": "Dot"}}).status == 200
        pair.check(extra)
        some = pair.rng.sample(sorted(pair.points, key=str), 10)
        pair.write("PUT", "/vectors", {"points": [{"id": i, "vector": {"extra": [1, 2]}} for i in some]})
        for id_ in some:
            pair.points[id_].vectors["extra"] = [1, 2]
        pair.check(extra)
        pair.write("POST", "/payload", {"payload": {"seen": True}, "filter": extra})
        for id_ in some:
            pair.points[id_].payload["seen"] = True
        pair.check_contents()
        pair.check(extra)
        assert pair.client.delete(path).status == 200
        for held in pair.points.values():
            held.vectors.pop("extra", None)
        pair.check(extra)


# -- what takes longer ---------------------------------------------------------------------------------------

STEPS = ("fit", "odd", "none", "some", "edit", "edit", "stop", "kill")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_filters_agree_through_indexes_edits_restarts_and_kills(
    new_agent: Callable[..., RunningAgent], seed: int, shards: int
) -> None:
    """10,000 filters in all: 8 runs of 1,250."""
    agent = new_agent(agent={"fronts": 2}).start()
    with twin(agent, f"filters-{seed}", f"{seed} {shards}", shards=shards) as both:
        both.fill(POINTS)
        for _ in range(25):
            change(both, agent, both.rng.choice(STEPS))
            both.check_contents()
            both.check_filters(50)
        assert 0.1 < both.matched / both.pairs < 0.9, "the random filters are no longer a test"


def change(both: Twin, agent: RunningAgent, step: str) -> None:
    match step:
        case "fit":
            both.index_all(own_types)
        case "odd":
            both.index_all(odd_types(both.rng))
        case "none":
            both.drop_indexes()
        case "some":  # dropped and made again at once, or only dropped
            for path in both.rng.sample(sorted(both.indexed), len(both.indexed) // 2):
                both.drop_index(path)
                if both.rng.random() < 0.5:
                    both.index(path, odd_types(both.rng)(path).replace("text", "keyword"))
        case "edit":
            both.edit(30)
        case "stop":
            assert agent.stop() == 0
            both.reconnect()
            agent.start()
        case _:
            agent.kill_role(both.rng.choice(("group", "store", "main")))
            agent.wait_ended()
            both.reconnect()
            agent.start()


HOT = range(1_000, 1_030)
HOT_PATHS = ("color", "tags", "n", "text")
SIDES = (
    {"color": "red", "tags": ["red", "x1", "sea"], "n": 1, "text": "deep red sea"},
    {"color": "blue", "tags": ["blue", "x1"], "n": 2, "text": "a blue word"},
)
"""The two payloads between which the hot points go back and forth."""


def one_side(side: int) -> Json:
    wanted = SIDES[side]
    return {
        "must": [
            {"key": "color", "match": {"value": wanted["color"]}},
            {"key": "n", "match": {"value": wanted["n"]}},
        ]
    }


ALWAYS = (
    {"should": [one_side(0), one_side(1)]},
    {"must": {"key": "tags", "match": {"any": ["red", "blue"]}}},
    {"must": [{"key": "tags", "match": {"value": "x1"}}, {"key": "n", "range": {"gte": 1}}]},
    {"should": [{"key": "text", "match": {"text": "red sea"}}, {"key": "color", "match": {"value": "blue"}}]},
)
NEVER = (
    {"must": [{"key": "color", "match": {"value": "red"}}, {"key": "n", "match": {"value": 2}}]},
    {"must": [{"key": "tags", "match": {"value": "red"}}, {"key": "tags", "match": {"value": "blue"}}]},
    {"must": [{"key": "text", "match": {"text": "red"}}, {"key": "n", "match": {"value": 2}}]},
    {"must": {"key": "tags", "match": {"any": ["red", "blue"]}}, "must_not": [one_side(0), one_side(1)]},
)


def write_hot(client: Rest, name: str, stop: threading.Event) -> int:
    """Each of the hot points from one side to the other, all at once, by every kind of write in turn."""
    at, vector, rounds = f"/collections/{name}/points", {"": [1, 0, 0, 0, 0]}, 0
    while not stop.is_set():
        payload = SIDES[rounds % 2]
        points = [{"id": i, "vector": vector, "payload": payload} for i in HOT]
        chosen = {"payload": payload, "points": list(HOT)}
        by_filter = {"payload": payload, "filter": {"must": {"has_id": list(HOT)}}}
        calls = [
            ("PUT", "", {"points": points}),
            ("POST", "/payload", chosen),
            ("PUT", "/payload", by_filter),
        ]
        method, path, body = calls[rounds % 3]
        assert client.call(method, at + path, body, wait=rounds % 7 != 0).status == 200
        rounds += 1
    return rounds


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=[pytest.mark.long, pytest.mark.timeout(180)])])
def test_a_point_under_edit_is_seen_before_or_after_and_never_between(pair: Twin, seconds: int) -> None:
    """With its indexes dropped and made again meanwhile."""
    pair.fill(POINTS)
    for path in HOT_PATHS:
        pair.index(path, own_types(path))
    client, deadline_s, asked = pair.clients[0], time.monotonic() + seconds, 0
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write_hot, pair.clients.pop(), pair.name, stop)
        try:
            wait_until(lambda: hot(client, pair, {}) == sorted(HOT), 10)
            while time.monotonic() < deadline_s:
                asked += 1
                assert hot(client, pair, pair.rng.choice(ALWAYS)) == sorted(HOT)
                assert hot(client, pair, pair.rng.choice(NEVER)) == []
                if asked % 25 == 0:
                    path = pair.rng.choice(HOT_PATHS)
                    pair.drop_index(path)
                    pair.index(path, own_types(path))
        finally:
            stop.set()
        assert writing.result() > 10
    assert asked > 10


def hot(client: Rest, pair: Twin, filter_: Json) -> list[int]:
    """Which of the hot points match."""
    body = {"filter": filter_, "limit": 10_000, "with_payload": False}
    found = client.post(f"/collections/{pair.name}/points/scroll", body).result["points"]
    return sorted(point["id"] for point in found if point["id"] in HOT)
