"""What a front makes of the map: shards that cannot be read now are missed by name, never left out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.front.serving import Serving
from agent.link import Answer, Client, Header, Server
from agent.metrics import Metrics
from agent.page import NodeFlag, NodeRecord, Page, Reads, ShardFlag, ShardPlaces, ShardRecord
from agent.store.schemas import shard_schema
from agent.store.shard import Shard, ShardPorts
from core.api.config import CollectionParams, Distance, VectorParams
from core.cluster import ClusterMap, ClusterView, CollectionId, NodeId, to_json
from core.cluster_changes import first_shards, new_collection
from core.errors import Damaged, Unavailable
from net.logs import log_to

LOG = log_to(sys.stderr, level="error")
INFO = new_collection(
    CollectionId(1),
    "docs",
    CollectionParams(vectors={"": VectorParams(4, Distance.MANHATTAN)}, unnamed=True, shard_number=1),
    created_us=1,
)
VIEW = ClusterView(
    ClusterMap(cluster="c", epoch=1, collections={INFO.id: INFO}),
    {INFO.id: first_shards(INFO.id, [[NodeId("n1")]], {(0, NodeId("n1")): 5}, [7])},
)


async def view(header: Header, body: bytes, deadline: float) -> Answer:
    return {}, to_json(VIEW)


@asynccontextmanager
async def serving(folder: Path, page: Page) -> AsyncIterator[Serving]:
    """A front's part of a real link whose other end knows the map, and nothing else."""
    server = Server({"view.get": view}, LOG)
    await server.start(str(folder / "s"))
    link = Client(str(folder / "s"))
    front = Serving("n1", page, link, Metrics(page.metrics(3)), LOG, Reads(page, 3))
    try:
        yield front
    finally:
        front.close()
        await link.close()
        await server.close()


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.chdir(tmp_path)  # shards are named relative to the data folder
    made = Page.make()
    made.write_node(NodeRecord(epoch=1, flags=NodeFlag.READY, shards=1))
    return made


async def test_a_shard_that_is_not_open_is_missed_by_name_until_it_is(tmp_path: Path, page: Page) -> None:
    async with serving(tmp_path, page) as front:
        docs = await front.collection("docs")
        with pytest.raises(Unavailable, match="1-0 is not open"), docs.look():
            pass
        with ThreadPoolExecutor(2) as executor:
            ports = ShardPorts(page, ShardPlaces(page), executor, LOG)
            shard = await Shard.create(
                tmp_path / "shards" / "1-0", collection=1, shard=0, schema=shard_schema(INFO), ports=ports
            )
            following = asyncio.create_task(front.follow())
            async with asyncio.timeout(10):
                while front.known("docs") is docs:
                    await asyncio.sleep(0.01)
            following.cancel()
            with front.known("docs").look():
                pass
            await shard.close()


async def test_a_folder_that_has_just_gone_keeps_no_other_collection_from_being_served(
    tmp_path: Path, page: Page
) -> None:
    page.write_shard(0, ShardRecord(collection=1, shard=0, incarnation=5, flags=ShardFlag.OPEN))
    async with serving(tmp_path, page) as front:
        docs = await front.collection("docs")  # the store has it open in the page, and moved its folder
        with pytest.raises(Unavailable, match="1-0"), docs.look():
            pass


async def test_a_damaged_manifest_damages_its_shard_only(tmp_path: Path, page: Page) -> None:
    page.write_shard(0, ShardRecord(collection=1, shard=0, incarnation=5, flags=ShardFlag.OPEN))
    (tmp_path / "shards" / "1-0").mkdir(parents=True)
    (tmp_path / "shards" / "1-0" / "manifest.json").write_bytes(b"{}")
    async with serving(tmp_path, page) as front:
        docs = await front.collection("docs")
        with pytest.raises(Damaged, match="manifest"), docs.look():
            pass
