"""Formula queries: an expression tree, evaluated in f64 over all candidate rows at once.

An operand that does not matter is not evaluated: a product stops at its first 0, a quotient of 0 needs no
divisor. So errors come only from rows whose score needs the value that is missing or not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from core import filters
from core.datetimes import parse_datetime
from core.errors import BadRequest
from core.geo import EARTH_RADIUS_M, GeoPoint, geo_point
from core.query.scoring import F32, F64, I64, Bits


@dataclass(frozen=True, slots=True)
class Constant:
    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """The score that prefetch number `index` gave to the point."""

    index: int


@dataclass(frozen=True, slots=True)
class Field:
    """The one number at a path of the payload."""

    path: str


@dataclass(frozen=True, slots=True)
class Condition:
    """1 where a condition of the filter language holds, else 0."""

    condition: filters.Condition


@dataclass(frozen=True, slots=True)
class DatetimeField:
    """The one datetime at a path of the payload, as seconds since 1970."""

    path: str


@dataclass(frozen=True, slots=True)
class GeoDistance:
    """Metres from the origin to the one {lat, lon} at a path."""

    lat: float
    lon: float
    path: str


@dataclass(frozen=True, slots=True)
class Unary:
    operator: Literal["neg", "abs", "sqrt", "exp", "log10", "ln", "acosh"]
    operand: Expression


@dataclass(frozen=True, slots=True)
class Many:
    operator: Literal["sum", "mult", "max", "min"]
    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Div:
    left: Expression
    right: Expression
    by_zero_default: float | None = None


@dataclass(frozen=True, slots=True)
class Pow:
    base: Expression
    exponent: Expression


@dataclass(frozen=True, slots=True)
class Decay:
    """1 at the target, `midpoint` at a distance of `scale` from it."""

    kind: Literal["lin", "exp", "gauss"]
    x: Expression
    target: Expression = Constant(0.0)
    scale: float = 1.0
    midpoint: float = 0.5

    def __post_init__(self) -> None:
        low, high = (self.midpoint >= 0), (self.midpoint <= 1)
        if self.kind != "lin":
            low, high = (self.midpoint > 0), (self.midpoint < 1)
        if not (low and high):
            ends = "from 0.0 to 1.0" if self.kind == "lin" else "between 0.0 and 1.0, both excluded"
            raise BadRequest(f"{self.kind}_decay.midpoint: {self.midpoint} found, expected a number {ends}")
        if not self.scale > 0:
            raise BadRequest(f"{self.kind}_decay.scale: {self.scale} found, expected a number above 0")


Expression = (
    Constant | Score | Field | Condition | DatetimeField | GeoDistance | Unary | Many | Div | Pow | Decay
)  # fmt: skip


class Rows(Protocol):
    """What a formula may read of its candidates; rows are numbered from 0."""

    def __len__(self) -> int: ...

    def scores(self, prefetch: int) -> F64:
        """Per row, NaN where that prefetch did not find the point (or does not exist)."""

    def values(self, path: str) -> Sequence[Sequence[object]]:
        """The payload's values at the path, per row; a list there counts by element."""

    def holds(self, condition: filters.Condition) -> Bits:
        """Per row, whether the condition does."""


def evaluate(formula: Expression, rows: Rows, defaults: Mapping[str, object]) -> F32:
    """A score per row. Raises BadRequest where a value is missing, of a wrong type, or not finite as f32.

    defaults: by path, or `$score[i]` (`$score` is `$score[0]`).
    """
    named = {"$score[0]" if key == "$score" else key: value for key, value in defaults.items()}
    with np.errstate(all="ignore"):
        exact = _Evaluation(rows, named).of(formula, np.arange(len(rows)))
        scores = exact.astype(np.float32)
    _require_finite(np.isfinite(scores), lambda i: f"{exact[i]} as f32")
    return scores


