"""All replicas of one store: messages, commands and the clock for each, and what the leader is told of them.

replicas = Replicas(node, links, metrics, log, now_us=…, schema_wanted=…, dropped=…, reopened=…)
replicas.add(shard)                       opened with this node's Membership
replicas.take(view)                       a chosen map: who is primary, of whom
network.handlers["store"].update(replicas.handlers("store"))
replicas.start()                          the clock; `close` ends it
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agent.link import Answer, Handler, Header, whole
from agent.metrics import Metrics
from agent.store.driven_replica import DrivenReplica, Surroundings
from agent.store.files import Files
from agent.store.replica_sending import Key, Links, Outbox, unpack
from agent.store.shard import Shard
from agent.store.snapshot_receiving import SnapshotReceiving, remove_leftovers
from agent.store.snapshot_sending import SnapshotSending
from core.cluster import ClusterView, CollectionId
from core.errors import BadRequest, Damaged, Unavailable
from core.peer_wire import SHARD
from core.replication.effects import OfferSnapshot
from core.replication.messages import (
    Activate,
    AskPersisted,
    CatchUp,
    Delete,
    Level,
    Message,
    Promise,
    Refused,
)
from net.logs import Log

TICK_S = 0.08
TICKS_AT_ONCE = 256
"""Replicas between which others on the loop have their turn."""


class Replicas:
    """`schema_wanted(collection, version)`: fetch the map. `dropped(collection, shard)`: the leader has had
    this replica deleted; close the shard and remove its folder. `reopened(collection, shard, change)`: close
    the shard, run `change` in a thread, open what is there then, and `add` it, also if `change` fails.
    `check_room(bytes)` raises NoRoom."""

    def __init__(
        self,
        node: str,
        links: Links,
        metrics: Metrics,
        log: Log,
        *,
        now_us: Callable[[], int],
        schema_wanted: Callable[[int, int], None],
        dropped: Callable[[int, int], Awaitable[None]],
        reopened: Callable[[int, int, Callable[[], None]], Awaitable[None]],
        check_room: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        self.node = node
        self.leader_term = 0
        """The highest that a leader showed, in whatever way."""
        self._log = log
        self._dropped, self._reopened, self._now_us = dropped, reopened, now_us
        self._view: ClusterView | None = None
        self._sending = SnapshotSending(links, log, check_room)
        self._receiving = SnapshotReceiving(Files(), log, check_room, self._own)
        self._installing: set[asyncio.Task[None]] = set()
        self._replicas: dict[Key, DrivenReplica] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._around = Surroundings(
            node,
            Outbox(links, metrics),
            log,
            now_us,
            lambda key, version: schema_wanted(key[0], version),
            self._snapshot_wanted,
            self._install,
            self._delete,
        )

    # -- which there are --------------------------------------------------------------------------------

    def add(self, shard: Shard) -> DrivenReplica:
        driven = DrivenReplica(shard, self._around)
        remove_leftovers(shard.folder)
        self._replicas[driven.key] = driven
        if driven.replica is not None:
            self.leader_term = max(self.leader_term, driven.replica.identity.leader_term)
        if self._view is not None:
            self._show(self._view, driven)
        return driven

    async def remove(self, collection: int, shard: int) -> None:
        """Before the shard is closed."""
        driven = self._replicas.pop((collection, shard), None)
        if driven is not None:
            await driven.close()

    def get(self, collection: int, shard: int) -> DrivenReplica:
        """Raises Unavailable."""
        driven = self._replicas.get((collection, shard))
        if driven is None:
            raise Unavailable(f"node {self.node} has no replica of shard {shard} of collection {collection}")
        return driven

    def take(self, view: ClusterView) -> None:
        """Of a value of the map that was chosen."""
        self._view = view
        for driven in list(self._replicas.values()):
            self._show(view, driven)

    @staticmethod
    def _show(view: ClusterView, driven: DrivenReplica) -> None:
        shards = view.shards.get(CollectionId(driven.key[0]))
        for configuration in shards.shards if shards is not None else ():
            if shards is not None and configuration.number == driven.key[1]:
                driven.take(configuration, len(shards.shards))

    def heard_leader(self, term: int) -> None:
        """A leader of this term has spoken: commands of an older one are refused from now on."""
        self.leader_term = max(self.leader_term, term)

    def report(self) -> dict[str, Any]:
        """What the answer to a leader's ping says: active primaries here, and replicas that are lost."""
        shards, lost = [], []
        for (collection, number), driven in self._replicas.items():
            replica = driven.replica
            if replica is not None and replica.is_primary:
                lags = {to.node: lag for to, lag in replica.lags().items()}
                shards.append([collection, number, replica.term, replica.log.last.seq, lags])
            named = driven.configuration is not None and self.node in driven.configuration.replicas
            if named and isinstance(driven.shard.refusal, Damaged):
                lost.append([collection, number, 0])
            elif named and replica is not None and not driven.is_named():
                lost.append([collection, number, replica.me.incarnation])
        return {"shards": shards, "lost": lost}

    # -- the clock --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._own(self._tick())

    async def close(self) -> None:
        """Before the shards are closed."""
        for task in self._tasks - self._installing:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sending.close()
        for driven in self._replicas.values():
            await driven.close()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for at, driven in enumerate(list(self._replicas.values()), 1):
                driven.tick(loop.time())
                if at % TICKS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            self._sending.sweep()
            await asyncio.sleep(TICK_S)

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._installing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("replica.work_failed", exc=error)

    # -- calls of other nodes ---------------------------------------------------------------------------

    def handlers(self, role: str) -> dict[str, Handler]:
        """What this store serves to other stores, or to consoles."""
        common: dict[str, Handler] = {"shard.command": self._command}
        if role != "store":
            return common
        return {
            **common,
            "replica": self._messages,
            "shard.read_at": self._read_at,
            "snapshot.ask": self._ask_for_snapshot,
            "snapshot.part": self._part,
        }

    async def _messages(self, header: Header, body: bytes, deadline: float) -> Answer:
        driven = self._replicas.get(_key(header))
        if driven is not None:
            now_s = asyncio.get_running_loop().time()
            unpack(body, lambda message: driven.on_message(message, now_s))
        return {}, b""

    async def _command(self, header: Header, body: bytes, deadline: float) -> Answer:
        driven = self.get(*_key(header))
        asked: Message = SHARD.decode(str(header.get("kind")), body)
        if not isinstance(asked, Promise | CatchUp | Level | Activate | Delete | AskPersisted):
            raise BadRequest(f"{header['kind']} is no command to a replica")
        if not isinstance(asked, AskPersisted):
            if asked.leader_term < self.leader_term:
                return _encoded(Refused(asked.to, None, asked.term, self._promised(driven), self.leader_term))
            self.heard_leader(asked.leader_term)
        return _encoded(await driven.ask(asked, deadline))

    @staticmethod
    def _promised(driven: DrivenReplica) -> int:
        return driven.replica.term if driven.replica is not None else 0

    async def _read_at(self, header: Header, body: bytes, deadline: float) -> Answer:
        return await self.read_at(header, deadline), b""

    async def read_at(self, header: Header, deadline: float) -> Header:
        """{collection, shard, term, seq} for quorum: once `seq` is applied; without `seq` for strong."""
        driven = self.get(*_key(header))
        if header.get("seq") is None:
            await driven.confirm(whole(header, "term"), deadline)
        else:
            await driven.reach(whole(header, "seq"), whole(header, "term"), deadline)
        return {"applied": driven.shard.applied_seq}

    async def _ask_for_snapshot(self, header: Header, body: bytes, deadline: float) -> Answer:
        return await self._receiving.ask(self.get(*_key(header)), header)

    async def _part(self, header: Header, body: bytes, deadline: float) -> Answer:
        return await self._receiving.part(self.get(*_key(header)), header, body)

    # -- what replicas want -----------------------------------------------------------------------------

    def _snapshot_wanted(self, driven: DrivenReplica, offer: OfferSnapshot) -> None:
        if driven.key in self._replicas:
            self._own(self._sending.send(driven, offer))

    def _install(self, driven: DrivenReplica) -> None:
        self._installing.add(self._own(self._reopen(driven)))

    async def _reopen(self, driven: DrivenReplica) -> None:
        """Like a restart, with the snapshot's contents: whoever still waits asks again."""
        replica = driven.shard.replica
        try:
            if replica is not None:
                swap = self._receiving.swap(driven, replica.identity, self._now_us())
                await self.remove(*driven.key)
                await self._reopened(*driven.key, swap)
                self._log.info("snapshot.installed", shard=f"{driven.key[0]}/{driven.key[1]}")
        finally:
            self._receiving.installed(driven.key)

    def _delete(self, driven: DrivenReplica) -> None:
        self._own(self._drop(driven))

    async def _drop(self, driven: DrivenReplica) -> None:
        self._replicas.pop(driven.key, None)
        await driven.close()
        await self._dropped(*driven.key)
        driven.deleted()


def _key(header: Header) -> Key:
    return whole(header, "collection"), whole(header, "shard")


def _encoded(answer: Any) -> Answer:
    kind, data = SHARD.encode(answer)
    return {"kind": kind}, data
