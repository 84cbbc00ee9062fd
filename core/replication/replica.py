"""A shard's replica: proposals, fsyncs and applied entries in, effects out.

The agent (or the simulator) performs the effects of a call in their order. One member or many is
the same path: a set of one commits what it has itself persisted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.errors import InvariantBroken, ShoalError, Unavailable, Unprocessable
from core.replication.log import Entry, Log
from core.replication.recent import RecentRequests, Remembered
from core.wire import Nothing, Outcome, encode_op


class StaleTerm(Unavailable):
    """This replica has promised a newer term, and takes no writes in the one asked for."""

    code = "stale-term"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is: made with its empty log, kept beside it, durable. `promised` only grows."""

    incarnation: int
    history: int
    promised: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Append these to the log and fsync, then call `persisted`; or `withdraw` if not a byte was written."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class KeepIdentity:
    """Make the identity durable before any effect that follows it."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Apply:
    """Entries first_seq..last_seq are committed: apply them in order, then call `applied`."""

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The entry at `seq` was applied: tell everybody who waits for it."""

    seq: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Attach:
    """A retry met its own entry: whoever asked waits for `seq` like the first who did."""

    seq: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing happened, and why."""

    error: ShoalError


Effect = Persist | KeepIdentity | Apply | Answer | Attach | Refuse


class Replica:
    """The primary of its shard's active set.

    `members` are names, `me` among them. `log` and `recent` hold what recovery found; `applied` is how
    far the shard's contents have come, at least the log's base; `time_us` the log's time.
    """

    def __init__(
        self,
        identity: Identity,
        log: Log,
        *,
        me: str = "",
        members: Iterable[str] = ("",),
        applied: int = 0,
        time_us: int = 0,
        recent: RecentRequests | None = None,
    ) -> None:
        self.identity = identity
        self.term = identity.promised
        self.me = me
        self.log = log
        self.recent = RecentRequests() if recent is None else recent
        self.committed = applied
        self.applied_seq = applied
        self._handed_out = applied
        self._time_us = time_us
        self._persisted = dict.fromkeys(members, 0)
        if me not in self._persisted:
            raise InvariantBroken(f"{me!r} is not in the active set {sorted(self._persisted)}")

    @property
    def persisted_seq(self) -> int:
        """How far this replica's own log is on disk."""
        return self._persisted[self.me]

    def remember(self, entries: Iterable[Entry]) -> None:
        """Take entries that recovery read from the log, those that have a request id, oldest first."""
        for entry in entries:
            self._time_us = max(self._time_us, entry.time_us)
            if entry.request_id:
                self.recent.remember(_remembered(entry))

    def propose(
        self,
        op: bytes,
        now_us: int,
        *,
        request_id: bytes = b"",
        number: int = 0,
        body_hash: bytes = b"",
        schema: int = 0,
    ) -> list[Effect]:
        """One operation of a client's request. One effect: Persist, Attach, Answer or Refuse."""
        if self.term != self.identity.promised:
            return [Refuse(StaleTerm(f"term {self.term} is fenced by {self.identity.promised}; try again"))]
        if request_id:
            try:
                known = self.recent.find(request_id, number, body_hash)
            except Unprocessable as error:
                return [Refuse(error)]
            if known is not None:
                return [Attach(known.seq) if known.outcome is None else Answer(known.seq, known.outcome)]
        # The log's time never goes back, or a remembered request could outlive a later one.
        self._time_us = max(self._time_us, now_us)
        seq = self.log.last.seq + 1
        entry = Entry(self.term, seq, self._time_us, op, request_id, number, body_hash, schema)
        self._append(entry)
        return [Persist((entry,))]

    def persisted(self, upto: int, member: str | None = None) -> list[Effect]:
        """A member's log is on disk up to `upto` (this replica's own, if no member is named)."""
        name = self.me if member is None else member
        if upto > self.log.last.seq:
            raise InvariantBroken(f"{name!r} persisted seq {upto}, the log ends at {self.log.last.seq}")
        self._persisted[name] = max(self._persisted[name], upto)
        candidate = majority_seq(list(self._persisted.values()))
        # Raft §5.4.2: an entry of an earlier term is committed only by one of this term that follows it.
        if candidate > self.committed and self.log.term_at(candidate) == self.term:
            self.committed = candidate
        return self._apply_committed()

    def applied(self, outcomes: Sequence[Outcome], last_seq: int) -> list[Effect]:
        """The entries that end at `last_seq` are applied and visible, with these outcomes."""
        first_seq = last_seq - len(outcomes) + 1
        if first_seq != self.applied_seq + 1 or last_seq > self.committed:
            raise InvariantBroken(
                f"applied {first_seq}..{last_seq} after {self.applied_seq}, committed is {self.committed}"
            )
        self.applied_seq = last_seq
        for seq, outcome in enumerate(outcomes, first_seq):
            self.recent.answer(seq, outcome)
        return [Answer(seq, outcome) for seq, outcome in enumerate(outcomes, first_seq)]

    def withdraw(self, after_seq: int) -> None:
        """Forget proposals of which not a byte was written (no room), as if they had never come."""
        if after_seq < self.persisted_seq:
            raise InvariantBroken(f"cannot withdraw seq {after_seq + 1}: {self.persisted_seq} is on disk")
        self.log.truncate(after_seq)
        self.recent.truncate(after_seq)

    def promise(self, term: int) -> list[Effect]:
        """A leader fences this shard: accept nothing of an older term from now on."""
        if term < self.identity.promised:
            return [Refuse(StaleTerm(f"term {term} is older than {self.identity.promised}; fetch the map"))]
        if term == self.identity.promised:
            return []
        self.identity = Identity(self.identity.incarnation, self.identity.history, term)
        return [KeepIdentity(self.identity)]

    def activate(self, term: int, members: Iterable[str], now_us: int) -> list[Effect]:
        """The map names this replica the primary of `members` in a term that it has promised."""
        if term != self.identity.promised:
            return [Refuse(StaleTerm(f"term {term} was not promised, {self.identity.promised} was"))]
        if term == self.term:
            return []
        own = self.persisted_seq
        self.term = term
        self._persisted = {name: own if name == self.me else 0 for name in members}
        self._time_us = max(self._time_us, now_us)
        # An empty entry of the new term commits all that came before it.
        entry = Entry(term, self.log.last.seq + 1, self._time_us, encode_op(Nothing()))
        self._append(entry)
        return [Persist((entry,))]

    def _append(self, entry: Entry) -> None:
        self.log.append(entry.position)
        if entry.request_id:
            self.recent.remember(_remembered(entry))

    def _apply_committed(self) -> list[Effect]:
        first_seq = self._handed_out + 1
        if first_seq > self.committed:
            return []
        self._handed_out = self.committed
        return [Apply(first_seq, self.committed)]


def _remembered(entry: Entry) -> Remembered:
    return Remembered(entry.request_id, entry.number, entry.body_hash, entry.seq, entry.time_us)


def majority_seq(persisted: Sequence[int]) -> int:
    """The highest seq that a majority of the set has on disk: of (7, 3, 5) it is 5, of (7, 3) it is 3."""
    return sorted(persisted, reverse=True)[len(persisted) // 2]
