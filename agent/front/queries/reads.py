"""The read calls of the API over one collection: checked requests in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import UNSET

from agent.front.queries import answers, grouping, matrix, merging, plain
from agent.front.queries.answers import Wanted, records, scored_points
from agent.front.queries.collection import Collection
from agent.front.queries.deadline import Deadline
from agent.front.queries.execution import Execution
from agent.front.queries.leaves import Among, Hits, Ordered, Page
from agent.front.queries.plain import is_plain
from agent.front.queries.plan import Node, VectorSpec
from agent.front.queries.planner import Planner
from agent.front.queries.source import Source, each
from core.api.reads import Count, Facet, Matrix, Retrieve, Scroll
from core.api.searches import Groups, Search
from core.api.selectors import VectorSelector
from core.hashing import point_id
from core.payload import PayloadSelector
from core.query.facets import FacetCounts, facet_hits


@dataclass(frozen=True, slots=True)
class Reads:
    """One request's reads. Synchronous: a long one belongs on a thread.

    `named` opens another collection by name or alias and raises NotFound; `draw` gives seeds.
    """

    collection: Collection
    named: Callable[[str], Collection]
    deadline: Deadline
    draw: Callable[[], int]

    def query(self, search: Search) -> list[answers.ScoredPoint]:
        """POST /points/query, and the older search and recommend."""
        wants = self._wanted_of(search)
        if self._is_plain(search):
            return plain.answers(self.collection, [search], [wants])[0]
        return scored_points(self.collection, self._execution.hits(self._plan(search)), wants)

    def query_batch(self, given: Sequence[Search]) -> list[list[answers.ScoredPoint]]:
        """Each search's answer, in order. Plain vector searches that are alike run as one batch."""
        if len(given) == 1:
            return [self.query(given[0])]
        wants = [self._wanted_of(search) for search in given]
        found: list[list[answers.ScoredPoint]] = [[]] * len(given)
        alike: dict[Hashable, list[int]] = {}
        for i, search in enumerate(given):
            if self._is_plain(search):
                alike.setdefault(plain.batch_key(search), []).append(i)
            else:
                hits = self._execution.hits(self._plan(search))
                found[i] = scored_points(self.collection, hits, wants[i])
        for places in alike.values():
            self.deadline.check()
            batch = plain.answers(self.collection, [given[i] for i in places], [wants[i] for i in places])
            for i, points in zip(places, batch, strict=True):
                found[i] = points
        return found

    def groups(self, groups: Groups) -> answers.Groups:
        """POST /points/query/groups, and the older search/groups."""
        found = grouping.grouped(self._execution, self._plan(groups.search), groups)
        hits = iter(scored_points(self.collection, found.hits, self._wanted_of(groups.search)))
        made = {group: [next(hits) for _ in range(size)] for group, size in found.sizes.items()}
        lookup = {} if groups.lookup is None else self._lookup(groups, list(made))
        return answers.Groups(
            [answers.Group(group, points, lookup.get(group, UNSET)) for group, points in made.items()]
        )

    def retrieve(self, request: Retrieve) -> list[answers.Record]:
        """POST /points, and GET of one point: in the order asked for, missing ones left out."""
        return retrieved(self.collection, request.keys, request.with_payload, request.with_vector)

    def scroll(self, request: Scroll) -> answers.ScrollPage:
        wanted = self._wanted(request.with_payload, request.with_vector)
        sources, among = self.collection.sources, Among(request.filter)
        if request.order_by is not None:
            order = request.order_by
            leaf = Ordered(among, str(order.path), request.limit, order.descending, order.start_from)
            lists = each(sources, lambda source: source.run(leaf, self.deadline))
            hits = merging.by_order(lists, request.limit, descending=order.descending)
            return answers.ScrollPage(records(self.collection, hits, wanted), None)
        # One more than the page: the first of the next.
        page = Page(among, request.limit + 1, request.offset)
        pages = each(sources, lambda source: source.run(page, self.deadline))
        hits = merging.by_key(pages, request.limit + 1)
        more = point_id(hits.keys[request.limit]) if len(hits) > request.limit else None
        return answers.ScrollPage(
            records(self.collection, merging.taken(hits, slice(request.limit)), wanted), more
        )

    def count(self, request: Count) -> answers.Count:
        return answers.Count(sum(each(self.collection.sources, lambda source: source.count(request.filter))))

    def facet(self, request: Facet) -> answers.Facets:

        def counted(source: Source) -> FacetCounts:
            self.deadline.check()
            return source.facet(str(request.path), request.filter)

        counts = each(self.collection.sources, counted)
        hits = facet_hits(counts, request.limit)
        return answers.Facets([answers.FacetHit(value, count) for value, count in hits])

    def matrix_pairs(self, request: Matrix) -> answers.MatrixPairs:
        made = self._matrix(request)
        ids = [point_id(key) for key in made.keys]
        pairs = zip(made.rows, made.columns, made.scores, strict=True)
        return answers.MatrixPairs([answers.Pair(ids[a], ids[b], score) for a, b, score in pairs])

    def matrix_offsets(self, request: Matrix) -> answers.MatrixOffsets:
        made = self._matrix(request)
        ids = [point_id(key) for key in made.keys]
        return answers.MatrixOffsets(made.rows, made.columns, made.scores, ids)

    def _is_plain(self, search: Search) -> bool:
        return self.collection.is_here and is_plain(search)

    @property
    def _execution(self) -> Execution:
        return Execution(self.collection, self.deadline, self.draw)

    def _plan(self, search: Search) -> Node:
        return Planner(self.collection, self.named).plan(search.node)

    def _matrix(self, request: Matrix) -> matrix.Distances:
        return matrix.distances(self._execution, self.collection.vector(request.using), request)

    def _lookup(self, groups: Groups, ids: Sequence[str | int]) -> dict[str | int, answers.Record]:
        assert groups.lookup is not None
        home = self.named(groups.lookup.collection)
        keys = grouping.point_keys(ids)
        found = retrieved(home, list(keys.values()), groups.lookup.with_payload, groups.lookup.with_vector)
        by_id = {record.id: record for record in found}
        return {group: by_id[point_id(key)] for group, key in keys.items() if point_id(key) in by_id}

    def _wanted_of(self, search: Search) -> Wanted:
        return self._wanted(search.with_payload, search.with_vector)

    def _wanted(self, payload: PayloadSelector, vectors: VectorSelector) -> Wanted:
        return wanted(self.collection, payload, vectors)


def retrieved(
    collection: Collection, keys: Sequence[bytes], payload: PayloadSelector, vectors: VectorSelector
) -> list[answers.Record]:
    """The records of these points, in this order."""
    lists = [
        Hits(list(here.keys), here.slots, np.ones(len(here.keys), np.float32))
        for here in each(collection.sources, lambda source: source.find(keys))
    ]
    hits = merging.together(lists)
    place = {key: i for i, key in enumerate(hits.keys)}
    order = np.array([place[key] for key in dict.fromkeys(keys) if key in place], np.int64)
    return records(collection, merging.taken(hits, order), wanted(collection, payload, vectors))


def wanted(collection: Collection, payload: PayloadSelector, vectors: VectorSelector) -> Wanted:
    """What answers carry. Raises BadRequest for a vector that the collection does not have."""
    specs: tuple[VectorSpec, ...] | None = None
    if vectors is True:
        specs = tuple(collection.vectors.values())
    elif vectors is not False:
        specs = tuple([collection.vector(name) for name in dict.fromkeys(vectors)])
    return Wanted(payload, specs)
