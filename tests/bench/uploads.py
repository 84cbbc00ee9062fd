"""Benchmarks of writing: 100,000 points acknowledged and indexed, and the searches that run meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import raw, subject
from tests.bench.clients import OurClient, http_request, write_requests
from tests.bench.data import Data, exact, recall
from tests.bench.table import Line, at_least, at_most
from tests.running.agent import RunningAgent

FIRST = 8000
IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Seconds from the start: until FIRST rows, until all were acknowledged, until green."""

    first_s: float
    all_s: float
    green_s: float
    search_p50_ms: float


def run(data: Data, client: OurClient, folder: Path) -> list[Line]:
    upserts = subject.write_upserts(folder / "upload.requests", data.rows)
    bodies = (subject.query_body(query) for query in data.queries)
    target = f"/collections/{subject.COLLECTION}/points/query"
    searches = write_requests(
        folder / "beside.requests", (http_request("POST", target, body) for body in bodies)
    )
    raw_s = raw.build(data.rows)[1]
    with subject.running(folder / "upload", fronts=1) as agent:
        alone = _upload(agent, client, data, upserts, None, folder)
        idle_ms = client.run(agent.port, searches, seconds=IDLE_S).p50_ms
        rest = agent.rest()
        found = recall(subject.found_ids(rest, data.queries), exact(data.rows, data.queries, 10))
        rest.close()
        beside = _upload(agent, client, data, upserts, searches, folder)
    upserts.unlink()
    return _lines(len(data.rows), raw_s, alone, beside, idle_ms, found)


def _upload(
    agent: RunningAgent,
    client: OurClient,
    data: Data,
    upserts: Path,
    searches: Path | None,
    folder: Path,
) -> Uploaded:
    """One upload into a new collection, with one connection that searches until it is green if asked for."""
    subject.create(agent, data.dim)
    acks = folder / "acks"
    begun_ns = time.monotonic_ns()
    upload = client.spawn(agent.port, upserts, connections=4, once=True, acks=acks)
    searching = client.spawn(agent.port, searches) if searches else None
    client.collect(upload)
    subject.wait_green(agent)
    green_s = (time.monotonic_ns() - begun_ns) / 1e9
    times = [int(line.split()[0]) - begun_ns for line in acks.read_text().splitlines()]
    p50_ms = client.stop(searching).p50_ms if searching is not None else 0.0
    return Uploaded(times[-(-FIRST // subject.BATCH) - 1] / 1e9, times[-1] / 1e9, green_s, p50_ms)


def _lines(
    rows: int, raw_s: float, alone: Uploaded, beside: Uploaded, idle_ms: float, found: float
) -> list[Line]:
    raw_per_s = rows / raw_s
    all_per_s, first_per_s = rows / alone.all_s, FIRST / alone.first_s
    reference = f"raw adds {raw_per_s:.0f}/s on two threads"
    return [
        at_least(
            f"upload of {rows:,}: acknowledged", all_per_s / raw_per_s, 1.3, f"{all_per_s:.0f}/s; {reference}"
        ),
        at_least(
            f"upload: the first {FIRST:,}", first_per_s / raw_per_s, 4, f"{first_per_s:.0f}/s; {reference}"
        ),
        at_most(
            "upload: green after the start",
            alone.green_s / raw_s,
            1.2,
            f"{alone.green_s:.1f} s; raw {raw_s:.1f} s",
        ),
        at_most(
            "upload: one connection's search p50 meanwhile",
            beside.search_p50_ms / idle_ms,
            3,
            f"{beside.search_p50_ms * 1e3:.0f} µs; idle {idle_ms * 1e3:.0f} µs",
        ),
        at_least(f"search in the {rows:,}: recall@10 over HTTP", found, 0.95, "after the upload", unit=""),
    ]
