"""A shard on a disk that fails or is full: refuses in words, loses nothing, goes on when it can."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.page import ShardFlag
from agent.store.manifest import NAME as MANIFEST
from agent.store.manifest import read_manifest
from agent.store.shard import Shard
from core.errors import Damaged, DeadlineExceeded, NoRoom, ShoalError, Unavailable
from core.wire import Op, Outcome, Upsert
from tests.storing.contents import keys, upsert
from tests.storing.crash import segment
from tests.storing.failing import FailingFiles
from tests.storing.folders import folder_in_memory
from tests.storing.shards import Bench, write


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made / "shard"


@pytest.fixture
def files() -> FailingFiles:
    return FailingFiles()


@asynccontextmanager
async def begun(folder: Path, files: FailingFiles) -> AsyncIterator[tuple[Bench, Shard]]:
    """A shard with one point, on a disk that still works."""
    bench = Bench(folder, files)
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        yield bench, shard
    bench.close()


async def write_when_there_is_room(shard: Shard, op: Op) -> None:
    while True:
        try:
            await write(shard, op)
        except NoRoom:
            await asyncio.sleep(0.01)
        else:
            return


async def reopened(folder: Path) -> set[int | str]:
    """The ids that are there after a restart on a good disk."""
    bench = Bench(folder)
    async with bench.shard() as shard:
        assert shard.damage is None
        ids = set(bench.points())
        await write(shard, upsert([99], 1))
    bench.close()
    return ids


@pytest.mark.parametrize("call", ["write", "datasync"])
async def test_after_a_failed_write_or_fsync_of_the_log_reads_go_on_and_writes_do_not(
    folder: Path, files: FailingFiles, call: str
) -> None:
    async with begun(folder, files) as (bench, shard):
        files.failing, files.only = {call: errno.EIO}, "/log/"
        with pytest.raises(Unavailable, match="restarted"):
            await write(shard, upsert([2], 1))
        files.failing = {}
        with pytest.raises(Unavailable, match="restarted"):
            await write(shard, upsert([3], 1))
        assert bench.record.flags == ShardFlag.OPEN
        assert set(bench.points()) == {1}
    assert await reopened(folder) in ({1}, {1, 2})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_refuses_a_write_before_it_is_logged_and_takes_the_next(
    folder: Path, files: FailingFiles, code: int
) -> None:
    large = Upsert(keys([2]), (), (b'{"x":"%s"}' % (b"x" * (2 << 20)),))
    async with begun(folder, files) as (bench, shard):
        files.failing, files.only = {"allocate": code}, "/log/"
        with pytest.raises(NoRoom, match="free some disk space"):
            await write(shard, large, request_id=b"r", body_hash=b"h")
        files.failing = {}
        assert await write(shard, large, request_id=b"r", body_hash=b"h") == Outcome(touched=1)
        assert set(bench.points()) == {1, 2}
    assert await reopened(folder) == {1, 2}


async def test_what_is_logged_and_finds_no_room_is_applied_when_there_is(
    folder: Path, files: FailingFiles
) -> None:
    async with begun(folder, files) as (bench, shard):
        files.failing, files.only = {"allocate": errno.ENOSPC}, "/vectors/"
        many = upsert(range(10, 10_000), 1)
        now_s = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match="may still take effect"):
            await shard.write(many, deadline_s=now_s + 0.5)
        assert files.failed
        assert set(bench.points()) == {1}
        with pytest.raises(NoRoom):  # nothing queues behind what can't be applied
            await write(shard, upsert([2], 1))
        files.failing = {}
        await write_when_there_is_room(shard, upsert([2], 1))
        assert len(bench.points()) == 9992
    assert len(await reopened(folder)) == 9992


async def test_a_shard_that_is_closed_without_room_applies_the_rest_at_the_next_start(
    folder: Path, files: FailingFiles
) -> None:
    async with begun(folder, files) as (_, shard):
        files.failing, files.only = {"allocate": errno.ENOSPC}, "/vectors/"
        waiting = asyncio.create_task(write(shard, upsert(range(10, 10_000), 1)))
        while not files.failed:
            await asyncio.sleep(0.01)
        await shard.close()
        with pytest.raises(ShoalError, match="may still take effect"):
            await waiting
    assert len(await reopened(folder)) == 9991


async def test_a_write_to_the_files_that_fails_stops_writes_and_loses_nothing(
    folder: Path, files: FailingFiles
) -> None:
    async with begun(folder, files) as (bench, shard):
        files.failing, files.only = {"write": errno.EIO}, "/vectors/"
        with pytest.raises(Unavailable, match="applying entries 2 to 2"):
            await write(shard, upsert([2], 1))
        files.failing = {}
        with pytest.raises(Unavailable):
            await write(shard, upsert([3], 1))
        assert set(bench.points()) == {1}
    assert await reopened(folder) == {1, 2}, "it was in the log"


async def test_a_checkpoint_without_room_is_made_later(folder: Path, files: FailingFiles) -> None:
    async with begun(folder, files) as (_, shard):
        files.failing, files.only = {"write": errno.ENOSPC}, "manifest"
        with pytest.raises(NoRoom):
            await shard.checkpoint()
        files.failing = {}
        await shard.checkpoint()
        assert shard.manifest.checkpoint == 1
        await write(shard, upsert([2], 1))
    assert await reopened(folder) == {1, 2}


@pytest.mark.parametrize("only", ["/vectors/", "/columns/", "points.db-wal", "manifest"])
async def test_after_a_failed_fsync_in_a_checkpoint_no_write_is_taken_and_nothing_is_lost(
    folder: Path, files: FailingFiles, only: str
) -> None:
    async with begun(folder, files) as (bench, shard):
        files.failing, files.only = {"sync": errno.EIO}, only
        with pytest.raises(Unavailable):
            await shard.checkpoint()
        files.failing = {}
        with pytest.raises(Unavailable):
            await write(shard, upsert([2], 1))
        assert bench.record.flags == ShardFlag.OPEN
        assert set(bench.points()) == {1}
    # The close must not repeat the fsync, which would succeed, and call the data durable.
    manifest = read_manifest(folder / MANIFEST)
    assert (manifest.checkpoint, manifest.clean) == (0, False)
    assert await reopened(folder) == {1}


async def test_writes_go_on_when_a_log_file_could_not_be_made_for_a_while(
    folder: Path, files: FailingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with begun(folder, files) as (bench, shard):
        monkeypatch.setattr(shard._writer, "_file_bytes_max", 1)  # each write begins a file
        files.failing, files.only = {"open": errno.ENOSPC}, "/log/"
        with pytest.raises(NoRoom, match="free some disk space"):
            await write(shard, upsert([2], 1))
        files.failing = {}
        await write(shard, upsert([2], 1))
        assert set(bench.points()) == {1, 2}
    assert await reopened(folder) == {1, 2}


async def test_a_shard_opens_by_itself_when_there_is_room_again(
    folder: Path, files: FailingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.store.shard.OPEN_AGAIN_S", 0.05)
    async with begun(folder, files):
        pass
    bench = Bench(folder, files)
    files.failing, files.only = {"write": errno.ENOSPC}, "manifest"
    async with bench.shard() as shard:
        assert bench.record.flags == 0
        with pytest.raises(NoRoom):
            await write(shard, upsert([2], 1))
        files.failing = {}
        while not bench.record.flags & ShardFlag.OPEN:
            await asyncio.sleep(0.01)
        await write(shard, upsert([2], 1))
        assert set(bench.points()) == {1, 2}
    bench.close()


async def test_a_scrub_reads_all_and_stops_the_shard_where_it_finds_damage(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.shard() as shard:
        await write(shard, upsert(range(5000), 1, other=True))
        await write(shard, upsert(range(10), 2))
        assert await shard.scrub() == 5000
        with (folder / "vectors" / "1.f32").open("r+b") as file:
            file.seek(4000 * 16)
            file.write(b"\xff")
        with pytest.raises(Damaged, match=r"1\.f32.*offset 64000"):
            await shard.scrub()
        assert bench.record.flags == ShardFlag.DAMAGED
        with pytest.raises(Damaged, match="snapshot"):
            await write(shard, upsert([1], 1))
    bench.close()


async def test_a_scrub_drops_a_damaged_graph(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.shard() as shard:
        await write(shard, upsert(range(10), 1))
        sealed = segment(folder, 10)
        await shard.replace_segments(1, [sealed])
        (folder / "segments" / sealed.file).write_bytes(b"something else")
        assert await shard.scrub() == 10
        assert shard.damage is None
        assert shard.manifest.vectors["1"].segments == ()
    bench.close()


async def test_damage_that_is_met_while_a_row_is_copied_stops_the_shard(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.shard() as shard:
        await write(shard, upsert(range(10), 1))
        with (folder / "vectors" / "1.f32").open("r+b") as file:
            file.write(b"\xff")
        await shard.relocate([0, 1])
        assert shard.damage is not None
        assert bench.record.flags == ShardFlag.DAMAGED
    bench.close()
