"""Requests that read points without ranking them: retrieve, scroll, count, facet, matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from core.api.checks import DEFAULT_LIMITS, Limits, at_least, at_most, refuse_shard_key
from core.api.config import VectorParams
from core.api.filters import FilterBody, parse_filter
from core.api.queries import OrderByBody
from core.api.searches import OrderBy, parse_order_by
from core.api.selectors import VectorSelector, WithPayload, WithVector, parse_with_payload, parse_with_vector
from core.api.vectors import params_of
from core.errors import BadRequest
from core.filters import Filter
from core.hashing import IdKey, PointId, id_key
from core.payload import Path, PayloadSelector, parse_path

SCROLL_LIMIT_DEFAULT = 10
FACET_LIMIT_DEFAULT = 10
MATRIX_SAMPLE_DEFAULT = 10
MATRIX_LIMIT_DEFAULT = 3


class RetrieveBody(Struct, frozen=True):
    ids: list[PointId]
    with_payload: WithPayload = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    shard_key: Any = None


class ScrollBody(Struct, frozen=True):
    offset: PointId | None = None
    limit: int | None = None
    filter: FilterBody | None = None
    with_payload: WithPayload = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    order_by: str | OrderByBody | None = None
    shard_key: Any = None


class CountBody(Struct, frozen=True):
    filter: FilterBody | None = None
    exact: bool | None = None
    shard_key: Any = None


class FacetBody(Struct, frozen=True):
    key: str
    limit: int | None = None
    filter: FilterBody | None = None
    exact: bool | None = None
    shard_key: Any = None


class MatrixBody(Struct, frozen=True):
    filter: FilterBody | None = None
    sample: int | None = None
    limit: int | None = None
    using: str | None = None
    shard_key: Any = None


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Ids in the order asked for, each once."""

    keys: tuple[IdKey, ...]
    with_payload: PayloadSelector
    with_vector: VectorSelector


@dataclass(frozen=True, slots=True)
class Scroll:
    """`offset` is the first id of the page."""

    limit: int
    with_payload: PayloadSelector
    with_vector: VectorSelector
    offset: IdKey | None = None
    filter: Filter | None = None
    order_by: OrderBy | None = None


@dataclass(frozen=True, slots=True)
class Count:
    filter: Filter | None = None
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Facet:
    path: Path
    limit: int = FACET_LIMIT_DEFAULT
    filter: Filter | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    sample: int = MATRIX_SAMPLE_DEFAULT
    limit: int = MATRIX_LIMIT_DEFAULT
    using: str = ""
    filter: Filter | None = None


def parse_retrieve(body: RetrieveBody, limits: Limits = DEFAULT_LIMITS) -> Retrieve:
    refuse_shard_key(body.shard_key)
    at_most("ids", len(body.ids), limits.limit_max)
    return Retrieve(
        tuple(dict.fromkeys([id_key(one) for one in body.ids])),
        parse_with_payload(body.with_payload, default=True),
        parse_with_vector(body.with_vector, body.with_vectors),
    )


def parse_scroll(body: ScrollBody, limits: Limits = DEFAULT_LIMITS) -> Scroll:
    refuse_shard_key(body.shard_key)
    order_by = None if body.order_by is None else parse_order_by(body.order_by)
    if order_by is not None and body.offset is not None:
        raise BadRequest("Wrong input: offset: can't be used with order_by; use order_by.start_from")
    return Scroll(
        limit=_limit("limit", body.limit, SCROLL_LIMIT_DEFAULT, limits),
        with_payload=parse_with_payload(body.with_payload, default=True),
        with_vector=parse_with_vector(body.with_vector, body.with_vectors),
        offset=None if body.offset is None else id_key(body.offset),
        filter=parse_filter(body.filter, limits),
        order_by=order_by,
    )


def parse_count(body: CountBody, limits: Limits = DEFAULT_LIMITS) -> Count:
    refuse_shard_key(body.shard_key)
    return Count(parse_filter(body.filter, limits), True if body.exact is None else body.exact)


def parse_facet(body: FacetBody, limits: Limits = DEFAULT_LIMITS) -> Facet:
    refuse_shard_key(body.shard_key)
    return Facet(
        parse_path(body.key),
        _limit("limit", body.limit, FACET_LIMIT_DEFAULT, limits),
        parse_filter(body.filter, limits),
        bool(body.exact),
    )


def parse_matrix(
    body: MatrixBody, vectors: Mapping[str, VectorParams], limits: Limits = DEFAULT_LIMITS
) -> Matrix:
    refuse_shard_key(body.shard_key)
    using = body.using or ""
    params_of(using, vectors)
    at_least("sample", body.sample, 2)
    # Every point of the sample is compared with every other.
    at_most("sample", body.sample, limits.matrix_sample_max)
    return Matrix(
        MATRIX_SAMPLE_DEFAULT if body.sample is None else body.sample,
        _limit("limit", body.limit, MATRIX_LIMIT_DEFAULT, limits),
        using,
        parse_filter(body.filter, limits),
    )


def _limit(field: str, given: int | None, default: int, limits: Limits) -> int:
    at_least(field, given, 1)
    at_most(field, given, limits.limit_max)
    return default if given is None else given


def id_in_path(text: str) -> IdKey:
    """The id in GET …/points/{id}, the only place where `12` in a text is a number."""
    return id_key(int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else text)
