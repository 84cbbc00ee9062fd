"""Reconfigure, the leader's one way to change a shard's primary or in-sync set.

Number → fence → catch up → level → activate (Vertical Paxos II, 2009). One object is one attempt; what it
cannot finish stays pending in the map, and the next attempt has a higher term, whatever its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from msgspec.structs import replace

from core.cluster import NodeId, Pending, Shard
from core.errors import Conflict
from core.replication.log import Position
from core.replication.messages import (
    Activate,
    CatchUp,
    CaughtUp,
    Command,
    CommandAnswer,
    Level,
    Leveled,
    NotCaughtUp,
    Promise,
    Promised,
    Refused,
    ReplicaId,
)
from core.replication.reads import majority


@dataclass(frozen=True, slots=True)
class Plan:
    """How it shall be: `primary` is one of `in_sync`, and all have a replica."""

    primary: NodeId
    in_sync: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds."""

    resend_s: float = 0.2
    moment_s: float = 0.2
    """How long a fenced majority waits for the old primary, which may hold `eventual` writes."""
    step_s: float = 2.0
    """Nothing more is expected of a step that took longer."""
    catch_up_s: float = 10.0


# -- the shard's record -------------------------------------------------------------------------------------


def fence_size(in_sync: int) -> int:
    """So many members hold every committed entry between them, and leave the others without a majority."""
    return in_sync - majority(in_sync) + 1


def replica_ids(shard: Shard, nodes: Iterable[NodeId]) -> tuple[ReplicaId, ...]:
    return tuple(ReplicaId(node, shard.replicas[node]) for node in nodes)


def numbered(shard: Shard, plan: Plan) -> Shard:
    """With the next configuration pending, in a term higher than any there was. Raises Conflict."""
    strangers = set(plan.in_sync) - shard.replicas.keys()
    if strangers or plan.primary not in plan.in_sync or len(set(plan.in_sync)) != len(plan.in_sync):
        raise Conflict(
            f"shard {shard.number}: primary {plan.primary}, in sync {plan.in_sync}, "
            f"but its replicas are on {sorted(shard.replicas)}"
        )
    # Pending is only ever replaced by a higher term or activated, so these two are the highest ever.
    term = max(shard.term, shard.pending.term if shard.pending else 0) + 1
    return replace(shard, pending=Pending(term, plan.primary, plan.in_sync))


def activated(shard: Shard) -> Shard:
    """Pending becomes active. Who is in sync no more stays as a learner."""
    pending = shard.pending
    if pending is None:
        raise Conflict(f"shard {shard.number}: nothing is pending")
    return replace(
        shard,
        term=pending.term,
        primary=pending.primary,
        in_sync=pending.in_sync,
        learners=tuple(node for node in shard.replicas if node not in pending.in_sync),
        pending=None,
    )


def with_learner(shard: Shard, node: NodeId, incarnation: int) -> Shard:
    """A new replica, or a lost one that came back as another. Raises Conflict while the old one counts."""
    if node in shard.in_sync or (shard.pending is not None and node in shard.pending.in_sync):
        raise Conflict(f"shard {shard.number}: {node} is in a set, first reconfigure without it")
    learners = (*(n for n in shard.learners if n != node), node)
    return replace(shard, learners=learners, replicas={**shard.replicas, node: incarnation})


def without_learner(shard: Shard, node: NodeId) -> Shard:
    """Its replica may then be deleted, in the term of the result. Raises Conflict while it counts."""
    if node in shard.in_sync or (shard.pending is not None and node in shard.pending.in_sync):
        raise Conflict(f"shard {shard.number}: {node} is in a set, first reconfigure without it")
    left = {n: incarnation for n, incarnation in shard.replicas.items() if n != node}
    return replace(shard, learners=tuple(n for n in shard.learners if n != node), replicas=left)


def cheapest(shard: Shard, answering: Collection[NodeId], smallest: int = 1) -> Plan | None:
    """The plan that needs the least: the old primary if it answers, and whoever of the set does.

    None if too few answer for a fence, or fewer than `smallest`: then the shard stays read-only.
    """
    alive = tuple(node for node in shard.in_sync if node in answering)
    if len(alive) < max(fence_size(len(shard.in_sync)), smallest):
        return None
    return Plan(shard.primary if shard.primary in alive else alive[0], alive)


# -- an attempt ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """Compare and set the shard's record, then call `on_changed` or `on_conflict`."""

    expected: Shard
    new: Shard


@dataclass(frozen=True, slots=True)
class Tell:
    """A command to the replica that it names."""

    message: Command


