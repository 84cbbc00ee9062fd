"""A follower or learner in one term: what it takes from the primary, what it believes, what it answers.

Which of the two it is only the primary knows, and counts accordingly.
"""

from __future__ import annotations

from core.errors import InvariantBroken
from core.replication.effects import Effect, Send
from core.replication.local import LocalLog
from core.replication.messages import Append, Appended, Mismatch, ReplicaId


class Follower:
    """Of `primary`, in `term`, which is promised."""

    def __init__(self, local: LocalLog, me: ReplicaId, term: int, primary: ReplicaId) -> None:
        self.term = term
        self.primary = primary
        self._local = local
        self._me = me
        self._run = 0
        self._round = 0
        self._matched = 0
        """Up to here the log is the primary's, by a message of this term."""
        self._committed = 0
        """What the primary says; believed as far as matched."""

    def on_append(self, m: Append) -> list[Effect]:
        if m.sender != self.primary:
            raise InvariantBroken(f"{self.primary} and {m.sender} are both primary in term {self.term}")
        self._round = m.round if m.run != self._run else max(m.round, self._round)
        self._run = m.run
        log = self._local.log
        # Before the base all is committed, and a primary's log has all that is.
        if m.previous.seq >= log.base.seq and not log.matches(m.previous):
            hint = log.last_not_above(m.previous) or log.base
            return [Send(Mismatch(self._me, m.sender, m.term, m.run, m.previous, hint, m.round))]
        effects = self._local.take(m.previous, m.entries)
        fresh = bool(effects)
        self._matched = max(self._matched, m.previous.seq + len(m.entries), log.base.seq)
        self._committed = max(self._committed, m.committed)
        effects += self._commit()
        # What is new is answered when it is on disk.
        if not fresh and (m.entries or m.ask):
            effects.append(self._answer())
        return effects

    def on_persisted(self) -> list[Effect]:
        return [*self._commit(), self._answer()]

    def on_install(self, seq: int) -> None:
        """A snapshot of this term: it ends with what was committed, so the primary's log has it."""
        self._matched = max(self._matched, seq)

    def on_installed(self) -> list[Effect]:
        return [*self._commit(), self._answer()]

    def on_withdrawn(self) -> None:
        self._matched = min(self._matched, self._local.log.last.seq)

    def _commit(self) -> list[Effect]:
        upto = min(self._committed, self._matched, self._local.persisted_seq)
        return self._local.commit(upto) if upto > self._local.committed else []

    def _answer(self) -> Effect:
        matched = min(self._matched, self._local.log.last.seq)
        return Send(
            Appended(
                sender=self._me,
                to=self.primary,
                term=self.term,
                run=self._run,
                matched=matched,
                persisted=min(matched, self._local.persisted_seq),
                round=self._round,
            )
        )
