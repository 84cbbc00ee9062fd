"""A change of voters: one runner's steps. Several may run at once, and any may die between two steps.

    n: old ──CAS──▶ n + 1: new, joint with old ─▶ told ─▶ keys listed ─▶ rewritten ──CAS──▶ n + 2: new
                            └── the new are silent ──CAS by a majority of the old──▶ n + 2: old

While a set is joint every operation needs a majority of both, so whoever still works by n, n + 1 or n + 2
meets the others in one of the sets. Only n and n + 2 do not meet: so n is closed (a majority of the old has
adopted n + 1) before the keys are listed, and n + 2 begins when the new hold them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from core.consensus.register import (
    Adopt,
    Adopted,
    Answer,
    Ask,
    Ballot,
    Change,
    Conflicting,
    Found,
    Outcome,
    Read,
    Refused,
    Told,
    Value,
    VoterSet,
    Write,
    Written,
    decode_voters,
    encode_voters,
    is_majority,
)

VOTERS_KEY = "voters"
REWRITES_AT_ONCE = 16
RETRY_S = 1.0
ROUNDS_OF_PATIENCE = 3
"""So often are new voters asked before they count as silent."""
FAILURES_MAX = 10


# Effects. Each is answered once, by what is named, or by `on_failed`. `asked` goes back with the answer.


@dataclass(frozen=True, slots=True)
class Settle:
    """Run an Operation by exactly these voters → on_settled; if a newer set shows up, stop → on_newer."""

    asked: int
    key: str
    change: Change
    voters: VoterSet
    old_alone: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """→ on_answer"""

    asked: int
    voter: str
    request: Adopt | Ask


@dataclass(frozen=True, slots=True)
class ListKeys:
    """All keys that the voter has a cell of, even if it only promised → on_keys

    Else ballots of such a key could begin anew at the new voters, below what an old one has accepted; and
    should that one return, its value would win.
    """

    asked: int
    voter: str


@dataclass(frozen=True, slots=True)
class Wait:
    """→ on_waited"""

    asked: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """No change is under way any more. `voters`: who votes now, maybe not whom the runner wanted."""

    voters: VoterSet


@dataclass(frozen=True, slots=True)
class GaveUp:
    reason: str
    voters: VoterSet


Effect = Settle | Call | ListKeys | Wait | Finished | GaveUp


class _Phase(Enum):
    PROPOSE = auto()
    READ = auto()
    TELL = auto()
    LIST = auto()
    REWRITE = auto()
    FINISH = auto()
    SET_BACK = auto()
    WAIT = auto()
    OVER = auto()


class VoterChange:
    """Brings the voters from `known` to `target`; with no target it only finishes what it finds.

    `known`: the newest set that this agent has heard of. `tag`: new for every runner, for ever.
    """

    def __init__(self, known: VoterSet, target: frozenset[str] | None, *, tag: str) -> None:
        self._known = known
        self._target = target
        self._tag = tag
        self._phase = _Phase.WAIT
        self._asked = 0
        self._failures = 0
        self._silent_rounds = 0
        self._told: set[str] = set()
        self._silent: set[str] = set()
        self._listed: dict[str, frozenset[str]] = {}
        self._to_rewrite: list[str] = []
        self._rewriting: set[str] = set()

    def begin(self) -> list[Effect]:
        return self._next()

    def on_settled(self, asked: int, key: str, outcome: Outcome) -> list[Effect]:
        if asked != self._asked:
            return []
        match self._phase, outcome:
            case _Phase.REWRITE, Found():
                self._rewriting.discard(key)
                return self._rewrite()
            case _Phase.READ, Found(current):
                return self._found(current)
            case _Phase.PROPOSE, Written() if self._target is not None:
                self._known = VoterSet(self._known.number + 1, self._target, joint=self._known.members)
                # Once proposed it is finished or set back, by whomever; it is not proposed again.
                self._target = None
                return self._next()
            case _Phase.FINISH, Written():
                return self._over(VoterSet(self._known.number + 1, self._known.members))
            case _Phase.SET_BACK, Written():
                return self._over(VoterSet(self._known.number + 1, self._old))
            case _Phase.SET_BACK, Conflicting(current):
                return self._found_by_old(current)
            case _, Conflicting(current):
                return self._found(current)
        return self._again("a write of the voters could not be settled")

    def on_answer(self, asked: int, voter: str, answer: Answer) -> list[Effect]:
        if asked != self._asked or self._phase is not _Phase.TELL:
            return []
        match answer:
            case Adopted():
                self._told.add(voter)
                return self._list() if self._known.is_quorum(self._told) else self._too_few_told()
            case Refused(_, _, number) if number > self._known.number:
                return [Call(asked, voter, Ask(Ballot(asked, self._tag)))]
            case Told(_, VoterSet() as newer) if newer.number > self._known.number:
                return self.on_newer(asked, newer)
        return self.on_failed(asked, voter)

    def on_keys(self, asked: int, voter: str, keys: Iterable[str]) -> list[Effect]:
        if asked != self._asked or self._phase is not _Phase.LIST:
            return []
        self._listed[voter] = frozenset(keys)
        if not self._known.is_quorum(self._listed):
            return []
        everything = frozenset[str]().union(*self._listed.values())
        # The key of the voters goes to the new with the CAS that ends the change.
        return self._begin_rewriting(everything - {VOTERS_KEY})

    def on_newer(self, asked: int, newer: VoterSet) -> list[Effect]:
        """A set that was chosen later than the known one."""
        if asked != self._asked or newer.number <= self._known.number:
            return []
        self._known = newer
        return self._next()

    def on_failed(self, asked: int, voter_or_key: str) -> list[Effect]:
        """No answer within the deadline of the call, or of the operation on a key."""
        if asked != self._asked or self._phase is _Phase.OVER:
            return []
        self._silent.add(voter_or_key)
        if self._phase is _Phase.TELL:
            return self._too_few_told()
        if self._phase is _Phase.LIST and self._known.is_quorum(self._told - self._silent):
            return []
        return self._again(f"no answer from {voter_or_key}")

    def on_waited(self, asked: int) -> list[Effect]:
        return self._next() if asked == self._asked else []

    @property
    def _old(self) -> frozenset[str]:
        return self._known.joint or self._known.members

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._asked += 1
        self._silent = set()

    def _next(self) -> list[Effect]:
        if self._known.joint is not None:
            return self._tell()
        if self._target is None:
            if self._phase in (_Phase.WAIT, _Phase.TELL):  # who only finishes may have missed it all
                return self._read()
            return self._over(self._known)
        if self._known.members == self._target:
            return self._over(self._known)
        return self._cas(_Phase.PROPOSE, self._target, joint=self._known.members)

    def _cas(
        self, phase: _Phase, members: frozenset[str], joint: frozenset[str] | None = None
    ) -> list[Effect]:
        self._enter(phase)
        number = self._known.number
        data = encode_voters(VoterSet(number + 1, members, joint))
        write = Write(number, data, f"{self._tag}/{self._asked}")
        return [Settle(self._asked, VOTERS_KEY, write, self._known, old_alone=phase is _Phase.SET_BACK)]

    def _read(self) -> list[Effect]:
        self._enter(_Phase.READ)
        return [Settle(self._asked, VOTERS_KEY, Read(), self._known)]

    def _found(self, current: Value) -> list[Effect]:
        """What a quorum of the known set holds: it was chosen."""
        if current.data is None:
            return self._again("the key of the voters is empty")
        self._known = decode_voters(current.data)
        return self._next()

    def _found_by_old(self, current: Value) -> list[Effect]:
        """What a majority of the old holds. That suffices to go back to the old, and for nothing else."""
        if current.data is not None and decode_voters(current.data).members == self._old:
            return self._found(current)
        return self._read()

    def _tell(self) -> list[Effect]:
        self._enter(_Phase.TELL)
        self._told = set()
        return self._calls(self._known.everyone())

    def _calls(self, voters: Collection[str]) -> list[Effect]:
        adopt = Adopt(Ballot(self._asked, self._tag), self._known)
        return [Call(self._asked, voter, adopt) for voter in sorted(voters)]

    def _too_few_told(self) -> list[Effect]:
        if self._told | self._silent < self._known.everyone():
            return []
        if not is_majority(self._told, self._old):
            return self._again("too few of the old voters answer")
        self._silent_rounds += 1
        if self._silent_rounds < ROUNDS_OF_PATIENCE:
            return self._again("too few of the new voters answer")
        return self._cas(_Phase.SET_BACK, self._old)

    def _list(self) -> list[Effect]:
        self._enter(_Phase.LIST)
        self._listed, self._silent_rounds = {}, 0
        # Only those that adopted the set: another may yet accept a key by the old one, after its answer.
        return [ListKeys(self._asked, voter) for voter in sorted(self._told)]

    def _begin_rewriting(self, keys: Collection[str]) -> list[Effect]:
        self._enter(_Phase.REWRITE)
        self._to_rewrite, self._rewriting = sorted(keys, reverse=True), set()
        return self._rewrite()

    def _rewrite(self) -> list[Effect]:
        """A read by both sets writes what it finds to both."""
        effects: list[Effect] = []
        while self._to_rewrite and len(self._rewriting) < REWRITES_AT_ONCE:
            key = self._to_rewrite.pop()
            self._rewriting.add(key)
            effects.append(Settle(self._asked, key, Read(), self._known))
        return effects if self._rewriting else self._cas(_Phase.FINISH, self._known.members)

    def _over(self, voters: VoterSet) -> list[Effect]:
        """Everybody is told, those who left, too: who still asks them hears whom to ask."""
        everyone = self._known.everyone() | voters.everyone()
        self._known = voters
        self._enter(_Phase.OVER)
        return [*self._calls(everyone), Finished(voters)]

    def _again(self, reason: str) -> list[Effect]:
        self._failures += 1
        self._enter(_Phase.WAIT)
        if self._failures > FAILURES_MAX:
            self._enter(_Phase.OVER)
            return [GaveUp(reason, self._known)]
        return [Wait(self._asked, RETRY_S)]
