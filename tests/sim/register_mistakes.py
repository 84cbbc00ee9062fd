"""Mistakes planted in the register and the election, here only: the simulator must catch each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from core.consensus import register
from core.consensus.lease import NOBODY, Election, Lease, _Attempt
from core.consensus.lease import Effect as LeaseEffect
from core.consensus.register import (
    Accept,
    Cell,
    Conflicting,
    Done,
    Effect,
    Found,
    Operation,
    Outcome,
    Prepare,
    Promise,
    Request,
    Step,
    Value,
    VoterSet,
    Write,
    Written,
    on_request,
)
from core.consensus.voters import VOTERS_KEY, ListKeys, Settle, VoterChange, _Phase
from core.consensus.voters import Effect as ChangeEffect
from tests.sim.register_nodes import AcceptorNode, Agent
from tests.sim.register_world import World

Planted = AbstractContextManager[Any]


@dataclass(frozen=True)
class Mistake:
    """`plant` puts it in while its context lasts. `rare`: only a test made for it catches it for sure."""

    name: str
    plant: Callable[[], Planted]
    rare: bool = False


@contextmanager
def replaced(*changes: tuple[object, str, object]) -> Iterator[None]:
    """Attributes of modules and classes, other ones for a while."""
    with ExitStack() as stack:
        for target, name, other in changes:
            stack.callback(setattr, target, name, vars(target)[name])
            setattr(target, name, other)
        yield


# The acceptor.


def _lower_ballot_accepted() -> Planted:
    def rule(cell: Cell, voters: int, m: Request) -> Step:
        return on_request(Cell(value=cell.value) if isinstance(m, Accept) else cell, voters, m)

    return replaced((register, "on_request", rule))


def _older_voters_accepted() -> Planted:
    def rule(cell: Cell, voters: int, m: Request) -> Step:
        believed = m.voters if isinstance(m, Prepare | Accept) and m.voters < voters else voters
        return on_request(cell, believed, m)

    return replaced((register, "on_request", rule))


def _answered_before_sync(kind: type[Prepare] | type[Accept]) -> Planted:
    return replaced((AcceptorNode, "answers_before_sync", lambda self, request: isinstance(request, kind)))


def _number_not_durable() -> Planted:
    return replaced((AcceptorNode, "keeps_voters", lambda self, voters: 0))


def _disk_lost_and_back() -> Planted:
    def lose_disk(self: World, node: AcceptorNode) -> None:
        node.crash()
        node.disk_voters, node.disk = 0, {}
        self.schedule.after(0.05, self.restart_acceptor, node)

    return replaced((World, "lose_disk", lose_disk))


def _promises_not_listed() -> Planted:
    def receive_list(self: AcceptorNode, reply: Callable[[list[str]], None]) -> None:
        if self.up:
            reply(sorted(key for key, cell in self.disk.items() if cell.value.version and key[0] != "."))

    return replaced((AcceptorNode, "receive_list", receive_list))


# The proposer.


def _same_proposer_after_restart() -> Planted:
    return replaced((Agent, "proposer", lambda self: self.name))


def _answered_after_prepare(kind: type[Found] | type[Conflicting]) -> Planted:
    original = Operation._on_promise

    def on_promise(self: Operation, voter: str, promise: Promise) -> list[Effect]:
        effects = original(self, voter, promise)
        if effects and isinstance(self._outcome, kind):
            self._open = False
            return [Done(self._outcome)]
        return effects

    return replaced((Operation, "_on_promise", on_promise))


def _lost_answers_guessed() -> Planted:
    original = Operation._decide

    def decide(self: Operation, current: Value) -> tuple[Value, Outcome]:
        if isinstance(self._change, Write) and current.version != self._change.expected:
            return current, Conflicting(current)
        return original(self, current)

    return replaced((Operation, "_decide", decide))


# The change of voters.


def _union_counts() -> Planted:
    def is_quorum(self: VoterSet, answered: set[str]) -> bool:
        return register.is_majority(answered, self.everyone())

    return replaced((VoterSet, "is_quorum", is_quorum))


def _no_joint_step() -> Planted:
    on_settled = VoterChange.on_settled

    def settled(self: VoterChange, asked: int, key: str, outcome: Outcome) -> list[ChangeEffect]:
        if asked == self._asked and self._phase is _Phase.PROPOSE and isinstance(outcome, Written):
            assert self._target is not None
            return self._over(VoterSet(self._known.number + 1, self._target))
        return on_settled(self, asked, key, outcome)

    cas = VoterChange._cas

    def alone(
        self: VoterChange, phase: _Phase, members: frozenset[str], joint: frozenset[str] | None = None
    ) -> list[ChangeEffect]:
        return cas(self, phase, members)

    return replaced((VoterChange, "on_settled", settled), (VoterChange, "_cas", alone))


def _keys_not_rewritten() -> Planted:
    begin = VoterChange._begin_rewriting
    return replaced((VoterChange, "_begin_rewriting", lambda self, keys: begin(self, [])))


def _listed_before_closed() -> Planted:
    """A majority of the old is asked for its keys first, everybody is told the joint set after that."""
    tell, begin, on_keys = VoterChange._tell, VoterChange._begin_rewriting, VoterChange.on_keys
    early: dict[VoterChange, set[str]] = {}

    def list_first(self: VoterChange) -> list[ChangeEffect]:
        self._enter(_Phase.LIST)
        self._told, self._listed, early[self] = set(self._known.everyone()), {}, set()
        return [ListKeys(self._asked, voter) for voter in sorted(self._told)]

    def then_tell(self: VoterChange, asked: int, voter: str, keys: list[str]) -> list[ChangeEffect]:
        if asked != self._asked or self._phase is not _Phase.LIST:
            return on_keys(self, asked, voter, keys)
        early[self] |= set(keys)
        self._listed[voter] = frozenset()
        return tell(self) if self._known.is_old_quorum(self._listed) else []

    return replaced(
        (VoterChange, "_tell", list_first),
        (VoterChange, "on_keys", then_tell),
        (VoterChange, "_list", lambda self: begin(self, early[self] - {VOTERS_KEY})),
    )


def _never_set_back() -> Planted:
    cas = VoterChange._cas

    def wait(
        self: VoterChange, phase: _Phase, members: frozenset[str], joint: frozenset[str] | None = None
    ) -> list[ChangeEffect]:
        return self._again("still silent") if phase is _Phase.SET_BACK else cas(self, phase, members, joint)

    return replaced((VoterChange, "_cas", wait))


def _set_back_by_anybody() -> Planted:
    """Not by a majority of the old, but by any one of them."""
    return replaced(
        (VoterSet, "is_old_quorum", lambda self, answered: bool((self.joint or set()) & set(answered)))
    )


def _finished_by_the_new_alone() -> Planted:
    """The last CAS needs a majority of the new only."""
    cas = VoterChange._cas

    def by_new(
        self: VoterChange, phase: _Phase, members: frozenset[str], joint: frozenset[str] | None = None
    ) -> list[ChangeEffect]:
        effects = cas(self, phase, members, joint)
        if phase is not _Phase.FINISH:
            return effects
        (settle,) = effects
        assert isinstance(settle, Settle)
        return [replace(settle, voters=replace(self._known, joint=None))]

    return replaced((VoterChange, "_cas", by_new))


def _believes_the_old_alone() -> Planted:
    return replaced((VoterChange, "_found_by_old", VoterChange._found))


# The election.


def _counted_from_the_answer() -> Planted:
    won = Election._won

    def late(self: Election, wrote: _Attempt, now_s: float) -> list[LeaseEffect]:
        return won(self, replace(wrote, sent_s=now_s), now_s)

    return replaced((Election, "_won", late))


def _takeover_too_early() -> Planted:
    def free_s(self: Election) -> float:
        if self._lease is None or self._lease.holder == NOBODY:
            return float("-inf")
        return self._unmoved_since_s + self._lease.ttl_s / 2

    return replaced((Election, "_free_s", property(free_s)))


def _wants(change: Callable[[Election, Lease], Lease]) -> Planted:
    wanted = Election._wanted

    def other(self: Election, now_s: float) -> Lease | None:
        lease = wanted(self, now_s)
        return change(self, lease) if lease is not None else None

    return replaced((Election, "_wanted", other))


def _stepping_down_resets_the_term() -> Planted:
    return _wants(lambda _, lease: replace(lease, term=0) if lease.holder == NOBODY else lease)


def _takeover_keeps_the_term() -> Planted:
    return _wants(lambda _, lease: replace(lease, term=max(1, lease.term - (lease.renewals == 0))))


MISTAKES = (
    Mistake("a lower ballot is accepted", _lower_ballot_accepted),
    Mistake("an older number of voters is accepted", _older_voters_accepted),
    Mistake("an accept is answered before it is synced", lambda: _answered_before_sync(Accept)),
    Mistake("a promise is answered before it is synced", lambda: _answered_before_sync(Prepare), rare=True),
    Mistake("an acceptor's number of voters is not durable", _number_not_durable, rare=True),
    Mistake("a lost disk comes back as the same voter", _disk_lost_and_back),
    Mistake("two starts share a proposer id", _same_proposer_after_restart),
    Mistake("a read is answered after the promises", lambda: _answered_after_prepare(Found)),
    Mistake("a conflict is answered after the promises", lambda: _answered_after_prepare(Conflicting)),
    Mistake("a write whose answer was lost is guessed failed", _lost_answers_guessed),
    Mistake("a majority of the union counts", _union_counts),
    Mistake("voters change without the joint step", _no_joint_step),
    Mistake("keys are not rewritten", _keys_not_rewritten),
    Mistake("keys are listed before the old set is closed", _listed_before_closed, rare=True),
    Mistake("keys that are only promised are not listed", _promises_not_listed, rare=True),
    Mistake("a silent new set is never set back", _never_set_back),
    Mistake("a change is set back by any one of the old", _set_back_by_anybody),
    Mistake("a change is finished by the new alone", _finished_by_the_new_alone),
    Mistake("the lease is counted from the answer", _counted_from_the_answer),
    Mistake("a takeover comes too early", _takeover_too_early),
    Mistake("a takeover keeps the term", _takeover_keeps_the_term),
    Mistake("stepping down resets the term", _stepping_down_resets_the_term),
    Mistake("what the old alone found is believed", _believes_the_old_alone, rare=True),
)
