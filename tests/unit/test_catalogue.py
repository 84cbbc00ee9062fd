"""The catalogue on a real register: beginning, commands, what a crash or a lost answer leaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from agent.store.beginning import Begun, begin
from agent.store.catalogue import MAP_COPY, Catalogue
from agent.store.deleted import DELETED, SHARDS, Bounds, shard_folder, staged_folder
from agent.store.node_identity import NODE_JSON, lock_folder
from agent.store.state.port import StateStore, VersionConflict, Versioned
from core.api.collections import CreateAlias, DeleteAlias, UpdateCollection
from core.api.config import CollectionParams, Distance, Optimizers, VectorParams
from core.api.indexes import FieldIndex
from core.cluster import ClusterView, Collection, CollectionId, NodeId, named, shards_key
from core.config import NodeConfig
from core.errors import Conflict, Damaged, NoRoom, NotFound, StartRefused, Unavailable
from net.logs import log_to

LOG = log_to(sys.stderr)
NODE = NodeConfig("n1", "127.0.0.1:6333", "127.0.0.1:6335", "127.0.0.1:6333")
PARAMS = CollectionParams(vectors={"": VectorParams(4, Distance.COSINE)}, unnamed=True, shard_number=2)


@dataclass
class FolderHost:
    """A store without shards: its logs are folders that hold their incarnation."""

    data: Path
    seen: list[tuple[int, int]] = field(default_factory=list)  # epochs before and after
    failure: Exception | None = None
    incarnations: itertools.count[int] = field(default_factory=lambda: itertools.count(100))

    async def make_logs(self, collection: Collection, histories: Mapping[int, int]) -> dict[int, int]:
        made: dict[int, int] = {}
        for number in histories:
            folder = shard_folder(self.data, collection.id, number)
            folder.mkdir(parents=True)
            if self.failure is not None:
                raise self.failure
            made[number] = next(self.incarnations)
            (folder / "incarnation").write_text(str(made[number]))
        return made

    async def make_logs_at(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        raise AssertionError(f"there is no node {node}")

    async def tell_others(self, view: ClusterView, keys: Sequence[str]) -> None:
        assert list(view.map.nodes) == ["n1"]

    async def close_shard(self, collection: CollectionId, shard: int) -> None:
        assert shard_folder(self.data, collection, shard).exists()

    async def map_changed(self, old: ClusterView, new: ClusterView) -> None:
        self.seen.append((old.epoch, new.epoch))


@dataclass
class Node:
    """One node's catalogue and all below it."""

    data: Path
    begun: Begun
    host: FolderHost
    catalogue: Catalogue

    @classmethod
    async def start(cls, data: Path, state: type[Fragile] | None = None) -> Node:
        begun = await begin(data, NODE, now_us=1)
        if state is not None:
            begun = Begun(begun.identity, state(begun.state), begun.acceptor, begun.healed)
        host = FolderHost(data)
        clock = itertools.count(1_000_000)
        return cls(
            data, begun, host, await Catalogue.open(data, begun, host, now_us=lambda: next(clock), log=LOG)
        )

    async def stop(self) -> None:
        await self.catalogue.close()
        await self.begun.close()

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.data / SHARDS).iterdir())

    def graves(self) -> list[str]:
        return sorted(p.name for p in (self.data / DELETED).glob("*/*") if p.is_dir())


class Fragile:
    """A StateStore whose answers can get lost, after or before the CAS took effect."""

    def __init__(self, inner: StateStore) -> None:
        self.inner = inner
        self.lose: str | None = None

    async def read(self, key: str) -> Versioned:
        return await self.inner.read(key)

    async def compare_and_set(self, key: str, version: int, value: bytes) -> int | VersionConflict:
        lose, self.lose = self.lose, None
        if lose == "request":
            raise Unavailable("lost on the way")
        answer = await self.inner.compare_and_set(key, version, value)
        if lose == "answer":
            raise Unavailable("lost on the way back")
        return answer

    async def delete(self, key: str, version: int) -> int | VersionConflict:
        return await self.inner.delete(key, version)

    async def watch(self, key: str, after_version: int) -> Versioned:
        return await self.inner.watch(key, after_version)

    async def list(self, prefix: str) -> dict[str, Versioned]:
        return await self.inner.list(prefix)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = await Node.start(tmp_path)
    yield node
    await node.stop()


async def restarted(node: Node) -> Node:
    await node.stop()
    return await Node.start(node.data)


# -- beginning


