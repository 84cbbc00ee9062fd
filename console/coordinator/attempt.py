"""One attempt to reconfigure a shard: drives core's Reconfiguration over links and the shard's key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from console.coordinator.shards_key import ShardsKey
from console.peers import Links
from core.cluster import CollectionId, Event, NodeId, Shard
from core.errors import ShoalError, Unavailable
from core.peer_wire import SHARD
from core.replication.messages import Activate, CatchUp, Command, CommandAnswer
from core.replication.reconfigure import (
    Change,
    Effect,
    Failed,
    Finished,
    Patience,
    Plan,
    Reconfiguration,
    Step,
    Tell,
    replica_ids,
)
from net.logs import Log

TICK_S = 0.05

Feed = Callable[[float], list[Effect]]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The configuration is active; `activate` is for its primary."""

    shard: Shard
    activate: Activate


@dataclass(frozen=True, slots=True)
class Ports:
    """What an attempt needs of its leader."""

    links: Links
    may_act: Callable[[], bool]
    dead: Callable[[], Collection[NodeId]]
    patience: Patience
    log: Log


async def command(
    links: Links, collection: CollectionId, shard: int, message: Command, timeout_s: float
) -> CommandAnswer:
    """Raises Unavailable if the node can't be reached or has no such replica, DeadlineExceeded."""
    kind, body = SHARD.encode(message)
    header = {"collection": collection, "shard": shard, "kind": kind}
    caller = links.caller(message.to.node)
    told, answer = await caller.call("shard.command", header, body, timeout_s=timeout_s)
    decoded: CommandAnswer = SHARD.decode(str(told.get("kind")), answer)
    return decoded


class Attempt:
    """`run` once. `took_ms` says how long each step lasted."""

    def __init__(
        self, key: ShardsKey, shard: Shard, plan: Plan, leader_term: int, ports: Ports, event: Event
    ) -> None:
        """Raises Conflict if the plan names who has no replica."""
        reconfiguration = Reconfiguration(shard, plan, leader_term, ports.patience)
        self._key, self._reconfiguration, self._shard = key, reconfiguration, shard.number
        self._members, self._ports, self._event = plan.in_sync, ports, event
        self._inbox: asyncio.Queue[Feed] = asyncio.Queue()
        self._under_way: set[Command] = set()
        self._step_began_s = time.monotonic()
        self._step = reconfiguration.step
        self._finished: Shard | None = None
        self.took_ms: dict[str, int] = {}

    async def run(self) -> Succeeded | Failed:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            effects = self._reconfiguration.begin(time.monotonic())
            while True:
                self._note_step()
                for effect in effects:
                    outcome = self._do(effect, group, tasks)
                    if outcome is not None:
                        for task in tasks:
                            task.cancel()
                        return outcome
                effects = await self._next()

    async def _next(self) -> list[Effect]:
        try:
            async with asyncio.timeout(TICK_S):
                feed = await self._inbox.get()
        except TimeoutError:
            if gone := self._died():
                return [Failed(f"{', '.join(gone)} died meanwhile", gone)]
            feed = self._reconfiguration.tick
        return feed(time.monotonic())

    def _died(self) -> tuple[NodeId, ...]:
        """Members to be, without whom this attempt can't end: the next one does not count on them."""
        if self._reconfiguration.step not in (Step.CATCH_UP, Step.LEVEL):
            return ()
        dead = self._ports.dead()
        return tuple(node for node in self._members if node in dead)

    def _do(
        self, effect: Effect, group: asyncio.TaskGroup, tasks: list[asyncio.Task[None]]
    ) -> Succeeded | Failed | None:
        match effect:
            case Failed():
                return effect
            case Finished(shard=shard):
                self._finished = shard
                return None
            case Tell(message=Activate() as activate) if self._finished is not None:
                return Succeeded(self._finished, activate)
        if not self._ports.may_act():
            return Failed("this leader may not act now")
        if isinstance(effect, Change):
            tasks.append(group.create_task(self._change(effect)))
        elif effect.message not in self._under_way:
            # Frames are not lost while their connection lasts: asking again would only ask twice.
            self._under_way.add(effect.message)
            tasks.append(group.create_task(self._tell(effect.message)))
        return None

    def _note_step(self) -> None:
        if self._reconfiguration.step is self._step:
            return
        now_s = time.monotonic()
        name = f"{self._step.name.lower()}_ms"
        self.took_ms[name] = self.took_ms.get(name, 0) + round(1000 * (now_s - self._step_began_s))
        self._step, self._step_began_s = self._reconfiguration.step, now_s

    async def _change(self, change: Change) -> None:
        is_activation = self._reconfiguration.step is Step.ACTIVATE
        event = self._event if is_activation else None
        try:
            current = await self._key.change(change.expected, change.new, event)
        except ShoalError as problem:
            text = str(problem)
            self._inbox.put_nowait(lambda _: [Failed(text)])
            return
        if current == change.new:
            self._inbox.put_nowait(self._reconfiguration.on_changed)
        else:
            self._inbox.put_nowait(lambda now_s: self._reconfiguration.on_conflict(current, now_s))

    async def _tell(self, message: Command) -> None:
        node = NodeId(message.to.node)
        patience = self._ports.patience
        limit_s = patience.catch_up_s if isinstance(message, CatchUp) else patience.step_s
        try:
            if node in self._ports.dead():
                raise Unavailable(f"node {node} is dead")
            answer = await command(self._ports.links, self._key.collection, self._shard, message, limit_s)
        except Unavailable as problem:
            self._ports.log.debug("shard.unreachable", peer=node, text=str(problem))
            self._inbox.put_nowait(lambda now_s: self._reconfiguration.on_unreachable(node, now_s))
        except ShoalError as problem:
            self._ports.log.debug("shard.no_answer", peer=node, text=str(problem))
        else:
            self._inbox.put_nowait(lambda now_s: self._reconfiguration.on_answer(answer, now_s))
        finally:
            self._under_way.discard(message)


def activation(shard: Shard, leader_term: int) -> Activate:
    """For a primary that has missed the news, or whose learners have changed."""
    (primary,) = replica_ids(shard, [shard.primary])
    return Activate(
        primary,
        shard.term,
        leader_term,
        replica_ids(shard, shard.in_sync),
        replica_ids(shard, shard.learners),
    )
