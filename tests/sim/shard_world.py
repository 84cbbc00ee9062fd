"""One shard's world in simulation: time, network, faults, the map as one register, and what must hold.

One seed is one schedule. Nothing here knows how a replica works; the nodes run the objects of core.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from core.cluster import NodeId, Shard
from core.replication.log import Entry, Position

if TYPE_CHECKING:
    from tests.sim.shard_node import Node

NODES = ("n1", "n2", "n3", "n4", "n5")


FAULT_KINDS = (
    ("drop", "duplicate"),
    ("stash", "stash_append"),
    ("cut", "isolate"),
    ("split",),
    ("crash", "lose_disk", "damage"),
    ("crash_between",),
    ("crash_after_cas", "lose_cas_answer", "abandon", "depose"),
)


class Violation(AssertionError):
    """What may never happen has happened."""


@dataclass
class Rates:
    """How often each thing happens in this seed; swarm: often never."""

    drop: float = 0.0
    duplicate: float = 0.0
    stash: float = 0.0
    stash_append: float = 0.0
    delay_s: float = 0.002
    cut: float = 0.0
    isolate: float = 0.0
    split: float = 0.0
    crash: float = 0.0
    crash_between: float = 0.0
    restart_s: float = 0.05
    lose_disk: float = 0.0
    damage: float = 0.0
    sync_s: float = 0.002
    apply_s: float = 0.001
    compact: float = 0.0
    depose: float = 0.0
    crash_after_cas: float = 0.0
    lose_cas_answer: float = 0.0
    abandon: float = 0.0
    wild: float = 0.0
    reconfigure: float = 0.0
    remove: float = 0.0
    impatience: float = 0.0
    failover: float = 0.0
    leaders_fenced: bool = True
    think_s: float = 0.005
    clients: int = 3
    members: int = 3
    old_map: float = 0.98
    drift: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Rates:
        def sometimes(low: float, high: float, p: float = 0.5) -> float:
            return rng.uniform(low, high) if rng.random() < p else 0.0

        rates = cls(
            drop=sometimes(0.01, 0.15),
            duplicate=sometimes(0.01, 0.15),
            stash=sometimes(0.02, 0.3, 0.6),
            stash_append=sometimes(0.002, 0.03),
            delay_s=rng.choice((0.001, 0.002, 0.005)),
            cut=sometimes(0.01, 0.06),
            isolate=sometimes(0.01, 0.06),
            split=sometimes(0.01, 0.1),
            crash=sometimes(0.02, 0.15, 0.7),
            crash_between=sometimes(0.001, 0.01, 0.6),
            restart_s=rng.choice((0.005, 0.02, 0.1)),
            lose_disk=sometimes(0.05, 0.5),
            damage=sometimes(0.05, 0.3, 0.3),
            sync_s=rng.choice((0.0005, 0.002, 0.02)),
            apply_s=rng.choice((0.0, 0.001, 0.01)),
            compact=sometimes(0.05, 0.4),
            depose=sometimes(0.02, 0.1, 0.8),
            crash_after_cas=sometimes(0.02, 0.3, 0.6),
            lose_cas_answer=sometimes(0.02, 0.2),
            abandon=sometimes(0.005, 0.05),
            wild=rng.choice((0.0, 0.3, 0.7)),
            reconfigure=rng.choice((0.005, 0.02, 0.05, 0.15)),
            remove=sometimes(0.02, 0.15),
            failover=sometimes(0.05, 0.5, 0.6),
            impatience=rng.choice((0.02, 0.1, 0.3)),
            leaders_fenced=rng.random() < 0.5,
            think_s=rng.choice((0.001, 0.004, 0.015)),
            clients=rng.randint(2, 5),
            members=rng.choice((1, 2, 3, 3, 3, 5)),
            old_map=rng.choice((0.9, 0.98, 1.0)),
            drift=sometimes(0.02, 0.1),
        )
        if rng.random() < 0.4:  # few kinds at once, so that much gets done between two faults
            kept = rng.sample(FAULT_KINDS, 2)
            gone = [kind for kinds in FAULT_KINDS if kinds not in kept for kind in kinds]
            none: dict[str, Any] = dict.fromkeys(gone, 0.0)
            rates = replace(rates, **none)
        return rates


class Faults:
    """Decides what happens. Each fault that does has a number; the numbers in `skip` don't happen."""

    def __init__(self, seed: int, rates: Rates, skip: frozenset[int]) -> None:
        self.rates = rates
        self.happened = 0
        self._skip = skip
        self._rng = {f.name: random.Random(seed * 1009 + i) for i, f in enumerate(fields(rates))}
        self.enabled = True

    def happens(self, kind: str) -> bool:
        rate = getattr(self.rates, kind)
        if rate == 0.0 or not self.enabled or self._rng[kind].random() >= rate:
            return False
        self.happened += 1
        return self.happened - 1 not in self._skip


