"""A write's JSON body becomes encoded log operations, here or, if it is large, in a process of its own.

Parsing holds the interpreter's lock (32 MB for 124 ms); the store's loop must never stand still for
that long, so what is over PARSE_HERE_BYTES_MAX is parsed by `python -m agent.store.parsing`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from agent.link import raise_again
from core.api import points as api
from core.api.checks import Limits
from core.api.config import StrictMode, VectorParams
from core.api.decode import decode
from core.api.strict import check_write
from core.errors import ShoalError, Unavailable
from core.routing import route
from core.wire import Op

PARSE_HERE_BYTES_MAX = 4 << 20
PROCESSES_MAX = 2
"""That parse large bodies at once."""

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


async def prepare_anywhere(kind: str, body: bytes, target: Target, turn: asyncio.Semaphore) -> list[Prepared]:
    """`prepare` where it disturbs nobody: small bodies on the loop, larger ones in a thread, the
    largest in a process of their own, of which `turn` bounds the number."""
    if len(body) > PARSE_HERE_BYTES_MAX:
        return await _prepare_apart(kind, body, target, turn)
    if len(body) > 64 << 10:
        return await asyncio.to_thread(prepare, kind, body, target)
    return prepare(kind, body, target)


async def _prepare_apart(kind: str, body: bytes, target: Target, turn: asyncio.Semaphore) -> list[Prepared]:
    async with turn:
        return await _prepare_in_process(kind, body, target)


async def _prepare_in_process(kind: str, body: bytes, target: Target) -> list[Prepared]:
    order = msgspec.msgpack.encode(_Order(kind, target))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "agent.store.parsing"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        answer, _ = await process.communicate(len(order).to_bytes(8, "big") + order + body)
    finally:
        if process.returncode is None:  # our own waiter gave up
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Unavailable(f"parsing {len(body)} bytes failed (status {process.returncode}); try again")
    parsed = msgspec.msgpack.decode(answer, type=_Parsed)
    if parsed.code is not None:
        raise_again(parsed.code, parsed.text)
    return parsed.prepared


def main() -> None:
    """Parse what stands on standard input: length, order, body; answer on standard output."""
    data = sys.stdin.buffer.read()
    size = int.from_bytes(data[:8], "big")
    order = msgspec.msgpack.decode(data[8 : 8 + size], type=_Order)
    try:
        parsed = _Parsed(prepare(order.kind, data[8 + size :], order.target))
    except ShoalError as error:
        parsed = _Parsed(code=error.code, text=str(error))
    sys.stdout.buffer.write(msgspec.msgpack.encode(parsed))


if __name__ == "__main__":
    main()
