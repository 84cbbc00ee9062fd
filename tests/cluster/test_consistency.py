"""Consistency as clients ask for it: accepted, told what it was served with, refused if it is unknown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.running.agent import RunningAgent
from tests.running.rest import Rest

POINTS = "/collections/docs/points"
SERVED = "x-shoal-consistency-served"


@pytest.fixture
def rest(new_agent: Callable[..., RunningAgent]) -> Rest:
    rest = new_agent().start().rest()
    rest.put("/collections/docs", {"vectors": {"size": 2, "distance": "Dot"}})
    return rest


def test_writes_say_what_they_were_served_with_if_they_asked(rest: Rest) -> None:
    body = {"points": [{"id": 1, "vector": [1.0, 2.0]}]}
    for query, served in (
        ({}, None),
        ({"ordering": "weak"}, "quorum"),
        ({"ordering": "strong"}, "strong"),
        ({"consistency": "eventual"}, "eventual"),
    ):
        answer = rest.put(POINTS, body, wait="true", **query)
        assert (answer.status, answer.headers.get(SERVED)) == (200, served)
    for query in ({"ordering": "mild"}, {"consistency": "all"}):
        answer = rest.put(POINTS, body, **query)
        assert answer.status == 400
        assert f"query parameter {next(iter(query))}" in answer.error
    rest.close()
