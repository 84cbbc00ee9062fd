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
from dataclasses import dataclass
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
SHARDS_MAX = 4096
"""Shards on one node, of all collections: each has a place in the page, open files and its own SQLite."""

T = TypeVar("T")


class Host(Protocol):
    """The store process, as the catalogue sees it."""

    async def make_logs(self, collection: Collection, histories: Mapping[int, int]) -> dict[int, int]:
        """Makes and closes a durable empty log for each shard (number → history id): their incarnations."""
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


class Catalogue:
    """The map of one agent, and every command that changes it. One command at a time."""

    def __init__(self, folder: Path, begun: Begun, host: Host, now_us: Callable[[], int], log: Log) -> None:
        self._folder, self._host, self._now_us, self._log = folder, host, now_us, log
        self._me, self._state = NodeId(begun.identity.node), begun.state
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._version = 0
        self._is_stale = True
        self._view = ClusterView(ClusterMap(cluster=""))

    @classmethod
    async def open(
        cls, folder: Path, begun: Begun, host: Host, *, now_us: Callable[[], int], log: Log
    ) -> Catalogue:
        """Reads the map, and finishes what a crash left half done. Raises Damaged, InvariantBroken."""
        catalogue = cls(folder, begun, host, now_us, log)
        catalogue._view = await catalogue._read()
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
    def map(self) -> ClusterMap:
        return self._view.map

    @property
    def epoch(self) -> int:
        return self._view.map.epoch

    async def close(self) -> None:
        """Waits for the changes that are under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

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
            answer = await self._state.compare_and_set("map", self._version, to_json(new_map))
            if isinstance(answer, int):
                self._version, self._is_stale = answer, False
                await self._install(new)
                return
            await self._look()

    async def _look(self) -> bool:
        """Reads the map. Whether it was another than the one that was known."""
        if not self._is_stale and (await self._state.read("map")).version == self._version:
            return False
        await self._install(await self._read())
        return True

    async def _install(self, new: ClusterView) -> None:
        old, self._view = self._view, new
        if new != old:
            await self._host.map_changed(old, new)
            await self._keep_copy()

    async def _keep_copy(self) -> None:
        try:
            await asyncio.to_thread(_write_copy, self._folder, self._view)
        except OSError as e:
            # The register has the map; a full disk must not make a change fail that has happened.
            self._log.warning("map.copy_not_written", text=str(e))

    async def _read(self) -> ClusterView:
        found = await self._state.read("map")
        cluster = decode_map(found)
        keys = {id_: shards_key(id_) for id_ in cluster.collections}
        values = await asyncio.gather(*(self._state.read(key) for key in keys.values()))
        shards = {id_: _decode_shards(keys[id_], value) for id_, value in zip(keys, values, strict=True)}
        view = ClusterView(cluster, shards)
        check(view)
        self._version, self._is_stale = found.version, False
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
        mine = {n: histories[n] for n, nodes in enumerate(places) if self._me in nodes}
        made = await self._host.make_logs(collection, mine)
        replicas = {(n, self._me): incarnation for n, incarnation in made.items()}
        return changes.first_shards(collection.id, places, replicas, histories)

    async def _put_shards(self, shards: Shards, *, version: int) -> None:
        key = shards_key(shards.collection)
        answer = await self._state.compare_and_set(key, version, to_json(shards))
        if isinstance(answer, VersionConflict):
            raise InvariantBroken(f"{key} is at version {answer.current.version}, expected {version}")

    async def _delete(self, name: str, asked: _Asked) -> bool:
        async with self._turn:
            await self._look()
            gone = next((c for c in self.map.collections.values() if c.name == name), None)
            if gone is None:
                return False
            await self._change(lambda m: changes.delete_collection(m, name), asked)
            await self._set_aside(gone.id, msgspec.json.encode(gone))
            return True

    async def _switch(self, collection: Collection, shards: Shards, asked: _Asked) -> None:
        async with self._turn:
            await self._look()
            old = next((c for c in self.map.collections.values() if c.name == collection.name), None)
            await self._put_shards(shards, version=0)
            await self._change(lambda m: changes.replace_collection(m, collection), asked, shards)
            if old is not None:
                await self._set_aside(old.id, msgspec.json.encode(old))

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
        on_disk = collections_on_disk(self._folder)
        keys = await self._state.list(SHARDS_PREFIX)
        for id_ in on_disk | {int(key.removeprefix(SHARDS_PREFIX)) for key in keys}:
            if id_ not in self.map.collections:
                await self._set_aside(CollectionId(id_), b"{}")

    async def _set_aside(self, id_: CollectionId, about: bytes) -> None:
        await asyncio.to_thread(set_aside, self._folder, id_, about, now_us=self._now_us())
        await self._delete_key(shards_key(id_))

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


def _write_copy(folder: Path, view: ClusterView) -> None:
    """Only a copy, for people and for reads while no voter answers: it needs no fsync."""
    beside = folder / f"{MAP_COPY}.new"
    beside.write_bytes(to_json(view))
    os.replace(beside, folder / MAP_COPY)
