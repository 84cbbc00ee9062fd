"""One shard's replica as it speaks to others: what it sends, whom it answers, who waits for a strong read."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.store.membership import is_primary
from agent.store.replica_sending import Key, Outbox
from agent.store.shard import Shard
from core.cluster import NodeId
from core.cluster import Shard as Configuration
from core.errors import DeadlineExceeded, InvariantBroken, ShoalError, Unavailable
from core.replication.effects import Effect, OfferSnapshot, Refuse, SendEntries, StaleTerm
from core.replication.log import Entry, Position
from core.replication.messages import (
    Activate,
    Activated,
    Append,
    AskPersisted,
    CatchUp,
    CaughtUp,
    Command,
    CommandAnswer,
    Delete,
    Deleted,
    Fetched,
    HasPersisted,
    Level,
    Leveled,
    Message,
    NotCaughtUp,
    Promise,
    Promised,
    Refused,
    ReplicaId,
)
from core.replication.recent import RecentRequests
from core.replication.reconfigure import replica_ids
from core.replication.replica import Replica
from net.logs import Log

READS_MAX = 64
"""Runs of entries that are to be read from the log; more are dropped, and asked for again."""
ANSWER_S = 0.05
"""How long before the deadline what there is is answered."""

Asked = Command | AskPersisted
_ANSWERS: dict[type[Any], tuple[type[Any], ...]] = {
    Promise: (Promised,),
    CatchUp: (CaughtUp,),
    Level: (Leveled, NotCaughtUp),
    Activate: (Activated, NotCaughtUp),
    Delete: (Deleted,),
    AskPersisted: (HasPersisted,),
}


@dataclass(eq=False, slots=True)
class _Asker:
    """Who has asked something and has no answer yet. `latest`: a part of the answer."""

    asked: Asked
    answer: asyncio.Future[CommandAnswer | HasPersisted]
    latest: Leveled | None = None

    def take(self, m: CommandAnswer | HasPersisted) -> bool:
        """Whether this is the answer, or a part of it that is whole now."""
        if m.term != self.asked.term or not isinstance(m, (Refused, *_ANSWERS[type(self.asked)])):
            return False
        if isinstance(m, Leveled) and isinstance(self.asked, Level):
            self.latest = m
            if not set(m.members).issuperset(self.asked.in_sync):
                return False
        if not self.answer.done():
            self.answer.set_result(m)
        return True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a driven replica needs of the store. `schema_wanted`, `snapshot_wanted`, `install` and `delete`
    begin something and return at once."""

    node: str
    outbox: Outbox
    log: Log
    now_us: Callable[[], int]
    schema_wanted: Callable[[Key, int], None]
    snapshot_wanted: Callable[[DrivenReplica, OfferSnapshot], None]
    install: Callable[[DrivenReplica], None]
    delete: Callable[[DrivenReplica], None]


