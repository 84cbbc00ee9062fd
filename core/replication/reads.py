"""Linearizable reads: the primary's rounds for strong ones, a router's questions for quorum ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from core.replication.effects import ReadReady
from core.replication.messages import AskPersisted, HasPersisted, Refused, ReplicaId


def majority(members: int) -> int:
    return members // 2 + 1


@dataclass(frozen=True, slots=True)
class _Batch:
    """Reads that came before their round began."""

    round: int
    tokens: tuple[int, ...]


class ReadRounds:
    """ReadIndex (Ongaro 2014 §6.4): a round begun after a read came confirms that no later term had begun.

    One round at a time; what comes meanwhile goes with the next. A round's answers count from members
    only; the caller has checked their term and run.
    """

    def __init__(self, me: ReplicaId, in_sync: Iterable[ReplicaId]) -> None:
        self._confirmed = {member: 0 for member in in_sync if member != me}
        self.newest = 0
        """The newest round that has begun; all messages to members carry it."""
        self._waiting: list[int] = []
        self._confirming: _Batch | None = None
        self._applying: deque[tuple[int, int]] = deque()  # (seq, token), the seqs ascending

    def add(self, token: int) -> None:
        self._waiting.append(token)

    def begin(self) -> bool:
        """Whether a new round begins now: the members must be told at once."""
        if self._confirming is not None or not self._waiting:
            return False
        self.newest += 1
        self._confirming = _Batch(self.newest, tuple(self._waiting))
        self._waiting = []
        return True

    def answered(self, member: ReplicaId, round_: int) -> None:
        if member in self._confirmed:
            self._confirmed[member] = max(self._confirmed[member], round_)

    @property
    def is_open(self) -> bool:
        return self._confirming is not None

    def lacks(self, member: ReplicaId) -> bool:
        """Whether this member's answer to the open round is missing."""
        return self._confirming is not None and self._confirmed.get(member, self.newest) < self.newest

    def advance(self, committed: int, applied: int, *, may_confirm: bool) -> list[ReadReady]:
        """What can be answered now. `may_confirm`: all that the log held at the start is committed."""
        batch = self._confirming
        if batch is not None and may_confirm and self._has_majority(batch.round):
            self._applying += [(committed, token) for token in batch.tokens]
            self._confirming = None
        ready = []
        while self._applying and self._applying[0][0] <= applied:
            ready.append(ReadReady(self._applying.popleft()[1]))
        return ready

    def _has_majority(self, round_: int) -> bool:
        confirmed = 1 + sum(1 for seen in self._confirmed.values() if seen >= round_)
        return confirmed >= majority(len(self._confirmed) + 1)


@dataclass(frozen=True, slots=True)
class ReadAt:
    """Read at a replica once it has applied `seq`; if that takes too long, ask again."""

    seq: int


@dataclass(frozen=True, slots=True)
class MapIsOld:
    """A member has promised a higher term: fetch the map, begin anew."""

    promised: int


class QuorumRead:
    """A router's question to the active set as its map has it: how far is the log on disk?

    Send `asks()`, feed the answers. One refusal for a higher term is enough: a fence and a majority meet.
    """

    def __init__(self, term: int, in_sync: Iterable[ReplicaId]) -> None:
        self._term = term
        self._members = tuple(in_sync)
        self._seqs: dict[ReplicaId, int] = {}
        self._over = False

    def asks(self) -> list[AskPersisted]:
        return [AskPersisted(member, self._term) for member in self._members if member not in self._seqs]

    def on_answer(self, m: HasPersisted | Refused) -> ReadAt | MapIsOld | None:
        if self._over or m.term != self._term or m.sender not in self._members:
            return None
        if isinstance(m, Refused):
            self._over = m.promised > self._term
            return MapIsOld(m.promised) if self._over else None
        self._seqs[m.sender] = m.seq
        if len(self._seqs) < majority(len(self._members)):
            return None
        self._over = True
        return ReadAt(max(self._seqs.values()))
