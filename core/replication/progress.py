"""What a primary knows about another replica, and what it sends there next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from core.replication.log import Log


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is under way, and when it is looked after. Times in seconds."""

    message_entries_max: int = 256
    message_bytes_max: int = 1 << 20
    messages_in_flight_max: int = 16
    """To one replica. With the bytes of a message it bounds what a slow one holds in memory."""
    uncommitted_entries_max: int = 200_000
    uncommitted_bytes_max: int = 64 << 20
    """More waits for a majority already: the primary takes no write."""
    heartbeat_s: float = 0.5
    resend_s: float = 0.5


@dataclass(slots=True)
class Progress:
    """Of one follower or learner. Probing: one message at a time, until one matches."""

    next_seq: int
    """The first entry that was not sent."""
    sent_s: float
    matched: int = 0
    """What the other said it has of this log, perhaps not on disk."""
    persisted: int = 0
    committed_sent: int = 0
    round_sent: int = 0
    probing: bool = True
    waiting: bool = False
    """While probing: a message is under way."""
    in_flight: deque[int] = field(default_factory=deque)
    """The last seqs of the messages that were not answered."""

    def needs_snapshot(self, log: Log) -> bool:
        return self.next_seq <= log.base.seq

    def can_send(self, persisted_seq: int, pace: Pace) -> bool:
        if self.probing:
            return not self.waiting
        return self.next_seq <= persisted_seq and len(self.in_flight) < pace.messages_in_flight_max

    def sent(self, last_seq: int, now_s: float) -> None:
        self.sent_s = now_s
        if self.probing:
            self.waiting = True
            return
        self.in_flight.append(last_seq)
        self.next_seq = last_seq + 1

    def answered(self, matched: int, persisted: int) -> None:
        self.persisted = max(self.persisted, persisted)
        self.matched = max(self.matched, matched)
        while self.in_flight and self.in_flight[0] <= self.matched:
            self.in_flight.popleft()
        if self.probing:
            self.probing = self.waiting = False
            self.next_seq = matched + 1

    def walk_back(self, next_seq: int) -> None:
        """Probe from here. Never before what is known to be on its disk."""
        self.probing, self.waiting = True, False
        self.in_flight.clear()
        self.next_seq = max(next_seq, self.persisted + 1)
        self.matched = min(self.matched, self.next_seq - 1)
