"""What a filter means, written down once more and as plainly as can be: JSON filters over JSON payloads.

It shares no code with core/filters.py (but the hash behind `slice`), so that the two can be compared on
random points and filters, which are made here, too: reproducible by the seed of their `random.Random`.
"""

from __future__ import annotations

import math
import random
import unicodedata
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from core.hashing import id_key
from core.siphash import slice_of

Json = Any
TextIndexes = dict[str, dict[str, Any]]
"""Path → params of its text index."""


@dataclass(frozen=True)
class Point:
    id: int | str
    payload: dict[str, Json]
    vectors: frozenset[str] = field(default_factory=frozenset)


def holds(filter_: dict[str, Json], point: Point, texts: TextIndexes | None = None) -> bool:
    return _filter(filter_, point.payload, point, "", texts or {})


def _filter(
    filter_: dict[str, Json], payload: Json, point: Point | None, base: str, texts: TextIndexes
) -> bool:
    def truth(clause: str) -> list[bool]:
        given = filter_.get(clause)
        conditions = [] if given is None else given if isinstance(given, list) else [given]
        return [_condition(c, payload, point, base, texts) for c in conditions]

    must, must_not, should = truth("must"), truth("must_not"), truth("should")
    if False in must or True in must_not or (should and True not in should):
        return False
    least = filter_.get("min_should")
    if least is None:
        return True
    count = sum(_condition(c, payload, point, base, texts) for c in least["conditions"])
    return bool(count >= least["min_count"])


def _condition(c: dict[str, Json], payload: Json, point: Point | None, base: str, texts: TextIndexes) -> bool:
    """`point` is None inside a nested filter, where nothing about the point itself holds."""
    if c.get("key") is not None:
        return _field(c, payload, base, texts)
    if "is_empty" in c:
        return _is_empty(_select(payload, c["is_empty"]["key"]))
    if "is_null" in c:
        return None in _select(payload, c["is_null"]["key"])
    if "has_id" in c:
        return point is not None and _same_id(point.id) in [_same_id(one) for one in c["has_id"]]
    if "has_vector" in c:
        return point is not None and c["has_vector"] in point.vectors
    if "slice" in c:
        return point is not None and slice_of(id_key(point.id), c["slice"]["total"]) == c["slice"]["index"]
    if "nested" in c:
        key = c["nested"]["key"].removesuffix("[]")
        objects = [o for v in _select(payload, key) if isinstance(v, list) for o in v if isinstance(o, dict)]
        return any(_filter(c["nested"]["filter"], o, None, f"{base}{key}[].", texts) for o in objects)
    return _filter(c, payload, point, base, texts)


def _same_id(given: int | str) -> Any:
    return given if isinstance(given, int) else uuid.UUID(given)


def _field(c: dict[str, Json], payload: Json, base: str, texts: TextIndexes) -> bool:
    whole = _select(payload, c["key"])
    single = [one for value in whole for one in (value if isinstance(value, list) else [value])]
    found = []
    if c.get("match") is not None:
        index = texts.get(base + c["key"])
        found.append(any(_match(c["match"], value, index) for value in single))
    if c.get("range") is not None:
        found.append(any(_in_range(c["range"], value) for value in single))
    if c.get("values_count") is not None:
        counts = [len(v) if isinstance(v, list) else 0 if v is None else 1 for v in whole] or [0]
        found.append(any(_bounds(c["values_count"], n) for n in counts))
    if c.get("is_empty") is not None:
        found.append(_is_empty(whole) == c["is_empty"])
    if c.get("is_null") is not None:
        found.append((None in whole) == c["is_null"])
    for shape in ("geo_radius", "geo_bounding_box", "geo_polygon"):
        if c.get(shape) is not None:
            found.append(any(_geo(shape, c[shape], value) for value in single))
    return any(found)


def _is_empty(values: list[Json]) -> bool:
    return all(value is None or value == [] for value in values)


def _select(payload: Json, path: str) -> list[Json]:
    """The values at a path of the kinds that random_filter makes: `a.b`, `a[].b`, `a[0].b`."""
    head, dot, rest = path.partition(".")
    name, bracket, index = head.partition("[")
    if not isinstance(payload, dict) or name not in payload:
        return []
    values = [payload[name]]
    if bracket:
        lists = [value for value in values if isinstance(value, list)]
        if index == "]":
            values = [one for value in lists for one in value]
        else:
            n = int(index.removesuffix("]"))
            values = [value[n] for value in lists if n < len(value)]
    return [found for value in values for found in _select(value, rest)] if dot else values


