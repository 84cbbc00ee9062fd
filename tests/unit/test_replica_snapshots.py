"""Snapshots on their way: resumed, checked, refused when of no use, installed as a whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.store.deleted import DELETED
from agent.store.identity import read_identity
from agent.store.snapshot_sending import Made, SnapshotSending
from core.errors import BadRequest, Conflict, NoRoom, Unavailable
from core.replication.effects import Consistency
from tests.storing.contents import Points, upsert
from tests.storing.folders import folder_in_memory
from tests.unit.replica_nodes import COLLECTION, NUMBER, Node, ReplicaCluster, replica_cluster, until, write

ALL = ("n1", "n2", "n3")


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made


class Sender:
    """The test sends, chunk by chunk, what n1 had made for n3; n1 itself is gone."""

    def __init__(self, cluster: ReplicaCluster, made: Made, data: bytes, points: Points) -> None:
        self.cluster, self.made, self.data, self.points = cluster, made, data, points
        self.term = 1

    @property
    def receiver(self) -> Node:
        return self.cluster["n3"]

    def header(self) -> dict[str, Any]:
        return {
            "collection": COLLECTION,
            "shard": NUMBER,
            "to": self.receiver.incarnation,
            "term": self.term,
            "position": list(self.made.position),
            "hash": self.made.hash,
            "size": self.made.size_bytes,
            "schema": self.made.schema,
            "saved": msgspec.json.encode(self.made.saved),
        }

    async def ask(self) -> dict[str, Any]:
        return (await self.cluster.call("n3", "snapshot.ask", self.header()))[0]

    async def send(self, begin: int, end: int, **changed: Any) -> int:
        header = {**self.header(), "offset": begin, **changed}
        answer, _ = await self.cluster.call("n3", "snapshot.part", header, self.data[begin:end])
        return int(answer["have"])

    async def installed(self) -> None:
        await until(lambda: self.receiver.installs == 1)
        assert self.receiver.applied == self.made.position.seq
        assert self.receiver.points() == self.points


@pytest.fixture
async def sender(folder: Path) -> AsyncIterator[Sender]:
    async with replica_cluster(folder, log_bytes_kept=1_000) as cluster:
        await cluster.begin(ALL)
        await cluster["n3"].stop()
        for tag in range(20):
            await write(cluster["n1"], upsert(range(tag, tag + 10), tag))
        await cluster["n1"].open_shard.checkpoint()
        node = cluster["n1"]
        assert node.peers is not None
        sending = SnapshotSending(node.peers, node.log, lambda _: None)
        made = await sending.snapshot(node.replicas.get(COLLECTION, NUMBER))
        data, points = made.path.read_bytes(), node.points()
        for name in ("n1", "n2"):
            await cluster[name].stop()
        await cluster["n3"].start()
        yield Sender(cluster, made, data, points)


async def test_a_snapshot_goes_on_where_it_was_cut_off(sender: Sender) -> None:
    size, third = len(sender.data), len(sender.data) // 3
    assert await sender.ask() == {"wanted": True, "hash": "", "have": 0}
    assert await sender.send(0, third) == third
    assert await sender.ask() == {"wanted": True, "hash": sender.made.hash, "have": third}
    assert await sender.send(2 * third, size) == third, "a gap"
    assert await sender.send(0, third) == third, "a repetition"
    assert await sender.send(third, size) == size
    await sender.installed()
    await sender.receiver.stop()
    await sender.receiver.start()
    assert sender.receiver.points() == sender.points
    assert not (await sender.ask())["wanted"]


async def test_another_snapshot_begins_anew(sender: Sender) -> None:
    assert await sender.send(0, 100, hash="0" * 64) == 100
    assert await sender.send(0, len(sender.data)) == len(sender.data)
    await sender.installed()


async def test_a_damaged_snapshot_changes_nothing(sender: Sender) -> None:
    good, half = sender.data, len(sender.data) // 2
    sender.data = good[:half] + bytes([good[half] ^ 1]) + good[half + 1 :]
    await sender.send(0, len(good))
    await until(lambda: "snapshot.not_installed" in sender.receiver.logged.getvalue())
    assert sender.receiver.points() == {}
    sender.data = good
    await sender.send(0, len(good))
    await sender.installed()


async def test_what_does_not_fit_is_refused(sender: Sender) -> None:
    for begin, end, size in ((0, 100, 50), (0, 0, 100)):
        with pytest.raises(BadRequest, match="does not fit"):
            await sender.send(begin, end, size=size)


async def test_a_snapshot_of_an_older_term_or_for_another_replica_is_of_no_use(sender: Sender) -> None:
    await sender.receiver.open_shard.promise(7)
    with pytest.raises(Conflict):
        await sender.send(0, len(sender.data))
    with pytest.raises(Conflict):
        await sender.send(0, len(sender.data), to=12, term=7)
    assert not (await sender.ask())["wanted"]


async def test_promises_and_who_it_is_stay_with_the_replica(sender: Sender) -> None:
    before, half = sender.receiver.incarnation, len(sender.data) // 2
    sender.term = 9
    await sender.send(0, half)
    await sender.receiver.open_shard.promise(7)
    await sender.send(half, len(sender.data))
    await sender.installed()
    identity, wrong = read_identity(sender.receiver.folder / "log")
    assert (identity.incarnation, identity.promised, wrong) == (before, 9, [])


async def test_a_newer_schema_is_fetched_first(sender: Sender) -> None:
    with pytest.raises(Unavailable, match="newer schema"):
        await sender.send(0, len(sender.data), schema=5)
    assert sender.receiver.schemas_wanted == [5]


async def test_an_installation_that_fails_leaves_the_old_replica_for_good(sender: Sender) -> None:
    obstacle = sender.receiver.data / DELETED
    obstacle.write_bytes(b"")
    await sender.send(0, len(sender.data))
    await until(lambda: "replica.work_failed" in sender.receiver.logged.getvalue())
    obstacle.unlink()
    assert sender.receiver.points() == {}
    await sender.receiver.open_shard.promise(8)
    await sender.receiver.stop()
    await sender.receiver.start()
    assert sender.receiver.points() == {}
    replica = sender.receiver.open_shard.replica
    assert replica is not None
    assert replica.term == 8


async def test_the_log_behind_a_snapshot_is_kept_while_it_is_on_its_way(folder: Path) -> None:
    async with replica_cluster(folder, log_bytes_kept=1_000) as cluster:
        await cluster.begin(["n1", "n2"])
        node, replica = cluster["n1"], cluster["n1"].open_shard.replica
        assert node.peers is not None
        assert replica is not None
        sending = SnapshotSending(node.peers, node.log, lambda _: None)
        made = await sending.snapshot(node.replicas.get(COLLECTION, NUMBER))
        for held in (True, False):
            for tag in range(10):
                await write(node, upsert(range(10), tag), consistency=Consistency.STRONG)
            await node.open_shard.checkpoint()
            assert (replica.log.base.seq <= made.position.seq) is held
            sending.close()
        assert not made.path.exists()


async def test_without_room_no_snapshot_is_made(folder: Path) -> None:
    def no_room(_: int) -> None:
        raise NoRoom("the disk is full")

    async with replica_cluster(folder) as cluster:
        await cluster.begin(ALL)
        node = cluster["n1"]
        await write(node, upsert([1], 1))
        assert node.peers is not None
        sending = SnapshotSending(node.peers, node.log, no_room)
        with pytest.raises(NoRoom):
            await sending.snapshot(node.replicas.get(COLLECTION, NUMBER))
        assert [path.name for path in node.folder.parent.iterdir()] == ["7-0"]
        await asyncio.gather(*[write(node, upsert([n], n)) for n in range(5)])
