"""A query as it is run: a tree of nodes with vectors in place of ids, filters gathered, names resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.front.queries.leaves import Judge
from core.api.config import Distance, VectorParams
from core.api.searches import Dbsf, Formula, OrderBy, Rrf, Sample
from core.filters import Filter
from core.query.scoring import F32


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """A named vector of a collection."""

    name: str
    v: int
    params: VectorParams

    @property
    def size(self) -> int:
        return self.params.size

    @property
    def metric(self) -> Distance:
        return self.params.distance


@dataclass(frozen=True, slots=True)
class ById:
    """No query: points in id order."""


@dataclass(frozen=True, slots=True, eq=False)
class Near:
    vector: F32


@dataclass(frozen=True, slots=True, eq=False)
class Diverse:
    """Nearest, then chosen anew by maximal marginal relevance."""

    vector: F32
    diversity: float
    candidates: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Special:
    """recommend, discover, context, feedback: every candidate is scored."""

    judge: Judge


What = ById | Near | Diverse | Special | OrderBy | Rrf | Dbsf | Formula | Sample


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One query over the points that its prefetches found, or over all.

    `where` and `without` include those of the nodes outside.
    """

    what: What
    limit: int
    offset: int = 0
    vector: VectorSpec | None = None
    where: Filter | None = None
    without: frozenset[bytes] = frozenset()
    threshold: float | None = None
    ef: int | None = None
    exact: bool = False
    prefetch: tuple[Node, ...] = ()


def with_prefetch_limits(node: Node, lowest: int) -> Node:
    """The same tree, its prefetches finding at least so many."""
    inner = tuple(with_prefetch_limits(replace(p, limit=max(p.limit, lowest)), lowest) for p in node.prefetch)
    return replace(node, prefetch=inner)
