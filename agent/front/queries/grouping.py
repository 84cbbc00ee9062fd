"""Groups of a query's hits: the query goes on until every group that counts is full, or nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent.front.queries import merging
from agent.front.queries.candidates import Candidates
from agent.front.queries.execution import Execution
from agent.front.queries.leaves import Hits
from agent.front.queries.plan import Diverse, Node, with_prefetch_limits
from agent.front.queries.planner import both
from core.api.searches import Groups, Sample
from core.errors import BadRequest
from core.filters import Filter, MatchAny
from core.hashing import id_key
from core.payload import Path
from core.query.groups import GroupId, Grouping, group_ids

_PREFETCH_MIN = 10_000
"""Prefetches of a grouped query find at least so many: their usual limits are meant for single hits."""

_ONE_SHOT = 1_000
"""What is asked of queries whose answer to a larger limit is not a longer list: samples and MMR."""

_FIRST = 64
_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Grouped:
    """Hits group after group, and how many belong to each."""

    hits: Hits
    sizes: dict[GroupId, int]


def grouped(execution: Execution, node: Node, groups: Groups) -> Grouped:
    """The groups of the best hits, best group first."""
    limit, size, path = groups.search.node.limit, groups.group_size, groups.group_by
    if node.prefetch:
        node = with_prefetch_limits(node, max(_PREFETCH_MIN, limit * size))
    if isinstance(node.what, (Sample, Diverse)):
        hits = execution.hits(_one_shot(node, limit * size))
        return _answer(hits, _group(execution, hits, path, Grouping(limit, size)).groups)
    ask = max(_FIRST, limit * size)
    while True:
        hits = execution.hits(replace(node, limit=ask, offset=0))
        found = _group(execution, hits, path, Grouping(limit, size))
        exhausted, unfilled = len(hits) < ask, found.unfilled()
        if exhausted or (found.complete and not unfilled):
            return _answer(hits, found.groups)
        if found.complete and not node.prefetch:
            break
        ask *= _GROWTH
    # The groups are known: only their own members are still of interest. (Not under prefetches, whose
    # ranks a narrower filter would change.)
    return _filled(execution, node, path, _answer(hits, found.groups), unfilled, size)


def _filled(
    execution: Execution, node: Node, path: Path, answer: Grouped, unfilled: Sequence[GroupId], size: int
) -> Grouped:
    narrowed = replace(node, where=both(node.where, _members(path, unfilled)), offset=0)
    ask = max(_FIRST, len(unfilled) * size)
    while True:
        hits = execution.hits(replace(narrowed, limit=ask))
        found = _group(execution, hits, path, Grouping(len(unfilled), size), only=frozenset(unfilled))
        if len(hits) < ask or not found.unfilled():
            break
        ask *= _GROWTH
    more = _answer(hits, found.groups)
    both_hits = merging.appended(answer.hits, more.hits)
    start = dict(_starts(answer.sizes, 0)) | dict(_starts(more.sizes, len(answer.hits)))
    sizes = answer.sizes | more.sizes
    order = [start[group] + i for group in answer.sizes for i in range(sizes[group])]
    return Grouped(merging.taken(both_hits, np.array(order, np.int64)), sizes)


def point_keys(groups: Sequence[GroupId]) -> dict[GroupId, bytes]:
    """The id keys of those groups whose value is a point id."""
    keys: dict[GroupId, bytes] = {}
    for group in groups:
        try:
            keys[group] = id_key(group)
        except BadRequest:
            continue  # a group by another kind of value; it has no record
    return keys


def _group(
    execution: Execution, hits: Hits, path: Path, into: Grouping, only: frozenset[GroupId] | None = None
) -> Grouping:
    values = Candidates(execution.sources, hits).values(str(path))
    for i, each in enumerate(values):
        ids = group_ids(each)
        into.add(i, ids if only is None else [group for group in ids if group in only])
    return into


def _answer(hits: Hits, groups: dict[GroupId, list[int]]) -> Grouped:
    order = np.array([i for places in groups.values() for i in places], np.int64)
    return Grouped(merging.taken(hits, order), {group: len(places) for group, places in groups.items()})


def _starts(sizes: dict[GroupId, int], at: int) -> list[tuple[GroupId, int]]:
    starts = []
    for group, size in sizes.items():
        starts.append((group, at))
        at += size
    return starts


def _members(path: Path, groups: Sequence[GroupId]) -> Filter:
    strings = frozenset([group for group in groups if isinstance(group, str)])
    integers = frozenset([group for group in groups if isinstance(group, int)])
    kinds = [MatchAny(path, values) for values in (strings, integers) if values]
    return Filter(should=tuple(kinds))


def _one_shot(node: Node, wanted: int) -> Node:
    ask = max(_ONE_SHOT, wanted)
    what = node.what
    if isinstance(what, Diverse) and what.candidates is None:
        what = replace(what, candidates=ask)
    return replace(node, what=what, limit=ask, offset=0)
