"""Coordinators come and go: another leads in time, and what a deposed one still says has no effect."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.running.cluster import RunningCluster
from tests.running.load import Load, wait_equal
from tests.running.replicated import NAME, SHARDS, busiest_primary, create, report
from tests.running.waiting import keeps, wait_until

pytestmark = pytest.mark.long
KILLED_S, STEPPED_DOWN_S = 3.0, 0.5
STOPPED_S = 10.0


@pytest.mark.timeout(180)
def test_another_coordinator_leads_in_time(new_cluster: Callable[..., RunningCluster]) -> None:
    cluster = new_cluster(coordinators=2).start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    killed: list[float] = []
    stepped_down: list[float] = []
    with load.running():
        for _ in range(3):
            for took, number in ((killed, signal.SIGKILL), (stepped_down, signal.SIGTERM)):
                leader = cluster.wait_leader()
                both_stand(cluster)
                at_s = cluster.coordinators[leader].signal(number)
                cluster.wait_leader(but=leader)
                took.append(time.monotonic() - at_s)
                cluster.coordinators[leader].wait_ended()
                cluster.coordinators[leader].start()
    longest = max(b.end_s - a.end_s for a, b in zip(load.acknowledged, load.acknowledged[1:]))
    print(
        f"\nanother coordinator leads after SIGKILL: {[round(s, 2) for s in killed]} s, "
        f"after a clean step-down: {[round(s, 2) for s in stepped_down]} s; "
        f"writes paused {longest:.2f} s at most"
    )
    load.check(wait_equal(cluster, NAME))
    assert max(killed) < KILLED_S
    assert max(stepped_down) < STEPPED_DOWN_S
    assert longest < 1.0  # nobody needs a leader to write


def both_stand(cluster: RunningCluster) -> None:
    """Until each coordinator knows who leads."""
    for one in cluster.coordinators.values():
        wait_until(partial(one.said, "leader.seen"), 15, f"{one.name} stands")


@pytest.mark.timeout(120)
def test_a_leader_that_was_stopped_does_nothing_when_it_wakes(
    new_cluster: Callable[..., RunningCluster],
) -> None:
    """It is stopped in the instant in which a primary dies, and so has a failover under way."""
    cluster = new_cluster(coordinators=2).start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    leader = cluster.wait_leader()
    victim, affected = busiest_primary(cluster)
    with load.running():
        load.wait_more(40)
        at_s = cluster.nodes[victim].signal(signal.SIGKILL)
        stopped_s = cluster.coordinators[leader].signal(signal.SIGSTOP)
        load.wait_first_after(at_s, affected, within_s=30)
        cluster.wait_leader(but=leader)
        keeps(
            lambda: time.monotonic() > 0, STOPPED_S - (time.monotonic() - stopped_s), "the leader is stopped"
        )
        before = cluster.truth.shards(NAME), cluster.truth.map().leader_term
        cluster.coordinators[leader].signal(signal.SIGCONT)
        keeps(lambda: (cluster.truth.shards(NAME), cluster.truth.map().leader_term) == before, 4, "the map")
        load.wait_more(40)
    assert cluster.coordinators[leader].is_running()
    assert cluster.wait_leader() != leader
    cluster.nodes[victim].wait_ended()
    cluster.nodes[victim].start()
    cluster.wait_in_sync(NAME)
    load.check(wait_equal(cluster, NAME))
    report("SIGSTOP of the leader for 10 s, its commands afterwards refused", [], load)


@pytest.mark.timeout(120)
def test_commands_that_were_held_on_their_way_are_refused(new_cluster: Callable[..., RunningCluster]) -> None:
    """All that the leader says is held; it sees a primary die and acts. Its successor has acted by then."""
    cluster = new_cluster(coordinators=2, proxied=True).start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    leader = cluster.wait_leader()
    both_stand(cluster)
    victim, affected = busiest_primary(cluster)
    with load.running():
        load.wait_more(40)
        for node in cluster.nodes:
            cluster.links.cut(leader, node)
        at_s = cluster.nodes[victim].kill()
        waited = load.wait_first_after(at_s, affected, within_s=30)
        cluster.wait_leader(but=leader)
        cluster.nodes[victim].start()
        cluster.wait_in_sync(NAME)
        before = cluster.truth.shards(NAME)
        cluster.links.heal()
        keeps(lambda: cluster.truth.shards(NAME) == before, 3, "the shards after the old commands arrived")
        load.wait_more(40)
    assert cluster.wait_leader() != leader
    load.check(wait_equal(cluster, NAME))
    report("SIGKILL of a primary while the leader is cut off one way", waited, load)


@pytest.mark.timeout(120)
def test_without_any_coordinator_reads_and_writes_go_on(new_cluster: Callable[..., RunningCluster]) -> None:
    cluster = new_cluster().start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    with load.running():
        load.wait_more(40)
        cluster.coordinators["c1"].kill()
        load.wait_more(500)
    assert load.refused == []
    load.check(wait_equal(cluster, NAME))
