"""How many failovers a leader begins, who may return after one, and what is said of each in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from console.coordinator.stores import ShardId
from core.cluster import NodeId
from core.detector import Pace, ThrashGuard
from net.logs import Log

PACE = Pace(again_s=1.0)
"""Giving up a dead node is urgent, even if it was there only for a moment; taking it back is not."""
CALM_S, CALM_S_MAX = 0.5, 30.0
"""For so long a node must be well before it is taken in; twice as long for each recent failover."""
REMEMBERED_S = 120.0


@dataclass(slots=True)
class _Failover:
    """From the first sign that a node is gone until no shard waits for it any more."""

    since_s: float
    shards: int = 0
    failed: int = 0
    open: set[ShardId] = field(default_factory=set)


class Failovers:
    """One failover a node: all its shards move away with one permission."""

    def __init__(self, pace: Pace, log: Log, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._guard, self._log, self._clock_s = ThrashGuard(pace), log, clock_s
        self._given_up: set[NodeId] = set()
        """Nodes away from which shards may move, until they are well again."""
        self._held_back: set[NodeId] = set()
        self._failovers: dict[NodeId, _Failover] = {}
        self._gone_s: dict[NodeId, list[float]] = {}
        self._well_since_s: dict[NodeId, float] = {}

    def may_begin(self, nodes: tuple[NodeId, ...], *, must: bool) -> bool:
        """`must`: it is only counted. A fenced shard takes no writes until it is over."""
        now_s = self._clock_s()
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
            recent = [at_s for at_s in self._gone_s.get(node, ()) if now_s - at_s < REMEMBERED_S]
            self._gone_s[node] = [*recent, now_s]
        return True

    def well(self, nodes: Collection[NodeId]) -> None:
        """All that are well now."""
        now_s = self._clock_s()
        self._given_up.difference_update(nodes)
        self._held_back.difference_update(nodes)
        self._well_since_s = {node: self._well_since_s.get(node, now_s) for node in nodes}

    def restless(self, nodes: Collection[NodeId]) -> frozenset[NodeId]:
        """Those that came back too lately to be relied upon: each time that one flaps, writes wait."""
        now_s = self._clock_s()
        return frozenset(
            n for n in nodes if now_s < self._well_since_s.get(n, now_s) + self._calm_s(n, now_s)
        )

    def _calm_s(self, node: NodeId, now_s: float) -> float:
        failovers = sum(now_s - at_s < REMEMBERED_S for at_s in self._gone_s.get(node, ()))
        return min(CALM_S_MAX, CALM_S * 2 ** (failovers - 1)) if failovers else 0.0

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
                took_ms=round(1000 * (self._clock_s() - failover.since_s)),
            )
