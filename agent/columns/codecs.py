"""What each type of payload index can hold of a payload's values, and in which form."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from core.datetimes import parse_datetime
from core.geo import geo_point

Encoded = int | float | tuple[int, int] | tuple[float, float]
EXACT_MAX = 1 << 53
"""Integers up to here are floats without loss."""

Encode = Callable[[Any], Encoded | None]
"""None for a value that the column cannot hold."""


def integer(value: Any) -> int | None:
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def floating(value: Any) -> float | None:
    if type(value) is float:
        return value
    return float(value) if type(value) is int and -EXACT_MAX <= value <= EXACT_MAX else None


def boolean(value: Any) -> int | None:
    return int(value) if type(value) is bool else None


def datetime(value: Any) -> int | None:
    return parse_datetime(value) if type(value) is str else None


def uuid_words(value: Any) -> tuple[int, int] | None:
    """Only in the canonical spelling: `match` compares strings."""
    if type(value) is not str or len(value) != 36:
        return None
    try:
        number = uuid.UUID(value)
    except ValueError:
        return None
    return (number.int >> 64, number.int & 0xFFFFFFFFFFFFFFFF) if str(number) == value else None


def geo(value: Any) -> tuple[float, float] | None:
    point = geo_point(value)
    return None if point is None else (point.lat, point.lon)


ENCODERS: dict[str, Encode] = {
    "integer": integer,
    "float": floating,
    "bool": boolean,
    "datetime": datetime,
    "uuid": uuid_words,
    "geo": geo,
}

PLAIN: dict[str, tuple[type, ...]] = {"integer": (int,), "float": (float,), "bool": (bool,)}
"""Types whose values numpy converts by itself, in bulk."""


def bulk(kind: str, values: Sequence[Any]) -> Sequence[Any] | None:
    """The values as they are, if all of them have the column's own type; they may still be out of range."""
    plain = PLAIN.get(kind)
    return values if plain is not None and set(map(type, values)) == {plain[0]} else None
