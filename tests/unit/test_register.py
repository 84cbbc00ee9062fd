"""The register's rules: what an acceptor may answer, and how an operation is settled."""

from __future__ import annotations

import pytest

from core.consensus.register import (
    NO_BALLOT,
    TAGS_KEPT,
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Again,
    Ask,
    Ballot,
    Ballots,
    Cell,
    Conflicting,
    Done,
    Effect,
    Found,
    Operation,
    Prepare,
    Promise,
    Read,
    Refused,
    Send,
    Step,
    Told,
    Unsettled,
    Value,
    VoterSet,
    Write,
    Written,
    on_request,
)
from core.errors import InvariantBroken

THREE = VoterSet(1, frozenset({"a", "b", "c"}))
B1, B2, B3 = Ballot(1, "p"), Ballot(2, "p"), Ballot(3, "q")


@pytest.mark.parametrize(
    ("promised", "asked", "granted"),
    [(NO_BALLOT, B1, True), (B1, B1, True), (B2, B1, False), (Ballot(2, "a"), B2, True), (B3, B2, False)],
)
def test_a_ballot_below_the_promised_one_is_refused(promised: Ballot, asked: Ballot, granted: bool) -> None:
    for request in (Prepare("k", asked, 1), Accept("k", asked, 1, Value(1, b"x"))):
        step = on_request(Cell(promised=promised), 1, request)
        assert isinstance(step.answer, Refused) is not granted


def test_a_promise_is_persisted_and_carries_what_was_accepted() -> None:
    step = on_request(Cell(B1, B1, Value(4, b"x")), 1, Prepare("k", B2, 1))
    assert step.persist == Cell(B2, B1, Value(4, b"x"))
    assert step.answer == Promise(B2, B1, Value(4, b"x"))


def test_an_accept_promises_its_ballot_too() -> None:
    step = on_request(Cell(), 1, Accept("k", B2, 1, Value(1, b"x")))
    assert step.persist == Cell(B2, B2, Value(1, b"x"))
    assert step.answer == Accepted(B2)


def test_repeated_requests_are_answered_without_another_fsync() -> None:
    assert on_request(Cell(B2), 1, Prepare("k", B2, 1)).persist is None
    assert on_request(Cell(B2, B2, Value(1)), 1, Accept("k", B2, 1, Value(1))).persist is None


@pytest.mark.parametrize(
    ("known", "asked", "granted"), [(5, 4, False), (5, 5, True), (5, 6, False), (0, 6, True)]
)
def test_who_believes_in_other_voters_is_refused_but_by_a_fresh_acceptor(
    known: int, asked: int, granted: bool
) -> None:
    for request in (Prepare("k", B3, asked), Accept("k", B3, asked, Value(1))):
        step = on_request(Cell(), known, request)
        assert isinstance(step.answer, Refused) is not granted
        assert step.adopt_voters == (asked if granted and not known else None)


@pytest.mark.parametrize(
    ("known", "adopted", "keeps"), [(0, 1, True), (1, 2, True), (2, 2, True), (3, 2, False)]
)
def test_a_set_of_voters_is_kept_with_its_number_unless_a_newer_one_is(
    known: int, adopted: int, keeps: bool
) -> None:
    told = VoterSet(adopted, frozenset("ab"), joint=frozenset("c"))
    step = on_request(Cell(), known, Adopt(B1, told))
    assert step.answer == (Adopted(B1) if keeps else Refused(B1, NO_BALLOT, known))
    assert step.adopt_voters == (adopted if adopted > known else None)
    if keeps:
        assert step.persist is not None
        assert on_request(step.persist, adopted, Ask(B2)).answer == Told(B2, told)
        assert on_request(step.persist, adopted, Adopt(B2, told)) == Step(None, None, Adopted(B2))


def test_an_acceptor_that_was_told_no_set_tells_none() -> None:
    assert on_request(Cell(), 1, Ask(B1)).answer == Told(B1, None)


def test_only_a_majority_of_the_old_sets_a_change_back() -> None:
    joint = VoterSet(2, frozenset("abc"), joint=frozenset("xyz"))
    assert [joint.is_old_quorum(answered) for answered in ("abc", "ax", "xy")] == [False, False, True]
    operation = Operation("k", Read(), old_alone=True)
    operation.begin(B1, joint)
    assert operation.on_answer("x", Promise(B1, NO_BALLOT, Value())) == []
    assert len(operation.on_answer("y", Promise(B1, NO_BALLOT, Value()))) == 6


def test_an_acceptor_that_is_behind_is_told_the_set_and_asked_again() -> None:
    newer = VoterSet(4, frozenset("abc"))
    operation = Operation("k", Read())
    operation.begin(B1, newer)
    assert operation.on_answer("a", Refused(B1, NO_BALLOT, 2)) == [Send("a", Adopt(B1, newer))]
    assert operation.on_answer("a", Adopted(B1)) == [Send("a", Prepare("k", B1, 4))]
    operation.on_answer("b", Promise(B1, NO_BALLOT, Value()))
    operation.on_answer("c", Promise(B1, NO_BALLOT, Value()))
    assert operation.on_answer("a", Refused(B1, NO_BALLOT, 2)) == [Send("a", Adopt(B1, newer))]
    assert operation.on_answer("a", Adopted(B1)) == [Send("a", Accept("k", B1, 4, Value()))]


