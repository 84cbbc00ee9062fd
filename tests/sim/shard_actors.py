"""Who drives the shard in simulation: coordinators that depose each other, clients with old maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from core.cluster import NodeId, Shard
from core.errors import Conflict
from core.replication.effects import Consistency
from core.replication.messages import Delete, HasPersisted, Refused, ReplicaId
from core.replication.reads import MapIsOld, QuorumRead, ReadAt
from core.replication.reconfigure import (
    Change,
    Effect,
    Failed,
    Finished,
    Patience,
    Plan,
    Reconfiguration,
    Tell,
    cheapest,
    replica_ids,
    with_learner,
    without_learner,
)
from tests.sim.shard_world import World

PATIENCE = Patience(resend_s=0.02, moment_s=0.01, step_s=0.15, catch_up_s=0.3)
LEADER_TICK_S = 0.01
KEYS = 3


class Coordinator:
    """Believes that it leads in `term`, for ever. In the calm it is the only one and makes sense."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.term = 0
        self.calm = False
        self.stopped = False
        self.attempt: Reconfiguration | None = None
        world.endpoints[name] = self.receive
        world.at(world.soon(LEADER_TICK_S), self._tick)

    def _tick(self) -> None:
        world = self.world
        if self.stopped:
            return
        world.at(LEADER_TICK_S * world.rng.uniform(0.5, 1.5), self._tick)
        if self.term == 0 or world.faults.happens("depose"):
            # Agents that don't know the leader's term must be safe, too: the shard's term is enough.
            world.leader_term += 1
            self.term = world.leader_term if world.rates.leaders_fenced else 1
            self.attempt = None
        if self.attempt is not None and world.faults.happens("abandon"):
            self.attempt = None
        if self.attempt is not None:
            self._do(self.attempt.tick(world.now_s))
            return
        self._look_after_replicas()
        plan = self._plan(world.record)
        if plan is not None:
            self.attempt = Reconfiguration(world.record, plan, self.term, PATIENCE)
            self._do(self.attempt.begin(world.now_s))

    # -- what it wants ----------------------------------------------------------------------------------

    def _answering(self) -> set[NodeId]:
        """Who is up, can be reached, and has the replica that the map names."""
        world = self.world
        return {
            node
            for node, incarnation in world.record.replicas.items()
            if (n := world.nodes[node]).replica is not None
            and n.disk.identity.incarnation == incarnation
            and (self.name, node) not in world.cuts
            and node not in world.isolated
        }

    def _plan(self, record: Shard) -> Plan | None:
        world, rng = self.world, self.world.rng
        if self.calm:
            dead = set(record.in_sync) - self._answering()
            return cheapest(record, self._answering()) if record.pending or dead else None
        if record.pending is not None and rng.random() < world.rates.impatience:
            return cheapest(record, self._answering())
        if record.primary not in self._answering() and rng.random() < world.rates.failover:
            return cheapest(record, self._answering())
        if not world.faults.happens("reconfigure"):
            return None
        everyone = sorted(record.replicas)
        if rng.random() < world.rates.wild:
            chosen = rng.sample(everyone, rng.randint(1, min(5, len(everyone))))
            return Plan(rng.choice(chosen), tuple(chosen))
        members = list(record.in_sync)
        others = [n for n in everyone if n not in members]
        if others and (rng.random() < 0.6 or len(members) == 1):
            members.append(rng.choice(others))
        elif len(members) > 1 and rng.random() < 0.6:
            members.remove(rng.choice(members))
        primary = record.primary if record.primary in members and rng.random() < 0.5 else rng.choice(members)
        return Plan(primary, tuple(members))

    def _look_after_replicas(self) -> None:
        """Take in replicas that the map does not name; remove learners, and have them deleted."""
        world, record = self.world, self.world.record
        for node in world.nodes.values():
            incarnation = node.disk.identity.incarnation
            missing = node.replica is not None and record.replicas.get(node.name) != incarnation
            if missing and world.rng.random() < (1.0 if self.calm else 0.15):
                self._change(partial(with_learner, node=node.name, incarnation=incarnation))
        if record.learners and world.faults.happens("remove"):
            gone = world.rng.choice(record.learners)
            id_ = ReplicaId(gone, record.replicas[gone])
            if self._change(lambda r: without_learner(r, gone)):
                world.send(self.name, gone, Delete(id_, world.record.term, self.term), "stash")

    def _change(self, make: Callable[[Shard], Shard]) -> bool:
        record = self.world.record
        try:
            return self.world.compare_and_set(record, make(record))
        except Conflict:
            return False

    # -- the attempt ------------------------------------------------------------------------------------

    def receive(self, message: Any) -> None:
        if self.attempt is not None and not self.stopped:
            self._do(self.attempt.on_answer(message, self.world.now_s))

    def _do(self, effects: list[Effect]) -> None:
        world = self.world
        for effect in effects:
            match effect:
                case Tell(message=message):
                    world.send(self.name, message.to.node, message, "stash")
                case Change():
                    world.at(world.soon(world.rates.delay_s * 2), self._write, self.attempt, effect)
                case Failed(reason=reason):
                    world.note(f"{self.name} fails: {reason}")
                    self.attempt = None
                case Finished():
                    world.note(f"{self.name} has activated term {effect.shard.term}")
                    self.attempt = None

    def _write(self, attempt: Reconfiguration, change: Change) -> None:
        """Takes effect whether or not the coordinator still wants it."""
        world = self.world
        written = world.compare_and_set(change.expected, change.new)
        if world.faults.happens("crash_after_cas") or world.faults.happens("lose_cas_answer"):
            self.attempt = None
        if self.attempt is attempt:
            if written:
                self._do(attempt.on_changed(world.now_s))
            else:
                self._do(attempt.on_conflict(world.record, world.now_s))


