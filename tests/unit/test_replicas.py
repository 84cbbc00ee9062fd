"""Replicas on three nodes: writes get everywhere, survive who fails; what was never committed goes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.page import ShardFlag
from agent.store.identity import read_identity
from core.cluster import NodeId
from core.errors import DeadlineExceeded, Unavailable
from core.replication.effects import Consistency, StaleTerm
from core.replication.messages import Delete, Deleted, Promise, Refused, ReplicaId
from core.replication.reconfigure import with_learner
from core.wire import Outcome
from tests.storing.contents import SCHEMA, upsert
from tests.storing.failing import FailingFiles
from tests.storing.folders import folder_in_memory
from tests.unit.replica_nodes import ReplicaCluster, replica_cluster, until, write

ALL = ("n1", "n2", "n3")


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made


@pytest.fixture
async def cluster(folder: Path) -> AsyncIterator[ReplicaCluster]:
    async with replica_cluster(folder) as made:
        await made.begin(ALL)
        await until(lambda: connected(made))
        yield made


def connected(cluster: ReplicaCluster) -> bool:
    running = cluster.running
    return all(
        node.peers is not None and node.peers.caller(other.name).is_open
        for node in running
        for other in running
        if node is not other
    )


async def level(cluster: ReplicaCluster) -> None:
    """All running replicas have applied what the primary's log holds, and hold the same points."""
    replica = cluster.primary.open_shard.replica
    assert replica is not None
    last_seq = replica.log.last.seq
    await until(lambda: all(node.applied == last_seq for node in cluster.running))
    expected = cluster.primary.points()
    assert all(node.points() == expected for node in cluster.running)


async def test_a_write_gets_to_all_replicas_and_they_hold_the_same(cluster: ReplicaCluster) -> None:
    for tag in range(20):
        assert await write(cluster["n1"], upsert([tag, tag + 1], tag)) == Outcome(touched=2)
    await level(cluster)
    assert len(cluster["n3"].points()) == 21


@pytest.mark.parametrize("consistency", list(Consistency))
async def test_many_writes_at_once_are_acknowledged_with_each_consistency(
    cluster: ReplicaCluster, consistency: Consistency
) -> None:
    node = cluster["n1"]
    for until_what in ("applied", "persisted"):
        writes = [write(node, upsert([n], n), consistency=consistency, until=until_what) for n in range(100)]
        await asyncio.gather(*writes)
    await level(cluster)


async def test_a_follower_takes_no_writes(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([1], 1))
    with pytest.raises(StaleTerm, match="n1 is the primary"):
        await write(cluster["n2"], upsert([2], 2))


async def test_without_a_majority_only_what_asks_for_none_is_acknowledged(cluster: ReplicaCluster) -> None:
    for name in ("n2", "n3"):
        await cluster[name].stop()
    node = cluster["n1"]
    with pytest.raises(DeadlineExceeded):
        await write(node, upsert([1], 1), within_s=0.3)
    await write(node, upsert([2], 2), consistency=Consistency.EVENTUAL, until="persisted")
    assert node.applied == 0
    await cluster["n2"].start()
    await write(node, upsert([3], 3))
    with pytest.raises(DeadlineExceeded):
        await write(node, upsert([4], 4), consistency=Consistency.STRONG, within_s=0.3)
    await level(cluster)
    assert set(cluster["n2"].points()) == {1, 2, 3, 4}


async def test_a_follower_that_was_away_gets_what_it_missed_from_the_log(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([0], 0))
    await cluster["n3"].stop()
    for tag in range(1, 30):
        await write(cluster["n1"], upsert([tag], tag))
    cluster["n1"].open_shard.pipeline.memory.clear()  # what is missing is only in the files
    await cluster["n3"].start()
    await level(cluster)


async def test_a_replica_that_is_far_behind_gets_a_snapshot(folder: Path) -> None:
    async with replica_cluster(folder, log_bytes_kept=2_000) as cluster:
        await cluster.begin(ALL)
        await write(cluster["n1"], upsert([0], 0), consistency=Consistency.STRONG)
        await cluster["n3"].stop()
        for tag in range(60):
            await write(cluster["n1"], upsert(range(tag, tag + 20), tag))
        once: dict[str, Any] = {"request_id": b"only once", "body_hash": b"h"}
        await write(cluster["n1"], upsert([500], 1), **once)
        await cluster["n1"].open_shard.checkpoint()
        before = cluster["n3"].incarnation
        await cluster["n3"].start()
        await until(lambda: cluster["n3"].installs == 1)
        await write(cluster["n1"], upsert([501], 1))
        await level(cluster)
        replica = cluster["n3"].open_shard.replica
        assert replica is not None
        assert replica.me.incarnation == before
        assert cluster["n3"].record.incarnation != before, "fronts must open the files again"
        assert await cluster.reconfigure("n3", ALL) is None
        assert await write(cluster["n3"], upsert([500], 1), **once) == Outcome(touched=1)
        await cluster["n3"].stop()
        await cluster["n3"].start()
        await level(cluster)
        left = [path.name for path in cluster["n3"].folder.parent.iterdir()]
        assert left == ["7-0"]


