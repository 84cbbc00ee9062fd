"""Requests that once stopped a shard, or the store, for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.running.agent import RunningAgent
from tests.running.rest import Rest


@pytest.fixture
def rest(new_agent: Callable[..., RunningAgent]) -> Rest:
    rest = new_agent().start().rest()
    assert rest.put("/collections/c", {"vectors": {"size": 2, "distance": "Dot"}}).status == 200
    return rest


def _put(rest: Rest, payload: dict[str, Any]) -> None:
    point = {"id": 1, "vector": [1.0, 2.0], "payload": payload}
    assert rest.put("/collections/c/points", {"points": [point]}, wait="true").status == 200


def _set(rest: Rest, key: str, payload: dict[str, Any]) -> int:
    body = {"points": [1], "payload": payload, "key": key}
    return rest.post("/collections/c/points/payload", body, wait="true").status


def test_no_path_nests_a_payload_deeper_than_it_can_be_read(rest: Rest) -> None:
    _put(rest, {"n": 1})
    for levels in (128, 200, 5_000, 500_000):
        assert _set(rest, ".".join(["a"] * levels), {"x": 1}) == 400
    assert _set(rest, ".".join(["a"] * 100), {"x": 1}) == 200
    assert _set(rest, "b", {"x": 1}) == 200
    found = rest.post("/collections/c/points", {"ids": [1]}).result[0]["payload"]
    assert (found["n"], found["b"]) == (1, {"x": 1})
    rest.close()


def test_no_path_multiplies_a_payload_beyond_its_bound(rest: Rest) -> None:
    _put(rest, {"l": [1] * 500_000})
    assert _set(rest, "l[]", {"x": "y" * 1000}) == 400  # this would be half a gigabyte
    assert _set(rest, "b", {"x": 1}) == 200
    found = rest.post("/collections/c/points", {"ids": [1]}).result[0]["payload"]
    assert (len(found["l"]), set(found["l"]), found["b"]) == (500_000, {1}, {"x": 1})
    rest.close()


def test_much_that_is_logged_before_any_of_it_is_applied_leaves_the_store_alive(rest: Rest) -> None:
    """A checkpoint was due by the log's size, none was possible yet, and looking again never gave way."""
    points = [{"id": n, "vector": [1.0, 2.0], "payload": {"t": "x" * 1_000_000}} for n in range(12)]
    assert rest.put("/collections/c/points", {"points": points}, wait="true").status == 200
    _put(rest, {"n": 1})
    assert rest.post("/collections/c/points/count", {}).result == {"count": 12}
    rest.close()
