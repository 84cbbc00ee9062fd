"""An operation checked before it is logged: what is in the log must be applicable, now and at any restart."""

from __future__ import annotations

from agent.store.apply import payload_edit
from agent.store.manifest import ShardSchema
from agent.store.matching import parse_where
from core.errors import BadRequest, InvariantBroken
from core.hashing import KEY_BYTES
from core.wire import (
    ClearPayload,
    DeletePayload,
    Nothing,
    Op,
    OverwritePayload,
    Rows,
    SetPayload,
    UpdateVectors,
    Upsert,
)


def check_op(op: Op, schema: ShardSchema) -> None:
    """Raises BadRequest for a filter, payload or path that is none, InvariantBroken for our mistakes."""
    if isinstance(op, Nothing):
        return
    if len(op.ids) % KEY_BYTES:
        raise InvariantBroken(f"ids: {len(op.ids)} bytes are not a multiple of {KEY_BYTES}")
    if op.where is not None:
        parse_where(op.where)
    if isinstance(op, SetPayload | OverwritePayload | DeletePayload | ClearPayload):
        payload_edit(op)
    if isinstance(op, Upsert | UpdateVectors):
        count = len(op.ids) // KEY_BYTES
        if isinstance(op, Upsert) and len(op.payloads) != count:
            raise InvariantBroken(f"payloads: {len(op.payloads)} for {count} ids")
        for rows in op.rows:
            _check_rows(rows, count, schema)


def _check_rows(rows: Rows, count: int, schema: ShardSchema) -> None:
    params = schema.vectors.get(rows.v)
    if params is None:
        raise BadRequest(f"vector number {rows.v} was removed from the collection")
    if rows.dim != params.dim:
        raise BadRequest(f"vector number {rows.v} has {rows.dim} dimensions, expected {params.dim}")
    if rows.has is not None and len(rows.has) != count:
        raise InvariantBroken(f"vector number {rows.v}: {len(rows.has)} flags for {count} ids")
    expected = count if rows.has is None else sum(map(bool, rows.has))
    if len(rows.data) != expected * rows.dim * 4:
        raise InvariantBroken(
            f"vector number {rows.v}: {len(rows.data)} bytes for {expected} rows of {rows.dim}"
        )
