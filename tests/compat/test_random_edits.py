"""Random edits of random collections leave the points that qdrant-client's local mode has then."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("qdrant_client")

from qdrant_client import models as m

from tests.compat.comparing import Pair
from tests.compat.worlds import World, any_filter, any_payload, any_vectors, make_world, vector

pytestmark = [pytest.mark.compat, pytest.mark.timeout(300)]

SEEDS = range(20, 32)
EDITS = 40
KEYS = ["deep", "deep.inner", "items[0]", "items[].size", "deep.list", "new.far.away", '"dotted.key"', "word"]


@pytest.mark.parametrize("seed", SEEDS)
def test_edits_one_by_one(seed: int, make_pair: Callable[..., Pair]) -> None:
    world = make_world(seed, points=60)
    pair = make_pair(world)
    rng = random.Random(f"{seed} edits")
    for _ in range(EDITS):
        method, arguments = any_edit(world, rng)
        told = f"seed {seed}: {method}({arguments})"
        _apply(pair, method, arguments, told)
        _must_be_alike(pair, told)


@pytest.mark.parametrize("seed", SEEDS)
def test_edits_in_batches(seed: int, make_pair: Callable[..., Pair]) -> None:
    world = make_world(seed, points=60)
    pair = make_pair(world)
    rng = random.Random(f"{seed} batches")
    for _ in range(8):
        operations = [any_operation(world, rng) for _ in range(rng.randint(1, 6))]
        _apply(pair, "batch_update_points", {"update_operations": operations}, f"seed {seed}: {operations}")
        _must_be_alike(pair, f"seed {seed}: {operations}")


def _apply(pair: Pair, method: str, arguments: dict[str, Any], told: str) -> None:
    local, remote = pair.both(method, wait=True, **arguments)
    results = zip(local, remote, strict=True) if isinstance(local, list) else [(local, remote)]
    assert all(b.status == m.UpdateStatus.COMPLETED for _, b in results), told


def _must_be_alike(pair: Pair, told: str) -> None:
    try:
        pair.compare("scroll", limit=500, with_payload=True, with_vectors=True)
        pair.compare("count", exact=True)
    except AssertionError as error:
        raise AssertionError(f"after {told}\n{error}") from error


def _some_ids(world: World, rng: random.Random) -> list[Any]:
    return rng.sample(world.ids[:40], rng.randint(1, 5))  # the first 40 are never deleted


def _targets(world: World, rng: random.Random) -> Any:
    """Ids that exist, or a filter."""
    return _some_ids(world, rng) if rng.random() < 0.6 else m.Filter(must=[_narrow(world, rng)])


def _narrow(world: World, rng: random.Random) -> Any:
    return any_filter(world, rng, depth=1) or m.Filter()


def _point(world: World, rng: random.Random) -> m.PointStruct:
    return m.PointStruct(
        id=rng.choice([rng.choice(world.ids), rng.randint(10**6, 10**6 + 20)]),
        vector=any_vectors(world, rng),
        payload=rng.choice([any_payload(rng), None, {}]),
    )


def _points(world: World, rng: random.Random) -> list[m.PointStruct]:
    return list({p.id: p for p in (_point(world, rng) for _ in range(rng.randint(1, 5)))}.values())


def any_edit(world: World, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A method and its arguments."""
    name = rng.choice(world.names)
    vectors: Any = vector(rng, world.sizes[name])
    update = m.PointVectors(id=rng.choice(world.ids[:40]), vector={name: vectors} if name else vectors)
    last_two = m.Filter(must=[m.HasIdCondition(has_id=world.ids[55:57])])
    doomed = rng.choice([rng.sample(world.ids[40:], 1), last_two])
    makers: list[Callable[[], tuple[str, dict[str, Any]]]] = [
        lambda: ("upsert", {"points": _points(world, rng)}),
        lambda: ("upsert", {"points": _points(world, rng), "update_mode": rng.choice([*m.UpdateMode])}),
        lambda: ("upsert", {"points": _columns(world, rng)}),
        lambda: ("update_vectors", {"points": [update]}),
        lambda: ("delete_vectors", {"vectors": [name], "points": _targets(world, rng)}),
        lambda: ("set_payload", {"payload": any_payload(rng), "points": _targets(world, rng)}),
        lambda: ("set_payload", _set_at_key(world, rng)),
        lambda: ("overwrite_payload", {"payload": any_payload(rng), "points": _targets(world, rng)}),
        lambda: ("delete_payload", {"keys": rng.sample(KEYS, 2), "points": _targets(world, rng)}),
        lambda: ("clear_payload", {"points_selector": _some_ids(world, rng)}),
        lambda: ("delete", {"points_selector": doomed}),
    ]
    return rng.choice(makers)()


def _set_at_key(world: World, rng: random.Random) -> dict[str, Any]:
    payload = {"inner": rng.randint(0, 9), "extra": rng.choice(["x", [1], {"y": 1}])}
    return {"payload": payload, "key": rng.choice(KEYS), "points": _targets(world, rng)}


def _columns(world: World, rng: random.Random) -> m.Batch:
    points = _points(world, rng)
    vectors: Any = [p.vector for p in points]
    if "" not in world.sizes:
        name = rng.choice(world.names)
        vectors = {name: [vector(rng, world.sizes[name]) for _ in points]}
    return m.Batch(ids=[p.id for p in points], vectors=vectors, payloads=[p.payload or {} for p in points])


def any_operation(world: World, rng: random.Random) -> Any:
    """One operation of points/batch. Targets by ids: filters are tested one by one."""
    name = rng.choice(world.names)
    vectors: Any = vector(rng, world.sizes[name])
    update = m.PointVectors(id=rng.choice(world.ids[:40]), vector={name: vectors} if name else vectors)
    ids = _some_ids(world, rng)
    makers: list[Callable[[], Any]] = [
        lambda: m.UpsertOperation(upsert=m.PointsList(points=_points(world, rng))),
        lambda: m.DeleteOperation(delete=m.PointIdsList(points=rng.sample(world.ids[40:], 1))),
        lambda: m.SetPayloadOperation(set_payload=m.SetPayload(payload=any_payload(rng), points=ids)),
        lambda: m.OverwritePayloadOperation(
            overwrite_payload=m.SetPayload(payload=any_payload(rng), points=ids)
        ),
        lambda: m.DeletePayloadOperation(delete_payload=m.DeletePayload(keys=["word", "deep"], points=ids)),
        lambda: m.ClearPayloadOperation(clear_payload=m.PointIdsList(points=ids)),
        lambda: m.UpdateVectorsOperation(update_vectors=m.UpdateVectors(points=[update])),
        lambda: m.DeleteVectorsOperation(delete_vectors=m.DeleteVectors(points=ids, vector=[name])),
    ]
    return rng.choice(makers)()
