"""The catalogue: collections, aliases, indexes and vectors of the cluster. Commands become CASes of the map.

    lock = lock_folder(folder); begun = await begin(folder, node, now_us=…)      (node_identity, beginning)
    catalogue = await Catalogue.open(folder, begun, host, now_us=…, log=…)
    catalogue.view | .map | .epoch                     the ClusterView that holds now
    await catalogue.create_collection(name, params, who=…)             and delete_, update_collection
    await catalogue.set_aliases(actions, who=…)
    await catalogue.put_index(name, field_index, who=…)                and delete_index
    await catalogue.put_vector(name, vector, params, who=…)            and delete_vector
    await catalogue.add_recovered(collection, shards, who=…)           a snapshot's collection takes over
    await catalogue.replace_replica(collection, shard, incarnation, history, who=…)
    await catalogue.sweep_deleted(bounds, is_low=…)
    await catalogue.close()

Every command raises a ShoalError, or answers after `host.map_changed` has returned: what the store opens and
publishes there is visible to whoever sees the answer. A cancelled caller gives up the answer, not the change.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from collections.abc import Collection as Collection_
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from agent.store.beginning import Begun, decode_map
from agent.store.deleted import (
    SHARDS,
    Bounds,
    collections_on_disk,
    put_in_place,
    set_aside,
    shard_folders,
    staged_folder,
    staged_on_disk,
    sweep,
)
from agent.store.state.port import VersionConflict, Versioned
from core import cluster_changes as changes
from core.api.collections import AliasChange, UpdateCollection
from core.api.config import CollectionParams, VectorParams
from core.api.indexes import FieldIndex
from core.cluster import (
    SHARDS_PREFIX,
    ClusterMap,
    ClusterView,
    Collection,
    CollectionId,
    Event,
    Node,
    NodeId,
    Shard,
    Shards,
    check,
    check_step,
    shards_key,
    to_json,
)
from core.errors import BadRequest, Damaged, InvariantBroken, ShoalError, Unavailable
from core.placement import place
from net.logs import Log

MAP_COPY = "map.json"
DESCRIPTORS_PER_SHARD, DESCRIPTORS_KEPT = 12, 256
"""What the store opens for a shard, and what it needs beside: links, snapshots, the register."""
UNNAMED_S = 600.0
"""A log that the map does not name after this long was made for a collection that never came to be."""
SHARDS_MAX = 4096
"""Shards on one node, of all collections: each has a place in the page, open files and its own SQLite."""

T = TypeVar("T")


class Host(Protocol):
    """The store process, as the catalogue sees it."""

    async def make_logs(self, collection: Collection, histories: Mapping[int, int]) -> dict[int, int]:
        """Makes and closes a durable empty log for each shard (number → history id): their incarnations."""
        ...

    async def make_logs_at(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        """The same on another node. Raises Unavailable if it can't be reached."""
        ...

    async def tell_others(self, view: ClusterView, keys: Sequence[str]) -> None:
        """Waits a moment for the other nodes to take the map and these `shards/…` up."""
        ...

    async def close_shard(self, collection: CollectionId, shard: int) -> None:
        """Its folder is about to be replaced; `map_changed` follows, and opens what is there then."""
        ...

    async def map_changed(self, old: ClusterView, new: ClusterView) -> None:
        """Opens, changes and closes shards, then publishes the epoch. Not called for the first view."""
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who wants what, for the event that the change carries."""

    kind: str
    subject: str
    who: str


@dataclass(eq=False, slots=True)
class _TakeUp:
    """A reading of the map that has not begun, and what it shall read anew."""

    keys: set[str] = field(default_factory=set)
    all: bool = False
    task: asyncio.Task[None] | None = None


class Catalogue:
    """The map of one agent, and every command that changes it. One command at a time."""

    def __init__(self, folder: Path, begun: Begun, host: Host, now_us: Callable[[], int], log: Log) -> None:
        self._folder, self._host, self._now_us, self._log = folder, host, now_us, log
        self._me, self._state = NodeId(begun.identity.node), begun.state
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._versions: dict[str, int] = {}
        """Of the keys as they are in the view."""
        self._is_stale = True
        self._is_closing = False
        self._waiting: _TakeUp | None = None
        self._view = ClusterView(ClusterMap(cluster=""))

    @classmethod
    async def open(
        cls, folder: Path, begun: Begun, host: Host, *, now_us: Callable[[], int], log: Log
    ) -> Catalogue:
        """Reads the map, and finishes what a crash left half done. Raises Damaged, InvariantBroken."""
        catalogue = cls(folder, begun, host, now_us, log)
        try:
            catalogue._view = await catalogue._read()
        except Unavailable as problem:
            if begun.identity.voters == (begun.identity.node,):
                raise
            # Reads go on without a majority of the voters, and what is acknowledged without them, too.
            catalogue._view = await asyncio.to_thread(_read_copy, folder, problem)
            log.warning("map.from_copy", epoch=catalogue.epoch, text=str(problem))
            return catalogue
        await catalogue._clear_up()
        await catalogue._keep_copy()
        return catalogue

    @property
    def me(self) -> NodeId:
        return self._me

    @property
    def view(self) -> ClusterView:
        return self._view

    @property
    def is_stale(self) -> bool:
        """Whether the view may be older than what the voters hold, as after a start without them."""
        return self._is_stale

    @property
    def map(self) -> ClusterMap:
        return self._view.map

    @property
    def epoch(self) -> int:
        return self._view.map.epoch

    async def close(self) -> None:
        """Waits for the changes that are under way; reads that wait for their turn are given up."""
        self._is_closing = True
        await asyncio.gather(*self._running, return_exceptions=True)

    # -- other nodes

    async def take_up(self, keys: Collection_[str] | None = None) -> None:
        """Reads the map and those of the keys `shards/…` (None: all), and installs what has changed.

        Who asks while another waits for its turn shares that one: without voters each takes seconds.
        """
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = _TakeUp()
            task = waiting.task = asyncio.create_task(self._take_up(waiting))
            self._running.add(task)
            task.add_done_callback(self._taken_up)
        if keys is None:
            waiting.all = True
        else:
            waiting.keys.update(keys)
        assert waiting.task is not None
        await asyncio.shield(waiting.task)

    def _taken_up(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            # Those who asked are told by the task, too; but all of them may have gone.
            self._log.debug("map.not_taken_up", text=str(problem))

    async def watch_map(self) -> None:
        """Returns when the map has another version than the view."""
        await self._state.watch("map", self._versions.get("map", 0))

    def is_behind(self, key: str, version: int) -> bool:
        """Whether the key has been seen at a later version than the view has it."""
        return version > self._versions.get(key, 0)

    async def add_node(self, node: Node, *, who: str) -> None:
        asked = _Asked("node.added", node.id, who)
        await self._command(lambda m: m if node.id in m.nodes else changes.add_node(m, node), asked)

    # -- collections

    async def create_collection(self, name: str, params: CollectionParams, *, who: str) -> None:
        await self._owned(self._create(name, params, _Asked("collection.created", name, who)))

    async def delete_collection(self, name: str, *, who: str) -> bool:
        """Whether there was one. Its files are set aside for a while."""
        return await self._owned(self._delete(name, _Asked("collection.deleted", name, who)))

    async def update_collection(self, name: str, body: UpdateCollection, *, who: str) -> None:
        asked = _Asked("collection.updated", name, who)
        await self._command(lambda m: changes.update_collection(m, name, body), asked)

    # -- aliases, indexes, vectors

    async def set_aliases(self, actions: Sequence[AliasChange], *, who: str) -> None:
        asked = _Asked("aliases.changed", f"{len(actions)} actions", who)
        await self._command(lambda m: changes.set_aliases(m, actions), asked)

    async def put_index(self, name: str, index: FieldIndex, *, who: str) -> None:
        asked = _Asked("index.put", f"{name}/{index.field}", who)
        await self._command(lambda m: changes.put_index(m, name, index), asked)

    async def delete_index(self, name: str, path: str, *, who: str) -> None:
        asked = _Asked("index.deleted", f"{name}/{path}", who)
        await self._command(lambda m: changes.delete_index(m, name, path), asked)

    async def put_vector(self, name: str, vector: str, params: VectorParams, *, who: str) -> None:
        asked = _Asked("vector.put", f"{name}/{vector}", who)
        await self._command(lambda m: changes.put_vector(m, name, vector, params), asked)

    async def delete_vector(self, name: str, vector: str, *, who: str) -> None:
        asked = _Asked("vector.deleted", f"{name}/{vector}", who)
        await self._command(lambda m: changes.delete_vector(m, name, vector), asked)

    # -- snapshots

    async def reserve_collection(self) -> CollectionId:
        """An id for folders that are to be built beside; never given twice."""
        return await self._owned(self._reserve_in_turn())

    async def add_recovered(self, collection: Collection, shards: Shards, *, who: str) -> None:
        """A collection whose folders are ready takes the place of the one with its name, if there is one."""
        await self._owned(
            self._switch(collection, shards, _Asked("collection.recovered", collection.name, who))
        )

    async def replace_replica(
        self, collection: CollectionId, shard: int, incarnation: int, history: int, *, who: str
    ) -> None:
        """This node's replica of a shard of one replica is another log from now on."""
        asked = _Asked("shard.recovered", f"{collection}-{shard}", who)
        await self._owned(self._replace_replica(collection, shard, incarnation, history, asked))

    async def sweep_deleted(self, bounds: Bounds, *, is_low: Callable[[], bool]) -> list[str]:
        if len(self.map.nodes) > 1:
            await asyncio.to_thread(self._set_unnamed_aside, UNNAMED_S)
        return await asyncio.to_thread(sweep, self._folder, bounds, now_us=self._now_us(), is_low=is_low)

    # -- how a command becomes a change

    async def _owned(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _command(self, change: Callable[[ClusterMap], ClusterMap], asked: _Asked) -> None:
        await self._owned(self._in_turn(change, asked))

    async def _in_turn(self, change: Callable[[ClusterMap], ClusterMap], asked: _Asked) -> None:
        async with self._turn:
            await self._change(change, asked)

    async def _change(
        self, change: Callable[[ClusterMap], ClusterMap], asked: _Asked | None, shards: Shards | None = None
    ) -> None:
        """CASes the changed map, again as long as others come first. `shards`: what it makes the map name."""
        if self._is_stale:
            await self._look()
        while True:
            old = self._view
            try:
                wanted = change(old.map)
            except ShoalError:
                # No is an answer, too: it must not rest on a map that another agent has changed.
                if await self._look():
                    continue
                raise
            if wanted is old.map:
                if await self._look():
                    continue
                return
            event = Event(self._now_us(), asked.kind, asked.who, asked.subject) if asked is not None else None
            new_map = changes.stamped(old.map, wanted, event)
            check_step(old.map, new_map)
            known = {**old.shards, shards.collection: shards} if shards is not None else old.shards
            new = ClusterView(new_map, {id_: s for id_, s in known.items() if id_ in new_map.collections})
            check(new)
            self._is_stale = True  # until the answer is here: without one, only reading tells
            answer = await self._state.compare_and_set("map", self._versions["map"], to_json(new_map))
            if isinstance(answer, int):
                self._versions["map"], self._is_stale = answer, False
                await self._install(new)
                keys = [shards_key(shards.collection)] if shards is not None else []
                await self._host.tell_others(self._view, keys)
                return
            await self._look()

    async def _look(self) -> bool:
        """Reads the map. Whether it was another than the one that was known."""
        if not self._is_stale and (await self._state.read("map")).version == self._versions["map"]:
            return False
        await self._install(await self._read())
        return True

    async def _take_up(self, waiting: _TakeUp) -> None:
        async with self._turn:
            self._waiting = None  # who asks from here on may know of something newer
            if self._is_closing:  # without voters each of them would wait for all of its time
                raise Unavailable("this node stops: it takes up no map any more")
            await self._install(await self._read(None if waiting.all else frozenset(waiting.keys)))

    async def _install(self, new: ClusterView) -> None:
        old = self._view
        if (new.map, new.shards) == (old.map, old.shards):
            return
        self._view = new if new.epoch > old.epoch else replace(new, serial=old.epoch + 1)
        await self._host.map_changed(old, self._view)
        for id_ in old.map.collections.keys() - new.map.collections.keys():
            about = msgspec.json.encode(old.map.collections[id_])
            await asyncio.to_thread(set_aside, self._folder, id_, about, now_us=self._now_us())
        await self._keep_copy()

    async def _keep_copy(self) -> None:
        try:
            await asyncio.to_thread(_write_copy, self._folder, self._view)
        except OSError as e:
            # The register has the map; a full disk must not make a change fail that has happened.
            self._log.warning("map.copy_not_written", text=str(e))

    async def _read(self, keys: frozenset[str] | None = None) -> ClusterView:
        """What holds now; of the shards that are known only those under `keys` are read again."""
        found = await self._state.read("map")
        cluster = decode_map(found)
        known = self._view.shards if keys is not None else {}
        wanted = {
            id_: shards_key(id_)
            for id_ in cluster.collections
            if id_ not in known or (keys is not None and shards_key(id_) in keys)
        }
        values = await asyncio.gather(*(self._state.read(key) for key in wanted.values()))
        read = {id_: _decode_shards(wanted[id_], value) for id_, value in zip(wanted, values, strict=True)}
        shards = {id_: read.get(id_) or known[id_] for id_ in cluster.collections}
        view = ClusterView(cluster, shards)
        check(view)
        self._versions["map"] = found.version
        self._versions |= {key: value.version for key, value in zip(wanted.values(), values, strict=True)}
        self._is_stale = False
        return view

    # -- creating and deleting

    async def _create(self, name: str, params: CollectionParams, asked: _Asked) -> None:
        async with self._turn:
            await self._look()
            changes.check_new_name(self.map, name)
            self._check_shard_count(params.shard_number)
            id_ = await self._reserve()
            collection = changes.new_collection(id_, name, params, created_us=self._now_us())
            try:
                shards = await self._make_shards(collection)
                await self._put_shards(shards, version=0)
                await self._change(lambda m: changes.add_collection(m, collection), asked, shards)
            except (ShoalError, OSError) as e:
                # An Unavailable register may yet have taken it: the next start clears up.
                if id_ not in self.map.collections and not isinstance(e, Unavailable):
                    await self._discard(id_)
                raise

    def _check_shard_count(self, wanted: int) -> None:
        there = sum(self._me in s.replicas for shards in self._view.shards.values() for s in shards.shards)
        if there + wanted > SHARDS_MAX:
            raise BadRequest(
                f"shard_number: {wanted} more shards than the {there} there are, a node holds {SHARDS_MAX}"
            )
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if (there + wanted) * DESCRIPTORS_PER_SHARD + DESCRIPTORS_KEPT > allowed:
            # Beyond it the node would not even start again.
            raise BadRequest(
                f"shard_number: {wanted} more shards than the {there} there are need more open files than "
                f"the {allowed} allowed: raise LimitNOFILE (ulimit -n) and start the node again"
            )

    async def _reserve_in_turn(self) -> CollectionId:
        async with self._turn:
            return await self._reserve()

    async def _reserve(self) -> CollectionId:
        drawn: list[CollectionId] = []

        def reserve(cluster: ClusterMap) -> ClusterMap:
            changed, id_ = changes.reserve_collection(cluster)
            drawn.append(id_)
            return changed

        await self._change(reserve, None)
        return drawn[-1]

    async def _make_shards(self, collection: Collection) -> Shards:
        params = collection.params
        places = place(
            self.map,
            self._view.shards.values(),
            shard_count=params.shard_number,
            replication_factor=params.replication_factor,
        )
        histories = [secrets.randbits(63) for _ in places]
        nodes = sorted({node for place_ in places for node in place_})
        made = await asyncio.gather(
            *(
                self._logs_at(
                    node, collection, {n: histories[n] for n, place_ in enumerate(places) if node in place_}
                )
                for node in nodes
            )
        )
        replicas = {
            (n, node): incarnation
            for node, logs in zip(nodes, made, strict=True)
            for n, incarnation in logs.items()
        }
        return changes.first_shards(collection.id, places, replicas, histories)

    async def _logs_at(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        if node == self._me:
            return await self._host.make_logs(collection, histories)
        return await self._host.make_logs_at(node, collection, histories)

    async def _put_shards(self, shards: Shards, *, version: int) -> None:
        key = shards_key(shards.collection)
        answer = await self._state.compare_and_set(key, version, to_json(shards))
        if isinstance(answer, VersionConflict):
            raise InvariantBroken(f"{key} is at version {answer.current.version}, expected {version}")
        self._versions[key] = answer

    async def _delete(self, name: str, asked: _Asked) -> bool:
        async with self._turn:
            await self._look()
            gone = next((c for c in self.map.collections.values() if c.name == name), None)
            if gone is None:
                return False
            await self._change(lambda m: changes.delete_collection(m, name), asked)
            await self._delete_key(shards_key(gone.id))
            return True

    async def _switch(self, collection: Collection, shards: Shards, asked: _Asked) -> None:
        async with self._turn:
            await self._look()
            old = next((c for c in self.map.collections.values() if c.name == collection.name), None)
            await self._put_shards(shards, version=0)
            await self._change(lambda m: changes.replace_collection(m, collection), asked, shards)
            if old is not None:
                await self._delete_key(shards_key(old.id))

    async def _replace_replica(
        self, id_: CollectionId, number: int, incarnation: int, history: int, asked: _Asked
    ) -> None:
        async with self._turn:
            found = await self._state.read(shards_key(id_))
            shards = _decode_shards(shards_key(id_), found)
            changed = [self._replaced(s, number, incarnation, history) for s in shards.shards]
            new = replace(shards, shards=tuple(changed))
            # Decided here; a crash from now on is finished by `_clear_up`.
            await self._put_shards(new, version=found.version)
            await self._host.close_shard(id_, number)
            await asyncio.to_thread(
                put_in_place, self._folder, id_, number, incarnation, now_us=self._now_us()
            )
            await self._change(_same, asked, new)

    def _replaced(self, shard: Shard, number: int, incarnation: int, history: int) -> Shard:
        if shard.number != number:
            return shard
        if shard.replicas.keys() != {self._me}:
            raise BadRequest(f"shard {number} has other replicas than this node's: they would differ from it")
        return replace(shard, replicas={self._me: incarnation}, history=history)

    # -- files and keys that the map no longer names

    async def _clear_up(self) -> None:
        """What a crash left of creating, deleting or recovering: finished, or out of the way."""
        (self._folder / SHARDS).mkdir(mode=0o700, exist_ok=True)
        for id_, number, incarnation in staged_on_disk(self._folder):
            shards = self._view.shards.get(CollectionId(id_))
            wanted = {s.number: s.replicas.get(self._me) for s in shards.shards} if shards else {}
            if wanted.get(number) == incarnation:
                put_in_place(self._folder, id_, number, incarnation, now_us=self._now_us())
            else:
                shutil.rmtree(staged_folder(self._folder, id_, number, incarnation))
        await asyncio.to_thread(self._set_unnamed_aside, 0.0 if len(self.map.nodes) == 1 else UNNAMED_S)
        if len(self.map.nodes) > 1:
            return  # another node may just be making a collection: its keys come before the map names it
        for key in await self._state.list(SHARDS_PREFIX):
            if int(key.removeprefix(SHARDS_PREFIX)) not in self.map.collections:
                await self._delete_key(key)

    def _set_unnamed_aside(self, older_than_s: float) -> None:
        for id_ in collections_on_disk(self._folder) - self.map.collections.keys():
            made_s = max(os.stat(folder).st_mtime for folder in shard_folders(self._folder, id_))
            if older_than_s == 0 or self._now_us() / 1e6 - made_s >= older_than_s:
                set_aside(self._folder, id_, b"{}", now_us=self._now_us())

    async def _discard(self, id_: CollectionId) -> None:
        """Logs that never held anything."""
        for folder in shard_folders(self._folder, id_):
            await asyncio.to_thread(shutil.rmtree, folder)
        await self._delete_key(shards_key(id_))

    async def _delete_key(self, key: str) -> None:
        found = await self._state.read(key)
        if found.value is not None:
            await self._state.delete(key, found.version)


def _same(cluster: ClusterMap) -> ClusterMap:
    """A new epoch of the same map: what changed is in a `shards/…`."""
    return replace(cluster)


def _decode_shards(key: str, found: Versioned) -> Shards:
    if found.value is None:
        raise Damaged(f"the register has no {key}, although the map names its collection")
    try:
        return msgspec.json.decode(found.value, type=Shards)
    except msgspec.DecodeError as e:
        raise Damaged(f"{key} in the register, version {found.version}, cannot be read: {e}") from None


def _read_copy(folder: Path, problem: Unavailable) -> ClusterView:
    try:
        view = msgspec.json.decode((folder / MAP_COPY).read_bytes(), type=ClusterView)
    except (OSError, msgspec.DecodeError) as e:
        raise Unavailable(f"{problem}; and there is no map from before: {e}") from None
    check(view)
    return view


def _write_copy(folder: Path, view: ClusterView) -> None:
    """Only a copy, for people and for reads while no voter answers: it needs no fsync."""
    beside = folder / f"{MAP_COPY}.new"
    beside.write_bytes(to_json(view))
    os.replace(beside, folder / MAP_COPY)
