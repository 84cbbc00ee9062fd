"""Who leads: one console's part in the election, driven by ticks and by answers of the key `leader`.

    watches ──(empty, or unmoved for longer than its ttl)──▶ CAS, term + 1 ──▶ leads, renews, leads, …
       ▲                                                          │                │
       └──────────────── somebody else's lease is there ──────────┴────────────────┘

A leader acts for two thirds of its ttl from when it *sent* its last successful renewal, a watcher waits for
a whole ttl from when it *heard* of it, each on its own monotonic clock: so one stops before another starts,
even with clocks that differ by a fifth. Nothing else here rests on time. (Kubernetes' leader election has
the same shape; there renewals carry wall clock times, here they are only counted.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

LEADER_KEY = "leader"
NOBODY = ""
ACTING_SHARE = 2 / 3


class Chance(Protocol):
    """A random.Random."""

    def random(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Lease:
    """What the key holds. `holder` is new at each start of a console, or NOBODY after stepping down."""

    holder: str
    term: int
    renewals: int
    ttl_s: float


def encode_lease(lease: Lease) -> bytes:
    return msgspec.json.encode(lease)


def decode_lease(data: bytes) -> Lease:
    return msgspec.json.decode(data, type=Lease)


@dataclass(frozen=True, slots=True)
class Timing:
    """How often a console looks and renews. A question without an answer for `answer_s` is given up."""

    ttl_s: float = 2.0
    renew_s: float = 0.4
    look_s: float = 0.2
    jitter_s: float = 0.3
    answer_s: float = 0.4


# Effects. Each question has a number; only the answer to the last one asked counts.


@dataclass(frozen=True, slots=True)
class Read:
    asked: int


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    asked: int
    version: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Lead:
    """Act as the leader of `term` until `until_s`. Repeated, with a later time, at each renewal."""

    term: int
    until_s: float


@dataclass(frozen=True, slots=True)
class StopLeading:
    term: int


Effect = Read | CompareAndSet | Lead | StopLeading


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A lease that may have been written. Only from when it was first sent is it safe to count."""

    lease: Lease
    sent_s: float


