"""A write's JSON body becomes encoded log operations; what store and parser say to each other about it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec

from agent.link import raise_again
from core.api import points as api
from core.api.checks import Limits
from core.api.config import StrictMode, VectorParams
from core.api.decode import decode
from core.api.strict import check_write
from core.errors import ShoalError, TooLarge
from core.routing import route
from core.wire import Op

HEAD = struct.Struct("<II")
"""Of an order: its size, and that of the body in the shared memory."""
ANSWER = struct.Struct("<Q")
"""The size of an answer in the shared memory."""

Parse = Callable[[Any, dict[str, VectorParams], Limits], api.Operation]


def _without_vectors(parse: Callable[[Any, Limits], api.Operation]) -> Parse:
    return lambda body, vectors, limits: parse(body, limits)


_KINDS: dict[str, tuple[type[Any], Parse]] = {
    "upsert": (api.Upsert, api.parse_upsert),
    "delete": (api.Selector, _without_vectors(api.parse_delete)),
    "update_vectors": (api.UpdateVectors, api.parse_update_vectors),
    "delete_vectors": (api.DeleteVectors, api.parse_delete_vectors),
    "set_payload": (api.SetPayload, _without_vectors(api.parse_set_payload)),
    "overwrite_payload": (api.SetPayload, _without_vectors(api.parse_overwrite_payload)),
    "delete_payload": (api.DeletePayload, _without_vectors(api.parse_delete_payload)),
    "clear_payload": (api.Selector, _without_vectors(api.parse_clear)),
}


class Target(msgspec.Struct, frozen=True):
    """What parsing must know of the collection that is written to."""

    vectors: dict[str, VectorParams]
    numbers: dict[str, int]
    shard_count: int
    limits: Limits
    strict: StrictMode | None = None
    indexed: frozenset[str] = frozenset()
    """Paths, which strict mode may want filters to keep to."""


class Prepared(msgspec.Struct, frozen=True, array_like=True):
    """One operation of a request: shard → log entries, and the ids in the order they were named
    (for edits by id only, which must answer with the first that is missing)."""

    entries: dict[int, list[Op]]
    ids: list[bytes]
    points: int


class _Order(msgspec.Struct, frozen=True):
    kind: str
    target: Target


class _Parsed(msgspec.Struct, frozen=True):
    prepared: list[Prepared] = []
    code: str | None = None
    text: str = ""


def prepare(kind: str, body: bytes, target: Target) -> list[Prepared]:
    """The operations of a request. Raises the errors of core/api for what is wrong with it."""
    if kind == "batch":
        batch = decode(api.UpdateBatch, body)
        writes = api.parse_operations(batch, target.vectors, target.limits)
    else:
        shape, parse = _KINDS[kind]
        writes = (parse(decode(shape, body), target.vectors, target.limits),)
    for write in writes:
        check_write(target.strict, write, target.indexed)
    return [_prepared(write, target) for write in writes]


def _prepared(write: api.Operation, target: Target) -> Prepared:
    entries = route(write, target.numbers, target.shard_count)
    if isinstance(write, api.UpsertPoints):
        return Prepared(entries, [], len(write.keys))
    keys = write.keys if isinstance(write, api.EditVectors) else (write.chosen.keys or ())
    return Prepared(entries, [bytes(key) for key in keys], len(keys))


def order(kind: str, target: Target) -> bytes:
    """What a parser must know besides the body."""
    return msgspec.msgpack.encode(_Order(kind, target))


def answered(order: bytes, body: bytes) -> bytes:
    """What a parser answers to an order."""
    told = msgspec.msgpack.decode(order, type=_Order)
    try:
        parsed = _Parsed(prepare(told.kind, body, told.target))
    except ShoalError as error:
        parsed = _Parsed(code=error.code, text=str(error))
    return msgspec.msgpack.encode(parsed)


def no_room(size: int, room: int) -> bytes:
    """What it answers if there is no room for more."""
    text = (
        f"the operations of the request have {size} bytes, at most {room} are possible; send smaller batches"
    )
    return msgspec.msgpack.encode(_Parsed(code=TooLarge.code, text=text))


def prepared_of(answer: bytes) -> list[Prepared]:
    """The operations in a parser's answer. Raises the errors that `prepare` raised there."""
    parsed = msgspec.msgpack.decode(answer, type=_Parsed)
    if parsed.code is not None:
        raise_again(parsed.code, parsed.text)
    return parsed.prepared
