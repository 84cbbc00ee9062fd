"""Collections of many shards: made at once, refused before descriptors run out, gone when deleted."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest

from tests.running.agent import RunningAgent


def test_a_collection_of_many_shards_takes_points_in_all_of_them(
    new_agent: Callable[..., RunningAgent],
) -> None:
    rest = new_agent().start().rest()
    body = {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 48}
    assert rest.put("/collections/wide", body).status == 200
    points = [{"id": n, "vector": [1.0, n]} for n in range(1000)]
    assert rest.put("/collections/wide/points", {"points": points}, wait="true").status == 200
    assert rest.post("/collections/wide/points/count", {}).result == {"count": 1000}
    shards = rest.get("/collections/wide/cluster").result["local_shards"]
    assert len(shards) == 48
    assert all(shard["points_count"] > 0 for shard in shards)
    assert rest.delete("/collections/wide").result is True
    assert rest.put("/collections/wide/points", {"points": points[:1]}, wait="true").status == 404
    rest.close()


def test_shards_that_the_open_files_do_not_allow_are_refused(
    new_agent: Callable[..., RunningAgent],
) -> None:
    agent = new_agent()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"at most {hard} open files are allowed here")
    agent.start()
    rest = agent.rest()
    for process in agent.role("store"):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, hard))
    body = {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 70}
    answer = rest.put("/collections/wide", body)
    assert (answer.status, "LimitNOFILE" in answer.error) == (400, True)
    assert rest.get("/collections").result == {"collections": []}
    assert rest.put("/collections/narrow", {**body, "shard_number": 4}).status == 200
    rest.close()
