"""Random queries of every kind for a random world."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from qdrant_client import models as m

from tests.compat.worlds import World, any_filter, distance, vector


def example(world: World, rng: random.Random, name: str) -> Any:
    """A vector, or the id of a point that has it."""
    if rng.random() < 0.5:
        raw = np.array(vector(rng, world.sizes[name]), dtype=np.float32)
        unit = distance(world, name) == m.Distance.COSINE
        found: list[float] = (raw / np.linalg.norm(raw) if unit else raw).tolist()
        return found
    return rng.choice(having(world, name))


def having(world: World, name: str) -> list[Any]:
    """The ids of the points that have the vector."""
    if name == "":
        return world.ids
    return [p.id for p in world.points if isinstance(p.vector, dict) and name in p.vector]


def using(name: str) -> str | None:
    return name or None


def selectors(rng: random.Random) -> dict[str, Any]:
    without = m.PayloadSelectorExclude(exclude=["story", "deep.inner"])
    return {
        "with_payload": rng.choice([True, False, ["word", "deep.inner"], ["items[].kind"], without]),
        "with_vectors": rng.choice([True, False]),
    }


def nearest(world: World, rng: random.Random, name: str) -> Any:
    return example(world, rng, name)


def recommend(world: World, rng: random.Random, name: str) -> m.RecommendQuery:
    strategy = rng.choice([None, *m.RecommendStrategy])
    positive = [example(world, rng, name) for _ in range(rng.randint(1, 3))]
    negative = [example(world, rng, name) for _ in range(rng.randint(0, 2))]
    return m.RecommendQuery(
        recommend=m.RecommendInput(positive=positive, negative=negative, strategy=strategy)
    )


def pairs(world: World, rng: random.Random, name: str, at_least: int) -> list[m.ContextPair]:
    return [
        m.ContextPair(positive=example(world, rng, name), negative=example(world, rng, name))
        for _ in range(rng.randint(at_least, 3))
    ]


def discover(world: World, rng: random.Random, name: str) -> m.DiscoverQuery:
    context = pairs(world, rng, name, 1)
    return m.DiscoverQuery(discover=m.DiscoverInput(target=example(world, rng, name), context=context))


def context(world: World, rng: random.Random, name: str) -> m.ContextQuery:
    return m.ContextQuery(context=pairs(world, rng, name, 1))


def feedback(world: World, rng: random.Random, name: str) -> m.RelevanceFeedbackQuery:
    items = [
        m.FeedbackItem(example=example(world, rng, name), score=round(rng.random(), 3))
        for _ in range(rng.randint(1, 3))
    ]
    strategy = m.NaiveFeedbackStrategy(naive=m.NaiveFeedbackStrategyParams(a=0.4, b=0.6, c=0.8))
    return m.RelevanceFeedbackQuery(
        relevance_feedback=m.RelevanceFeedbackInput(
            target=example(world, rng, name), feedback=items, strategy=strategy
        )
    )


def order_by(world: World, rng: random.Random, name: str) -> m.OrderByQuery:
    return m.OrderByQuery(order_by=any_order(rng))


def any_order(rng: random.Random) -> m.OrderBy:
    key = rng.choice(["serial", "count", "weight", "when"])
    start: Any = None
    if rng.random() < 0.4:
        start = "2024-03-11T00:00:00Z" if key == "when" else rng.randint(0, 5)
    return m.OrderBy(key=key, direction=rng.choice([None, *m.Direction]), start_from=start)


def mmr(world: World, rng: random.Random, name: str) -> m.NearestQuery:
    return m.NearestQuery(
        nearest=example(world, rng, name),
        mmr=m.Mmr(diversity=rng.choice([None, 0.0, 0.3, 0.9]), candidates_limit=rng.choice([None, 20, 40])),
    )


KINDS: dict[str, Callable[[World, random.Random, str], Any]] = {
    "nearest": nearest,
    "recommend": recommend,
    "discover": discover,
    "context": context,
    "feedback": feedback,
    "order_by": order_by,
    "mmr": mmr,
    "none": lambda world, rng, name: None,
}


def any_query(world: World, rng: random.Random, kind: str) -> dict[str, Any]:
    """Arguments of query_points, without prefetches."""
    name = rng.choice(world.names)
    return {
        "query": KINDS[kind](world, rng, name),
        "using": None if kind in ("order_by", "none") else using(name),
        "query_filter": any_filter(world, rng),
        "limit": rng.choice([1, 5, 10, 30]),
        # MMR with an offset is not defined by any document.
        "offset": 0 if kind == "mmr" else rng.choice([0, 0, 3]),
        **selectors(rng),
    }


def any_prefetch(world: World, rng: random.Random, depth: int = 0) -> m.Prefetch:
    kind = rng.choice(["nearest", "recommend", "discover", "none"])
    name = rng.choice(world.names)
    inner = None
    if depth < 1 and kind != "none" and rng.random() < 0.3:
        inner = [any_prefetch(world, rng, depth + 1) for _ in range(rng.randint(1, 2))]
    return m.Prefetch(
        query=KINDS[kind](world, rng, name),
        using=None if kind == "none" else using(name),
        filter=any_filter(world, rng),
        limit=rng.choice([5, 20, 40]),
        prefetch=inner,
    )


def fusion(world: World, rng: random.Random, count: int) -> Any:
    return rng.choice(
        [
            m.FusionQuery(fusion=m.Fusion.RRF),
            m.FusionQuery(fusion=m.Fusion.DBSF),
            m.RrfQuery(rrf=m.Rrf(k=rng.choice([1, 5, 60]))),
            m.RrfQuery(rrf=m.Rrf(k=2, weights=[rng.choice([0.5, 1.0, 3.0]) for _ in range(count)])),
        ]
    )


def formula(world: World, rng: random.Random, count: int) -> m.FormulaQuery:
    return m.FormulaQuery(
        formula=any_expression(rng, 0),
        defaults={"serial": 3.0, "$score": 0.25, "$score[0]": 0.5, "deep.inner": 1.0, "weight": 0.1},
    )


def any_expression(rng: random.Random, depth: int) -> Any:
    """Nothing that can leave f32: that is a test of its own."""
    condition = m.FieldCondition(key="word", match=m.MatchValue(value="red"))
    leaves: list[Any] = [0.5, 2.0, "$score", "$score[0]", condition, "deep.inner"]
    if depth > 1 or rng.random() < 0.3:
        return rng.choice(leaves)

    def inner() -> Any:
        return any_expression(rng, depth + 1)

    def over_three() -> Any:
        return m.SumExpression(sum=[3.0, m.AbsExpression(abs=inner())])

    decay = m.DecayParamsExpression(x=inner(), target=1.0, scale=2.0, midpoint=0.4)
    makers = [
        lambda: m.SumExpression(sum=[inner(), inner()]),
        lambda: m.MultExpression(mult=[inner(), inner()]),
        lambda: m.NegExpression(neg=inner()),
        lambda: m.AbsExpression(abs=inner()),
        lambda: m.DivExpression(div=m.DivParams(left=inner(), right=over_three())),
        lambda: m.SqrtExpression(sqrt=m.AbsExpression(abs=inner())),
        lambda: m.LinDecayExpression(lin_decay=decay),
        lambda: m.ExpDecayExpression(exp_decay=decay),
        lambda: m.GaussDecayExpression(gauss_decay=decay),
    ]
    return rng.choice(makers)()
