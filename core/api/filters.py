"""Filters as requests spell them, parsed into the values of core/filters.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct, field

from core import filters as f
from core.api.checks import DEFAULT_LIMITS, Limits, at_least, invalid, show
from core.api.decode import decode
from core.datetimes import parse_datetime
from core.errors import BadRequest
from core.geo import GeoPoint, Ring
from core.hashing import PointId, id_key
from core.payload import Path, parse_path


class MatchBody(Struct, frozen=True, omit_defaults=True):
    value: str | int | bool | None = None
    any: list[str | int] | None = None
    except_: list[str | int] | None = field(name="except", default=None)
    text: str | None = None
    text_any: str | None = None
    phrase: str | None = None
    prefix: str | None = None


class RangeBody(Struct, frozen=True, omit_defaults=True):
    lt: float | str | None = None
    lte: float | str | None = None
    gt: float | str | None = None
    gte: float | str | None = None


class GeoPointBody(Struct, frozen=True, omit_defaults=True):
    lat: float
    lon: float


class GeoRadiusBody(Struct, frozen=True, omit_defaults=True):
    center: GeoPointBody
    radius: float


class GeoBoxBody(Struct, frozen=True, omit_defaults=True):
    top_left: GeoPointBody
    bottom_right: GeoPointBody


class GeoLineBody(Struct, frozen=True, omit_defaults=True):
    points: list[GeoPointBody]


class GeoPolygonBody(Struct, frozen=True, omit_defaults=True):
    exterior: GeoLineBody
    interiors: list[GeoLineBody] | None = None


class ValuesCountBody(Struct, frozen=True, omit_defaults=True):
    lt: int | None = None
    lte: int | None = None
    gt: int | None = None
    gte: int | None = None


class FieldBody(Struct, frozen=True, omit_defaults=True):
    key: str


class SliceBody(Struct, frozen=True, omit_defaults=True):
    total: int
    index: int


class NestedBody(Struct, frozen=True, omit_defaults=True):
    key: str
    filter: FilterBody


class MinShouldBody(Struct, frozen=True, omit_defaults=True):
    conditions: list[ConditionBody]
    min_count: int


class FilterBody(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A filter. A misspelt clause is refused, as it would otherwise match, and perhaps delete, everything."""

    must: ConditionBody | list[ConditionBody] | None = None
    should: ConditionBody | list[ConditionBody] | None = None
    must_not: ConditionBody | list[ConditionBody] | None = None
    min_should: MinShouldBody | None = None


