"""A replica alone: what it persists, applies and answers, in which order, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvariantBroken, Overloaded, Unprocessable
from core.replication.effects import Reached, SteppedDown
from core.replication.log import START, Entry, Log, Position
from core.replication.messages import Appended, CatchUp, CaughtUp, Level, Promise, ReplicaId
from core.replication.recent import RecentRequests, Remembered
from core.replication.replica import (
    ALONE,
    Answer,
    Apply,
    Attach,
    Effect,
    Identity,
    KeepIdentity,
    Persist,
    Refuse,
    Replica,
    StaleTerm,
    majority_seq,
)
from core.wire import Nothing, Outcome, decode_op

ONE = Outcome(touched=1)


B, C = ReplicaId("b", 1), ReplicaId("c", 1)


def replica(members: tuple[ReplicaId, ...] = (ALONE,), **options: object) -> Replica:
    return Replica(Identity(1, 2, promised=1), Log(), members=members, **options)  # type: ignore[arg-type]


def apply_of(effects: list[Effect]) -> list[Apply]:
    return [effect for effect in effects if isinstance(effect, Apply)]


def acknowledge(r: Replica, seq: int, sender: ReplicaId) -> list[Apply]:
    return apply_of(r.on_message(Appended(sender, r.me, r.term, 0, seq, seq, 0), 0))


def proposed(r: Replica, op: bytes = b"op", now_us: int = 100, **request: object) -> Entry:
    (effect,) = r.propose(op, now_us, **request)  # type: ignore[arg-type]
    assert isinstance(effect, Persist)
    return effect.entries[0]


def test_a_proposal_is_persisted_then_applied_then_answered() -> None:
    r = replica()
    assert proposed(r, b"a").position == Position(1, 1)
    assert proposed(r, b"b").position == Position(1, 2)
    assert r.persisted(2) == [Apply(1, 2), Reached(2, 2, 2)]
    assert r.applied([ONE, Outcome(touched=2)], 2) == [Answer(1, ONE), Answer(2, Outcome(touched=2))]


def test_nothing_is_applied_twice() -> None:
    r = replica()
    proposed(r)
    proposed(r)
    assert apply_of(r.persisted(1)) == [Apply(1, 1)]
    assert apply_of(r.persisted(2)) == [Apply(2, 2)]
    assert r.persisted(2) == []


def test_the_time_of_the_log_never_goes_back() -> None:
    r = replica()
    assert [proposed(r, now_us=t).time_us for t in (50, 40, 60)] == [50, 50, 60]


def test_the_time_of_the_log_goes_on_after_a_restart_with_a_wrong_clock() -> None:
    assert proposed(replica(time_us=500), now_us=40).time_us == 500


def test_what_was_not_persisted_cannot_be_committed() -> None:
    with pytest.raises(InvariantBroken):
        replica().persisted(1)


def test_outcomes_must_follow_what_was_applied() -> None:
    r = replica()
    proposed(r)
    with pytest.raises(InvariantBroken):
        r.applied([ONE], 1)


# -- once only ---------------------------------------------------------------------------------------------


def test_a_retry_attaches_to_its_entry_and_later_gets_its_outcome() -> None:
    r = replica()
    proposed(r, request_id=b"r", body_hash=b"h")
    assert r.propose(b"op", 100, request_id=b"r", body_hash=b"h") == [Attach(1)]
    r.persisted(1)
    assert r.propose(b"op", 100, request_id=b"r", body_hash=b"h") == [Attach(1)]
    r.applied([ONE], 1)
    assert r.propose(b"op", 100, request_id=b"r", body_hash=b"h") == [Answer(1, ONE)]
    assert r.log.last.seq == 1


def test_another_body_under_the_same_id_is_refused() -> None:
    r = replica()
    proposed(r, request_id=b"r", body_hash=b"h")
    (effect,) = r.propose(b"op", 100, request_id=b"r", body_hash=b"other")
    assert isinstance(effect, Refuse)
    assert isinstance(effect.error, Unprocessable)


def test_operations_without_an_id_are_never_taken_for_retries() -> None:
    r = replica()
    assert [proposed(r).seq, proposed(r).seq] == [1, 2]


def test_a_withdrawn_proposal_leaves_no_trace() -> None:
    r = replica()
    proposed(r)
    r.persisted(1)
    proposed(r, request_id=b"r", body_hash=b"h")
    r.withdraw(1)
    assert proposed(r, request_id=b"r", body_hash=b"other").seq == 2


def test_what_is_on_disk_cannot_be_withdrawn() -> None:
    r = replica()
    proposed(r)
    r.persisted(1)
    with pytest.raises(InvariantBroken):
        r.withdraw(0)


def test_a_restarted_replica_remembers_requests_and_applies_the_rest() -> None:
    log = Log()
    entries = [Entry(1, seq, seq, b"op", b"r%d" % seq, 0, b"h") for seq in (1, 2, 3)]
    for entry in entries:
        log.append(entry.position)
    recent = RecentRequests()
    recent.remember(Remembered(b"r1", 0, b"h", 1, 1, ONE))
    r = Replica(Identity(1, 2, 1), log, applied=1, recent=recent)
    r.remember(entries[1:])
    assert r.propose(b"op", 9, request_id=b"r1", body_hash=b"h") == [Answer(1, ONE)]
    assert r.propose(b"op", 9, request_id=b"r3", body_hash=b"h") == [Attach(3)]
    assert apply_of(r.persisted(3)) == [Apply(2, 3)]


def test_a_request_goes_only_when_past_both_bounds() -> None:
    recent = RecentRequests(count_min=2, keep_us=10)
    for seq, time_us in ((1, 0), (2, 1), (3, 2)):
        recent.remember(Remembered(b"%d" % seq, 0, b"", seq, time_us, ONE))
    assert recent.oldest_seq == 1, "one too many, but not old enough"
    recent.remember(Remembered(b"4", 0, b"", 4, 100, ONE))
    assert recent.oldest_seq == 3
    recent.remember(Remembered(b"5", 0, b"", 5, 10_000, ONE))
    assert len(recent) == 2, "old, but not too many"


def test_a_request_that_is_not_answered_is_never_forgotten() -> None:
    recent = RecentRequests(count_min=1, keep_us=1)
    recent.remember(Remembered(b"1", 0, b"", 1, 0))
    for seq in (2, 3):
        recent.remember(Remembered(b"%d" % seq, 0, b"", seq, 1000 * seq, ONE))
    assert recent.oldest_seq == 1
    recent.answer(1, ONE)
    recent.remember(Remembered(b"4", 0, b"", 4, 9000, ONE))
    assert recent.oldest_seq == 4


def test_a_request_with_a_key_is_refused_rather_than_one_forgotten_that_may_be_repeated() -> None:
    recent = RecentRequests(count_min=2, keep_us=120_000_000, count_max=3)
    for seq in range(1, 4):
        recent.admit(seq)
        recent.remember(Remembered(bytes([seq]) * 16, 0, b"", seq, seq, Outcome()))
    with pytest.raises(Overloaded, match="retry later, or write without keys") as refused:
        recent.admit(4)
    assert refused.value.retry_after_s == 120
    assert recent.find(bytes([1]) * 16, 0, b"") is not None
    recent.admit(120_000_002)  # the first is past both bounds
    assert recent.find(bytes([1]) * 16, 0, b"") is None
    assert recent.find(bytes([2]) * 16, 0, b"") is not None


def test_a_full_table_refuses_new_requests_and_answers_known_ones() -> None:
    recent = RecentRequests(count_max=1)
    r = replica(recent=recent)
    (effect,) = r.propose(b"op", 1, request_id=b"a" * 16)
    assert isinstance(effect, Persist)
    (again,) = r.propose(b"op", 2, request_id=b"a" * 16)
    assert isinstance(again, Attach)
    (other,) = r.propose(b"op", 3, request_id=b"b" * 16)
    assert isinstance(other, Refuse)
    assert isinstance(other.error, Overloaded)
    (bare,) = r.propose(b"op", 4)
    assert isinstance(bare, Persist)


# -- terms and members -------------------------------------------------------------------------------------


def test_a_fenced_primary_takes_no_writes_and_commits_nothing_more() -> None:
    r = replica()
    proposed(r)
    assert r.promise(3) == [KeepIdentity(Identity(1, 2, promised=3)), SteppedDown(3)]
    (effect,) = r.propose(b"op", 100)
    assert isinstance(effect, Refuse)
    assert isinstance(effect.error, StaleTerm)
    assert r.persisted(1) == []


@pytest.mark.parametrize(("term", "refused"), [(2, True), (3, False)])
def test_an_older_term_than_the_promised_one_is_refused(term: int, refused: bool) -> None:
    r = replica()
    r.promise(3)
    effects = r.promise(term)
    assert [isinstance(effect, Refuse) for effect in effects] == ([True] if refused else [])


def test_a_new_term_opens_with_an_empty_entry_that_commits_what_came_before() -> None:
    r = replica(members=(ALONE, B, C))
    proposed(r)
    assert apply_of(r.persisted(1)) == []
    r.on_message(Promise(ALONE, 2, 1), 0)
    caught_up = r.on_message(CatchUp(ALONE, 2, 1, ALONE, Position(1, 1), counts=True), 0)
    assert [getattr(effect, "message", None) for effect in caught_up] == [CaughtUp(ALONE, 2)]
    (effect,) = (e for e in r.on_message(Level(ALONE, 2, 1, (ALONE, B)), 0) if isinstance(e, Persist))
    assert decode_op(effect.entries[0].op) == Nothing()
    assert effect.entries[0].position == Position(2, 2)
    r.persisted(2)
    assert acknowledge(r, 2, B) == [], "nothing is committed before the map says that the term is active"
    assert apply_of(r.activate(2, (ALONE, B), 100)) == [Apply(1, 2)]


def test_an_entry_of_an_earlier_term_is_not_committed_by_being_counted() -> None:
    r = replica(members=(ALONE, B, C))
    proposed(r)
    r.persisted(1)
    r.on_message(CatchUp(ALONE, 2, 1, ALONE, Position(1, 1), counts=True), 0)
    r.on_message(Level(ALONE, 2, 1, (ALONE, B, C)), 0)
    r.persisted(2)
    r.activate(2, (ALONE, B, C), 100)
    assert acknowledge(r, 1, B) == []
    assert acknowledge(r, 2, B) == [Apply(1, 2)]


def test_an_unpromised_term_cannot_be_activated() -> None:
    (effect,) = replica().activate(2, (ALONE,), 100)
    assert isinstance(effect, Refuse)


def test_with_three_members_two_commit() -> None:
    r = replica(members=(ALONE, B, C))
    proposed(r)
    assert apply_of(r.persisted(1)) == []
    assert acknowledge(r, 1, C) == [Apply(1, 1)]
    assert acknowledge(r, 1, B) == []


@pytest.mark.parametrize(
    ("persisted", "committed"),
    [([4], 4), ([7, 3], 3), ([7, 3, 5], 5), ([7, 3, 5, 1], 3), ([9, 9, 1, 1, 5], 5)],
)
def test_a_majority_has_persisted_the_committed_seq(persisted: list[int], committed: int) -> None:
    assert majority_seq(persisted) == committed


# -- the log -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(min_value=0, max_value=2), min_size=1, max_size=30), st.data())
def test_a_log_knows_the_term_of_each_entry_it_has(steps: list[int], data: st.DataObject) -> None:
    log, terms, term = Log(), {0: 0}, 1
    for seq, step in enumerate(steps, 1):
        term += step
        terms[seq] = term
        log.append(Position(term, seq))
    cut = data.draw(st.integers(0, len(steps)))
    end = data.draw(st.integers(cut, len(steps)))
    log.cut(cut)
    log.truncate(end)
    assert {seq: log.term_at(seq) for seq in range(len(steps) + 2)} == {
        seq: terms[seq] if cut <= seq <= end else None for seq in range(len(steps) + 2)
    }
    assert log.last == Position(terms[end], end)
    assert log.matches(Position(terms[end], end))
    assert not log.matches(Position(terms[end] + 1, end))


@pytest.mark.parametrize("position", [Position(1, 3), Position(0, 2), Position(1, 1)])
def test_a_log_takes_only_what_follows(position: Position) -> None:
    log = Log(START)
    log.append(Position(1, 1))
    with pytest.raises(InvariantBroken):
        log.append(position)
