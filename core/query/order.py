"""order_by: payload values as sort keys, and rows (value, id key) in their order."""

from __future__ import annotations

from collections.abc import Iterable

from core.datetimes import parse_datetime

OrderValue = int | float
Row = tuple[OrderValue, bytes]
"""A point's place in an order: it has one for each different value of a list."""


def order_value(value: object) -> OrderValue | None:
    """Integers and floats as they are, datetimes as microseconds since 1970, else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    return parse_datetime(value) if isinstance(value, str) else None


def places(values: Iterable[object], *, start_from: OrderValue | None, descending: bool) -> list[OrderValue]:
    """The different sort keys of one point, from `start_from` (included) on."""
    found: dict[OrderValue, None] = {}
    for value in values:
        place = order_value(value)
        if place is None:
            continue
        if start_from is None or (place <= start_from if descending else place >= start_from):
            found[place] = None
    return list(found)


def first(rows: Iterable[Row], limit: int, *, descending: bool) -> list[Row]:
    """The first rows by value, ties by id key in either direction."""
    if descending:
        # Two stable sorts, as a number has a negative but a key has not.
        by_key = sorted(rows, key=_key)
        by_key.sort(key=_value, reverse=True)
        return by_key[:limit]
    return sorted(rows)[:limit]


def _key(row: Row) -> bytes:
    return row[1]


def _value(row: Row) -> OrderValue:
    return row[0]
