"""Writes find their shard's primary, on this node or another, and are tried again where that is safe.

Every operation that crosses nodes has a request id, the client's or one drawn here: a repetition meets its
own entry in the log and gets the same answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from agent.acknowledged import Acknowledged
from agent.link import Answer, Handler, Header
from agent.metrics import Metrics
from agent.store.network import Network
from agent.store.shard import Shard, Until
from core import cluster
from core.cluster import ClusterView, CollectionId, NodeId, shards_key
from core.errors import ShoalError, Unavailable
from core.replication.effects import Consistency, NotPrimary, StaleTerm
from core.wire import Op, Outcome, decode_op, encode_op

ID_BYTES = 16
PAUSE_S_MIN, PAUSE_S_MAX = 0.02, 0.25
LOOK_S = 0.1
"""How often a call to another primary looks whether the map still calls it one."""

_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


class Asked(NamedTuple):
    """What the acknowledgements of a client's request shall mean, and by what a repetition is known."""

    until: Until = "applied"
    consistency: Consistency = Consistency.QUORUM
    request_id: bytes = b""
    body_hash: bytes = b""


class Write(NamedTuple):
    """One entry of a client's request, the `number`th."""

    op: Op
    asked: Asked
    number: int = 0
    schema: int = 0


class Done(NamedTuple):
    outcome: Outcome
    seq: int
    """How far the primary had applied then."""
    covers: int
    """Who has applied up to this seq has this write, too."""


class _Forwarded(msgspec.Struct, frozen=True):
    collection: int
    shard: int
    until: Until
    consistency: Consistency
    request_id: bytes
    number: int
    body_hash: bytes
    schema: int


@dataclass(frozen=True, slots=True)
class Host:
    """What forwarding needs of the store. `take_up` reads the map and these keys anew."""

    view: Callable[[], ClusterView]
    local: Callable[[CollectionId, int], Shard | None]
    take_up: Callable[[list[str]], Awaitable[None]]


class Forwarding:
    """`write` an operation to a shard, wherever its primary is. `network` None: this node is alone.

    What is `acknowledged` the fronts see in the page: their eventual reads wait for it.
    """

    def __init__(
        self, host: Host, network: Network | None, metrics: Metrics, acknowledged: Acknowledged
    ) -> None:
        self._host, self._network, self._acknowledged = host, network, acknowledged
        self._retries = metrics.counter("shoal_write_retries_total")
        self._forwarded = metrics.counter("shoal_writes_forwarded_total")

    async def write(self, collection: CollectionId, shard: int, write: Write, deadline_s: float) -> Done:
        """Raises what the primary refuses, Unavailable or DeadlineExceeded if none was found in time."""
        if self._network is None:
            return await self._here(collection, shard, write, deadline_s)
        if not write.asked.request_id:
            write = write._replace(asked=write.asked._replace(request_id=secrets.token_bytes(ID_BYTES)))
        pause_s = PAUSE_S_MIN
        while True:
            try:
                done = await self._try(self._network, collection, shard, write, deadline_s)
                self._acknowledged.note(collection, shard, done.covers)
                return done
            except (StaleTerm, NotPrimary, Unavailable) as problem:
                left_s = deadline_s - asyncio.get_running_loop().time()
                if left_s <= pause_s:
                    raise Unavailable(f"shard {shard} takes no writes: {problem}") from None
            self._retries.add()
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S_MAX, 2 * pause_s)
            await self._learn(collection, min(left_s, 1.0))

    async def _learn(self, collection: CollectionId, timeout_s: float) -> None:
        """The map may have moved the primary. Without voters the old one is asked again."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._host.take_up([shards_key(collection)])
        except (ShoalError, TimeoutError):
            return

    async def _try(
        self, network: Network, collection: CollectionId, shard: int, write: Write, deadline_s: float
    ) -> Done:
        primary = _record(self._host.view(), collection, shard).primary
        if primary == network.me:
            return await self._here(collection, shard, write, deadline_s)
        self._forwarded.add()
        told = _Forwarded(
            collection,
            shard,
            write.asked.until,
            write.asked.consistency,
            write.asked.request_id,
            write.number,
            write.asked.body_hash,
            write.schema,
        )
        left_s = deadline_s - asyncio.get_running_loop().time()
        async with self._while_primary(collection, shard, primary):
            header, body = await network.peers.caller(primary).call(
                "shard.write",
                msgspec.to_builtins(told, builtin_types=(bytes,)),
                encode_op(write.op),
                timeout_s=left_s,
            )
        return Done(_decode_outcome(body), int(header["seq"]), int(header["covers"]))

    @asynccontextmanager
    async def _while_primary(
        self, collection: CollectionId, shard: int, primary: NodeId
    ) -> AsyncIterator[None]:
        """Ends with Unavailable once the map names another: who is stopped or cut off says nothing."""
        loop = asyncio.get_running_loop()
        looking: asyncio.TimerHandle

        def look() -> None:
            nonlocal looking
            try:
                is_moved = _record(self._host.view(), collection, shard).primary != primary
            except Unavailable:
                is_moved = True
            if is_moved:
                moved.reschedule(loop.time())
            else:
                looking = loop.call_later(LOOK_S, look)

        looking = loop.call_later(LOOK_S, look)
        try:
            async with asyncio.timeout(None) as moved:
                yield
        except TimeoutError:
            raise Unavailable(f"node {primary} is no longer its primary") from None
        finally:
            looking.cancel()

    async def _here(self, collection: CollectionId, shard: int, write: Write, deadline_s: float) -> Done:
        replica = self._host.local(collection, shard)
        if replica is None:
            raise NotPrimary(f"this node has no replica of shard {shard} of collection {collection}")
        asked = write.asked
        outcome = await replica.write(
            write.op,
            deadline_s=deadline_s,
            until=asked.until,
            consistency=asked.consistency,
            request_id=asked.request_id,
            number=write.number,
            body_hash=asked.body_hash,
            schema=write.schema,
        )
        seq = covers = replica.applied_seq
        if asked.until != "applied" and (logged := replica.replica) is not None:
            covers = logged.log.last.seq
        return Done(outcome, seq, covers)

    # -- for other nodes

    def handlers(self) -> Mapping[str, Handler]:
        return {"shard.write": self._forwarded_here}

    async def _forwarded_here(self, header: Header, body: bytes, deadline: float) -> Answer:
        told = msgspec.convert(header, _Forwarded)
        collection = CollectionId(told.collection)
        known = self._host.view().map.collections.get(collection)
        if known is None or known.schema_version < told.schema:
            # Checked there against a schema that this node has not seen yet.
            await self._host.take_up([shards_key(collection)])
        asked = Asked(told.until, told.consistency, told.request_id, told.body_hash)
        write = Write(decode_op(body), asked, told.number, told.schema)
        done = await self._here(collection, told.shard, write, deadline)
        return {"seq": done.seq, "covers": done.covers}, _encode_outcome(done.outcome)


def _record(view: ClusterView, collection: CollectionId, shard: int) -> cluster.Shard:
    shards = view.shards.get(collection)
    if shards is None:
        raise Unavailable(f"collection {collection} is not in this node's map yet")
    for record in shards.shards:
        if record.number == shard:
            return record
    raise Unavailable(f"collection {collection} has no shard {shard} in this node's map")
