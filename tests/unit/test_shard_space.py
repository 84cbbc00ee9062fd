"""What a shard takes on disk while its points are replaced, and what it gives back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.metrics import Metrics
from agent.page import FIRST_FRONT, Reads
from agent.store.builds import Builds
from agent.store.manifest import ShardSchema, VectorParams
from core.api.config import Distance
from core.wire import Delete, Rows, Upsert
from tests.storing.contents import keys, upsert
from tests.storing.folders import folder_in_memory
from tests.storing.shards import Bench, write

PAYLOAD = b'"%s"' % (b"x" * 300)


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made / "shard"


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.glob("**/*"))


@pytest.mark.parametrize("scattered", [False, True])
async def test_points_replaced_over_and_over_take_little_more_than_once(
    folder: Path, scattered: bool
) -> None:
    """Files that only ever grow must be ahead of what they hold, not of how long they are by now."""
    random, count, dim = np.random.default_rng(5), 4_000, 256
    bench = Bench(folder, schema=ShardSchema(1, {0: VectorParams(dim, Distance.DOT)}))
    used = []
    async with bench.shard() as shard:
        builds = Builds(lambda: [shard], bench.ports.log, Metrics(memoryview(bytearray(4096))))
        for number in range(12):
            for low in range(0, count, 250):
                ids = range(low, low + 250)
                if scattered and number:
                    ids = random.choice(count, 250, replace=False).tolist()
                rows = Rows(0, dim, random.standard_normal((250, dim), np.float32).tobytes())
                await write(shard, Upsert(keys(ids), (rows,), (PAYLOAD,) * 250))
                await builds.free(shard)
            used.append(used_bytes(folder))
        assert shard.record.slot_high > 10 * count
    bench.close()
    assert max(used) < 3 * count * (4 * dim + len(PAYLOAD))


async def test_what_died_is_given_back_in_a_quiet_moment(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.shard() as shard:
        for tag in range(2):
            for low in range(0, 2_000, 500):
                await write(shard, upsert(range(low, low + 500), tag))
        assert shard.statistics().dead_rows
        while shard.statistics().dead_rows:
            await asyncio.sleep(0.02)
    bench.close()


async def test_the_database_gets_shorter_when_most_of_its_rows_are_gone(folder: Path) -> None:
    bench = Bench(folder, schema=ShardSchema(1))
    async with bench.shard() as shard:
        for low in range(0, 4_000, 500):
            await write(shard, Upsert(keys(range(low, low + 500)), (), (PAYLOAD,) * 500))
        await shard.checkpoint()
        before = (folder / "points.db").stat().st_size
        for tag in range(3):  # the last rows keep the space of the first from being a hole at the end
            await write(shard, Upsert(keys(range(4_000 + tag, 4_010)), (), (PAYLOAD,) * (10 - tag)))
        await write(shard, Delete(keys(range(4_000))))
        for _ in range(3):
            await shard.checkpoint()
        assert (folder / "points.db").stat().st_size < before // 3
        assert shard.points_count == 10
    bench.close()


async def test_writers_wait_while_the_space_of_what_they_replaced_is_not_given_back(folder: Path) -> None:
    bench = Bench(folder, purge_after_s=3600)
    async with bench.shard() as shard:
        with Reads(bench.page, FIRST_FRONT).held():
            for tag in range(4):
                await write(shard, upsert(range(500), tag))
            assert shard.statistics().delay_s > 0
        await shard.checkpoint()
        await write(shard, upsert(range(500), 4))
        assert shard.statistics().delay_s == 0
    bench.close()
