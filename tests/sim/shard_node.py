"""A node in simulation: a disk that forgets what was not synced, and a replica whose effects it performs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.cluster import NodeId, Shard
from core.errors import InvariantBroken, ShoalError
from core.replication import effects as fx
from core.replication.log import START, Entry, Log, Position
from core.replication.messages import ReplicaId
from core.replication.progress import Pace
from core.replication.recent import RecentRequests, Remembered
from core.replication.reconfigure import replica_ids
from core.replication.replica import Replica
from core.wire import Outcome
from tests.sim.shard_world import Violation, World, digest_after, end_of

PACE = Pace(
    message_entries_max=3,
    message_bytes_max=60,
    messages_in_flight_max=3,
    uncommitted_entries_max=12,
    heartbeat_s=0.06,
    resend_s=0.02,
)
TICK_S = 0.02
DONE = Outcome(touched=1)


class Contents(NamedTuple):
    """What is applied: per key the seq of its last write; and the requests in it."""

    position: Position
    values: dict[int, int]
    digest: int
    requests: tuple[Remembered, ...]
    time_us: int


NOTHING = Contents(START, {}, 0, (), 0)


@dataclass
class Disk:
    """What survives, and what may: a crash keeps any prefix of `unsynced`, the identity by itself."""

    identity: fx.Identity
    identity_unsynced: fx.Identity | None = None
    checkpoint: Contents = NOTHING
    base: Position = START
    synced: list[Entry] = field(default_factory=list)
    written: list[Entry] = field(default_factory=list)
    unsynced: list[tuple[Entry | int, int]] = field(default_factory=list)
    """Entries, or after which seq the log is cut off; and the generation."""

    def durable_term_at(self, seq: int) -> int | None:
        if seq <= self.base.seq:
            return self.base.term if seq == self.base.seq else 0
        at = seq - self.base.seq - 1
        return self.synced[at].term if at < len(self.synced) else None

    def write(self, entries: list[Entry], what: Entry | int) -> None:
        if isinstance(what, Entry):
            entries.append(what)
        else:
            del entries[what - self.base.seq :]

    def cut(self, through: Position) -> None:
        keep = through.seq - self.base.seq
        del self.synced[:keep]
        del self.written[:keep]
        self.base = through


class Waiter(NamedTuple):
    client: str
    call: int
    request_id: bytes
    level: fx.Consistency


class Node:
    """`life` grows with each crash: what an earlier life began ends nowhere."""

    def __init__(self, world: World, name: str, incarnation: int = 1) -> None:
        self.world = world
        self.name = NodeId(name)
        self.disk = Disk(fx.Identity(incarnation, 1, promised=1))
        self.dead = False
        self.life = 0
        self.replica: Replica | None = None
        self.contents = NOTHING
        self._requests: list[Remembered] = []
        self.rate = 1.0
        if world.rates.drift:
            self.rate = world.rng.uniform(1 - world.rates.drift, 1 + world.rates.drift)
        world.endpoints[name] = self.receive
        world.nodes[name] = self
        self.start()

    @property
    def id(self) -> ReplicaId:
        return ReplicaId(self.name, self.disk.identity.incarnation)

    @property
    def now_s(self) -> float:
        return self.world.now_s * self.rate

    @property
    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    # -- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.replica is not None or self.dead:
            return
        world, disk = self.world, self.disk
        world.runs += 1
        log = Log(disk.base)
        for entry in disk.synced:
            log.append(entry.position, len(entry.op))
        disk.written = list(disk.synced)
        disk.unsynced.clear()
        recent = RecentRequests()
        for request in disk.checkpoint.requests:
            recent.remember(request)
        self.contents = disk.checkpoint._replace(values=dict(disk.checkpoint.values))
        self._requests = list(self.contents.requests)
        applied = self.contents.position.seq
        self.replica = Replica(
            disk.identity,
            log,
            me=self.id,
            members=(),
            run=world.runs,
            applied=applied,
            time_us=self.contents.time_us,
            recent=recent,
            pace=PACE,
        )
        self.replica.remember(e for e in disk.synced if e.seq > applied)
        self._effects: deque[fx.Effect] = deque()
        self._blocked = False
        self._syncing = False
        self._apply_to = applied
        self._applying = False
        self._snapshots: dict[Position, Contents] = {}
        self._waiting: dict[int, list[Waiter]] = {}
        self._reads: dict[int, tuple[str, int, int]] = {}
        world.note(f"{self.name} starts, run {world.runs}, log ends at {log.last}, {disk.identity}")
        world.at(world.soon(TICK_S), self._tick, self.life)

    def crash(self, *, lose_disk: bool = False) -> None:
        if self.replica is None and not lose_disk:
            return
        world, disk = self.world, self.disk
        self.life += 1
        self.replica = None
        keep = world.rng.randint(0, len(disk.unsynced))
        for what, _ in disk.unsynced[:keep]:
            self._make_durable(what)
        disk.unsynced.clear()
        if disk.identity_unsynced is not None and world.rng.random() < 0.5:
            disk.identity = disk.identity_unsynced
        disk.identity_unsynced = None
        world.note(f"{self.name} CRASHES, keeps {keep} unsynced writes{', loses its disk' * lose_disk}")
        if lose_disk:
            self.lose_disk()
        world.at(world.soon(world.rates.restart_s), self.start)

    def lose_disk(self) -> None:
        """Also when damage is found: a replica that cannot trust its files comes back as another."""
        self.disk = Disk(fx.Identity(self.disk.identity.incarnation + 1, 1, promised=1))

    def _make_durable(self, what: Entry | int) -> None:
        self.disk.write(self.disk.synced, what)
        if isinstance(what, Entry):
            before = self.disk.synced[:-1]
            self.world.check_on_disk(what, end_of(self.disk.base, before[-1:]).term)

    def _tick(self, life: int) -> None:
        if life != self.life or self.replica is None:
            return
        world = self.world
        world.at(TICK_S * world.rng.uniform(0.7, 1.3), self._tick, life)
        self.perform(self.replica.tick(self.now_s))
        if world.rng.random() < 0.4:
            world.at(world.soon(0.01), self._see_map, world.record, life)
        if life == self.life and world.faults.happens("compact"):
            self._compact()

    def _see_map(self, record: Shard, life: int) -> None:
        """A record that was read some time ago. Only what is chosen gets here."""
        r = self.replica
        if life != self.life or r is None or record.primary != self.name or record.term != r.term:
            return
        if record.replicas[self.name] == r.me.incarnation:
            in_sync, learners = replica_ids(record, record.in_sync), replica_ids(record, record.learners)
            self.perform(r.activate(record.term, in_sync, self.now_us, learners))

    def _compact(self) -> None:
        """A checkpoint of what is applied, and the log behind it goes, or a part of that."""
        disk, r = self.disk, self.replica
        assert r is not None
        through = self.world.rng.randint(disk.base.seq, self.contents.position.seq)
        # The log's durable part must reach as far, as a log file must before it is let go.
        if self.contents.position.seq > disk.base.seq + len(disk.synced) or self._blocked:
            return
        disk.checkpoint = self.contents._replace(
            values=dict(self.contents.values), requests=tuple(self._requests)
        )
        if through > disk.base.seq:
            disk.cut(r.log.position_at(through))
            r.log.cut(through)

    # -- effects ----------------------------------------------------------------------------------------

    def receive(self, payload: Any) -> None:
        if self.replica is None:
            return
        if isinstance(payload, tuple) and isinstance(payload[0], str):
            getattr(self, f"_on_{payload[0]}")(*payload[1:])
        else:
            self.perform(self.replica.on_message(payload, self.now_s))

    def perform(self, effects: list[fx.Effect]) -> None:
        if not effects:
            return
        self._effects.extend(effects)
        if len(self._effects) == len(effects):  # else who is at it goes on
            self._go_on(self.life)

    def _go_on(self, life: int) -> None:
        happens = self.world.faults.happens
        while life == self.life and self._effects and not self._blocked:
            if happens("crash_between"):
                self.crash()
                return
            effect = self._effects[0]
            _PERFORM[type(effect)](self, effect)
            if life == self.life and not self._blocked:
                self._effects.popleft()

    def _unblock(self, life: int, done: Any) -> None:
        if life != self.life:
            return
        done()
        self._blocked = False
        self._effects.popleft()
        self._go_on(life)

    def _keep_identity(self, e: fx.KeepIdentity) -> None:
        self.disk.identity_unsynced = e.identity
        self._blocked = True

        def done() -> None:
            self.disk.identity, self.disk.identity_unsynced = e.identity, None

        self.world.at(self.world.soon(self.world.rates.sync_s), self._unblock, self.life, done)

    def _install(self, e: fx.Install) -> None:
        self._blocked = True

        def done() -> None:
            found = self._snapshots.pop(e.position)
            self.world.check_digest(self.name, e.position.seq, found.digest)
            disk = self.disk
            disk.checkpoint, disk.base = found, e.position
            disk.synced, disk.written, disk.unsynced = [], [], []
            self.contents = found._replace(values=dict(found.values))
            self._requests = list(found.requests)
            self._apply_to = e.position.seq
            assert self.replica is not None
            self.perform(self.replica.installed(e.position))

        self.world.at(self.world.soon(self.world.rates.sync_s * 3), self._unblock, self.life, done)

    def _persist(self, e: fx.Persist) -> None:
        for entry in e.entries:
            if entry.position.seq != self.disk.base.seq + len(self.disk.written) + 1:
                raise Violation(f"{self.name} appends {entry.position} at {len(self.disk.written)}")
            self._write(entry, e.generation)

    def _truncate(self, e: fx.Truncate) -> None:
        self._write(e.after_seq, -1)

    def _write(self, what: Entry | int, generation: int) -> None:
        self.disk.write(self.disk.written, what)
        self.disk.unsynced.append((what, generation))
        if not self._syncing:
            self._syncing = True
            self.world.at(
                self.world.soon(self.world.rates.sync_s), self._synced, self.life, self.disk.unsynced
            )

    def _synced(self, life: int, unsynced: list[tuple[Entry | int, int]]) -> None:
        """One fsync for all that was written when it began; what came meanwhile waits for the next."""
        if life != self.life:
            return
        self._syncing = False
        if unsynced is not self.disk.unsynced:  # a snapshot has replaced the log
            unsynced = self.disk.unsynced
        count = self.world.rng.randint(1, len(unsynced)) if unsynced else 0
        done = unsynced[:count]
        del unsynced[:count]
        for what, _ in done:
            self._make_durable(what)
        if unsynced:
            self._syncing = True
            self.world.at(self.world.soon(self.world.rates.sync_s), self._synced, life, unsynced)
        assert self.replica is not None
        for what, generation in reversed(done):
            if isinstance(what, Entry):
                self.perform(self.replica.persisted(what.seq, generation))
                return

    def _apply(self, e: fx.Apply) -> None:
        first = self.disk.base.seq + 1
        for seq in range(max(e.first_seq, first), e.last_seq + 1):
            self.world.check_committed(self.name, self.disk.written[seq - first])
        self._apply_to = max(self._apply_to, e.last_seq)
        if not self._applying:
            self._applying = True
            self.world.at(self.world.soon(self.world.rates.apply_s), self._apply_now, self.life)

    def _apply_now(self, life: int) -> None:
        if life != self.life:
            return
        self._applying = False
        assert self.replica is not None
        first = self.disk.base.seq + 1
        values, digest = self.contents.values, self.contents.digest
        begin = self.contents.position.seq + 1
        last: Entry | None = None
        for seq in range(begin, self._apply_to + 1):
            last = self.disk.written[seq - first]
            digest = digest_after(digest, last)
            if last.request_id:
                values[last.op[0]] = seq
                self._requests.append(Remembered(last.request_id, 0, last.body_hash, seq, last.time_us, DONE))
        if last is None:
            return
        self.world.check_digest(self.name, last.seq, digest)
        self.contents = Contents(last.position, values, digest, (), last.time_us)
        self.perform(self.replica.applied([DONE] * (last.seq - begin + 1), last.seq))

    def _send(self, e: fx.Send) -> None:
        to = getattr(e.message, "to")  # noqa: B009 - all that is sent has it
        self.world.send(self.name, to.node, e.message)

    def _send_entries(self, e: fx.SendEntries) -> None:
        m, base = e.message, self.disk.base.seq
        if m.previous.seq < base:
            return  # cut away meanwhile
        entries = tuple(self.disk.written[m.previous.seq - base : e.last_seq - base])
        filled = type(m)(**{**{k: getattr(m, k) for k in m.__slots__}, "entries": entries})
        self.world.send(self.name, m.to.node, filled)

    def _reply(self, e: fx.Reply) -> None:
        for name in ("l1", "l2"):
            self.world.send(self.name, name, e.message, "stash")

    def _offer_snapshot(self, e: fx.OfferSnapshot) -> None:
        contents = self.contents
        if contents.position.seq == 0 or self.replica is None:
            return
        if self.replica.log.base.seq > contents.position.seq:
            return
        saved = contents._replace(values=dict(contents.values), requests=tuple(self._requests))
        self.world.send(self.name, e.to.node, ("snapshot", e.to, e.term, saved), "stash")

    def _on_snapshot(self, to: ReplicaId, term: int, saved: Contents) -> None:
        r = self.replica
        assert r is not None
        if to != r.me:
            return
        recent = RecentRequests()
        for request in saved.requests:
            recent.remember(request)
        self._snapshots[saved.position] = saved
        self.perform(r.install(term, saved.position, recent, saved.time_us))

    def _delete(self, _: fx.DeleteReplica) -> None:
        self.world.note(f"{self.name} deletes its replica")
        self.life += 1
        self.replica = None
        self.lose_disk()
        self.world.at(self.world.soon(0.05), self.start)

    # -- clients ----------------------------------------------------------------------------------------

    def answer(self, client: str, call: int, what: Any) -> None:
        self.world.send(self.name, client, (call, what))

    def _on_write(self, client: str, call: int, request_id: bytes, op: bytes, level: fx.Consistency) -> None:
        r = self.replica
        assert r is not None
        try:
            effects = r.propose(op, self.now_us, request_id=request_id)
        except InvariantBroken:
            raise
        except ShoalError as error:  # e.g. a body that differs
            raise Violation(str(error)) from error
        waiter = Waiter(client, call, request_id, level)
        match effects[0]:
            case fx.Persist(entries=(entry,)):
                self._waiting.setdefault(entry.seq, []).append(waiter)
                self.perform(effects)
            case fx.Attach(seq) | fx.Answer(seq):
                self._waiting.setdefault(seq, []).append(waiter)
                self._acknowledge(r.reached)
            case _:
                self.answer(client, call, None)

    def _reached(self, e: fx.Reached) -> None:
        self._acknowledge(e.seq)

    def _acknowledge(self, reached: Any) -> None:
        for seq in list(self._waiting):
            for w in list(self._waiting[seq]):
                if seq <= reached(w.level):
                    if w.level is not fx.Consistency.EVENTUAL:
                        self.world.check_acknowledged(self.name, seq, w.request_id)
                    self.answer(w.client, w.call, seq)
                    self._waiting[seq].remove(w)
            if not self._waiting[seq]:
                del self._waiting[seq]

    def _stepped_down(self, _: fx.SteppedDown) -> None:
        for waiters in self._waiting.values():
            for w in waiters:
                self.answer(w.client, w.call, None)
        self._waiting.clear()
        for client, call, _key in self._reads.values():
            self.answer(client, call, None)
        self._reads.clear()

    def _on_eventual(self, client: str, call: int, key: int) -> None:
        self.answer(client, call, self.contents.values.get(key, 0))

    def _on_strong(self, client: str, call: int, key: int, term: int) -> None:
        r = self.replica
        assert r is not None
        self.world.runs += 1
        token = self.world.runs
        self._reads[token] = (client, call, key)
        effects = r.read_strongly(token, term)
        if effects and isinstance(effects[0], fx.Refuse):
            del self._reads[token]
            self.answer(client, call, None)
            return
        self.perform(effects)

    def _read_ready(self, e: fx.ReadReady) -> None:
        client, call, key = self._reads.pop(e.token)
        self.answer(client, call, self.contents.values.get(key, 0))

    def _on_ask(self, client: str, call: int, message: Any) -> None:
        r = self.replica
        assert r is not None
        for effect in r.on_message(message, self.now_s):
            assert isinstance(effect, fx.Reply)
            self.answer(client, call, effect.message)

    def _on_read_at(self, client: str, call: int, key: int, seq: int, term: int) -> None:
        r = self.replica
        assert r is not None
        try:
            there = r.may_read(seq, term)
        except fx.StaleTerm:
            self.answer(client, call, None)
            return
        self.answer(client, call, self.contents.values.get(key, 0) if there else None)

    def _nothing(self, _: fx.Effect) -> None:
        """Answers to those who wait are given when Reached says so."""


_PERFORM: dict[type, Any] = {
    fx.KeepIdentity: Node._keep_identity,
    fx.Install: Node._install,
    fx.Persist: Node._persist,
    fx.Truncate: Node._truncate,
    fx.Apply: Node._apply,
    fx.Send: Node._send,
    fx.SendEntries: Node._send_entries,
    fx.Reply: Node._reply,
    fx.OfferSnapshot: Node._offer_snapshot,
    fx.DeleteReplica: Node._delete,
    fx.Reached: Node._reached,
    fx.SteppedDown: Node._stepped_down,
    fx.ReadReady: Node._read_ready,
    fx.Answer: Node._nothing,
    fx.Refuse: Node._nothing,
}
