"""Failures → actions: the one next step for a shard, by what the leader has seen of its nodes.

A step is safe whenever it comes: Reconfigure fences whoever is wrong about the rest. What is here only keeps
the leader from steps that cost more than they give.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from core.cluster import NodeId, Shard
from core.replication.reads import majority
from core.replication.reconfigure import Plan, cheapest, fence_size

LAG_ENTRIES_MAX = 256
"""A learner that lacks no more is taken in: while it is brought level, the shard takes no writes."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """What was seen of the nodes."""

    dead: Collection[NodeId] = ()
    doubtful: Collection[NodeId] = ()
    """They may be ill: not to be made primaries, nor taken in, now."""
    leaving: Collection[NodeId] = ()
    """They get nothing new."""
    cuts: Collection[frozenset[NodeId]] = ()
    """Pairs that do not hear each other, although the leader hears both."""
    led: Mapping[NodeId, int] = field(default_factory=dict)
    """How many primaries each has."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """What was told of one shard's replicas."""

    lags: Mapping[NodeId, int] | None = None
    """By its primary, active in the map's term: entries that each other replica lacks. None: not told."""
    lost: Collection[NodeId] = ()
    """Nodes that live and do not have the replica which the map names there."""
    silent: Collection[NodeId] = ()
    """Members that did not answer the last attempt: the next one does without them if it can."""


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """`away_from`: members that are given up with it."""

    plan: Plan
    why: str
    away_from: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Renew:
    """This node gets a new, empty replica in the place of the one that it lost, as a learner."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Stuck:
    """The shard takes no writes, and nothing safe can be done before `missing` return."""

    missing: tuple[NodeId, ...]
    why: str


Step = Reconfigure | Renew | Stuck


def smallest_set(placed: int, write_consistency_factor: int) -> int:
    """How far the in-sync set of a shard with so many replicas shrinks by itself."""
    least = 1 if placed <= 2 else majority(placed)
    return max(least, min(placed, write_consistency_factor))


def next_step(shard: Shard, smallest: int, nodes: Nodes, replicas: Replicas) -> Step | None:
    """None: all is well, or will be when a learner has caught up."""
    alive = [n for n in shard.in_sync if n not in nodes.dead and n not in replicas.lost]
    together = _hear_each_other(shard, alive, nodes.cuts)
    if shard.pending is not None or len(together) < len(shard.in_sync):
        return _repair(shard, smallest, nodes, replicas, together)
    for node in shard.learners:
        if node in replicas.lost and node not in nodes.dead and node not in nodes.leaving:
            return Renew(node)
    return _take_in(shard, nodes, replicas)


def _repair(
    shard: Shard, smallest: int, nodes: Nodes, replicas: Replicas, together: list[NodeId]
) -> Step | None:
    answering = [n for n in together if n not in replicas.silent]
    for members in (answering, together):
        plan = cheapest(shard, members, smallest)
        if plan is None:
            continue
        if shard.primary not in plan.in_sync:
            plan = Plan(_best_primary(plan.in_sync, nodes, replicas), plan.in_sync)
        gone = tuple(n for n in shard.in_sync if n not in plan.in_sync)
        return Reconfigure(plan, _why(shard, gone, nodes, replicas), gone)
    missing = tuple(n for n in shard.in_sync if n not in together)
    needed = max(fence_size(len(shard.in_sync)), smallest)
    why = f"{len(together)} of {len(shard.in_sync)} in-sync replicas are there, {needed} are needed"
    return Stuck(missing, why)


def _best_primary(members: Iterable[NodeId], nodes: Nodes, replicas: Replicas) -> NodeId:
    """A caught-up one on a healthy node; of several on the node that leads least."""
    lags = replicas.lags or {}
    return min(
        members,
        key=lambda n: (n in nodes.doubtful, lags.get(n, 0) > LAG_ENTRIES_MAX, nodes.led.get(n, 0), n),
    )


def _why(shard: Shard, gone: tuple[NodeId, ...], nodes: Nodes, replicas: Replicas) -> str:
    reasons = []
    for n in gone:
        if n in nodes.dead:
            reasons.append(f"{n} is dead")
        elif n in replicas.lost:
            reasons.append(f"{n} has lost its replica")
        elif any(n in cut for cut in nodes.cuts):
            reasons.append(f"{n} is cut off from other members")
        else:
            reasons.append(f"{n} did not answer")
    if shard.pending is not None:
        reasons.append(f"term {shard.pending.term} was left pending")
    return ", ".join(reasons)


def _hear_each_other(shard: Shard, alive: list[NodeId], cuts: Collection[frozenset[NodeId]]) -> list[NodeId]:
    """The largest group of members without a cut among them; of several one with the primary."""
    if not any(cut.issubset(alive) for cut in cuts):
        return alive
    for size in range(len(alive), 1, -1):
        groups = [g for g in combinations(alive, size) if not any(cut.issubset(g) for cut in cuts)]
        if groups:
            return list(next((g for g in groups if shard.primary in g), groups[0]))
    return [shard.primary] if shard.primary in alive else alive[:1]


def _take_in(shard: Shard, nodes: Nodes, replicas: Replicas) -> Reconfigure | None:
    if replicas.lags is None or shard.primary in nodes.doubtful:
        return None
    members = list(shard.in_sync)
    for node in shard.learners:
        is_well = not any(
            node in group for group in (nodes.dead, nodes.doubtful, nodes.leaving, replicas.lost)
        )
        is_heard = not any(node in cut and cut.intersection(members) for cut in nodes.cuts)
        is_close = replicas.lags.get(node, LAG_ENTRIES_MAX + 1) <= LAG_ENTRIES_MAX
        if is_well and is_heard and is_close and node not in replicas.silent:
            members.append(node)
    if len(members) == len(shard.in_sync):
        return None
    joined = ", ".join(members[len(shard.in_sync) :])
    return Reconfigure(Plan(shard.primary, tuple(members)), f"{joined} caught up")