@dataclass(frozen=True, slots=True)
class Finished:
    """The configuration is active: tell everyone."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class Failed:
    """This attempt is over. `silent`: who did not answer; the next one does without them."""

    reason: str
    silent: tuple[NodeId, ...] = ()


Effect = Change | Tell | Finished | Failed


class Step(Enum):
    NUMBER = auto()
    FENCE = auto()
    CATCH_UP = auto()
    LEVEL = auto()
    ACTIVATE = auto()
    OVER = auto()


class Reconfiguration:
    """From the record as it was read to the plan. Feed it all answers and a tick every 50 ms or so."""

    def __init__(self, shard: Shard, plan: Plan, leader_term: int, patience: Patience | None = None) -> None:
        self.step = Step.NUMBER
        self._before = shard
        self._shard = numbered(shard, plan)
        self._leader_term = leader_term
        self._patience = Patience() if patience is None else patience
        self.term = self._shard.pending.term if self._shard.pending else 0
        self._active = replica_ids(shard, shard.in_sync)
        self._next = replica_ids(shard, plan.in_sync)
        (self._primary,) = replica_ids(shard, [plan.primary])
        (self._old_primary,) = replica_ids(shard, [shard.primary])
        self._promised: dict[ReplicaId, Position] = {}
        self._unreachable: set[str] = set()
        self._level: set[ReplicaId] = set()
        self._best = (Position(0, 0), self._primary)
        self._began_s = self._told_s = 0.0

    def begin(self, now_s: float) -> list[Effect]:
        self._began_s = now_s
        return [Change(self._before, self._shard)]

    def on_changed(self, now_s: float) -> list[Effect]:
        """The CAS took effect."""
        if self.step is Step.NUMBER:
            return self._go(Step.FENCE, now_s)
        if self.step is Step.ACTIVATE:
            return self._finish(activated(self._shard))
        return []

    def on_conflict(self, current: Shard, now_s: float) -> list[Effect]:
        """The CAS did not take effect, and never will; `current` is what is there."""
        if self.step is Step.ACTIVATE:
            there = all(current.replicas.get(NodeId(r.node)) == r.incarnation for r in self._next)
            if there and current.pending == self._shard.pending:  # something else changed, a learner perhaps
                self._shard = current
                return self._go(Step.ACTIVATE, now_s)
            if current.pending is None and current.term == self.term:  # nobody else has this term
                return self._finish(current)
        if self.step in (Step.NUMBER, Step.ACTIVATE):
            return self._fail("the shard's record has changed")
        return []

    def on_answer(self, m: CommandAnswer, now_s: float) -> list[Effect]:
        if m.term != self.term:
            return []
        if isinstance(m, Refused):
            newer = m.promised > self.term or m.leader_term > self._leader_term
            return self._fail(f"{m.sender.node} has promised term {m.promised}") if newer else []
        match self.step, m:
            case Step.FENCE, Promised() if m.sender in self._active:
                self._promised[m.sender] = m.last
                return self._look_at_fence(now_s)
            case Step.CATCH_UP, CaughtUp() if m.sender == self._primary:
                return self._go(Step.LEVEL, now_s)
            case Step.LEVEL, NotCaughtUp() if m.sender == self._primary:
                return self._go(Step.CATCH_UP, now_s)
            case Step.LEVEL, Leveled() if m.sender == self._primary:
                self._level.update(m.members)
                if self._level.issuperset(self._next):
                    return self._go(Step.ACTIVATE, now_s)
        return []

    def on_unreachable(self, node: NodeId, now_s: float) -> list[Effect]:
        """Not reached, or it refused the connection: no moment is given to it."""
        self._unreachable.add(node)
        return self._look_at_fence(now_s) if self.step is Step.FENCE else []

    def tick(self, now_s: float) -> list[Effect]:
        if self.step is Step.OVER:
            return []
        limit_s = self._patience.catch_up_s if self.step is Step.CATCH_UP else self._patience.step_s
        if now_s - self._began_s > limit_s:
            return self._fail(f"{self.step.name.lower()} took longer than {limit_s} s")
        effects = self._look_at_fence(now_s) if self.step is Step.FENCE else []
        if not effects and self.step is not Step.ACTIVATE and now_s - self._told_s >= self._patience.resend_s:
            effects = self._tell(now_s)
        return effects

    # -- steps ------------------------------------------------------------------------------------------

    def _go(self, step: Step, now_s: float) -> list[Effect]:
        self.step = step
        self._began_s = now_s
        return self._tell(now_s)

    def _tell(self, now_s: float) -> list[Effect]:
        """What this step asks of whom; repeating it does no harm."""
        self._told_s = now_s
        primary, term, leader_term = self._primary, self.term, self._leader_term
        match self.step:
            case Step.FENCE:
                # The active set alone: nothing was committed in a configuration that was never active.
                missing = [member for member in self._active if member not in self._promised]
                return [Tell(Promise(member, term, leader_term)) for member in missing]
            case Step.CATCH_UP:
                best, source = self._best
                counts = primary in self._active
                return [Tell(CatchUp(primary, term, leader_term, source, best, counts))]
            case Step.LEVEL:
                return [Tell(Level(primary, term, leader_term, self._next))]
            case Step.ACTIVATE:
                return [Change(self._shard, activated(self._shard))]
        return []

    def _look_at_fence(self, now_s: float) -> list[Effect]:
        if len(self._promised) < fence_size(len(self._active)):
            return []
        old = self._old_primary
        waits = old not in self._promised and old.node not in self._unreachable
        if waits and now_s - self._began_s < self._patience.moment_s:
            return []
        best, source = max(
            (last, member == self._primary, member) for member, last in self._promised.items()
        )[::2]
        self._best = (best, source)
        return self._go(Step.CATCH_UP, now_s)

    def _finish(self, shard: Shard) -> list[Effect]:
        self.step = Step.OVER
        learners = replica_ids(shard, shard.learners)
        activate = Activate(self._primary, self.term, self._leader_term, self._next, learners)
        return [Finished(shard), Tell(activate)]

    def _fail(self, reason: str) -> list[Effect]:
        asked = {Step.FENCE: self._active, Step.CATCH_UP: (self._primary,), Step.LEVEL: self._next}
        heard = {Step.FENCE: set(self._promised), Step.LEVEL: self._level}
        silent = [r for r in asked.get(self.step, ()) if r not in heard.get(self.step, set())]
        self.step = Step.OVER
        return [Failed(reason, tuple(NodeId(r.node) for r in silent))]
