"""All nodes end at once and come back; and a cluster that grows from one node to three."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from core.cluster import NodeId
from tests.running.cluster import RunningCluster
from tests.running.load import Load, wait_equal
from tests.running.replicated import NAME, SHARDS, create, report
from tests.running.waiting import wait_until

pytestmark = pytest.mark.long


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_all_nodes_end_at_once_and_come_back_with_everything(
    new_cluster: Callable[..., RunningCluster], how: signal.Signals
) -> None:
    cluster = new_cluster().start()
    create(cluster)
    load = Load(cluster, NAME, SHARDS)
    for _ in range(2):
        with load.running():
            load.wait_more(60)
            for node in cluster.nodes.values():
                node.signal(how) if how is signal.SIGKILL else node.terminate()
            for node in cluster.nodes.values():
                node.wait_ended(30)
            for node in cluster.nodes.values():
                node.spawn()
            for node in cluster.nodes.values():
                node.wait_ready(40)
            load.wait_more(40, within_s=30)
        cluster.wait_in_sync(NAME)
        load.check(wait_equal(cluster, NAME))


@pytest.mark.timeout(240)
def test_one_node_becomes_three(new_cluster: Callable[..., RunningCluster]) -> None:
    cluster = new_cluster(in_file=1, cluster={"auto_join": True})
    first, *joining = cluster.nodes.values()
    first.start()
    cluster.coordinators["c1"].start()
    cluster.wait_leader(20)
    create(cluster, asked=3, replicas=1)
    load = Load(cluster, NAME, SHARDS, through=["n1"])
    with load.running():
        load.wait_more(100)
        cluster.write_config(cluster.nodes)
        for node in joining:
            node.start(40)
        wait_until(lambda: len(cluster.truth.map().nodes) == 3, 20, "three nodes in the map")
        load.wait_more(50)
        replicate(cluster)
        load.wait_more(50)
    load.check(wait_equal(cluster, NAME))
    # The first node is still the only voter: the loss of another is what is survived by now.
    survives = Load(cluster, NAME, SHARDS, first_key=1001, through=["n1", "n3"])
    with survives.running():
        at_s = cluster.nodes["n2"].kill()
        waited = survives.wait_first_after(at_s, range(SHARDS), within_s=30)
    cluster.nodes["n2"].start()
    cluster.wait_in_sync(NAME)
    found = wait_equal(cluster, NAME)
    load.check(found)
    survives.check(found)
    report("SIGKILL of a node that joined later", waited, survives)


def replicate(cluster: RunningCluster) -> None:
    """Each shard to each other node, as Qdrant's clients ask for it; until all are in sync."""
    rest = cluster.nodes["n1"].rest()
    numbers = {name: node.number for name, node in cluster.truth.map().nodes.items()}
    for shard in range(SHARDS):
        for name in ("n2", "n3"):
            asked = {
                "shard_id": shard,
                "from_peer_id": numbers[NodeId("n1")],
                "to_peer_id": numbers[NodeId(name)],
            }
            assert rest.post(f"/collections/{NAME}/cluster", {"replicate_shard": asked}).result is True
    rest.close()
    cluster.wait_in_sync(NAME)
