"""Requests that write points: upsert, delete, vectors and payload edits, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Raw, Struct, field

from core.api.checks import DEFAULT_LIMITS, Limits, at_most, invalid, refuse_shard_key
from core.api.config import VectorParams
from core.api.filters import FilterBody, filter_json
from core.api.vectors import VectorRows, pack_default, pack_named, params_of
from core.errors import BadRequest
from core.hashing import IdKey, PointId, id_key
from core.payload import Path, Payload, decode_payload, parse_path, parse_set_path

Vectors = Mapping[str, VectorParams]
UpdateMode = Literal["upsert", "insert_only", "update_only"]
VectorBody = list[float] | dict[str, list[float]]
_NO_PAYLOAD = Raw(b"")


def _no_payload() -> Raw:
    return _NO_PAYLOAD


# -- as they come -------------------------------------------------------------------------------------------


class PointBody(Struct, frozen=True, gc=False):
    id: PointId
    vector: VectorBody
    payload: Raw = field(default_factory=_no_payload)


class BatchBody(Struct, frozen=True):
    ids: list[PointId]
    vectors: list[list[float]] | dict[str, list[list[float]]]
    payloads: list[Raw] | None = None


class Upsert(Struct, frozen=True):
    points: list[PointBody] | None = None
    batch: BatchBody | None = None
    update_mode: UpdateMode | None = None
    update_filter: FilterBody | None = None
    shard_key: Any = None


class PointVectors(Struct, frozen=True, gc=False):
    id: PointId
    vector: VectorBody


class UpdateVectors(Struct, frozen=True):
    points: list[PointVectors]
    update_filter: FilterBody | None = None
    shard_key: Any = None


class DeleteVectors(Struct, frozen=True):
    vector: list[str]
    points: list[PointId] | None = None
    filter: FilterBody | None = None
    shard_key: Any = None


class Selector(Struct, frozen=True):
    """Which points: by ids, else by filter. The body of delete and clear."""

    points: list[PointId] | None = None
    filter: FilterBody | None = None
    shard_key: Any = None


class SetPayload(Struct, frozen=True):
    payload: Raw
    points: list[PointId] | None = None
    filter: FilterBody | None = None
    key: str | None = None
    shard_key: Any = None


class DeletePayload(Struct, frozen=True):
    keys: list[str]
    points: list[PointId] | None = None
    filter: FilterBody | None = None
    shard_key: Any = None


class OperationBody(Struct, frozen=True):
    """Exactly one is set."""

    upsert: Upsert | None = None
    delete: Selector | None = None
    set_payload: SetPayload | None = None
    overwrite_payload: SetPayload | None = None
    delete_payload: DeletePayload | None = None
    clear_payload: Selector | None = None
    update_vectors: UpdateVectors | None = None
    delete_vectors: DeleteVectors | None = None


class UpdateBatch(Struct, frozen=True):
    operations: list[OperationBody]


# -- as the store takes them --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """The points an operation is about: those with these keys, and those that match the filter.

    Of the two only vector deletion may have both. `where` is a checked filter as JSON, which is what the
    log keeps; core.api.filters.read_filter reads it. `{}` means every point.
    """

    keys: tuple[IdKey, ...] | None = None
    where: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class UpsertPoints:
    """Whole points, one row each; an id that came twice is here once, as it came last."""

    keys: tuple[IdKey, ...]
    vectors: dict[str, VectorRows]
    payloads: tuple[bytes, ...]  # JSON objects as received, or empty
    mode: UpdateMode = "upsert"
    update_where: bytes | None = None


@dataclass(frozen=True, slots=True)
class DeletePoints:
    chosen: Chosen


@dataclass(frozen=True, slots=True, eq=False)
class EditVectors:
    keys: tuple[IdKey, ...]
    vectors: dict[str, VectorRows]
    update_where: bytes | None = None


@dataclass(frozen=True, slots=True)
class DropVectors:
    names: tuple[str, ...]
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class MergePayload:
    payload: Payload
    chosen: Chosen
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class ReplacePayload:
    payload: Payload
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class DropPayloadKeys:
    paths: tuple[Path, ...]
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class ClearPayload:
    chosen: Chosen


Operation = (
    UpsertPoints | DeletePoints | EditVectors | DropVectors
    | MergePayload | ReplacePayload | DropPayloadKeys | ClearPayload
)  # fmt: skip


def parse_upsert(body: Upsert, vectors: Vectors, limits: Limits = DEFAULT_LIMITS) -> UpsertPoints:
    """Raises BadRequest, Unprocessable or NotSupported; every point is checked, also one that comes again."""
    refuse_shard_key(body.shard_key)
    if (body.points is None) == (body.batch is None):
        found = "none" if body.points is None else "both"
        raise BadRequest(f"Wrong input: expected one of `points` and `batch`, got {found}")
    if body.points is not None:
        points = body.points
        ids = [point.id for point in points]
        packed = _pack([point.vector for point in points], vectors, _names("points", ids))
        raws: Sequence[Raw] = [point.payload for point in points]
    else:
        assert body.batch is not None
        ids, packed, raws = _columns(body.batch, vectors)
    if not ids:
        raise BadRequest("Wrong input: Empty update request: no points")
    payloads = [_checked_payload(raw, ids, i) for i, raw in enumerate(raws)]
    keys, chosen = _last_of_each(ids)
    if chosen is not None:
        packed = {name: VectorRows(v.rows[chosen], v.has[chosen]) for name, v in packed.items()}
        payloads = [payloads[i] for i in chosen]
    return UpsertPoints(
        keys=keys,
        vectors=packed,
        payloads=tuple(payloads),
        mode=body.update_mode or "upsert",
        update_where=filter_json(body.update_filter, limits),
    )


def _names(place: str, ids: Sequence[PointId]) -> Callable[[int], str]:
    return lambda i: f"{place}[{i}], point {str(ids[i])[:40]}"


def _pack(
    given: Sequence[VectorBody], vectors: Vectors, name_point: Callable[[int], str]
) -> dict[str, VectorRows]:
    # The usual case, all points with one bare list, needs no sorting by name.
    if all(type(value) is list for value in given):
        if not given:
            return {}
        return {"": pack_default(given, params_of("", vectors), name_point)}  # type: ignore[arg-type]
    return pack_named(given, vectors, name_point)


def _columns(
    batch: BatchBody, vectors: Vectors
) -> tuple[list[PointId], dict[str, VectorRows], Sequence[Raw]]:
    ids, n = batch.ids, len(batch.ids)
    columns = batch.vectors if isinstance(batch.vectors, dict) else {"": batch.vectors}
    for name, column in columns.items():
        if len(column) != n:
            raise invalid("batch", f"number of ids and vectors must be equal ({n} != {len(column)})")
        params_of(name, vectors)
    if batch.payloads is not None and len(batch.payloads) != n:
        raise invalid("batch", f"number of ids and payloads must be equal ({n} != {len(batch.payloads)})")
    packed = {
        name: pack_default(column, vectors[name], _names("batch", ids)) for name, column in columns.items()
    }
    return ids, packed, batch.payloads or [_NO_PAYLOAD] * n


def _checked_payload(raw: Raw, ids: Sequence[PointId], i: int) -> bytes:
    data = bytes(raw)
    if data in (b"", b"null", b"{}"):
        return b""
    try:
        # Whatever is stored must be readable again: msgspec passes raw JSON on unread.
        decode_payload(data)
    except BadRequest as error:
        raise BadRequest(f"{error} (points[{i}], point {str(ids[i])[:40]})") from None
    return data


def _last_of_each(ids: Sequence[PointId]) -> tuple[tuple[IdKey, ...], list[int] | None]:
    """The keys without repetition, and the positions that count; None if all do."""
    last = {id_key(one): i for i, one in enumerate(ids)}
    if len(last) == len(ids):
        return tuple(last), None
    return tuple(last), list(last.values())


def parse_update_vectors(
    body: UpdateVectors, vectors: Vectors, limits: Limits = DEFAULT_LIMITS
) -> EditVectors:
    """Of a point that comes twice, later vectors replace earlier ones by name."""
    refuse_shard_key(body.shard_key)
    if not body.points:
        raise invalid("points", "must specify points to update")
    ids = [point.id for point in body.points]
    packed = _pack([point.vector for point in body.points], vectors, _names("points", ids))
    given = [id_key(one) for one in ids]
    keys = tuple(dict.fromkeys(given))
    if len(keys) < len(given):
        place = {key: i for i, key in enumerate(keys)}
        packed = {name: _folded(v, [place[key] for key in given], len(keys)) for name, v in packed.items()}
    return EditVectors(keys, packed, filter_json(body.update_filter, limits))


def _folded(given: VectorRows, places: list[int], n: int) -> VectorRows:
    """Rows moved to their point's place; the last one that is there wins."""
    rows, has = np.zeros((n, given.rows.shape[1]), np.float32), np.zeros(n, np.bool_)
    for row, present, place in zip(given.rows, given.has, places, strict=True):
        if present:
            rows[place], has[place] = row, True
    return VectorRows(rows, has)


