"""A query as it is meant: the checked tree that parse_query makes of a body, ids not yet resolved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.api.checks import (
    DEFAULT_LIMITS,
    Limits,
    at_least,
    at_most,
    invalid,
    refuse,
    refuse_shard_key,
    show,
    within,
)
from core.api.config import VectorParams
from core.api.decode import refused_vector
from core.api.filters import parse_filter
from core.api.formulas import parse_defaults, parse_formula
from core.api.queries import (
    FeedbackInput,
    LookupBody,
    OrderByBody,
    PairBody,
    ParamsBody,
    PrefetchBody,
    QueryBatchBody,
    QueryBody,
    QueryGroupsBody,
    QueryObject,
    RecommendInput,
    SearchGroupsBody,
    VectorInput,
    WithLookupBody,
)
from core.api.selectors import VectorSelector, parse_with_payload, parse_with_vector
from core.api.vectors import F32, params_of, query_row
from core.datetimes import parse_datetime
from core.errors import BadRequest, NotSupported
from core.filters import Filter
from core.hashing import IdKey, id_key
from core.payload import Path, PayloadSelector, parse_path
from core.query.formula import Expression

Example = F32 | IdKey
"""A vector (d,), normalised for cosine, or the key of the point whose vector is meant."""
Vectors = Mapping[str, VectorParams]
Strategy = Literal["average_vector", "best_score", "sum_scores"]
LIMIT_DEFAULT = 10
GROUP_SIZE_DEFAULT = 3


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    example: Example


@dataclass(frozen=True, slots=True, eq=False)
class Mmr:
    """Nearest, then spread: candidates None means as many as the limit."""

    example: Example
    diversity: float = 0.5
    candidates: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recommend:
    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    strategy: Strategy


@dataclass(frozen=True, slots=True, eq=False)
class Discover:
    target: Example
    pairs: tuple[tuple[Example, Example], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    pairs: tuple[tuple[Example, Example], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    target: Example
    items: tuple[tuple[Example, float], ...]
    a: float
    b: float
    c: float


@dataclass(frozen=True, slots=True)
class OrderBy:
    """`start_from`, included: a number, or a datetime's microseconds."""

    path: Path
    descending: bool = False
    start_from: int | float | None = None


@dataclass(frozen=True, slots=True)
class Rrf:
    k: int = 2
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Dbsf:
    pass


@dataclass(frozen=True, slots=True)
class Sample:
    """Random points."""


@dataclass(frozen=True, slots=True)
class Formula:
    expression: Expression
    defaults: Mapping[str, object] = field(default_factory=dict)


VectorQuery = Nearest | Mmr | Recommend | Discover | Context | Feedback
Query = VectorQuery | OrderBy | Rrf | Dbsf | Sample | Formula


@dataclass(frozen=True, slots=True)
class Lookup:
    """Examples' ids live in another collection; `vector` None means the name in `using`."""

    collection: str
    vector: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One query over what its prefetches found, or over all points. `query` None: by id."""

    query: Query | None
    limit: int = LIMIT_DEFAULT
    offset: int = 0
    prefetch: tuple[Node, ...] = ()
    using: str = ""
    filter: Filter | None = None
    threshold: float | None = None
    ef: int | None = None
    exact: bool = False
    lookup: Lookup | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    node: Node
    with_payload: PayloadSelector
    with_vector: VectorSelector


@dataclass(frozen=True, slots=True)
class GroupLookup:
    """The record whose id is the group's comes along."""

    collection: str
    with_payload: PayloadSelector
    with_vector: VectorSelector


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """`search.node.limit` is the number of groups."""

    search: Search
    group_by: Path
    group_size: int
    lookup: GroupLookup | None = None


def parse_query(body: QueryBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS) -> Search:
    """Raises BadRequest, Unprocessable, NotSupported; ids are not looked up here."""
    refuse_shard_key(body.shard_key)
    if body.offset is not None:
        at_least("offset", body.offset, 0)
        at_most("offset", body.offset, limits.offset_max)
    return Search(
        node=_node(body, vectors, limits, depth=0, offset=body.offset or 0),
        with_payload=parse_with_payload(body.with_payload, default=False),
        with_vector=parse_with_vector(body.with_vector, body.with_vectors),
    )