async def test_a_shard_of_one_replica_gets_two_more(folder: Path) -> None:
    async with replica_cluster(folder, log_bytes_kept=1_000) as cluster:
        await cluster.begin(["n1"])
        for tag in range(30):
            await write(cluster["n1"], upsert(range(tag, tag + 5), tag))
        await cluster["n1"].open_shard.checkpoint()
        await cluster["n1"].stop()
        await cluster["n1"].start()
        assert len(cluster["n1"].points()) == 34, "alone it has committed all that its log holds"
        record = cluster.configuration
        for name in ("n2", "n3"):
            await cluster[name].make(record.history)
            record = with_learner(record, NodeId(name), cluster[name].incarnation)
        cluster.configuration = record
        for name in ("n2", "n3"):
            await cluster[name].start()
        cluster["n1"].learn()
        await level(cluster)
        assert await cluster.reconfigure("n1", ALL) is None
        await write(cluster["n1"], upsert([99], 1), consistency=Consistency.STRONG)
        await level(cluster)
        assert all(node.record.flags & ShardFlag.IN_SYNC for node in cluster.running)


async def test_every_replica_can_restart_and_the_primary_goes_on_by_what_the_map_says(
    cluster: ReplicaCluster,
) -> None:
    for tag, name in enumerate(("n3", "n1", "n2")):
        await write(cluster["n1"], upsert([tag], tag))
        await cluster[name].stop()
        await cluster[name].start()
    await write(cluster["n1"], upsert([9], 9), consistency=Consistency.STRONG)
    await level(cluster)
    assert set(cluster["n2"].points()) == {0, 1, 2, 9}


async def test_after_a_restart_of_all_what_was_acknowledged_is_there(cluster: ReplicaCluster) -> None:
    for tag in range(10):
        await write(cluster["n1"], upsert([tag], tag), until="persisted")
    for name in ALL:
        await cluster[name].stop()
    for name in ALL:
        await cluster[name].start()
    await level(cluster)
    assert set(cluster["n1"].points()) == set(range(10))


async def test_a_failover_loses_no_acknowledged_write(cluster: ReplicaCluster) -> None:
    for tag in range(10):
        await write(cluster["n1"], upsert([tag], tag))
    await cluster["n1"].stop()
    assert await cluster.reconfigure("n2", ["n2", "n3"]) is None
    await write(cluster["n2"], upsert([50], 50))
    await level(cluster)
    assert set(cluster["n3"].points()) == {*range(10), 50}


async def test_what_a_deposed_primary_never_had_committed_is_cut_off(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([1], 1))
    await level(cluster)
    for name in ("n2", "n3"):
        await cluster[name].stop()
    await write(cluster["n1"], upsert([2], 2), consistency=Consistency.EVENTUAL, until="persisted")
    await write(cluster["n1"], upsert([3], 3), consistency=Consistency.EVENTUAL, until="persisted")
    await cluster["n1"].stop()
    for name in ("n2", "n3"):
        await cluster[name].start()
    assert await cluster.reconfigure("n3", ["n2", "n3"]) is None
    await write(cluster["n3"], upsert([4], 4))
    await cluster["n1"].start()  # a learner now
    await level(cluster)
    assert set(cluster["n1"].points()) == {1, 4}
    assert await cluster.reconfigure("n3", ALL) is None
    await cluster["n1"].stop()
    await cluster["n1"].start()
    await write(cluster["n3"], upsert([5], 5), consistency=Consistency.STRONG)
    await level(cluster)


async def test_the_primary_moves_under_writes_and_none_that_was_acknowledged_is_lost(
    cluster: ReplicaCluster,
) -> None:
    acknowledged: set[int] = set()
    stop = asyncio.Event()

    async def client(first: int) -> None:
        tag = first
        while not stop.is_set():
            try:
                await write(cluster.primary, upsert([tag], tag), request_id=b"%016d" % tag, within_s=5)
            except StaleTerm:
                await asyncio.sleep(0.005)
                continue
            acknowledged.add(tag)
            tag += 10

    clients = [asyncio.create_task(client(n)) for n in range(4)]
    for primary in ("n2", "n3", "n1", "n3"):
        wanted = len(acknowledged) + 20
        await until(lambda wanted=wanted: len(acknowledged) > wanted)  # type: ignore[misc]
        assert await cluster.reconfigure(primary, ALL) is None
    stop.set()
    await asyncio.gather(*clients)
    await level(cluster)
    # Each client's last one may have taken effect though it was told to ask again.
    held = cluster["n2"].points()
    assert held.keys() >= acknowledged
    assert cluster["n3"].record.slot_high == len(held), "a retried write took effect twice"


