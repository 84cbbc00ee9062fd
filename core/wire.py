"""What the log holds and replicas exchange: operations on points, as MessagePack.

An operation is complete in itself: ids, f32 rows and payload bytes, never the client's JSON body,
so that a replica, a restart and a restore apply it alike and in order.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec
from msgspec import Struct

ENTRY_BYTES_MAX = 4 << 20
"""The largest encoded operation; a larger request becomes several entries."""


class Rows(Struct, frozen=True, array_like=True):
    """One named vector of many points: `data` holds the rows of those that have it, f32, little-endian."""

    v: int
    dim: int
    data: bytes
    has: bytes | None = None
    """One byte (0 or 1) a point, or None when every point has it."""


class UpdateMode(IntEnum):
    UPSERT = 0
    INSERT_ONLY = 1
    UPDATE_ONLY = 2


class Nothing(Struct, frozen=True, array_like=True, tag=0):
    """The empty entry with which a new primary opens its term."""


class Upsert(Struct, frozen=True, array_like=True, tag=1):
    """Replace whole points. `ids` are keys of 17 bytes, joined; no id twice."""

    ids: bytes
    rows: tuple[Rows, ...]
    payloads: tuple[bytes, ...]
    """JSON objects as received; b"" for none."""
    mode: UpdateMode = UpdateMode.UPSERT
    where: bytes | None = None
    """A filter (JSON): existing points are replaced only if they match; decided when applied."""


class Delete(Struct, frozen=True, array_like=True, tag=2):
    """Remove points by ids or by filter; missing ids are ignored."""

    ids: bytes
    where: bytes | None = None


class SetPayload(Struct, frozen=True, array_like=True, tag=3):
    """Merge top-level keys, or merge into the object at `path`."""

    ids: bytes
    where: bytes | None
    payload: bytes
    path: str | None = None


class OverwritePayload(Struct, frozen=True, array_like=True, tag=4):
    ids: bytes
    where: bytes | None
    payload: bytes


class DeletePayload(Struct, frozen=True, array_like=True, tag=5):
    ids: bytes
    where: bytes | None
    paths: tuple[str, ...]


class ClearPayload(Struct, frozen=True, array_like=True, tag=6):
    ids: bytes
    where: bytes | None = None


class UpdateVectors(Struct, frozen=True, array_like=True, tag=7):
    """Replace the named vectors only; the points' other vectors and payloads stay."""

    ids: bytes
    rows: tuple[Rows, ...]
    where: bytes | None = None


class DeleteVectors(Struct, frozen=True, array_like=True, tag=8):
    ids: bytes
    where: bytes | None
    vs: tuple[int, ...]


Op = (
    Nothing
    | Upsert
    | Delete
    | SetPayload
    | OverwritePayload
    | DeletePayload
    | ClearPayload
    | UpdateVectors
    | DeleteVectors
)


class Outcome(Struct, frozen=True, array_like=True):
    """What applying an entry answered; kept with the request id, so that a retry gets the same."""

    touched: int = 0
    missing: bytes | None = None
    """The first id (17 bytes) that does not exist, for the operations that must say so."""
    too_large: bytes | None = None
    """The first id whose payload would have become too large; it was left as it was."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Op)


def encode_op(op: Op) -> bytes:
    return _encoder.encode(op)


def decode_op(data: bytes | memoryview) -> Op:
    """Raises msgspec.ValidationError or msgspec.DecodeError if `data` is no operation."""
    op: Op = _decoder.decode(data)
    return op