def _match(match: dict[str, Json], value: Json, index: dict[str, Any] | None) -> bool:
    kind, wanted = next((kind, wanted) for kind, wanted in match.items() if wanted is not None)
    if kind == "value":
        return _equal(value, wanted)
    if kind == "any":
        return any(_equal(value, one) for one in wanted)
    if kind == "except":
        return value is not None and not any(_equal(value, one) for one in wanted)
    if not isinstance(value, str):
        return False
    if kind == "prefix":
        return value[: len(wanted)] == wanted
    if index is not None:
        return _by_tokens(kind, wanted, value, index)
    if kind == "text_any":
        return any(value.find(word) >= 0 for word in wanted.split())
    return value.find(wanted) >= 0


def _equal(value: Json, wanted: Json) -> bool:
    return type(value) is type(wanted) and bool(value == wanted)


def _by_tokens(kind: str, wanted: str, value: str, index: dict[str, Any]) -> bool:
    query, text = _tokens(wanted, index), _tokens(value, index)
    if index.get("tokenizer") == "prefix":
        shortest, longest = index.get("min_token_len") or 0, index.get("max_token_len") or 64
        query = [word[:longest] for word in query if len(word) >= shortest]
        if kind != "phrase":
            text = [word[:n] for word in text for n in range(1, len(word) + 1) if shortest <= n <= longest]
        else:
            text = [word[:longest] for word in text if len(word) >= shortest]
    if kind == "text":
        return query != [] and set(query) <= set(text)
    if kind == "text_any":
        return set(query) & set(text) != set()
    return query != [] and query in [text[i : i + len(query)] for i in range(len(text))]


def _tokens(text: str, index: dict[str, Any]) -> list[str]:
    lowercase = index.get("lowercase", True)
    stopwords = [w.lower() if lowercase else w for w in index.get("stopwords", {}).get("custom", [])]
    if lowercase:
        text = text.lower()
    if index.get("tokenizer") == "whitespace":
        words = text.split()
    else:
        words = "".join(c if c.isalnum() else " " for c in text).split()
    if index.get("ascii_folding"):
        words = [
            "".join(
                c for c in unicodedata.normalize("NFKD", word) if not unicodedata.category(c).startswith("M")
            )
            for word in words
        ]
    words = [word for word in words if word not in stopwords]
    if index.get("tokenizer") == "prefix":
        return words
    low, high = index.get("min_token_len", 0), index.get("max_token_len", 1000)
    return [word for word in words if low <= len(word) <= high]


def _in_range(bounds: dict[str, Json], value: Json) -> bool:
    if any(isinstance(bound, str) for bound in bounds.values()):
        moment = _moment(value)
        return moment is not None and _bounds({k: _moment(v) for k, v in bounds.items()}, moment)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _bounds(bounds, value)


def _bounds(bounds: dict[str, Any], x: Any) -> bool:
    tests = {"lt": lambda b: x < b, "lte": lambda b: x <= b, "gt": lambda b: x > b, "gte": lambda b: x >= b}
    return all(tests[name](bound) for name, bound in bounds.items() if bound is not None)


def _moment(text: Json) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except (AttributeError, ValueError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _geo(shape: str, given: dict[str, Json], value: Json) -> bool:
    if not isinstance(value, dict) or not all(
        isinstance(value.get(axis), (int, float)) and not isinstance(value[axis], bool)
        for axis in ("lat", "lon")
    ):
        return False
    lat, lon = value["lat"], value["lon"]
    if shape == "geo_radius":
        return _metres(given["center"], value) < given["radius"]
    if shape == "geo_bounding_box":
        top, left = given["top_left"]["lat"], given["top_left"]["lon"]
        bottom, right = given["bottom_right"]["lat"], given["bottom_right"]["lon"]
        across = left < lon < right if left <= right else lon > left or lon < right
        return bool(bottom < lat < top and across)
    rings = [given["exterior"], *(given.get("interiors") or [])]
    inside = [_winding(ring["points"], lat, lon) for ring in rings]
    return inside[0] and not any(inside[1:])


def _metres(a: dict[str, float], b: dict[str, float]) -> float:
    """By the angle between the two directions in space."""

    def direction(p: dict[str, float]) -> tuple[float, float, float]:
        lat, lon = math.radians(p["lat"]), math.radians(p["lon"])
        return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)

    chord = math.dist(direction(a), direction(b))
    return 2 * math.asin(min(1.0, chord / 2)) * 6_371_008.8


def _winding(ring: list[dict[str, float]], lat: float, lon: float) -> bool:
    """Whether the angles at which the corners are seen add up to a full turn."""
    turn = 0.0
    for a, b in pairwise(ring):
        seen = math.atan2(b["lat"] - lat, b["lon"] - lon) - math.atan2(a["lat"] - lat, a["lon"] - lon)
        turn += (seen + math.pi) % (2 * math.pi) - math.pi
    return abs(turn) > math.pi


