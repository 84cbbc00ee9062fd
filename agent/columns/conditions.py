"""What a column can say of a value under a condition: it holds, it might, or that is not its to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.columns.codecs import EXACT_MAX, uuid_words
from core.datetimes import parse_datetime
from core.filters import (
    DatetimeRange,
    FieldCondition,
    GeoBox,
    GeoPolygon,
    GeoRadius,
    MatchAny,
    MatchExcept,
    MatchPhrase,
    MatchPrefix,
    MatchText,
    MatchTextAny,
    MatchValue,
    NumberRange,
)
from core.geo import EARTH_RADIUS_M

Bits = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]
Test = Callable[[Values], Bits]
TextMatch = MatchText | MatchTextAny | MatchPhrase | MatchPrefix

_COMPARED_MAX = 16
_TABLE_MAX = 8 << 20
_I64_LOW, _I64_HIGH = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Tests of a column's values. `maybe` includes what `yes` says; None: the same.

    `foreign`: values that the column cannot hold may match as well.
    """

    yes: Test
    maybe: Test | None = None
    foreign: bool = False


def _none(values: Values) -> Bits:
    return np.zeros(len(values), np.bool_)


def _every(values: Values) -> Bits:
    return np.ones(len(values), np.bool_)


NEVER = Verdict(_none)
ONLY_FOREIGN = Verdict(_none, foreign=True)
UNKNOWN = Verdict(_none, _every, foreign=True)
Codes = Callable[[FieldCondition], Sequence[int]]
"""The dictionary: codes of the words that meet a string condition."""


def verdict(kind: str, condition: FieldCondition, codes: Codes) -> Verdict:
    """How a column of this type judges the condition (not one about all values of a path)."""
    match kind:
        case "keyword":
            return _keyword(condition, codes)
        case "integer":
            return _integer(condition)
        case "float":
            return _float(condition)
        case "datetime":
            return _datetime(condition)
        case "bool":
            return _bool(condition)
        case "uuid":
            return _uuid(condition)
        case "geo":
            return _geo(condition)
        case _:
            return UNKNOWN


def _one_of(codes: Sequence[Any], dtype: npt.DTypeLike) -> Test:
    if len(codes) == 0:
        return _none
    if len(codes) == 1:
        wanted = np.dtype(dtype).type(codes[0])
        return lambda values: values == wanted
    many = np.array(codes, dtype)
    if len(codes) > _COMPARED_MAX and many.dtype.kind in "iu":
        low, high = many.min(), many.max()
        if int(high) - int(low) < _TABLE_MAX:
            return _in_table(many, low, int(high) - int(low) + 1)
    # Few are compared one by one, which takes a tenth of a table's time.
    return lambda values: np.isin(values, many, kind="sort")


def _in_table(many: Values, low: Any, size: int) -> Test:
    """A bit for each value from the lowest wanted one on, and one for all that lie outside."""
    unsigned = np.dtype(f"u{many.dtype.itemsize}")
    table = np.zeros(size + 1, np.bool_)
    table[(many - low).view(unsigned)] = True

    def test(values: Values) -> Bits:
        # What is below the lowest wraps around to what is far above.
        out: Bits = table[np.minimum((values - low).view(unsigned), unsigned.type(size))]
        return out

    return test


def _not(test: Test) -> Test:
    return lambda values: ~test(values)


def _keyword(condition: FieldCondition, codes: Codes) -> Verdict:
    match condition:
        case MatchValue(_, value) if type(value) is not str:
            return ONLY_FOREIGN
        case MatchAny(_, values) if not all(type(v) is str for v in values):
            return ONLY_FOREIGN
        case MatchExcept():
            return Verdict(_not(_one_of(codes(condition), np.uint32)), foreign=True)
        case MatchValue() | MatchAny() | MatchText() | MatchTextAny() | MatchPhrase() | MatchPrefix():
            return Verdict(_one_of(codes(condition), np.uint32))
        case DatetimeRange():
            return Verdict(_none, _every)
        case _:
            return ONLY_FOREIGN


def _ints(values: frozenset[str] | frozenset[int]) -> list[int]:
    return [v for v in values if type(v) is int]


