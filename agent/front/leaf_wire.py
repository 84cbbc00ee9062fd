"""Leaves and their answers as bytes: what one front asks of another about a shard.

Only the kinds named here can travel. A value is itself, or a list whose first element says what the rest is.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec
import numpy as np

from agent.front.queries import leaves
from core import filters, geo
from core.api.config import Distance
from core.errors import BadRequest
from core.payload import Path

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(leaves.Chosen, leaves.Among, leaves.Nearest, leaves.Judge, leaves.Scored, leaves.Page),
        *(leaves.Ordered, leaves.Sampled, leaves.Hits),
        *(filters.MatchValue, filters.MatchAny, filters.MatchExcept, filters.MatchText),
        *(filters.MatchTextAny, filters.MatchPhrase, filters.MatchPrefix, filters.NumberRange),
        *(filters.DatetimeRange, filters.GeoRadius, filters.GeoBox, filters.GeoPolygon),
        *(filters.ValuesCount, filters.IsEmpty, filters.IsNull, filters.HasId, filters.HasVector),
        *(filters.Slice, filters.Nested, filters.MinShould, filters.Filter),
        *(geo.GeoPoint, Path),
    )
}
_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _KINDS.values()}
_TUPLE, _LIST, _SET, _ARRAY, _DISTANCE, _PAIRS = 0, 1, 2, 3, 4, 5
_DTYPES = ("<f4", "<f8", "<i8", "|b1", "|u1")
_SIMPLE = (str, bytes, int, float, bool, type(None))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def encode(value: object) -> bytes:
    """Raises TypeError for what can't travel."""
    return _encode(_tree(value))


def decode(data: bytes) -> Any:
    """Raises BadRequest if these bytes are not of `encode`."""
    try:
        return _value(_decode(data))
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError) as problem:
        raise BadRequest(f"a question about a shard that cannot be read: {problem}") from None


def _tree(value: object) -> object:
    if isinstance(value, Distance):
        return [_DISTANCE, value.value]
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, np.ndarray):
        return [_ARRAY, value.dtype.str, list(value.shape), value.tobytes()]
    if isinstance(value, tuple):
        return [_TUPLE, *map(_tree, value)]
    if isinstance(value, list):
        return [_LIST, *map(_tree, value)]
    if isinstance(value, frozenset):
        return [_SET, *map(_tree, value)]
    if isinstance(value, dict):
        return [_PAIRS, *([_tree(key), _tree(each)] for key, each in value.items())]
    names = _FIELDS.get(type(value))
    if names is None:
        raise TypeError(f"{type(value).__name__} does not travel between fronts")
    return [type(value).__name__, *(_tree(getattr(value, name)) for name in names)]


def _value(tree: Any) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *rest = tree
    match kind:
        case str():
            return _KINDS[kind](*map(_value, rest))
        case 0:
            return tuple(map(_value, rest))
        case 1:
            return list(map(_value, rest))
        case 2:
            return frozenset(map(_value, rest))
        case 3:
            return _array(*rest)
        case 4:
            return Distance(rest[0])
        case 5:
            return {_value(key): _value(each) for key, each in rest}
    raise ValueError(f"unknown kind {kind!r}")


def _array(dtype: str, shape: list[int], data: bytes) -> np.ndarray[Any, Any]:
    if dtype not in _DTYPES:
        raise ValueError(f"arrays of {dtype} do not travel")
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape)
