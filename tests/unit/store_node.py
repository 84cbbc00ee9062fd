"""One node's store without its processes: a catalogue on a real register, real shards, snapshots."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np

from agent.page import Page, ShardPlaces
from agent.points_reader import connect_readonly, page_by_id
from agent.store.beginning import begin
from agent.store.catalogue import Catalogue
from agent.store.deleted import shard_folder
from agent.store.schemas import shard_schema
from agent.store.shard import Shard, ShardPorts, ShardSettings
from agent.store.snapshots import Snapshots
from core.api.checks import DEFAULT_LIMITS
from core.cluster import ClusterView, Collection, CollectionId, NodeId, named
from core.config import NodeConfig
from core.hashing import id_key, point_id, shard_of
from core.wire import Delete, Op, Rows, Upsert
from net.logs import log_to

NODE = NodeConfig("n1", "127.0.0.1:6333", "127.0.0.1:6335", "127.0.0.1:6333")
_LOG = log_to(sys.stderr, level="error")
_SETTINGS = ShardSettings(tail_rows_max=10**9, purge_after_s=0.0, checkpoint_every_s=3600.0)
Points = dict[int | str, tuple[list[float] | None, dict[str, object]]]


class StoreNode:
    """The catalogue's host: opens and closes shards as the map says."""

    def __init__(self, data: Path, executor: ThreadPoolExecutor) -> None:
        self.data = data
        page = Page.make()
        self._ports = ShardPorts(page, ShardPlaces(page), executor, _LOG)
        self.open: dict[tuple[int, int], Shard] = {}
        self.check_room: Callable[[int], None] = lambda size_bytes: None
        self.catalogue: Catalogue
        self.snapshots: Snapshots

    async def make_logs(self, collection: Collection, histories: Mapping[int, int]) -> dict[int, int]:
        made: dict[int, int] = {}
        for number, history in histories.items():
            made[number] = await Shard.make(
                shard_folder(self.data, collection.id, number),
                collection=collection.id,
                shard=number,
                schema=shard_schema(collection),
                ports=self._ports,
                history=history,
            )
        return made

    async def make_logs_at(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        raise AssertionError(f"there is no node {node}")

    async def tell_others(self, view: ClusterView, keys: Sequence[str]) -> None:
        assert list(view.map.nodes) == ["n1"]

    async def close_shard(self, collection: CollectionId, shard: int) -> None:
        await self.open.pop((collection, shard)).close()

    async def map_changed(self, old: ClusterView, new: ClusterView) -> None:
        wanted = {(id_, s.number) for id_, shards in new.shards.items() for s in shards.shards}
        for key in self.open.keys() - wanted:
            await self.open.pop(key).close()
        for id_, number in sorted(wanted - self.open.keys()):
            self.open[id_, number] = await Shard.open(
                shard_folder(self.data, id_, number),
                collection=id_,
                shard=number,
                schema=shard_schema(new.map.collections[CollectionId(id_)]),
                ports=self._ports,
                settings=_SETTINGS,
            )

    def shards_of(self, collection: CollectionId) -> dict[int, Shard]:
        return {number: shard for (id_, number), shard in self.open.items() if id_ == collection}

    # -- what tests do with it

    def collection(self, name: str) -> Collection:
        return named(self.catalogue.map, name)

    async def write(self, name: str, op_of: Callable[[bytes], Op], ids: list[int]) -> None:
        """One operation for each shard that has some of the ids, made from their keys."""
        shards = self.shards_of(self.collection(name).id)
        for number, shard in shards.items():
            mine = [id_key(i) for i in ids if shard_of(id_key(i), len(shards)) == number]
            if mine:
                deadline_s = asyncio.get_running_loop().time() + 20
                await shard.write(op_of(b"".join(mine)), deadline_s=deadline_s)

    async def upsert(self, name: str, ids: list[int], *, tag: str = "") -> None:
        dim = self.collection(name).params.vectors[""].size
        v = self.collection(name).vectors[""]

        def op_of(keys: bytes) -> Op:
            mine = [point_id(keys[i : i + 17]) for i in range(0, len(keys), 17)]
            rows = np.array([row_of(int(i), tag, dim) for i in mine], "<f4")
            payloads = tuple(msgspec.json.encode({"n": i, "tag": tag}) for i in mine)
            return Upsert(keys, (Rows(v, dim, rows.tobytes()),), payloads)

        await self.write(name, op_of, ids)

    async def delete(self, name: str, ids: list[int]) -> None:
        await self.write(name, lambda keys: Delete(keys), ids)

    async def points(self, name: str) -> Points:
        """Everything there is, read from the files after a checkpoint."""
        collection = self.collection(name)
        found: Points = {}
        for shard in self.shards_of(collection.id).values():
            assert shard.damage is None
            await shard.checkpoint()
            db = connect_readonly(shard.folder / "points.db")
            rows = page_by_id(db, b"", 100_000)
            db.close()
            dim, v = collection.params.vectors[""].size, collection.vectors[""]
            vectors = np.fromfile(shard.folder / "vectors" / f"{v}.f32", "<f4")
            for row in rows:
                vector = vectors[row.slot * dim : (row.slot + 1) * dim].tolist()
                found[point_id(row.id)] = (vector, msgspec.json.decode(row.payload or b"{}"))
        return found


def row_of(n: int, tag: str, dim: int) -> list[float]:
    """A row that tells which point, and which write of it, it belongs to."""
    return [float(n), float(len(tag)), *([0.5] * (dim - 2))]


def expected(ids: list[int], *, tag: str = "", dim: int = 4) -> Points:
    return {i: (row_of(i, tag, dim), {"n": i, "tag": tag}) for i in ids}


@asynccontextmanager
async def store_node(data: Path) -> AsyncIterator[StoreNode]:
    """A node on the folder, begun or found; closed at the end."""
    clock = itertools.count(1_700_000_000_000_000, 1_000_000)
    with ThreadPoolExecutor(4) as executor:
        node = StoreNode(data, executor)
        begun = await begin(data, NODE, now_us=1)
        node.catalogue = await Catalogue.open(data, begun, node, now_us=lambda: next(clock), log=_LOG)
        await node.map_changed(node.catalogue.view, node.catalogue.view)
        node.snapshots = Snapshots(
            data,
            node.catalogue,
            node.shards_of,
            now_us=lambda: next(clock),
            check_room=lambda size_bytes: node.check_room(size_bytes),
            limits=lambda: DEFAULT_LIMITS,
        )
        try:
            yield node
        finally:
            await node.snapshots.close()
            await node.catalogue.close()
            await asyncio.gather(*(shard.close() for shard in node.open.values()))
            await begun.close()
