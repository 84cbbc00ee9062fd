"""Several replicas: replication, walking back, levels, learners, snapshots, terms, reads, commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvariantBroken, Overloaded
from core.replication import effects as fx
from core.replication.effects import Consistency
from core.replication.log import START, Entry, Log, Position
from core.replication.messages import (
    Activate,
    Activated,
    Append,
    Appended,
    AskPersisted,
    CatchUp,
    CaughtUp,
    Delete,
    Deleted,
    HasPersisted,
    Level,
    Leveled,
    Mismatch,
    NotCaughtUp,
    Promise,
    Promised,
    Refused,
    ReplicaId,
)
from core.replication.progress import Pace
from core.replication.reads import MapIsOld, QuorumRead, ReadAt
from core.replication.recent import RecentRequests
from core.replication.replica import Replica
from tests.unit.replica_set import DONE, ReplicaSet


def entries(*terms: int, first: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(term, seq, seq, b"%d.%d" % (term, seq)) for seq, term in enumerate(terms, first))


def follower(*terms: int, promised: int = 1, applied: int = 0) -> Replica:
    """n2, its log on disk."""
    log = Log()
    for entry in entries(*terms):
        log.append(entry.position)
    return Replica(fx.Identity(1, 9, promised), log, me=N2, members=(), run=1, applied=applied)


N1, N2, N3 = (ReplicaId(f"n{i}", 1) for i in (1, 2, 3))


def append(
    previous: Position,
    *new: Entry,
    term: int,
    committed: int = 0,
    run: int = 1,
    round_: int = 0,
    ask: bool = True,
) -> Append:
    return Append(N1, N2, term, run, previous, new, committed, round_, ask)


# -- replication --------------------------------------------------------------------------------------------


def test_a_write_reaches_all_and_a_majority_commits_it() -> None:
    shard = ReplicaSet(3)
    shard.write(0)
    shard.deliver()
    assert shard.commits() == [2, 2, 2]
    assert shard.positions() == [Position(1, 2)] * 3


def test_nothing_is_sent_before_the_own_fsync() -> None:
    shard = ReplicaSet(3)
    shard.of(0).holds_sync = True
    shard.write(0)
    assert not shard.wire
    shard.sync(N1)
    assert {m.to for m in shard.wire} == {N2, N3}


@pytest.mark.parametrize(("down", "committed"), [((2,), True), ((1, 2), False)])
def test_a_majority_is_needed(down: tuple[int, ...], committed: bool) -> None:
    shard = ReplicaSet(3)
    shard.write(0)
    for m in list(shard.wire):
        if m.to in [shard.ids[at] for at in down]:
            shard.wire.remove(m)
    shard.deliver()
    assert (shard[0].committed == 2) is committed


def test_levels_are_reached_one_after_the_other() -> None:
    shard = ReplicaSet(3)
    levels = (Consistency.EVENTUAL, Consistency.QUORUM, Consistency.STRONG)
    shard.write(0)
    assert [shard[0].reached(c) for c in levels] == [2, 1, 1]
    shard.deliver(without="n3")
    assert [shard[0].reached(c) for c in levels] == [2, 2, 1]
    shard.tick()
    shard.deliver()
    assert [shard[0].reached(c) for c in levels] == [2, 2, 2]


def test_a_learner_gets_everything_and_counts_for_nothing() -> None:
    shard = ReplicaSet(3, in_sync=2)
    shard.write(0)
    shard.deliver(without="n2")
    assert shard.positions() == [Position(1, 2), Position(1, 1), Position(1, 2)]
    assert shard.commits()[0] == 1


def test_messages_are_pipelined_within_the_window() -> None:
    shard = ReplicaSet(2, pace=Pace(message_entries_max=1, messages_in_flight_max=3))
    for _ in range(5):
        shard.write(0)
    assert [m.entries[0].seq for m in shard.wire] == [2, 3, 4]
    shard.deliver()
    assert shard.commits() == [6, 6]


def test_a_message_is_bounded_in_bytes() -> None:
    shard = ReplicaSet(2, pace=Pace(message_bytes_max=10))
    shard.of(0).holds_sync = True
    for _ in range(4):
        shard.write(0, b"12345")
    shard.sync(N1)
    assert [len(m.entries) for m in shard.wire] == [2, 2]


def test_too_much_that_waits_for_a_majority_refuses_writes() -> None:
    shard = ReplicaSet(3, pace=Pace(uncommitted_entries_max=2))
    shard.write(0)
    shard.write(0)
    (effect,) = shard.write(0)
    assert isinstance(effect, fx.Refuse)
    assert isinstance(effect.error, Overloaded)
    shard.deliver()
    assert isinstance(shard.write(0)[0], fx.Persist)


def test_what_was_lost_is_sent_again() -> None:
    shard = ReplicaSet(3)
    shard.write(0)
    shard.wire.clear()
    shard.tick()
    shard.deliver()
    assert shard.commits() == [2, 2, 2]


def test_the_commit_index_comes_at_once_when_there_is_nothing_to_append() -> None:
    shard = ReplicaSet(2)
    shard.write(0)
    shard.deliver()
    assert shard[1].committed == 2
    assert shard.now_s == 0


def test_a_follower_that_restarted_without_what_it_had_not_synced_gets_it_again() -> None:
    shard = ReplicaSet(2)
    shard.of(1).holds_sync = True
    shard.write(0)
    shard.deliver()
    shard.restart(1)
    shard.of(1).holds_sync = False
    assert shard.positions()[1] == Position(1, 1)
    shard.write(0)
    shard.deliver()
    assert shard.commits() == [3, 3]


# -- walking back and truncation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((1, 1), (1, 1, 1, 2)),
        ((1, 1, 1, 1), (1, 1, 2)),
        ((1, 2, 2, 2), (1, 1, 1, 3)),
        ((1, 1, 3, 3, 3), (1, 1, 2, 2, 4)),
        ((), (1, 2, 3)),
        ((1, 1, 2, 2), (1, 1, 2, 2)),
    ],
)
def test_a_follower_ends_with_the_primarys_log(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """As the primary of the last term of `theirs` would: walk back, then send."""
    term = 9
    log = Log()
    for entry in entries(*theirs):
        log.append(entry.position)
    f, at = follower(*mine, promised=8), log.last
    held = {e.seq: e for e in entries(*mine)}
    for _ in range(10):
        effects = f.on_message(append(at, *entries(*theirs)[at.seq :], term=term), 0)
        for effect in effects:
            if isinstance(effect, fx.Truncate):
                held = {seq: e for seq, e in held.items() if seq <= effect.after_seq}
            if isinstance(effect, fx.Persist):
                held.update({e.seq: e for e in effect.entries})
        answer = effects[-1]
        if not (isinstance(answer, fx.Send) and isinstance(answer.message, Mismatch)):
            break
        found = log.last_not_above(answer.message.hint)
        assert found is not None
        assert found < at, "each step goes back"
        at = found
    assert [held[seq] for seq in range(1, len(theirs) + 1)] == list(entries(*theirs))


def test_only_what_conflicts_is_cut_off() -> None:
    f = follower(1, 1, 1)
    assert not any(isinstance(e, fx.Truncate) for e in f.on_message(append(START, *entries(1), term=1), 0))
    assert f.log.last == Position(1, 3)


def test_nobody_truncates_what_he_knows_to_be_committed() -> None:
    f = follower(1, 1, 1, applied=3)
    with pytest.raises(InvariantBroken):
        f.on_message(append(Position(1, 1), *entries(2, first=2), term=2), 0)


def test_the_commit_index_is_believed_as_far_as_the_log_has_matched() -> None:
    f = follower(1, 1, 1)
    f.on_message(append(Position(1, 1), term=2, committed=3), 0)
    assert f.committed == 1
    f.on_message(append(Position(1, 1), *entries(2, first=2), term=2, committed=3), 0)
    assert f.committed == 1, "seq 2 is not on disk yet"
    f.persisted(2, f._local.generation)
    assert f.committed == 2


def test_what_was_cut_off_is_not_on_disk_whatever_its_fsync_says() -> None:
    f = follower()
    (first, *_) = f.on_message(append(START, *entries(1, 1, 1), term=1), 0)
    f.on_message(append(Position(1, 1), *entries(2, first=2), term=2), 0)
    assert isinstance(first, fx.Persist)
    f.persisted(3, first.generation)
    assert f.persisted_seq == 1


def test_a_promise_is_kept_before_the_answer() -> None:
    effects = follower(1).on_message(append(Position(1, 1), term=2), 0)
    assert [type(e) for e in effects] == [fx.KeepIdentity, fx.Send]


def test_an_append_is_answered_when_it_is_on_disk() -> None:
    f = follower()
    assert [type(e) for e in f.on_message(append(START, *entries(1), term=1), 0)] == [fx.Persist]
    (answer,) = f.persisted(1)
    assert answer == fx.Send(Appended(N2, N1, 1, 1, matched=1, persisted=1, round=0))


def test_two_primaries_in_one_term_are_never_obeyed() -> None:
    f = follower()
    f.on_message(append(START, term=1), 0)
    with pytest.raises(InvariantBroken):
        f.on_message(Append(N3, N2, 1, 1, START, (), 0, 0, True), 0)


# -- answers that count for nothing -------------------------------------------------------------------------


def forged(shard: ReplicaSet, **changes: object) -> Appended:
    fields: dict[str, object] = {
        "sender": N2, "to": N1, "term": shard[0].term, "run": shard[0]._run,
        "matched": 2, "persisted": 2, "round": 0,
    }  # fmt: skip
    return Appended(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("why", "changes", "committed"),
    [
        ("as it should be", {}, 2),
        ("an older term", {"term": 0}, 1),
        ("a newer term", {"term": 2}, 1),
        ("before a restart", {"run": 77}, 1),
        ("another incarnation", {"sender": ReplicaId("n2", 2)}, 1),
        ("a stranger", {"sender": ReplicaId("n9", 1)}, 1),
        ("for an earlier replica of this node", {"to": ReplicaId("n1", 0)}, 1),
    ],
)
def test_which_acknowledgements_count(why: str, changes: dict[str, object], committed: int) -> None:
    shard = ReplicaSet(3)
    shard.write(0)
    shard.wire.clear()
    shard.do(N1, shard[0].on_message(forged(shard, **changes), 0))
    assert shard[0].committed == committed, why


def test_acknowledgements_of_an_older_term_do_not_count_in_the_next() -> None:
    """n1 leads term 1, then term 2 with the same set; what n2 said in term 1 says nothing of term 2."""
    shard = ReplicaSet(3)
    shard.write(0)
    shard.wire.clear()
    old = forged(shard, matched=2, persisted=2)
    lead(shard, 0, 2, shard.ids)
    shard.write(0)
    shard.wire.clear()
    shard.do(N1, shard[0].on_message(forged(shard, term=1, matched=4, persisted=4), 0))
    shard.do(N1, shard[0].on_message(old, 0))
    assert shard[0].log.last == Position(2, 4)
    assert shard[0].committed == 3


def test_a_fenced_follower_sends_no_more_acknowledgements() -> None:
    f = follower()
    f.on_message(append(START, *entries(1), term=1), 0)
    f.on_message(Promise(N2, 2, 1), 0)
    assert f.persisted(1) == []


def test_a_message_for_another_incarnation_does_nothing() -> None:
    f = follower()
    assert f.on_message(Promise(ReplicaId("n2", 2), 5, 1), 0) == []
    assert f.term == 1


# -- terms: fence, catch up, level, activate ----------------------------------------------------------------


def lead(shard: ReplicaSet, at: int, term: int, in_sync: tuple[ReplicaId, ...]) -> None:
    """All answer; the member itself has the best log."""
    me = shard.ids[at]
    for other in range(len(shard.ids)):
        shard.tell(other, Promise(shard.ids[other], term, term))
    best = shard[at].log.last
    assert shard.tell(at, CatchUp(me, term, term, me, best, counts=True)) == [CaughtUp(me, term)]
    assert shard.tell(at, Level(me, term, term, in_sync))[-1] == Leveled(me, term, in_sync)
    learners = tuple(id_ for id_ in shard.ids if id_ not in in_sync)
    assert shard.tell(at, Activate(me, term, term, in_sync, learners)) == [Activated(me, term)]


def test_a_new_primary_takes_over_with_all_that_was_written() -> None:
    shard = ReplicaSet(3)
    shard.write(0, b"a", request_id=b"r")
    shard.deliver()
    lead(shard, 1, 2, shard.ids)
    assert shard.positions() == [Position(2, 3)] * 3
    assert shard[1].is_primary
    assert not shard[0].is_primary
    assert isinstance(shard.write(0)[0], fx.Refuse)
    # A retry meets its own entry, which the follower had remembered.
    assert shard.write(1, b"a", request_id=b"r") == [fx.Answer(2, DONE)]


def test_a_fenced_majority_leaves_the_old_primary_unable_to_commit() -> None:
    shard = ReplicaSet(3)
    shard.tell(1, Promise(N2, 2, 1))
    shard.tell(2, Promise(N3, 2, 1))
    shard.write(0)
    shard.deliver()
    assert shard[0].committed == 1


@pytest.mark.parametrize(
    ("mine", "theirs", "counts", "expected"),
    [
        ((1, 1, 1), (1, 1), True, (1, 1, 1)),
        ((1, 1, 1), (1, 1), False, (1, 1)),
        ((1, 1), (1, 1, 1, 2), True, (1, 1, 1, 2)),
        ((1, 1, 1, 1), (1, 2), True, (1, 2)),
        ((1, 3), (1, 2, 2, 2), True, (1, 3)),
        ((1, 3), (1, 2, 2, 2), False, (1, 2, 2, 2)),
        ((), (1, 1, 1, 1, 1), False, (1, 1, 1, 1, 1)),
    ],
)
def test_catching_up_ends_with_the_best_log(
    mine: tuple[int, ...], theirs: tuple[int, ...], counts: bool, expected: tuple[int, ...]
) -> None:
    """It keeps its own if that counts and knows more: the last term decides, then the length."""
    shard = ReplicaSet(2, pace=Pace(message_entries_max=2))
    for at, terms in ((0, mine), (1, theirs)):
        member, log = shard.of(at), Log()
        for entry in entries(*terms):
            log.append(entry.position)
        member.entries = {e.seq: e for e in entries(*terms)}
        member.replica = Replica(fx.Identity(1, 9, 3), log, me=shard.ids[at], members=(), run=5 + at)
    shard.tell(1, Promise(N2, 4, 1))
    best = shard[1].log.last
    answers = shard.tell(0, CatchUp(N1, 4, 1, N2, best, counts))
    assert answers == [CaughtUp(N1, 4)]
    assert tuple(e.term for _, e in sorted(shard.of(0).entries.items())) == expected


def test_a_late_catch_up_changes_nothing_once_the_log_has_an_entry_of_the_term() -> None:
    shard = ReplicaSet(3)
    best = shard[0].log.last
    lead(shard, 0, 2, shard.ids)
    shard.write(0)
    shard.deliver()
    assert shard.tell(0, CatchUp(N1, 2, 2, N2, best, counts=True)) == [CaughtUp(N1, 2)]
    assert shard[0].log.last == Position(2, 3)
    shard.restart(0)
    assert shard.tell(0, CatchUp(N1, 2, 2, N2, best, counts=True)) == [CaughtUp(N1, 2)]
    assert shard[0].log.last == Position(2, 3)


def test_level_waits_for_catching_up() -> None:
    shard = ReplicaSet(2)
    assert shard.tell(0, Level(N1, 2, 1, shard.ids)) == [NotCaughtUp(N1, 2)]


def test_a_primary_that_levels_commits_nothing_and_takes_no_writes() -> None:
    shard = ReplicaSet(3)
    shard.tell(0, CatchUp(N1, 2, 1, N1, shard[0].log.last, counts=True))
    shard.tell(0, Level(N1, 2, 1, shard.ids))
    assert shard.positions() == [Position(2, 2)] * 3
    assert shard.commits() == [1, 1, 1]
    assert isinstance(shard.write(0)[0], fx.Refuse)


def test_only_who_leveled_can_be_activated() -> None:
    shard = ReplicaSet(2)
    assert shard.tell(1, Activate(N2, 5, 1, shard.ids, ())) == [NotCaughtUp(N2, 5)]
    shard.tell(1, Promise(N2, 5, 1))
    with pytest.raises(InvariantBroken):
        shard[1].activate(5, shard.ids, 0)


def test_a_lower_leader_is_refused_also_after_a_restart() -> None:
    shard = ReplicaSet(2)
    shard.tell(1, Promise(N2, 2, leader_term=7))
    shard.restart(1)
    assert shard.tell(1, Promise(N2, 3, leader_term=6)) == [Refused(N2, None, 3, 2, 7)]


def test_a_promise_is_answered_with_what_is_on_disk() -> None:
    f = follower(1, 1)
    f.on_message(append(Position(1, 2), *entries(1, first=3), term=1), 0)
    answers = [e.message for e in f.on_message(Promise(N2, 2, 1), 0) if isinstance(e, fx.Reply)]
    assert answers == [Promised(N2, 2, Position(1, 2))]


@pytest.mark.parametrize(("promised", "deleted"), [(3, True), (4, True), (5, False)])
def test_a_late_deletion_is_refused_by_a_replica_that_was_taken_in_again(
    promised: int, deleted: bool
) -> None:
    f = follower(1, promised=promised)
    answers = [e.message for e in f.on_message(Delete(N2, 4, 1), 0) if isinstance(e, fx.Reply)]
    assert answers == [Deleted(N2, 4) if deleted else Refused(N2, None, 4, promised)]
    assert f.is_deleted is deleted


# -- snapshots ----------------------------------------------------------------------------------------------


def test_a_learner_that_needs_what_was_cut_away_gets_a_snapshot_and_goes_on() -> None:
    shard = ReplicaSet(3, in_sync=2)
    for _ in range(3):
        shard.write(0)
        shard.deliver(without="n3")
    shard[0].log.cut(3)
    shard.of(0).base = Position(1, 3)
    shard.tick()
    shard.deliver()
    assert shard.offers(0)[-1] == fx.OfferSnapshot(N3, 1)
    shard.do(N3, shard[2].install(1, Position(1, 4), RecentRequests(), 0))
    shard.deliver()
    shard.write(0)
    shard.deliver()
    assert shard.positions()[2] == Position(1, 5)
    assert shard[2].committed == 5


@pytest.mark.parametrize(
    ("position", "term", "wanted"),
    [
        (Position(1, 2), 1, False),  # it has that in its log
        (Position(1, 1), 1, False),  # it has more
        (Position(1, 9), 1, True),
        (Position(1, 9), 0, False),  # a newer term is promised
        (Position(2, 2), 2, True),  # what it has there conflicts
    ],
)
def test_which_snapshots_are_of_use(position: Position, term: int, wanted: bool) -> None:
    assert follower(1, 1, 1, applied=1).wants_snapshot(term, position) is wanted


def test_a_late_snapshot_never_replaces_a_newer_log() -> None:
    f = follower(1, 1, 1, applied=1)
    f.install(1, Position(1, 9), RecentRequests(), 0)
    assert f.applied_seq == 1, "the contents are not in place yet"
    assert f.install(1, Position(1, 5), RecentRequests(), 0) == []
    f.installed(Position(1, 9))
    assert (f.log.last, f.applied_seq) == (Position(1, 9), 9)
    assert f.install(1, Position(1, 9), RecentRequests(), 0) == []
    f.on_message(append(Position(1, 9), *entries(1, first=10), term=1), 0)
    assert f.install(1, Position(1, 9), RecentRequests(), 0) == []
    assert f.log.last == Position(1, 10)


# -- reads --------------------------------------------------------------------------------------------------


def test_a_strong_read_waits_for_a_round_with_a_majority() -> None:
    shard = ReplicaSet(3)
    shard.do(N1, shard[0].read_strongly(1, 1))
    assert shard.reads(0) == []
    shard.deliver(without="n3")
    assert shard.reads(0) == [1]


def test_a_round_that_had_begun_before_the_read_does_not_confirm_it() -> None:
    shard = ReplicaSet(3)
    shard.do(N1, shard[0].read_strongly(1, 1))
    shard.do(N1, shard[0].read_strongly(2, 1))
    answers = [shard[at].on_message(m, 0) for m in shard.wire for at in (1, 2) if m.to == shard.ids[at]]
    shard.wire.clear()
    for (effect,) in answers:
        assert isinstance(effect, fx.Send)
        shard.do(N1, shard[0].on_message(effect.message, 0))
    assert shard.reads(0) == [1]
    shard.deliver()
    assert shard.reads(0) == [1, 2]


def test_answers_to_rounds_before_a_restart_confirm_nothing() -> None:
    """The restarted primary counts its rounds anew; an answer to round 1 of before looks the same."""
    shard = ReplicaSet(3)
    shard.do(N1, shard[0].read_strongly(1, 1))
    late = [effect for m in shard.wire for at in (1, 2) if m.to == shard.ids[at]
            for effect in shard[at].on_message(m, 0)]  # fmt: skip
    shard.wire.clear()
    shard.restart(0)
    shard.do(N1, shard[0].activate(1, shard.in_sync, 0))
    shard.deliver()
    shard.do(N1, shard[0].read_strongly(2, 1))
    shard.wire.clear()
    for effect in late:
        assert isinstance(effect, fx.Send)
        shard.do(N1, shard[0].on_message(effect.message, 0))
    assert shard.reads(0) == []


def test_a_restarted_primary_reads_only_when_its_log_is_committed() -> None:
    shard = ReplicaSet(3)
    shard.write(0)
    shard.deliver()
    shard.write(0)
    shard.wire.clear()
    shard.restart(0)
    shard.do(N1, shard[0].activate(1, shard.in_sync, 0))
    shard.wire.clear()
    shard.do(N1, shard[0].read_strongly(1, 1))
    for m in list(shard.wire):  # the round is confirmed, but nothing is said of the log's end
        for effect in shard[shard.ids.index(m.to)].on_message(m, 0):
            assert isinstance(effect, fx.Send)
            shard.do(N1, shard[0].on_message(effect.message, 0))
    shard.wire.clear()
    assert shard[0].committed == 2
    assert shard.reads(0) == []
    shard.tick()
    shard.deliver()
    assert shard[0].committed == 3
    assert shard.reads(0) == [1]


def test_a_set_of_one_confirms_its_reads_itself() -> None:
    shard = ReplicaSet(1)
    shard.do(N1, shard[0].read_strongly(1, 1))
    assert shard.reads(0) == [1]


def test_a_primary_in_another_term_than_the_router_believes_refuses() -> None:
    shard = ReplicaSet(1)
    lead(shard, 0, 2, shard.ids)
    assert isinstance(shard[0].read_strongly(1, 1)[0], fx.Refuse)


def test_a_quorum_read_waits_for_the_highest_of_a_majority() -> None:
    read = QuorumRead(4, (N1, N2, N3))
    assert [ask.to for ask in read.asks()] == [N1, N2, N3]
    assert read.on_answer(HasPersisted(N1, 4, 7)) is None
    assert read.on_answer(HasPersisted(N1, 4, 7)) is None, "it counts once"
    assert read.on_answer(HasPersisted(ReplicaId("n2", 2), 4, 9)) is None, "another incarnation"
    assert read.on_answer(HasPersisted(N3, 3, 9)) is None, "another term"
    assert read.on_answer(HasPersisted(N3, 4, 5)) == ReadAt(7)


def test_an_old_map_cannot_gather_a_majority_of_a_fenced_set() -> None:
    shard = ReplicaSet(3)
    shard.tell(0, Promise(N1, 2, 1))
    shard.tell(1, Promise(N2, 2, 1))
    read = QuorumRead(1, shard.ids)
    answers = [shard.tell(at, AskPersisted(shard.ids[at], 1))[0] for at in (2, 0)]
    assert [read.on_answer(answer) for answer in answers] == [None, MapIsOld(2)]


def test_a_replica_with_a_newer_term_refuses_the_second_step_too() -> None:
    shard = ReplicaSet(1)
    assert shard[0].may_read(1, 1)
    assert not shard[0].may_read(2, 1)
    shard.tell(0, Promise(N1, 2, 1))
    with pytest.raises(fx.StaleTerm):
        shard[0].may_read(1, 1)


# -- the log's arithmetic -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.data())
def test_a_walk_back_finds_the_last_entry_that_is_not_above(steps: list[int], data: st.DataObject) -> None:
    log, all_ = Log(), [START]
    for seq, step in enumerate(steps, 1):
        all_.append(Position(all_[-1].term + step + (seq == 1), seq))
        log.append(all_[-1])
    cut = data.draw(st.integers(0, len(steps)))
    log.cut(cut)
    asked = Position(data.draw(st.integers(0, 40)), data.draw(st.integers(0, 25)))
    fitting = [p for p in all_[cut:] if p.term <= asked.term and p.seq <= asked.seq]
    assert log.last_not_above(asked) == (fitting[-1] if fitting else None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.data())
def test_a_message_holds_what_fits_and_at_least_one(sizes: list[int], data: st.DataObject) -> None:
    log = Log()
    for seq, size in enumerate(sizes, 1):
        log.append(Position(1, seq), size)
    cut = data.draw(st.integers(0, len(sizes) - 1))
    end = data.draw(st.integers(cut + 1, len(sizes)))
    log.cut(cut)
    log.truncate(end)
    first = data.draw(st.integers(cut + 1, end))
    bytes_max, entries_max = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 5))
    last = log.fit(first, end, entries_max=entries_max, bytes_max=bytes_max)
    assert first <= last <= min(end, first + entries_max - 1)
    assert last == first or sum(sizes[first - 1 : last]) <= bytes_max
    room = last < min(end, first + entries_max - 1)
    assert not room or sum(sizes[first - 1 : last + 1]) > bytes_max
    assert log.bytes_after(first) == sum(sizes[first:end])
