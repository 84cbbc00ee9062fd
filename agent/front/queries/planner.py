"""From a checked request to a plan: ids become vectors, outer filters and exclusions reach every leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agent.front.queries import plan
from agent.front.queries.collection import Collection
from agent.front.queries.leaves import Judge
from agent.front.queries.plan import VectorSpec
from agent.front.queries.source import each
from core.api import searches
from core.api.config import Distance
from core.api.searches import Context, Discover, Example, Feedback, Mmr, Nearest, Recommend, VectorQuery
from core.api.vectors import normalise, wrong_size
from core.errors import NotFound
from core.filters import Filter, MinShould
from core.hashing import point_id
from core.query import scoring
from core.query.scoring import F32


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans queries of one collection; `named` opens others, by name or alias, and raises NotFound."""

    collection: Collection
    named: Callable[[str], Collection]

    def plan(
        self, node: searches.Node, where: Filter | None = None, without: frozenset[bytes] = frozenset()
    ) -> plan.Node:
        """The node under an outer filter. Raises NotFound for examples that are not there."""
        where = inherited(where, node.filter)
        vector: VectorSpec | None = None
        what: plan.What
        if isinstance(node.query, VectorQuery):
            vector = self.collection.vector(node.using)
            examples = _examples(node.query)
            home = self.collection if node.lookup is None else self.named(node.lookup.collection)
            what = _what(node.query, vector, self._rows(examples, node, vector, home))
            if home.name == self.collection.name:
                without = without.union([one for one in examples if isinstance(one, bytes)])
        else:
            what = plan.ById() if node.query is None else node.query
        return plan.Node(
            what=what,
            limit=node.limit,
            offset=node.offset,
            vector=vector,
            where=where,
            without=without,
            threshold=node.threshold,
            ef=node.ef,
            exact=node.exact,
            prefetch=tuple([self.plan(inner, where, without) for inner in node.prefetch]),
        )

    def _rows(
        self, examples: Sequence[Example], node: searches.Node, vector: VectorSpec, home: Collection
    ) -> F32:
        """The examples' vectors (n, d), those of ids read from their collection."""
        rows = np.empty((len(examples), vector.size), np.float32)
        ids: dict[bytes, list[int]] = {}
        for i, example in enumerate(examples):
            if isinstance(example, bytes):
                ids.setdefault(example, []).append(i)
            else:
                rows[i] = example
        if ids:
            name = node.using if node.lookup is None or node.lookup.vector is None else node.lookup.vector
            spec = home.vector(name)
            if spec.size != vector.size:
                raise wrong_size(vector.size, spec.size)
            found = stored_rows(home, spec, list(ids))
            if vector.metric is Distance.COSINE and spec.metric is not Distance.COSINE:
                found = normalise(found)
            for row, places in zip(found, ids.values(), strict=True):
                rows[places] = row
        return rows


def stored_rows(collection: Collection, vector: VectorSpec, keys: Sequence[bytes]) -> F32:
    """The vectors (n, d) of these points. Raises NotFound for one that is missing or lacks the vector."""
    rows = np.empty((len(keys), vector.size), np.float32)
    left = {key: i for i, key in enumerate(keys)}
    found = each(collection.sources, lambda source: source.find(keys))
    for source, here in zip(collection.sources, found, strict=True):
        if len(here.keys):
            has = source.has(vector.v, here)
            if not has.all():
                shown = point_id(here.keys[int(np.argmin(has))])
                raise NotFound(f"Not found: Vector with name `{vector.name}` for point {shown}")
            rows[[left.pop(key) for key in here.keys]] = source.rows(vector.v, here)
    if left:
        raise NotFound(f"Not found: No point with id {point_id(next(iter(left)))} found")
    return rows


def both(a: Filter | None, b: Filter | None) -> Filter | None:
    """The filter that holds where both do."""
    if a is None or b is None:
        return b if a is None else a
    return Filter(must=(a, b))


def inherited(outer: Filter | None, inner: Filter | None) -> Filter | None:
    """A prefetch's filter under an outer one, joined clause by clause.

    So two `should` become one list of alternatives, not two that must both hold: clients count on it.
    """
    if outer is None or inner is None:
        return inner if outer is None else outer
    a, b = outer.min_should, inner.min_should
    least = a or b
    if a is not None and b is not None:
        least = MinShould(a.conditions + b.conditions, max(a.min_count, b.min_count))
    must_not = outer.must_not + inner.must_not
    return Filter(outer.must + inner.must, outer.should + inner.should, must_not, least)


def _examples(query: VectorQuery) -> list[Example]:
    """Every example of a query, in the order in which `_what` takes their vectors."""
    match query:
        case Nearest(example) | Mmr(example):
            return [example]
        case Recommend(positive, negative):
            return [*positive, *negative]
        case Discover(target, pairs):
            return [target, *(pair[0] for pair in pairs), *(pair[1] for pair in pairs)]
        case Context(pairs):
            return [*(pair[0] for pair in pairs), *(pair[1] for pair in pairs)]
        case Feedback(target, items):
            return [target, *(example for example, _ in items)]


def _what(query: VectorQuery, vector: VectorSpec, rows: F32) -> plan.What:
    match query:
        case Nearest():
            return plan.Near(rows[0])
        case Mmr(_, diversity, candidates):
            return plan.Diverse(rows[0], diversity, candidates)
        case Recommend(positive, _, "average_vector"):
            mean = scoring.average(rows[: len(positive)], rows[len(positive) :])
            return plan.Near(normalise(mean[None])[0] if vector.metric is Distance.COSINE else mean)
        case Recommend(positive, _, strategy):
            kind: Literal["best_score", "sum_scores"]
            kind = "best_score" if strategy == "best_score" else "sum_scores"
            return plan.Special(Judge(kind, rows[: len(positive)], rows[len(positive) :]))
        case Discover(_, pairs):
            n = len(pairs)
            return plan.Special(Judge("discover", rows[1 : 1 + n], rows[1 + n :], target=rows[0]))
        case Context(pairs):
            return plan.Special(Judge("context", rows[: len(pairs)], rows[len(pairs) :]))
        case Feedback(_, items, a, b, c):
            judged = tuple([score for _, score in items])
            return plan.Special(
                Judge("feedback", rows[1:], rows[:0], target=rows[0], judged=judged, coefficients=(a, b, c))
            )
