"""Query requests as they come: universal queries, their prefetches, batches, groups, and the old searches."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from core.api.filters import FilterBody
from core.api.selectors import WithPayload, WithVector
from core.hashing import PointId

VectorInput = list[float] | PointId
"""A vector, or the id of the point that has it."""


class MmrBody(Struct, frozen=True):
    diversity: float | None = None
    candidates_limit: int | None = None


class RecommendInput(Struct, frozen=True):
    positive: list[VectorInput] | None = None
    negative: list[VectorInput] | None = None
    strategy: Literal["average_vector", "best_score", "sum_scores"] | None = None


class PairBody(Struct, frozen=True):
    positive: VectorInput
    negative: VectorInput


class DiscoverInput(Struct, frozen=True):
    target: VectorInput
    context: PairBody | list[PairBody] | None = None


class OrderByBody(Struct, frozen=True):
    key: str
    direction: Literal["asc", "desc"] | None = None
    start_from: int | float | str | None = None


class RrfBody(Struct, frozen=True):
    k: int | None = None
    weights: list[float] | None = None


class FeedbackItemBody(Struct, frozen=True):
    example: VectorInput
    score: float


class NaiveBody(Struct, frozen=True):
    a: float
    b: float
    c: float


class StrategyBody(Struct, frozen=True):
    naive: NaiveBody


class FeedbackInput(Struct, frozen=True):
    target: VectorInput
    feedback: list[FeedbackItemBody]
    strategy: StrategyBody


class QueryObject(Struct, frozen=True):
    """Exactly one kind is set; `mmr` goes with nearest, `defaults` with formula. The last six are refused."""

    nearest: VectorInput | None = None
    mmr: MmrBody | None = None
    recommend: RecommendInput | None = None
    discover: DiscoverInput | None = None
    context: PairBody | list[PairBody] | None = None
    order_by: str | OrderByBody | None = None
    fusion: Literal["rrf", "dbsf"] | None = None
    rrf: RrfBody | None = None
    formula: Any = None
    defaults: dict[str, Any] | None = None
    sample: Literal["random"] | None = None
    relevance_feedback: FeedbackInput | None = None
    indices: Any = None
    values: Any = None
    text: Any = None
    image: Any = None
    object: Any = None
    model: Any = None


class ParamsBody(Struct, frozen=True):
    """`quantization`, `acorn` and `indexed_only` say nothing to Shoal."""

    hnsw_ef: int | None = None
    exact: bool | None = None
    idf: Any = None


class LookupBody(Struct, frozen=True):
    collection: str
    vector: str | None = None
    shard_key: Any = None


class PrefetchBody(Struct, frozen=True):
    prefetch: PrefetchBody | list[PrefetchBody] | None = None
    query: VectorInput | QueryObject | None = None
    using: str | None = None
    filter: FilterBody | None = None
    params: ParamsBody | None = None
    score_threshold: float | None = None
    limit: int | None = None
    lookup_from: LookupBody | None = None


class QueryBody(Struct, frozen=True):
    prefetch: PrefetchBody | list[PrefetchBody] | None = None
    query: VectorInput | QueryObject | None = None
    using: str | None = None
    filter: FilterBody | None = None
    params: ParamsBody | None = None
    score_threshold: float | None = None
    limit: int | None = None
    offset: int | None = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    with_payload: WithPayload = None
    lookup_from: LookupBody | None = None
    shard_key: Any = None


class QueryBatchBody(Struct, frozen=True):
    searches: list[QueryBody]


class WithLookupBody(Struct, frozen=True):
    collection: str
    with_payload: WithPayload = None
    with_vector: WithVector = None
    with_vectors: WithVector = None


class QueryGroupsBody(Struct, frozen=True):
    group_by: str
    group_size: int | None = None
    prefetch: PrefetchBody | list[PrefetchBody] | None = None
    query: VectorInput | QueryObject | None = None
    using: str | None = None
    filter: FilterBody | None = None
    params: ParamsBody | None = None
    score_threshold: float | None = None
    limit: int | None = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    with_payload: WithPayload = None
    lookup_from: LookupBody | None = None
    with_lookup: str | WithLookupBody | None = None
    shard_key: Any = None


# -- the searches of older clients --------------------------------------------------------------------------


class NamedVectorBody(Struct, frozen=True):
    name: str
    vector: list[float]


class SearchBody(Struct, frozen=True):
    vector: list[float] | NamedVectorBody
    filter: FilterBody | None = None
    params: ParamsBody | None = None
    limit: int | None = None
    top: int | None = None
    offset: int | None = None
    with_payload: WithPayload = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    score_threshold: float | None = None
    shard_key: Any = None


class SearchBatchBody(Struct, frozen=True):
    searches: list[SearchBody]


class SearchGroupsBody(Struct, frozen=True):
    vector: list[float] | NamedVectorBody
    group_by: str
    group_size: int | None = None
    limit: int | None = None
    filter: FilterBody | None = None
    params: ParamsBody | None = None
    with_payload: WithPayload = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    score_threshold: float | None = None
    with_lookup: str | WithLookupBody | None = None
    shard_key: Any = None


class UsingBody(Struct, frozen=True):
    name: str


class RecommendBody(Struct, frozen=True):
    positive: list[VectorInput] | None = None
    negative: list[VectorInput] | None = None
    strategy: Literal["average_vector", "best_score", "sum_scores"] | None = None
    filter: FilterBody | None = None
    params: ParamsBody | None = None
    limit: int | None = None
    top: int | None = None
    offset: int | None = None
    with_payload: WithPayload = None
    with_vector: WithVector = None
    with_vectors: WithVector = None
    score_threshold: float | None = None
    using: str | UsingBody | None = None
    lookup_from: LookupBody | None = None
    shard_key: Any = None


class RecommendBatchBody(Struct, frozen=True):
    searches: list[RecommendBody]