def parse_query_batch(
    body: QueryBatchBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS
) -> tuple[Search, ...]:
    at_most("searches", len(body.searches), limits.batch_max)
    return tuple([parse_query(one, vectors, limits) for one in body.searches])


def parse_query_groups(body: QueryGroupsBody, vectors: Vectors, limits: Limits = DEFAULT_LIMITS) -> Groups:
    refuse_shard_key(body.shard_key)
    search = Search(
        node=_node(body, vectors, limits, depth=0),
        with_payload=parse_with_payload(body.with_payload, default=False),
        with_vector=parse_with_vector(body.with_vector, body.with_vectors),
    )
    return grouped(search, body, limits)


def grouped(search: Search, body: QueryGroupsBody | SearchGroupsBody, limits: Limits) -> Groups:
    """The search by groups, as the body asks for them."""
    if not body.group_by:
        raise invalid("group_by", "must not be empty")
    at_least("group_size", body.group_size, 1)
    at_most("group_size", body.group_size, limits.limit_max)
    if isinstance(search.node.query, OrderBy):
        raise BadRequest("Wrong input: query.order_by: groups have no order but their best hit's")
    return Groups(
        search,
        parse_path(body.group_by),
        GROUP_SIZE_DEFAULT if body.group_size is None else body.group_size,
        _group_lookup(body.with_lookup),
    )


def _group_lookup(given: str | WithLookupBody | None) -> GroupLookup | None:
    if given is None:
        return None
    if isinstance(given, str):
        given = WithLookupBody(given)
    return GroupLookup(
        given.collection,
        parse_with_payload(given.with_payload, default=True),
        parse_with_vector(given.with_vectors, given.with_vector),
    )


# -- the tree -----------------------------------------------------------------------------------------------


def _node(
    body: QueryBody | QueryGroupsBody | PrefetchBody,
    vectors: Vectors,
    limits: Limits,
    *,
    depth: int,
    offset: int = 0,
) -> Node:
    limit = body.limit
    if limit is None:
        limit = LIMIT_DEFAULT
    elif not 1 <= limit <= limits.limit_max:
        at_least("limit", limit, 1)
        at_most("limit", limit, limits.limit_max)
    using = body.using or ""
    prefetch = () if body.prefetch is None else _prefetches(body.prefetch, vectors, limits, depth)
    query = _query(body.query, using, vectors, limits)
    if body.score_threshold is not None:
        _check_threshold(query, body.score_threshold)
    if prefetch or query is None or not isinstance(query, (Nearest, Mmr)):
        _check_shape(query, prefetch, body.using)
    ef, exact = (None, False) if body.params is None else _params(body.params)
    return Node(
        query=query,
        limit=limit,
        offset=offset,
        prefetch=prefetch,
        using=using,
        filter=parse_filter(body.filter, limits),
        threshold=body.score_threshold,
        ef=ef,
        exact=exact,
        lookup=_lookup(body.lookup_from),
    )


def _prefetches(
    given: PrefetchBody | Sequence[PrefetchBody], vectors: Vectors, limits: Limits, depth: int
) -> tuple[Node, ...]:
    if depth >= limits.prefetch_depth_max:
        raise BadRequest(f"Wrong input: prefetch: nested over {limits.prefetch_depth_max} levels deep")
    several = (given,) if isinstance(given, PrefetchBody) else given
    at_most("prefetch", len(several), limits.prefetches_max)
    return tuple([_node(one, vectors, limits, depth=depth + 1) for one in several])


def _check_threshold(query: Query | None, threshold: float) -> None:
    if query is None:
        raise BadRequest("Wrong input: score_threshold: can't be used without a query")
    if isinstance(query, OrderBy):
        raise BadRequest("Wrong input: score_threshold: can't be used with order_by, which has no scores")
    _finite("score_threshold", threshold)


