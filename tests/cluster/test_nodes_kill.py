"""SIGKILL of primaries under load, several times: nothing acknowledged is lost, and how long writes wait."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from tests.running.cluster import RunningCluster
from tests.running.load import Load, eventual_reads, longest_gap_s, wait_equal
from tests.running.replicated import NAME, SHARDS, busiest_primary, create, report

P50_S, MAX_S = 1.0, 3.0
EVENTUAL_GAP_S = 1.0


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(1, marks=pytest.mark.timeout(90)),
        pytest.param(5, marks=[pytest.mark.long, pytest.mark.timeout(400)]),
    ],
)
def test_a_killed_primary_is_replaced_and_nothing_is_lost(
    new_cluster: Callable[..., RunningCluster], kills: int
) -> None:
    cluster = new_cluster().start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    waited: list[float] = []
    gaps: list[float] = []
    for _ in range(kills):
        victim, affected = busiest_primary(cluster)
        with load.running(), eventual_reads(cluster, NAME) as answered:
            load.wait_more(40)
            at_s = cluster.nodes[victim].kill()
            waited += load.wait_first_after(at_s, affected, within_s=30)
            load.wait_more(40)
        gaps.append(longest_gap_s(answered))
        cluster.nodes[victim].start()
        cluster.wait_in_sync(NAME)
        load.check(wait_equal(cluster, NAME))
    report("SIGKILL of a primary", waited, load, gaps)
    assert statistics.median(waited) < P50_S
    assert max(waited) < MAX_S
    assert max(gaps) < EVENTUAL_GAP_S
