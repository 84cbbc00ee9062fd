"""Benchmark of minutes of mixed load: upserts and deletes on a schedule while one connection searches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from tests.bench import subject
from tests.bench.clients import Measured, OurClient, http_request, write_requests
from tests.bench.data import F32, Data, payload, unit
from tests.bench.table import Line, at_least, at_most
from tests.running.rest import Rest

UPSERTS_PER_S, BATCH = 1000, 50
DELETES_PER_S = 100
RECALL_QUERIES = 50
POINTS = f"/collections/{subject.COLLECTION}/points"


def run(data: Data, client: OurClient, filled: Path, folder: Path, minutes: float) -> list[Line]:
    """On the folder of an agent that holds `data` already."""
    searches = write_requests(
        folder / "mixed-searches",
        (http_request("POST", f"{POINTS}/query", subject.query_body(query)) for query in data.queries),
    )
    upserts = write_requests(folder / "mixed-upserts", _upserts(data.rows))
    deletes = write_requests(folder / "mixed-deletes", _deletes(len(data.rows)))
    with subject.running(filled, fronts=1) as agent:
        subject.wait_green(agent)
        idle_ms = client.run(agent.port, searches, seconds=5).p50_ms
        upserting = client.spawn(agent.port, upserts, connections=4, rate=UPSERTS_PER_S / BATCH)
        deleting = client.spawn(agent.port, deletes, rate=DELETES_PER_S / 10)
        rest = agent.rest()
        medians: list[float] = []
        recalls: list[float] = []
        until_s = time.monotonic() + minutes * 60
        while time.monotonic() < until_s:
            medians.append(client.run(agent.port, searches, seconds=min(10.0, minutes * 30)).p50_ms)
            recalls.append(_recall_now(rest, data.queries[:RECALL_QUERIES]))
        written, deleted = client.stop(upserting), client.stop(deleting)
        rest.close()
    return _lines(minutes, idle_ms, medians, recalls, written, deleted)


def _upserts(rows: F32) -> Iterator[bytes]:
    """Replacements of points in random order: each row with a little noise, under its own id."""
    rng = np.random.default_rng(3)
    order = rng.permutation(len(rows))
    for start in range(0, len(order), BATCH):
        ids = order[start : start + BATCH]
        moved = unit(rows[ids] + 0.02 * rng.standard_normal((len(ids), rows.shape[1])).astype(np.float32))
        points = [
            {"id": int(i), "vector": v.tolist(), "payload": payload(int(i))} for i, v in zip(ids, moved)
        ]
        yield http_request("PUT", f"{POINTS}?wait=true", msgspec.json.encode({"points": points}))


def _deletes(rows: int) -> Iterator[bytes]:
    rng = np.random.default_rng(5)
    for _ in range(5000):
        body = msgspec.json.encode({"points": [int(i) for i in rng.integers(0, rows, 10)]})
        yield http_request("POST", f"{POINTS}/delete?wait=true", body)


def _recall_now(rest: Rest, queries: F32) -> float:
    """Approximate beside exact search a moment later; the few writes between them cost a thousandth."""
    hits = 0
    for query in queries:
        found = subject.found_ids(rest, query[None])[0]
        true = subject.found_ids(rest, query[None], params={"exact": True})[0]
        hits += len(set(found) & set(true))
    return hits / (10 * len(queries))


def _lines(
    minutes: float,
    idle_ms: float,
    medians: list[float],
    recalls: list[float],
    written: Measured,
    deleted: Measured,
) -> list[Line]:
    middle = sorted(medians)[len(medians) // 2]
    behind = written.per_s * BATCH
    how = f"{middle * 1e3:.0f} µs (worst 10 s {max(medians) * 1e3:.0f}); idle {idle_ms * 1e3:.0f} µs"
    return [
        at_most(f"mixed load, {minutes:g} min: search p50 of one connection", middle / idle_ms, 2, how),
        at_least(
            f"mixed load, {minutes:g} min: recall@10 throughout",
            min(recalls),
            0.95,
            f"worst of {len(recalls)} samples of {RECALL_QUERIES} queries",
            unit="",
        ),
        at_least(
            f"mixed load, {minutes:g} min: upserts kept up",
            behind,
            0.98 * UPSERTS_PER_S,
            f"p99 of a batch of {BATCH} {written.p99_ms:.0f} ms; {deleted.per_s * 10:.0f} deletes/s",
            unit="rows/s",
        ),
    ]
