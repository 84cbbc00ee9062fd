"""kill -9 of every process of an agent under load: all that was acknowledged is there, and no orphan."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.running.acknowledged import DIM, State, Writer, stored, vector
from tests.running.agent import RunningAgent
from tests.running.waiting import wait_until

PATH = "/collections/crash"
ROLES = ("main", "store", "front", "builder", "group")
SURVIVES = ("front", "builder")  # the first process restarts these; with the others all end
WRITERS, IDS = 3, 250
BACKGROUND = 6000  # enough that the builder has work


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(6, marks=pytest.mark.timeout(180)),
        pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_kills_under_load_lose_nothing_acknowledged(
    new_agent: Callable[..., RunningAgent], kills: int
) -> None:
    rng = random.Random(kills)
    agent = new_agent(agent={"fronts": 2}).start()
    _create(agent)
    writers = [Writer(agent, PATH, 100_000 * (n + 1), IDS, seed=n) for n in range(WRITERS)]
    order = [role for _ in range(0, kills, len(ROLES)) for role in rng.sample(ROLES, len(ROLES))][:kills]
    hit = dict.fromkeys(ROLES, 0)
    for number, role in enumerate(order):
        hit[role] += _kill_under_load(agent, role, writers, rng.randint(3, 60))
        told = f"kill {number} of {kills}: {role}"
        _recover(agent, role, told)
        _compare(agent, writers, told)
    acknowledged = sum(writer.acknowledged for writer in writers)
    print(f"{kills} kills {hit}, {acknowledged} acknowledged, {sum(w.unknown for w in writers)} unknown")
    assert all(hit[role] for role in ROLES if role != "builder")  # it is gone when it has nothing to do
    assert acknowledged > 3 * kills
    assert agent.stop() == 0


def _create(agent: RunningAgent) -> None:
    rest = agent.rest()
    body = {"vectors": {"size": DIM, "distance": "Dot"}, "shard_number": 2}
    assert rest.put(PATH, body).result is True
    schema = {"field_name": "version", "field_schema": "integer"}
    assert rest.put(f"{PATH}/index", schema, wait=True).result
    for start in range(0, BACKGROUND, 1000):
        points = [{"id": i, "vector": vector(i, 1), "payload": {}} for i in range(start, start + 1000)]
        assert rest.put(f"{PATH}/points", {"points": points}, wait=True).result["status"] == "completed"


def _kill_under_load(agent: RunningAgent, role: str, writers: list[Writer], after: int) -> int:
    """Kill once the writers have `after` more acknowledgements; returns how many processes were hit."""
    with writing(writers):
        goal = sum(writer.acknowledged for writer in writers) + after
        wait_until(
            lambda: sum(writer.acknowledged for writer in writers) >= goal, 30, f"{after} acknowledgements"
        )
        return len(agent.kill_role(role))


@contextmanager
def writing(writers: list[Writer]) -> Iterator[None]:
    stop = threading.Event()
    with ThreadPoolExecutor(len(writers)) as pool:
        running = [pool.submit(writer.run, stop) for writer in writers]
        try:
            yield
        finally:
            stop.set()
    for future in running:
        future.result()


def _recover(agent: RunningAgent, role: str, told: str) -> None:
    """The agent is whole again by itself, or gone, and then starts."""
    if role in SURVIVES:
        wait_until(lambda: len(agent.role("front")) == 2, 30, f"two fronts after {told}")
        assert agent.is_running(), f"the agent ended with {agent.exit_code()} after {told}"
    else:
        code = agent.wait_ended(within_s=30)  # fails if any process outlives the others
        assert code != 0, told
        agent.spawn()
    agent.wait_ready()
    # A parser that the store is just starting looks like it until its program is there.
    wait_until(lambda: len(agent.role("store")) == 1, 30, f"one store after {told}")


def _compare(agent: RunningAgent, writers: list[Writer], told: str) -> None:
    rest = agent.rest()
    found, wrong = stored(rest, PATH)
    background = {i: state for i, state in found.items() if i < BACKGROUND}
    assert background == {i: State(1, ()) for i in range(BACKGROUND)}, f"after {told}"
    known = {i for writer in writers for i in writer.points}
    wrong += [f"{i} was never written" for i in found.keys() - known - background.keys()]
    for writer in writers:
        wrong += writer.check(found)
        assert not writer.refused, f"after {told}: {writer.refused[:3]}"
    assert not wrong, f"after {told}: {len(wrong)} points are wrong: {wrong[:5]}"
    assert rest.post(f"{PATH}/points/count", {"exact": True}).result == {"count": len(found)}
    _search_agrees(agent, found, told)
    rest.close()


def _search_agrees(agent: RunningAgent, found: dict[int, State], told: str) -> None:
    """Indexes and graphs were brought level too: by filter and by vector the same points are there."""
    rest = agent.rest()
    versions = [state.version for i, state in found.items() if i >= BACKGROUND]
    if not versions:
        return
    middle = sorted(versions)[len(versions) // 2]
    body = {"filter": {"must": [{"key": "version", "range": {"gte": middle}}]}}
    wanted = sum(
        1 for s in found.values() if isinstance(v := dict(s.payload).get("version"), int) and v >= middle
    )
    assert rest.post(f"{PATH}/points/count", body).result == {"count": wanted}, f"after {told}"
    for i in random.Random(told).sample(sorted(found), 5):
        query = {"query": vector(i, found[i].version), "limit": 50, "filter": {"must": [{"has_id": [i]}]}}
        points = rest.post(f"{PATH}/points/query", query).result["points"]
        assert [point["id"] for point in points] == [i], f"after {told}"
    rest.close()


@pytest.mark.parametrize(
    "searches",
    [
        pytest.param(1500, marks=pytest.mark.timeout(120)),
        pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_a_point_that_is_replaced_all_the_time_is_found_by_every_search(
    shared_agent: RunningAgent, collection_name: str, searches: int
) -> None:
    path = f"/collections/{collection_name}"
    rest = shared_agent.rest()
    assert rest.put(path, {"vectors": {"size": DIM, "distance": "Cosine"}}).result is True
    points = [{"id": i, "vector": vector(i, 1)} for i in range(2000)]
    assert rest.put(f"{path}/points", {"points": points}, wait=True).result
    hot = [1.0] * DIM
    assert rest.put(f"{path}/points", _hot_point(hot, 0), wait=True).result
    stop, replaced = threading.Event(), [0]

    def replace() -> None:
        writer = shared_agent.rest()
        while not stop.is_set():
            replaced[0] += 1
            assert writer.put(f"{path}/points", _hot_point(hot, replaced[0]), wait=True).status == 200
        writer.close()

    def enough() -> bool:
        return replaced[0] > searches / 50

    with ThreadPoolExecutor(3) as pool:
        replacing = pool.submit(replace)
        try:
            looking = [pool.submit(_look, shared_agent, path, hot, searches // 2, enough) for _ in range(2)]
            missed = [miss for future in looking for miss in future.result()]
        finally:
            stop.set()
        replacing.result()
    print(f"{searches} searches while the point was replaced {replaced[0]} times: {len(missed)} missed it")
    assert missed == []
    rest.delete(path)


HOT = 999_999


def _hot_point(vector: list[float], version: int) -> dict[str, object]:
    moved = [vector[0] + version % 7 / 100, *vector[1:]]
    return {"points": [{"id": HOT, "vector": moved, "payload": {"version": version}}]}


def _look(
    agent: RunningAgent, path: str, query: list[float], searches: int, enough: Callable[[], bool]
) -> list[str]:
    """So many searches or more, on a new connection now and then, so that both fronts are asked."""
    missed = []
    rest = agent.rest()
    plain = {"query": query, "limit": 1, "with_payload": True}
    by_id = plain | {"filter": {"must": [{"has_id": [HOT]}]}}
    newest = 0
    for turn in itertools.count():
        if turn >= searches and enough():
            break
        if turn % 10 == 0:
            rest.close()
        points = rest.post(f"{path}/points/query", by_id if turn % 3 == 0 else plain).result["points"]
        if [point["id"] for point in points] != [HOT]:
            missed.append(f"search {turn}: {points}")
        elif turn % 10 != 0 and points[0]["payload"]["version"] < newest:
            missed.append(f"search {turn}: version {points[0]['payload']['version']} after {newest}")
        else:
            newest = points[0]["payload"]["version"]
        if turn % 5 == 0 and rest.get(f"{path}/points/{HOT}").status != 200:
            missed.append(f"read {turn}")
    rest.close()
    return missed
