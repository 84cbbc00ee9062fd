"""CASPaxos registers (Rystsov 2018): what an acceptor may answer, how a proposer reads and changes a key.

Values in, effects out. An acceptor is two functions of its durable cell; a proposer runs one `Operation`
at a time on a key, as often as ballots collide, until it is settled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from core.errors import InvariantBroken

TAGS_KEPT = 16
"""Writers that a value remembers. A write whose answer was lost is settled if fewer came after it."""


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """Totally ordered; the proposer's id is new at each of its starts, so no ballot is ever used twice."""

    counter: int = 0
    proposer: str = ""


NO_BALLOT = Ballot()


@dataclass(frozen=True, slots=True)
class Value:
    """What a key holds: version 0 is nothing yet; data None is deleted. `tags`: its writers, newest first."""

    version: int = 0
    data: bytes | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """An acceptor's durable state of one key."""

    promised: Ballot = NO_BALLOT
    accepted: Ballot = NO_BALLOT
    value: Value = field(default_factory=Value)


@dataclass(frozen=True, slots=True)
class VoterSet:
    """Who votes. While voters change, `joint` holds the other set, and a quorum needs both majorities."""

    number: int
    members: frozenset[str]
    joint: frozenset[str] | None = None

    def everyone(self) -> frozenset[str]:
        return self.members | (self.joint or frozenset())

    def is_quorum(self, answered: Collection[str]) -> bool:
        sets = [self.members] if self.joint is None else [self.members, self.joint]
        return all(len(voters & set(answered)) > len(voters) // 2 for voters in sets)


# Messages. `voters` is the number of the voter set that the proposer believes in.


@dataclass(frozen=True, slots=True)
class Prepare:
    key: str
    ballot: Ballot
    voters: int


@dataclass(frozen=True, slots=True)
class Accept:
    key: str
    ballot: Ballot
    voters: int
    value: Value


@dataclass(frozen=True, slots=True)
class Promise:
    ballot: Ballot
    accepted: Ballot
    value: Value


@dataclass(frozen=True, slots=True)
class Accepted:
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Refused:
    """`ballot` asked too late: a higher one is promised, or the acceptor knows a newer set of voters."""

    ballot: Ballot
    promised: Ballot
    voters: int


Request = Prepare | Accept
Answer = Promise | Accepted | Refused


@dataclass(frozen=True, slots=True)
class Step:
    """What an acceptor must fsync, then remember, and only then answer. None: nothing new to keep."""

    persist: Cell | None
    adopt_voters: int | None
    answer: Answer


def on_request(cell: Cell, voters: int, m: Request) -> Step:
    """An acceptor's whole rule. `cell` and `voters` are what its disk holds, no more."""
    if m.voters < voters or m.ballot < cell.promised:
        return Step(None, None, Refused(m.ballot, cell.promised, voters))
    adopt = m.voters if m.voters > voters else None
    if isinstance(m, Prepare):
        kept = None if m.ballot == cell.promised else Cell(m.ballot, cell.accepted, cell.value)
        return Step(kept, adopt, Promise(m.ballot, cell.accepted, cell.value))
    kept = None if m.ballot == cell.accepted else Cell(m.ballot, m.ballot, m.value)
    return Step(kept, adopt, Accepted(m.ballot))


# The proposer.


@dataclass(frozen=True, slots=True)
class Read:
    """A linearizable read: it, too, writes back what it found, or a value seen here could vanish."""


@dataclass(frozen=True, slots=True)
class Write:
    """Set `data` (None deletes) if the version is still `expected`. `tag` names this write for ever."""

    expected: int
    data: bytes | None
    tag: str


Change = Read | Write


@dataclass(frozen=True, slots=True)
class Found:
    value: Value


@dataclass(frozen=True, slots=True)
class Written:
    version: int


@dataclass(frozen=True, slots=True)
class Conflicting:
    """Another version is there; this write did not take effect and never will."""

    current: Value


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An earlier try may have taken effect and been overwritten so often that nobody remembers."""

    current: Value


Outcome = Found | Written | Conflicting | Unsettled


@dataclass(frozen=True, slots=True)
class Send:
    voter: str
    request: Request


@dataclass(frozen=True, slots=True)
class Again:
    """This ballot lost: begin anew with a counter above `counter`. `voters`: the newest set heard of."""

    counter: int
    voters: int


@dataclass(frozen=True, slots=True)
class Done:
    outcome: Outcome


Effect = Send | Again | Done


class Ballots:
    """A proposer's ballots: each higher than all that it used or heard of."""

    def __init__(self, proposer: str) -> None:
        self._last = Ballot(0, proposer)

    def next(self, above: int = 0) -> Ballot:
        self._last = Ballot(max(self._last.counter, above) + 1, self._last.proposer)
        return self._last


class Operation:
    """One read or write of a key: `begin` with a ballot, feed it the answers, begin again after `Again`."""

    def __init__(self, key: str, change: Change) -> None:
        self._key = key
        self._change = change
        self._voters = VoterSet(0, frozenset())
        self._ballot = NO_BALLOT
        self._promises: dict[str, Promise] = {}
        self._accepted: set[str] = set()
        self._outcome: Outcome | None = None  # what it will be once a quorum has accepted
        self._wrote_before = False  # an Accept of our own data is out there
        self._open = False

    def begin(self, ballot: Ballot, voters: VoterSet) -> list[Effect]:
        if ballot <= self._ballot:
            raise InvariantBroken(f"register {self._key}: ballot {ballot} was used before")
        self._ballot, self._voters, self._open = ballot, voters, True
        self._promises, self._accepted, self._outcome = {}, set(), None
        return [Send(v, Prepare(self._key, ballot, voters.number)) for v in sorted(voters.everyone())]

    def on_answer(self, voter: str, answer: Answer) -> list[Effect]:
        """Answers to other ballots, of strangers, or after the end count for nothing."""
        if not self._open or answer.ballot != self._ballot or voter not in self._voters.everyone():
            return []
        match answer:
            case Refused():
                self._open = False
                return [Again(answer.promised.counter, answer.voters)]
            case Promise():
                return self._on_promise(voter, answer)
            case Accepted():
                return self._on_accepted(voter)

    def _on_promise(self, voter: str, promise: Promise) -> list[Effect]:
        if self._outcome is not None:
            return []
        self._promises[voter] = promise
        if not self._voters.is_quorum(self._promises):
            return []
        newest = max(self._promises.values(), key=lambda p: p.accepted)
        proposed, self._outcome = self._decide(newest.value)
        accept = Accept(self._key, self._ballot, self._voters.number, proposed)
        return [Send(v, accept) for v in sorted(self._voters.everyone())]

    def _on_accepted(self, voter: str) -> list[Effect]:
        self._accepted.add(voter)
        if self._outcome is None or not self._voters.is_quorum(self._accepted):
            return []
        self._open = False
        return [Done(self._outcome)]

    def _decide(self, current: Value) -> tuple[Value, Outcome]:
        """What to propose, and what it means once it is chosen.

        A conflict proposes what it found: only then can no older, slower Accept of ours be chosen.
        """
        change = self._change
        if isinstance(change, Read):
            return current, Found(current)
        if change.tag in current.tags:
            return current, Written(current.version - current.tags.index(change.tag))
        if current.version == change.expected:
            self._wrote_before = True
            tags = (change.tag, *current.tags)[:TAGS_KEPT]
            return Value(current.version + 1, change.data, tags), Written(current.version + 1)
        forgotten = current.version - change.expected > TAGS_KEPT
        if self._wrote_before and forgotten:
            return current, Unsettled(current)
        return current, Conflicting(current)