class Client:
    """A router: one call at a time, with the map as it knows it."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"c{number}"
        self.number = number
        self.map = world.record
        self.call = 0
        """Only the answers to this one count."""
        self.calm = False
        self.stopped = False
        self._writes = 0
        self._tries = 0
        self._tries_max = 1
        self._what = ""
        self._key = 0
        self._floor = 0
        self._level = Consistency.QUORUM
        self._request = b""
        self._read: QuorumRead | None = None
        world.endpoints[self.name] = self.receive
        world.at(world.soon(0.01), self._begin)

    def _begin(self) -> None:
        if self.stopped or self.calm:
            return
        rng = self.world.rng
        self._what = rng.choice(
            ("write", "write", "write", "eventual", "quorum", "strong", "quorum", "strong")
        )
        self._level = rng.choice(
            (Consistency.QUORUM, Consistency.QUORUM, Consistency.STRONG, Consistency.EVENTUAL)
        )
        self._key = rng.randrange(KEYS)
        self.begin()

    def begin(self, what: str = "", level: Consistency | None = None) -> None:
        self._what = what or self._what
        self._level = level or self._level
        self._floor = self.world.floor.get(self._key, 0)
        # Who insists on a write at a primary that is cut off sees nothing else of it.
        self._tries_max = self.world.rng.choice((1, 2, 12))
        self._tries = 0
        self._writes += 1
        self._request = b"%s-%d" % (self.name.encode(), self._writes)
        self._try()

    def _try(self) -> None:
        world, rng = self.world, self.world.rng
        self._tries += 1
        self._refresh(1.0 if self.calm else 1 - world.rates.old_map)
        if self._tries > self._tries_max and not self.calm:  # gives up: it may take effect, or not
            world.at(world.soon(0.01), self._begin)
            return
        self.call += 1
        call, record = self.call, self.map
        world.at(0.04, self._time_out, call)
        if self._what == "write":
            op = bytes([self._key]) + self._request
            self._send(record.primary, "write", self._request, op, self._level)
        elif self._what == "eventual":
            self._send(rng.choice(record.in_sync), "eventual", self._key)
        elif self._what == "strong":
            self._send(record.primary, "strong", self._key, record.term)
        else:
            self._read = QuorumRead(record.term, replica_ids(record, record.in_sync))
            for ask in self._read.asks():
                self._send(NodeId(ask.to.node), "ask", ask)

    def _send(self, node: NodeId, kind: str, *rest: Any) -> None:
        self.world.send(self.name, node, (kind, self.name, self.call, *rest), "stash")

    def _time_out(self, call: int) -> None:
        if call == self.call and not self.stopped:
            self._refresh(0.6)
            self._again()

    def _refresh(self, probability: float) -> None:
        """The newest map, unless this router is cut off with an old primary."""
        world = self.world
        if world.rng.random() < probability and not {(self.name, "l1"), (self.name, "l2")} <= world.cuts:
            self.map = world.record

    def _again(self) -> None:
        self.call += 1
        self.world.at(self.world.soon(0.01), self._retry, self.call)

    def _retry(self, call: int) -> None:
        if call == self.call and not self.stopped:
            self._try()

    def receive(self, payload: tuple[int, Any]) -> None:
        call, what = payload
        if call != self.call:
            return
        if isinstance(what, HasPersisted | Refused):
            self._on_quorum(what)
        elif what is None:
            self._refresh(0.5)  # who refuses often has the newer map
            self._again()
        else:
            self._finish(what)

    def _on_quorum(self, message: HasPersisted | Refused) -> None:
        assert self._read is not None
        match self._read.on_answer(message):
            case ReadAt(seq=seq):
                node = self.world.rng.choice(self.map.in_sync)
                self._send(node, "read_at", self._key, seq, self.map.term)
            case MapIsOld():
                self._again()

    def _finish(self, seq: int) -> None:
        self.call += 1
        what = "eventual" if self._what == "write" and self._level is Consistency.EVENTUAL else self._what
        self.world.note(f"{self.name} finishes {self._what} {self._request!r} of key {self._key}: seq {seq}")
        self.world.finish(what, self._key, seq, self._floor)
        if self.calm:
            self.done(what)
        else:
            self.world.at(self.world.soon(self.world.rates.think_s), self._begin)

    def done(self, what: str) -> None:
        """In the calm: one of each, one after the other."""
        following = {"write": "quorum", "quorum": "strong", "strong": ""}[what]
        if following:
            self.begin(following)
        else:
            self.stopped = True
