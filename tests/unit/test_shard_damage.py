"""Whatever happens to a shard's files: what is served is right, or the damage is named."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.page import ShardFlag
from core.errors import Damaged
from core.wire import Delete
from tests.storing.contents import Points, keys, upsert
from tests.storing.crash import INDEXED, segment
from tests.storing.folders import folder_in_memory
from tests.storing.shards import Bench, write

Images = dict[bool, tuple[Path, Points]]
SPOILS = ("flip", "cut", "missing", "zeros")
CLEAN_FILES = (
    "manifest.json", "points.db", "log/replica.json", "log/replica-copy.json", "log/*.log", "columns/ids.bin",
    "columns/live.bin", "columns/has.1.bin", "columns/5.values", "columns/5.flags", "columns/5.head",
    "vectors/1.f32", "vectors/1.crc", "vectors/2.f32", "vectors/2.crc", "segments/*.usearch",
)  # fmt: skip
KILLED_FILES = (*CLEAN_FILES, "points.db-wal", "points.db-shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """A shard as a clean end, or a kill some entries after a checkpoint, leaves it; and what it holds."""
    made: Images = {}
    for clean in (True, False):
        folder = tmp_path_factory.mktemp("image")
        points = asyncio.run(make_image(folder, clean))
        made[clean] = folder / "image", points
    return made


async def make_image(folder: Path, clean: bool) -> Points:
    bench = Bench(folder / "shard", schema=INDEXED)
    async with bench.shard() as shard:
        await write(shard, upsert(range(60), 1, other=True))
        await write(shard, upsert(range(40, 80), 2))
        await shard.replace_segments(1, [segment(bench.folder, 100)])
        await shard.checkpoint()
        await write(shard, upsert(range(70, 100), 3, other=True))
        await write(shard, Delete(keys(range(10))))
        points = bench.points()
        if not clean:  # a copy of a running shard that does nothing is what a kill leaves
            subprocess.run(["cp", "-r", bench.folder, folder / "image"], check=True)
    if clean:
        shutil.copytree(bench.folder, folder / "image")
    bench.close()
    return points


def spoil(path: Path, how: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    used = len(data.rstrip(b"\0")) or 1  # not only in the part that is allocated for later
    at = rng.randrange(used)
    match how:
        case "flip":
            data[at] ^= 1 << rng.randrange(8)
        case "cut":
            del data[at:]
        case "zeros":
            end = min(len(data), at + rng.choice((1, 16, 512, 4096)))
            data[at:end] = bytes(end - at)
        case "missing":
            path.unlink()
            return
    path.write_bytes(data)


def damage_of_rows(bench: Bench) -> str | None:
    """A row is checked whenever it is read."""
    try:
        bench.points()
    except Damaged as error:
        return str(error)
    return None


@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize(
    ("clean", "name"), [(True, n) for n in CLEAN_FILES] + [(False, n) for n in KILLED_FILES]
)
async def test_a_spoilt_file_is_put_right_or_named_and_never_served(
    images: Images, folder: Path, clean: bool, name: str, how: str
) -> None:
    image, expected = images[clean]
    rng = random.Random(f"{name} {how} {clean}")
    for attempt in range(1 if how == "missing" else 4):
        copy = folder / str(attempt)
        shutil.copytree(image, copy)
        (path,) = copy.glob(name)
        spoil(path, how, rng)
        bench = Bench(copy, schema=INDEXED)
        async with bench.shard() as shard:
            if shard.damage is None:
                damage = damage_of_rows(bench)
                if damage is None:
                    assert bench.points() == expected
                    await write(shard, upsert([1000], 9))
                    await shard.checkpoint()
                else:
                    assert path.name in damage
            else:
                assert bench.record.flags == ShardFlag.DAMAGED
                named = path.name if path.exists() else path.parent.name
                assert named in shard.damage or "points.db" in shard.damage, shard.damage
                with pytest.raises(Damaged):
                    await write(shard, upsert([1000], 9))
        bench.close()


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("manifest.json", True), ("manifest.json", False), ("log/replica.json", True),
        ("columns/ids.bin", False), ("columns/live.bin", True), ("columns/has.1.bin", False),
        ("columns/5.values", False),
        ("segments/*.usearch", True), ("vectors/1.crc", True), ("log/*.log", True),
    ],
)  # fmt: skip
async def test_what_can_be_derived_is_made_anew(images: Images, folder: Path, name: str, clean: bool) -> None:
    image, expected = images[clean]
    shutil.copytree(image, folder, dirs_exist_ok=True)
    (path,) = folder.glob(name)
    path.unlink()
    bench = Bench(folder, schema=INDEXED)
    async with bench.shard() as shard:
        assert shard.damage is None
        assert bench.points() == expected
    async with bench.shard() as shard:
        assert shard.notes == []
        assert bench.points() == expected
    bench.close()


async def test_a_log_that_is_whole_from_the_beginning_rebuilds_points_and_vectors(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "shard")
    async with bench.shard(checkpoint=False) as shard:
        await write(shard, upsert(range(50), 1, other=True))
        await write(shard, upsert(range(20), 2))
        expected = bench.points()
    for name in ("points.db", "vectors/1.f32", "vectors/2.crc", "columns/ids.bin", "manifest.json"):
        (bench.folder / name).unlink()
    async with bench.shard() as shard:
        assert shard.damage is None
        assert bench.points() == expected
    bench.close()


async def test_a_damaged_segment_is_dropped_and_its_slots_are_tail(images: Images, folder: Path) -> None:
    image, _ = images[True]
    shutil.copytree(image, folder, dirs_exist_ok=True)
    (path,) = folder.glob("segments/*")
    path.write_bytes(b"something else")
    bench = Bench(folder, schema=INDEXED)
    async with bench.shard() as shard:
        assert shard.manifest.vectors["1"].segments == ()
        assert bench.record.built == 0
        assert [path.name in note for note in shard.notes] == [True]
    bench.close()
