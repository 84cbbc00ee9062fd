"""A bug in what a shard does beside its writes is seen, counted and survived; one in its writing is said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.page import ShardFlag
from agent.store import kept_up
from agent.store.files import Files
from core.errors import Unavailable
from tests.storing.contents import upsert
from tests.storing.folders import folder_in_memory
from tests.storing.shards import Bench, write


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made / "shard"


class BuggyDisk(Files):
    """Raises what no disk does, once, when space is given back."""

    def __init__(self) -> None:
        self.bugs = 0

    def punch(self, fd: int, offset: int, size: int) -> None:
        if self.bugs:
            self.bugs -= 1
            raise ZeroDivisionError("a bug")
        super().punch(fd, offset, size)


async def test_upkeep_that_dies_is_begun_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_up, "AGAIN_S", 0.01)
    disk = BuggyDisk()
    bench = Bench(folder, disk, checkpoint_bytes_min=1000, checkpoint_bytes_max=1000)
    async with bench.shard() as shard:
        disk.bugs = 1
        async with asyncio.timeout(20):
            while not (shard.statistics().deaths == 1 and shard.statistics().checkpoints):
                for tag in range(3):
                    await write(shard, upsert(range(1_000), tag))
    assert "shard.work_died" in bench.logged.getvalue()
    assert "a bug" in bench.logged.getvalue()
    bench.close()


async def test_writers_are_told_when_the_writing_itself_dies(folder: Path) -> None:
    bench = Bench(folder)
    broken = False

    def on_sync(took_s: float) -> None:
        if broken:
            raise ZeroDivisionError("a bug")

    bench.ports = replace(bench.ports, on_sync=on_sync)
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        broken = True
        for _ in range(2):
            with pytest.raises(Unavailable, match="ended by a bug"):
                await write(shard, upsert([2], 1))
        assert shard.statistics().deaths == 1
        assert not bench.record.flags & ShardFlag.IN_SYNC
        assert bench.record.flags & ShardFlag.OPEN
    bench.close()
