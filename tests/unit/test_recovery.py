"""What the leader does next for a shard: who is given up, promoted, taken in, and when nobody is."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from core.cluster import NodeId, Pending, Shard
from core.recovery import (
    LAG_ENTRIES_MAX,
    Nodes,
    Reconfigure,
    Renew,
    Replicas,
    Step,
    Stuck,
    next_step,
    smallest_set,
)
from core.replication.reconfigure import Plan

A, B, C, D, E = (NodeId(n) for n in "abcde")


def shard(*in_sync: NodeId, learners: tuple[NodeId, ...] = (), pending: Pending | None = None) -> Shard:
    return Shard(
        number=0,
        first_hash=0,
        last_hash=(1 << 64) - 1,
        term=4,
        primary=in_sync[0],
        in_sync=in_sync,
        learners=learners,
        pending=pending,
        replicas=dict.fromkeys((*in_sync, *learners), 1),
        history=1,
    )


def step(
    of: Shard, *, smallest: int | None = None, replicas: Replicas | None = None, **seen: Any
) -> Step | None:
    least = smallest_set(len(of.replicas), 1) if smallest is None else smallest
    return next_step(of, least, Nodes(**seen), replicas or Replicas())


def plan(of: Step | None) -> Plan:
    assert isinstance(of, Reconfigure), of
    return of.plan


@pytest.mark.parametrize(
    ("placed", "factor", "smallest"),
    [(1, 1, 1), (2, 1, 1), (2, 2, 2), (3, 1, 2), (3, 3, 3), (3, 9, 3), (4, 1, 3), (5, 1, 3)],
)
def test_how_far_a_set_shrinks_by_itself(placed: int, factor: int, smallest: int) -> None:
    assert smallest_set(placed, factor) == smallest


def test_a_shard_that_is_well_needs_nothing() -> None:
    assert step(shard(A, B, C), replicas=Replicas(lags={B: 0, C: 9})) is None


def test_a_dead_primary_is_replaced_by_a_member() -> None:
    assert step(shard(A, B, C), dead={A}) == Reconfigure(Plan(B, (B, C)), "a is dead", (A,))


def test_a_dead_follower_is_dropped_and_the_primary_stays() -> None:
    assert plan(step(shard(A, B, C), dead={B})) == Plan(A, (A, C))


def test_the_new_primary_is_caught_up_and_healthy_and_leads_little() -> None:
    of = shard(A, B, C)
    assert plan(step(of, dead={A}, led={B: 3, C: 2})).primary == C
    assert plan(step(of, dead={A}, led={B: 3, C: 2}, doubtful={C})).primary == B
    behind = Replicas(lags={B: 0, C: LAG_ENTRIES_MAX + 1})
    assert plan(step(of, dead={A}, led={B: 3, C: 2}, replicas=behind)).primary == B


def test_of_three_one_alone_is_stuck_and_names_who_is_missing() -> None:
    found = step(shard(A, B, C), dead={A, C})
    assert isinstance(found, Stuck)
    assert found.missing == (A, C)
    assert found.why == "1 of 3 in-sync replicas are there, 2 are needed"


def test_of_a_set_that_has_shrunk_to_two_of_three_none_is_given_up() -> None:
    assert isinstance(step(shard(A, B, learners=(C,)), dead={B, C}), Stuck)


def test_of_two_placed_one_goes_on_alone_unless_the_write_factor_forbids_it() -> None:
    assert plan(step(shard(A, B), dead={A})) == Plan(B, (B,))
    assert isinstance(step(shard(A, B), smallest=smallest_set(2, 2), dead={A}), Stuck)


def test_what_was_left_pending_is_finished_in_the_cheapest_way() -> None:
    left = shard(A, B, C, pending=Pending(5, C, (B, C)))
    assert plan(step(left)) == Plan(A, (A, B, C))
    assert plan(step(left, dead={A})).in_sync == (B, C)


def test_who_did_not_answer_the_last_attempt_is_left_out_if_that_is_enough() -> None:
    left = shard(A, B, C, pending=Pending(5, A, (A, B, C)))
    assert plan(step(left, replicas=Replicas(silent={C}))) == Plan(A, (A, B))
    assert plan(step(left, replicas=Replicas(silent={B, C}))) == Plan(A, (A, B, C))


@pytest.mark.parametrize(
    ("cuts", "left"),
    [
        ([{A, B}], (A, C)),
        ([{B, C}], (A, B)),
        ([{A, B}, {A, C}], (B, C)),
        ([{A, D}], (A, B, C)),
    ],
)
def test_of_members_that_do_not_hear_each_other_the_largest_group_stays(
    cuts: list[set[NodeId]], left: tuple[NodeId, ...]
) -> None:
    found = step(shard(A, B, C), cuts=[frozenset(cut) for cut in cuts])
    assert (plan(found).in_sync if found else (A, B, C)) == left


def test_three_that_hear_nobody_are_left_as_they_are() -> None:
    cuts = [frozenset(cut) for cut in ({A, B}, {A, C}, {B, C})]
    assert isinstance(step(shard(A, B, C), cuts=cuts), Stuck)


CAUGHT_UP = Replicas(lags={B: 0, C: LAG_ENTRIES_MAX})


def test_a_learner_is_taken_in_once_its_lag_is_bounded() -> None:
    of = shard(A, B, learners=(C,))
    assert step(of, replicas=CAUGHT_UP) == Reconfigure(Plan(A, (A, B, C)), "c caught up")
    assert step(of, replicas=Replicas(lags={B: 0, C: LAG_ENTRIES_MAX + 1})) is None
    assert step(of, replicas=Replicas(lags={B: 0})) is None
    assert step(of) is None


@pytest.mark.parametrize(
    "seen",
    [
        {"dead": {C}},
        {"doubtful": {C}},
        {"doubtful": {A}},
        {"leaving": {C}},
        {"cuts": [frozenset({B, C})]},
    ],
)
def test_a_learner_that_may_fall_out_again_is_not_taken_in(seen: dict[str, Any]) -> None:
    assert step(shard(A, B, learners=(C,)), replicas=CAUGHT_UP, **seen) is None


def test_a_node_that_lost_its_replica_is_given_up_and_then_gets_another() -> None:
    lost = Replicas(lags={B: 0, C: 0}, lost={C})
    assert plan(step(shard(A, B, C), replicas=lost)) == Plan(A, (A, B))
    assert step(shard(A, B, learners=(C,)), replicas=lost) == Renew(C)
    assert step(shard(A, B, learners=(C,)), replicas=lost, dead={C}) is None
    assert step(shard(A, B, learners=(C,)), replicas=lost, leaving={C}) is None


def test_a_plan_names_replicas_only_and_needs_a_fence() -> None:
    """For any failures: a plan's members live, hear each other, and are enough to fence the active set."""
    of = shard(A, B, C, D, E)
    everyone = (A, B, C, D, E)
    for mask in range(1 << len(everyone)):
        dead = {n for i, n in enumerate(everyone) if mask >> i & 1}
        for cut in (None, {A, B}, {D, E}):
            found = step(replace(of, primary=E), dead=dead, cuts=[frozenset(cut)] if cut else [])
            if isinstance(found, Reconfigure):
                members = set(found.plan.in_sync)
                assert not members & dead
                assert len(members) >= 3
                assert found.plan.primary in members
                assert cut is None or not cut <= members
            else:
                assert found is None or len(dead) >= 2