async def test_a_retry_at_the_next_primary_gets_the_first_ones_answer(cluster: ReplicaCluster) -> None:
    once: dict[str, Any] = {"request_id": b"only once", "body_hash": b"h"}
    assert await write(cluster["n1"], upsert([1, 2], 1), **once) == Outcome(touched=2)
    assert await cluster.reconfigure("n2", ALL) is None
    assert await write(cluster["n2"], upsert([1, 2], 1), **once) == Outcome(touched=2)
    await level(cluster)
    assert cluster["n2"].record.slot_high == 2


async def test_the_report_says_which_primaries_are_here_and_who_lags(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([1], 1), consistency=Consistency.STRONG)
    assert cluster["n1"].replicas.report() == {"shards": [[7, 0, 1, 2, {"n2": 0, "n3": 0}]], "lost": []}
    assert cluster["n2"].replicas.report() == {"shards": [], "lost": []}
    replicas = {**cluster.configuration.replicas, NodeId("n2"): 12}
    own = cluster["n2"].incarnation
    cluster.change(replicas=replicas)
    assert cluster["n2"].replicas.report() == {"shards": [], "lost": [[7, 0, own]]}


async def test_a_command_of_a_leader_that_was_superseded_is_refused(cluster: ReplicaCluster) -> None:
    replica = cluster["n2"].open_shard.replica
    assert replica is not None
    cluster["n2"].replicas.heard_leader(5)
    answer = await cluster.command(Promise(replica.me, term=9, leader_term=4))
    assert answer == Refused(replica.me, None, 9, promised=1, leader_term=5)
    assert (await cluster.command(Promise(replica.me, term=9, leader_term=5))).term == 9
    assert read_identity(cluster["n2"].folder / "log")[0].promised == 9
    assert cluster["n2"].record.promised == 9


async def test_what_a_command_says_is_not_said_by_another_replica(cluster: ReplicaCluster) -> None:
    with pytest.raises(Unavailable, match="no replica"):
        await cluster.command(Promise(ReplicaId("n2", 12), term=9, leader_term=1))


async def test_a_deleted_replica_answers_when_it_is_gone(cluster: ReplicaCluster) -> None:
    await write(cluster["n1"], upsert([1], 1), consistency=Consistency.STRONG)
    gone = cluster["n3"].open_shard.replica
    assert gone is not None
    assert await cluster.reconfigure("n1", ["n1", "n2"]) is None
    answer = await cluster.command(Delete(gone.me, cluster.configuration.term, leader_term=1))
    assert answer == Deleted(gone.me, cluster.configuration.term)
    assert cluster["n3"].shard is None
    cluster.change(learners=(), replicas={NodeId(n): cluster[n].incarnation for n in ("n1", "n2")})
    await write(cluster["n1"], upsert([2], 2), consistency=Consistency.STRONG)
    await level(cluster)


async def test_entries_wait_for_the_schema_that_they_were_checked_against(cluster: ReplicaCluster) -> None:
    newer = msgspec.structs.replace(SCHEMA, version=2)
    await cluster["n1"].open_shard.set_schema(newer)
    await write(cluster["n1"], upsert([1], 1), consistency=Consistency.STRONG)
    await until(lambda: bool(cluster["n2"].schemas_wanted))
    assert cluster["n2"].schemas_wanted[0] == 2
    assert cluster["n2"].points() == {}
    for name in ("n2", "n3"):
        await cluster[name].open_shard.set_schema(newer)
    await level(cluster)


async def test_a_replica_whose_disk_fails_falls_silent_and_the_others_go_on(folder: Path) -> None:
    files = FailingFiles()
    async with replica_cluster(folder, disks={"n2": files}) as cluster:
        await cluster.begin(ALL)
        await write(cluster["n1"], upsert([1], 1), consistency=Consistency.STRONG)
        files.failing, files.only = {"datasync": errno.EIO}, "/n2/"
        await write(cluster["n1"], upsert([2], 2))
        await until(lambda: cluster["n2"].open_shard.replica is None)
        with pytest.raises(DeadlineExceeded):
            await write(cluster["n1"], upsert([3], 3), consistency=Consistency.STRONG, within_s=0.3)
        files.failing = {}
        await cluster["n2"].stop()
        await cluster["n2"].start()
        await write(cluster["n1"], upsert([4], 4), consistency=Consistency.STRONG)
        await level(cluster)


async def test_a_follower_without_room_takes_nothing_and_catches_up_when_there_is_some(folder: Path) -> None:
    files = FailingFiles()
    async with replica_cluster(folder, disks={"n2": files}) as cluster:
        await cluster.begin(ALL)
        await write(cluster["n1"], upsert([1], 1), consistency=Consistency.STRONG)
        files.failing, files.only = {"allocate": errno.ENOSPC}, "/n2/"
        op = upsert(range(1000), 2)
        for _ in range(8):
            await write(cluster["n1"], op)
        await until(lambda: files.failed > 1)
        with pytest.raises(DeadlineExceeded):
            await write(cluster["n1"], upsert([3], 3), consistency=Consistency.STRONG, within_s=0.3)
        files.failing = {}
        await write(cluster["n1"], upsert([4], 4), consistency=Consistency.STRONG)
        await level(cluster)
