"""The election: who may act until when, what is settled by reading, how a leader hands over."""

from __future__ import annotations

import random

import pytest

from core.consensus.lease import (
    NOBODY,
    CompareAndSet,
    Effect,
    Election,
    Lead,
    Lease,
    Read,
    StopLeading,
    Timing,
    decode_lease,
    encode_lease,
)

THEIRS = Lease("other", term=7, renewals=3, ttl_s=2.0)
NO_JITTER = Timing(jitter_s=0.0)


def standing(holder: str = "me", timing: Timing = NO_JITTER) -> Election:
    return Election(holder, 0.0, random.Random(1), timing)


def asked(effects: list[Effect]) -> int:
    """The number of the one question among the effects."""
    (question,) = (e for e in effects if isinstance(e, Read | CompareAndSet))
    return question.asked


def leading(sent_s: float = 0.0) -> Election:
    """A leader of term 8, at version 11, whose CAS was sent at `sent_s` and answered 0.1 s later."""
    election = standing()
    empty = Lease(NOBODY, 7, 9, 2.0)
    cas = election.on_read(asked(election.tick(sent_s)), empty, 10, sent_s)
    assert cas == [CompareAndSet(2, 10, Lease("me", 8, 0, 2.0))]
    assert election.on_written(2, 11, sent_s + 0.1) == [Lead(8, sent_s + 4 / 3)]
    return election


def test_a_lease_is_read_as_it_was_written() -> None:
    assert decode_lease(encode_lease(THEIRS)) == THEIRS


def test_a_key_that_never_was_is_taken_at_once_with_term_1() -> None:
    election = standing()
    assert election.tick(0.0) == [Read(1)]
    assert election.on_read(1, None, 0, 0.1) == [CompareAndSet(2, 0, Lease("me", 1, 0, 2.0))]


def test_an_emptied_lease_is_taken_at_once_with_the_next_term() -> None:
    assert leading().lease == Lease("me", 8, 0, 2.0)


def test_a_lease_is_taken_over_only_when_it_did_not_move_for_longer_than_its_ttl() -> None:
    election = standing()
    election.on_read(asked(election.tick(0.0)), THEIRS, 10, 0.1)
    now_s = election.wake_s
    effects = election.tick(now_s)
    while isinstance(effects[0], Read):
        assert election.wake_s < 9
        assert election.on_read(asked(effects), THEIRS, 10, election.wake_s - 0.4) == []
        now_s = election.wake_s
        effects = election.tick(now_s)
    assert now_s == pytest.approx(2.1)
    assert effects == [CompareAndSet(asked(effects), 10, Lease("me", 8, 0, 2.0))]


def test_a_lease_that_moves_is_left_alone() -> None:
    election = standing()
    effects = election.tick(0.0)
    for step in range(30):
        lease = Lease("other", 7, step, 2.0)
        effects = election.on_read(asked(effects), lease, 10 + step, step * 1.9)
        assert effects == []
        effects = election.tick(step * 1.9 + 0.2)
        assert isinstance(effects[0], Read)


def test_watchers_wait_for_different_times() -> None:
    def waited_s(seed: int) -> float:
        election = Election("me", 0.0, random.Random(seed), Timing(look_s=9))
        election.on_read(asked(election.tick(0.0)), THEIRS, 10, 0.0)
        return election.wake_s

    waits = [waited_s(seed) for seed in range(20)]
    assert len(set(waits)) == 20
    assert all(2.0 <= wait <= 2.3 for wait in waits)


def test_a_leader_acts_for_two_thirds_of_its_ttl_from_when_it_sent_its_renewal() -> None:
    election = leading(sent_s=1.0)
    assert election.may_act(1.0 + 1.33)
    assert not election.may_act(1.0 + 1.34)
    (renewal,) = election.tick(1.4)
    assert renewal == CompareAndSet(3, 11, Lease("me", 8, 1, 2.0))
    assert election.on_written(3, 12, 1.7) == [Lead(8, 1.4 + 4 / 3)]