def _integer(condition: FieldCondition) -> Verdict:
    match condition:
        case MatchValue(_, value):
            if type(value) is not int:
                return ONLY_FOREIGN
            inside = _I64_LOW <= value <= _I64_HIGH
            return Verdict(_one_of([value], np.int64)) if inside else ONLY_FOREIGN
        case MatchAny(_, values):
            held = [v for v in _ints(values) if _I64_LOW <= v <= _I64_HIGH]
            return Verdict(_one_of(held, np.int64), foreign=len(held) < len(values))
        case MatchExcept(_, values):
            held = [v for v in _ints(values) if _I64_LOW <= v <= _I64_HIGH]
            return Verdict(_not(_one_of(held, np.int64)), foreign=True)
        case NumberRange():
            return Verdict(_integers_within(condition), foreign=True)
        case _:
            return ONLY_FOREIGN


def _integers_within(r: NumberRange) -> Test:
    """Bounds as integers: a comparison with floats would lose digits beyond 2^53."""
    if any(b is not None and math.isnan(b) for b in (r.lt, r.lte, r.gt, r.gte)):
        return _none
    low, high = _I64_LOW, _I64_HIGH
    if r.gt is not None:
        low = max(low, _floor(r.gt) + 1)
    if r.gte is not None:
        low = max(low, -_floor(-r.gte))
    if r.lt is not None:
        high = min(high, -_floor(-r.lt) - 1)
    if r.lte is not None:
        high = min(high, _floor(r.lte))
    if low > high:
        return _none
    return lambda values: (values >= low) & (values <= high)


def _floor(x: float) -> int:
    if math.isinf(x):
        return 1 << 64 if x > 0 else -(1 << 64)
    return math.floor(x)


def _float(condition: FieldCondition) -> Verdict:
    match condition:
        # 5 and 5.0 are one value here and two to `match`: the payload knows which it is.
        case MatchValue(_, value):
            if type(value) is not int:
                return ONLY_FOREIGN
            return _perhaps_equal([value])
        case MatchAny(_, values):
            return _perhaps_equal(list(values))
        case MatchExcept(_, values):
            return Verdict(_not(_near(list(values))), _every, foreign=True)
        case NumberRange(_, lt, lte, gt, gte):
            bounds = [b for b in (lt, lte, gt, gte) if b is not None]
            if any(abs(b) > EXACT_MAX and float(b) != b for b in bounds):
                return UNKNOWN
            return Verdict(_within(lt, lte, gt, gte), foreign=True)
        case _:
            return ONLY_FOREIGN


def _perhaps_equal(values: Sequence[Any]) -> Verdict:
    return Verdict(_none, _near(values), foreign=len(_exact(values)) < len(values))


def _near(values: Sequence[Any]) -> Test:
    return _one_of(_exact(values), np.float64)


def _exact(values: Sequence[Any]) -> list[float]:
    """Those that a float column holds."""
    return [float(v) for v in values if type(v) is int and abs(v) <= EXACT_MAX]


def _within(lt: float | None, lte: float | None, gt: float | None, gte: float | None) -> Test:
    def test(values: Values) -> Bits:
        parts: list[Bits] = []
        if lt is not None:
            parts.append(values < lt)
        if lte is not None:
            parts.append(values <= lte)
        if gt is not None:
            parts.append(values > gt)
        if gte is not None:
            parts.append(values >= gte)
        if not parts:
            return _every(values)
        out = parts[0]
        for part in parts[1:]:
            out &= part
        return out

    return test


def _datetime(condition: FieldCondition) -> Verdict:
    match condition:
        case DatetimeRange(_, lt, lte, gt, gte):
            # Strings that are no datetimes are foreign, and never in a range.
            return Verdict(_within(lt, lte, gt, gte))
        case MatchValue(_, value):
            return _same_moment([value])
        case MatchAny(_, values):
            return _same_moment(list(values))
        case MatchExcept(_, values):
            moments = [m for v in values if type(v) is str and (m := parse_datetime(v)) is not None]
            return Verdict(_not(_one_of(moments, np.int64)), _every, foreign=True)
        case MatchText() | MatchTextAny() | MatchPhrase() | MatchPrefix():
            return UNKNOWN
        case _:
            return ONLY_FOREIGN


