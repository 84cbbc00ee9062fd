"""Scores that overflow f32 once were answered as null, which clients reject with all the other points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.running.agent import RunningAgent

HUGE = 3e38


def test_every_score_is_a_number(new_agent: Callable[..., RunningAgent]) -> None:
    rest = new_agent().start().rest()
    vectors = {name: {"size": 2, "distance": name} for name in ("Dot", "Euclid", "Manhattan")}
    assert rest.put("/collections/c", {"vectors": vectors}).status == 200
    rows = ([1.0, 2.0], [HUGE, HUGE], [HUGE, -HUGE], [-HUGE, -HUGE])
    points = [{"id": n, "vector": dict.fromkeys(vectors, row)} for n, row in enumerate(rows)]
    assert rest.put("/collections/c/points", {"points": points}, wait="true").status == 200
    examples = {"positive": [[1.0, 2.0], [HUGE, HUGE]], "negative": [[HUGE, -HUGE]]}
    lead = {"positive": [1.0, 2.0], "negative": [HUGE, 1.0]}
    queries: list[Any] = [[1.0, 2.0], [HUGE, HUGE], {"context": lead}]
    queries += [
        {"recommend": {**examples, "strategy": strategy}}
        for strategy in ("average_vector", "best_score", "sum_scores")
    ]
    answered = 0
    for using in vectors:
        for query in queries:
            answer = rest.post("/collections/c/points/query", {"query": query, "using": using})
            assert answer.status == 200, answer.text
            scores = [point["score"] for point in answer.result["points"]]
            assert all(isinstance(score, float) for score in scores), (using, query, scores)
            answered += len(scores)  # a point whose similarity is -inf may be left out
        pairs = rest.post("/collections/c/points/search/matrix/pairs", {"using": using}).result["pairs"]
        assert all(isinstance(pair["score"], float) for pair in pairs), (using, pairs)
    assert answered > 30
    rest.close()
