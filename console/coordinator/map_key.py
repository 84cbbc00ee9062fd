"""The key `map` in the leader's hands: stamped with its term, then followed as agents change it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from console.coordinator.leadership import Deposed, Reign
from console.coordinator.shards_key import event
from console.state_client import StateClient, Versioned
from core.cluster import ClusterMap, to_json
from core.cluster_changes import stamped
from core.errors import ShoalError, Unavailable
from net.logs import Log

MAP_KEY = "map"
AGAIN_S = 0.1
TOLD_S = 1.0
WATCH_S = 3.0
"""Through an agent that hangs nothing would be seen for longer."""


class MapKey:
    """`run` until cancelled: `on_map` hears of each new map, the first after it was stamped."""

    def __init__(
        self, state: StateClient, reign: Reign, who: str, on_map: Callable[[ClusterMap], None], log: Log
    ) -> None:
        self._state, self._reign, self._who, self._on_map, self._log = state, reign, who, on_map, log
        self._version: int | None = None

    async def run(self) -> None:
        """Raises Deposed if a higher leader has stamped it."""
        reached_s, is_told = time.monotonic(), False
        while True:
            try:
                if self._version is None or await self._state.watch(
                    MAP_KEY, self._version, timeout_s=WATCH_S
                ):
                    # A watch is a hint: what rests on the map rests on what was chosen.
                    await self._take(await self._state.read(MAP_KEY))
                reached_s, is_told = time.monotonic(), False
            except Deposed:
                raise
            except ShoalError as problem:
                # A watch ends with its agent, which is no news: the next one is asked.
                if not is_told and time.monotonic() > reached_s + WATCH_S + TOLD_S:
                    is_told = True
                    self._log.warning("map.not_read", text=str(problem))
                await asyncio.sleep(AGAIN_S)

    async def _take(self, found: Versioned) -> None:
        """Stamps it first: from then on no earlier leader's change of the map can succeed."""
        while True:
            cluster = self._checked(found)
            if cluster is None or cluster.leader_term == self._reign.term:
                break
            if not self._reign.may_act():
                raise Unavailable("the map is not stamped: this leader's lease is not sure any more")
            said = event("leader.elected", self._who, f"term {self._reign.term}")
            new = stamped(cluster, replace(cluster, leader_term=self._reign.term), said)
            answer = await self._state.compare_and_set(MAP_KEY, found.version, to_json(new))
            found = Versioned(to_json(new), answer) if isinstance(answer, int) else answer.current
        self._version = found.version
        if cluster is not None:
            self._on_map(cluster)

    def _checked(self, found: Versioned) -> ClusterMap | None:
        if found.value is None:
            return None
        cluster = msgspec.json.decode(found.value, type=ClusterMap)
        if cluster.leader_term > self._reign.term:
            raise Deposed(MAP_KEY, mine=self._reign.term, theirs=cluster.leader_term)
        return cluster
