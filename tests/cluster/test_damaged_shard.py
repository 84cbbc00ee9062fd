"""A shard that can't be made whole at a start: its collection answers nothing rather than less."""

from __future__ import annotations

from collections.abc import Callable

from tests.running.agent import RunningAgent
from tests.running.rest import Rest

POINTS = 20


def _damage(agent: RunningAgent, shard: str) -> None:
    """Flip a byte of the first row, and take away the log that could write it again."""
    folder = agent.data_dir / "shards" / shard
    with (folder / "vectors" / "1.f32").open("r+b") as rows:
        rows.seek(5)
        rows.write(b"\xff")
    for log in (folder / "log").glob("*.log"):
        log.unlink()


def _reads(rest: Rest) -> list[tuple[int, str]]:
    one = "/collections/c/points"
    answers = [
        rest.post(f"{one}/count", {}),
        rest.post(f"{one}/scroll", {}),
        rest.post(f"{one}/query", {"query": [1, 1], "limit": POINTS}),
        rest.post(f"{one}/query/batch", {"searches": [{"query": [1, 1]}]}),
        rest.post(one, {"ids": [1, 2, 3]}),
        rest.post("/collections/c/facet", {"key": "k"}),
        *(rest.get(f"{one}/{id_}") for id_ in range(1, POINTS + 1)),
    ]
    return [(answer.status, answer.headers.get("x-shoal-error", "")) for answer in answers]


def test_a_collection_with_a_damaged_shard_answers_nothing_until_it_is_restored(
    new_agent: Callable[..., RunningAgent],
) -> None:
    agent = new_agent().start()
    rest = agent.rest()
    rest.put("/collections/c", {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 2})
    points = [{"id": id_, "vector": [1, id_], "payload": {"k": "v"}} for id_ in range(1, POINTS + 1)]
    assert rest.put("/collections/c/points", {"points": points}, wait=True).result
    snapshot = rest.post("/collections/c/snapshots").result["name"]
    agent.stop()
    _damage(agent, "1-0")
    agent.start()
    rest = agent.rest()

    assert set(_reads(rest)) == {(500, "damaged")}
    assert rest.get("/collections/c").result["status"] == "red"
    assert [issue["id"] for issue in rest.get("/issues").result["issues"]] == ["shard/c/0"]
    assert rest.get("/readyz").status == 200
    assert rest.get("/readyz").text == "ready, but 1 shard is damaged: see /issues"
    assert 'shoal_shard_damaged{collection="c",shard="0"} 1' in rest.get("/metrics").text

    # It holds up no change, of its own collection or of others.
    index = {"field_name": "k", "field_schema": "keyword"}
    assert rest.put("/collections/c/index", index, wait=True).status == 200
    assert rest.put("/collections/d", {"vectors": {}}).status == 200
    assert rest.delete("/collections/d").status == 200

    assert rest.put("/collections/c/snapshots/recover", {"location": snapshot}, wait=True).result is True
    assert {status for status, _ in _reads(rest)} == {200}
    assert rest.post("/collections/c/points/count", {}).result == {"count": POINTS}
    assert rest.get("/collections/c").result["status"] != "red"
    assert rest.get("/readyz").text == "all shards are ready"
