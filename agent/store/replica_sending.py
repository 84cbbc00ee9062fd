"""Messages among replicas on their way: one frame for each peer, shard and turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from agent.metrics import Metrics
from core.errors import BadRequest
from core.peer_wire import SHARD
from core.replication.messages import Message
from net.frames import Caller

FRAME_BYTES_MAX = 4 << 20
Key = tuple[int, int]
"""Collection and shard."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


class Links(Protocol):
    """The store's connections to others."""

    def caller(self, node: str) -> Caller: ...


class Outbox:
    """What can't be sent is dropped: the protocol sends again, and a slow peer must not fill memory."""

    def __init__(self, links: Links, metrics: Metrics) -> None:
        self._links = links
        self._batches: dict[tuple[str, Key], list[tuple[str, bytes]]] = {}
        self._sent = metrics.counter("shoal_replica_messages_sent_total")
        self._dropped = metrics.counter("shoal_replica_messages_dropped_total")

    def put(self, node: str, key: Key, message: Message) -> None:
        """Send it at the end of this turn of the loop, after what was put before."""
        if not self._batches:
            asyncio.get_running_loop().call_soon(self._flush)
        self._batches.setdefault((node, key), []).append(SHARD.encode(message))

    def _flush(self) -> None:
        batches, self._batches = self._batches, {}
        for (node, key), messages in batches.items():
            tell = self._links.caller(node).tell
            for part in _parts(messages):
                header = {"collection": key[0], "shard": key[1]}
                counter = self._sent if tell("replica", header, _encode(part)) else self._dropped
                counter.add(len(part))


def _parts(messages: list[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    """In order, each of so many bytes that nothing else on the connection waits for it for long."""
    parts: list[list[tuple[str, bytes]]] = []
    size = FRAME_BYTES_MAX
    for message in messages:
        if size + len(message[1]) > FRAME_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += len(message[1])
    return parts


def unpack(body: bytes, take: Callable[[Message], None]) -> None:
    """Give each message of a frame to `take`. Raises BadRequest."""
    try:
        messages = _decode(body)
    except msgspec.MsgspecError as problem:
        raise BadRequest(f"messages among replicas that cannot be read: {problem}") from None
    for kind, data in messages:
        take(SHARD.decode(kind, data))
