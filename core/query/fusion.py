"""Fusion of ranked lists into one: by rank (RRF) or by the distribution of scores (DBSF).

A list is (keys, scores), best first and already merged over the shards. Both return keys and scores,
best first, ties by key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from core.errors import BadRequest
from core.query.ranking import ranked
from core.query.scoring import F32

RRF_K = 2
RankedList = tuple[Sequence[bytes], F32]


def rrf(lists: Sequence[RankedList], *, k: int = RRF_K, weights: Sequence[float] | None = None) -> RankedList:
    """Σ 1 / ((rank + 1) / w + k - 1), rank from 0; a weight of 0 or less counts nothing."""
    if weights is not None and len(weights) != len(lists):
        raise BadRequest(
            f"rrf.weights: {len(weights)} weights for {len(lists)} prefetches, expected one each"
        )
    totals: dict[bytes, float] = {}
    for i, (keys, _) in enumerate(lists):
        weight = 1.0 if weights is None else weights[i]
        for rank, key in enumerate(keys):
            part = 1 / ((rank + 1) / weight + k - 1) if weight > 0 else 0.0
            totals[key] = totals.get(key, 0.0) + part
    return _ranked(totals)


def dbsf(lists: Sequence[RankedList]) -> RankedList:
    """Sum of (x - (μ - 3sd)) / 6sd over the lists; 0.5 where a list has one point or no spread."""
    totals: dict[bytes, float] = {}
    for keys, scores in lists:
        for key, part in zip(keys, _spread(scores), strict=True):
            totals[key] = totals.get(key, 0.0) + part
    return _ranked(totals)


def _spread(scores: F32) -> list[float]:
    x = scores.astype(np.float64)
    deviation = math.sqrt(float(x.var(ddof=1))) if len(x) > 1 else 0.0
    if deviation == 0:
        return [0.5] * len(x)
    parts: list[float] = ((x - (x.mean() - 3 * deviation)) / (6 * deviation)).tolist()
    return parts


def _ranked(totals: dict[bytes, float]) -> RankedList:
    keys = list(totals)
    scores = np.array(list(totals.values()), np.float32)
    order = ranked(scores, keys)
    return [keys[i] for i in order.tolist()], scores[order]