def test_a_proposer_that_is_behind_asks_for_the_newer_set_and_begins_again_by_it() -> None:
    newer = VoterSet(4, frozenset("abx"))
    operation = Operation("k", Read())
    operation.begin(B1, THREE)
    assert operation.on_answer("a", Refused(B1, NO_BALLOT, 4)) == [Send("a", Ask(B1))]
    assert operation.on_answer("a", Told(B1, None)) == []
    assert operation.on_answer("b", Told(B1, newer)) == [Again(1, newer)]


@pytest.mark.parametrize(
    ("answered", "is_quorum"),
    [("ab", False), ("abx", False), ("abxy", True), ("xy", False), ("acxyz", True)],
)
def test_joint_voters_need_a_majority_of_both_sets(answered: str, is_quorum: bool) -> None:
    joint = VoterSet(2, frozenset("abc"), joint=frozenset("xyz"))
    assert joint.is_quorum(answered) is is_quorum


def run(operation: Operation, ballot: Ballot, held: dict[str, tuple[Ballot, Value]]) -> tuple[Accept, Effect]:
    """One round in which voters `held` answer: the Accept that was sent, and how it ended."""
    assert len(operation.begin(ballot, THREE)) == 3
    sent: list[Effect] = []
    for voter, (accepted, value) in held.items():
        sent = sent or operation.on_answer(voter, Promise(ballot, accepted, value))
    assert isinstance(sent[0], Send)
    assert isinstance(sent[0].request, Accept)
    accept, done = sent[0].request, list[Effect]()
    for voter in held:
        done = done or operation.on_answer(voter, Accepted(ballot))
    return accept, done[0]


NOTHING = (NO_BALLOT, Value())


def test_a_read_writes_back_the_value_of_the_highest_ballot() -> None:
    old, new = Value(1, b"old", ("t1",)), Value(2, b"new", ("t2", "t1"))
    accept, done = run(Operation("k", Read()), B3, {"a": (B1, old), "b": (B2, new)})
    assert accept.value == new
    assert done == Done(Found(new))


def test_a_read_of_nothing_is_accepted_too() -> None:
    accept, done = run(Operation("k", Read()), B1, {"a": NOTHING, "b": NOTHING})
    assert accept.value == Value()
    assert done == Done(Found(Value()))


def test_a_write_at_the_expected_version_is_chosen_with_its_tag() -> None:
    accept, done = run(
        Operation("k", Write(1, b"new", "t2")), B2, {"a": (B1, Value(1, b"x", ("t1",))), "c": NOTHING}
    )
    assert accept.value == Value(2, b"new", ("t2", "t1"))
    assert done == Done(Written(2))


def test_a_conflict_is_answered_only_after_what_it_found_is_chosen() -> None:
    there = Value(2, b"theirs", ("t2", "t1"))
    accept, done = run(Operation("k", Write(1, b"mine", "t3")), B3, {"a": (B2, there), "b": NOTHING})
    assert accept.value == there
    assert done == Done(Conflicting(there))


def test_a_write_whose_answer_was_lost_finds_itself_by_its_tag() -> None:
    operation = Operation("k", Write(1, b"mine", "t2"))
    run(operation, B1, {"a": (NO_BALLOT, Value(1, b"x", ("t1",))), "b": NOTHING})
    overwritten = Value(3, b"theirs", ("t3", "t2", "t1"))
    _, done = run(operation, B2, {"b": (Ballot(1, "q"), overwritten), "c": NOTHING})
    assert done == Done(Written(2))


def test_a_write_that_was_overwritten_too_often_says_that_it_does_not_know() -> None:
    later = Value(TAGS_KEPT + 2, b"z", tuple(f"o{i}" for i in range(TAGS_KEPT)))
    fresh, retried = Operation("k", Write(1, b"m", "t")), Operation("k", Write(1, b"m", "t"))
    run(retried, B1, {"a": (NO_BALLOT, Value(1)), "b": NOTHING})
    assert run(retried, B2, {"a": (B1, later), "b": NOTHING})[1] == Done(Unsettled(later))
    assert run(fresh, B2, {"a": (B1, later), "b": NOTHING})[1] == Done(Conflicting(later))


def test_a_refusal_asks_to_begin_again_above_it_and_closes_the_round() -> None:
    operation = Operation("k", Read())
    operation.begin(B1, THREE)
    assert operation.on_answer("a", Refused(B1, Ballot(7, "q"), 1)) == [Again(7, THREE)]
    assert operation.on_answer("b", Promise(B1, NO_BALLOT, Value())) == []


def test_answers_of_strangers_and_to_other_ballots_count_for_nothing() -> None:
    operation = Operation("k", Read())
    operation.begin(B1, THREE)
    operation.begin(B2, THREE)
    assert operation.on_answer("a", Promise(B1, NO_BALLOT, Value())) == []
    assert operation.on_answer("x", Promise(B2, NO_BALLOT, Value())) == []
    assert operation.on_answer("b", Promise(B2, NO_BALLOT, Value())) == []
    assert len(operation.on_answer("c", Promise(B2, NO_BALLOT, Value()))) == 3


def test_no_ballot_is_used_twice() -> None:
    ballots = Ballots("p")
    assert [ballots.next(), ballots.next(above=9), ballots.next(above=3)] == [
        Ballot(1, "p"),
        Ballot(10, "p"),
        Ballot(11, "p"),
    ]
    operation = Operation("k", Read())
    operation.begin(B2, THREE)
    with pytest.raises(InvariantBroken, match="used before"):
        operation.begin(B2, THREE)
