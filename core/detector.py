"""Who is dead, by what the leader heard and when: pings to send, verdicts, and when not to act on them.

Times are seconds of the caller's monotonic clock. A verdict is an observation, never written to the map.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from core.cluster import NodeId

Health = Literal["healthy", "suspect", "dead", "unknown"]


@dataclass(frozen=True, slots=True)
class Rules:
    """How patient the detector is. Defaults: cluster.md's, for up to `nodes_per_period` nodes."""

    period_s: float = 0.5
    nodes_per_period: int = 250
    """A larger cluster is asked less often, in proportion, or its leader would do nothing else."""
    silent_s: float = 2.0
    silent_periods: int = 4
    """Dead after this many periods without an answer, and after `silent_s` at least."""
    second_look_s: float = 0.1
    returns_after: int = 3
    """Answers in a row after which a dead node counts as alive: one that flaps stays dead."""
    stall_s: float = 0.5
    """Longer between two looks, and it was this process that slept: silence then proves nothing."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask this store whether it lives, over a new connection if `redial`."""

    node: NodeId
    redial: bool = False


@dataclass(frozen=True, slots=True)
class Dead:
    """From `since_s` on; `why` is for people."""

    since_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Two stores that both answer, of which the first does not hear the second. At most one entry a pair."""

    hears_not: NodeId
    unheard: NodeId
    mutual: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known now. While `isolated` (under half of all answer) nobody is to be replaced: the leader
    may be the one that is cut off."""

    health: Mapping[NodeId, Health]
    dead: Mapping[NodeId, Dead]
    cuts: tuple[Cut, ...]
    isolated: bool


@dataclass(slots=True)
class _Seen:
    next_ping_s: float
    heard_s: float
    """When the last answered ping was *sent*: only that instant is proved."""
    ever: bool = False
    closed_s: float | None = None
    refusals: int = 0
    answers: int = 0
    dead: Dead | None = None
    unheard: frozenset[NodeId] = field(default_factory=frozenset)


class Detector:
    """Fed by one leader about all other stores. `watch` first, then `due`, `on_…`, `verdict` as they come."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._seen: dict[NodeId, _Seen] = {}
        self._looked_s: float | None = None

    @property
    def period_s(self) -> float:
        """Between two pings of a node."""
        return self._rules.period_s * max(1.0, len(self._seen) / self._rules.nodes_per_period)

    @property
    def silent_s(self) -> float:
        """After this long without an answer a node is dead."""
        return max(self._rules.silent_s, self._rules.silent_periods * self.period_s)

    def watch(self, nodes: Collection[NodeId], now_s: float) -> None:
        """The nodes of the map. New ones get the whole patience, from now."""
        for gone in self._seen.keys() - set(nodes):
            del self._seen[gone]
        new = sorted(set(nodes) - self._seen.keys())
        self._seen |= {node: _Seen(now_s, now_s) for node in new}
        for place, node in enumerate(new):
            # Spread over a period, so that 1,000 nodes are not asked in one burst.
            self._seen[node].next_ping_s += self.period_s * place / len(new)

    def due(self, now_s: float) -> list[Ping]:
        """Whom to ask now. Call it often: each 50 ms is enough."""
        self._forgive_stall(now_s)
        pings: list[Ping] = []
        for node, seen in self._seen.items():
            if seen.next_ping_s <= now_s:
                pings.append(Ping(node, redial=seen.closed_s is not None))
                seen.next_ping_s = now_s + self.period_s
        return pings

    def on_answer(self, node: NodeId, sent_s: float, unheard: Iterable[NodeId] = ()) -> None:
        """The store answered a ping sent at `sent_s`. `unheard`: peers that it has not heard for 2 s."""
        seen = self._seen.get(node)
        if seen is None or sent_s < seen.heard_s:
            return
        if seen.closed_s is not None and sent_s < seen.closed_s:
            return  # of the life that has ended since
        seen.heard_s, seen.ever = sent_s, True
        seen.closed_s, seen.refusals = None, 0
        seen.unheard = frozenset(unheard)
        seen.answers += 1
        if seen.dead is not None and seen.answers >= self._rules.returns_after:
            seen.dead = None

    def on_closed(self, node: NodeId, now_s: float) -> None:
        """Its connection ended, or a connection was refused. A refused second look proves death."""
        seen = self._seen.get(node)
        if seen is None:
            return
        seen.refusals += 1
        seen.answers = 0
        if seen.closed_s is None:
            seen.closed_s = now_s
        if seen.refusals == 1:
            seen.next_ping_s = min(seen.next_ping_s, now_s + self._rules.second_look_s)
        elif seen.dead is None:
            seen.dead = Dead(seen.closed_s, "its connection ended and a new one was refused")

    def verdict(self, now_s: float) -> Verdict:
        """Looks at the clock: who was silent too long is dead from now on."""
        self._forgive_stall(now_s)
        health: dict[NodeId, Health] = {}
        for node, seen in self._seen.items():
            silent_s = now_s - seen.heard_s
            if silent_s > self.silent_s and seen.dead is None:
                seen.dead = Dead(seen.heard_s, f"no answer for {silent_s:.1f} s")
                seen.answers = 0
            health[node] = self._health(seen, silent_s)
        dead = {node: seen.dead for node, seen in self._seen.items() if seen.dead is not None}
        isolated = 2 * (len(self._seen) - len(dead)) < len(self._seen)
        return Verdict(health, dead, self._cuts(dead), isolated)

    def _health(self, seen: _Seen, silent_s: float) -> Health:
        if seen.dead is not None:
            return "dead"
        if not seen.ever:
            return "unknown"
        if seen.closed_s is not None or silent_s > 2 * self.period_s:
            return "suspect"
        return "healthy"

    def _cuts(self, dead: Mapping[NodeId, Dead]) -> tuple[Cut, ...]:
        cuts: list[Cut] = []
        for node, seen in sorted(self._seen.items()):
            if node in dead:
                continue
            for other in sorted(seen.unheard):
                there = self._seen.get(other)
                if there is None or other in dead:
                    continue
                mutual = node in there.unheard
                if not mutual or node < other:
                    cuts.append(Cut(node, other, mutual))
        return tuple(cuts)

    def _forgive_stall(self, now_s: float) -> None:
        slept_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        if slept_s <= self._rules.stall_s:
            return
        for seen in self._seen.values():
            if seen.dead is None:
                # Answers may wait unread in the sockets: everybody gets the time that we slept.
                seen.heard_s = min(seen.heard_s + slept_s, now_s)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many failovers may begin in a window. Beyond it a person must look, or the window pass."""

    burst: int = 5
    window_s: float = 60.0
    again_s: float = 10.0
    """The same node is not acted upon again before."""


class ThrashGuard:
    """Bounds what the leader does by itself, so that a sick network is not made worse by moves."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._acted: dict[NodeId, float] = {}

    def may_act(self, node: NodeId, now_s: float) -> bool:
        """Whether a failover away from this node may begin; it is counted by `acted`."""
        recent = [at for at in self._acted.values() if now_s - at < self._pace.window_s]
        last_s = self._acted.get(node)
        if last_s is not None and now_s - last_s < self._pace.again_s:
            return False
        return len(recent) < self._pace.burst

    def acted(self, node: NodeId, now_s: float) -> None:
        self._acted = {n: at for n, at in self._acted.items() if now_s - at < self._pace.window_s}
        self._acted[node] = now_s
