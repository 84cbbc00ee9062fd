"""Runs a query tree over a collection's shards: leaves on each, merged before anything else looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agent.front.queries import merging
from agent.front.queries.candidates import Candidates, FormulaRows
from agent.front.queries.collection import Collection
from agent.front.queries.deadline import Deadline
from agent.front.queries.leaves import Among, Hits, Leaf, Nearest, Ordered, Page, Sampled, Scored
from agent.front.queries.plan import ById, Diverse, Near, Node, Special, VectorSpec
from agent.front.queries.source import Source, each_with
from core.api.searches import Dbsf, Formula, OrderBy, Rrf, Sample
from core.query import fusion, mmr, scoring
from core.query.formula import evaluate
from core.query.scoring import F32, Bits


@dataclass(frozen=True, slots=True)
class Execution:
    """One request's run over the shards of one collection."""

    collection: Collection
    deadline: Deadline
    draw: Callable[[], int]
    """A fresh seed for each random sample."""

    @property
    def sources(self) -> Sequence[Source]:
        return self.collection.sources

    def hits(self, node: Node) -> Hits:
        """The node's answer: ranked, merged, cut to offset and limit; scores as the API gives them."""
        self.deadline.check()
        found = [self.hits(inner) for inner in node.prefetch]
        wanted = node.limit + node.offset
        what = node.what
        if isinstance(what, (Rrf, Dbsf)):
            hits = self._fused(node, what, found)
        elif isinstance(what, Formula):
            hits = self._formula(node, what, found)
        else:
            only = merging.union(found) if found else None
            hits = self._ranked(node, wanted, only)
        # A sample has no ranks that an offset could skip.
        return merging.taken(hits, slice(0 if isinstance(what, Sample) else node.offset, wanted))

    def _ranked(self, node: Node, wanted: int, only: Hits | None) -> Hits:
        what = node.what
        if isinstance(what, Near):
            return self._kept(node, self._nearest(node, what.vector[None], wanted, only)[0])
        if isinstance(what, Diverse):
            return self._diverse(node, what, wanted, only)
        if isinstance(what, Special):
            vector = _vector(node)
            lists = self._run(
                node, only, lambda among: Scored(among, vector.v, vector.metric, what.judge, wanted)
            )
            return _over(node, merging.by_score(lists, wanted), larger=True, strictly=True)
        return self._unscored(node, wanted, only)

    def _unscored(self, node: Node, wanted: int, only: Hits | None) -> Hits:
        """Queries whose scores are all 1."""
        what = node.what
        if isinstance(what, OrderBy):
            order = what
            orders = self._run(
                node,
                only,
                lambda among: Ordered(among, str(order.path), wanted, order.descending, order.start_from),
            )
            return merging.by_order(orders, wanted, descending=what.descending)
        if isinstance(what, Sample):
            draws = self._run(node, only, lambda among: Sampled(among, wanted, self.draw()))
            hits = merging.by_score(draws, node.limit)
            return merging.rescored(hits, np.ones(len(hits), np.float32))
        assert isinstance(what, ById)
        return merging.by_key(self._run(node, only, lambda among: Page(among, wanted)), wanted)

    def _run(self, node: Node, only: Hits | None, leaf: Callable[[Among], Leaf]) -> list[Hits]:
        leaves = [leaf(among) for among in self._among(node, only)]
        return each_with(self.sources, leaves, lambda source, one: source.run(one, self.deadline))

    def _nearest(self, node: Node, queries: F32, wanted: int, only: Hits | None) -> list[Hits]:
        """One merged list a query, with API scores."""
        vector = _vector(node)
        leaves = [
            Nearest(among, vector.v, vector.metric, queries, wanted, node.ef, node.exact)
            for among in self._among(node, only)
        ]
        answers = each_with(self.sources, leaves, lambda source, leaf: source.nearest(leaf, self.deadline))
        merged = [merging.by_score([answer[q] for answer in answers], wanted) for q in range(len(queries))]
        return [merging.rescored(hits, scoring.scores_of(vector.metric, hits.scores)) for hits in merged]

    def _diverse(self, node: Node, what: Diverse, wanted: int, only: Hits | None) -> Hits:
        vector = _vector(node)
        candidates = node.limit if what.candidates is None else what.candidates
        if candidates == 0:
            return merging.NOTHING
        hits = self._kept(node, self._nearest(node, what.vector[None], candidates, only)[0])
        self.deadline.check()
        rows = Candidates(self.sources, hits).rows(vector)
        return merging.taken(hits, mmr.choose(vector.metric, rows, what.vector, what.diversity, wanted))

    def _fused(self, node: Node, what: Rrf | Dbsf, found: Sequence[Hits]) -> Hits:
        lists = [(hits.keys, hits.scores) for hits in found]
        if isinstance(what, Rrf):
            keys, scores = fusion.rrf(lists, k=what.k, weights=what.weights)
        else:
            keys, scores = fusion.dbsf(lists)
        hits = merging.looked_up(merging.union(found), keys, scores)
        return _over(node, hits, larger=True, strictly=False)

    def _formula(self, node: Node, what: Formula, found: Sequence[Hits]) -> Hits:
        hits = merging.union(found)
        rows = FormulaRows(self.sources, hits, found, self.collection.vectors, self.collection.text_indexes)
        scores = evaluate(what.expression, rows, what.defaults)
        return _over(node, merging.ranked_anew(hits, scores), larger=True, strictly=False)

    def _kept(self, node: Node, hits: Hits) -> Hits:
        return _over(node, hits, larger=_vector(node).metric.larger_is_better, strictly=True)

    def _among(self, node: Node, only: Hits | None) -> list[Among]:
        """What each shard considers for this node."""
        if only is None:
            return [Among(node.where, node.without)] * len(self.sources)
        parts = [merging.of_source(only, i)[1] for i in range(len(self.sources))]
        return [Among(node.where, node.without, part) for part in parts]


def _over(node: Node, hits: Hits, *, larger: bool, strictly: bool) -> Hits:
    """The hits whose score passes the node's threshold."""
    if node.threshold is None:
        return hits
    scores, bound = hits.scores, np.float32(node.threshold)
    passed: Bits = scores > bound if larger else scores < bound
    if not strictly:
        passed |= scores == bound
    return hits if passed.all() else merging.taken(hits, np.flatnonzero(passed))


def _vector(node: Node) -> VectorSpec:
    assert node.vector is not None, "the planner gives a vector to every node that compares vectors"
    return node.vector