class Election:
    """A console that stands for election. Call `tick` at `wake_s`, and one `on_…` per answered question.

    Before each act of a leader: `may_act`. Times are of one monotonic clock.
    """

    def __init__(self, holder: str, now_s: float, chance: Chance, timing: Timing | None = None) -> None:
        self._me = holder
        self._chance = chance
        self._timing = timing or Timing()
        self._lease: Lease | None = None  # what the key was last seen to hold
        self._version: int | None = None
        self._unmoved_since_s = now_s
        self._patience_s = 0.0
        self._attempt: _Attempt | None = None
        self._leads: Lead | None = None
        self._standing = True
        self._asked = 0
        self._asked_s: float | None = None  # a question is out since then
        self._unsure = True  # only a read tells what to do next
        self._next_s = now_s

    @property
    def lease(self) -> Lease | None:
        """What the key was last seen to hold."""
        return self._lease

    @property
    def wake_s(self) -> float:
        """When it wants its next tick at the latest."""
        if self._asked_s is None:
            next_s = self._next_s
        else:
            next_s = self._asked_s + self._timing.answer_s
        return min(next_s, self._leads.until_s) if self._leads else next_s

    @property
    def finished(self) -> bool:
        """It stepped down, and nothing of its lease is left, as far as it knows."""
        return not self._standing and self._asked_s is None and not self._holds and self._attempt is None

    def may_act(self, now_s: float) -> bool:
        return self._leads is not None and now_s < self._leads.until_s

    def tick(self, now_s: float) -> list[Effect]:
        effects = self._stop() if self._leads and now_s >= self._leads.until_s else []
        if self._asked_s is not None:
            if now_s < self._asked_s + self._timing.answer_s:
                return effects
            # What it wrote, if it was a CAS, may still take effect: reading settles it.
            self._asked_s, self._unsure, self._next_s = None, True, now_s
        if now_s >= self._next_s and not self.finished:
            effects.append(self._ask(now_s))
        return effects

    def look(self, now_s: float) -> None:
        """A hint that the key has moved: the next tick may read at once."""
        if not self._holds:
            self._next_s, self._unsure = now_s, True

    def step_down(self, now_s: float) -> list[Effect]:
        """Acts no more from now on, and ticks until `finished`, so that a successor starts at once."""
        self._standing = False
        self._next_s = now_s
        return self._stop() + self.tick(now_s)

    def on_read(self, asked: int, lease: Lease | None, version: int, now_s: float) -> list[Effect]:
        """Also for a CAS that conflicted: it answers what is there."""
        if not self._answers(asked):
            return []
        return self._saw(lease, version, now_s)

    def on_written(self, asked: int, version: int, now_s: float) -> list[Effect]:
        if not self._answers(asked) or self._attempt is None:
            return []
        return self._saw(self._attempt.lease, version, now_s)

    def on_failed(self, asked: int, now_s: float) -> None:
        if self._answers(asked):
            self._unsure, self._next_s = True, now_s + self._timing.look_s

    @property
    def _holds(self) -> bool:
        return self._lease is not None and self._lease.holder == self._me

    def _answers(self, asked: int) -> bool:
        if asked != self._asked or self._asked_s is None:
            return False
        self._asked_s = None
        return True

    def _ask(self, now_s: float) -> Effect:
        self._asked += 1
        self._asked_s = now_s
        wanted = self._wanted(now_s)
        if self._unsure or wanted is None or self._version is None:
            self._unsure = True
            return Read(self._asked)
        if self._attempt is None or self._attempt.lease != wanted:
            self._attempt = _Attempt(wanted, now_s)
        return CompareAndSet(self._asked, self._version, wanted)

    def _wanted(self, now_s: float) -> Lease | None:
        """The lease to write now, if any."""
        lease = self._lease
        if lease is None:
            return Lease(self._me, 1, 0, self._timing.ttl_s) if self._standing else None
        if lease.holder == self._me:
            holder = self._me if self._standing else NOBODY
            return replace(lease, holder=holder, renewals=lease.renewals + 1)
        if self._standing and now_s >= self._free_s:
            return Lease(self._me, lease.term + 1, 0, self._timing.ttl_s)
        return None

    @property
    def _free_s(self) -> float:
        """From this time on the lease that it saw may be taken over."""
        if self._lease is None or self._lease.holder == NOBODY:
            return float("-inf")
        return self._unmoved_since_s + self._lease.ttl_s + self._patience_s

    def _saw(self, lease: Lease | None, version: int, now_s: float) -> list[Effect]:
        if self._version is None or lease != self._lease:
            self._unmoved_since_s = now_s
            # At random, or consoles that watch in step would collide at each takeover.
            self._patience_s = self._chance.random() * self._timing.jitter_s
        wrote = self._attempt if self._attempt and lease == self._attempt.lease else None
        if wrote or version != self._version or not self._standing:
            self._attempt = None  # whatever else was tried names a version that is past
        self._lease, self._version, self._unsure = lease, version, False
        if wrote and self._holds and self._standing:
            return self._won(wrote, now_s)
        if self._holds or self._free_s <= now_s:
            self._next_s = now_s
        else:
            self._next_s = min(now_s + self._timing.look_s, self._free_s)
        effects = [] if self._holds else self._stop()
        return effects + self.tick(now_s)

    def _won(self, wrote: _Attempt, now_s: float) -> list[Effect]:
        until_s = wrote.sent_s + ACTING_SHARE * wrote.lease.ttl_s
        self._next_s = wrote.sent_s + self._timing.renew_s
        if now_s >= until_s:
            return self._stop() + self.tick(now_s)
        self._leads = Lead(wrote.lease.term, until_s)
        return [self._leads]

    def _stop(self) -> list[Effect]:
        leads, self._leads = self._leads, None
        return [StopLeading(leads.term)] if leads else []
