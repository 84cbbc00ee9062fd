"""Formulas: what they compute, and the words in which they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from core import filters
from core.api.formulas import parse_defaults, parse_formula
from core.errors import BadRequest
from core.payload import Payload, elements_at, parse_path
from core.query.formula import evaluate
from core.query.scoring import F64, Bits


class Rows:
    """Payloads, and the scores of one prefetch that did not find the last row."""

    def __init__(self, *payloads: Payload) -> None:
        self.payloads = payloads

    def __len__(self) -> int:
        return len(self.payloads)

    def scores(self, prefetch: int) -> F64:
        scores = np.full(len(self), np.nan)
        if prefetch == 0:
            scores[:-1] = 0.5
        return scores

    def values(self, path: str) -> Sequence[Sequence[object]]:
        return [elements_at(payload, parse_path(path)) for payload in self.payloads]

    def holds(self, condition: filters.Condition) -> Bits:
        test = filters.compile_condition(condition)
        return np.array([test(b"", payload, ()) for payload in self.payloads], np.bool_)


def score(formula: Any, *payloads: Payload, defaults: dict[str, Any] | None = None) -> list[float]:
    """The scores of these payloads; one more row stands behind them, which no prefetch found."""
    rows = Rows(*payloads, payloads[-1])
    return evaluate(parse_formula(formula), rows, parse_defaults(defaults)).tolist()[: len(payloads)]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (2.5, 2.5),
        ("$score", 0.5),
        ("$score[0]", 0.5),
        ("$score[7]", 0),
        ("n", 4),
        ('a."b c"', 3),
        ({"sum": ["n", "$score", 1]}, 5.5),
        ({"sum": []}, 0),
        ({"mult": ["n", 2, "$score"]}, 4),
        ({"mult": []}, 1),
        ({"mult": [0, "missing"]}, 0),
        ({"neg": "n"}, -4),
        ({"abs": {"neg": "n"}}, 4),
        ({"div": {"left": "n", "right": 8}}, 0.5),
        ({"div": {"left": 0, "right": "missing"}}, 0),
        ({"div": {"left": "n", "right": 0, "by_zero_default": 7}}, 7),
        ({"sqrt": "n"}, 2),
        ({"pow": {"base": "n", "exponent": 1.5}}, 8),
        ({"exp": 1}, math.e),
        ({"log10": 1000}, 3),
        ({"ln": {"exp": 2}}, 2),
        ({"max": [1, "n"]}, 4),
        ({"min": [1, "n"]}, 1),
        ({"key": "city", "match": {"value": "Oslo"}}, 1),
        ({"key": "city", "match": {"value": "Rome"}}, 0),
        ({"must": [{"key": "n", "range": {"gt": 3}}]}, 1),
        ({"geo_distance": {"origin": {"lat": 59.9139, "lon": 10.7522}, "to": "at"}}, 0),
        ({"datetime": "1970-01-01T00:01:00Z"}, 60),
        ({"datetime_key": "when"}, 86400),
        ({"lin_decay": {"x": "n"}}, 0),
        ({"lin_decay": {"x": "n", "target": 3, "scale": 2, "midpoint": 0.2}}, 0.6),
        ({"exp_decay": {"x": "n", "target": 2, "scale": 4}}, 0.5**0.5),
        ({"gauss_decay": {"x": "n", "target": 2, "scale": 4}}, 0.5**0.25),
    ],
)
def test_an_expression_has_its_value(formula: Any, expected: float) -> None:
    payload = {
        "n": 4,
        "a": {"b c": [3]},
        "city": "Oslo",
        "at": {"lat": 59.9139, "lon": 10.7522},
        "when": "1970-01-02",
    }
    assert score(formula, payload) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    "formula",
    [
        {"div": {"left": "n", "right": 0}},
        {"sqrt": {"neg": "n"}},
        {"ln": 0},
        {"log10": -1},
        {"exp": 1000},
        {"pow": {"base": 0, "exponent": -1}},
        {"pow": {"base": -1, "exponent": 0.5}},
        {"acosh": 0.5},
        {"mult": [1e30, 1e30]},
        {"mult": ["huge", 1]},
    ],
)
def test_what_is_not_finite_as_f32_is_refused_in_the_words_that_clients_know(formula: Any) -> None:
    with pytest.raises(BadRequest, match="produced a non-finite number"):
        score(formula, {"n": 4, "huge": 10**400})


@pytest.mark.parametrize(
    "formula",
    [
        "missing",
        "text",
        "flag",
        "several",
        {"datetime_key": "text"},
        {"datetime_key": "n"},
        {"geo_distance": {"origin": {"lat": 0, "lon": 0}, "to": "n"}},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_the_words_that_clients_know(formula: Any) -> None:
    payload = {"n": 1, "text": "x", "flag": True, "several": [1, 2]}
    with pytest.raises(BadRequest, match="in the payload and/or in the formula defaults"):
        score(formula, payload)


def test_defaults_stand_in_for_what_is_missing_only() -> None:
    formula = {"sum": ["n", "$score[1]", {"datetime_key": "when"}]}
    defaults = {"n": 10, "$score[1]": 100, "when": "1970-01-01T00:00:07Z"}
    assert score(formula, {"n": 1}, {"n": []}, {}, defaults=defaults) == [108, 117, 117]


def test_the_score_of_a_prefetch_that_missed_the_point_is_its_default_or_zero() -> None:
    rows = Rows({}, {})
    assert evaluate(parse_formula("$score"), rows, {}).tolist() == [0.5, 0]
    assert evaluate(parse_formula("$score"), rows, parse_defaults({"$score": 9})).tolist() == [0.5, 9]


def test_an_operand_that_does_not_matter_is_not_looked_at() -> None:
    ok = {"key": "ok", "match": {"value": True}}
    formula = {"mult": [ok, {"div": {"left": 1, "right": "n"}}]}
    assert score(formula, {"ok": True, "n": 4}, {"ok": False}, {"n": 0}) == [0.25, 0, 0]


@pytest.mark.parametrize(
    "decay",
    [
        {"lin_decay": {"x": 1, "midpoint": 1.5}},
        {"exp_decay": {"x": 1, "midpoint": 0}},
        {"gauss_decay": {"x": 1, "midpoint": 1}},
        {"exp_decay": {"x": 1, "scale": 0}},
        {"lin_decay": {"x": 1, "scale": -1}},
    ],
)
def test_decays_without_a_shape_are_refused(decay: Any) -> None:
    with pytest.raises(BadRequest, match="decay"):
        parse_formula(decay)
