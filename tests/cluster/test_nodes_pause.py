"""SIGSTOP of primaries for longer than the lease: others take over, and who wakes up is fenced."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable

import pytest

from tests.running.cluster import RunningCluster
from tests.running.load import Load, eventual_reads, longest_gap_s, wait_equal
from tests.running.replicated import NAME, SHARDS, busiest_primary, create, report, wait_replaced

pytestmark = pytest.mark.long
P50_S, MAX_S = 3.5, 6.0
EVENTUAL_GAP_S = 1.0


@pytest.mark.timeout(400)
def test_a_stopped_primary_is_replaced_and_fenced_when_it_wakes(
    new_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = new_cluster().start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS, clients=5)
    waited: list[float] = []
    gaps: list[float] = []
    for _ in range(5):
        victim, affected = busiest_primary(cluster)
        with load.running(), eventual_reads(cluster, NAME) as answered:
            load.wait_more(40)
            at_s = cluster.nodes[victim].signal(signal.SIGSTOP)
            waited += load.wait_first_after(at_s, affected, within_s=30)
            wait_replaced(cluster, victim)
            load.wait_more(40)
            cluster.nodes[victim].signal(signal.SIGCONT)
            load.wait_more(200)
        gaps.append(longest_gap_s(answered))
        cluster.wait_in_sync(NAME)
        load.check(wait_equal(cluster, NAME))
    report("SIGSTOP of a primary", waited, load, gaps)
    assert statistics.median(waited) < P50_S
    assert max(waited) < MAX_S
    assert max(gaps) < EVENTUAL_GAP_S


@pytest.mark.timeout(120)
def test_the_machine_of_a_primary_and_the_coordinator_stops_at_once(
    new_cluster: Callable[..., RunningCluster],
) -> None:
    """Both die in the same instant: first another has to lead, then another primary."""
    cluster = new_cluster(coordinators=2).start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    leader = cluster.wait_leader()
    victim, affected = busiest_primary(cluster)
    with load.running():
        load.wait_more(40)
        cluster.coordinators[leader].signal(signal.SIGKILL)
        at_s = cluster.nodes[victim].kill()
        waited = load.wait_first_after(at_s, affected, within_s=30)
        load.wait_more(40)
    cluster.nodes[victim].start()
    cluster.wait_in_sync(NAME)
    load.check(wait_equal(cluster, NAME))
    report("SIGKILL of a primary and the leading coordinator", waited, load)
    assert max(waited) < MAX_S