# -- random points and filters ------------------------------------------------------------------------------

WORDS = ("red", "Red", "blue", "light-blue", "deep sea", "sea", "a_b", "Straße", "x1", "")
UUIDS = tuple(str(uuid.UUID(int=7 * n)) for n in range(4))
VECTORS = ("", "image")
PATHS = {
    "keyword": ("color", "tags", "o.name", "l[].name", "l[1].name", "l.name"),
    "integer": ("n", "ns", "o.n", "l[].n", "o.deep.n"),
    "float": ("price", "o.price", "l[].price"),
    "bool": ("flag", "l[].flag"),
    "datetime": ("at", "ats", "o.at"),
    "uuid": ("u",),
    "text": ("text", "o.text"),
    "geo": ("where", "l[].where"),
}
ALL_PATHS = (*(path for paths in PATHS.values() for path in paths), "l", "o", "nothing", "l[]", "tags[0]")


def random_point(rng: random.Random, number: int) -> Point:
    id_: int | str = str(uuid.UUID(int=rng.getrandbits(128))) if rng.random() < 0.3 else number
    vectors = frozenset(name for name in VECTORS if rng.random() < 0.7)
    return Point(id_, random_payload(rng), vectors)


def random_payload(rng: random.Random) -> dict[str, Json]:
    fields = {
        "color": _keyword, "tags": _keyword, "n": _integer, "ns": _integer, "price": _price, "flag": _flag,
        "at": _datetime, "ats": _datetime, "u": _uuid, "text": _text, "where": _where,
        "o": _object, "l": lambda r: [_object(r) for _ in range(r.randrange(4))],
    }  # fmt: skip
    return {name: _odd(rng, make) for name, make in fields.items() if rng.random() < 0.8}


def _odd(rng: random.Random, make: Any) -> Json:
    """Usually what the field is for; now and then null, empty, a list of it, or something else."""
    luck = rng.random()
    if luck < 0.06:
        return None
    if luck < 0.1:
        return []
    if luck < 0.3:
        return [_odd(rng, make) if rng.random() < 0.2 else make(rng) for _ in range(rng.randrange(1, 4))]
    if luck < 0.36:
        return rng.choice((_keyword, _integer, _price, _flag, _datetime, _where))(rng)
    return make(rng)


def _object(rng: random.Random) -> Json:
    if rng.random() < 0.05:
        return rng.choice((None, 1, "red", []))
    makers = {
        "name": _keyword, "n": _integer, "price": _price, "flag": _flag, "at": _datetime, "text": _text,
        "where": _where, "deep": lambda r: {"n": _odd(r, _integer)},
    }  # fmt: skip
    return {name: _odd(rng, make) for name, make in makers.items() if rng.random() < 0.7}


def _keyword(rng: random.Random) -> str:
    return rng.choice(WORDS)


def _integer(rng: random.Random) -> int:
    return rng.choice((rng.randrange(-3, 8), rng.randrange(-3, 8), rng.randrange(-(1 << 63), 1 << 63)))


def _price(rng: random.Random) -> float:
    return rng.choice((1.0, 2.5, -0.0, rng.uniform(-5, 10)))


def _flag(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _datetime(rng: random.Random) -> str:
    moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=rng.randrange(0, 24 * 10))
    form = rng.choice(("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S.25+02:00"))
    return moment.strftime(form)


def _uuid(rng: random.Random) -> str:
    return rng.choice(UUIDS)


def _text(rng: random.Random) -> str:
    return rng.choice((" ", ", ", "-")).join(rng.choice(WORDS) for _ in range(rng.randrange(0, 5)))


def _where(rng: random.Random) -> Json:
    if rng.random() < 0.08:
        return rng.choice(({"lat": "1", "lon": 2}, {"lat": 1}, {}, {"lat": True, "lon": False}))
    return {
        "lat": round(rng.uniform(-20, 20), 3),
        "lon": round(rng.choice((0, 170, -170)) + rng.uniform(-9, 9), 3),
    }


