"""The demo's hardest minute: a node is killed under acknowledged writes, replaced, and brought back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import aiohttp

from console.demo.placement import Placement, led_by, placement_of
from console.demo.rest import Rest
from console.demo.writing import MODULE, Writer
from console.up.cluster import LocalCluster
from core.cluster import Shard
from core.errors import DeadlineExceeded, ShoalError

_WRITTEN_BEFORE_S = 1.0
_ACKNOWLEDGED_WITHIN_S = 20.0
_CAUGHT_UP_WITHIN_S = 40.0
_READ_POINTS = 500
_LOOK_S = 0.01

Say = Callable[[str], None]


def lose_a_node(
    cluster: LocalCluster, collection: str, vectors: Sequence[Sequence[float]], say: Say, meanwhile: Say
) -> None:
    """Kills the primary of most shards and brings it back; says what was seen. `meanwhile` gets the id of a
    node that lives while that one is dead. Raises ShoalError if an acknowledged write is lost."""
    written = asyncio.run(_Act(cluster, collection, say, meanwhile).play(vectors))
    _verify(cluster, collection, written, say)


class _Act:
    """From the first write to the last, in one event loop."""

    def __init__(self, cluster: LocalCluster, collection: str, say: Say, meanwhile: Say) -> None:
        self._cluster, self._collection = cluster, collection
        self._say, self._meanwhile = say, meanwhile

    async def play(self, vectors: Sequence[Sequence[float]]) -> list[int]:
        """Returns every point whose write was acknowledged: before, while and after a node was dead."""
        problem: ShoalError | None = None
        async with placement_of(self._cluster.config, self._collection) as placement:
            shards = await placement.shards()
            urls = [self._cluster.url(node) for node in self._cluster.config.nodes]
            writers = [
                Writer(shard.number, len(shards), self._collection, urls, vectors[shard.number])
                for shard in shards
            ]
            async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
                tasks = [group.create_task(writer.run(session)) for writer in writers]
                try:
                    await self._lose(placement, shards, writers)
                except ShoalError as error:
                    problem = error  # out of the group it would come wrapped in another
                for task in tasks:
                    task.cancel()
        if problem is not None:
            raise problem
        return [write.point for writer in writers for write in writer.acknowledged]

    async def _lose(self, placement: Placement, shards: tuple[Shard, ...], writers: Sequence[Writer]) -> None:
        victim, led = led_by(shards).most_common(1)[0]
        self._say(f"Writing to all {len(shards)} shards; {victim} is the primary of {led}.")
        await asyncio.sleep(_WRITTEN_BEFORE_S)
        before = sum(len(writer.acknowledged) for writer in writers)
        killed_s = time.monotonic()
        self._cluster.agents[victim].kill()
        dead_s = time.monotonic()
        self._say(f"Killed {victim} with SIGKILL after {before:,} acknowledged writes.")
        hit = {shard.number for shard in shards if shard.primary == victim}
        # All of them, so that the other shards are seen to go on as well.
        again_s = {writer.shard: await _first_acknowledged(writer, dead_s) for writer in writers}
        after = await placement.wait_until(
            lambda shard: shard.primary != victim,
            f"led by others than {victim}",
            within_s=_ACKNOWLEDGED_WITHIN_S,
        )
        heirs = ", ".join(f"{node} {count}" for node, count in sorted(led_by(after).items()))
        self._say(
            f"Failover: {max(again_s[n] for n in hit) - killed_s:.2f} s from the kill to the first "
            f"acknowledged write, on the slowest shard that it led. Primaries now: {heirs}."
        )
        self._meanwhile(after[0].primary)
        await self._bring_back(placement, victim)

    async def _bring_back(self, placement: Placement, node: str) -> None:
        begun_s = time.monotonic()
        self._cluster.agents[node].start()
        while not self._cluster.is_ready(node):
            if not self._cluster.agents[node].is_running:
                raise ShoalError(f"{node} did not start again:\n{self._cluster.agents[node].last_words()}")
            if time.monotonic() - begun_s > _CAUGHT_UP_WITHIN_S:
                raise DeadlineExceeded(f"{node} was not ready within {_CAUGHT_UP_WITHIN_S:g} s")
            await asyncio.sleep(_LOOK_S)
        ready_s = time.monotonic() - begun_s
        shards = await placement.wait_until(
            lambda shard: node in shard.in_sync, f"in sync on {node}", within_s=_CAUGHT_UP_WITHIN_S
        )
        self._say(
            f"Started {node} again: ready after {ready_s:.1f} s, in sync again on all {len(shards)} shards "
            f"after {time.monotonic() - begun_s:.1f} s, under the same writes."
        )


async def _first_acknowledged(writer: Writer, since_s: float) -> float:
    """When the first write that began after that was acknowledged. Raises DeadlineExceeded."""
    while (write := writer.first_after(since_s)) is None:
        if time.monotonic() - since_s > _ACKNOWLEDGED_WITHIN_S:
            raise DeadlineExceeded(
                f"no write to shard {writer.shard} was acknowledged within {_ACKNOWLEDGED_WITHIN_S:g} s"
            )
        await asyncio.sleep(_LOOK_S)
    return write.done_s


def _verify(cluster: LocalCluster, collection: str, written: Sequence[int], say: Say) -> None:
    """Reads everything back through each node, then removes it."""
    for node in cluster.config.nodes:
        rest = Rest.at(node.address)
        try:
            lost = set(written) - _read(rest, collection, written)
            if lost:
                raise ShoalError(
                    f"{len(lost)} of {len(written)} acknowledged writes are lost, says {node.id}"
                )
        finally:
            rest.close()
    say(f"Read back all {len(written):,} acknowledged writes through each node: 0 lost.")
    rest = Rest.at(cluster.config.nodes[0].address)
    try:
        ours = {"must": [{"key": "module", "match": {"value": MODULE}}]}
        rest.call("POST", f"/collections/{collection}/points/delete?wait=true", {"filter": ours})
    finally:
        rest.close()


def _read(rest: Rest, collection: str, points: Sequence[int]) -> set[int]:
    """Which of the points are there."""
    found: set[int] = set()
    for first in range(0, len(points), _READ_POINTS):
        wanted = {"ids": points[first : first + _READ_POINTS], "with_payload": False}
        path = f"/collections/{collection}/points?consistency=majority"
        found |= {point["id"] for point in rest.call("POST", path, wanted)}
    return found
