"""What one shard is asked, and what it answers: values that could as well travel to another node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.api.config import Distance
from core.filters import Filter
from core.query.order import OrderValue
from core.query.scoring import F32, I64


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Points of one shard, found by an earlier leaf of the same request.

    The key is the point's name; the slot is a hint for the look that gave it.
    """

    keys: Sequence[bytes]
    slots: I64


@dataclass(frozen=True, slots=True, eq=False)
class Among:
    """Which points a leaf considers: those of `only` (else all) that match `where`, but none of `without`.

    Points of `only` have been filtered already and are not filtered again.
    """

    where: Filter | None = None
    without: frozenset[bytes] = frozenset()
    only: Chosen | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """The points most similar to each query (q, d); answered by one Hits a query, scores are s."""

    among: Among
    v: int
    metric: Distance
    queries: F32
    limit: int
    ef: int | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """How a special query scores a row: examples (n, d), pairs by position."""

    kind: Literal["best_score", "sum_scores", "discover", "context", "feedback"]
    positives: F32
    negatives: F32
    target: F32 | None = None
    judged: tuple[float, ...] = ()  # feedback: the scores given to `positives`
    coefficients: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The points that a special query scores best."""

    among: Among
    v: int
    metric: Distance
    judge: Judge
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """Points in id order, from the key `start` on; all scores are 1."""

    among: Among
    limit: int
    start: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ordered:
    """Points by the values at a path: a hit for each different value."""

    among: Among
    path: str
    limit: int
    descending: bool = False
    start_from: OrderValue | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """Random points; each is drawn a score, the largest are taken, so that shards' samples merge fairly."""

    among: Among
    limit: int
    seed: int
    v: int | None = None


Leaf = Scored | Page | Ordered | Sampled


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Points found, best first. `source` is the position of their shard, known once lists are merged."""

    keys: list[bytes]
    slots: I64
    scores: F32
    order: list[OrderValue] | None = None
    source: I64 | None = None

    def __len__(self) -> int:
        return len(self.keys)