async def test_an_empty_folder_begins_a_cluster_of_one_node(node: Node) -> None:
    assert node.catalogue.epoch == 1
    assert node.catalogue.map.nodes["n1"].number == 1  # type: ignore[index]
    identity = json.loads((node.data / NODE_JSON).read_text())
    assert identity["begun"] is True
    assert identity["cluster"] == node.catalogue.map.cluster
    assert b'"n1"' in ((await node.begun.state.read("voters")).value or b"")


async def test_a_restart_finds_the_same_cluster_and_map(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="key")
    before = node.catalogue.view
    again = await restarted(node)
    assert again.catalogue.view == before
    assert again.host.seen == []
    await again.stop()


async def test_a_crash_after_the_first_node_json_begins_the_same_cluster(tmp_path: Path) -> None:
    node = await Node.start(tmp_path)
    await node.stop()
    for path in (tmp_path / "acceptor").iterdir():
        path.unlink()
    identity = msgspec.json.decode((tmp_path / NODE_JSON).read_bytes())
    with pytest.raises(Damaged, match="no whole copy"):
        await Node.start(tmp_path)

    from agent.store.files import Files
    from agent.store.node_identity import NodeIdentity, write_identity

    first = NodeIdentity(node="n1", cluster=identity["cluster"], voters=("n1",), begun=False)
    write_identity(tmp_path, first, Files())
    again = await Node.start(tmp_path)
    assert again.catalogue.map.cluster == identity["cluster"]
    await again.stop()


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"node":"n1","cluster":"other","voters":[],"crc":1}']
)
async def test_a_lost_node_json_is_made_anew_from_the_register(tmp_path: Path, content: bytes | None) -> None:
    node = await Node.start(tmp_path)
    whole = (tmp_path / NODE_JSON).read_bytes()
    await node.stop()
    (tmp_path / NODE_JSON).unlink() if content is None else (tmp_path / NODE_JSON).write_bytes(content)
    again = await Node.start(tmp_path)
    assert NODE_JSON in again.begun.healed[0]
    assert (tmp_path / NODE_JSON).read_bytes() == whole
    await again.stop()


async def test_a_folder_of_another_node_or_in_use_is_refused(tmp_path: Path) -> None:
    await (await Node.start(tmp_path)).stop()
    with pytest.raises(StartRefused, match="belongs to node 'n1'"):
        await begin(tmp_path, NodeConfig("n2", "a:1", "a:2", "a:1"), now_us=1)
    (tmp_path / NODE_JSON).unlink()
    with pytest.raises(StartRefused, match="belongs to n1"):
        await begin(tmp_path, NodeConfig("n2", "a:1", "a:2", "a:1"), now_us=1)
    lock_folder(tmp_path)
    with pytest.raises(StartRefused, match="in use by another agent"):
        lock_folder(tmp_path)


# -- commands


async def test_a_new_collection_has_its_shards_active_at_term_1_and_is_announced(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="key")
    collection = named(node.catalogue.map, "docs")
    shards = node.catalogue.view.shards[collection.id].shards
    assert [(s.number, s.term, s.primary, s.in_sync, s.replicas) for s in shards] == [
        (0, 1, "n1", ("n1",), {"n1": 100}),
        (1, 1, "n1", ("n1",), {"n1": 101}),
    ]
    assert node.folders() == [f"{collection.id}-0", f"{collection.id}-1"]
    assert node.host.seen[-1][1] == node.catalogue.epoch
    assert node.catalogue.map.events[-1].kind == "collection.created"
    copy = msgspec.json.decode((node.data / MAP_COPY).read_bytes(), type=ClusterView)
    assert copy == node.catalogue.view


