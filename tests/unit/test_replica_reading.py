"""Reads with a consistency: they wait for what was acknowledged, and never rest on a deposed primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.store.replica_reading import ReplicaReading
from core.cluster import ClusterMap, ClusterView, CollectionId, Shards
from core.errors import DeadlineExceeded, Unavailable
from core.replication.effects import Consistency, StaleTerm
from tests.storing.contents import upsert
from tests.storing.folders import folder_in_memory
from tests.unit.replica_nodes import COLLECTION, NUMBER, Node, ReplicaCluster, replica_cluster, until, write

ALL = ("n1", "n2", "n3")
LINEARIZABLE = (Consistency.QUORUM, Consistency.STRONG)


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made


@pytest.fixture
async def cluster(folder: Path) -> AsyncIterator[ReplicaCluster]:
    async with replica_cluster(folder) as made:
        await made.begin(ALL)
        yield made


class Router:
    """A node's router with a map of its own, which may be old."""

    def __init__(self, cluster: ReplicaCluster, node: Node) -> None:
        self._cluster, self._node = cluster, node
        self.configuration = cluster.configuration
        self.learned = 0
        assert node.peers is not None
        self.reading = ReplicaReading(node.replicas, node.peers, self._view, self._take_up)

    def _view(self) -> ClusterView:
        shards = Shards(collection=COLLECTION, shards=(self.configuration,))
        return ClusterView(ClusterMap(cluster="one"), {COLLECTION: shards})

    async def _take_up(self, collection: CollectionId) -> None:
        self.learned += 1
        self.configuration = self._cluster.configuration

    async def read(self, consistency: Consistency, within_s: float = 10) -> tuple[str, set[int | str]]:
        """Where, and the points that are there then."""
        deadline_s = asyncio.get_running_loop().time() + within_s
        place = await self.reading.place(COLLECTION, NUMBER, consistency, deadline_s)
        node = self._cluster[place.node]
        assert node.applied >= place.applied
        return place.node, set(node.points())


@pytest.mark.parametrize("consistency", LINEARIZABLE)
async def test_a_read_sees_each_write_that_was_acknowledged_before(
    cluster: ReplicaCluster, consistency: Consistency
) -> None:
    routers = [Router(cluster, node) for node in cluster.nodes.values()]
    for tag in range(8):
        await write(cluster["n1"], upsert([tag], tag), until="persisted")
        for router in routers:
            assert (await router.read(consistency))[1] == set(range(tag + 1))


async def test_a_quorum_read_is_made_on_the_own_node_if_it_answered_and_a_strong_one_at_the_primary(
    cluster: ReplicaCluster,
) -> None:
    await write(cluster["n1"], upsert([1], 1), consistency=Consistency.STRONG)
    router = Router(cluster, cluster["n3"])
    assert (await router.read(Consistency.STRONG))[0] == "n1"
    places = {(await router.read(Consistency.QUORUM))[0] for _ in range(20)}
    assert "n3" in places


@pytest.mark.parametrize("consistency", LINEARIZABLE)
async def test_a_router_with_an_old_map_fetches_the_new_one(
    cluster: ReplicaCluster, consistency: Consistency
) -> None:
    router = Router(cluster, cluster["n1"])
    await write(cluster["n1"], upsert([1], 1))
    assert await cluster.reconfigure("n2", ALL) is None
    await write(cluster["n2"], upsert([2], 2))
    assert (await router.read(consistency))[1] == {1, 2}
    assert router.learned > 0


@pytest.mark.parametrize("consistency", LINEARIZABLE)
async def test_a_primary_that_is_cut_off_answers_no_such_read(
    cluster: ReplicaCluster, consistency: Consistency
) -> None:
    await write(cluster["n1"], upsert([1], 1))
    for name in ("n2", "n3"):
        await cluster[name].stop()
    with pytest.raises(Unavailable, match="takes no"):
        await Router(cluster, cluster["n1"]).read(consistency, within_s=0.5)
    await cluster["n3"].start()
    assert (await Router(cluster, cluster["n3"]).read(consistency))[1] == {1}


async def test_a_strong_read_that_waits_is_told_when_its_primary_is_fenced(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([1], 1))
    for name in ("n2", "n3"):
        await cluster[name].stop()
    deadline_s = asyncio.get_running_loop().time() + 10
    driven = cluster["n1"].replicas.get(COLLECTION, NUMBER)
    reading = asyncio.create_task(driven.confirm(1, deadline_s))
    await asyncio.sleep(0)
    await cluster["n1"].open_shard.promise(2)
    with pytest.raises(StaleTerm, match="term 2"):
        await reading
    with pytest.raises(StaleTerm):
        await driven.confirm(1, deadline_s)


async def test_a_replica_that_has_not_applied_so_far_says_so_in_time(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([1], 1))
    driven = cluster["n2"].replicas.get(COLLECTION, NUMBER)
    with pytest.raises(DeadlineExceeded, match="entry 99 is not applied here yet"):
        await driven.reach(99, 1, asyncio.get_running_loop().time() + 0.1)
    await until(lambda: cluster["n2"].applied == cluster["n1"].applied)
    await driven.reach(2, 1, asyncio.get_running_loop().time() + 5)
    with pytest.raises(StaleTerm):
        await driven.reach(2, 0, asyncio.get_running_loop().time() + 5)