@dataclass
class Committed:
    """What the whole shard has agreed on, by seq."""

    entries: list[tuple[int, bytes, bytes]] = field(default_factory=list)  # term, op, request
    digests: list[int] = field(default_factory=lambda: [0])
    requests: dict[bytes, int] = field(default_factory=dict)


def digest_after(digest: int, entry: Entry) -> int:
    return zlib.crc32(b"%d %d %b" % (entry.term, entry.seq, entry.op), digest)


class World:
    """Time, messages and the checks. `trace` is None unless somebody wants to read what happened."""

    def __init__(
        self, seed: int, *, skip: frozenset[int] = frozenset(), trace: list[str] | None = None
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.rates = Rates.draw(random.Random(seed ^ 0x5EED))
        self.faults = Faults(seed, self.rates, skip)
        self.trace = trace
        self.now_s = 0.0
        self.steps = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self.nodes: dict[str, Node] = {}
        self.endpoints: dict[str, Callable[[Any], None]] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.isolated: set[str] = set()
        self.record: Shard
        self.records: list[Shard] = []
        self.committed = Committed()
        self.on_disk: dict[tuple[int, int], tuple[bytes, bytes, int]] = {}
        self.floor: dict[int, int] = {}
        self.leader_term = 0
        self.runs = 0
        self.finished = {"write": 0, "eventual": 0, "quorum": 0, "strong": 0, "activated": 0}

    # -- time -------------------------------------------------------------------------------------------

    def at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._order, call, args))

    def soon(self, mean_s: float) -> float:
        """A delay: mostly near the mean, sometimes long."""
        return mean_s * self.rng.expovariate(1.0)

    def run(self, steps: int, until: Callable[[], bool] | None = None) -> None:
        end = self.steps + steps
        while self._queue and self.steps < end:
            self.now_s, _, call, args = heapq.heappop(self._queue)
            self.steps += 1
            call(*args)
            if until is not None and until():
                return

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now_s * 1000:9.2f} ms  {text}")

    # -- network ----------------------------------------------------------------------------------------

    def send(self, source: str, target: str, payload: Any, kind: str = "stash_append") -> None:
        """`kind` says how often a copy of it is kept back for long."""
        happens = self.faults.happens
        if happens("drop"):
            self.note(f"drop {source} > {target} {payload}")
        else:
            self.at(self.soon(self.rates.delay_s), self._deliver, source, target, payload)
        if happens("duplicate"):
            self.at(self.soon(self.rates.delay_s * 5), self._deliver, source, target, payload)
        if happens(kind):
            self.at(0.02 + self.soon(0.15), self._deliver, source, target, payload)

    def _deliver(self, source: str, target: str, payload: Any) -> None:
        if (source, target) in self.cuts or source in self.isolated or target in self.isolated:
            return
        receive = self.endpoints.get(target)
        if receive is not None:
            if self.trace is not None:
                self.note(f"{source} > {target} {payload}")
            receive(payload)

    # -- the map: one linearizable register -------------------------------------------------------------

    def compare_and_set(self, expected: Shard, new: Shard) -> bool:
        if self.record != expected:
            return False
        if new.term < self.record.term:
            raise Violation(f"the map's term fell from {self.record.term} to {new.term}")
        self.note(f"MAP {new.term} {new.primary} {new.in_sync} pending {new.pending} {new.replicas}")
        activates = new.term != self.record.term
        self.record = new
        self.records.append(new)
        if activates:
            self.finished["activated"] += 1
            self._check_activation(new)
        return True

    def _check_activation(self, record: Shard) -> None:
        """The new primary's disk holds the whole committed log: a loss shows here, not at some read."""
        node = self.nodes[record.primary]
        if node.disk.identity.incarnation != record.replicas[record.primary]:
            return  # lost its disk after it had leveled; the set is fenced next
        end = len(self.committed.entries)
        if end and node.disk.durable_term_at(end) != self.committed.entries[end - 1][0]:
            raise Violation(
                f"{record.primary} was activated in term {record.term} with {node.disk.durable_term_at(end)} "
                f"as the term of seq {end}, which is committed in {self.committed.entries[end - 1][0]}"
            )

    def may_lose(self, name: str) -> bool:
        """Whether every set that counts can still be fenced without this node's log."""
        sets = [self.record.in_sync]
        if self.record.pending is not None:
            sets.append(self.record.pending.in_sync)
        for members in sets:
            lost = {m for m in members if m == name or self._is_lost(m)}
            if name in members and len(lost) > (len(members) + 1) // 2 - 1:
                return False
        return True

    def _is_lost(self, name: NodeId) -> bool:
        node = self.nodes[name]
        return node.dead or node.disk.identity.incarnation != self.record.replicas.get(name)

    # -- what must hold ---------------------------------------------------------------------------------

    def check_on_disk(self, entry: Entry, previous_term: int) -> None:
        """(term, seq) → one operation, and one entry before it."""
        what = (entry.op, entry.request_id, previous_term)
        if self.on_disk.setdefault((entry.term, entry.seq), what) != what:
            raise Violation(f"two entries {entry.position}: {what} and {self.on_disk[entry.term, entry.seq]}")

    def check_committed(self, name: str, entry: Entry) -> None:
        c = self.committed
        if entry.seq <= len(c.entries):
            if c.entries[entry.seq - 1] != (entry.term, entry.op, entry.request_id):
                raise Violation(f"{name} commits {entry}, but {c.entries[entry.seq - 1]} is committed there")
            return
        if entry.seq != len(c.entries) + 1:
            raise Violation(f"{name} commits seq {entry.seq} after {len(c.entries)}")
        if entry.request_id and c.requests.setdefault(entry.request_id, entry.seq) != entry.seq:
            raise Violation(f"request {entry.request_id!r} takes effect twice, at {name}")
        c.entries.append((entry.term, entry.op, entry.request_id))
        c.digests.append(digest_after(c.digests[-1], entry))

    def check_digest(self, name: str, seq: int, digest: int) -> None:
        if self.committed.digests[seq] != digest:
            raise Violation(f"{name} has other contents at seq {seq}")

    def check_acknowledged(self, name: str, seq: int, request_id: bytes) -> None:
        if seq > len(self.committed.entries) or self.committed.entries[seq - 1][2] != request_id:
            raise Violation(f"{name} acknowledged {request_id!r} at seq {seq}, which is not committed there")

    def finish(self, what: str, key: int, seq: int, floor: int) -> None:
        """Linearizability in O(1): the log gives the order; what was finished before the call is below."""
        self.finished[what] += 1
        if what == "eventual":
            return
        if seq < floor or (what == "write" and seq == floor):
            raise Violation(f"{what} of key {key} has seq {seq}; {floor} was finished before it was called")
        self.floor[key] = max(self.floor.get(key, 0), seq)


def end_of(base: Position, entries: list[Entry]) -> Position:
    return entries[-1].position if entries else base
