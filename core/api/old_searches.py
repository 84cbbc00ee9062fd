"""The searches of older clients, read as the universal queries that they are."""

from __future__ import annotations

from core.api.checks import DEFAULT_LIMITS, Limits, at_most
from core.api.queries import (
    NamedVectorBody,
    QueryBody,
    QueryObject,
    RecommendBatchBody,
    RecommendBody,
    RecommendInput,
    SearchBatchBody,
    SearchBody,
    SearchGroupsBody,
    UsingBody,
)
from core.api.searches import Groups, Search, Vectors, grouped, parse_query


def parse_search(body: SearchBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS) -> Search:
    vector, using = _named(body.vector)
    return parse_query(
        QueryBody(
            query=vector,
            using=using,
            filter=body.filter,
            params=body.params,
            score_threshold=body.score_threshold,
            limit=body.top if body.limit is None else body.limit,
            offset=body.offset,
            with_payload=body.with_payload,
            with_vector=body.with_vector,
            with_vectors=body.with_vectors,
            shard_key=body.shard_key,
        ),
        vectors,
        limits,
    )


def parse_search_batch(
    body: SearchBatchBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS
) -> tuple[Search, ...]:
    at_most("searches", len(body.searches), limits.batch_max)
    return tuple([parse_search(one, vectors, limits) for one in body.searches])


def parse_search_groups(body: SearchGroupsBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS) -> Groups:
    search = parse_search(
        SearchBody(
            vector=body.vector,
            filter=body.filter,
            params=body.params,
            limit=body.limit,
            with_payload=body.with_payload,
            with_vector=body.with_vector,
            with_vectors=body.with_vectors,
            score_threshold=body.score_threshold,
            shard_key=body.shard_key,
        ),
        vectors,
        limits,
    )
    return grouped(search, body, limits)


def parse_recommend(body: RecommendBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS) -> Search:
    using = body.using.name if isinstance(body.using, UsingBody) else body.using
    given = RecommendInput(body.positive, body.negative, body.strategy)
    return parse_query(
        QueryBody(
            query=QueryObject(recommend=given),
            using=using,
            filter=body.filter,
            params=body.params,
            score_threshold=body.score_threshold,
            limit=body.top if body.limit is None else body.limit,
            offset=body.offset,
            with_payload=body.with_payload,
            with_vector=body.with_vector,
            with_vectors=body.with_vectors,
            lookup_from=body.lookup_from,
            shard_key=body.shard_key,
        ),
        vectors,
        limits,
    )


def parse_recommend_batch(
    body: RecommendBatchBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS
) -> tuple[Search, ...]:
    at_most("searches", len(body.searches), limits.batch_max)
    return tuple([parse_recommend(one, vectors, limits) for one in body.searches])


def _named(given: list[float] | NamedVectorBody) -> tuple[list[float], str | None]:
    return (given, None) if isinstance(given, list) else (given.vector, given.name)
