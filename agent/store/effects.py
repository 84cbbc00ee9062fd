"""A replica's effects in their order: KeepIdentity, Install and DeleteReplica hold back all that follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from core.replication.effects import Effect, OfferSnapshot, Persist, SendEntries
from core.replication.log import Position
from core.replication.messages import CommandAnswer, HasPersisted, Message, Refused


class Outside(Protocol):
    """Whom a replica speaks to. Nothing here may wait, but for what is awaited."""

    def send(self, message: Message) -> None: ...

    def send_entries(self, effect: SendEntries) -> None: ...

    def reply(self, message: CommandAnswer | HasPersisted | Refused) -> None: ...

    def offer_snapshot(self, offer: OfferSnapshot) -> None: ...

    def read_ready(self, token: int) -> None: ...

    def stepped_down(self, term: int) -> None: ...

    def schema_wanted(self, version: int) -> None:
        """What is to be applied was checked against this version of the schema: fetch the map."""
        ...

    async def install(self, position: Position) -> None:
        """Put the snapshot that ends here in place of contents and log, and open the replica again."""
        ...

    async def delete(self) -> None:
        """Remove the replica from disk."""
        ...


class Nobody:
    """Outside of a replica that is alone, or not yet attached: what is sent is lost."""

    def send(self, message: Message) -> None:
        pass

    def send_entries(self, effect: SendEntries) -> None:
        pass

    def reply(self, message: CommandAnswer | HasPersisted | Refused) -> None:
        pass

    def offer_snapshot(self, offer: OfferSnapshot) -> None:
        pass

    def read_ready(self, token: int) -> None:
        pass

    def stepped_down(self, term: int) -> None:
        pass

    def schema_wanted(self, version: int) -> None:
        pass

    async def install(self, position: Position) -> None:
        raise AssertionError(f"nobody offered a snapshot at {position}")

    async def delete(self) -> None:
        raise AssertionError("nobody asked to delete this replica")


class Effects:
    """`perform` takes effects that are done at once; `hold` those that must be durable before the next.

    What fails in `hold` is told to `failed`, and then nothing that follows is ever performed.
    """

    def __init__(
        self,
        perform: Mapping[type[Any], Callable[[Any], None]],
        hold: Mapping[type[Any], Callable[[Any], Awaitable[None]]],
        failed: Callable[[Exception], None],
    ) -> None:
        self._perform, self._hold, self._failed = perform, hold, failed
        self._queue: deque[Effect] = deque()
        self._is_busy = False
        self._has_ended = False
        self._holding: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def is_held(self) -> bool:
        return self._holding is not None

    @property
    def waiting(self) -> Sequence[Effect]:
        """What is held back."""
        return self._queue

    def add(self, effects: Sequence[Effect]) -> None:
        """Perform these after all earlier ones; at once, if nothing is held back."""
        if self._has_ended:
            return
        self._queue.extend(effects)
        if not self._is_busy:
            self._go_on()

    def void_persists(self) -> None:
        """Entries that were withdrawn are not to be written."""
        kept = [effect for effect in self._queue if not isinstance(effect, Persist)]
        self._queue.clear()
        self._queue.extend(kept)

    async def settled(self) -> None:
        """Return when all effects so far are performed."""
        await self._settled.wait()

    def end(self) -> None:
        """The replica is another object now, or gone: nothing that is left is performed."""
        self._has_ended = True
        self._queue.clear()
        self._settled.set()

    async def close(self) -> None:
        if self._holding is not None:
            self._holding.cancel()
            await asyncio.gather(self._holding, return_exceptions=True)

    def _go_on(self) -> None:
        self._is_busy = True
        try:
            while self._queue:
                effect = self._queue.popleft()
                hold = self._hold.get(type(effect))
                if hold is not None:
                    self._settled.clear()
                    self._holding = asyncio.create_task(self._held(hold, effect))
                    return
                self._perform[type(effect)](effect)
        finally:
            self._is_busy = self._holding is not None
        self._settled.set()

    async def _held(self, hold: Callable[[Any], Awaitable[None]], effect: Effect) -> None:
        try:
            await hold(effect)
            self._holding = None
            self._go_on()
        except Exception as error:  # noqa: BLE001 - whatever it was: nothing may rest on what is not durable
            self.end()
            self._failed(error)
