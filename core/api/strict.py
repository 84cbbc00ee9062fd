"""Strict mode: the limits that a collection sets for requests to itself."""

from __future__ import annotations

from collections.abc import Container, Iterator

from core import filters
from core.api.config import CollectionParams, StrictMode
from core.api.points import EditVectors, Operation, UpsertPoints
from core.api.searches import Groups, Node, Search
from core.errors import BadRequest
from core.payload import Path


def strict_mode(config: CollectionParams) -> StrictMode | None:
    """The limits, if they are on."""
    strict = config.strict_mode_config
    return strict if strict is not None and strict.enabled else None


def check_limit(strict: StrictMode | None, limit: int, field: str = "limit") -> None:
    if strict is not None:
        _check(field, limit, strict.max_query_limit)


def check_timeout(strict: StrictMode | None, timeout_s: float | None) -> None:
    if strict is not None and timeout_s is not None:
        _check("timeout", timeout_s, strict.max_timeout)


def check_filter(strict: StrictMode | None, filter_: filters.Filter | None) -> None:
    if strict is None or filter_ is None:
        return
    leaves = [c for c in filters.conditions_in(filter_) if not isinstance(c, filters.Filter | filters.Nested)]
    _check("filter conditions", len(leaves), strict.filter_max_conditions)
    if strict.condition_max_size is not None:
        for condition in leaves:
            _check("condition size", _size(condition), strict.condition_max_size)


def check_indexed(
    strict: StrictMode | None, filter_: filters.Filter | None, indexed: Container[Path], *, write: bool
) -> None:
    """Where the collection asks for it, a filter may only look at indexed fields."""
    if strict is None or filter_ is None:
        return
    allowed = strict.unindexed_filtering_update if write else strict.unindexed_filtering_retrieve
    if allowed is not False:
        return
    for path in filters.paths_in(filter_):
        if path not in indexed:
            raise BadRequest(f'{_PREFIX}Index required but not found for "{path}": create a payload index')


def check_search(strict: StrictMode | None, search: Search | Groups) -> None:
    if strict is None:
        return
    root = search.search.node if isinstance(search, Groups) else search.node
    for node in _nodes(root):
        check_limit(strict, node.limit)
        check_filter(strict, node.filter)
        if node.ef is not None:
            _check("hnsw_ef", node.ef, strict.search_max_hnsw_ef)
        if node.exact and strict.search_allow_exact is False:
            raise BadRequest(f"{_PREFIX}exact search is not allowed in this collection")


def check_batch(strict: StrictMode | None, searches: int) -> None:
    if strict is not None:
        _check("searches", searches, strict.search_max_batchsize)


def check_write(strict: StrictMode | None, write: Operation) -> None:
    if strict is not None and isinstance(write, UpsertPoints | EditVectors):
        _check("points in one request", len(write.keys), strict.upsert_max_batchsize)


def check_points_count(strict: StrictMode | None, points: int) -> None:
    """Before a write that may add points: how many there are."""
    if strict is not None and strict.max_points_count is not None and points >= strict.max_points_count:
        raise BadRequest(
            f"{_PREFIX}the collection holds {points} points, of {strict.max_points_count} allowed"
        )


def check_index_count(strict: StrictMode | None, indexes: int) -> None:
    if strict is not None:
        _check("payload indexes", indexes, strict.max_payload_index_count)


_PREFIX = "Bad request: strict mode: "


def _check(what: str, found: float, allowed: int | None) -> None:
    if allowed is not None and found > allowed:
        raise BadRequest(f"{_PREFIX}Limit exceeded {found:g} > {allowed} for {what}")


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for inner in node.prefetch:
        yield from _nodes(inner)


def _size(condition: filters.Condition) -> int:
    """How many values a condition compares with."""
    match condition:
        case filters.MatchAny(_, values) | filters.MatchExcept(_, values):
            return len(values)
        case filters.HasId(keys):
            return len(keys)
        case filters.GeoPolygon(_, exterior, holes):
            return len(exterior) + sum(len(hole) for hole in holes)
        case _:
            return 1
