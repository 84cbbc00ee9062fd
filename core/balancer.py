"""Which replica serves a read: the strategies, over what is known of each node.

Fed by one front about the peers that it asks. Times are seconds of the caller's monotonic clock; chance
comes as a `random.Random`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Protocol, TypeVar

from core.cluster import NodeId
from core.detector import Health
from core.errors import InvariantBroken
from core.hashing import splitmix64

T = TypeVar("T")

LATENCY_START_S = 0.005
EWMA_WEIGHT = 0.2
DECAY_S = 5.0
"""A latency counts half after this long without another: who was slow once must be tried again."""
OWN_FACTOR = 1.5
"""The adaptive strategy leaves its own replica when that costs more than this times the best other."""
SLOW_START_S = 10.0
DEGRADED_SHARE = 0.05
RECENT_MAX = 64
SLOWEST_OF = 20
HEDGE_S_MIN, HEDGE_S_START = 0.005, 0.05
WEIGHT_MIN = 1e-6


class Chance(Protocol):
    """What is used of `random.Random`."""

    def random(self) -> float: ...

    def choice(self, seq: Sequence[T], /) -> T: ...

    def sample(self, population: Sequence[T], k: int, /) -> list[T]: ...


class Strategy(Enum):
    ADAPTIVE = "adaptive"
    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    LEAST_LOADED = "least_loaded"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LOCALITY_AWARE = "locality_aware"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the map, the settings and the last heartbeat say of a node."""

    zone: str = ""
    read_weight: float = 1.0
    health: Health = "healthy"
    degraded: bool = False
    """It answers, but not well: it gets one read in twenty, enough to see that it is well again."""
    cpu: float = 0.0
    memory: float = 0.0
    """Shares in use, 0..1."""


@dataclass(slots=True)
class _Node:
    standing: Standing = field(default_factory=Standing)
    in_flight: int = 0
    latency_s: float = LATENCY_START_S
    measured_s: float = 0.0
    served: int = 0
    failed: int = 0
    credit: float = 0.0
    returned_s: float | None = None
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_MAX))


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """What is shown of a node, per front."""

    in_flight: int
    latency_s: float
    served: int
    failed: int


