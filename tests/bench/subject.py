"""The agent under test: started on a folder, filled with the benchmark's points, green at last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.clients import OurClient, http_request, write_requests
from tests.bench.data import F32, Data, payload
from tests.running.agent import RunningAgent
from tests.running.rest import Rest
from tests.running.waiting import wait_until

COLLECTION = "bench"
BATCH = 256
GREEN_WITHIN_S = 900.0


@contextmanager
def running(folder: Path, fronts: int) -> Iterator[RunningAgent]:
    """An agent on `folder`, whose data stays there: it can be started again with another number of fronts."""
    with RunningAgent(folder, agent={"fronts": fronts}) as agent:
        yield agent.start(within_s=60)
        agent.stop()


def create(agent: RunningAgent, dim: int, *, indexed: tuple[str, ...] = ()) -> None:
    rest = agent.rest()
    rest.delete(f"/collections/{COLLECTION}")
    body = {"vectors": {"size": dim, "distance": "Cosine"}}
    assert rest.put(f"/collections/{COLLECTION}", body).result is True
    for field in indexed:
        schema = {"field_name": field, "field_schema": "bool"}
        assert rest.put(f"/collections/{COLLECTION}/index", schema, wait=True).result
    rest.close()


def upsert_bodies(rows: F32, first_id: int = 0) -> Iterator[bytes]:
    """Bodies of upserts of BATCH rows, with payloads, as qdrant-client would send them."""
    encode = msgspec.json.Encoder().encode
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH].tolist()
        ids = range(first_id + start, first_id + start + len(part))
        yield encode(
            {
                "points": [
                    {"id": i, "vector": v, "payload": payload(i)} for i, v in zip(ids, part, strict=True)
                ]
            }
        )


def write_upserts(path: Path, rows: F32) -> Path:
    target = f"/collections/{COLLECTION}/points?wait=true"
    return write_requests(path, (http_request("PUT", target, body) for body in upsert_bodies(rows)))


def is_green(rest: Rest) -> bool:
    return bool(rest.get(f"/collections/{COLLECTION}").result["status"] == "green")


def wait_green(agent: RunningAgent, within_s: float = GREEN_WITHIN_S) -> float:
    """Seconds until the builder has nothing left to do."""
    began_s = time.perf_counter()
    rest = agent.rest()
    wait_until(lambda: is_green(rest), within_s, "status green")
    rest.close()
    return time.perf_counter() - began_s


def fill(agent: RunningAgent, client: OurClient, data: Data, folder: Path) -> None:
    """All rows, with indexes on the fields that the filters name."""
    create(agent, data.dim, indexed=("one", "ten", "half"))
    upserts = write_upserts(folder / "fill.requests", data.rows)
    client.run(agent.port, upserts, connections=4, once=True)
    upserts.unlink()
    wait_green(agent)


def query_body(query: F32, **more: Any) -> bytes:
    return msgspec.json.encode({"query": query.tolist(), "limit": 10, **more})


def found_ids(rest: Rest, queries: F32, **more: Any) -> list[list[int]]:
    """The ids of the ten nearest over HTTP, for each query."""
    path = f"/collections/{COLLECTION}/points/query"
    answers = (rest.call("POST", path, query_body(query, **more)).result for query in queries)
    return [[point["id"] for point in answer["points"]] for answer in answers]
