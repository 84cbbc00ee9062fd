"""A leader at work on real replicas behind real links: failover, return, what was left, what is lost."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent.link import Answer, Header
from console.coordinator.leadership import Deposed, Reign
from console.coordinator.reconciler import Reconciler, Rhythm
from core.api.config import CollectionParams
from core.cluster import ClusterMap, NodeId, Pending, Shard, Shards, to_json
from core.detector import Pace, Rules
from core.replication.reconfigure import Patience, replica_ids, with_learner
from net.logs import Log, log_to
from tests.unit.coordinator_nodes import LOG, Cluster, three_nodes, until
from tests.unit.coordinator_replicas import Shoal

QUICK = Rhythm(
    rules=Rules(period_s=0.1, silent_s=0.6, second_look_s=0.05),
    pace=Pace(again_s=0.0),
    patience=Patience(resend_s=0.1, moment_s=0.1, step_s=1.0),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with three_nodes(tmp_path) as made:
        yield made


@pytest.fixture
async def shoal(cluster: Cluster) -> AsyncIterator[Shoal]:
    made = Shoal(cluster)
    yield made
    await made.close()


@asynccontextmanager
async def leader(cluster: Cluster, term: int = 1, log: Log = LOG) -> AsyncIterator[Reign]:
    """One that leads for as long as the block lasts, and then finishes what it has begun."""
    links, state = cluster.console("ops")
    reign = Reign(term, lambda: True)
    governing = asyncio.create_task(Reconciler("ops", state, links, log, QUICK).govern(reign))
    try:
        yield reign
        reign.ending.set()
        await asyncio.wait_for(governing, 10)
    finally:
        governing.cancel()
        with suppress(asyncio.CancelledError):
            await governing


async def until_shard(shoal: Shoal, fits: Callable[[Shard], bool], number: int = 0) -> Shard:
    """Fails with the record as it was last seen."""
    shard = await shoal.shard(number)
    try:
        async with asyncio.timeout(10):
            while not fits(shard):
                await asyncio.sleep(0.01)
                shard = await shoal.shard(number)
    except TimeoutError:
        raise AssertionError(f"still {shard}") from None
    return shard


def is_settled(shard: Shard) -> bool:
    return shard.pending is None


def ops(shoal: Shoal, name: str, number: int = 0) -> list[bytes]:
    return [e.op for e in shoal.hosts[name].disks[1, number].entries if e.op.startswith(b"op")]


async def change(shoal: Shoal, make: Callable[[Shards], Shards]) -> None:
    found = await shoal.state.read("shards/1")
    assert found.value is not None
    new = make(msgspec.json.decode(found.value, type=Shards))
    assert isinstance(await shoal.state.compare_and_set("shards/1", found.version, to_json(new)), int)


async def read_map(shoal: Shoal) -> ClusterMap:
    found = await shoal.state.read("map")
    assert found.value is not None
    return msgspec.json.decode(found.value, type=ClusterMap)


async def test_a_leader_stamps_map_and_shards_before_anything_else(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster, term=5):
        await until_shards(shoal, lambda shards: shards.leader_term == 5)
        stamped = await read_map(shoal)
        assert stamped.leader_term == 5
        assert stamped.events[-1].kind == "leader.elected"


async def until_shards(shoal: Shoal, fits: Callable[[Shards], bool]) -> None:
    async with asyncio.timeout(10):
        while not fits(await shoal.shards()):
            await asyncio.sleep(0.01)


async def test_a_dead_primary_is_replaced_and_taken_in_again_when_it_has_caught_up(
    cluster: Cluster, shoal: Shoal
) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        await until(lambda: shoal.hosts["n2"].node.peers.caller("n1").is_open)
        before = shoal.write(b"op 1")
        await until(lambda: (p := shoal.primary()) and p.replica.committed >= before)
        began_s = time.monotonic()
        await shoal.hosts["n1"].crash()
        moved = await until_shard(shoal, lambda s: is_settled(s) and s.primary != "n1")
        await until(lambda: (p := shoal.primary()) and p.replica.term == moved.term)
        assert time.monotonic() - began_s < 1
        assert set(moved.in_sync) == {"n2", "n3"}
        assert moved.learners == ("n1",)
        shoal.write(b"op 2")
        await shoal.hosts["n1"].restart()
        whole = await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 3)
        assert whole.primary == moved.primary
        await until(lambda: ops(shoal, "n1") == ops(shoal, "n2") == ops(shoal, "n3") == [b"op 1", b"op 2"])


async def test_a_primary_that_hangs_is_replaced_when_its_silence_has_lasted(
    cluster: Cluster, shoal: Shoal
) -> None:
    await shoal.begin([["n2", "n1", "n3"]])
    hung = cluster.nodes["n2"]

    async def hang(header: Header, body: bytes, deadline: float) -> Answer:
        await asyncio.Event().wait()
        return {}, b""

    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        for handlers in (hung.console, hung.store):
            handlers |= dict.fromkeys(handlers, hang)
        await shoal.hosts["n2"].stop()
        moved = await until_shard(shoal, lambda s: is_settled(s) and s.primary != "n2")
        assert set(moved.in_sync) == {"n1", "n3"}


async def test_a_dead_follower_is_dropped_and_the_primary_stays(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        await shoal.hosts["n3"].crash()
        moved = await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 2)
        assert (moved.primary, set(moved.in_sync)) == ("n1", {"n1", "n2"})
        await until(lambda: (p := shoal.primary()) and p.replica.term == moved.term)


async def test_all_shards_of_a_node_move_in_few_writes_and_spread_over_the_others(
    cluster: Cluster, shoal: Shoal
) -> None:
    await shoal.begin([["n3", "n1", "n2"]] * 12)
    writes = []

    def counted(handler: Callable[[Header, bytes, float], Awaitable[Answer]]) -> Callable:
        async def count(header: Header, body: bytes, deadline: float) -> Answer:
            writes.append(header["key"])
            return await handler(header, body, deadline)

        return count

    for node in cluster.nodes.values():
        node.console["state.cas"] = counted(node.console["state.cas"])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        writes.clear()
        await shoal.hosts["n3"].crash()
        await until_shards(shoal, lambda all_: all(s.primary != "n3" and is_settled(s) for s in all_.shards))
        assert writes.count("shards/1") <= 8
    primaries = [shard.primary for shard in (await shoal.shards()).shards]
    assert (primaries.count(NodeId("n1")), primaries.count(NodeId("n2"))) == (6, 6)


async def test_what_another_leader_left_pending_is_finished(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    left = Pending(4, NodeId("n3"), (NodeId("n3"), NodeId("n2")))
    await change(shoal, lambda s: replace(s, leader_term=1, shards=(replace(s.shards[0], pending=left),)))
    async with leader(cluster, term=2):
        done = await until_shard(shoal, is_settled)
        assert done.term > 4
        assert (done.primary, set(done.in_sync)) == ("n1", {"n1", "n2", "n3"})
        await until(lambda: (p := shoal.primary()) and p.replica.term == done.term)
        assert {c.leader_term for host in shoal.hosts.values() for c in host.commands} == {2}


async def test_a_lost_disk_comes_back_as_another_replica(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        seq = shoal.write(b"op 1")
        await until(lambda: (p := shoal.primary()) and p.replica.committed >= seq)
        await shoal.hosts["n3"].crash()
        shoal.hosts["n3"].disks.clear()
        await shoal.hosts["n3"].restart()
        whole = await until_shard(
            shoal, lambda s: is_settled(s) and len(s.in_sync) == 3 and s.replicas[NodeId("n3")] != 1
        )
        assert whole.replicas[NodeId("n3")] == 10
        await until(lambda: ops(shoal, "n3") == [b"op 1"])


async def test_a_shard_below_its_bound_waits_for_who_must_return(cluster: Cluster, shoal: Shoal) -> None:
    strict = CollectionParams(replication_factor=2, write_consistency_factor=2)
    await shoal.begin([["n1", "n2"]], strict)
    said = io.StringIO()
    async with leader(cluster, log=log_to(said)):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        await shoal.hosts["n2"].crash()
        await until(lambda: "n2 must return" in said.getvalue())
        assert "event=shard.stuck term=1 shard=docs/0 " in said.getvalue()
        assert (await shoal.shard()).term == 1
        await shoal.hosts["n2"].restart()
        seq = shoal.write(b"op 1")
        await until(lambda: (p := shoal.primary()) and p.replica.committed >= seq)
        await until(lambda: "shard.no_longer_stuck" in said.getvalue())
        assert set((await shoal.shard()).in_sync) == {"n1", "n2"}


async def test_a_higher_stamp_deposes(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    await change(shoal, lambda s: replace(s, leader_term=9))
    links, state = cluster.console()
    governing = Reconciler("ops", state, links, LOG, QUICK).govern(Reign(8, lambda: True))
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(governing, 10)
    assert caught.group_contains(Deposed)
    assert (await shoal.shards()).leader_term == 9
    assert not any(host.commands for host in shoal.hosts.values())


async def test_without_a_lease_nothing_is_written_or_commanded(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    links, state = cluster.console()
    holds = True
    reign = Reign(1, lambda: holds)
    governing = asyncio.create_task(Reconciler("ops", state, links, LOG, QUICK).govern(reign))
    await until_shards(shoal, lambda shards: shards.leader_term == 1)
    holds = False
    await shoal.hosts["n1"].crash()
    before = await shoal.shards()
    await until(lambda: shoal.hosts["n2"].node.peers.unheard() == ["n1"])
    assert await shoal.shards() == before
    holds = True
    await until_shard(shoal, lambda s: is_settled(s) and s.primary != "n1")
    reign.ending.set()
    await asyncio.wait_for(governing, 10)


async def test_primaries_that_missed_the_news_are_told_again(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        # As after a restart that was too quick to be noticed.
        await shoal.hosts["n1"].stop()
        shoal.hosts["n1"].start()
        assert shoal.primary() is None
        await until(lambda: shoal.primary() is not None)
        assert (await shoal.shard()).term == 1


async def test_a_learner_that_an_agent_has_added_is_taken_in(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2"]], CollectionParams(replication_factor=3))
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        shoal.write(b"op 1")
        shoal.hosts["n3"].add((1, 0), incarnation=5)
        await change(shoal, lambda s: replace(s, shards=(with_learner(s.shards[0], NodeId("n3"), 5),)))
        primary = shoal.primary()
        assert primary is not None
        shard = await shoal.shard()
        primary.perform(
            primary.replica.activate(
                1, replica_ids(shard, shard.in_sync), 0, replica_ids(shard, shard.learners)
            )
        )
        await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 3)
        assert ops(shoal, "n3") == [b"op 1"]


async def test_of_two_followers_that_do_not_hear_each_other_one_is_dropped(
    cluster: Cluster, shoal: Shoal
) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        shoal.hosts["n2"].deaf_to, shoal.hosts["n3"].deaf_to = {"n3"}, {"n2"}
        moved = await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 2)
        assert moved.primary == "n1"
        shoal.hosts["n2"].deaf_to, shoal.hosts["n3"].deaf_to = set(), set()
        await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 3)


async def test_a_primary_that_is_cut_off_from_all_others_is_the_one_that_goes(
    cluster: Cluster, shoal: Shoal
) -> None:
    await shoal.begin([["n1", "n2", "n3"]])
    async with leader(cluster):
        await until_shards(shoal, lambda shards: shards.leader_term == 1)
        # Not told in one instant: on the first half of it the primary would have stayed.
        shoal.hosts["n2"].deaf_to = {"n1"}
        await until(lambda: shoal.hosts["n2"].asked_while_deaf)
        shoal.hosts["n3"].deaf_to = {"n1"}
        moved = await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 2)
        assert set(moved.in_sync) == {"n2", "n3"}
        assert moved.term == 2


async def test_a_learner_that_has_said_nothing_is_not_taken_in(cluster: Cluster, shoal: Shoal) -> None:
    await shoal.begin([["n1", "n2"]], CollectionParams(replication_factor=3))
    primary = shoal.primary()
    assert primary is not None
    shoal.write(b"op 1")
    await change(shoal, lambda s: replace(s, shards=(with_learner(s.shards[0], NodeId("n3"), 5),)))
    learners = replica_ids(await shoal.shard(), [NodeId("n3")])
    members = replica_ids(await shoal.shard(), (await shoal.shard()).in_sync)
    primary.perform(primary.replica.activate(1, members, 0, learners))
    async with leader(cluster):
        asked = shoal.hosts["n1"].pings
        await until(lambda: shoal.hosts["n1"].pings > asked + 5)
        assert (await shoal.shard()).term == 1
        shoal.hosts["n3"].add((1, 0), incarnation=5)
        await until_shard(shoal, lambda s: is_settled(s) and len(s.in_sync) == 3)
