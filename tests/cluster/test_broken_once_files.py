"""Files whose loss once took more with it than the rows can give back."""

from __future__ import annotations

from collections.abc import Callable

from tests.running.agent import RunningAgent
from tests.running.waiting import wait_until

POINTS = 1200


def test_a_lost_mean_of_a_euclid_graph_costs_the_graph_not_the_answers(
    new_agent: Callable[..., RunningAgent],
) -> None:
    """Every read was refused, counts too, as long as the node ran: only searches looked at the file."""
    agent = new_agent().start()
    rest = agent.rest()
    assert rest.patch("/shoal/v1/settings", {"values": {"build_start_rows": 1000}}).status == 200
    assert rest.put("/collections/c", {"vectors": {"size": 4, "distance": "Euclid"}}).status == 200
    points = [{"id": n, "vector": [n, n % 7, n % 11, 100]} for n in range(POINTS)]
    assert rest.put("/collections/c/points", {"points": points}, wait="true").status == 200
    segments = agent.data_dir / "shards" / "1-0" / "segments"
    wait_until(lambda: list(segments.glob("*.mean")), 60, "a graph")
    wait_until(lambda: rest.get("/collections/c").result["status"] == "green", 60, "the graph's use")
    rest.close()
    agent.stop()
    for mean in segments.glob("*.mean"):
        mean.unlink()

    rest = agent.start().rest()
    assert rest.post("/collections/c/points/count", {}).result == {"count": POINTS}
    query = {"query": [700, 0, 7, 100], "limit": 1}
    assert rest.post("/collections/c/points/query", query).result["points"][0]["id"] == 700
    wait_until(lambda: list(segments.glob("*.mean")), 60, "a new graph")
    assert rest.post("/collections/c/points/query", query).result["points"][0]["id"] == 700
    rest.close()
