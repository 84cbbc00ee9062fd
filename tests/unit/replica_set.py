"""Real replicas joined by a fake link: effects are performed at once, messages wait to be delivered."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from core.replication import effects as fx
from core.replication.log import START, Entry, Log, Position
from core.replication.messages import Append, Fetched, ReplicaId
from core.replication.progress import Pace
from core.replication.recent import RecentRequests
from core.replication.replica import Replica
from core.wire import Outcome

DONE = Outcome(touched=1)


@dataclass
class Member:
    """A replica and what the agent would hold for it."""

    replica: Replica
    entries: dict[int, Entry] = field(default_factory=dict)
    base: Position = START
    others: list[fx.Effect] = field(default_factory=list)
    """Effects that a test looks at: answers, offers, reads, refusals."""
    holds_sync: bool = False
    unsynced: list[tuple[int, int]] = field(default_factory=list)


class ReplicaSet:
    """n1, n2, …: n1 is the active primary of the first `in_sync`, in term 1; the others are learners."""

    def __init__(self, count: int, *, in_sync: int | None = None, pace: Pace | None = None) -> None:
        self.ids = tuple(ReplicaId(f"n{i}", 1) for i in range(1, count + 1))
        self.in_sync = self.ids[:in_sync]
        self.pace = pace or Pace(heartbeat_s=1.0, resend_s=1.0)
        self.now_s = 0.0
        self.run = 0
        self.wire: deque[Any] = deque()
        self.members = {id_: Member(self._replica(id_, fx.Identity(1, 9, promised=1))) for id_ in self.ids}
        self.do(self.ids[0], self[0].activate(1, self.in_sync, 0, self.ids[len(self.in_sync) :]))
        self.deliver()

    def __getitem__(self, at: int) -> Replica:
        return self.members[self.ids[at]].replica

    def of(self, at: int) -> Member:
        return self.members[self.ids[at]]

    def _replica(
        self, id_: ReplicaId, identity: fx.Identity, log: Log | None = None, applied: int = 0
    ) -> Replica:
        self.run += 1
        return Replica(
            identity,
            log or Log(),
            me=id_,
            members=(),
            run=self.run,
            applied=applied,
            recent=RecentRequests(),
            pace=self.pace,
        )

    # -- performing -------------------------------------------------------------------------------------

    def do(self, id_: ReplicaId, effects: list[fx.Effect]) -> list[fx.Effect]:
        member = self.members[id_]
        for effect in effects:
            match effect:
                case fx.Persist(entries=entries, generation=generation):
                    member.entries.update({entry.seq: entry for entry in entries})
                    member.unsynced.append((entries[-1].seq, generation))
                    if not member.holds_sync:
                        self.sync(id_)
                case fx.Truncate(after_seq=after_seq):
                    member.entries = {s: e for s, e in member.entries.items() if s <= after_seq}
                case fx.Apply(first_seq=first, last_seq=last):
                    self.do(id_, member.replica.applied([DONE] * (last - first + 1), last))
                case fx.Send(message=message):
                    self.wire.append(message)
                case fx.SendEntries(message=message, last_seq=last):
                    self.wire.append(self._filled(member, message, last))
                case fx.Install(position=position):
                    member.base, member.entries = position, {}
                    self.do(id_, member.replica.installed(position))
                case _:
                    member.others.append(effect)
        return effects

    def sync(self, id_: ReplicaId) -> None:
        member = self.members[id_]
        done, member.unsynced = member.unsynced, []
        for seq, generation in done[-1:]:  # one fsync for all
            self.do(id_, member.replica.persisted(seq, generation))

    def _filled(self, member: Member, message: Append | Fetched, last: int) -> Append | Fetched:
        seqs = range(message.previous.seq + 1, last + 1)
        return replace(message, entries=tuple(member.entries[seq] for seq in seqs))

    def deliver(self, *, without: str = "") -> None:
        """All that is on the wire, and what it brings about; nothing to or from the node `without`."""
        for _ in range(10_000):
            if not self.wire:
                return
            message = self.wire.popleft()
            if without not in (message.to.node, getattr(message, "sender", message.to).node):
                self.do(message.to, self.members[message.to].replica.on_message(message, self.now_s))
        raise AssertionError("the messages never end")

    def tell(self, at: int, message: Any) -> list[Any]:
        """A command; returns what was replied, all messages being delivered."""
        member = self.of(at)
        seen = len(member.others)
        self.do(self.ids[at], member.replica.on_message(message, self.now_s))
        self.deliver()
        return [e.message for e in member.others[seen:] if isinstance(e, fx.Reply)]

    def tick(self, after_s: float = 2.0) -> None:
        self.now_s += after_s
        for id_, member in self.members.items():
            self.do(id_, member.replica.tick(self.now_s))

    # -- what tests do ----------------------------------------------------------------------------------

    def write(self, at: int, op: bytes = b"op", **request: Any) -> list[fx.Effect]:
        return self.do(self.ids[at], self[at].propose(op, 0, **request))

    def restart(self, at: int) -> None:
        """With what is on its disk; nothing that was unsynced."""
        member = self.of(at)
        old = member.replica
        log = Log(member.base)
        for seq in range(member.base.seq + 1, old.persisted_seq + 1):
            log.append(member.entries[seq].position)
        member.entries = {s: e for s, e in member.entries.items() if s <= old.persisted_seq}
        member.unsynced = []
        member.replica = self._replica(self.ids[at], old.identity, log, old.applied_seq)

    def positions(self) -> list[Position]:
        return [self[at].log.last for at in range(len(self.ids))]

    def commits(self) -> list[int]:
        return [self[at].committed for at in range(len(self.ids))]

    def offers(self, at: int) -> list[fx.OfferSnapshot]:
        return [e for e in self.of(at).others if isinstance(e, fx.OfferSnapshot)]

    def reads(self, at: int) -> list[int]:
        return [e.token for e in self.of(at).others if isinstance(e, fx.ReadReady)]
