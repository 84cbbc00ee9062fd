"""Ranked lists of points: best first, ties by id key; the k best of many, and merges of shards' lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from core.query.scoring import F32, I64


def best(scores: F32, limit: int, keys_of: Callable[[I64], Sequence[bytes]]) -> I64:
    """Positions of the `limit` largest scores, best first, ties by the id key.

    keys_of gives the keys at some positions: they are read only for what can be in the answer.
    """
    candidates = np.arange(len(scores))
    if limit < len(scores):
        if limit <= 0:
            return candidates[:0]
        bound = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        candidates = np.flatnonzero(scores >= bound)
    return candidates[ranked(scores[candidates], keys_of(candidates))[:limit]]


def ranked(scores: F32, keys: Sequence[bytes]) -> I64:
    """The order of all: larger scores first, ties by key."""
    order = np.argsort(-scores, kind="stable")
    along = scores[order]
    if len(order) < 2 or not (along[1:] == along[:-1]).any():
        return order
    listed = scores.tolist()
    return np.array(sorted(range(len(listed)), key=lambda i: (-listed[i], keys[i])), np.int64)
