"""The best of many rows without a graph: block products find candidates, their own rows give the scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.api.config import Distance
from core.query.scoring import F32, I64, similarity

Bits = NDArray[np.bool_]

_BLOCK_ROWS = 4096
_PRODUCT_BYTES = 16 << 20
_ROUNDING = np.float32(4e-6)
"""A block product and a row's own product differ by less than this, relative to the largest."""


class Rows:
    """Rows of one vector, by slot; Euclid keeps squared lengths, so that a product gives distances."""

    def __init__(self, metric: Distance, dim: int, mean: F32 | None = None) -> None:
        self.metric, self.dim = metric, dim
        self.all: F32 = np.empty((0, dim), np.float32)
        self._mean = mean
        self._squares: F32 = np.empty(0, np.float32)
        self._squares_low = 0

    def block(self, low: int, high: int, queries: F32) -> F32:
        """Similarities (q, high - low), near enough to choose candidates by."""
        return self._similar(self.all[low:high], queries, low)

    def some(self, slots: I64, queries: F32) -> F32:
        """The same for scattered slots."""
        return self._similar(self.all.take(slots, axis=0), queries, None)

    def _similar(self, rows: F32, queries: F32, low: int | None) -> F32:
        if self.metric in ("Cosine", "Dot"):
            products: F32 = queries @ rows.T
            return products
        if self.metric == "Manhattan":
            return np.stack([similarity(self.metric, rows, query) for query in queries])
        mean = self._center(rows)
        squares = self._lengths(rows, mean) if low is None else self._kept_lengths(low, low + len(rows), mean)
        from_mean = queries - mean
        # |x-q|² = |x-m|² - 2 (x-m)·(q-m) + |q-m|²: about the mean little is lost, wherever the rows lie.
        dots = from_mean @ rows.T - (from_mean @ mean)[:, None]
        similar: F32 = 2 * dots - squares - np.vecdot(from_mean, from_mean)[:, None]
        return similar

    def _center(self, rows: F32) -> F32:
        if self._mean is None:
            self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        return self._mean

    @staticmethod
    def _lengths(rows: F32, mean: F32) -> F32:
        out = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), 1024):
            difference = rows[at : at + 1024] - mean
            out[at : at + 1024] = np.vecdot(difference, difference)
        return out

    def _kept_lengths(self, low: int, high: int, mean: F32) -> F32:
        """Squared lengths of a range; rows of published slots never change, so they are computed once."""
        if low < self._squares_low or low > self._squares_low + len(self._squares):
            self._squares, self._squares_low = self._lengths(self.all[low:high], mean), low
        known = self._squares_low + len(self._squares)
        if known < high:
            fresh = self._lengths(self.all[known:high], mean)
            self._squares = np.concatenate((self._squares, fresh))
        return self._squares[low - self._squares_low : high - self._squares_low]


def best_in_range(rows: Rows, queries: F32, low: int, high: int, allowed: Bits, count: int) -> list[I64]:
    """Per query the slots of the range that are likely the best `count`; `allowed` is by position in it.

    Some more where scores tie at the end, within rounding.
    """
    if high <= low:
        return [np.empty(0, np.int64)] * len(queries)
    chosen = int(np.count_nonzero(allowed))
    if chosen * 4 < high - low:  # sparse: gather rather than read all
        return best_of_slots(rows, queries, np.flatnonzero(allowed) + low, count)
    out: list[I64] = []
    for part in _query_parts(queries, high - low):
        scores = np.empty((len(part), high - low), np.float32)
        for at in range(low, high, _BLOCK_ROWS):
            to = min(at + _BLOCK_ROWS, high)
            scores[:, at - low : to - low] = rows.block(at, to, part)
        if chosen < high - low:
            scores[:, ~allowed] = -np.inf
        out.extend(positions + low for positions in _largest(scores, count, chosen))
    return out


def best_of_slots(rows: Rows, queries: F32, slots: I64, count: int) -> list[I64]:
    """Per query those of the slots that are likely the best `count`."""
    if len(slots) <= count:
        return [slots] * len(queries)
    out: list[I64] = []
    for part in _query_parts(queries, len(slots)):
        scores = np.empty((len(part), len(slots)), np.float32)
        for at in range(0, len(slots), _BLOCK_ROWS):
            scores[:, at : at + _BLOCK_ROWS] = rows.some(slots[at : at + _BLOCK_ROWS], part)
        out.extend(slots[positions] for positions in _largest(scores, count, len(slots)))
    return out


def _query_parts(queries: F32, width: int) -> list[F32]:
    """So many queries at once that their scores fit the bound."""
    at_once = max(1, _PRODUCT_BYTES // (4 * width))
    return [queries[at : at + at_once] for at in range(0, len(queries), at_once)]


def _largest(scores: F32, count: int, allowed: int) -> list[I64]:
    """Positions of the `count` largest of each row, and of those that rounding may have put behind them."""
    out: list[I64] = []
    for row in scores:
        if allowed <= count:
            out.append(np.flatnonzero(row > -np.inf))
            continue
        last = np.partition(row, len(row) - count)[len(row) - count]
        slack = _ROUNDING * max(np.float32(1), abs(row.max()), abs(last))
        out.append(np.flatnonzero(row >= last - slack))
    return out
