"""Where a read that must see all acknowledged writes may be made: the primary, or where a majority ends.

place = await reading.place(collection, shard, Consistency.QUORUM, deadline_s)
a read at any front of place.node that begins now is linearizable, by point
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from agent.link import Answer, Handler, Header
from agent.store.replica_sending import Links
from agent.store.replicas import Replicas
from core.cluster import ClusterView, CollectionId, Shard
from core.errors import DeadlineExceeded, ShoalError, Unavailable
from core.peer_wire import SHARD
from core.replication.effects import Consistency, NotPrimary, StaleTerm
from core.replication.messages import AskPersisted, HasPersisted, Refused
from core.replication.reads import MapIsOld, QuorumRead, ReadAt
from core.replication.reconfigure import replica_ids

PAUSE_S_MIN, PAUSE_S_MAX = 0.02, 0.25
ROUND_S_MAX = 2.0
"""One attempt; the map may be old, or a member may have died while it was asked."""


class Place(NamedTuple):
    """`applied`: how far that node has, at least."""

    node: str
    applied: int


class ReplicaReading:
    """`view` is the newest map; `take_up(collection)` reads the shards' record anew."""

    def __init__(
        self,
        replicas: Replicas,
        links: Links,
        view: Callable[[], ClusterView],
        take_up: Callable[[CollectionId], Awaitable[object]],
    ) -> None:
        self._replicas, self._links, self._view, self._take_up = replicas, links, view, take_up

    def handlers(self) -> dict[str, Handler]:
        """For this node's fronts."""
        return {"shard.read_place": self._read_place}

    async def _read_place(self, header: Header, body: bytes, deadline: float) -> Answer:
        collection, shard = CollectionId(int(header["collection"])), int(header["shard"])
        place = await self.place(collection, shard, Consistency(header["consistency"]), deadline)
        return {"node": place.node, "applied": place.applied}, b""

    async def place(
        self, collection: CollectionId, number: int, consistency: Consistency, deadline_s: float
    ) -> Place:
        """For quorum or strong. Raises Unavailable if there was none in time."""
        loop = asyncio.get_running_loop()
        pause_s = PAUSE_S_MIN
        while True:
            try:
                round_s = min(deadline_s, loop.time() + ROUND_S_MAX)
                shard = _record(self._view(), collection, number)
                if consistency is Consistency.STRONG:
                    return await self._at(shard.primary, collection, shard, None, round_s)
                return await self._by_majority(collection, shard, round_s)
            except (StaleTerm, NotPrimary, Unavailable, DeadlineExceeded) as problem:
                if deadline_s - loop.time() <= pause_s:
                    raise Unavailable(f"shard {number} takes no {consistency} reads: {problem}") from None
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S_MAX, 2 * pause_s)
            await self._learn(collection, min(deadline_s, loop.time() + 1.0))

    async def _learn(self, collection: CollectionId, deadline_s: float) -> None:
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._take_up(collection)
        except (ShoalError, TimeoutError):  # no voter answers: the old map is tried again
            return

    async def _by_majority(self, collection: CollectionId, shard: Shard, deadline_s: float) -> Place:
        """Ask the active set how far it has persisted, then wait until one replica has applied that."""
        read = QuorumRead(shard.term, replica_ids(shard, shard.in_sync))
        answered: list[str] = []
        async with self._answers(read.asks(), (collection, shard.number), deadline_s) as answers:
            async for answer in answers:
                answered.append(answer.sender.node)
                match read.on_answer(answer):
                    case ReadAt(seq):
                        node = self._nearest(answered)
                        return await self._at(node, collection, shard, seq, deadline_s)
                    case MapIsOld(promised):
                        raise StaleTerm(f"a replica has promised term {promised}, the map says {shard.term}")
        raise Unavailable(f"{len(answered)} of {len(shard.in_sync)} replicas answered, a majority is needed")

    def _nearest(self, nodes: list[str]) -> str:
        return self._replicas.node if self._replicas.node in nodes else nodes[0]

    @asynccontextmanager
    async def _answers(
        self, asks: list[AskPersisted], key: tuple[int, int], deadline_s: float
    ) -> AsyncIterator[AsyncIterator[HasPersisted | Refused]]:
        """As they come; who does not answer is left out."""
        calls = [asyncio.create_task(self._ask(ask, key, deadline_s)) for ask in asks]

        async def answers() -> AsyncIterator[HasPersisted | Refused]:
            for call in asyncio.as_completed(calls):
                if (answer := await call) is not None:
                    yield answer

        try:
            yield answers()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _ask(
        self, ask: AskPersisted, key: tuple[int, int], deadline_s: float
    ) -> HasPersisted | Refused | None:
        try:
            if ask.to.node == self._replicas.node:
                answer: Any = await self._replicas.get(*key).ask(ask, deadline_s)
            else:
                kind, data = SHARD.encode(ask)
                header = {"collection": key[0], "shard": key[1], "kind": kind}
                left_s = deadline_s - asyncio.get_running_loop().time()
                told, body = await self._links.caller(ask.to.node).call(
                    "shard.command", header, data, timeout_s=left_s
                )
                answer = SHARD.decode(told["kind"], body)
        except ShoalError:
            return None
        return answer if isinstance(answer, HasPersisted | Refused) else None

    async def _at(
        self, node: str, collection: CollectionId, shard: Shard, seq: int | None, deadline_s: float
    ) -> Place:
        header: Header = {"collection": collection, "shard": shard.number, "term": shard.term, "seq": seq}
        if node == self._replicas.node:
            answer = await self._replicas.read_at(header, deadline_s)
        else:
            left_s = deadline_s - asyncio.get_running_loop().time()
            answer, _ = await self._links.caller(node).call("shard.read_at", header, timeout_s=left_s)
        return Place(node, int(answer["applied"]))


def _record(view: ClusterView, collection: CollectionId, number: int) -> Shard:
    shards = view.shards.get(collection)
    for shard in shards.shards if shards is not None else ():
        if shard.number == number:
            return shard
    raise Unavailable(f"shard {number} of collection {collection} is not in this node's map yet")
