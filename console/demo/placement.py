"""Who holds which shard of the demo's collection, as the cluster's own map says it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from console.peers import Links
from console.state_client import StateClient
from core.cluster import ClusterMap, Shard, Shards, named, shards_key
from core.config import ClusterConfig
from core.config_values import host_port
from core.errors import DeadlineExceeded, NotFound
from net.trust import trust_of

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Placement:
    """One collection's shards, to be read as often as wanted."""

    state: StateClient
    collection: str

    async def shards(self) -> tuple[Shard, ...]:
        found = await self.state.read("map")
        if found.value is None:
            raise NotFound("the cluster has no map yet")
        collection = named(msgspec.json.decode(found.value, type=ClusterMap), self.collection)
        kept = await self.state.read(shards_key(collection.id))
        if kept.value is None:
            raise NotFound.collection(self.collection)
        return msgspec.json.decode(kept.value, type=Shards).shards

    async def wait_until(
        self, check: Callable[[Shard], bool], what: str, *, within_s: float
    ) -> tuple[Shard, ...]:
        """The shards when the check is true of each. Raises DeadlineExceeded."""
        deadline_s = asyncio.get_running_loop().time() + within_s
        while not all(map(check, shards := await self.shards())):
            if asyncio.get_running_loop().time() > deadline_s:
                raise DeadlineExceeded(f"within {within_s:g} s not {what}: {shards}")
            await asyncio.sleep(_LOOK_S)
        return shards


@asynccontextmanager
async def placement_of(config: ClusterConfig, collection: str) -> AsyncIterator[Placement]:
    links = Links("demo", trust_of(config), {node.id: host_port(node.peer_address) for node in config.nodes})
    try:
        yield Placement(StateClient(links.caller, lambda: links.nodes), collection)
    finally:
        await links.close()


def led_by(shards: tuple[Shard, ...]) -> Counter[str]:
    """Node → how many of the shards it is the primary of."""
    return Counter(shard.primary for shard in shards)
