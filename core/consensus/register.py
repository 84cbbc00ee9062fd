"""CASPaxos registers (Rystsov 2018): what an acceptor may answer, how a proposer reads and changes a key.

Values in, effects out. An acceptor is two functions of its durable cell; a proposer runs one `Operation`
at a time on a key, as often as ballots collide, until it is settled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from core.errors import InvariantBroken

TAGS_KEPT = 16
"""Writers that a value remembers. A write whose answer was lost is settled if fewer came after it."""

ADOPTED_KEY = ".voters"
"""An acceptor's own cell, which no ballot touches: the newest set of voters that it was told."""


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
    """Who votes. While voters change, `joint` holds the old set, and a quorum needs both majorities.

    `number` is the version of the key `voters` that holds it. A member is an acceptor, not a machine: one
    that lost its disk comes back under another name.
    """

    number: int
    members: frozenset[str]
    joint: frozenset[str] | None = None

    def everyone(self) -> frozenset[str]:
        return self.members | (self.joint or frozenset())

    def is_quorum(self, answered: Collection[str]) -> bool:
        sets = [self.members] if self.joint is None else [self.members, self.joint]
        return all(is_majority(answered, voters) for voters in sets)

    def is_old_quorum(self, answered: Collection[str]) -> bool:
        """Enough to set a change back: a majority of those who voted before it."""
        return is_majority(answered, self.members if self.joint is None else self.joint)


def is_majority(answered: Collection[str], voters: frozenset[str]) -> bool:
    return len(voters & set(answered)) > len(voters) // 2


def encode_voters(voters: VoterSet) -> bytes:
    return msgspec.json.encode(voters, order="deterministic")


def decode_voters(data: bytes) -> VoterSet:
    return msgspec.json.decode(data, type=VoterSet)


# Messages. `voters` in Prepare and Accept is the number of the voter set that the proposer believes in.


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
class Adopt:
    """Keep this set, which was chosen, and refuse who believes in an older one. `ballot` names the asker."""

    ballot: Ballot
    voters: VoterSet
    key: str = ADOPTED_KEY


@dataclass(frozen=True, slots=True)
class Ask:
    """Which set of voters did you adopt?"""

    ballot: Ballot
    key: str = ADOPTED_KEY


@dataclass(frozen=True, slots=True)
class Promise:
    ballot: Ballot
    accepted: Ballot
    value: Value


@dataclass(frozen=True, slots=True)
class Accepted:
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Adopted:
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Told:
    """None: this acceptor heard of no set but its first, and of that only the number."""

    ballot: Ballot
    voters: VoterSet | None


@dataclass(frozen=True, slots=True)
class Refused:
    """`ballot` asked too late: a higher one is promised; or it believes in other voters than `voters`.

    If those are newer, ask the acceptor for them; if they are older, tell it yours and ask again.
    """

    ballot: Ballot
    promised: Ballot
    voters: int


Request = Prepare | Accept | Adopt | Ask
Answer = Promise | Accepted | Adopted | Told | Refused


@dataclass(frozen=True, slots=True)
class Step:
    """What an acceptor must fsync, then remember, and only then answer. None: nothing new to keep."""

    persist: Cell | None
    adopt_voters: int | None
    answer: Answer


def on_request(cell: Cell, voters: int, m: Request) -> Step:
    """An acceptor's whole rule. `cell` (of `m.key`) and `voters` are what its disk holds, no more."""
    match m:
        case Prepare() | Accept():
            return _on_ballot(cell, voters, m)
        case Adopt():
            return _on_adopt(cell, voters, m)
        case Ask():
            return Step(
                None, None, Told(m.ballot, decode_voters(cell.value.data) if cell.value.data else None)
            )


