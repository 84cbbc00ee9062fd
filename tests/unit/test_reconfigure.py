"""Reconfigure as the leader runs it: which steps, in which order, who counts, and what a failure leaves."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from core.cluster import NodeId, Pending, Shard
from core.errors import Conflict
from core.replication.log import Position
from core.replication.messages import (
    Activate,
    CatchUp,
    CaughtUp,
    Level,
    Leveled,
    NotCaughtUp,
    Promise,
    Promised,
    Refused,
    ReplicaId,
)
from core.replication.reconfigure import (
    Change,
    Failed,
    Finished,
    Plan,
    Reconfiguration,
    Step,
    Tell,
    activated,
    cheapest,
    fence_size,
    numbered,
    with_learner,
    without_learner,
)

NODES = tuple(NodeId(f"n{i}") for i in range(1, 5))
N1, N2, N3, N4 = (ReplicaId(node, 1) for node in NODES)


def shard(in_sync: int = 3, **changes: object) -> Shard:
    made = Shard(
        number=0,
        first_hash=0,
        last_hash=(1 << 64) - 1,
        primary=NODES[0],
        in_sync=NODES[:in_sync],
        learners=NODES[in_sync:],
        replicas=dict.fromkeys(NODES, 1),
        history=1,
    )
    return replace(made, **changes)


def fencing(record: Shard, plan: Plan) -> Reconfiguration:
    attempt = Reconfiguration(record, plan, leader_term=7)
    attempt.begin(0.0)
    attempt.on_changed(0.0)
    assert attempt.step is Step.FENCE
    return attempt


WITHOUT_N1 = Plan(NODES[1], NODES[1:3])


@pytest.mark.parametrize(("in_sync", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_fence_leaves_the_old_primary_without_a_majority(in_sync: int, needed: int) -> None:
    assert fence_size(in_sync) == needed
    assert in_sync - needed < in_sync // 2 + 1


def test_from_the_number_to_the_activation() -> None:
    record = shard()
    attempt = Reconfiguration(record, WITHOUT_N1, leader_term=7)
    pending = replace(record, pending=Pending(2, NODES[1], NODES[1:3]))
    assert attempt.begin(0.0) == [Change(record, pending)]
    assert attempt.on_changed(0.0) == [Tell(Promise(n, 2, 7)) for n in (N1, N2, N3)]
    attempt.on_unreachable(NODES[0], 0.0)
    assert attempt.on_answer(Promised(N2, 2, Position(1, 5)), 0.0) == []
    catch_up = [Tell(CatchUp(N2, 2, 7, N3, Position(1, 6), counts=True))]
    assert attempt.on_answer(Promised(N3, 2, Position(1, 6)), 0.0) == catch_up
    assert attempt.on_answer(CaughtUp(N2, 2), 0.0) == [Tell(Level(N2, 2, 7, (N2, N3)))]
    assert attempt.on_answer(Leveled(N2, 2, (N2,)), 0.0) == []
    active = replace(
        record, term=2, primary=NODES[1], in_sync=NODES[1:3], learners=(NODES[0], NODES[3]), pending=None
    )
    assert attempt.on_answer(Leveled(N2, 2, (N2, N3)), 0.0) == [Change(pending, active)]
    activate = Activate(N2, 2, 7, (N2, N3), (N1, N4))
    assert attempt.on_changed(0.0) == [Finished(active), Tell(activate)]


def test_the_old_primary_is_given_a_moment() -> None:
    attempt = fencing(shard(), WITHOUT_N1)
    attempt.on_answer(Promised(N2, 2, Position(1, 5)), 0.0)
    assert attempt.on_answer(Promised(N3, 2, Position(1, 5)), 0.1) == []
    assert attempt.tick(0.15) == []
    attempt.tick(0.25)
    assert attempt.step is Step.CATCH_UP


def test_no_moment_is_given_to_who_cannot_be_reached() -> None:
    attempt = fencing(shard(), WITHOUT_N1)
    attempt.on_answer(Promised(N2, 2, Position(1, 5)), 0.0)
    attempt.on_answer(Promised(N3, 2, Position(1, 5)), 0.0)
    attempt.on_unreachable(NODES[0], 0.0)
    assert attempt.step is Step.CATCH_UP


@pytest.mark.parametrize("sender", [N4, ReplicaId("n3", 2), ReplicaId("n9", 1)])
def test_only_members_of_the_active_set_count_for_the_fence(sender: ReplicaId) -> None:
    attempt = fencing(shard(), Plan(NODES[3], NODES[1:4]))
    attempt.on_unreachable(NODES[0], 0.0)
    attempt.on_answer(Promised(N2, 2, Position(1, 5)), 0.0)
    attempt.on_answer(Promised(sender, 2, Position(1, 9)), 0.0)
    assert attempt.step is Step.FENCE


def test_answers_of_another_attempt_count_for_nothing() -> None:
    attempt = fencing(shard(), WITHOUT_N1)
    attempt.on_answer(Promised(N1, 1, Position(1, 5)), 0.0)
    attempt.on_answer(Promised(N2, 3, Position(1, 5)), 0.0)
    assert attempt._promised == {}


def test_the_last_term_decides_which_log_is_best() -> None:
    attempt = fencing(shard(), Plan(NODES[3], (NODES[3],)))
    attempt.on_answer(Promised(N1, 2, Position(1, 90)), 0.0)
    effects = attempt.on_answer(Promised(N2, 2, Position(2, 3)), 0.0)
    assert effects == [Tell(CatchUp(N4, 2, 7, N2, Position(2, 3), counts=False))]


def test_the_next_attempt_has_a_higher_term_whatever_its_end() -> None:
    first = numbered(shard(), WITHOUT_N1)
    second = numbered(first, WITHOUT_N1)
    assert second.pending is not None
    assert second.pending.term == 3
    assert numbered(activated(second), Plan(NODES[1], NODES[:2])).pending == Pending(4, NODES[1], NODES[:2])


def test_who_has_promised_more_ends_the_attempt() -> None:
    attempt = fencing(shard(), WITHOUT_N1)
    (failed,) = attempt.on_answer(Refused(N2, None, 2, promised=5), 0.0)
    assert isinstance(failed, Failed)
    assert attempt.tick(10.0) == []


def test_a_step_that_takes_too_long_names_the_silent() -> None:
    attempt = fencing(shard(), WITHOUT_N1)
    attempt.on_answer(Promised(N2, 2, Position(1, 5)), 0.0)
    (failed,) = attempt.tick(5.0)
    assert isinstance(failed, Failed)
    assert failed.silent == (NODES[0], NODES[2])


def test_a_restarted_primary_catches_up_again() -> None:
    attempt = fencing(shard(), Plan(NODES[0], NODES[:3]))
    for member in (N1, N2):
        attempt.on_answer(Promised(member, 2, Position(1, 5)), 0.0)
    attempt.on_answer(CaughtUp(N1, 2), 0.0)
    (tell,) = attempt.on_answer(NotCaughtUp(N1, 2), 0.0)
    assert tell == Tell(CatchUp(N1, 2, 7, N1, Position(1, 5), counts=True))


def test_commands_are_repeated() -> None:
    attempt = fencing(shard(), WITHOUT_N1)
    attempt.on_answer(Promised(N1, 2, Position(1, 5)), 0.0)
    assert attempt.tick(0.1) == []
    assert attempt.tick(0.3) == [Tell(Promise(n, 2, 7)) for n in (N2, N3)]


def activating(record: Shard) -> tuple[Reconfiguration, Shard]:
    attempt = fencing(record, WITHOUT_N1)
    for member in (N1, N2):
        attempt.on_answer(Promised(member, 2, Position(1, 5)), 0.0)
    attempt.on_answer(CaughtUp(N2, 2), 0.0)
    (change,) = attempt.on_answer(Leveled(N2, 2, (N2, N3)), 0.0)
    assert isinstance(change, Change)
    return attempt, change.expected


def test_an_activation_never_overwrites_a_newer_pending() -> None:
    attempt, there = activating(shard())
    (failed,) = attempt.on_conflict(numbered(there, Plan(NODES[2], NODES[1:3])), 0.0)
    assert isinstance(failed, Failed)


def test_an_activation_is_repeated_over_another_change_of_the_record() -> None:
    attempt, there = activating(shard())
    newer = without_learner(there, NODES[3])
    assert attempt.on_conflict(newer, 0.0) == [Change(newer, activated(newer))]


def test_an_activation_whose_answer_was_lost_is_found_in_the_map() -> None:
    attempt, there = activating(shard())
    assert attempt.on_conflict(activated(there), 0.0)[0] == Finished(activated(there))


@pytest.mark.parametrize(
    "plan",
    [
        Plan(NODES[0], NODES[1:3]),
        Plan(NODES[0], (NODES[0], NODES[0])),
        Plan(NODES[0], (NODES[0], NodeId("n9"))),
    ],
)
def test_a_plan_that_cannot_be(plan: Plan) -> None:
    with pytest.raises(Conflict):
        numbered(shard(), plan)


def test_a_replica_that_came_back_as_another_is_taken_in_only_when_the_old_one_counts_no_more() -> None:
    with pytest.raises(Conflict):
        with_learner(shard(), NODES[2], 2)
    with pytest.raises(Conflict):
        with_learner(numbered(shard(), Plan(NODES[0], (NODES[0], NODES[3]))), NODES[3], 2)
    dropped = activated(numbered(shard(), Plan(NODES[0], NODES[:2])))
    taken_in = with_learner(dropped, NODES[2], 2)
    assert taken_in.replicas[NODES[2]] == 2
    assert set(taken_in.learners) == {NODES[2], NODES[3]}


def test_only_learners_can_be_removed() -> None:
    assert without_learner(shard(), NODES[3]).replicas.keys() == set(NODES[:3])
    with pytest.raises(Conflict):
        without_learner(shard(), NODES[1])


@pytest.mark.parametrize(
    ("answering", "expected"),
    [
        (NODES, Plan(NODES[0], NODES[:3])),
        (NODES[1:], Plan(NODES[1], NODES[1:3])),
        (NODES[2:], None),
    ],
)
def test_the_cheapest_plan_keeps_the_primary_if_it_answers(
    answering: tuple[NodeId, ...], expected: Plan | None
) -> None:
    assert cheapest(shard(), answering) == expected


def test_a_set_does_not_shrink_below_what_it_may() -> None:
    assert cheapest(shard(2), NODES[1:], smallest=2) is None
    assert cheapest(shard(2), NODES[1:]) == Plan(NODES[1], (NODES[1],))
