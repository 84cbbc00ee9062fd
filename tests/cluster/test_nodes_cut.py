"""Cut and slow links between nodes, clients on both sides: the majority goes on, all converges by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from tests.running.cluster import RunningCluster
from tests.running.load import Load, wait_equal
from tests.running.replicated import NAME, SHARDS, busiest_primary, create, report, terms, wait_replaced

pytestmark = pytest.mark.long
P50_S, MAX_S = 3.5, 6.0


@pytest.mark.timeout(500)
def test_a_minority_acknowledges_nothing_and_all_converges(
    new_cluster: Callable[..., RunningCluster],
) -> None:
    """One node, primary of shards, is cut off without a word; some clients know only that node."""
    cluster = new_cluster(proxied=True).start()
    create(cluster)
    waited: list[float] = []
    outside = Load(cluster, NAME, SHARDS)
    for cut in range(5):
        victim, affected = busiest_primary(cluster)
        others = [name for name in cluster.nodes if name != victim]
        inside = Load(
            cluster, NAME, SHARDS, clients=2, through=[victim], stays=True, first_key=1000 * cut + 1
        )
        outside = Load(cluster, NAME, SHARDS, through=others, stays=True, first_key=1000 * cut + 501)
        with inside.running(), outside.running():
            outside.wait_more(40)
            inside.wait_more(20)
            cluster.links.isolate(victim)
            at_s = time.monotonic()
            waited += outside.wait_first_after(at_s, affected, within_s=30)
            wait_replaced(cluster, victim)
            outside.wait_more(100)
            healed_s = time.monotonic()
            cluster.links.heal()
            inside.wait_more(20, within_s=30)
        cluster.wait_in_sync(NAME)
        found = wait_equal(cluster, NAME)
        inside.check(found)
        outside.check(found)
        assert [a for a in inside.acknowledged if a.begin_s > at_s and a.end_s < healed_s] == []
    report("silent cut of a primary", waited, outside)
    assert statistics.median(waited) < P50_S
    assert max(waited) < MAX_S


@pytest.mark.timeout(240)
@pytest.mark.parametrize("direction", ["says nothing", "hears nothing"])
def test_a_primary_that_is_cut_one_way_is_replaced_once(
    new_cluster: Callable[..., RunningCluster], direction: str
) -> None:
    cluster = new_cluster(proxied=True).start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    victim, affected = busiest_primary(cluster)
    before = terms(cluster)
    with load.running():
        load.wait_more(40)
        for other in [*cluster.nodes, *cluster.coordinators]:
            if other != victim:
                pair = (victim, other) if direction == "says nothing" else (other, victim)
                cluster.links.cut(*pair)
        at_s = time.monotonic()
        waited = load.wait_first_after(at_s, affected, within_s=30)
        load.wait_more(200)
        during = terms(cluster)
        cluster.links.heal()
        load.wait_more(100)
    cluster.wait_in_sync(NAME)
    load.check(wait_equal(cluster, NAME))
    report(f"a primary that {direction}", waited, load)
    assert {shard: during[shard] - before[shard] for shard in affected} == dict.fromkeys(affected, 1)
    assert max(waited) < MAX_S


@pytest.mark.timeout(240)
def test_a_cut_between_two_followers_or_from_the_primary_only_is_survived(
    new_cluster: Callable[..., RunningCluster],
) -> None:
    """The coordinator still reaches all; only two nodes don't hear each other."""
    cluster = new_cluster(proxied=True).start()
    create(cluster, shards=1)
    for with_primary in (False, True):
        load = Load(cluster, NAME, 1, first_key=1001 if with_primary else 1)
        primary = cluster.primaries(NAME)[0]
        a, b = [name for name in cluster.nodes if name != primary]
        pair = (primary, b) if with_primary else (a, b)
        with load.running():
            load.wait_more(40)
            cluster.links.cut(*pair)
            cluster.links.cut(*reversed(pair))
            at_s = time.monotonic()
            waited = load.wait_first_after(at_s, [0], within_s=30)
            load.wait_more(300)
            cluster.links.heal()
            load.wait_more(50)
        cluster.wait_in_sync(NAME)
        load.check(wait_equal(cluster, NAME))
        report(f"a cut between {'the primary and' if with_primary else 'two'} followers", waited, load)
        assert max(waited) < MAX_S


@pytest.mark.timeout(240)
def test_connections_that_are_reset_again_and_again_lose_and_double_nothing(
    new_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = new_cluster(proxied=True).start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    with load.running():
        for number in range(30):
            load.wait_more(15)
            a, b = [(a, b) for a in cluster.nodes for b in cluster.nodes if a != b][number % 6]
            cluster.links.abort(a, b)
    cluster.wait_in_sync(NAME)
    load.check(wait_equal(cluster, NAME))
    report("30 resets of a link", [], load)
