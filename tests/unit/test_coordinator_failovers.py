"""How many failovers begin, who is taken back after one and how late, what is said in the end."""

from __future__ import annotations

import io

from console.coordinator.failovers import PACE, Failovers
from core.cluster import CollectionId, NodeId
from core.detector import Pace
from net.logs import log_to

N1, N2, N3 = (NodeId(n) for n in ("n1", "n2", "n3"))
SHARD = (CollectionId(1), 0)


class Clock:
    now_s = 100.0


def made(pace: Pace = PACE) -> tuple[Failovers, io.StringIO, Clock]:
    said, clock = io.StringIO(), Clock()
    return Failovers(pace, log_to(said), lambda: clock.now_s), said, clock


def test_one_permission_is_enough_for_all_shards_of_a_node_until_it_is_well() -> None:
    guarded, _, clock = made(Pace(burst=5, again_s=10.0))
    assert guarded.may_begin((N1,), must=False)
    assert guarded.may_begin((N1,), must=False)
    guarded.well({N1, N2})
    assert not guarded.may_begin((N1,), must=False)
    clock.now_s += 10.0
    assert guarded.may_begin((N1,), must=False)


def test_beyond_the_burst_only_what_is_fenced_already_goes_on() -> None:
    guarded, said, _ = made(Pace(burst=1))
    assert guarded.may_begin((N1,), must=False)
    assert not guarded.may_begin((N2,), must=False)
    assert not guarded.may_begin((N2,), must=False)
    assert said.getvalue().count("failover.held_back peer=n2") == 1
    assert guarded.may_begin((N2,), must=True)


def test_who_flaps_is_taken_back_later_each_time() -> None:
    guarded, _, clock = made()
    guarded.well({N1, N2})
    assert guarded.restless({N1, N2}) == frozenset()
    waits = []
    for _ in range(8):
        assert guarded.may_begin((N1,), must=False)
        guarded.well({N2})
        clock.now_s += 1.0
        guarded.well({N1, N2})
        began_s = clock.now_s
        while N1 in guarded.restless({N1, N2}):
            clock.now_s += 0.5
        waits.append(clock.now_s - began_s)
        assert guarded.restless({N2}) == frozenset()
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_failover_is_over_when_its_last_shard_is() -> None:
    guarded, said, clock = made()
    other = (CollectionId(1), 1)
    for shard in (SHARD, other):
        guarded.begun(N1, 99.5, shard)
    guarded.ended(N1, SHARD, failed=False)
    assert said.getvalue() == ""
    clock.now_s += 0.25
    guarded.ended(N1, other, failed=True)
    assert "event=failover.done peer=n1 shards=1 failed=1 took_ms=750" in said.getvalue()