def _on_ballot(cell: Cell, voters: int, m: Prepare | Accept) -> Step:
    # It adopts a number with its set only (its first excepted), so who refuses can tell the newer set.
    if (voters and m.voters != voters) or m.ballot < cell.promised:
        return Step(None, None, Refused(m.ballot, cell.promised, voters))
    adopt = m.voters if m.voters != voters else None
    if isinstance(m, Prepare):
        kept = None if m.ballot == cell.promised else Cell(m.ballot, cell.accepted, cell.value)
        return Step(kept, adopt, Promise(m.ballot, cell.accepted, cell.value))
    kept = None if m.ballot == cell.accepted else Cell(m.ballot, m.ballot, m.value)
    return Step(kept, adopt, Accepted(m.ballot))


def _on_adopt(cell: Cell, voters: int, m: Adopt) -> Step:
    number = m.voters.number
    if number < voters:
        return Step(None, None, Refused(m.ballot, NO_BALLOT, voters))
    if number == voters and cell.value.version == number:
        return Step(None, None, Adopted(m.ballot))
    kept = Cell(value=Value(number, encode_voters(m.voters)))
    return Step(kept, number if number != voters else None, Adopted(m.ballot))


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
    """This ballot lost: begin anew with a counter above `counter`, by `voters`, the newest set heard of."""

    counter: int
    voters: VoterSet


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
    """One read or write of a key: `begin` with a ballot, feed it the answers, begin again after `Again`.

    `old_alone`: by a majority of the old set of joint voters, which is for setting their change back only.
    """

    def __init__(self, key: str, change: Change, *, old_alone: bool = False) -> None:
        self._key = key
        self._change = change
        self._is_quorum = VoterSet.is_old_quorum if old_alone else VoterSet.is_quorum
        self._voters = VoterSet(0, frozenset())
        self._ballot = NO_BALLOT
        self._promises: dict[str, Promise] = {}
        self._accepted: set[str] = set()
        self._proposed = Value()
        self._outcome: Outcome | None = None  # what it will be once a quorum has accepted
        self._wrote_before = False  # an Accept of our own data is out there
        self._open = False

    def begin(self, ballot: Ballot, voters: VoterSet) -> list[Effect]:
        if ballot <= self._ballot:
            raise InvariantBroken(f"register {self._key}: ballot {ballot} was used before")
        self._ballot, self._voters, self._open = ballot, voters, True
        self._promises, self._accepted, self._outcome = {}, set(), None
        request = self._request()
        return [Send(v, request) for v in sorted(voters.everyone())]

    def on_answer(self, voter: str, answer: Answer) -> list[Effect]:
        """Answers to other ballots, of strangers, or after the end count for nothing."""
        if not self._open or answer.ballot != self._ballot or voter not in self._voters.everyone():
            return []
        match answer:
            case Promise():
                return self._on_promise(voter, answer)
            case Accepted():
                return self._on_accepted(voter)
            case Refused():
                return self._on_refused(voter, answer)
            case Adopted():
                return [Send(voter, self._request())]
            case Told(_, voters):
                if voters is None or voters.number <= self._voters.number:
                    return []
                self._open = False
                return [Again(self._ballot.counter, voters)]

    def _on_promise(self, voter: str, promise: Promise) -> list[Effect]:
        if self._outcome is not None:
            return []
        self._promises[voter] = promise
        if not self._is_quorum(self._voters, self._promises):
            return []
        newest = max(self._promises.values(), key=lambda p: p.accepted)
        self._proposed, self._outcome = self._decide(newest.value)
        request = self._request()
        return [Send(v, request) for v in sorted(self._voters.everyone())]

    def _on_accepted(self, voter: str) -> list[Effect]:
        self._accepted.add(voter)
        if self._outcome is None or not self._is_quorum(self._voters, self._accepted):
            return []
        self._open = False
        return [Done(self._outcome)]

    def _on_refused(self, voter: str, refused: Refused) -> list[Effect]:
        if refused.voters > self._voters.number:
            return [Send(voter, Ask(self._ballot))]
        if refused.voters < self._voters.number:
            return [Send(voter, Adopt(self._ballot, self._voters))]
        self._open = False
        return [Again(refused.promised.counter, self._voters)]

    def _request(self) -> Prepare | Accept:
        if self._outcome is None:
            return Prepare(self._key, self._ballot, self._voters.number)
        return Accept(self._key, self._ballot, self._voters.number, self._proposed)

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
