"""A change of voters, step by step: the order that keeps it safe, and what each failure leads to."""

from __future__ import annotations

from collections.abc import Callable

from core.consensus.register import (
    NO_BALLOT,
    Adopt,
    Adopted,
    Answer,
    Ask,
    Conflicting,
    Found,
    Read,
    Refused,
    Told,
    Value,
    VoterSet,
    Write,
    Written,
    decode_voters,
    encode_voters,
)
from core.consensus.voters import (
    FAILURES_MAX,
    REWRITES_AT_ONCE,
    ROUNDS_OF_PATIENCE,
    VOTERS_KEY,
    Call,
    Effect,
    Finished,
    GaveUp,
    ListKeys,
    Settle,
    VoterChange,
    Wait,
)

OLD, NEW = frozenset("abc"), frozenset("cde")
ALONE = VoterSet(4, OLD)
JOINT = VoterSet(5, NEW, joint=OLD)
CHANGED, SET_BACK = VoterSet(6, NEW), VoterSet(6, OLD)


def changing() -> VoterChange:
    return VoterChange(ALONE, NEW, tag="r1")


def value(voters: VoterSet) -> Value:
    return Value(voters.number, encode_voters(voters))


def one(effects: list[Effect]) -> Settle:
    (effect,) = effects
    assert isinstance(effect, Settle)
    return effect


def written(effects: list[Effect]) -> VoterSet:
    """The set of voters that the one effect writes."""
    settle = one(effects)
    assert settle.key == VOTERS_KEY
    assert isinstance(settle.change, Write)
    assert settle.change.data is not None
    voters = decode_voters(settle.change.data)
    assert settle.change.expected == settle.voters.number == voters.number - 1
    return voters


def proposed(runner: VoterChange) -> list[Effect]:
    """The effects after the joint set was chosen: everybody is told."""
    settle = one(runner.begin())
    return runner.on_settled(settle.asked, settle.key, Written(5))


def answered(
    runner: VoterChange, effects: list[Effect], voters: str, answer: Callable[[Call], Answer]
) -> list[Effect]:
    """What follows when these voters answer their calls, and the others fail."""
    result: list[Effect] = []
    for call in effects:
        if isinstance(call, Call) and not result:
            if call.voter in voters:
                result = runner.on_answer(call.asked, call.voter, answer(call))
            else:
                result = runner.on_failed(call.asked, call.voter)
    return result


def adopted(call: Call) -> Answer:
    return Adopted(call.request.ballot)


def set_back_by(runner: VoterChange, effects: list[Effect]) -> list[Effect]:
    """Only the old answer, again and again; what the runner does at last."""
    for _ in range(ROUNDS_OF_PATIENCE):
        effects = answered(runner, effects, "abc", adopted)
        if isinstance(effects[0], Wait):
            effects = runner.on_waited(effects[0].asked)
    return effects


def test_the_joint_set_is_written_by_the_old_at_the_version_that_is_its_number() -> None:
    effects = changing().begin()
    assert written(effects) == JOINT
    assert one(effects).voters == ALONE


def test_everybody_adopts_the_joint_set_before_any_key_is_listed() -> None:
    runner = changing()
    calls = proposed(runner)
    assert [c.voter for c in calls if isinstance(c, Call)] == list("abcde")
    assert {c.request.voters for c in calls if isinstance(c, Call) and isinstance(c.request, Adopt)} == {
        JOINT
    }
    assert answered(runner, calls[:1], "a", adopted) == []
    assert answered(runner, calls[1:3], "bc", adopted) == []
    listing = answered(runner, calls[3:], "d", adopted)
    assert listing == [ListKeys(3, voter) for voter in "abcd"]


def test_keys_are_listed_from_majorities_of_those_that_adopted_and_all_are_rewritten_by_both() -> None:
    runner = changing()
    listing = answered(runner, proposed(runner), "abcd", adopted)
    assert isinstance(listing[0], ListKeys)
    asked = listing[0].asked
    assert runner.on_keys(asked, "a", ["map", VOTERS_KEY]) == []
    assert runner.on_keys(asked, "d", []) == []
    effects = runner.on_keys(asked, "c", ["jobs/1"])
    assert effects == [Settle(asked + 1, key, Read(), JOINT) for key in ("jobs/1", "map")]
    assert runner.on_settled(asked + 1, "map", Found(Value())) == []
    last = runner.on_settled(asked + 1, "jobs/1", Found(Value()))
    assert written(last) == CHANGED
    assert one(last).voters == JOINT


