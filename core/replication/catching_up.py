"""A primary to be makes its log equal to the best that the fence found, copied from a member."""

from __future__ import annotations

from core.errors import InvariantBroken
from core.replication.effects import Effect, OfferSnapshot, Reply, Send, SendEntries
from core.replication.local import LocalLog
from core.replication.log import Position
from core.replication.messages import CatchUp, CaughtUp, Fetch, Fetched, ReplicaId
from core.replication.progress import Pace


class CatchingUp:
    """By one command. Begun again by a repeated one; done when the log is equal and on disk."""

    def __init__(self, local: LocalLog, me: ReplicaId, run: int, command: CatchUp, pace: Pace) -> None:
        self.term = command.term
        self.is_done = False
        self._local = local
        self._me = me
        self._run = run
        self._command = command
        self._pace = pace
        self._asked: Position | None = None
        self._asked_s = 0.0

    def begin(self) -> list[Effect]:
        log, best = self._local.log, self._command.best
        # The entries keep their terms, so of two logs the one with the larger end knows more.
        if (self._command.counts and log.last >= best) or log.last == best:
            return self._finish()
        if best.seq < self._local.committed:
            raise InvariantBroken(f"seq {self._local.committed} is committed, the fence found {best} at most")
        if log.matches(best):
            return [self._local.truncate(best.seq), *self._finish()]
        return [self._ask(log.last_not_above(best) or log.base)]

    def on_fetched(self, m: Fetched) -> list[Effect]:
        if m.run != self._run or m.sender != self._command.source or m.previous != self._asked:
            return []
        if m.hint is not None:
            return [self._ask(self._local.log.last_not_above(m.hint) or self._local.log.base)]
        effects = self._local.take(m.previous, m.entries)
        reached = m.entries[-1].position if m.entries else m.previous
        if reached != self._command.best:
            return [*effects, self._ask(reached)]
        self._asked = None
        if self._local.log.last != reached:
            effects.append(self._local.truncate(reached.seq))
        return [*effects, *self._finish()]

    def on_persisted(self) -> list[Effect]:
        return self._finish() if self._asked is None else []

    def tick(self) -> list[Effect]:
        if self._asked is None or self._local.now_s - self._asked_s < self._pace.resend_s:
            return []
        return [self._ask(self._asked)]

    def _finish(self) -> list[Effect]:
        self._asked = None
        if self._local.persisted_seq < self._local.log.last.seq:
            return []
        self.is_done = True
        return [Reply(CaughtUp(self._me, self.term))]

    def _ask(self, previous: Position) -> Effect:
        self._asked, self._asked_s = previous, self._local.now_s
        upto_seq = self._command.best.seq
        return Send(Fetch(self._me, self._command.source, self.term, self._run, previous, upto_seq))


def on_fetch(local: LocalLog, me: ReplicaId, m: Fetch, pace: Pace) -> list[Effect]:
    """Give out what is on disk. The term is promised: nothing of an older one is added meanwhile."""
    log = local.log
    if m.previous.seq < log.base.seq:
        return [OfferSnapshot(m.sender, m.term)]
    answer = Fetched(me, m.sender, m.term, m.run, m.previous, ())
    if not log.matches(m.previous):
        hint = log.last_not_above(m.previous) or log.base
        return [Send(Fetched(me, m.sender, m.term, m.run, m.previous, (), hint))]
    upto_seq = min(m.upto_seq, local.persisted_seq)
    if m.previous.seq >= upto_seq:
        return [Send(answer)] if m.previous.seq == m.upto_seq else []
    last_seq = log.fit(
        m.previous.seq + 1, upto_seq, entries_max=pace.message_entries_max, bytes_max=pace.message_bytes_max
    )
    return [SendEntries(answer, last_seq)]