def _check_shape(query: Query | None, prefetch: tuple[Node, ...], using: str | None) -> None:
    if prefetch and query is None:
        raise BadRequest(
            "Wrong input: A query is needed to merge the prefetches. "
            "Can't have prefetches without defining a query."
        )
    if not isinstance(query, (Rrf, Dbsf, Formula)):
        return
    kind = "formula" if isinstance(query, Formula) else "fusion"
    if not prefetch:
        raise BadRequest(f"Wrong input: cannot perform {kind} without prefetches")
    if using and kind == "fusion":
        raise BadRequest("Wrong input: Fusion queries cannot be combined with the 'using' field.")
    if isinstance(query, Rrf) and query.weights is not None and len(query.weights) != len(prefetch):
        raise BadRequest(
            f"Wrong input: query.rrf.weights: {len(query.weights)} weights for {len(prefetch)} prefetches"
        )


def _params(body: ParamsBody) -> tuple[int | None, bool]:
    refuse("params.idf", body.idf, "sparse vectors' IDF is")
    at_least("params.hnsw_ef", body.hnsw_ef, 0)
    # 0 stands for the default, as older clients send it.
    ef = body.hnsw_ef or None
    return (None if ef is None else min(ef, 1 << 20)), bool(body.exact)


def _lookup(body: LookupBody | None) -> Lookup | None:
    if body is None:
        return None
    refuse_shard_key(body.shard_key, "lookup_from.shard_key")
    return Lookup(body.collection, body.vector)


# -- the kinds of query -------------------------------------------------------------------------------------


def _query(
    given: VectorInput | QueryObject | None, using: str, vectors: Vectors, limits: Limits
) -> Query | None:
    if given is None:
        return None
    if isinstance(given, list):
        return Nearest(query_row(given, params_of(using, vectors)))
    if isinstance(given, (int, str)):
        params_of(using, vectors)
        return Nearest(id_key(given))
    kinds = [kind for kind in _KINDS if getattr(given, kind) is not None]
    if len(kinds) != 1:
        _refuse_other_forms(given)
        if not kinds and given.context is None and given.mmr is None:
            raise BadRequest(f"Wrong input: query: expected a vector, an id, or one of {', '.join(_KINDS)}")
        raise BadRequest(
            f"Wrong input: query: expected one kind of query, got {' and '.join(kinds) or 'none'}"
        )
    return _of_kind(kinds[0], given, using, vectors, limits)


_KINDS = (
    "nearest", "recommend", "discover", "context", "order_by", "fusion", "rrf", "formula", "sample",
    "relevance_feedback",
)  # fmt: skip


def _refuse_other_forms(given: QueryObject) -> None:
    found = {name: getattr(given, name) for name in ("indices", "values", "text", "image", "object", "model")}
    form = refused_vector({name: value for name, value in found.items() if value is not None})
    if form is not None:
        raise NotSupported(f"query: {form}")


def _of_kind(kind: str, given: QueryObject, using: str, vectors: Vectors, limits: Limits) -> Query:
    if given.fusion is not None:
        return Rrf() if given.fusion == "rrf" else Dbsf()
    if given.rrf is not None:
        at_least("query.rrf.k", given.rrf.k, 1)
        return Rrf(2 if given.rrf.k is None else given.rrf.k, _weights(given.rrf.weights))
    if given.formula is not None:
        return Formula(parse_formula(given.formula, limits), parse_defaults(given.defaults))
    if given.sample is not None:
        return Sample()
    if given.order_by is not None:
        return parse_order_by(given.order_by, "query.order_by")
    examples = _Examples(params_of(using, vectors), limits)
    if given.nearest is not None:
        return _nearest(given, examples)
    if given.recommend is not None:
        return examples.recommend(given.recommend)
    if given.discover is not None:
        pairs = examples.pairs(given.discover.context, "query.discover.context")
        return Discover(examples.one(given.discover.target, "query.discover.target"), pairs)
    if given.context is not None:
        return Context(examples.pairs(given.context, "query.context"))
    assert given.relevance_feedback is not None, kind
    return examples.feedback(given.relevance_feedback)


