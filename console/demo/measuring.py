"""What the demo measures of a node: recall against exact search, and how long a search takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from console.demo.rest import Hit, Rest

_K = 10
_SCORE_TOLERANCE = 1e-5  # two points that are equally near are equally right


@dataclass(frozen=True, slots=True)
class Measured:
    """Of so many searches, one after the other on one connection."""

    searches: int
    recall_at_10: float
    p50_ms: float
    p99_ms: float


def measure(rest: Rest, collection: str, queries: Iterable[Sequence[float]]) -> Measured:
    """Each query once as usual, timed, and once exactly."""
    recalls, times_s = [], []
    for query in queries:
        begun_s = time.perf_counter()
        found = rest.search(collection, query, limit=_K, with_payload=False)
        times_s.append(time.perf_counter() - begun_s)
        exact = rest.search(collection, query, limit=_K, with_payload=False, exact=True)
        recalls.append(recall(found, exact))
    return Measured(
        searches=len(times_s),
        recall_at_10=sum(recalls) / len(recalls),
        p50_ms=1000 * quantile(times_s, 0.50),
        p99_ms=1000 * quantile(times_s, 0.99),
    )


def recall(found: Sequence[Hit], exact: Sequence[Hit]) -> float:
    """The share of the exact answers that were found, or others that score as well."""
    if not exact:
        return 1.0
    good_enough = exact[-1].score - _SCORE_TOLERANCE
    return min(1.0, sum(hit.score >= good_enough for hit in found) / len(exact))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