def _same_moment(values: Sequence[Any]) -> Verdict:
    """One moment is written in many ways, and `match` compares the writing."""
    moments = [parse_datetime(v) if type(v) is str else None for v in values]
    known = [m for m in moments if m is not None]
    return Verdict(_none, _one_of(known, np.int64), foreign=len(known) < len(moments))


def _bool(condition: FieldCondition) -> Verdict:
    match condition:
        case MatchValue(_, value) if type(value) is bool:
            return Verdict(_one_of([int(value)], np.uint8))
        case MatchExcept():
            return Verdict(_every, foreign=True)
        case _:
            return ONLY_FOREIGN


def _uuid(condition: FieldCondition) -> Verdict:
    match condition:
        case MatchValue(_, value):
            return _same_uuid([value])
        case MatchAny(_, values):
            return _same_uuid(list(values))
        case MatchExcept(_, values):
            return Verdict(_not(_uuids(list(values))), foreign=True)
        case MatchText() | MatchTextAny() | MatchPhrase() | MatchPrefix():
            return UNKNOWN
        case _:
            return ONLY_FOREIGN


def _same_uuid(values: Sequence[Any]) -> Verdict:
    return Verdict(_uuids(values), foreign=any(uuid_words(v) is None for v in values))


def _uuids(values: Sequence[Any]) -> Test:
    wanted = [words for v in values if (words := uuid_words(v)) is not None]
    if not wanted:
        return _none

    def test(column: Values) -> Bits:
        if len(wanted) == 1:
            one: Bits = (column[:, 1] == wanted[0][1]) & (column[:, 0] == wanted[0][0])
            return one
        out = np.isin(column[:, 1], np.array([w[1] for w in wanted], np.uint64))
        likely = np.flatnonzero(out)
        known = set(wanted)
        out[likely] = [(int(high), int(low)) in known for high, low in column[likely]]
        return out

    return test


def _geo(condition: FieldCondition) -> Verdict:
    match condition:
        case GeoBox(_, top_left, bottom_right):

            def in_box(column: Values) -> Bits:
                lat, lon = column[:, 0], column[:, 1]
                out = (lat > bottom_right.lat) & (lat < top_left.lat)
                if top_left.lon > bottom_right.lon:
                    return out & ((lon > top_left.lon) | (lon < bottom_right.lon))
                return out & (lon > top_left.lon) & (lon < bottom_right.lon)

            return Verdict(in_box)
        case GeoRadius():
            return _radius(condition)
        case GeoPolygon(_, exterior, _):
            lats, lons = [p.lat for p in exterior], [p.lon for p in exterior]

            def near(column: Values) -> Bits:
                lat, lon = column[:, 0], column[:, 1]
                return (lat >= min(lats)) & (lat <= max(lats)) & (lon >= min(lons)) & (lon <= max(lons))

            # Points in the bounding box are tested one by one: a polygon's edge is decided by the last bit.
            return Verdict(_none, near)
        case MatchExcept():
            return Verdict(_every, foreign=True)
        case _:
            return ONLY_FOREIGN


def _radius(condition: GeoRadius) -> Verdict:
    center, radius_m = condition.center, condition.radius_m
    # numpy's sines may differ from math's in the last bit: what is that near the circle stays in doubt.
    slack_m = 1e-3 + radius_m * 1e-9

    def distance_m(lat: Values, lon: Values) -> Values:
        lat_b, lat_a = math.radians(center.lat), np.radians(lat)
        half_lon = np.radians(center.lon - lon) / 2
        h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * math.cos(lat_b) * np.sin(half_lon) ** 2
        out: Values = 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(1.0, np.sqrt(np.maximum(0.0, h))))
        return out

    # A degree of latitude is at least this long on the sphere: what is further north or south is out.
    band = (radius_m + slack_m) / (EARTH_RADIUS_M * math.pi / 180) * 1.000001

    def within(limit_m: float) -> Test:
        def test(column: Values) -> Bits:
            lat = column[:, 0]
            out = (lat >= center.lat - band) & (lat <= center.lat + band)
            near = np.flatnonzero(out)
            out[near] = distance_m(lat[near], column[near, 1]) < limit_m
            return out

        return test

    return Verdict(within(radius_m - slack_m), within(radius_m + slack_m))
