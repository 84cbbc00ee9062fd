"""What a replica itself has: its log, how far it is on disk, committed, applied; the requests in it.

The roles (primary, follower, catching up) decide what goes in and what is committed; the rules that
no role may break are here, and raise InvariantBroken in production too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.errors import InvariantBroken
from core.replication.effects import Answer, Apply, Effect, Install, Persist, Truncate
from core.replication.log import Entry, Log, Position
from core.replication.recent import RecentRequests, Remembered
from core.wire import Outcome


class LocalLog:
    """`log` and `recent` hold what recovery found, all of it on disk; `applied`: how far the contents are."""

    def __init__(self, log: Log, recent: RecentRequests, applied: int, time_us: int) -> None:
        self.log = log
        self.recent = recent
        self.committed = applied
        self.applied_seq = applied
        self.persisted_seq = log.last.seq
        self._cuts: list[int] = []  # after which seq, each time that something was cut off the end
        self.time_us = time_us
        self.now_s = 0.0
        """The time of the last call that told it; only ever compared with itself."""
        self._handed_out = applied

    @property
    def generation(self) -> int:
        """How often something was cut off the end, or all was replaced, since the start."""
        return len(self._cuts)

    def remember(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.time_us = max(self.time_us, entry.time_us)
            if entry.request_id:
                self.recent.remember(_remembered(entry))

    def append(self, entry: Entry) -> Persist:
        self._add(entry)
        return Persist((entry,), self.generation)

    def take(self, previous: Position, entries: Sequence[Entry]) -> list[Effect]:
        """Another's entries that follow `previous`, which matches: cut off what conflicts, add the rest."""
        effects: list[Effect] = []
        new = 0
        while new < len(entries) and self._has(entries[new].position):
            new += 1
        fresh = entries[new:]
        if fresh and fresh[0].seq <= self.log.last.seq:
            effects.append(self.truncate(fresh[0].seq - 1))
        for entry in fresh:
            self._add(entry)
        if fresh:
            effects.append(Persist(tuple(fresh), self.generation))
        return effects

    def truncate(self, after_seq: int) -> Truncate:
        """Cut off the end. Raises InvariantBroken rather than lose what is committed."""
        self._forget(after_seq)
        self.persisted_seq = min(self.persisted_seq, after_seq)
        return Truncate(after_seq)

    def withdraw(self, after_seq: int) -> None:
        """Forget entries of which not a byte was written."""
        if after_seq < self.persisted_seq:
            raise InvariantBroken(f"cannot withdraw seq {after_seq + 1}: {self.persisted_seq} is on disk")
        self._forget(after_seq)

    def persisted(self, upto: int, generation: int | None) -> bool:
        """False if it tells nothing new, since that was cut off meanwhile."""
        if generation is not None and generation < self.generation:
            upto = min(upto, *self._cuts[generation:])
            if upto <= self.persisted_seq:
                return False
        if upto > self.log.last.seq:
            raise InvariantBroken(f"seq {upto} is said to be on disk, the log ends at {self.log.last.seq}")
        self.persisted_seq = max(self.persisted_seq, upto)
        return True

    def commit(self, upto: int) -> list[Effect]:
        """Everything up to this seq is committed; it is on this replica's disk."""
        if upto > self.persisted_seq:
            raise InvariantBroken(f"seq {upto} cannot be committed, {self.persisted_seq} is on disk")
        self.committed = max(self.committed, upto)
        first_seq = self._handed_out + 1
        if first_seq > self.committed:
            return []
        self._handed_out = self.committed
        return [Apply(first_seq, self.committed)]

    def applied(self, outcomes: Sequence[Outcome], last_seq: int) -> list[Effect]:
        if last_seq <= self.applied_seq:  # a snapshot has overtaken it
            return []
        first_seq = last_seq - len(outcomes) + 1
        if first_seq != self.applied_seq + 1 or last_seq > self.committed:
            raise InvariantBroken(
                f"applied {first_seq}..{last_seq} after {self.applied_seq}, committed is {self.committed}"
            )
        self.applied_seq = last_seq
        for seq, outcome in enumerate(outcomes, first_seq):
            self.recent.answer(seq, outcome)
        return [Answer(seq, outcome) for seq, outcome in enumerate(outcomes, first_seq)]

    def wants(self, position: Position) -> bool:
        """Whether a snapshot of what is committed up to here has more than this replica."""
        return position.seq > self.committed and not self.log.matches(position)

    def install(self, position: Position, recent: RecentRequests, time_us: int) -> Install:
        """Begin anew from a snapshot that has more."""
        self.log = Log(position)
        self.recent = recent
        self._cuts.append(0)
        self.time_us = max(self.time_us, time_us)
        self.committed = self.persisted_seq = self._handed_out = position.seq
        return Install(position)

    def installed(self, seq: int) -> None:
        """Only now do the contents have it."""
        self.applied_seq = max(self.applied_seq, seq)

    def _has(self, position: Position) -> bool:
        # What was cut away was committed, so everybody's log has the same there.
        return position.seq <= self.log.base.seq or self.log.matches(position)

    def _add(self, entry: Entry) -> None:
        self.log.append(entry.position, len(entry.op))
        self.time_us = max(self.time_us, entry.time_us)
        if entry.request_id:
            self.recent.remember(_remembered(entry))

    def _forget(self, after_seq: int) -> None:
        if after_seq < self.committed:
            raise InvariantBroken(f"seq {self.committed} is committed, the log cannot end at {after_seq}")
        self.log.truncate(after_seq)
        self.recent.truncate(after_seq)
        self._cuts.append(after_seq)


def _remembered(entry: Entry) -> Remembered:
    return Remembered(entry.request_id, entry.number, entry.body_hash, entry.seq, entry.time_us)
