"""*raw*: what usearch does in this process, without any server; the reference of most lines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from usearch.index import Index, MetricKind, ScalarKind

from tests.bench.data import F32

M, EF_CONSTRUCTION, EF = 16, 128, 48
CHUNK = 1024


def new_index(dim: int) -> Index:
    return Index(
        ndim=dim,
        metric=MetricKind.IP,
        dtype=ScalarKind.BF16,
        connectivity=M,
        expansion_add=EF_CONSTRUCTION,
        expansion_search=EF,
    )


def build(rows: F32, threads: int = 2) -> tuple[Index, float]:
    """The graph over the rows (key = row number) and the seconds that it took."""
    index = new_index(rows.shape[1])
    began_s = time.perf_counter()
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        index.add(np.arange(start, start + len(part)), part, threads=threads)
    return index, time.perf_counter() - began_s


def search_rate(index: Index, queries: F32, seconds: float, threads: int = 1) -> tuple[float, float]:
    """Queries a second with one query a call on each thread, and the median of a call in ms."""

    def loop(first: int) -> list[float]:
        took: list[float] = []
        turn = first
        until_s = time.perf_counter() + seconds
        while (at_s := time.perf_counter()) < until_s:
            index.search(queries[turn % len(queries)], 10, threads=1)
            took.append(time.perf_counter() - at_s)
            turn += 1
        return took

    began_s = time.perf_counter()
    if threads == 1:
        took = loop(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            took = [t for part in pool.map(loop, [i * 97 for i in range(threads)]) for t in part]
    return len(took) / (time.perf_counter() - began_s), statistics.median(took) * 1e3


def batch_rate(index: Index, queries: F32, size: int, seconds: float, threads: int = 2) -> float:
    """Queries a second in batches of `size`."""
    count, turn = 0, 0
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        part = np.take(queries, range(turn, turn + size), axis=0, mode="wrap")
        index.search(part, 10, threads=threads)
        count, turn = count + size, turn + size
    return count / (time.perf_counter() - began_s)


def recall_of(index: Index, queries: F32) -> list[list[int]]:
    return [index.search(query, 10, threads=1).keys.tolist() for query in queries]


def alternately(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """The medians of several measures taken in turns, so that a noisy moment meets all of them."""
    seen: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for found, measure in zip(seen, measures, strict=True):
            found.append(measure())
    return [statistics.median(found) for found in seen]