class DrivenReplica:
    """Calls its replica and has the effects performed, in one turn of the loop."""

    def __init__(self, shard: Shard, around: Surroundings) -> None:
        self.shard = shard
        record = shard.record
        self.key: Key = (record.collection, record.shard)
        self.configuration: Configuration | None = None
        self.shard_count = 1
        """Of the collection."""
        self.is_installing = False
        self._around = around
        self._askers: list[_Asker] = []
        self._was_open = self.replica is not None
        self._tokens = itertools.count(1)
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._to_read: deque[SendEntries] = deque()
        self._reading: asyncio.Task[None] | None = None
        shard.attach(self)

    @property
    def replica(self) -> Replica | None:
        """None while it cannot act: its disk is not to be trusted, or its contents are being replaced."""
        return None if self.is_installing else self.shard.replica

    # -- what comes in ----------------------------------------------------------------------------------

    def on_message(self, message: Message, now_s: float) -> None:
        """From another replica. One that cannot answer is like one that is away."""
        self._do(lambda replica: replica.on_message(message, now_s))

    def tick(self, now_s: float) -> None:
        if (is_open := self.replica is not None) != self._was_open:
            self._was_open = is_open
            if is_open and self.configuration is not None:  # there was no room to open it before
                self.take(self.configuration, self.shard_count)
        self._do(lambda replica: replica.tick(now_s))

    async def ask(self, asked: Asked, deadline_s: float) -> CommandAnswer | HasPersisted:
        """A command, or a question. Raises Unavailable, DeadlineExceeded; it may have taken effect then."""
        loop = asyncio.get_running_loop()
        if self.replica is None or asked.to != self.replica.me:
            raise Unavailable(f"this node has no replica {asked.to} that could answer")
        asker = _Asker(asked, loop.create_future())
        self._askers.append(asker)
        try:
            self._do(lambda replica: replica.on_message(asked, loop.time()))
            async with asyncio.timeout_at(deadline_s - ANSWER_S):
                return await asker.answer
        except TimeoutError:
            if asker.latest is not None:
                return asker.latest
            raise DeadlineExceeded(f"{type(asked).__name__} of term {asked.term} takes longer") from None
        finally:
            if asker in self._askers:
                self._askers.remove(asker)

    def take(self, configuration: Configuration, shard_count: int) -> None:
        """What the map, a chosen value, says of the shard."""
        self.configuration, self.shard_count = configuration, shard_count
        replica = self.replica
        if replica is None:
            return
        me = replica.me
        in_sync = replica_ids(configuration, configuration.in_sync)
        self.shard.show(in_sync=me in in_sync)
        if is_primary(configuration, me, replica.identity):
            learners = replica_ids(configuration, configuration.learners)
            if not replica.is_primary or self._others(replica) != {*in_sync, *learners} - {me}:
                now_us = self._around.now_us()
                self._do(lambda r: r.activate(configuration.term, in_sync, now_us, learners))

    @staticmethod
    def _others(replica: Replica) -> set[ReplicaId]:
        return set(replica.lags())

    def is_named(self) -> bool:
        """Whether the map's replica on this node is this one."""
        replica, found = self.replica, self.configuration
        if replica is None or found is None:
            return False
        return found.replicas.get(NodeId(self._around.node)) == replica.me.incarnation

    def _do(self, call: Callable[[Replica], Sequence[Effect]]) -> None:
        replica = self.replica
        if replica is None:
            return
        try:
            self.shard.perform(call(replica))
        except InvariantBroken as error:
            self._around.log.error(
                "replica.invariant_broken", shard=f"{self.key[0]}/{self.key[1]}", what=str(error)
            )
            self.shard.stop(error)

    def install_snapshot(self, term: int, position: Position, recent: RecentRequests) -> None:
        """A whole, checked snapshot is ready to be put in place, if it is still of use."""

        def install(replica: Replica) -> Sequence[Effect]:
            effects = replica.install(term, position, recent, 0)
            self.is_installing = bool(effects)
            return effects

        self._do(install)

    # -- strong reads -----------------------------------------------------------------------------------

    async def confirm(self, term: int, deadline_s: float) -> None:
        """Return when what is applied here may answer a strong read. Raises StaleTerm, DeadlineExceeded."""
        replica = self.replica
        if replica is None:
            raise Unavailable("this node's replica cannot answer now")
        token = next(self._tokens)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reads[token] = ready
        try:
            effects = replica.read_strongly(token, term)
            if effects and isinstance(refused := effects[0], Refuse):
                raise refused.error
            self.shard.perform(effects)
            async with asyncio.timeout_at(deadline_s):
                await ready
        except TimeoutError:
            raise DeadlineExceeded("no majority has confirmed the primary in time") from None
        finally:
            self._reads.pop(token, None)

    async def reach(self, seq: int, term: int, deadline_s: float) -> None:
        """Return when this replica has applied `seq`. Raises StaleTerm, DeadlineExceeded."""

        def is_there() -> bool:
            replica = self.replica
            if replica is None:
                raise Unavailable("this node's replica cannot answer now")
            return replica.may_read(seq, term) and self.shard.applied_seq >= seq

        if not is_there():
            await self.shard.pipeline.wait_for(is_there, deadline_s)
            if not is_there():
                raise DeadlineExceeded(f"entry {seq} is not applied here yet")

    # -- what goes out: the pipeline's Outside ------------------------------------------------------------

    def send(self, message: Message) -> None:
        to = getattr(message, "to", None)
        if isinstance(to, ReplicaId):
            self._around.outbox.put(to.node, self.key, message)

    def send_entries(self, effect: SendEntries) -> None:
        first_seq = effect.message.previous.seq + 1
        entries = self.shard.pipeline.memory.run(first_seq, effect.last_seq)
        if entries is not None:
            self._send_filled(effect.message, entries)
        elif len(self._to_read) < READS_MAX:
            self._to_read.append(effect)
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read_entries())

    async def _read_entries(self) -> None:
        """Those that are not in memory any more: of a replica that was away."""
        while self._to_read:
            effect = self._to_read.popleft()
            try:
                entries = await self.shard.read_log(effect.message.previous.seq + 1, effect.last_seq)
            except (ShoalError, OSError) as error:
                self._around.log.warning("replica.log_not_read", what=str(error))
                continue
            self._send_filled(effect.message, tuple(entries))

    def _send_filled(self, message: Append | Fetched, entries: tuple[Entry, ...]) -> None:
        """The log may have changed since: only what it still has there, and on disk, is sent."""
        replica = self.replica
        if not entries or replica is None or replica.term != message.term:
            return
        log = replica.log
        if not log.matches(message.previous) or entries[-1].seq > replica.persisted_seq:
            return
        if all(log.term_at(entry.seq) == entry.term for entry in entries):
            self.send(replace(message, entries=entries))

    def reply(self, message: CommandAnswer | HasPersisted | Refused) -> None:
        self._askers = [asker for asker in self._askers if not asker.take(message)]

    def offer_snapshot(self, offer: OfferSnapshot) -> None:
        self._around.snapshot_wanted(self, offer)

    def read_ready(self, token: int) -> None:
        ready = self._reads.get(token)
        if ready is not None and not ready.done():
            ready.set_result(None)

    def stepped_down(self, term: int) -> None:
        for ready in self._reads.values():
            if not ready.done():
                ready.set_exception(StaleTerm(f"the shard is fenced by term {term}; fetch the map"))

    def schema_wanted(self, version: int) -> None:
        self._around.schema_wanted(self.key, version)

    async def install(self, position: Position) -> None:
        self._around.install(self)
        await _forever()  # until the pipeline, which waits for this, is closed

    async def delete(self) -> None:
        self._around.delete(self)
        await _forever()

    def deleted(self) -> None:
        """Nothing is left on disk."""
        for asker in self._askers:
            if isinstance(asker.asked, Delete) and not asker.answer.done():
                asker.answer.set_result(Deleted(asker.asked.to, asker.asked.term))

    async def close(self) -> None:
        self._to_read.clear()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def _forever() -> Awaitable[None]:
    return asyncio.get_running_loop().create_future()