async def test_two_creations_of_one_name_at_once_make_one_collection(node: Node) -> None:
    calls = [node.catalogue.create_collection("docs", PARAMS, who=f"k{n}") for n in range(4)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(answer is None for answer in answers) == 1
    assert all("already exists" in str(a) for a in answers if isinstance(a, Conflict))
    assert len(node.folders()) == 2


async def test_commands_of_two_agents_at_once_lose_none(
    node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = await Catalogue.open(
        tmp_path_factory.mktemp("other"), node.begun, node.host, now_us=lambda: 5, log=LOG
    )
    await node.catalogue.create_collection("docs", PARAMS, who="a")
    await asyncio.gather(
        *(
            catalogue.put_index("docs", FieldIndex(f"{who}{n}", "keyword"), who=who)
            for n in range(10)
            for who, catalogue in (("a", node.catalogue), ("b", other))
        )
    )
    await node.catalogue.put_index("docs", FieldIndex("last", "integer"), who="a")
    indexes = named(node.catalogue.map, "docs").indexes
    assert len(indexes) == 21
    assert sorted(i.number for i in indexes.values()) == list(range(1, 22))


async def test_a_command_that_changes_nothing_makes_no_epoch(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="")
    await node.catalogue.put_index("docs", FieldIndex("a", "keyword"), who="")
    epoch = node.catalogue.epoch
    await node.catalogue.put_index("docs", FieldIndex("a", "keyword"), who="")
    await node.catalogue.delete_index("docs", "b", who="")
    await node.catalogue.set_aliases([DeleteAlias("none")], who="")
    await node.catalogue.update_collection("docs", UpdateCollection(), who="")
    assert await node.catalogue.delete_collection("none", who="") is False
    assert node.catalogue.epoch == epoch


async def test_a_rejected_command_changes_nothing(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="")
    view = node.catalogue.view
    with pytest.raises(NotFound):
        await node.catalogue.set_aliases([CreateAlias("a", "docs"), CreateAlias("b", "none")], who="")
    with pytest.raises(NotFound):
        await node.catalogue.update_collection("none", UpdateCollection(), who="")
    assert node.catalogue.view == view


async def test_a_patch_is_merged_and_raises_the_schema_version(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="")
    body = UpdateCollection(optimizers_config=Optimizers(indexing_threshold=7), metadata={"a": 1})
    await node.catalogue.update_collection("docs", body, who="")
    collection = named(node.catalogue.map, "docs")
    assert collection.params.optimizers_config.indexing_threshold == 7
    assert collection.schema_version == 2


async def test_a_failed_creation_leaves_no_folder_and_no_key(node: Node) -> None:
    node.host.failure = NoRoom("the disk is full")
    with pytest.raises(NoRoom):
        await node.catalogue.create_collection("docs", PARAMS, who="")
    assert node.folders() == []
    node.host.failure = None
    await node.catalogue.create_collection("docs", PARAMS, who="")
    assert list(await node.begun.state.list("shards/")) == [shards_key(named(node.catalogue.map, "docs").id)]


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_lost_answer_is_settled_by_reading(tmp_path: Path, lost: str) -> None:
    node = await Node.start(tmp_path, Fragile)
    await node.catalogue.create_collection("docs", PARAMS, who="")
    assert isinstance(node.begun.state, Fragile)
    node.begun.state.lose = lost
    with pytest.raises(Unavailable):
        await node.catalogue.put_index("docs", FieldIndex("a", "keyword"), who="")
    await node.catalogue.put_index("docs", FieldIndex("b", "keyword"), who="")
    assert set(named(node.catalogue.map, "docs").indexes) == ({"b"} if lost == "request" else {"a", "b"})
    # Whoever opens shards saw every epoch once, in order, also the one that nobody was told of.
    assert all(a[1] == b[0] for a, b in itertools.pairwise(node.host.seen))
    await node.stop()


async def test_a_cancelled_caller_leaves_the_change_to_finish(node: Node) -> None:
    call = asyncio.create_task(node.catalogue.create_collection("docs", PARAMS, who=""))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await node.catalogue.close()
    assert named(node.catalogue.map, "docs").name == "docs"


class Slow(Fragile):
    """A StateStore that answers reads when it is let."""

    def __init__(self, inner: StateStore) -> None:
        super().__init__(inner)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = 0

    async def read(self, key: str) -> Versioned:
        self.asked += 1
        await self.may_answer.wait()
        return await super().read(key)


async def readers_of(node: Node) -> tuple[Slow, list[asyncio.Task[None]]]:
    """One that waits for the map, and five that came while it did."""
    state = node.begun.state
    assert isinstance(state, Slow)
    state.may_answer.clear()
    state.asked = 0
    readers = [asyncio.create_task(node.catalogue.take_up())]
    while not state.asked:
        await asyncio.sleep(0)
    readers += [asyncio.create_task(node.catalogue.take_up([f"shards/{n}"])) for n in range(5)]
    await asyncio.sleep(0)
    return state, readers


async def test_those_who_ask_for_the_map_while_it_is_read_share_the_next_reading(tmp_path: Path) -> None:
    node = await Node.start(tmp_path, Slow)
    state, readers = await readers_of(node)
    state.may_answer.set()
    await asyncio.gather(*readers)
    assert state.asked == 2
    await node.stop()


async def test_a_node_that_stops_waits_for_one_reader_not_for_those_behind_it(tmp_path: Path) -> None:
    node = await Node.start(tmp_path, Slow)
    state, readers = await readers_of(node)
    stopping = asyncio.create_task(node.stop())
    await asyncio.sleep(0)
    state.may_answer.set()
    await stopping
    outcomes = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), *5 * [Unavailable]]
    assert state.asked == 1