class _Evaluation:
    """One run: `of` gives an expression's values at some rows (positions, ascending)."""

    def __init__(self, rows: Rows, defaults: Mapping[str, object]) -> None:
        self._rows = rows
        self._defaults = defaults
        self._read: dict[str, Sequence[Sequence[object]]] = {}

    def of(self, expression: Expression, at: I64) -> F64:
        match expression:
            case Constant(value):
                return np.full(len(at), value, np.float64)
            case Score(index):
                return self._score(index, at)
            case Field(path):
                return self._numbers(path, at)
            case Condition(condition):
                return self._rows.holds(condition)[at].astype(np.float64)
            case DatetimeField(path):
                return self._seconds(path, at)
            case GeoDistance():
                return self._distance_m(expression, at)
            case Unary(operator, operand):
                return _unary(operator, self.of(operand, at))
            case Many("mult", operands):
                return self._product(operands, at)
            case Many(operator, operands):
                return _fold(operator, [self.of(operand, at) for operand in operands], len(at))
            case Div():
                return self._quotient(expression, at)
            case Pow(base, exponent):
                low, high = self.of(base, at), self.of(exponent, at)
                power: F64 = np.power(low, high)
                return _finite(power, lambda i: f"{low[i]}^{high[i]}")
            case Decay():
                return _decay(expression, self.of(expression.x, at) - self.of(expression.target, at))

    def _score(self, index: int, at: I64) -> F64:
        scores = self._rows.scores(index)[at]
        missing = np.isnan(scores)
        if missing.any():
            default = self._defaults.get(f"$score[{index}]")
            value = 0.0 if default is None else _number(default)
            if value is None:
                raise _expected("number", f"$score[{index}]", default)
            scores = np.where(missing, value, scores)
        return scores

    def _numbers(self, path: str, at: I64) -> F64:
        out = np.empty(len(at))
        for i, found in enumerate(self._single(path, at)):
            value = _number(found)
            if value is None:
                raise _expected("number", path, found)
            out[i] = value
        return out

    def _seconds(self, path: str, at: I64) -> F64:
        out = np.empty(len(at))
        for i, found in enumerate(self._single(path, at)):
            micros = parse_datetime(found) if isinstance(found, str) else None
            if micros is None:
                raise _expected("datetime", path, found)
            out[i] = micros / 1e6
        return out

    def _distance_m(self, geo: GeoDistance, at: I64) -> F64:
        points = np.empty((len(at), 2))
        for i, found in enumerate(self._single(geo.path, at)):
            point = geo_point(found)
            if point is None:
                raise _expected("geo point", geo.path, found)
            points[i] = point.lat, point.lon
        return haversine_m(GeoPoint(geo.lat, geo.lon), points[:, 0], points[:, 1])

    def _single(self, path: str, at: I64) -> list[object]:
        """The one value at the path in each row, or its default; None if there is neither."""
        if path not in self._read:
            self._read[path] = self._rows.values(path)
        found, default = self._read[path], self._defaults.get(path)
        if isinstance(default, list):
            default = default[0] if len(default) == 1 else (default or None)
        single: list[object] = []
        for i in at.tolist():
            values = found[i]
            single.append(values[0] if len(values) == 1 else (values or default))
        return single

    def _product(self, factors: Sequence[Expression], at: I64) -> F64:
        product = np.ones(len(at))
        going = np.arange(len(at))
        for factor in factors:
            values = self.of(factor, at[going])
            product[going] = np.where(values == 0, 0.0, product[going] * values)
            going = going[values != 0]
        return product

    def _quotient(self, div: Div, at: I64) -> F64:
        quotient = self.of(div.left, at)
        going = np.flatnonzero(quotient != 0)
        left, right = quotient[going], self.of(div.right, at[going])
        result = left / right
        if div.by_zero_default is not None:
            result = np.where(right == 0, div.by_zero_default, result)
        quotient[going] = _finite(result, lambda i: f"{left[i]}/{right[i]}")
        return quotient


def haversine_m(origin: GeoPoint, lats: F64, lons: F64) -> F64:
    """Great-circle distance in metres from one point to many; degrees in."""
    phi, phis = np.radians(origin.lat), np.radians(lats)
    a = np.sin((phis - phi) / 2) ** 2
    a = a + np.cos(phi) * np.cos(phis) * np.sin((np.radians(lons) - np.radians(origin.lon)) / 2) ** 2
    distance: F64 = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(a, 0, 1)))
    return distance


_UNARY: dict[str, tuple[Callable[[F64], F64], str]] = {
    "sqrt": (np.sqrt, "√{}"),
    "exp": (np.exp, "exp({})"),
    "log10": (np.log10, "log10({})"),
    "ln": (np.log, "ln({})"),
    "acosh": (np.arccosh, "acosh({})"),
}


def _unary(operator: str, x: F64) -> F64:
    if operator == "neg":
        return -x
    if operator == "abs":
        return np.abs(x)
    function, shown = _UNARY[operator]
    return _finite(function(x), lambda i: shown.format(x[i]))


def _fold(operator: str, operands: Sequence[F64], count: int) -> F64:
    if operator == "sum":
        total = np.zeros(count)
        for operand in operands:
            total = total + operand
        return total
    # fmax and fmin skip NaN, as the reference does.
    stacked = np.stack(operands)
    folded: F64 = np.fmax.reduce(stacked) if operator == "max" else np.fmin.reduce(stacked)
    return folded


def _decay(decay: Decay, difference: F64) -> F64:
    if decay.kind == "lin":
        return np.maximum(0.0, 1 - (1 - decay.midpoint) / decay.scale * np.abs(difference))
    rate = np.log(decay.midpoint)
    if decay.kind == "exp":
        exponent: F64 = rate / decay.scale * np.abs(difference)
    else:
        exponent = rate / (decay.scale * decay.scale) * difference * difference
    return np.exp(exponent)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf  # an integer beyond the floats; refused where it makes a score infinite


def _finite(values: F64, shown: Callable[[int], str]) -> F64:
    _require_finite(np.isfinite(values), shown)
    return values


def _require_finite(finite: Bits, shown: Callable[[int], str]) -> None:
    if not finite.all():
        raise BadRequest(
            f"The expression {shown(int(np.argmin(finite)))} produced a non-finite number; "
            "give a default, by_zero_default, or a condition that leaves such points out"
        )


def _expected(kind: str, path: str, found: object) -> BadRequest:
    what = "nothing" if found is None else repr(found)[:40]
    return BadRequest(
        f"Expected {kind} value for {path[:60]} in the payload and/or in the formula defaults, found {what}"
    )
