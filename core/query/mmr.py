"""Maximal marginal relevance (Carbonell, Goldstein 1998): near the query, far from what is chosen."""

from __future__ import annotations

import numpy as np

from core.api.config import Distance
from core.query.scoring import F32, I64, similarity


def choose(metric: Distance, rows: F32, query: F32, diversity: float, limit: int) -> I64:
    """Positions of at most `limit` rows in the order chosen.

    rows (n, d): candidates, best first with ties by id, so that equal gains go to the better candidate.
    Starts with the row nearest to the query, then takes max (1 - v)·s(query) - v·max s(chosen).
    """
    count = min(limit, len(rows))
    if count <= 0:
        return np.empty(0, np.int64)
    relevance = similarity(metric, rows, query).astype(np.float64)
    closest = np.full(len(rows), -np.inf)
    left = np.ones(len(rows), bool)
    chosen = np.empty(count, np.int64)
    at = int(np.argmax(relevance))
    for i in range(count):
        chosen[i] = at
        left[at] = False
        if i + 1 < count:
            closest = np.maximum(closest, similarity(metric, rows, rows[at]))
            gain = (1 - diversity) * relevance - diversity * closest
            at = int(np.argmax(np.where(left, gain, -np.inf)))
    return chosen