def test_a_leader_that_hears_nothing_stops_in_time_and_leads_again_if_nobody_took_over() -> None:
    election = leading()
    election.tick(0.4)
    while not (effects := [e for e in election.tick(election.wake_s) if isinstance(e, StopLeading)]):
        assert election.wake_s < 2.0
    assert effects == [StopLeading(8)]
    assert not election.may_act(0.0)

    election.tick(2.0)
    again = election.on_read(election._asked, Lease("me", 8, 0, 2.0), 11, 2.1)
    # It was first sent at 0.4: whoever saw it then may take over long before 2.1 + 4/3.
    again = election.on_written(asked(again), 12, 2.2)
    assert again == [CompareAndSet(asked(again), 12, Lease("me", 8, 2, 2.0))]
    assert election.on_written(asked(again), 13, 2.3) == [Lead(8, 2.2 + 4 / 3)]


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_renewal_whose_answer_was_lost_is_settled_by_reading(took_effect: bool) -> None:
    election = leading()
    election.tick(0.4)
    (read,) = election.tick(0.8)
    assert isinstance(read, Read)
    renewed = Lease("me", 8, 1, 2.0)
    if took_effect:
        assert election.on_read(read.asked, renewed, 12, 0.9)[0] == Lead(8, 0.4 + 4 / 3)
    else:
        effects = election.on_read(read.asked, Lease("me", 8, 0, 2.0), 11, 0.9)
        assert effects == [CompareAndSet(read.asked + 1, 11, renewed)]


def test_a_conflict_with_its_own_late_write_is_a_success_counted_from_the_first_try() -> None:
    election = leading()
    election.tick(0.4)
    (read,) = election.tick(0.8)
    (cas,) = election.on_read(asked([read]), Lease("me", 8, 0, 2.0), 11, 0.9)
    assert election.on_read(asked([cas]), Lease("me", 8, 1, 2.0), 12, 1.0)[0] == Lead(8, 0.4 + 4 / 3)


def test_late_answers_to_older_questions_count_for_nothing() -> None:
    election = leading()
    (renewal,) = election.tick(0.4)
    election.tick(0.8)
    assert election.on_written(asked([renewal]), 12, 0.9) == []
    assert election.on_read(asked([renewal]), THEIRS, 12, 0.9) == []


def test_a_deposed_leader_stops_at_once_and_watches() -> None:
    election = leading()
    (renewal,) = election.tick(0.4)
    assert election.on_read(asked([renewal]), Lease("other", 9, 0, 2.0), 12, 0.5) == [StopLeading(8)]
    assert not election.may_act(0.5)
    assert isinstance(election.tick(election.wake_s)[0], Read)


def test_stepping_down_stops_first_then_empties_the_holder_and_keeps_the_term() -> None:
    election = leading()
    stop, cas = election.step_down(0.2)
    assert stop == StopLeading(8)
    assert cas == CompareAndSet(3, 11, Lease(NOBODY, 8, 1, 2.0))
    assert not election.finished
    assert election.on_written(3, 12, 0.3) == []
    assert election.finished
    assert election.tick(99.0) == []


def test_stepping_down_while_a_renewal_is_out_empties_what_that_wrote() -> None:
    election = leading()
    (renewal,) = election.tick(0.4)
    assert election.step_down(0.5) == [StopLeading(8)]
    (cas,) = election.on_written(asked([renewal]), 12, 0.6)
    assert cas == CompareAndSet(asked([cas]), 12, Lease(NOBODY, 8, 2, 2.0))


def test_who_steps_down_as_a_watcher_has_nothing_to_empty() -> None:
    election = standing()
    read = asked(election.tick(0.0))
    assert election.step_down(0.05) == []
    assert election.on_read(read, THEIRS, 10, 0.1) == []
    assert election.finished


def test_after_a_failed_question_it_reads_before_it_writes() -> None:
    election = leading()
    (renewal,) = election.tick(0.4)
    election.on_failed(asked([renewal]), 0.45)
    assert election.tick(0.5) == []
    assert isinstance(election.tick(0.66)[0], Read)


def test_a_hint_makes_a_watcher_look_at_once() -> None:
    election = standing()
    election.on_read(asked(election.tick(0.0)), THEIRS, 10, 0.1)
    assert election.tick(0.15) == []
    election.look(0.15)
    assert isinstance(election.tick(0.15)[0], Read)
