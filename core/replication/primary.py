"""A shard's primary in one term: what it sends to whom, what is committed, who may be answered.

Until it is activated it only levels: it brings the new set up to the term's first entry, and commits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.errors import InvariantBroken
from core.replication.effects import (
    Consistency,
    Effect,
    OfferSnapshot,
    Reached,
    ReadReady,
    Reply,
    Send,
    SendEntries,
)
from core.replication.local import LocalLog
from core.replication.log import Position
from core.replication.messages import Append, Appended, Leveled, Mismatch, ReplicaId
from core.replication.progress import Pace, Progress
from core.replication.reads import ReadRounds


class Primary:
    """`in_sync` holds `me`. `run` is new at each start. Begins with what the log holds now."""

    def __init__(
        self,
        local: LocalLog,
        me: ReplicaId,
        term: int,
        run: int,
        in_sync: Iterable[ReplicaId],
        pace: Pace,
    ) -> None:
        self.term = term
        self.in_sync = tuple(in_sync)
        self.is_active = False
        self.reads = ReadRounds(me, self.in_sync)
        self.start_seq = local.log.last.seq
        """What the log held when this term, or this run of it, began."""
        self._local = local
        self._me = me
        self._run = run
        self._pace = pace
        self._reached = Reached(0, 0, 0)
        self._told_level: tuple[ReplicaId, ...] = ()
        self.targets: dict[ReplicaId, Progress] = {}
        if me not in self.in_sync:
            raise InvariantBroken(f"{me} is not in the set {self.in_sync}")
        # The first message matches a log that lacks only the term's first entry.
        next_seq = max(self.start_seq, local.log.base.seq + 1)
        for member in self.in_sync:
            if member != me:
                self.targets[member] = Progress(next_seq, local.now_s)

    def activate(self, learners: Iterable[ReplicaId]) -> list[Effect]:
        """The map says that this configuration is active. Called again when the learners have changed."""
        self.is_active = True
        wanted = {*learners, *self.in_sync} - {self._me}
        for gone in self.targets.keys() - wanted:
            del self.targets[gone]
        for new in sorted(wanted - self.targets.keys()):
            self.targets[new] = Progress(self._local.log.last.seq + 1, self._local.now_s)
        return self.advance()

    def reached(self, consistency: Consistency) -> int:
        return self._reached.seq(consistency)

    def leveled(self) -> Reply:
        """Who of the set has the term's first entry on disk."""
        return Reply(Leveled(self._me, self.term, self._level_members()))

    def is_full(self) -> bool:
        """Whether so much waits for a majority that nothing more may be taken."""
        local = self._local
        return (
            local.log.last.seq - local.committed >= self._pace.uncommitted_entries_max
            or local.log.bytes_after(local.committed) >= self._pace.uncommitted_bytes_max
        )

    # -- events -----------------------------------------------------------------------------------------

    def on_appended(self, m: Appended) -> list[Effect]:
        target = self._target_of(m)
        if target is None:
            return []
        if max(m.matched, m.persisted) > self._local.log.last.seq:
            raise InvariantBroken(
                f"{m.sender} says it has seq {m.matched}, this log ends at {self._local.log.last}"
            )
        target.answered(m.matched, m.persisted)
        self.reads.answered(m.sender, m.round)
        return self.advance()

    def on_mismatch(self, m: Mismatch) -> list[Effect]:
        target = self._target_of(m)
        if target is None:
            return []
        self.reads.answered(m.sender, m.round)
        log = self._local.log
        late = m.previous.seq <= target.persisted or (
            target.probing and m.previous.seq != target.next_seq - 1
        )
        if not late:
            found = log.last_not_above(m.hint)
            target.walk_back(log.base.seq if found is None else found.seq + 1)
        return self.advance()

    def tick(self) -> list[Effect]:
        """Send again what seems lost, and heartbeats."""
        effects: list[Effect] = []
        for to, target in self.targets.items():
            silent_s = self._local.now_s - target.sent_s
            late = silent_s >= self._pace.resend_s
            # Who is sent a snapshot is asked, too, whether it has it now.
            ask = late and (self.reads.lacks(to) or target.needs_snapshot(self._local.log))
            if late and (target.waiting or target.in_flight):
                target.walk_back(min(target.matched + 1, target.next_seq))
                effects += self._send(to, target)
            if ask or silent_s >= self._pace.heartbeat_s:
                effects.append(self._heartbeat(to, target))
        return effects

    def advance(self) -> list[Effect]:
        """Whatever is possible now: commit, answer, send."""
        effects: list[Effect] = []
        if self.is_active:
            effects += self._commit()
            effects += self._answer_reads()
        elif (members := self._level_members()) != self._told_level:
            self._told_level = members
            effects.append(self.leveled())
        for to, target in self.targets.items():
            effects += self._send(to, target)
        return effects

    # -- what is committed ------------------------------------------------------------------------------

    def _commit(self) -> list[Effect]:
        local = self._local
        persisted = [self._persisted_by(member) for member in self.in_sync]
        candidate = majority_seq(persisted)
        # Raft §5.4.2: an entry of an earlier term is committed only by one of this term that follows it.
        if candidate > local.committed and local.log.term_at(candidate) != self.term:
            candidate = local.committed
        effects = local.commit(max(candidate, local.committed))
        reached = Reached(local.persisted_seq, local.committed, min(*persisted, local.committed))
        if reached != self._reached:
            self._reached = reached
            effects.append(reached)
        return effects

    def _level_members(self) -> tuple[ReplicaId, ...]:
        return tuple(m for m in self.in_sync if self._persisted_by(m) >= self.start_seq)

    def _persisted_by(self, member: ReplicaId) -> int:
        return self._local.persisted_seq if member == self._me else self.targets[member].persisted

    # -- strong reads -----------------------------------------------------------------------------------

    def read(self, token: int) -> list[Effect]:
        self.reads.add(token)
        return self._answer_reads()

    def _answer_reads(self) -> list[Effect]:
        effects: list[Effect] = [*self._ready_reads()]
        while self.reads.begin():
            effects += [self._heartbeat(to, t) for to, t in self.targets.items() if to in self.in_sync]
            effects += self._ready_reads()  # a set of one has confirmed it already
        return effects

    def _ready_reads(self) -> list[ReadReady]:
        # Until what the log held at the start is committed, this commit index may be behind the shard's.
        local = self._local
        may_confirm = local.committed >= self.start_seq
        return self.reads.advance(local.committed, local.applied_seq, may_confirm=may_confirm)

    # -- sending ----------------------------------------------------------------------------------------

    def _send(self, to: ReplicaId, target: Progress) -> list[Effect]:
        local, pace = self._local, self._pace
        if target.needs_snapshot(local.log):
            if target.waiting:
                return []
            target.probing = True
            target.sent(local.log.base.seq, local.now_s)
            return [OfferSnapshot(to, self.term)]
        effects: list[Effect] = []
        # Nothing is sent that rests on bytes not yet on this disk.
        while target.next_seq - 1 <= local.persisted_seq and target.can_send(local.persisted_seq, pace):
            previous = local.log.position_at(target.next_seq - 1)
            last_seq = previous.seq
            if last_seq < local.persisted_seq:
                last_seq = local.log.fit(
                    previous.seq + 1,
                    local.persisted_seq,
                    entries_max=pace.message_entries_max,
                    bytes_max=pace.message_bytes_max,
                )
            effects.append(self._append(to, target, previous, last_seq))
        if target.committed_sent < local.committed and target.next_seq > local.persisted_seq:
            effects.append(self._append(to, target, self._known_of(target), None))
        return effects

    def _heartbeat(self, to: ReplicaId, target: Progress) -> Effect:
        target.sent_s = self._local.now_s
        return self._append(to, target, self._known_of(target), None, ask=True)

    def _known_of(self, target: Progress) -> Position:
        return self._local.log.position_at(max(target.persisted, self._local.log.base.seq))

    def _append(
        self, to: ReplicaId, target: Progress, previous: Position, last_seq: int | None, *, ask: bool = False
    ) -> Effect:
        """`last_seq` is None for a message that only tells; else it is entered as under way."""
        target.committed_sent = self._local.committed
        message = Append(
            sender=self._me,
            to=to,
            term=self.term,
            run=self._run,
            previous=previous,
            entries=(),
            committed=self._local.committed if self.is_active else 0,
            round=self.reads.newest,
            ask=ask or last_seq is not None,
        )
        if last_seq is None:
            return Send(message)
        target.sent(last_seq, self._local.now_s)
        return SendEntries(message, last_seq) if last_seq > previous.seq else Send(message)

    def _target_of(self, m: Appended | Mismatch) -> Progress | None:
        """None for an answer of another term, of before a restart, or of a stranger: it does not count."""
        if m.term != self.term or m.run != self._run:
            return None
        return self.targets.get(m.sender)


def majority_seq(persisted: Sequence[int]) -> int:
    """The highest seq that a majority of the set has on disk: of (7, 3, 5) it is 5, of (7, 3) it is 3."""
    return sorted(persisted, reverse=True)[len(persisted) // 2]
