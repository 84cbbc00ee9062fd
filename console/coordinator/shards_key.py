"""One key `shards/…` in the leader's hands: stamped with its term, changes of many shards in one CAS."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from console.coordinator.leadership import Deposed, Reign
from console.state_client import StateClient, VersionConflict, Versioned
from core.cluster import EVENTS_KEPT, CollectionId, Event, Shard, Shards, shards_key, to_json
from core.errors import NotFound, ShoalError, Unavailable
from net.logs import Log

AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class _Wanted:
    expected: Shard
    new: Shard
    event: Event | None
    answer: asyncio.Future[Shard]


class ShardsKey:
    """`value` is what the key was last seen to hold; None: nothing, or it has not been read yet.

    Its methods raise Deposed if a higher leader has stamped it.
    """

    def __init__(self, collection: CollectionId, state: StateClient, reign: Reign, log: Log) -> None:
        self.key = shards_key(collection)
        self.collection = collection
        self.value: Shards | None = None
        self._state, self._reign, self._log = state, reign, log
        self._version = 0
        self._is_stale = True
        self._queue: list[_Wanted] = []
        self._has_work = asyncio.Event()
        self._is_over = False

    @property
    def version(self) -> int:
        """Of the key, as `value` has it."""
        return self._version

    def shard(self, number: int) -> Shard | None:
        shards = self.value.shards if self.value is not None else ()
        return next((s for s in shards if s.number == number), None)

    async def read(self) -> None:
        """Raises a ShoalError if no agent can say what it holds."""
        self._saw(await self._state.read(self.key))

    def refresh(self) -> None:
        """Have it read again: agents may have added learners."""
        self._is_stale = True
        self._has_work.set()

    async def run(self) -> None:
        """Stamps the key, then writes what `change` asks for, until it is cancelled."""
        batch: list[_Wanted] = []
        try:
            await self._stamp()
            while True:
                await self._has_work.wait()
                # All that is asked for in this turn of the loop, and while a CAS is under way, goes in one.
                await asyncio.sleep(0)
                self._has_work.clear()
                batch, self._queue = self._queue, []
                await self._write(batch)
        finally:
            self._is_over = True
            _fail([*batch, *self._queue], Unavailable(f"{self.key} is not written any more"))

    async def change(self, expected: Shard, new: Shard, event: Event | None = None) -> Shard:
        """The record that is there in the end: `new`, or another, and then this change has not happened.

        Raises Unavailable if this leader may not act, NotFound if the collection is gone.
        """
        if self._is_over:
            raise Unavailable(f"{self.key} is not written any more")
        answer: asyncio.Future[Shard] = asyncio.get_running_loop().create_future()
        self._queue.append(_Wanted(expected, new, event, answer))
        self._has_work.set()
        return await answer

    # -- writing ------------------------------------------------------------------------------------------

    async def _stamp(self) -> None:
        while True:
            try:
                if self._is_stale:
                    await self.read()
                if self.value is None or self.value.leader_term == self._reign.term:
                    return
                if self._reign.may_act():
                    await self._cas(replace(self.value, leader_term=self._reign.term))
                    continue
            except Deposed:
                raise
            except ShoalError as problem:
                self._log.warning("shards.not_stamped", key=self.key, text=str(problem))
            await asyncio.sleep(AGAIN_S)

    async def _write(self, batch: list[_Wanted]) -> None:
        """Until each of them is answered, and the value is as it was at some time since."""
        waiting = [wanted for wanted in batch if not wanted.answer.done()]
        while waiting or self._is_stale:
            try:
                if self._is_stale:
                    await self.read()
                waiting, new = self._settle(waiting)
                if waiting and not self._reign.may_act():
                    raise Unavailable("this leader's lease is not sure any more")
                if waiting and new is not None:
                    await self._cas(new)
            except Deposed:
                raise
            except ShoalError as problem:
                self._log.warning("shards.not_written", key=self.key, text=str(problem))
                if not self._reign.may_act():
                    _fail(waiting, Unavailable(f"{self.key} was not written: {problem}"))
                    return
                await asyncio.sleep(AGAIN_S)

    def _settle(self, waiting: list[_Wanted]) -> tuple[list[_Wanted], Shards | None]:
        """Answers what is decided by the value as it is; the rest, and the value that does the rest."""
        if self.value is None:
            _fail(waiting, NotFound(f"{self.key} is gone: its collection was deleted"))
            return [], None
        there = {shard.number: shard for shard in self.value.shards}
        made, events = dict(there), list(self.value.events)
        left = []
        for wanted in waiting:
            number = wanted.new.number
            current = there.get(number)
            if wanted.answer.done():  # its asker gave up
                continue
            if current is not None and made[number] == wanted.expected != wanted.new:
                made[number] = wanted.new
                events += [wanted.event] if wanted.event is not None else []
                left.append(wanted)
            elif current is None:
                wanted.answer.set_exception(NotFound(f"{self.key} has no shard {number} any more"))
            else:
                wanted.answer.set_result(current)
        value = replace(
            self.value,
            leader_term=self._reign.term,
            shards=tuple(made[shard.number] for shard in self.value.shards),
            events=tuple(events[-EVENTS_KEPT:]),
        )
        return left, value

    async def _cas(self, new: Shards) -> None:
        self._is_stale = True  # until the answer is here: without one only reading tells
        answer = await self._state.compare_and_set(self.key, self._version, to_json(new))
        if isinstance(answer, VersionConflict):
            self._saw(answer.current)
        else:
            self.value, self._version, self._is_stale = new, answer, False

    def _saw(self, found: Versioned) -> None:
        value = msgspec.json.decode(found.value, type=Shards) if found.value is not None else None
        if value is not None and value.leader_term > self._reign.term:
            raise Deposed(self.key, mine=self._reign.term, theirs=value.leader_term)
        self.value, self._version, self._is_stale = value, found.version, False


def event(kind: str, who: str, subject: str) -> Event:
    """What a CAS did, at this machine's time, which is a label and decides nothing."""
    return Event(time.time_ns() // 1000, kind, who, subject)


def _fail(waiting: list[_Wanted], problem: ShoalError) -> None:
    for wanted in waiting:
        if not wanted.answer.done():
            wanted.answer.set_exception(problem)
