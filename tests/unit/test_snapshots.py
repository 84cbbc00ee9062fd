"""Snapshots of real shards: what was there comes back exactly, beside writes, over restarts and crashes."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.store.snapshot_folder import Scope
from agent.store.snapshots import SNAPSHOTS, UPLOADS
from core.api.collections import CreateAlias
from core.api.config import CollectionParams, Distance, VectorParams
from core.api.indexes import FieldIndex
from core.errors import BadRequest, NoRoom, NotFound
from tests.unit.store_node import StoreNode, expected, store_node

PARAMS = CollectionParams(vectors={"": VectorParams(4, Distance.DOT)}, unnamed=True, shard_number=2)
DOCS = Scope("docs")
IDS = list(range(50))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[StoreNode]:
    async with store_node(tmp_path) as node:
        await node.catalogue.create_collection("docs", PARAMS, who="")
        await node.upsert("docs", IDS)
        yield node


async def recover(node: StoreNode, scope: Scope, name: str) -> None:
    await node.snapshots.recover(scope, name, checksum=None, who="key")


async def test_a_collection_comes_back_as_it_was_when_the_snapshot_was_made(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)
    await node.upsert("docs", [1, 2, 3, 100], tag="later")
    await node.delete("docs", [4, 5])
    await recover(node, DOCS, made.name)
    assert await node.points("docs") == expected(IDS)


async def test_what_was_recovered_can_be_written_and_survives_a_restart(tmp_path: Path) -> None:
    async with store_node(tmp_path) as node:
        await node.catalogue.create_collection("docs", PARAMS, who="")
        await node.upsert("docs", IDS)
        made = await node.snapshots.make(DOCS)
        await recover(node, DOCS, made.name)
        await node.upsert("docs", [1, 60], tag="new")
    async with store_node(tmp_path) as node:
        assert all(shard.notes == [] for shard in node.open.values())
        wanted = expected(IDS) | expected([1, 60], tag="new")
        assert await node.points("docs") == wanted


async def test_a_snapshot_after_deletes_and_replacements_holds_the_living_only(node: StoreNode) -> None:
    await node.upsert("docs", IDS[:30], tag="again")
    await node.delete("docs", IDS[20:40])
    for shard in node.open.values():
        await shard.checkpoint()
    made = await node.snapshots.make(DOCS)
    await recover(node, Scope("copy"), made.name)
    assert await node.points("copy") == expected(IDS[:20], tag="again") | expected(IDS[40:])
    assert await node.points("copy") == await node.points("docs")


async def test_writes_go_on_while_a_snapshot_is_made_and_each_batch_is_in_it_or_not(node: StoreNode) -> None:
    writing = [asyncio.create_task(node.upsert("docs", [1000 + 10 * n, 1001 + 10 * n])) for n in range(30)]
    making = asyncio.create_task(node.snapshots.make(DOCS))
    await asyncio.gather(*writing)
    await recover(node, Scope("copy"), (await making).name)
    points = await node.points("copy")
    assert points.items() >= expected(IDS).items()
    assert points == expected([int(i) for i in points])
    assert len(await node.points("docs")) == 50 + 60


async def test_a_deleted_collection_comes_back_with_its_configuration(node: StoreNode) -> None:
    await node.catalogue.put_index("docs", FieldIndex("n", "integer"), who="")
    before = node.collection("docs")
    made = await node.snapshots.make(DOCS)
    await node.catalogue.delete_collection("docs", who="")
    await recover(node, DOCS, made.name)
    after = node.collection("docs")
    assert (after.params, after.indexes, after.vectors) == (before.params, before.indexes, before.vectors)
    assert after.id != before.id
    assert await node.points("docs") == expected(IDS)


async def test_an_alias_names_the_collection_that_is_replaced_and_stays_with_it(node: StoreNode) -> None:
    await node.catalogue.set_aliases([CreateAlias("current", "docs")], who="")
    made = await node.snapshots.make(Scope("current"))
    await node.delete("docs", IDS)
    await recover(node, Scope("current"), made.name)
    assert node.collection("current").name == "docs"
    assert await node.points("docs") == expected(IDS)


async def test_a_shard_comes_back_alone(node: StoreNode) -> None:
    made = await node.snapshots.make(Scope("docs", 1))
    whole = await node.points("docs")
    await node.delete("docs", IDS)
    await recover(node, Scope("docs", 1), made.name)
    points = await node.points("docs")
    assert 0 < len(points) < len(whole)
    assert points.items() <= whole.items()
    with pytest.raises(BadRequest, match="has no shard 0"):
        await recover(node, Scope("docs", 0), made.name)
    with pytest.raises(BadRequest, match="is of one shard"):
        await recover(node, Scope("copy"), made.name)


async def test_a_snapshot_of_the_node_holds_every_collection(node: StoreNode) -> None:
    await node.catalogue.create_collection("other", PARAMS, who="")
    await node.upsert("other", [7], tag="o")
    made = await node.snapshots.make(Scope())
    assert [info.name for info in await node.snapshots.list(Scope())] == [made.name]
    await node.catalogue.delete_collection("other", who="")
    await recover(node, Scope("other"), made.name)
    assert await node.points("other") == expected([7], tag="o")
    with pytest.raises(BadRequest, match=r"has no collection 'third', it has docs, other"):
        await recover(node, Scope("third"), made.name)


async def test_an_empty_collection_without_vectors_comes_back(node: StoreNode) -> None:
    await node.catalogue.create_collection("bare", CollectionParams(), who="")
    made = await node.snapshots.make(Scope("bare"))
    await recover(node, Scope("copy"), made.name)
    assert node.collection("copy").params == CollectionParams()


async def test_a_list_tells_name_size_time_and_checksum_of_this_scope_only(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)
    await node.snapshots.make(Scope("docs", 0))
    (listed,) = await node.snapshots.list(DOCS)
    assert listed == made
    content = (node.data / SNAPSHOTS / made.name).read_bytes()
    assert (made.size, made.checksum) == (len(content), hashlib.sha256(content).hexdigest())
    assert made.creation_time is not None
    assert made.creation_time.startswith("2023-11-14T")
    assert len(await node.snapshots.list(Scope("docs", 0))) == 1
    assert await node.snapshots.list(Scope("docs", 1)) == []


async def test_a_deleted_snapshot_is_gone(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)
    await node.snapshots.delete(DOCS, made.name)
    assert list((node.data / SNAPSHOTS).iterdir()) == []
    with pytest.raises(NotFound, match="Snapshot"):
        await node.snapshots.delete(DOCS, made.name)


async def test_a_snapshot_whose_description_is_lost_is_described_anew(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)
    path = (node.data / SNAPSHOTS / made.name).with_suffix(".json")
    for content in (None, b"{", b"{}"):
        path.unlink() if content is None else path.write_bytes(content)
        assert await node.snapshots.list(DOCS) == [made]


@pytest.mark.parametrize(
    "name",
    ["nope.snapshot", "../node.json", "..", "/etc/passwd", "a/b.snapshot", "", "c1.json", "x\0.snapshot"],
)
async def test_only_names_that_are_listed_are_found(node: StoreNode, name: str) -> None:
    await node.snapshots.make(DOCS)
    with pytest.raises(NotFound):
        await node.snapshots.path(DOCS, name)
    with pytest.raises(NotFound):
        await node.snapshots.delete(DOCS, name)
    with pytest.raises(NotFound):
        await recover(node, DOCS, name)


async def test_unknown_collections_and_shards_are_not_found(node: StoreNode) -> None:
    for scope in (Scope("none"), Scope("docs", 2), Scope("docs", -1)):
        with pytest.raises(NotFound):
            await node.snapshots.make(scope)
        with pytest.raises(NotFound):
            await node.snapshots.list(scope)


async def test_without_room_nothing_is_left_behind(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)

    def full(size_bytes: int) -> None:
        raise NoRoom("the disk is full")

    node.check_room = full
    folders = sorted(path.name for path in (node.data / "shards").iterdir())
    with pytest.raises(NoRoom):
        await node.snapshots.make(DOCS)
    with pytest.raises(NoRoom):
        await recover(node, DOCS, made.name)
    assert sorted(path.suffix for path in (node.data / SNAPSHOTS).iterdir()) == [".json", ".snapshot"]
    assert sorted(path.name for path in (node.data / "shards").iterdir()) == folders
    assert await node.points("docs") == expected(IDS)


async def test_a_start_removes_what_a_crash_left_of_making_and_uploading(tmp_path: Path) -> None:
    async with store_node(tmp_path):
        (tmp_path / SNAPSHOTS / "c1-x.snapshot.part").write_text("half")
        (tmp_path / SNAPSHOTS / "c1-x.snapshot.part-db").write_text("half")
        (tmp_path / UPLOADS / f"{'0' * 32}.part").write_text("half")
    async with store_node(tmp_path):
        assert [*(tmp_path / SNAPSHOTS).iterdir(), *(tmp_path / UPLOADS).iterdir()] == []


async def test_an_upload_is_recovered_and_removed(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)
    file = f"{'a' * 32}.part"
    shutil.copy(node.data / SNAPSHOTS / made.name, node.data / UPLOADS / file)
    await node.snapshots.recover_upload(Scope("copy"), file, checksum=made.checksum, who="")
    assert await node.points("copy") == expected(IDS)
    assert list((node.data / UPLOADS).iterdir()) == []


@pytest.mark.parametrize("file", ["../snapshots/x", "x.part", f"{'A' * 32}.part", f"{'a' * 32}.part/"])
async def test_an_upload_is_only_a_name_that_a_front_gives(node: StoreNode, file: str) -> None:
    with pytest.raises(BadRequest, match="is not the name of one"):
        await node.snapshots.recover_upload(DOCS, file, checksum=None, who="")


async def test_another_checksum_is_refused(node: StoreNode) -> None:
    made = await node.snapshots.make(DOCS)
    with pytest.raises(BadRequest, match="Snapshot checksum mismatch"):
        await node.snapshots.recover(DOCS, made.name, checksum="0" * 64, who="")
    file = f"{'b' * 32}.part"
    shutil.copy(node.data / SNAPSHOTS / made.name, node.data / UPLOADS / file)
    with pytest.raises(BadRequest, match="Snapshot checksum mismatch"):
        await node.snapshots.recover_upload(DOCS, file, checksum="0" * 64, who="")
    assert list((node.data / UPLOADS).iterdir()) == []


async def test_a_snapshot_of_other_vectors_does_not_replace_a_collection(node: StoreNode) -> None:
    other = CollectionParams(vectors={"": VectorParams(5, Distance.DOT)}, unnamed=True, shard_number=2)
    await node.catalogue.create_collection("other", other, who="")
    made = await node.snapshots.make(DOCS)
    with pytest.raises(BadRequest, match="its vectors are"):
        await recover(node, Scope("other"), made.name)