def random_filter(rng: random.Random, depth: int = 2) -> dict[str, Json]:
    filter_: dict[str, Json] = {}
    for clause in ("must", "should", "must_not"):
        if rng.random() < 0.45:
            conditions = [random_condition(rng, depth) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
            single = len(conditions) == 1 and rng.random() < 0.5
            filter_[clause] = conditions[0] if single else conditions
    if rng.random() < 0.15:
        conditions = [random_condition(rng, depth) for _ in range(rng.randrange(1, 4))]
        filter_["min_should"] = {"conditions": conditions, "min_count": rng.randrange(1, 4)}
    return filter_


def random_condition(rng: random.Random, depth: int = 2) -> dict[str, Json]:
    luck = rng.random()
    if luck < 0.7 or depth == 0:
        return random_field_condition(rng)
    if luck < 0.74:
        return {rng.choice(("is_empty", "is_null")): {"key": rng.choice(ALL_PATHS)}}
    if luck < 0.78:
        return {"has_id": [rng.randrange(20) for _ in range(rng.randrange(0, 12))]}
    if luck < 0.81:
        return {"has_vector": rng.choice((*VECTORS, "unknown"))}
    if luck < 0.84:
        total = rng.randrange(1, 4)
        return {"slice": {"total": total, "index": rng.randrange(total)}}
    if luck < 0.92:
        return {"nested": {"key": rng.choice(("l", "l[]", "o")), "filter": _nested_filter(rng, depth - 1)}}
    return random_filter(rng, depth - 1)


def _nested_filter(rng: random.Random, depth: int) -> dict[str, Json]:
    """As random_filter, with paths that start at an element of `l`."""
    filter_ = random_filter(rng, depth)
    inner = {"n": "n", "color": "name", "tags": "name", "at": "at", "price": "price", "text": "text"}

    def moved(node: Json) -> Json:
        if isinstance(node, list):
            return [moved(one) for one in node]
        if not isinstance(node, dict):
            return node
        return {k: inner.get(v, v) if k == "key" else moved(v) for k, v in node.items()}

    result: dict[str, Json] = moved(filter_)
    return result


def random_field_condition(rng: random.Random) -> dict[str, Json]:
    kind = rng.choice(tuple(PATHS))
    path = rng.choice(PATHS[kind]) if rng.random() < 0.9 else rng.choice(ALL_PATHS)
    condition: dict[str, Json] = {"key": path}
    for _ in range(1 if rng.random() < 0.93 else 2):
        condition.update(_test_of(rng, kind))
    return condition


def _test_of(rng: random.Random, kind: str) -> dict[str, Json]:
    luck = rng.random()
    if luck < 0.06:
        return {"values_count": _random_bounds(rng, lambda r: r.randrange(0, 4))}
    if luck < 0.1:
        return {rng.choice(("is_empty", "is_null")): rng.random() < 0.5}
    if kind in ("keyword", "uuid"):
        return {"match": _random_match(rng, _keyword if kind == "keyword" else _uuid, prefix=True)}
    if kind == "integer" and rng.random() < 0.5:
        return {"match": _random_match(rng, _integer)}
    if kind == "bool":
        return {"match": {"value": _flag(rng)}}
    if kind == "text":
        return {"match": {rng.choice(("text", "text_any", "phrase")): _text(rng)}}
    if kind == "datetime":
        return {"range": _random_bounds(rng, _datetime)}
    if kind == "geo":
        return _random_shape(rng)
    return {"range": _random_bounds(rng, _price if kind == "float" else lambda r: r.randrange(-3, 8))}


def _random_match(rng: random.Random, make: Any, *, prefix: bool = False) -> dict[str, Json]:
    luck = rng.random()
    if prefix and luck < 0.15:
        return {"prefix": make(rng)[: rng.randrange(0, 4)]}
    if luck < 0.5:
        return {"value": make(rng)}
    return {rng.choice(("any", "except")): [make(rng) for _ in range(rng.randrange(0, 4))]}


def _random_bounds(rng: random.Random, make: Any) -> dict[str, Json]:
    bounds = {name: make(rng) for name in ("lt", "lte", "gt", "gte") if rng.random() < 0.4}
    return bounds or {"gte": make(rng)}


def _random_shape(rng: random.Random) -> dict[str, Json]:
    lat, lon = round(rng.uniform(-15, 15), 2), float(rng.choice((0, 170, -170)))
    shape = rng.choice(("geo_radius", "geo_bounding_box", "geo_polygon"))
    if shape == "geo_radius":
        return {shape: {"center": {"lat": lat, "lon": lon}, "radius": rng.uniform(0, 3e6)}}
    if shape == "geo_bounding_box":
        right = lon + rng.uniform(1, 15)
        corner = {"lat": lat - rng.uniform(0, 20), "lon": right if right <= 180 else right - 360}
        return {shape: {"top_left": {"lat": lat, "lon": lon - 5}, "bottom_right": corner}}

    def ring(size: float) -> dict[str, Json]:
        angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randrange(3, 7)))
        points = [{"lat": lat + size * math.sin(a), "lon": lon + size * math.cos(a)} for a in angles]
        return {"points": [*points, points[0]]}

    holes = [ring(3)] if rng.random() < 0.4 else None
    return {shape: {"exterior": ring(9), "interiors": holes}}