def test_many_keys_are_rewritten_a_few_at_a_time() -> None:
    runner = VoterChange(JOINT, None, tag="r1")
    listing = answered(runner, runner.begin(), "abcd", adopted)
    keys = [f"jobs/{n:03}" for n in range(50)]
    effects: list[Effect] = []
    for voter in "acd":
        assert isinstance(listing[0], ListKeys)
        effects = runner.on_keys(listing[0].asked, voter, keys)
    assert len(effects) == REWRITES_AT_ONCE
    seen = []
    while isinstance(effects[0], Settle) and isinstance(effects[0].change, Read):
        settle = effects.pop(0)
        assert isinstance(settle, Settle)
        seen.append(settle.key)
        effects += runner.on_settled(settle.asked, settle.key, Found(Value()))
    assert seen == keys
    assert written(effects) == CHANGED


def test_at_the_end_everybody_is_told_who_left_too() -> None:
    runner = VoterChange(JOINT, None, tag="r1")
    listing = answered(runner, runner.begin(), "abcd", adopted)
    assert isinstance(listing[0], ListKeys)
    effects: list[Effect] = []
    for voter in "acd":
        effects = runner.on_keys(listing[0].asked, voter, [])
    end = runner.on_settled(one(effects).asked, VOTERS_KEY, Written(6))
    assert [c.voter for c in end if isinstance(c, Call)] == list("abcde")
    assert end[-1] == Finished(CHANGED)


def test_silent_new_voters_are_given_up_by_a_majority_of_the_old() -> None:
    runner = changing()
    effects = set_back_by(runner, proposed(runner))
    assert written(effects) == SET_BACK
    assert one(effects).old_alone
    assert one(effects).voters == JOINT
    end = runner.on_settled(one(effects).asked, VOTERS_KEY, Written(6))
    assert end[-1] == Finished(SET_BACK)


def test_one_silent_round_of_the_new_is_not_enough_to_set_the_change_back() -> None:
    runner = changing()
    effects = answered(runner, proposed(runner), "abc", adopted)
    assert isinstance(effects[0], Wait)


def test_too_few_of_the_old_neither_finish_nor_set_back() -> None:
    runner = changing()
    effects = proposed(runner)
    for _ in range(FAILURES_MAX):
        effects = answered(runner, effects, "ade", adopted)
        assert isinstance(effects[0], Wait)
        effects = runner.on_waited(effects[0].asked)
    assert answered(runner, effects, "ade", adopted) == [GaveUp("too few of the old voters answer", JOINT)]


def test_a_finish_that_only_the_old_know_of_is_not_believed_before_both_chose_it() -> None:
    runner = changing()
    effects = set_back_by(runner, proposed(runner))
    found = runner.on_settled(one(effects).asked, VOTERS_KEY, Conflicting(value(CHANGED)))
    assert one(found) == Settle(one(found).asked, VOTERS_KEY, Read(), JOINT)
    end = runner.on_settled(one(found).asked, VOTERS_KEY, Found(value(CHANGED)))
    assert end[-1] == Finished(CHANGED)


def test_a_change_that_another_set_back_is_over() -> None:
    runner = changing()
    effects = set_back_by(runner, proposed(runner))
    end = runner.on_settled(one(effects).asked, VOTERS_KEY, Conflicting(value(SET_BACK)))
    assert end[-1] == Finished(SET_BACK)


def test_whoever_finds_a_joint_set_finishes_it_and_then_goes_on_to_his_own() -> None:
    runner = VoterChange(ALONE, frozenset("ax"), tag="r1")
    settle = one(runner.begin())
    calls = runner.on_settled(settle.asked, VOTERS_KEY, Conflicting(value(JOINT)))
    assert isinstance(calls[0], Call)
    assert calls[0].request == Adopt(calls[0].request.ballot, JOINT)
    proposal = runner.on_newer(calls[0].asked, CHANGED)
    assert written(proposal) == VoterSet(7, frozenset("ax"), joint=NEW)


def test_a_runner_that_is_behind_asks_who_refuses_it() -> None:
    runner = changing()
    call = proposed(runner)[0]
    assert isinstance(call, Call)
    ballot = call.request.ballot
    asking = runner.on_answer(call.asked, "a", Refused(ballot, NO_BALLOT, 6))
    assert asking == [Call(call.asked, "a", Ask(ballot))]
    read = runner.on_answer(call.asked, "a", Told(ballot, CHANGED))
    assert one(read).voters == CHANGED
    assert runner.on_settled(one(read).asked, VOTERS_KEY, Found(value(CHANGED)))[-1] == Finished(CHANGED)


def test_answers_to_earlier_steps_count_for_nothing() -> None:
    runner = changing()
    first = one(runner.begin())
    runner.on_settled(first.asked, VOTERS_KEY, Written(5))
    assert runner.on_settled(first.asked, VOTERS_KEY, Written(5)) == []
    assert runner.on_failed(first.asked, VOTERS_KEY) == []
    assert runner.on_newer(first.asked, CHANGED) == []
    assert runner.on_keys(first.asked, "a", []) == []