async def test_a_change_holds_although_the_maps_copy_cannot_be_written(node: Node) -> None:
    (node.data / f"{MAP_COPY}.new").mkdir()
    await node.catalogue.create_collection("docs", PARAMS, who="")
    again = await restarted(node)
    assert named(again.catalogue.map, "docs").name == "docs"
    await again.stop()


# -- deleting, and what a crash leaves


async def test_a_deleted_collection_is_set_aside_with_what_it_was(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="")
    id_ = named(node.catalogue.map, "docs").id
    assert await node.catalogue.delete_collection("docs", who="") is True
    assert node.folders() == []
    assert node.graves() == [f"{id_}-0", f"{id_}-1"]
    (about,) = (node.data / DELETED).glob("*/collection.json")
    assert json.loads(about.read_text())["name"] == "docs"
    assert await node.begun.state.list("shards/") == {}
    await node.catalogue.create_collection("docs", PARAMS, who="")
    assert named(node.catalogue.map, "docs").id > id_


async def test_a_start_clears_up_what_a_crash_left_of_creating_or_deleting(node: Node) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="")
    shard_folder(node.data, 77, 0).mkdir()
    staged_folder(node.data, 77, 0, 5).mkdir()
    (node.data / SHARDS / "notes.txt").write_text("somebody's")
    await node.begun.state.compare_and_set("shards/78", 0, b"{}")
    again = await restarted(node)
    assert "77-0" in again.graves()
    assert list(await again.begun.state.list("shards/")) == ["shards/1"]
    assert again.folders() == ["1-0", "1-1", "notes.txt"]
    await again.stop()


@pytest.mark.parametrize("crash", [False, True])
async def test_a_staged_replica_takes_the_place_of_the_shards_folder(node: Node, crash: bool) -> None:
    await node.catalogue.create_collection("docs", PARAMS, who="")
    staged = staged_folder(node.data, 1, 1, 555)
    staged.mkdir()
    (staged / "incarnation").write_text("555")
    if crash:  # after the CAS that decides, before the folders are moved

        async def die(collection: CollectionId, shard: int) -> None:
            raise KeyError

        node.host.close_shard = die  # type: ignore[method-assign]
        with pytest.raises(KeyError):
            await node.catalogue.replace_replica(CollectionId(1), 1, 555, 9, who="")
        again = await restarted(node)
    else:
        await node.catalogue.replace_replica(CollectionId(1), 1, 555, 9, who="")
        again = node
    assert (shard_folder(node.data, 1, 1) / "incarnation").read_text() == "555"
    assert again.catalogue.view.shards[CollectionId(1)].shards[1].replicas == {"n1": 555}
    assert again.folders() == ["1-0", "1-1"]
    assert again.graves() == ["1-1"]
    await again.stop()


async def test_deleted_folders_are_swept_by_age_count_bytes_and_low_water(node: Node) -> None:
    for n in range(4):
        await node.catalogue.create_collection(f"c{n}", PARAMS, who="")
        (shard_folder(node.data, n + 1, 0) / "big").write_bytes(b"x" * 100_000)
        await node.catalogue.delete_collection(f"c{n}", who="")

    async def left(bounds: Bounds, *, low: bool = False) -> list[str]:
        await node.catalogue.sweep_deleted(bounds, is_low=lambda: low)
        return sorted({name.partition("-")[0] for name in node.graves()})

    (node.data / "deleted" / "not-ours").mkdir()
    assert await left(Bounds()) == ["1", "2", "3", "4"]
    assert await left(Bounds(count_max=3)) == ["2", "3", "4"]
    assert await left(Bounds(bytes_max=250_000)) == ["3", "4"]
    assert await left(Bounds(age_s_max=0)) == []
    await node.catalogue.create_collection("again", PARAMS, who="")
    await node.catalogue.delete_collection("again", who="")
    assert await left(Bounds(), low=True) == []
    assert (node.data / "deleted" / "not-ours").is_dir()
