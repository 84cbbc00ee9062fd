"""Random collections and random requests for them, by seed, within what local mode and the server agree on.

Left out, because qdrant-client's local mode follows a later server there: lists that hold null under is_null,
text matches inside a word, and text matches of several words other than a phrase. Raw examples have unit
length where the distance is cosine: the server normalises them before it averages, local mode does not.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qdrant_client import models as m

WORDS = ("red", "green", "blue", "grey", "black")
TEXT = ("swift", "brown", "fox", "jumps", "over", "lazy", "dog", "quietly")
DISTANCES = (m.Distance.COSINE, m.Distance.DOT, m.Distance.EUCLID, m.Distance.MANHATTAN)
INDEXES: dict[str, Any] = {
    "word": m.PayloadSchemaType.KEYWORD,
    "count": m.PayloadSchemaType.INTEGER,
    "weight": m.PayloadSchemaType.FLOAT,
    "flag": m.PayloadSchemaType.BOOL,
    "when": m.PayloadSchemaType.DATETIME,
    "owner": m.PayloadSchemaType.UUID,
    "place": m.PayloadSchemaType.GEO,
    "deep.inner": m.PayloadSchemaType.INTEGER,
    "items[].size": m.PayloadSchemaType.INTEGER,
}
OWNERS = tuple(str(uuid.UUID(int=i * 7919 + 1)) for i in range(5))


@dataclass(frozen=True)
class World:
    """One collection: its configuration, its points, and a source of randomness that the seed fixes."""

    seed: int
    vectors: Any
    sizes: dict[str, int]
    indexed: bool
    shards: int
    points: list[m.PointStruct] = field(default_factory=list)

    @property
    def ids(self) -> list[Any]:
        return [point.id for point in self.points]

    @property
    def names(self) -> list[str]:
        return list(self.sizes)


def make_world(seed: int, points: int = 150) -> World:
    rng = random.Random(seed)
    distance = DISTANCES[seed % 4]
    vectors: Any = m.VectorParams(size=8, distance=distance)
    sizes = {"": 8}
    if seed % 3 == 1:
        sizes = {"image": 8, "text": 5}
        other = DISTANCES[(seed + 1) % 4]
        vectors = {
            "image": m.VectorParams(size=8, distance=distance),
            "text": m.VectorParams(size=5, distance=other),
        }
    world = World(seed, vectors, sizes, indexed=seed % 2 == 1, shards=1 + seed % 3)
    ids = [i * 3 for i in range(points * 2 // 3)]
    uuids = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(points - len(ids))]
    for point_id in [*ids, *uuids]:
        world.points.append(
            m.PointStruct(id=point_id, vector=any_vectors(world, rng), payload=any_payload(rng))
        )
    rng.shuffle(world.points)
    return world


def vector(rng: random.Random, size: int) -> list[float]:
    return [float(np.float32(rng.gauss(0, 1))) for _ in range(size)]


def distance(world: World, name: str) -> m.Distance:
    params = world.vectors[name] if isinstance(world.vectors, dict) else world.vectors
    found: m.Distance = params.distance
    return found


def any_vectors(world: World, rng: random.Random) -> Any:
    if "" in world.sizes:
        return vector(rng, world.sizes[""])
    names = [name for name in world.sizes if rng.random() < 0.85] or world.names[:1]
    return {name: vector(rng, world.sizes[name]) for name in names}


def any_payload(rng: random.Random) -> dict[str, Any]:
    """Some of many fields; values of several types under one key now and then."""
    makers: dict[str, Any] = {
        "word": lambda: rng.choice([rng.choice(WORDS), rng.sample(WORDS, rng.randint(0, 3)), None, 5]),
        "count": lambda: rng.choice([rng.randint(-5, 20), [rng.randint(0, 9) for _ in range(3)], 2.5, True]),
        "weight": lambda: rng.choice([round(rng.uniform(-2, 2), 3), rng.randint(0, 2), "heavy", [0.5, 1.5]]),
        "flag": lambda: rng.choice([True, False, [True, False], 1, "true"]),
        "when": lambda: rng.choice(
            [any_time(rng), any_time(rng), [any_time(rng), any_time(rng)], "never", 3]
        ),
        "owner": lambda: rng.choice([rng.choice(OWNERS), list(OWNERS[:2]), "nobody"]),
        "place": lambda: rng.choice(
            [any_place(rng), any_place(rng), [any_place(rng), any_place(rng)], "here"]
        ),
        "story": lambda: " ".join(rng.choices(TEXT, k=rng.randint(1, 5))),
        "deep": lambda: {
            "inner": rng.randint(0, 5),
            "list": rng.choices(range(4), k=rng.randint(0, 3)),
        },
        "items": lambda: [
            {"kind": rng.choice(WORDS), "size": rng.randint(0, 5)} for _ in range(rng.randint(0, 3))
        ],
        "dotted.key": lambda: rng.randint(0, 3),
        "nothing": lambda: rng.choice([None, [], {}]),
        "serial": lambda: rng.randint(0, 10**6),
    }
    return {key: make() for key, make in makers.items() if rng.random() < 0.7}


def any_time(rng: random.Random) -> str:
    day, hour = rng.randint(1, 28), rng.randint(0, 23)
    return rng.choice(
        [
            f"2024-03-{day:02}T{hour:02}:15:00Z",
            f"2024-03-{day:02}T{hour:02}:15:00+02:00",
            f"2024-03-{day:02} {hour:02}:15:00",
            f"2024-03-{day:02}",
            f"2024-03-{day:02}T{hour:02}:15:00.123456Z",
        ]
    )


def any_place(rng: random.Random) -> dict[str, float]:
    return {"lat": round(rng.uniform(-60, 60), 4), "lon": round(rng.uniform(-179, 179), 4)}


def any_filter(world: World, rng: random.Random, depth: int = 0) -> m.Filter | None:
    """None in a third of the cases at the top."""
    if depth == 0 and rng.random() < 0.33:
        return None

    def some() -> list[Any]:
        return [any_condition(world, rng, depth) for _ in range(rng.randint(1, 2))]

    clauses: dict[str, Any] = {}
    if rng.random() < 0.6:
        clauses["must"] = some()
    if rng.random() < 0.4:
        clauses["should"] = some() + some()
    if rng.random() < 0.3:
        clauses["must_not"] = some()
    if rng.random() < 0.15:
        conditions = some() + some()
        clauses["min_should"] = m.MinShould(conditions=conditions, min_count=rng.randint(1, len(conditions)))
    return m.Filter(**clauses)


def any_condition(world: World, rng: random.Random, depth: int) -> Any:
    def key(name: str, **test: Any) -> m.FieldCondition:
        return m.FieldCondition(key=name, **test)

    low = rng.randint(-3, 10)
    bounds: dict[str, Any] = rng.choice(
        [{"gte": low}, {"lt": low}, {"gt": low, "lte": low + 5}, {"gte": low + 0.5}]
    )
    centre = m.GeoPoint(**any_place(rng))
    makers = [
        lambda: key("word", match=m.MatchValue(value=rng.choice(WORDS))),
        lambda: key("word", match=m.MatchAny(any=rng.sample(WORDS, rng.randint(1, 3)))),
        lambda: key("word", match=m.MatchExcept(**{"except": rng.sample(WORDS, 2)})),
        lambda: key("word", match=m.MatchValue(value=5)),
        lambda: key("count", match=m.MatchValue(value=rng.randint(-5, 20))),
        lambda: key("count", match=m.MatchAny(any=[1, 2, 3, 4, 5])),
        lambda: key("count", match=m.MatchExcept(**{"except": [1, 2, 3]})),
        lambda: key("flag", match=m.MatchValue(value=rng.choice([True, False]))),
        lambda: key("owner", match=m.MatchValue(value=rng.choice(OWNERS))),
        lambda: key("owner", match=m.MatchAny(any=list(OWNERS[1:3]))),
        lambda: key("story", match=m.MatchText(text=rng.choice(TEXT))),
        lambda: key("story", match=m.MatchPhrase(phrase=" ".join(rng.choices(TEXT, k=2)))),
        lambda: key("count", range=m.Range(**bounds)),
        lambda: key("weight", range=m.Range(**{k: v / 5 for k, v in bounds.items()})),
        lambda: key("when", range=m.DatetimeRange(gte=f"2024-03-{max(1, low):02}T00:00:00Z")),
        lambda: key("when", range=m.DatetimeRange(lt=f"2024-03-{low + 4:02}T06:00:00+03:00")),
        lambda: key("place", geo_radius=m.GeoRadius(center=centre, radius=rng.uniform(1e6, 6e6))),
        lambda: key("place", geo_bounding_box=_box(rng)),
        lambda: key("place", geo_polygon=m.GeoPolygon(exterior=_triangle(rng))),
        lambda: key("word", values_count=m.ValuesCount(gte=rng.randint(0, 2))),
        lambda: key("items", values_count=m.ValuesCount(lt=2)),
        lambda: key("nothing", is_empty=rng.choice([True, False])),
        lambda: key("nothing", is_null=rng.choice([True, False])),
        lambda: m.IsEmptyCondition(is_empty=m.PayloadField(key=rng.choice(["word", "nothing", "none"]))),
        lambda: m.IsNullCondition(is_null=m.PayloadField(key=rng.choice(["word", "nothing", "none"]))),
        lambda: m.HasIdCondition(has_id=rng.sample(world.ids, 20)),
        lambda: m.HasVectorCondition(has_vector=rng.choice(world.names)),
        lambda: key("deep.inner", range=m.Range(**{k: v / 2 for k, v in bounds.items()})),
        lambda: key("deep.list", match=m.MatchValue(value=rng.randint(0, 3))),
        lambda: key("deep.list[0]", match=m.MatchValue(value=rng.randint(0, 3))),
        lambda: key("items[].size", match=m.MatchValue(value=rng.randint(0, 5))),
        lambda: key('"dotted.key"', match=m.MatchValue(value=rng.randint(0, 3))),
        lambda: key("items[].kind", match=m.MatchAny(any=["red", "blue"])),
        lambda: m.NestedCondition(nested=m.Nested(key=rng.choice(["items", "items[]"]), filter=_nested(rng))),
    ]
    if depth < 2 and rng.random() < 0.15:
        return any_filter(world, rng, depth + 1)
    return rng.choice(makers)()


def _box(rng: random.Random) -> m.GeoBoundingBox:
    a, b = any_place(rng), any_place(rng)
    return m.GeoBoundingBox(
        top_left=m.GeoPoint(lat=max(a["lat"], b["lat"]), lon=a["lon"]),
        bottom_right=m.GeoPoint(lat=min(a["lat"], b["lat"]), lon=b["lon"]),
    )


def _triangle(rng: random.Random) -> m.GeoLineString:
    lat, lon, side = rng.uniform(-40, 0), rng.uniform(-100, 0), rng.uniform(20, 60)
    corners = [(lat, lon), (lat + side, lon + 1), (lat + 2, lon + side), (lat, lon)]
    return m.GeoLineString(points=[m.GeoPoint(lat=a, lon=o) for a, o in corners])


def _nested(rng: random.Random) -> m.Filter:
    return m.Filter(
        must=[
            m.FieldCondition(key="kind", match=m.MatchValue(value=rng.choice(WORDS))),
            m.FieldCondition(key="size", range=m.Range(gte=rng.randint(0, 3))),
        ]
    )