def _nearest(given: QueryObject, examples: _Examples) -> Query:
    assert given.nearest is not None
    example = examples.one(given.nearest, "query.nearest")
    if given.mmr is None:
        return Nearest(example)
    within("query.mmr.diversity", given.mmr.diversity, 0.0, 1.0)
    within("query.mmr.candidates_limit", given.mmr.candidates_limit, 0, 16_384)
    return Mmr(
        example,
        0.5 if given.mmr.diversity is None else given.mmr.diversity,
        given.mmr.candidates_limit,
    )


class _Examples:
    """Vectors and ids that stand as examples for one named vector."""

    def __init__(self, params: VectorParams, limits: Limits) -> None:
        self._params, self._limits = params, limits

    def one(self, given: VectorInput, where: str) -> Example:
        return query_row(given, self._params, where) if isinstance(given, list) else id_key(given)

    def several(self, given: Sequence[VectorInput] | None, where: str) -> tuple[Example, ...]:
        examples = given or ()
        at_most(where, len(examples), self._limits.examples_max)
        return tuple([self.one(one, f"{where}[{i}]") for i, one in enumerate(examples)])

    def pairs(
        self, given: PairBody | Sequence[PairBody] | None, where: str
    ) -> tuple[tuple[Example, Example], ...]:
        pairs = () if given is None else (given,) if isinstance(given, PairBody) else given
        at_most(where, len(pairs), self._limits.examples_max)
        return tuple(
            [
                (
                    self.one(pair.positive, f"{where}[{i}].positive"),
                    self.one(pair.negative, f"{where}[{i}].negative"),
                )
                for i, pair in enumerate(pairs)
            ]
        )

    def recommend(self, given: RecommendInput, where: str = "query.recommend") -> Recommend:
        strategy: Strategy = given.strategy or "average_vector"
        positive = self.several(given.positive, f"{where}.positive")
        negative = self.several(given.negative, f"{where}.negative")
        if not positive and not negative:
            raise invalid(where, "at least one positive or negative example is needed")
        if not positive and strategy == "average_vector":
            raise BadRequest(
                f"Wrong input: {where}: at least one positive example is needed with average_vector"
            )
        return Recommend(positive, negative, strategy)

    def feedback(self, given: FeedbackInput) -> Feedback:
        where = "query.relevance_feedback"
        at_most(f"{where}.feedback", len(given.feedback), self._limits.examples_max)
        naive = given.strategy.naive
        if naive.b < 0:
            raise invalid(f"{where}.strategy.naive.b", f"value {naive.b} invalid, must be 0 or larger")
        for name, value in (("a", naive.a), ("b", naive.b), ("c", naive.c)):
            _finite(f"{where}.strategy.naive.{name}", value)
        items = [
            (
                self.one(item.example, f"{where}.feedback[{i}]"),
                _finite(f"{where}.feedback[{i}].score", item.score),
            )
            for i, item in enumerate(given.feedback)
        ]
        return Feedback(self.one(given.target, f"{where}.target"), tuple(items), naive.a, naive.b, naive.c)


def _weights(given: Sequence[float] | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    return tuple([_finite(f"query.rrf.weights[{i}]", weight) for i, weight in enumerate(given)])


_F32_MAX = 3.4028234663852886e38


def _finite(field_name: str, value: float) -> float:
    """JSON has no NaN; what overflows f32 is not finite to us."""
    if not abs(value) <= _F32_MAX:
        raise BadRequest(f"Wrong input: {field_name}: {show(value)} is not finite as a 32-bit float")
    return value


def parse_order_by(given: str | OrderByBody, where: str = "order_by") -> OrderBy:
    body = OrderByBody(given) if isinstance(given, str) else given
    start = body.start_from
    if isinstance(start, str):
        micros = parse_datetime(start)
        if micros is None:
            raise BadRequest(
                f"Wrong input: {where}.start_from: {show(start)} is no RFC 3339 datetime or number"
            )
        start = micros
    if isinstance(start, int) and abs(start) >= 1 << 64:
        start = math.copysign(float(1 << 64), start)
    return OrderBy(parse_path(body.key), body.direction == "desc", start)
