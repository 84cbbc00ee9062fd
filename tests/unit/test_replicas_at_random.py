"""Replicas stop, start, move, fall behind at random under writes: none is lost, and all end equal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import DeadlineExceeded, ShoalError, Unavailable
from core.replication.effects import Consistency, StaleTerm
from tests.storing.contents import upsert
from tests.storing.folders import folder_in_memory
from tests.unit.replica_nodes import ReplicaCluster, replica_cluster, until, write

NAMES = ("n1", "n2", "n3")
STEPS = 14
CLIENTS = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made


class Story:
    """One client a number writes one point after the other; meanwhile things happen, one at a time."""

    def __init__(self, cluster: ReplicaCluster, seed: int) -> None:
        self.cluster, self.rng = cluster, random.Random(seed)
        self.acknowledged: dict[int, int] = {}
        self.told: list[str] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for n in range(CLIENTS):
                tasks.create_task(self._client(n))
            for _ in range(STEPS):
                await self._happen()
            self._stop.set()
        await self._heal()

    async def _client(self, n: int) -> None:
        """Each point is written by one client only, its tag growing."""
        tag = 0
        while not self._stop.is_set():
            tag += 1
            point = n * 100 + tag % 50
            level = self.rng.choice([Consistency.QUORUM, Consistency.QUORUM, Consistency.STRONG])
            while True:
                try:
                    op = upsert([point], tag)
                    request_id = b"%08d%08d" % (n, tag)
                    await write(
                        self.cluster.primary, op, request_id=request_id, consistency=level, within_s=1
                    )
                except (StaleTerm, DeadlineExceeded, Unavailable, AssertionError):
                    if self._stop.is_set():
                        return
                    await asyncio.sleep(0.01)
                else:
                    self.acknowledged[point] = tag
                    break

    async def _happen(self) -> None:
        cluster = self.cluster
        name = self.rng.choice(NAMES)
        match self.rng.randrange(4):
            case 0 if len(cluster.running) == len(NAMES):
                self.told.append(f"{name} stops")
                await cluster[name].stop()
            case 1 if cluster[name].shard is None:
                self.told.append(f"{name} starts")
                await cluster[name].start()
            case 2:
                self.told.append(await self._reconfigure())
            case 3 if cluster[name].shard is not None:
                self.told.append(f"{name} makes a checkpoint")
                try:
                    await cluster[name].open_shard.checkpoint()
                except ShoalError:  # it is being opened again
                    self.told[-1] += ", not"
        await asyncio.sleep(self.rng.uniform(0.0, 0.3))

    async def _reconfigure(self) -> str:
        running = [node.name for node in self.cluster.running]
        primary = self.rng.choice(running)
        failed = await self.cluster.reconfigure(primary, running)
        return f"{primary} of {running}: {failed or 'done'}"

    async def _heal(self) -> None:
        cluster = self.cluster
        for name in NAMES:
            if cluster[name].shard is None:
                await cluster[name].start()
        for _ in range(20):
            if await cluster.reconfigure(self.rng.choice(NAMES), NAMES) is None:
                break
            await asyncio.sleep(0.2)
        await write(cluster.primary, upsert([9_999], 1), consistency=Consistency.STRONG)

    def check(self) -> None:
        points = self.cluster.primary.points()
        lost = {
            point: tag
            for point, tag in self.acknowledged.items()
            if point not in points or points[point].payload["tag"] < tag
        }
        assert not lost
        assert len(self.acknowledged) > CLIENTS
        for node in self.cluster.running:
            assert node.points() == points


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_acknowledged_is_lost_whatever_happens(folder: Path, seed: int) -> None:
    async with replica_cluster(folder, log_bytes_kept=8_000) as cluster:
        await cluster.begin(NAMES)
        story = Story(cluster, seed)
        await story.run()
        print(*story.told, f"installs: {[node.installs for node in cluster.running]}", sep="\n")
        replica = cluster.primary.open_shard.replica
        assert replica is not None
        await until(lambda: all(node.applied == replica.log.last.seq for node in cluster.running))
        story.check()
        for node in cluster.running:
            assert "invariant_broken" not in node.logged.getvalue()
