"""Settings of a running cluster: changed without a restart, at all fronts, kept over a restart."""

from __future__ import annotations

from collections.abc import Callable

from tests.running.agent import RunningAgent

SETTINGS = "/shoal/v1/settings"


def test_a_changed_setting_holds_at_once_and_after_a_restart(new_agent: Callable[..., RunningAgent]) -> None:
    agent = new_agent(agent={"fronts": 2}).start()
    rest = agent.rest()
    assert rest.put("/collections/c", {"vectors": {"size": 2, "distance": "Dot"}}).status == 200
    changed = rest.patch(SETTINGS, {"values": {"limit_max": 5}, "why": "a test"})
    assert changed.result == {"version": 1}
    for _ in range(8):  # each may meet another front
        client = agent.rest()
        assert client.get(SETTINGS).result["values"]["limit_max"] == 5
        answer = client.post("/collections/c/points/scroll", {"limit": 6})
        assert (answer.status, "limit" in answer.error) == (400, True)
        client.close()
    history = rest.get(f"{SETTINGS}/history").result["changes"]
    assert [(change["version"], change["why"]) for change in history] == [(1, "a test")]
    rest.close()
    agent.stop()
    again = agent.start().rest()
    assert again.post("/collections/c/points/scroll", {"limit": 6}).status == 400
    assert again.patch(SETTINGS, {"values": {"limit_max": None}}).status == 200
    assert again.post("/collections/c/points/scroll", {"limit": 6}).status == 200
    again.close()


def test_a_wrong_setting_is_named_and_changes_nothing(new_agent: Callable[..., RunningAgent]) -> None:
    rest = new_agent().start().rest()
    before = rest.get(SETTINGS).result
    for body, named in (
        ({"values": {"limit_maxx": 5}}, "limit_max"),
        ({"values": {"limit_max": 0}}, "limit_max"),
        ({"values": {}}, "values"),
        ({"valus": {"limit_max": 5}}, "valus"),
        ({"values": {"limit_max": 5}, "version": 7}, "version"),
    ):
        answer = rest.patch(SETTINGS, body)
        assert 400 <= answer.status < 500
        assert named in answer.error
    assert rest.get(SETTINGS).result == before
    rest.close()


def test_a_body_over_the_setting_is_refused(new_agent: Callable[..., RunningAgent]) -> None:
    rest = new_agent().start().rest()
    assert rest.put("/collections/c", {"vectors": {"size": 2, "distance": "Dot"}}).status == 200
    assert rest.patch(SETTINGS, {"values": {"body_bytes_max": 2048}}).status == 200
    points = [{"id": n, "vector": [1.0, 2.0]} for n in range(100)]
    assert rest.put("/collections/c/points", {"points": points}, wait="true").status == 413
    assert rest.put("/collections/c/points", {"points": points[:5]}, wait="true").status == 200
    rest.close()
