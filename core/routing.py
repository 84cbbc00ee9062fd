"""A parsed write becomes log operations, shard by shard: by the hash of its ids, or to all by filter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from core import wire
from core.api import points as api
from core.api.vectors import VectorRows
from core.errors import TooLarge
from core.hashing import KEY_BYTES, IdKey, shard_of
from core.payload import encode_payload

_MODES = {
    "upsert": wire.UpdateMode.UPSERT,
    "insert_only": wire.UpdateMode.INSERT_ONLY,
    "update_only": wire.UpdateMode.UPDATE_ONLY,
}
_ENTRY_OVERHEAD_BYTES = 4096
_POINT_OVERHEAD_BYTES = KEY_BYTES + 16
_IDS_MAX = 100_000

Routed = dict[int, list[wire.Op]]
"""Shard → the operations for it, in order."""


def route(write: api.Operation, numbers: Mapping[str, int], shard_count: int) -> Routed:
    """The operations that `write` means. `numbers`: vector name → v. Each fits one log entry.

    Raises TooLarge if a single point is larger than an entry may be.
    """
    if isinstance(write, api.UpsertPoints):
        return {
            shard: list(_upserts(write, places, numbers))
            for shard, places in _places(write.keys, shard_count).items()
        }
    if isinstance(write, api.EditVectors):
        return {
            shard: list(_vector_edits(write, places, numbers))
            for shard, places in _places(write.keys, shard_count).items()
        }
    return _by_choice(write, numbers, shard_count)


def _places(keys: Sequence[IdKey], shard_count: int) -> dict[int, Sequence[int]]:
    """Which of the keys (by position) belong to which shard."""
    if shard_count == 1:
        return {0: range(len(keys))}
    found: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(shard_of(key, shard_count), []).append(place)
    return {shard: found[shard] for shard in sorted(found)}


def _upserts(
    write: api.UpsertPoints, places: Sequence[int], numbers: Mapping[str, int]
) -> Iterator[wire.Upsert]:
    for part in _parts(places, write.vectors, write.payloads):
        yield wire.Upsert(
            ids=_joined(write.keys, part),
            rows=_rows(write.vectors, part, numbers),
            payloads=tuple(write.payloads[i] for i in part),
            mode=_MODES[write.mode],
            where=write.update_where,
        )


def _vector_edits(
    write: api.EditVectors, places: Sequence[int], numbers: Mapping[str, int]
) -> Iterator[wire.UpdateVectors]:
    for part in _parts(places, write.vectors, None):
        yield wire.UpdateVectors(
            ids=_joined(write.keys, part), rows=_rows(write.vectors, part, numbers), where=write.update_where
        )


def _parts(
    places: Sequence[int], vectors: Mapping[str, VectorRows], payloads: Sequence[bytes] | None
) -> Iterator[Sequence[int]]:
    """Runs of places whose points fit one entry together."""
    fixed = _POINT_OVERHEAD_BYTES + sum(4 * rows.rows.shape[1] for rows in vectors.values())
    bound = wire.ENTRY_BYTES_MAX - _ENTRY_OVERHEAD_BYTES
    begin, size = 0, 0
    for at, place in enumerate(places):
        own = fixed + (len(payloads[place]) if payloads is not None else 0)
        if own > bound:
            raise TooLarge(
                f"a point of {own} bytes is over the {bound} that one log entry holds; store less in it"
            )
        if size + own > bound:
            yield places[begin:at]
            begin, size = at, 0
        size += own
    yield places[begin:]


def _joined(keys: Sequence[IdKey], places: Sequence[int]) -> bytes:
    return b"".join([keys[i] for i in places])


def _rows(
    vectors: Mapping[str, VectorRows], places: Sequence[int], numbers: Mapping[str, int]
) -> tuple[wire.Rows, ...]:
    found: list[wire.Rows] = []
    for name, given in vectors.items():
        whole = len(places) == len(given.has)
        rows = given.rows if whole else given.rows[places]
        has = given.has if whole else given.has[places]
        if has.all():
            found.append(wire.Rows(numbers[name], rows.shape[1], rows.tobytes()))
        elif has.any():
            mask = has.astype(np.uint8).tobytes()
            found.append(wire.Rows(numbers[name], rows.shape[1], rows[has].tobytes(), mask))
    return tuple(found)


def _by_choice(write: api.Operation, numbers: Mapping[str, int], shard_count: int) -> Routed:
    """Deletes and edits: to the shards of the ids, or, by filter, to all shards."""
    assert not isinstance(write, api.UpsertPoints | api.EditVectors)
    chosen = write.chosen
    keys = chosen.keys or ()
    places = _places(keys, shard_count) if keys else {}
    shards = range(shard_count) if chosen.where is not None else sorted(places)
    routed: Routed = {}
    for shard in shards:
        mine = places.get(shard, ())
        # The filter goes with the first part alone; ids are split, or they would not fit one entry.
        routed[shard] = [
            _choice_op(
                write, _joined(keys, mine[at : at + _IDS_MAX]), chosen.where if at == 0 else None, numbers
            )
            for at in range(0, max(1, len(mine)), _IDS_MAX)
        ]
    return routed


def _choice_op(write: api.Operation, ids: bytes, where: bytes | None, numbers: Mapping[str, int]) -> wire.Op:
    match write:
        case api.DeletePoints():
            return wire.Delete(ids, where)
        case api.DropVectors():
            return wire.DeleteVectors(ids, where, tuple(numbers[name] for name in write.names))
        case api.MergePayload():
            path = None if write.key is None else str(write.key)
            return wire.SetPayload(ids, where, encode_payload(write.payload), path)
        case api.ReplacePayload():
            return wire.OverwritePayload(ids, where, encode_payload(write.payload))
        case api.DropPayloadKeys():
            return wire.DeletePayload(ids, where, tuple(str(path) for path in write.paths))
        case api.ClearPayload():
            return wire.ClearPayload(ids, where)
        case _:
            raise AssertionError(f"{type(write).__name__} is not chosen by ids or filter")