class Balancer:
    """`pick` a node, `began` it, `finished` it. Strategy and weights may change between any two reads."""

    def __init__(self, own: NodeId, zone: str, chance: Chance, *, strategy: Strategy) -> None:
        self.strategy = strategy
        self._own, self._zone, self._chance = own, zone, chance
        self._nodes: dict[NodeId, _Node] = {}
        self._turn = 0

    def observe(self, standings: Mapping[NodeId, Standing], now_s: float) -> None:
        """All nodes of the map as they stand now. One that was dead and is not starts slowly."""
        for gone in self._nodes.keys() - standings.keys():
            del self._nodes[gone]
        for name, standing in standings.items():
            node = self._nodes.setdefault(name, _Node(measured_s=now_s))
            if node.standing.health == "dead" and standing.health != "dead":
                node.returned_s, node.latency_s, node.measured_s = now_s, LATENCY_START_S, now_s
            node.standing = standing

    def pick(self, candidates: Sequence[NodeId], now_s: float, *, sticky: int | None = None) -> NodeId:
        """The one of these replicas' nodes that serves the next read.

        `sticky`: a hash of what should go to the same node while that is well. Dead nodes are asked only
        if there are no others: what is known of them may be old.
        """
        if not candidates:
            raise InvariantBroken("a read has no replica to choose from")
        usable = self._usable(candidates, now_s)
        if len(usable) == 1:
            return usable[0]
        if sticky is not None:
            # Rendezvous hashing: a node that leaves moves only its own keys.
            return max(usable, key=lambda name: splitmix64(sticky ^ hash_of(name)))
        match self.strategy:
            case Strategy.ADAPTIVE:
                return self._adaptive(usable, now_s)
            case Strategy.ROUND_ROBIN:
                self._turn += 1
                return sorted(usable)[self._turn % len(usable)]
            case Strategy.LEAST_CONNECTIONS:
                return self._least(usable, lambda node: node.in_flight)
            case Strategy.LEAST_LOADED:
                return self._least(
                    usable, lambda n: max(n.standing.cpu, n.standing.memory) + n.in_flight / 64
                )
            case Strategy.WEIGHTED_ROUND_ROBIN:
                return self._weighted(usable)
            case Strategy.LOCALITY_AWARE:
                return self._nearest(usable)
            case Strategy.RANDOM:
                return self._chance.choice(usable)

    def began(self, name: NodeId) -> None:
        self._node(name).in_flight += 1

    def finished(self, name: NodeId, took_s: float, now_s: float, *, ok: bool) -> None:
        """A failure counts as slow as it was, and no faster than what is known: errors come quickly."""
        node = self._node(name)
        node.in_flight = max(0, node.in_flight - 1)
        if not ok:
            node.failed += 1
            took_s = max(took_s, 2 * node.latency_s)
        else:
            node.recent_s.append(took_s)
        self._measure(node, took_s, now_s)

    def served(self, name: NodeId, took_s: float, now_s: float) -> None:
        """A read that waited for nothing, and was never in flight."""
        self._measure(self._node(name), took_s, now_s)

    @staticmethod
    def _measure(node: _Node, took_s: float, now_s: float) -> None:
        node.served += 1
        # The longer ago the last measurement, the more this one says.
        node.latency_s += (1 - (1 - EWMA_WEIGHT) * _kept(node, now_s)) * (took_s - node.latency_s)
        node.measured_s = now_s

    def withdrawn(self, name: NodeId) -> None:
        """The read that began is nobody's any more, and says nothing of the node."""
        node = self._node(name)
        node.in_flight = max(0, node.in_flight - 1)

    def hedge_after_s(self, name: NodeId) -> float:
        """When a read is late: one in twenty of this node took longer."""
        recent_s = self._node(name).recent_s
        if len(recent_s) < SLOWEST_OF:
            return HEDGE_S_START
        return max(HEDGE_S_MIN, sorted(recent_s)[-(len(recent_s) // SLOWEST_OF)])

    def in_flight(self, name: NodeId) -> int:
        return self._node(name).in_flight

    def statistics(self) -> dict[NodeId, NodeStatistics]:
        return {
            name: NodeStatistics(node.in_flight, node.latency_s, node.served, node.failed)
            for name, node in self._nodes.items()
        }

    def _node(self, name: NodeId) -> _Node:
        return self._nodes.setdefault(name, _Node())

    def _usable(self, candidates: Sequence[NodeId], now_s: float) -> list[NodeId]:
        alive = [name for name in candidates if self._node(name).standing.health != "dead"]
        if len(alive) < 2:
            return alive or list(candidates)
        willing = [name for name in alive if self._takes(self._node(name), now_s)]
        return willing or alive

    def _takes(self, node: _Node, now_s: float) -> bool:
        standing = node.standing
        if standing.read_weight <= 0:
            return False
        share = DEGRADED_SHARE if standing.degraded or standing.health == "suspect" else 1.0
        if node.returned_s is not None:
            risen = (now_s - node.returned_s) / SLOW_START_S
            if risen >= 1:
                node.returned_s = None
            else:
                share = min(share, max(DEGRADED_SHARE, risen))
        return share >= 1.0 or self._chance.random() < share

    def _adaptive(self, usable: Sequence[NodeId], now_s: float) -> NodeId:
        """The own replica unless another is clearly better; else the better of two at random.

        Mitzenmacher 2001, The Power of Two Choices.
        """
        cost = {name: self._cost(self._node(name), now_s) for name in usable}
        own = cost.get(self._own)
        others = [name for name in usable if name != self._own]
        if own is not None and own <= OWN_FACTOR * min(cost[name] for name in others):
            return self._own
        if len(others) == 1:
            return others[0] if own is not None else usable[0]
        first, second = self._chance.sample(others, 2)
        return first if cost[first] <= cost[second] else second

    def _cost(self, node: _Node, now_s: float) -> float:
        """Expected wait, s: what it took lately, times those who wait there, over its weight."""
        latency_s = node.latency_s * _kept(node, now_s)
        return latency_s * (1 + node.in_flight) / max(node.standing.read_weight, WEIGHT_MIN)

    def _least(self, usable: Sequence[NodeId], load: Callable[[_Node], float]) -> NodeId:
        loads = {name: load(self._node(name)) for name in usable}
        least = min(loads.values())
        return self._chance.choice([name for name in usable if loads[name] == least])

    def _weighted(self, usable: Sequence[NodeId]) -> NodeId:
        """Smooth weighted round robin: shares by weight, and no node's turns in one burst."""
        weights = {name: max(self._node(name).standing.read_weight, WEIGHT_MIN) for name in sorted(usable)}
        for name, weight in weights.items():
            self._node(name).credit += weight
        chosen = max(weights, key=lambda name: self._node(name).credit)
        self._node(chosen).credit -= sum(weights.values())
        return chosen

    def _nearest(self, usable: Sequence[NodeId]) -> NodeId:
        """The own replica, else one in the own zone, else any; of those equally near the least busy."""
        if self._own in usable:
            return self._own
        near = [name for name in usable if self._node(name).standing.zone == self._zone]
        return self._least(near or usable, lambda node: node.in_flight)


def _kept(node: _Node, now_s: float) -> float:
    """How much of the measured latency still counts, 0..1."""
    return float(0.5 ** ((now_s - node.measured_s) / DECAY_S))


def hash_of(name: str) -> int:
    """A fixed hash of a name: Python's own differs from process to process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
