"""Vectors as requests spell them to f32 rows: packed, checked, and normalised for cosine."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, sqrt

import numpy as np
import numpy.typing as npt

from core.api.config import Distance, VectorParams
from core.errors import BadRequest, Unprocessable

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Name = str


@dataclass(frozen=True, slots=True, eq=False)
class VectorRows:
    """One vector of many points: row i belongs to point i; where has[i] is false it is all zero."""

    rows: F32  # (n, d)
    has: Bits  # (n,)


@lru_cache(maxsize=64)
def _packer(size: int) -> struct.Struct:
    return struct.Struct(f"<{size}f")


def wrong_size(expected: int, got: int, where: str = "") -> BadRequest:
    suffix = f" ({where})" if where else ""
    return BadRequest(f"Wrong input: Vector dimension error: expected dim: {expected}, got {got}{suffix}")


def unknown_vector(name: str) -> BadRequest:
    return BadRequest(f"Wrong input: Not existing vector name error: {name[:80]}")


def params_of(name: str, vectors: Mapping[str, VectorParams]) -> VectorParams:
    """The parameters of a vector that a request names; the default vector is `""`."""
    params = vectors.get(name)
    if params is None:
        raise unknown_vector(name)
    return params


def normalise(rows: F32) -> F32:
    """Rows (n, d) at unit length; a zero row stays zero. Lengths are summed in f64: no overflow."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    lengths[lengths == 0.0] = 1.0
    scaled: F32 = (rows / lengths[:, None]).astype(np.float32)
    return scaled


def query_row(values: Sequence[float], params: VectorParams, where: str = "query") -> F32:
    """One vector (d,) to search with, as the graphs hold theirs. Raises BadRequest."""
    if len(values) != params.size:
        if not values:
            raise Unprocessable(f"Validation error in JSON body: [{where}: the vector is empty]")
        raise wrong_size(params.size, len(values))
    row = np.frombuffer(_pack(values, where), np.float32)
    wide = row.astype(np.float64)
    squares = float(wide.dot(wide))
    if not isfinite(squares):  # squares of f32 can't overflow f64, so some value is not finite
        raise _not_finite(where)
    if params.distance is not Distance.COSINE or squares == 0.0:
        return row
    wide *= 1.0 / sqrt(squares)
    unit: F32 = wide.astype(np.float32)
    return unit


def _pack(values: Sequence[float], where: str) -> bytes:
    try:
        return _packer(len(values)).pack(*values)
    except OverflowError:
        raise _not_finite(where) from None


def pack_default(
    given: Sequence[Sequence[float]], params: VectorParams, name_point: Callable[[int], str]
) -> VectorRows:
    """Rows of the one unnamed vector, all present. `name_point(i)` says in errors whose row i is."""
    size = params.size
    rows = np.empty((len(given), size), np.float32)
    pack_into, buffer, step = _packer(size).pack_into, rows.reshape(-1).view(np.uint8).data, 4 * size
    for i, values in enumerate(given):
        if len(values) != size:
            raise _bad_length(size, values, name_point(i))
        try:
            pack_into(buffer, i * step, *values)
        except OverflowError:
            raise _not_finite(name_point(i)) from None
    return VectorRows(_finished(rows, params, name_point), np.ones(len(given), np.bool_))


def pack_named(
    given: Sequence[Sequence[float] | Mapping[str, Sequence[float]]],
    vectors: Mapping[str, VectorParams],
    name_point: Callable[[int], str],
) -> dict[Name, VectorRows]:
    """Rows by vector name, for points that may have any of them. A bare list is the vector `""`.

    Only names that some point has are in the answer. Raises BadRequest.
    """
    by_name: dict[Name, tuple[list[int], list[Sequence[float]]]] = {}
    for i, value in enumerate(given):
        named = value if isinstance(value, Mapping) else {"": value}
        for name, values in named.items():
            if name not in vectors:
                raise unknown_vector(name)
            positions, lists = by_name.setdefault(name, ([], []))
            positions.append(i)
            lists.append(values)
    packed: dict[Name, VectorRows] = {}
    for name, (positions, lists) in by_name.items():
        params = vectors[name]
        some = pack_default(lists, params, lambda i, at=positions: name_point(at[i]))  # type: ignore[misc]
        if len(positions) == len(given):
            packed[name] = some
            continue
        rows, has = np.zeros((len(given), params.size), np.float32), np.zeros(len(given), np.bool_)
        rows[positions], has[positions] = some.rows, True
        packed[name] = VectorRows(rows, has)
    return packed


def _finished(rows: F32, params: VectorParams, name_point: Callable[[int], str]) -> F32:
    if not np.isfinite(rows).all():
        raise _not_finite(name_point(int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])))
    return normalise(rows) if params.distance is Distance.COSINE else rows


def _not_finite(where: str) -> BadRequest:
    return BadRequest(f"Wrong input: {where}: a value is not finite as a 32-bit float")


def _bad_length(size: int, values: Sequence[float], where: str) -> BadRequest | Unprocessable:
    if len(values) == 0:
        return Unprocessable(f"Validation error in JSON body: [{where}: the vector is empty]")
    return wrong_size(size, len(values), where)