def parse_delete(body: Selector, limits: Limits = DEFAULT_LIMITS) -> DeletePoints:
    return DeletePoints(choose(body.points, body.filter, body.shard_key, limits))


def parse_clear(body: Selector, limits: Limits = DEFAULT_LIMITS) -> ClearPayload:
    return ClearPayload(choose(body.points, body.filter, body.shard_key, limits))


def parse_set_payload(body: SetPayload, limits: Limits = DEFAULT_LIMITS) -> MergePayload:
    payload = _given_payload(body.payload)
    key = None if body.key is None else parse_set_path(body.key, payload)
    return MergePayload(payload, choose(body.points, body.filter, body.shard_key, limits), key)


def parse_overwrite_payload(body: SetPayload, limits: Limits = DEFAULT_LIMITS) -> ReplacePayload:
    if body.key is not None:
        parse_path(body.key)  # it changes nothing, but must be a path
    chosen = choose(body.points, body.filter, body.shard_key, limits)
    return ReplacePayload(_given_payload(body.payload), chosen)


def parse_delete_payload(body: DeletePayload, limits: Limits = DEFAULT_LIMITS) -> DropPayloadKeys:
    paths = tuple(parse_path(key) for key in body.keys)
    return DropPayloadKeys(paths, choose(body.points, body.filter, body.shard_key, limits))


