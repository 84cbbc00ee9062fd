"""Similarities and the scores of the special queries, over blocks of candidate rows.

s is the internal similarity, larger is better: cosine and dot product, -d² for Euclid, -d for Manhattan.
Rows and examples of Cosine come normalised. Every score depends on its own row alone, to the last bit, and
not on the row's place in the block (np.vecdot, not BLAS products): equal replicas, or the same points cut
into other shards, answer equally.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.api.config import Distance

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bits = NDArray[np.bool_]

EPSILON = np.float32(1.1920929e-7)
_BLOCK_ROWS = 1024  # differences of a block stay in the cache (1.5 MB at 384 dimensions)


def similarity(metric: Distance, rows: F32, example: F32) -> F32:
    """s of each row to one example. rows (n, d), example (d,) → (n,)."""
    if metric.larger_is_better:
        products: F32 = np.vecdot(rows, example)
        return products
    out = np.empty(len(rows), np.float32)
    for at in range(0, len(rows), _BLOCK_ROWS):
        difference = rows[at : at + _BLOCK_ROWS] - example
        if metric is Distance.EUCLID:
            out[at : at + _BLOCK_ROWS] = -np.vecdot(difference, difference)
        else:
            out[at : at + _BLOCK_ROWS] = -np.abs(difference, out=difference).sum(axis=1)
    return out


def similarities(metric: Distance, rows: F32, examples: F32) -> F32:
    """s of each row to each example. rows (n, d), examples (q, d) → (q, n)."""
    out = np.empty((len(examples), len(rows)), np.float32)
    for q, example in enumerate(examples):
        out[q] = similarity(metric, rows, example)
    return out


def scores_of(metric: Distance, s: F32) -> F32:
    """What the API answers for a plain vector query: s itself, or the distance."""
    if metric is Distance.EUCLID:
        return finite(np.sqrt(np.maximum(-s, np.float32(0))))
    return finite(-s if metric is Distance.MANHATTAN else s)


def finite(scores: F32) -> F32:
    """Scores as JSON can spell them: what overflowed is the largest f32, what is no number the lowest."""
    if np.isfinite(scores).all():
        return scores
    largest = float(np.finfo(np.float32).max)
    bounded: F32 = np.nan_to_num(scores, nan=-largest, posinf=largest, neginf=-largest)
    return bounded


def average(positives: F32, negatives: F32) -> F32:
    """Recommend by average_vector: p̄ + (p̄ - n̄), or p̄. positives (≥ 1, d), negatives (n, d)."""
    mean: F64 = positives.mean(axis=0, dtype=np.float64)
    if len(negatives):
        mean = mean + mean - negatives.mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def sigmoid(x: F32) -> F32:
    """x / (1 + |x|), in (-1, 1)."""
    squashed: F32 = np.divide(x, 1 + np.abs(x), dtype=np.float32)
    return squashed


def scaled_sigmoid(x: F32) -> F32:
    """(σ(x) + 1) / 2, in (0, 1)."""
    return (sigmoid(x) + np.float32(1)) / np.float32(2)


def best_score(metric: Distance, rows: F32, positives: F32, negatives: F32) -> F32:
    """Recommend by best_score: the nearest example decides, a negative one against the row."""
    best = _best(metric, rows, positives)
    worst = _best(metric, rows, negatives)
    # -inf stands for "no such example"; it never wins, but σ of it would be NaN in the branch not taken.
    finite_best = np.where(np.isfinite(best), best, np.float32(0))
    finite_worst = np.where(np.isfinite(worst), worst, np.float32(0))
    return np.where(best > worst, scaled_sigmoid(finite_best), -scaled_sigmoid(finite_worst))


def sum_scores(metric: Distance, rows: F32, positives: F32, negatives: F32) -> F32:
    """Recommend by sum_scores: Σ s(positive) - Σ s(negative)."""
    return _sum(metric, rows, positives) - _sum(metric, rows, negatives)


def discover(metric: Distance, rows: F32, target: F32, positives: F32, negatives: F32) -> F32:
    """Pairs (positives[i], negatives[i]) rank, the target orders within a rank."""
    ranks = np.zeros(len(rows), np.float32)
    for positive, negative in zip(positives, negatives, strict=True):
        ranks += np.sign(similarity(metric, rows, positive) - similarity(metric, rows, negative))
    return ranks + scaled_sigmoid(similarity(metric, rows, target))


def context(metric: Distance, rows: F32, positives: F32, negatives: F32) -> F32:
    """0 where every pair's positive is nearer than its negative, else below."""
    total = np.zeros(len(rows), np.float32)
    for positive, negative in zip(positives, negatives, strict=True):
        lead = similarity(metric, rows, positive) - similarity(metric, rows, negative) - EPSILON
        total += sigmoid(np.minimum(lead, np.float32(0)))
    return total


def feedback(
    metric: Distance,
    rows: F32,
    target: F32,
    examples: F32,
    judged: tuple[float, ...],
    coefficients: tuple[float, float, float],
) -> F32:
    """Naive relevance feedback: a·s(target) + Σ f^b·c·(s(x₁) - s(x₂)), f = judged₁ - judged₂ > 0."""
    a, b, c = coefficients
    total = np.float64(a) * similarity(metric, rows, target)
    s = similarities(metric, rows, examples).astype(np.float64)
    for i, better in enumerate(judged):
        for j, worse in enumerate(judged):
            if better > worse:
                total = total + (better - worse) ** b * c * (s[i] - s[j])
    return total.astype(np.float32)


def _best(metric: Distance, rows: F32, examples: F32) -> F32:
    if not len(examples):
        return np.full(len(rows), -np.inf, np.float32)
    best: F32 = similarities(metric, rows, examples).max(axis=0)
    return best


def _sum(metric: Distance, rows: F32, examples: F32) -> F32:
    total = np.zeros(len(rows), np.float32)
    for example in examples:
        total += similarity(metric, rows, example)
    return total
