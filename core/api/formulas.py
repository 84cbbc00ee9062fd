"""Formulas as requests spell them, parsed into the expressions of core/query/formula.py."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from core.api.checks import DEFAULT_LIMITS, Limits, show
from core.api.decode import convert
from core.api.filters import ConditionBody, parse_condition
from core.datetimes import parse_datetime
from core.errors import BadRequest
from core.filters import Filter
from core.payload import parse_path
from core.query import formula as e

_SCORE = re.compile(r"\$score(?:\[(\d{1,9})\])?")
_UNARY = ("neg", "abs", "sqrt", "exp", "log10", "ln", "acosh")
_MANY = ("sum", "mult", "max", "min")
_DECAYS = ("lin_decay", "exp_decay", "gauss_decay")
_DEPTH_MAX = 64


def parse_formula(given: Any, limits: Limits = DEFAULT_LIMITS) -> e.Expression:
    """The expression. Raises BadRequest, naming the place in the formula."""
    return _Parser(limits).expression(given, "query.formula", 0)


def parse_defaults(given: Mapping[str, Any] | None) -> dict[str, object]:
    """What stands in for a missing score (`$score[i]`) or value (by its path)."""
    defaults: dict[str, object] = {}
    for name, value in (given or {}).items():
        if _SCORE.fullmatch(name):
            defaults["$score[0]" if name == "$score" else name] = value
        else:
            defaults[str(parse_path(name))] = value
    return defaults


class _Parser:
    """One formula's descent, which counts what it meets."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nodes = 0

    def expression(self, given: Any, at: str, depth: int) -> e.Expression:
        self._nodes += 1
        if depth > _DEPTH_MAX or self._nodes > self._limits.formula_nodes_max:
            raise BadRequest(
                f"Wrong input: query.formula: over {_DEPTH_MAX} levels, or parts: "
                f"{self._limits.formula_nodes_max}"
            )
        if isinstance(given, bool):
            raise _wrong(at, given)
        if isinstance(given, (int, float)):
            return e.Constant(_number(given, at))
        if isinstance(given, str):
            return _variable(given)
        if not isinstance(given, dict):
            raise _wrong(at, given)
        return self._operation(given, at, depth + 1)

    def _operation(self, given: dict[str, Any], at: str, depth: int) -> e.Expression:
        present = {name: value for name, value in given.items() if value is not None}
        known = [name for name in present if name in _PARSERS]
        if not known:
            return self._condition(present, at)
        if len(known) > 1:
            raise BadRequest(f"Wrong input: {at[:80]}: expected one operation, got {' and '.join(known)}")
        name = known[0]
        return _PARSERS[name](self, name, present[name], f"{at}.{name}", depth)

    def _condition(self, given: dict[str, Any], at: str) -> e.Expression:
        if not given:
            return e.Condition(Filter())
        body = convert(ConditionBody, given, at)
        condition = parse_condition(body, self._limits)
        return e.Condition(condition if isinstance(condition, Filter) else Filter(must=(condition,)))

    def unary(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        operator = cast(Literal["neg", "abs", "sqrt", "exp", "log10", "ln", "acosh"], name)
        return e.Unary(operator, self.expression(given, at, depth))

    def many(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        if not isinstance(given, list):
            raise BadRequest(f"Wrong input: {at[:80]}: expected a list, got {show(given)}")
        if not given and name in ("max", "min"):
            raise BadRequest(f"Wrong input: {at[:80]}: at least one expression is needed")
        operator = cast(Literal["sum", "mult", "max", "min"], name)
        return e.Many(operator, tuple(self.expression(x, f"{at}[{i}]", depth) for i, x in enumerate(given)))

    def div(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        parts = _object(given, at, ("left", "right"))
        default = parts.get("by_zero_default")
        return e.Div(
            self.expression(parts["left"], f"{at}.left", depth),
            self.expression(parts["right"], f"{at}.right", depth),
            None if default is None else _number(default, f"{at}.by_zero_default"),
        )

    def pow(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        parts = _object(given, at, ("base", "exponent"))
        return e.Pow(
            self.expression(parts["base"], f"{at}.base", depth),
            self.expression(parts["exponent"], f"{at}.exponent", depth),
        )

    def geo_distance(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        parts = _object(given, at, ("origin", "to"))
        origin = _object(parts["origin"], f"{at}.origin", ("lat", "lon"))
        lat, lon = (_number(origin[axis], f"{at}.origin.{axis}") for axis in ("lat", "lon"))
        if not (-90 <= lat <= 90 and -180 <= lon <= 180):
            raise BadRequest(f"Wrong input: {at[:80]}.origin: lat {lat}, lon {lon} is no point on the globe")
        return e.GeoDistance(lat, lon, str(parse_path(_text(parts["to"], f"{at}.to"))))

    def datetime(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        micros = parse_datetime(_text(given, at))
        if micros is None:
            raise BadRequest(f"Wrong input: {at[:80]}: {show(given)} is no RFC 3339 datetime")
        return e.Constant(micros / 1e6)

    def datetime_key(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        return e.DatetimeField(str(parse_path(_text(given, at))))

    def decay(self, name: str, given: Any, at: str, depth: int) -> e.Expression:
        parts = _object(given, at, ("x",))
        target, scale, midpoint = parts.get("target"), parts.get("scale"), parts.get("midpoint")
        return e.Decay(
            cast(Literal["lin", "exp", "gauss"], name.removesuffix("_decay")),
            self.expression(parts["x"], f"{at}.x", depth),
            e.Constant(0.0) if target is None else self.expression(target, f"{at}.target", depth),
            1.0 if scale is None else _number(scale, f"{at}.scale"),
            0.5 if midpoint is None else _number(midpoint, f"{at}.midpoint"),
        )


_Parse = Callable[[_Parser, str, Any, str, int], e.Expression]
_PARSERS: dict[str, _Parse] = {
    **dict.fromkeys(_UNARY, _Parser.unary),
    **dict.fromkeys(_MANY, _Parser.many),
    **dict.fromkeys(_DECAYS, _Parser.decay),
    "div": _Parser.div,
    "pow": _Parser.pow,
    "geo_distance": _Parser.geo_distance,
    "datetime": _Parser.datetime,
    "datetime_key": _Parser.datetime_key,
}


def _variable(text: str) -> e.Expression:
    score = _SCORE.fullmatch(text)
    if score is not None:
        return e.Score(int(score.group(1) or 0))
    if text.startswith("$"):
        raise BadRequest(
            f"Wrong input: query.formula: unknown variable {show(text)}, expected $score or $score[i]"
        )
    return e.Field(str(parse_path(text)))


def _object(given: Any, at: str, needed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadRequest(f"Wrong input: {at[:80]}: expected an object, got {show(given)}")
    for name in needed:
        if given.get(name) is None:
            raise BadRequest(f"Wrong input: {at[:80]}: missing field {name}")
    return given


def _number(given: Any, at: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise BadRequest(f"Wrong input: {at[:80]}: expected a number, got {show(given)}")
    try:
        number = float(given)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRequest(f"Wrong input: {at[:80]}: {show(given)} is out of range")
    return number


def _text(given: Any, at: str) -> str:
    if not isinstance(given, str):
        raise BadRequest(f"Wrong input: {at[:80]}: expected a string, got {show(given)}")
    return given


def _wrong(at: str, given: Any) -> BadRequest:
    return BadRequest(f"Wrong input: {at[:80]}: expected a number, a string or an object, got {show(given)}")
