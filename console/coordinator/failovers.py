"""How many failovers a leader begins, and what it says of each when it is over."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from console.coordinator.stores import ShardId
from core.cluster import NodeId
from core.detector import Pace, ThrashGuard
from net.logs import Log


@dataclass(slots=True)
class _Failover:
    """From the first sign that a node is gone until no shard waits for it any more."""

    since_s: float
    shards: int = 0
    failed: int = 0
    open: set[ShardId] = field(default_factory=set)


class Failovers:
    """One failover a node: all its shards move away with one permission."""

    def __init__(self, pace: Pace, log: Log) -> None:
        self._guard, self._log = ThrashGuard(pace), log
        self._given_up: set[NodeId] = set()
        """Nodes away from which shards may move, until they are well again."""
        self._held_back: set[NodeId] = set()
        self._failovers: dict[NodeId, _Failover] = {}

    def may_begin(self, nodes: tuple[NodeId, ...], *, must: bool) -> bool:
        """`must`: it is only counted. A fenced shard takes no writes until it is over."""
        now_s = time.monotonic()
        for node in nodes:
            if node in self._given_up:
                continue
            if not must and not self._guard.may_act(node, now_s):
                if node not in self._held_back:
                    self._held_back.add(node)
                    self._log.warning("failover.held_back", peer=node, text="too many failovers in a row")
                return False
            self._guard.acted(node, now_s)
            self._given_up.add(node)
        return True

    def well(self, nodes: Collection[NodeId]) -> None:
        self._given_up.difference_update(nodes)
        self._held_back.difference_update(nodes)

    def begun(self, node: NodeId, since_s: float, shard: ShardId) -> None:
        self._failovers.setdefault(node, _Failover(since_s)).open.add(shard)

    def ended(self, node: NodeId, shard: ShardId, *, failed: bool) -> None:
        failover = self._failovers.get(node)
        if failover is None:
            return
        failover.open.discard(shard)
        failover.shards += not failed
        failover.failed += failed
        if not failover.open:
            del self._failovers[node]
            self._log.info(
                "failover.done",
                peer=node,
                shards=failover.shards,
                failed=failover.failed,
                took_ms=round(1000 * (time.monotonic() - failover.since_s)),
            )