def parse_delete_vectors(
    body: DeleteVectors, vectors: Vectors, limits: Limits = DEFAULT_LIMITS
) -> DropVectors:
    if not body.vector:
        raise invalid("vector", "must specify vector names to delete")
    for name in body.vector:
        params_of(name, vectors)
    refuse_shard_key(body.shard_key)
    if body.points is None and body.filter is None:
        raise _nothing_chosen()
    chosen = Chosen(_keys(body.points), filter_json(body.filter, limits))
    return DropVectors(tuple(dict.fromkeys(body.vector)), chosen)


def choose(
    points: Sequence[PointId] | None, filter_: FilterBody | None, shard_key: Any, limits: Limits
) -> Chosen:
    """Ids win over a filter. Raises BadRequest if there is neither."""
    refuse_shard_key(shard_key)
    if points is not None:
        return Chosen(keys=_keys(points))
    if filter_ is not None:
        return Chosen(where=filter_json(filter_, limits))
    raise _nothing_chosen()


def _nothing_chosen() -> BadRequest:
    return BadRequest("Wrong input: expected `points` (a list of ids) or `filter`, got neither")


def _keys(points: Sequence[PointId] | None) -> tuple[IdKey, ...] | None:
    if points is None:
        return None
    if not points:
        raise BadRequest("Wrong input: points: the list of ids is empty")
    return tuple(dict.fromkeys([id_key(one) for one in points]))


def _given_payload(raw: Raw) -> Payload:
    data = bytes(raw)
    if data == b"null":
        raise BadRequest("Wrong input: payload: expected an object, got null")
    return decode_payload(data)


_KINDS = OperationBody.__struct_fields__


def parse_operations(
    body: UpdateBatch, vectors: Vectors, limits: Limits = DEFAULT_LIMITS
) -> tuple[Operation, ...]:
    """All operations of a batch, in order. Raises before any of them has begun."""
    at_most("operations", len(body.operations), limits.batch_max)
    return tuple(
        _operation(f"operations[{i}]", one, vectors, limits) for i, one in enumerate(body.operations)
    )


def _operation(where: str, one: OperationBody, vectors: Vectors, limits: Limits) -> Operation:
    given = [kind for kind in _KINDS if getattr(one, kind) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise BadRequest(f"Wrong input: {where}: expected one of {', '.join(_KINDS)}, got {found}")
    if one.upsert is not None:
        return parse_upsert(one.upsert, vectors, limits)
    if one.delete is not None:
        return parse_delete(one.delete, limits)
    if one.set_payload is not None:
        return parse_set_payload(one.set_payload, limits)
    if one.overwrite_payload is not None:
        return parse_overwrite_payload(one.overwrite_payload, limits)
    if one.delete_payload is not None:
        return parse_delete_payload(one.delete_payload, limits)
    if one.clear_payload is not None:
        return parse_clear(one.clear_payload, limits)
    if one.update_vectors is not None:
        return parse_update_vectors(one.update_vectors, vectors, limits)
    assert one.delete_vectors is not None
    return parse_delete_vectors(one.delete_vectors, vectors, limits)


def raw_payload(payload: bytes) -> Raw:
    """A stored payload as part of an answer, spliced in without being read."""
    return msgspec.Raw(payload or b"{}")
