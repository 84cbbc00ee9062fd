"""Strict mode: the limits that a collection sets for requests to itself."""

from __future__ import annotations

from collections.abc import Container, Iterator

from core import filters
from core.api.config import CollectionParams, StrictMode
from core.api.filters import read_filter
from core.api.points import EditVectors, Operation, UpsertPoints
from core.api.searches import Groups, Node, Search
from core.errors import BadRequest

Indexed = Container[str]
"""The paths that have an index, as they are kept: canonical."""


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


def check_filter(
    strict: StrictMode | None, filter_: filters.Filter | None, indexed: Indexed, *, write: bool = False
) -> None:
    if strict is None or filter_ is None:
        return
    _check_indexed(strict, filter_, indexed, write=write)
    leaves = [c for c in filters.conditions_in(filter_) if not isinstance(c, filters.Filter | filters.Nested)]
    _check("filter conditions", len(leaves), strict.filter_max_conditions)
    if strict.condition_max_size is not None:
        for condition in leaves:
            _check("condition size", _size(condition), strict.condition_max_size)


def _check_indexed(strict: StrictMode, filter_: filters.Filter, indexed: Indexed, *, write: bool) -> None:
    """Where the collection asks for it, a filter may only look at indexed fields."""
    allowed = strict.unindexed_filtering_update if write else strict.unindexed_filtering_retrieve
    if allowed is not False:
        return
    for path in filters.paths_in(filter_):
        if str(path) not in indexed:
            raise BadRequest(f'{_PREFIX}Index required but not found for "{path}": create a payload index')


def check_search(strict: StrictMode | None, search: Search | Groups, indexed: Indexed) -> None:
    if strict is None:
        return
    root = search.search.node if isinstance(search, Groups) else search.node
    for node in _nodes(root):
        check_limit(strict, node.limit)
        check_filter(strict, node.filter, indexed)
        if node.ef is not None:
            _check("hnsw_ef", node.ef, strict.search_max_hnsw_ef)
        if node.exact and strict.search_allow_exact is False:
            raise BadRequest(f"{_PREFIX}exact search is not allowed in this collection")


def check_batch(strict: StrictMode | None, searches: int) -> None:
    if strict is not None:
        _check("searches", searches, strict.search_max_batchsize)


def check_write(strict: StrictMode | None, write: Operation, indexed: Indexed) -> None:
    if strict is None:
        return
    if isinstance(write, UpsertPoints | EditVectors):
        _check("points in one request", len(write.keys), strict.upsert_max_batchsize)
        where = write.update_where
    else:
        where = write.chosen.where
    if where is not None:
        check_filter(strict, read_filter(where), indexed, write=True)


def check_points_count(strict: StrictMode | None, points: int) -> None:
    """Before a write that may add points: how many there are."""
    if strict is not None and strict.max_points_count is not None and points >= strict.max_points_count:
        raise BadRequest(
            f"{_PREFIX}the collection holds {points} points, of {strict.max_points_count} allowed"
        )


def check_storage(strict: StrictMode | None, vector_bytes: int, payload_bytes: int) -> None:
    """Before a write that may add to them: how much there is."""
    if strict is None:
        return
    for kind, found, most in (
        ("vector", vector_bytes, strict.max_collection_vector_size_bytes),
        ("payload", payload_bytes, strict.max_collection_payload_size_bytes),
    ):
        if most is not None and found >= most:
            raise BadRequest(f"{_PREFIX}Max {kind} storage size limit of {most} bytes reached!")


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