class ConditionBody(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Any condition: which one it is, its fields say. Without any field it is the empty filter."""

    key: str | None = None
    match: MatchBody | None = None
    range: RangeBody | None = None
    geo_bounding_box: GeoBoxBody | None = None
    geo_radius: GeoRadiusBody | None = None
    geo_polygon: GeoPolygonBody | None = None
    values_count: ValuesCountBody | None = None
    is_empty: bool | FieldBody | None = None
    is_null: bool | FieldBody | None = None
    has_id: list[PointId] | None = None
    has_vector: str | None = None
    slice: SliceBody | None = None
    nested: NestedBody | None = None
    must: ConditionBody | list[ConditionBody] | None = None
    should: ConditionBody | list[ConditionBody] | None = None
    must_not: ConditionBody | list[ConditionBody] | None = None
    min_should: MinShouldBody | None = None


_UNLIMITED = Limits(filter_depth_max=1 << 62, filter_conditions_max=1 << 62)


@dataclass(slots=True)
class _Budget:
    """What one filter may still hold."""

    limits: Limits
    conditions: int = 0

    def spend(self, depth: int) -> None:
        self.conditions += 1
        if depth > self.limits.filter_depth_max:
            raise BadRequest(f"filter: nested over {self.limits.filter_depth_max} levels deep")
        if self.conditions > self.limits.filter_conditions_max:
            raise BadRequest(f"filter: more than {self.limits.filter_conditions_max} conditions")


def parse_filter(body: FilterBody | None, limits: Limits = DEFAULT_LIMITS) -> f.Filter | None:
    """The filter, or None if there is none or it restricts nothing."""
    if body is None:
        return None
    parsed = _filter(body, _Budget(limits), 1)
    return None if parsed.restricts_nothing else parsed


def filter_json(body: FilterBody | None, limits: Limits = DEFAULT_LIMITS) -> bytes | None:
    """A checked filter in its shortest JSON, as the log keeps it. `{}` restricts nothing."""
    if body is None:
        return None
    parse_filter(body, limits)
    return msgspec.json.encode(body)


@lru_cache(maxsize=256)
def read_filter(where: bytes) -> f.Filter:
    """The filter that filter_json wrote. It was within its limits then, and is not refused by today's."""
    body = decode(FilterBody, where)
    return _filter(body, _Budget(_UNLIMITED), 1)


def parse_condition(body: ConditionBody, limits: Limits = DEFAULT_LIMITS) -> f.Condition:
    """A condition on its own, as formulas have them."""
    return _condition(body, _Budget(limits), 1)


def _filter(body: FilterBody | ConditionBody, budget: _Budget, depth: int) -> f.Filter:
    least = body.min_should
    min_should = None
    if least is not None:
        at_least("filter.min_should.min_count", least.min_count, 1)
        min_should = f.MinShould(_clause(least.conditions, budget, depth), least.min_count)
    return f.Filter(
        must=_clause(body.must, budget, depth),
        should=_clause(body.should, budget, depth),
        must_not=_clause(body.must_not, budget, depth),
        min_should=min_should,
    )


def _clause(
    given: ConditionBody | Sequence[ConditionBody] | None, budget: _Budget, depth: int
) -> tuple[f.Condition, ...]:
    if given is None:
        return ()
    if isinstance(given, ConditionBody):
        return (_condition(given, budget, depth),)
    return tuple([_condition(one, budget, depth) for one in given])


def _condition(body: ConditionBody, budget: _Budget, depth: int) -> f.Condition:
    budget.spend(depth)
    if body.key is not None:
        return _field(body, parse_path(body.key))
    if isinstance(body.is_empty, FieldBody):
        return f.IsEmpty(parse_path(body.is_empty.key))
    if isinstance(body.is_null, FieldBody):
        return f.IsNull(parse_path(body.is_null.key))
    if body.has_id is not None:
        return f.HasId(frozenset([id_key(one) for one in body.has_id]))
    if body.has_vector is not None:
        return f.HasVector(body.has_vector)
    if body.slice is not None:
        return _slice(body.slice)
    if body.nested is not None:
        return f.Nested(parse_path(body.nested.key), _filter(body.nested.filter, budget, depth + 1))
    for name in _TESTS:
        if getattr(body, name) is not None:
            raise BadRequest(f"Wrong input: filter: a condition with `{name}` needs a `key`")
    return _filter(body, budget, depth + 1)


_TESTS = (
    "match", "range", "geo_bounding_box", "geo_radius", "geo_polygon", "values_count", "is_empty", "is_null"
)  # fmt: skip


def _slice(body: SliceBody) -> f.Slice:
    at_least("filter.slice.total", body.total, 1)
    if not 0 <= body.index < body.total:
        raise invalid("filter.slice.index", f"value {body.index} invalid, must be from 0 to {body.total - 1}")
    return f.Slice(body.total, body.index)


def _field(body: ConditionBody, path: Path) -> f.Condition:
    """Of several tests in one condition any suffices."""
    found: list[f.Condition] = []
    if body.match is not None:
        found.append(_match(body.match, path))
    if body.range is not None:
        found.append(_range(body.range, path))
    if (box := body.geo_bounding_box) is not None:
        found.append(f.GeoBox(path, _point(box.top_left, path), _point(box.bottom_right, path)))
    if (circle := body.geo_radius) is not None:
        found.append(f.GeoRadius(path, _point(circle.center, path), circle.radius))
    if (polygon := body.geo_polygon) is not None:
        holes = tuple(_ring(line, path) for line in polygon.interiors or ())
        found.append(f.GeoPolygon(path, _ring(polygon.exterior, path), holes))
    if (count := body.values_count) is not None:
        found.append(f.ValuesCount(path, count.lt, count.lte, count.gt, count.gte))
    if body.is_empty is not None:
        found.append(_yes_or_no("is_empty", f.IsEmpty(path), body.is_empty))
    if body.is_null is not None:
        found.append(_yes_or_no("is_null", f.IsNull(path), body.is_null))
    if not found:
        raise invalid("filter", f"at least one field condition must be specified for key {show(str(path))}")
    return found[0] if len(found) == 1 else f.Filter(should=tuple(found))


def _yes_or_no(name: str, condition: f.Condition, wanted: bool | FieldBody) -> f.Condition:
    if isinstance(wanted, FieldBody):
        raise BadRequest(f"Wrong input: filter: `{name}` beside a `key` is true or false")
    return condition if wanted else f.Filter(must_not=(condition,))


def _match(body: MatchBody, path: Path) -> f.Condition:
    given = [name for name in body.__struct_fields__ if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given).replace("_", "") or "none"
        raise BadRequest(
            f"Wrong input: filter: match of {show(str(path))}: expected one of value, any, except, text, "
            f"text_any, phrase, prefix, got {found}"
        )
    if body.value is not None:
        return f.MatchValue(path, body.value)
    if body.any is not None:
        return f.MatchAny(path, _one_kind(body.any, path))
    if body.except_ is not None:
        return f.MatchExcept(path, _one_kind(body.except_, path))
    if body.text is not None:
        return f.MatchText(path, body.text)
    if body.text_any is not None:
        return f.MatchTextAny(path, body.text_any)
    if body.phrase is not None:
        return f.MatchPhrase(path, body.phrase)
    assert body.prefix is not None
    return f.MatchPrefix(path, body.prefix)


def _one_kind(values: list[str | int], path: Path) -> frozenset[str] | frozenset[int]:
    texts = [value for value in values if isinstance(value, str)]
    if texts and len(texts) != len(values):
        raise BadRequest(f"Wrong input: filter: match of {show(str(path))}: all strings or all integers")
    if texts:
        return frozenset(texts)
    return frozenset([value for value in values if isinstance(value, int)])


def _range(body: RangeBody, path: Path) -> f.Condition:
    bounds = (body.lt, body.lte, body.gt, body.gte)
    texts = [bound for bound in bounds if isinstance(bound, str)]
    if not texts:
        return f.NumberRange(path, *(bound for bound in bounds if not isinstance(bound, str)))
    if len(texts) != sum(bound is not None for bound in bounds):
        raise BadRequest(f"Wrong input: filter: range of {show(str(path))}: all numbers or all datetimes")
    return f.DatetimeRange(path, *(_moment(bound, path) for bound in bounds))


def _moment(bound: Any, path: Path) -> int | None:
    if bound is None:
        return None
    micros = parse_datetime(bound)
    if micros is None:
        raise BadRequest(
            f"Wrong input: filter: range of {show(str(path))}: {show(bound)} is no RFC 3339 datetime"
        )
    return micros


def _point(body: GeoPointBody, path: Path) -> GeoPoint:
    if not (-90.0 <= body.lat <= 90.0 and -180.0 <= body.lon <= 180.0):
        raise BadRequest(
            f"Wrong input: filter: {show(str(path))}: lat {body.lat}, lon {body.lon} is no point on the globe"
        )
    return GeoPoint(body.lat, body.lon)


def _ring(body: GeoLineBody, path: Path) -> Ring:
    if len(body.points) < 4:
        raise BadRequest(
            f"Wrong input: filter: polygon of {show(str(path))}: a ring needs at least 4 points, "
            f"got {len(body.points)}"
        )
    ring = tuple(_point(point, path) for point in body.points)
    if ring[0] != ring[-1]:
        raise BadRequest(
            f"Wrong input: filter: polygon of {show(str(path))}: its last point must be its first"
        )
    return ring
