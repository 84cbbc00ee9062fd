"""The recall canary: does a graph find what an exact search finds, and how wide must it search for that?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.exact import Rows, best_of_slots
from agent.graphs import Graph
from core.query.scoring import F32, I64, similarity
from core.search_plan import EF_DEFAULT, ef_least, rescored

QUERIES = 128
TOP = 10
RECALL_MIN = 0.95
EF_STEPS = (EF_DEFAULT, 64, 96, 128, 192, 256, 512)
_NOISE = 1.0
"""As far from stored rows as real questions are: the nearest has a cosine of .7. Nearer ones are too easy."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Measured:
    """The narrowest search that has recall RECALL_MIN, or the widest that was tried."""

    ef: int
    recall: float


def canary_queries(rows: Rows, slots: I64, mean: F32 | None, seed: int) -> F32:
    """Points near stored ones: rows at random, moved by noise of a part of their own length."""
    random = np.random.default_rng(seed)
    chosen = rows.all.take(np.sort(random.choice(slots, min(QUERIES, len(slots)), replace=False)), axis=0)
    from_mean = chosen if mean is None else chosen - mean
    length = np.linalg.norm(from_mean, axis=1, keepdims=True) / np.sqrt(chosen.shape[1])
    noise = random.standard_normal(chosen.shape, np.float32)
    queries = chosen + np.float32(_NOISE) * length * noise
    return np.ascontiguousarray(queries, np.float32)


def measure(graph: Graph, rows: Rows, slots: I64, mean: F32 | None, *, threads: int, seed: int) -> Measured:
    """Recall@10 of the graph over `slots`, all of which it holds, rescored as searches are."""
    queries = canary_queries(rows, slots, mean, seed)
    wanted = [
        np.sort(similarity(rows.metric, rows.all.take(best, axis=0), query))[::-1][:TOP]
        for query, best in zip(queries, best_of_slots(rows, queries, slots, TOP), strict=True)
    ]
    live = np.zeros(int(slots[-1]) + 1, np.bool_)
    live[slots] = True
    asked = queries if mean is None else queries - mean
    recall = 0.0
    for ef in (step for step in EF_STEPS if step >= ef_least(len(slots))):
        found, _, counts = graph.search(asked, ef, threads=threads)
        recall = float(
            np.mean(
                [
                    _recall(rows, query, _live(slots_[:count], live), best)
                    for query, slots_, count, best in zip(queries, found, counts, wanted, strict=True)
                ]
            )
        )
        if recall >= RECALL_MIN:
            return Measured(ef, recall)
    return Measured(EF_STEPS[-1], recall)


def _live(found: I64, live: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> I64:
    inside = found[found < len(live)]
    chosen: I64 = inside[live[inside]][: rescored(TOP)]
    return chosen


def _recall(rows: Rows, query: F32, found: I64, wanted: F32) -> float:
    """By scores: of points at the same distance one is as good as the other."""
    scores = np.sort(similarity(rows.metric, rows.all.take(found, axis=0), query))[::-1][:TOP]
    bound = wanted[-1] - _ROUNDING * max(1.0, abs(float(wanted[0])))
    return float(np.count_nonzero(scores >= bound)) / len(wanted)
