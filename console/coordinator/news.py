"""What a leader tells after a change: the primary that it is one, every store that the map has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

from console.coordinator.attempt import Ports, activation, command
from console.coordinator.shards_key import ShardsKey
from console.coordinator.stores import ShardId, Stores
from core.cluster import ClusterMap, NodeId, Shard
from core.errors import ShoalError
from core.replication.messages import Activate, Activated

TELL_S = 2.0
AGAIN_S = 0.1
ACTIVATIONS_MAX = 10
UNHEARD_OF_S = 1.0
"""A primary that its store does not name for so long is told again."""

Begin = Callable[[Coroutine[Any, Any, None], str], None]


class News:
    """`begin` runs what is told beside the rest: nobody waits for those who don't listen."""

    def __init__(self, ports: Ports, stores: Stores, leader_term: int, begin: Begin) -> None:
        self._ports, self._stores, self._begin = ports, stores, begin
        self._leader_term = leader_term
        self._untold: set[str] = set()
        self._known: dict[ShardId, tuple[int, float]] = {}
        """In which term the primary was last known to know that it is one, and when."""
        self._looked_s = 0.0
        self.map: ClusterMap | None = None

    def announce(self, key: ShardsKey, number: int, activate: Activate) -> None:
        """A shard has another configuration, or other learners."""
        self._begin(self._activate(key, number, activate), f"activate.{key.key}/{number}")
        if not self._untold:
            self._begin(self._tell_all(), "map.changed")
        self._untold.add(key.key)

    def remind(self, keys: Iterable[ShardsKey], busy: Collection[ShardId]) -> None:
        """Primaries that don't know that they are: the news was lost, or they have restarted since."""
        now_s = time.monotonic()
        if now_s - self._looked_s < UNHEARD_OF_S:
            return
        self._looked_s = now_s
        dead = self._ports.dead()
        for key in keys:
            for shard in key.value.shards if key.value is not None else ():
                shard_id = (key.collection, shard.number)
                if shard.pending or shard.primary in dead or shard_id in busy:
                    self._known.pop(shard_id, None)
                elif self._is_unaware(shard_id, shard, now_s):
                    self._ports.log.info("shard.reminded", shard=key.key, number=shard.number)
                    self.announce(key, shard.number, activation(shard, self._leader_term))

    def _is_unaware(self, shard_id: ShardId, shard: Shard, now_s: float) -> bool:
        told = self._stores.told(shard.primary)
        if told is None or told.leads is None:
            return False
        leads = told.leads.get(shard_id)
        if leads is not None and leads.term == shard.term:
            self._known[shard_id] = (shard.term, told.at_s)
            return False
        term, since_s = self._known.get(shard_id, (0, 0.0))
        if term != shard.term:
            self._known[shard_id] = (shard.term, now_s)
            return False
        if told.at_s < since_s + UNHEARD_OF_S:
            return False
        self._known[shard_id] = (shard.term, now_s)
        return True

    async def _activate(self, key: ShardsKey, number: int, activate: Activate) -> None:
        """Until it has answered, or the shard has moved on."""
        for _ in range(ACTIVATIONS_MAX):
            shard = key.shard(number)
            if shard is None or shard.term != activate.term or not self._ports.may_act():
                return
            try:
                answer = await command(self._ports.links, key.collection, number, activate, TELL_S)
            except ShoalError as problem:
                self._ports.log.debug("shard.not_activated", peer=activate.to.node, text=str(problem))
            else:
                if isinstance(answer, Activated):
                    return
                self._ports.log.warning(
                    "shard.activation_refused", shard=key.key, peer=activate.to.node, text=repr(answer)
                )
            await asyncio.sleep(AGAIN_S)

    async def _tell_all(self) -> None:
        """Every living store: who misses it sees it for itself, a little later."""
        await asyncio.sleep(0)  # what is activated in one turn is told in one
        keys, self._untold = sorted(self._untold), set()
        if self.map is None:
            return
        told = {"epoch": self.map.epoch, "keys": keys}
        dead = self._ports.dead()
        nodes = [n.id for n in self.map.nodes.values() if n.id not in dead and n.membership != "left"]
        await asyncio.gather(*(self._tell(node, told) for node in nodes))

    async def _tell(self, node: NodeId, told: dict[str, Any]) -> None:
        try:
            await self._ports.links.caller(node).call("map.changed", told, timeout_s=TELL_S)
        except ShoalError as problem:
            self._ports.log.debug("map.not_told", peer=node, text=str(problem))
