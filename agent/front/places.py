"""Where a request reads each shard: here, where the balancer says, or where it must to see enough."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agent.acknowledged import AcknowledgedHere
from agent.front.asking import ShardMissing, Where
from agent.link import Client
from core import cluster
from core.balancer import Balancer, Strategy
from core.cluster import CollectionId, NodeId
from core.errors import DeadlineExceeded, Unavailable
from core.replication.effects import Consistency

OWN_WRITES_S = 0.05
"""How long an eventual read waits here for what was acknowledged through this node."""
LOOK_S = 0.001
OWN_S = 0.01
"""How long the own replica stays the best of a set, once it was."""
PARTIAL_S = 2.0
"""How long a place is looked for, for a request that can do without the shard."""
_OWN_FIRST = (Strategy.ADAPTIVE, Strategy.LOCALITY_AWARE)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request reads: until when, how much it must see, whether without the shards that don't answer."""

    deadline_s: float
    level: Consistency = Consistency.EVENTUAL
    allow_partial: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A collection as this node holds it. `applied`: shard number → how far the replica here is, None if it
    can't be read."""

    id: CollectionId
    name: str
    shards: Sequence[cluster.Shard]
    applied: Callable[[int], int | None]

    def where(self, shard: cluster.Shard, nodes: Sequence[NodeId]) -> Where:
        return Where(self.id, shard.number, nodes, shard.primary, self.name)


class Places:
    """Chooses. What was acknowledged through this node, an eventual read through it sees."""

    def __init__(self, me: NodeId, link: Client, balancer: Balancer, acknowledged: AcknowledgedHere) -> None:
        self._me, self._link, self._balancer, self._acknowledged = me, link, balancer, acknowledged
        self._own_until_s: dict[tuple[NodeId, ...], float] = {}

    def all_here(self, held: Held) -> bool:
        """Whether an eventual read of all of it is best made here, at once."""
        if self._balancer.strategy not in _OWN_FIRST:
            return all(len(shard.in_sync) == 1 for shard in held.shards)
        now_s = time.monotonic()
        for shard in held.shards:
            if len(shard.in_sync) == 1:
                continue
            if now_s >= self._own_until_s.get(shard.in_sync, 0.0):
                if self._balancer.pick(shard.in_sync, now_s) != self._me:
                    return False
                # Choosing takes a tenth of a short search.
                self._own_until_s[shard.in_sync] = now_s + OWN_S
            if shard.primary != self._me and not self._sees_own(held, shard.number):
                return False
        return True

    async def find(
        self,
        held: Held,
        terms: Terms,
        *,
        here: frozenset[int] = frozenset(),
        without: frozenset[int] = frozenset(),
    ) -> Mapping[int, Where]:
        """The shards to be read elsewhere. Those in `here` are read here if that is possible at all.

        Raises ShardMissing.
        """
        wanted = [shard for shard in held.shards if shard.number not in without]
        if terms.level is Consistency.EVENTUAL:
            until_s = time.monotonic() + OWN_WRITES_S
            found = [await self._near(held, shard, until_s, shard.number in here) for shard in wanted]
        else:
            found = await asyncio.gather(*(self._fresh(held, shard, terms) for shard in wanted))
        return {where.shard: where for where in found if where is not None}

    async def _near(self, held: Held, shard: cluster.Shard, until_s: float, insist: bool) -> Where | None:
        others = [node for node in shard.in_sync if node != self._me]
        is_here = self._me in shard.in_sync and held.applied(shard.number) is not None
        if not others:
            return None
        where = held.where(shard, others)
        where.at_least = self._acknowledged.seq(held.id, shard.number)
        if not is_here:
            return where
        where.is_here = not insist
        if not insist:
            picked = self._balancer.pick(shard.in_sync, time.monotonic())
            if picked != self._me:
                where.chosen = picked
                return where
        if await self._own_writes(held, shard.number, until_s) or shard.primary == self._me or insist:
            return None
        where.nodes = [shard.primary]
        return where

    async def _own_writes(self, held: Held, number: int, until_s: float) -> bool:
        """Whether they are applied here, after a short wait."""
        while not self._sees_own(held, number):
            if time.monotonic() >= until_s:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def _sees_own(self, held: Held, number: int) -> bool:
        return (held.applied(number) or 0) >= self._acknowledged.seq(held.id, number)

    async def _fresh(self, held: Held, shard: cluster.Shard, terms: Terms) -> Where | None:
        """Where the store says that a linearizable read may begin now. Raises ShardMissing."""
        header = {"collection": held.id, "shard": shard.number, "consistency": terms.level.value}
        left_s = max(0.001, terms.deadline_s - time.monotonic())
        if terms.allow_partial:
            left_s = min(left_s, PARTIAL_S)
        try:
            place, _ = await self._link.call("shard.read_place", header, timeout_s=left_s)
        except (Unavailable, DeadlineExceeded) as problem:
            where = held.where(shard, shard.in_sync)
            where.is_unplaced = True
            raise ShardMissing(where, str(problem)) from None
        node = NodeId(place["node"])
        if node == self._me and held.applied(shard.number) is not None:
            return None
        return held.where(shard, (node,))
