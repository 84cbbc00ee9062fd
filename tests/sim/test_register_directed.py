"""What random schedules hardly ever catch, in schedules made for it: right, and wrong with the mistake in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from core.consensus import register
from core.consensus.register import (
    NO_BALLOT,
    Again,
    Answer,
    Ballots,
    Change,
    Done,
    Effect,
    Found,
    Operation,
    Outcome,
    Read,
    Request,
    Send,
    VoterSet,
    Write,
    Written,
)
from core.consensus.voters import Call, Finished, ListKeys, Settle, VoterChange
from core.consensus.voters import Effect as ChangeEffect
from tests.sim.register_mistakes import MISTAKES, Planted
from tests.sim.register_nodes import AcceptorNode
from tests.sim.register_world import World
from tests.sim.schedule import Schedule

BALLOTS_MAX = 50
SEED_THAT_KEEPS_NOTHING = 1  # of two ways in which a crash may end
Reach = Callable[[str, Request], bool]


def planted(name: str, wrong: bool) -> Planted:
    (mistake,) = (m for m in MISTAKES if m.name == name)
    return mistake.plant() if wrong else nullcontext()


def _nothing() -> None:
    """Happens before the voters are told of a change, unless a test has something to do."""


class Voters:
    """Acceptors that answer at once, but for what `reach` keeps from them."""

    def __init__(self) -> None:
        self.world = World(Schedule(0), "leaders")  # no node of which is used but ours
        self.world.sync_s = 0.0
        self.nodes: dict[str, AcceptorNode] = {}

    def node(self, voter: str) -> AcceptorNode:
        return self.nodes.setdefault(voter, AcceptorNode(self.world, voter))

    def ask(self, voter: str, request: Request) -> Answer | None:
        answers: list[Answer] = []
        self.node(voter).receive(request, answers.append)
        return answers[0] if answers else None

    def keys(self, voter: str) -> list[str]:
        found: list[list[str]] = []
        self.node(voter).receive_list(found.append)
        return found[0]

    def settle(
        self, key: str, change: Change, ballots: Ballots, voters: VoterSet, reach: Reach = lambda *_: True
    ) -> Outcome | None:
        """Round after round; None if too few can be reached."""
        operation, above = Operation(key, change), 0
        for _ in range(BALLOTS_MAX):
            ended = self._round(operation, operation.begin(ballots.next(above), voters), reach)
            if not isinstance(ended, Again):
                return ended.outcome if ended else None
            above, voters = ended.counter, ended.voters
        return None

    def _round(self, operation: Operation, effects: list[Effect], reach: Reach) -> Done | Again | None:
        queue = [*effects]
        while queue:
            effect = queue.pop(0)
            if not isinstance(effect, Send):
                return effect
            if reach(effect.voter, effect.request):
                answer = self.ask(effect.voter, effect.request)
                queue += operation.on_answer(effect.voter, answer) if answer else []
        return None

    def change(
        self,
        known: VoterSet,
        target: str,
        ballots: Ballots,
        before_telling: Callable[[], object] = _nothing,
    ) -> VoterSet:
        runner = VoterChange(known, frozenset(target), tag=f"to {target} from {known.number}")
        queue = runner.begin()
        while queue:
            effect = queue.pop(0)
            if isinstance(effect, Finished):
                return effect.voters
            if isinstance(effect, Call):
                before_telling()
                before_telling = _nothing
            queue += self._step(runner, effect, ballots)
        raise AssertionError("the change did not end")

    def _step(self, runner: VoterChange, effect: ChangeEffect, ballots: Ballots) -> list[ChangeEffect]:
        match effect:
            case Settle(asked, key, change, voters):
                outcome = self.settle(key, change, ballots, voters)
                assert outcome is not None
                return runner.on_settled(asked, key, outcome)
            case Call(asked, voter, request):
                answer = self.ask(voter, request)
                assert answer is not None
                return runner.on_answer(asked, voter, answer)
            case ListKeys(asked, voter):
                return runner.on_keys(asked, voter, self.keys(voter))
        raise AssertionError(effect)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_voter_that_returns_brings_no_old_ballot_of_a_key_that_was_only_read(wrong: bool) -> None:
    voters, high, low = Voters(), Ballots("high"), Ballots("low")
    high.next(above=1_000)
    first = VoterSet(1, frozenset("a"))
    with planted("keys that are only promised are not listed", wrong):
        assert voters.settle("voters", Write(0, register.encode_voters(first), "begin"), low, first)
        # A read of nothing leaves a high ballot at a, and no value.
        assert isinstance(voters.settle("new", Read(), high, first), Found)
        second = voters.change(first, "b", low)
        assert voters.settle("new", Write(0, b"x", "w"), low, second) == Written(1)
        third = voters.change(second, "abc", low)
        found = voters.settle("new", Read(), low, third)
    assert isinstance(found, Found)
    assert found.value.data == (None if wrong else b"x")


@pytest.mark.parametrize("wrong", [False, True])
def test_a_key_that_the_old_wrote_until_they_were_told_moves_to_the_new(wrong: bool) -> None:
    voters, runner, client = Voters(), Ballots("runner"), Ballots("client")
    first = VoterSet(1, frozenset("abc"))

    def write_by_the_old() -> None:
        assert voters.settle("late", Write(0, b"x", "w"), client, first) == Written(1)

    with planted("keys are listed before the old set is closed", wrong):
        assert voters.settle("voters", Write(0, register.encode_voters(first), "begin"), runner, first)
        new = voters.change(first, "xyz", runner, write_by_the_old)
        found = voters.settle("late", Read(), client, new)
    assert isinstance(found, Found)
    assert found.value.data == (None if wrong else b"x")


@pytest.mark.parametrize("wrong", [False, True])
def test_a_promise_that_was_answered_is_not_forgotten_by_a_crash(wrong: bool) -> None:
    voters, answers = Voters(), list[Answer]()
    older, newer = Ballots("older").next(), Ballots("newer").next(above=5)
    with planted("a promise is answered before it is synced", wrong):
        voters.ask("b", register.Prepare("k", older, 1))
        voters.world.sync_s = 1.0
        voters.nodes["b"].receive(register.Prepare("k", newer, 1), answers.append)
        voters.world.schedule.chance.seed(SEED_THAT_KEEPS_NOTHING)
        voters.nodes["b"].crash()
        voters.nodes["b"].restart()
    assert voters.nodes["b"].disk["k"].promised == older
    assert len(answers) == wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_a_crash_does_not_reopen_a_closed_set_of_voters(wrong: bool) -> None:
    voters, ballots = Voters(), Ballots("p")
    first = VoterSet(1, frozenset("abc"))
    with planted("an acceptor's number of voters is not durable", wrong):
        assert voters.settle("voters", Write(0, register.encode_voters(first), "begin"), ballots, first)
        voters.change(first, "xyz", ballots)
        for name in "abc":
            voters.nodes[name].crash()
            voters.nodes[name].restart()
        # Someone who knows only the first set: after the change it must not get a majority of it.
        answer = voters.ask("a", register.Prepare("k", Ballots("late").next(above=99), 1))
    assert isinstance(answer, register.Promise if wrong else register.Refused)


def test_an_acceptor_that_never_heard_of_a_set_has_no_ballot() -> None:
    assert Voters().ask("a", register.Ask(NO_BALLOT)) == register.Told(NO_BALLOT, None)
