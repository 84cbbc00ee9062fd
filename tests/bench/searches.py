"""Benchmarks of reading: searches one by one, on a schedule, in batches, and filtered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from usearch.index import Index

from tests.bench import raw, subject
from tests.bench.clients import Measured, OurClient, http_request, write_requests, wrk
from tests.bench.data import Data, exact, payload, recall
from tests.bench.table import Line, at_least, at_most
from tests.running.agent import RunningAgent
from tests.running.rest import Rest

SEARCH = f"/collections/{subject.COLLECTION}/points/query"
BATCHES = f"{SEARCH}/batch"
HEALTH = "/healthz"


@dataclass(frozen=True, slots=True)
class Bench:
    """What every benchmark of this file needs. `folder` holds the agent's data and the load files."""

    data: Data
    index: Index
    client: OurClient
    folder: Path
    seconds: float
    rounds: int

    def bodies(self) -> Path:
        path = self.folder / "queries.jsonl"
        path.write_bytes(b"\n".join(subject.query_body(query) for query in self.data.queries) + b"\n")
        return path

    def requests(self, name: str, method: str, target: str, bodies: list[bytes]) -> Path:
        return write_requests(self.folder / name, (http_request(method, target, body) for body in bodies))


def run(bench: Bench) -> list[Line]:
    agent_folder = bench.folder / "agent"
    with subject.running(agent_folder, fronts=1) as agent:
        subject.fill(agent, bench.client, bench.data, bench.folder)
        lines = [_recall(bench, agent.rest()), _many(bench, agent.port, 1), _one(bench, agent.port)]
        lines += _filtered(bench, agent)
    with subject.running(agent_folder, fronts=2) as agent:
        many = _many(bench, agent.port, 2)
        lines += [many, _scheduled(bench, agent.port), _batches(bench, agent.port)]
    return lines


def _recall(bench: Bench, rest: Rest) -> Line:
    true = exact(bench.data.rows, bench.data.queries, 10)
    found = recall(subject.found_ids(rest, bench.data.queries), true)
    of_raw = recall(raw.recall_of(bench.index, bench.data.queries), true)
    return at_least("search: recall@10 over HTTP", found, 0.95, f"raw {of_raw:.3f}", unit="")


def _many(bench: Bench, port: int, fronts: int) -> Line:
    bodies, queries = bench.bodies(), bench.data.queries
    ours, reference = raw.alternately(
        bench.rounds,
        lambda: wrk(port, SEARCH, bodies, connections=16, seconds=bench.seconds).per_s,
        lambda: raw.search_rate(bench.index, queries, bench.seconds, threads=fronts)[0],
    )
    return at_least(
        f"search, 16 connections, {fronts} front{'s' * (fronts > 1)}",
        ours / reference,
        0.55 if fronts == 1 else 0.5,
        f"{ours:.0f}/s; raw on {fronts} thread{'s' * (fronts > 1)} {reference:.0f}/s",
    )


def _one(bench: Bench, port: int) -> Line:
    bodies = bench.bodies()
    ours, reference = raw.alternately(
        bench.rounds,
        lambda: wrk(port, SEARCH, bodies, connections=1, seconds=bench.seconds).p50_ms,
        lambda: raw.search_rate(bench.index, bench.data.queries, bench.seconds)[1],
    )
    how = f"{ours * 1e3:.0f} µs; raw {reference * 1e3:.0f} µs"
    return at_most("search, 1 connection: p50", ours / reference, 2.2, how)


def _scheduled(bench: Bench, port: int) -> Line:
    bodies = [subject.query_body(query) for query in bench.data.queries]
    searches = bench.requests("search.requests", "POST", SEARCH, bodies)
    health = bench.requests("health.requests", "GET", HEALTH, [b""])
    most = bench.client.run(port, searches, connections=16, seconds=bench.seconds).per_s

    def p99(requests: Path) -> float:
        return bench.client.run(port, requests, connections=16, seconds=bench.seconds, rate=most / 2).p99_ms

    ours, reference = raw.alternately(bench.rounds, lambda: p99(searches), lambda: p99(health))
    return at_most(
        "search, half load on a schedule: p99",
        ours / reference,
        2.5,
        f"{ours:.2f} ms at {most / 2:.0f}/s; {HEALTH} {reference:.2f} ms",
    )


def _batches(bench: Bench, port: int) -> Line:
    queries, size = bench.data.queries, 64
    bodies = [
        msgspec.json.encode(
            {"searches": [{"query": q.tolist(), "limit": 10} for q in queries[start : start + size]]}
        )
        for start in range(0, len(queries) - size, size)
    ]
    requests = bench.requests("batch.requests", "POST", BATCHES, bodies)
    ours, reference = raw.alternately(
        bench.rounds,
        lambda: size * bench.client.run(port, requests, connections=4, seconds=bench.seconds).per_s,
        lambda: raw.batch_rate(bench.index, queries, size, bench.seconds),
    )
    how = f"{ours:.0f} queries/s; raw in batches on two threads {reference:.0f}/s"
    return at_least("query batches of 64, 4 connections, 2 fronts", ours / reference, 0.8, how)


def _filtered(bench: Bench, agent: RunningAgent) -> list[Line]:
    lines = []
    for field, share in (("one", "1 %"), ("ten", "10 %"), ("half", "50 %")):
        condition = {"filter": {"must": [{"key": field, "match": {"value": True}}]}}
        ids = np.array([i for i in range(len(bench.data.rows)) if payload(i)[field]])
        true = ids[exact(bench.data.rows[ids], bench.data.queries, 10)]
        rest = agent.rest()
        found = recall(subject.found_ids(rest, bench.data.queries, **condition), true)
        rest.close()
        lines.append(
            at_least(f"filter, {share}: recall@10", found, 0.95, f"{len(ids)} matching points", unit="")
        )
        lines.append(_filtered_p50(bench, agent.port, share, condition))
    return lines


def _filtered_p50(bench: Bench, port: int, share: str, condition: Mapping[str, object]) -> Line:
    queries = bench.data.queries
    plain = bench.requests("plain.requests", "POST", SEARCH, [subject.query_body(q) for q in queries])
    bodies = [subject.query_body(q, **condition) for q in queries]
    filtered = bench.requests("filtered.requests", "POST", SEARCH, bodies)

    def run(requests: Path) -> Measured:
        return bench.client.run(port, requests, seconds=bench.seconds)

    ours, reference = raw.alternately(bench.rounds, lambda: run(filtered).p50_ms, lambda: run(plain).p50_ms)
    how = f"{ours * 1e3:.0f} µs; without a filter {reference * 1e3:.0f} µs"
    return at_most(f"filter, {share}: p50 of one connection", ours / reference, 3, how)
