"""The shards that are open on this node: opened, changed and closed as the map says, one change at a time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from agent.store.map_calls import MapCalls
from agent.store.membership import NO_GROUP, Membership
from agent.store.replicas import Replicas
from agent.store.schemas import shard_schema
from agent.store.shard import Shard, ShardPorts, ShardSettings
from agent.store.writes import Open, target_of
from core import cluster
from core.cluster import ClusterMap, ClusterView, Collection, CollectionId, NodeId, directory
from core.errors import Conflict, NotFound, Unavailable
from core.settings import Settings
from net.logs import Log

T = TypeVar("T")
SHARDS = Path("shards")


class OpenShards:
    """The catalogue's host. `published` is told of each view once all that it names is open.

    `replicas` and `others` are set before the first view is taken, if there can be other nodes.
    """

    def __init__(
        self,
        me: str,
        ports: ShardPorts,
        settings: Callable[[], Settings],
        published: Callable[[ClusterView], None],
        log: Log,
    ) -> None:
        self._me = NodeId(me)
        self._ports, self._settings, self._published, self._log = ports, settings, published, log
        self.replicas: Replicas | None = None
        self.others: MapCalls | None = None
        self.view = ClusterView(ClusterMap(cluster=""))
        """What fronts are told: never a map whose shards are not open yet."""
        self._open: dict[CollectionId, Open] = {}
        self._by_name: dict[str, Open] = {}
        self._closed: set[tuple[CollectionId, int]] = set()
        self._turn = asyncio.Lock()

    def find(self, name: str) -> Open:
        """Raises NotFound."""
        found = self._by_name.get(name)
        if found is None:
            raise NotFound.collection(name)
        return found

    def all(self) -> list[Shard]:
        return [shard for one in self._open.values() for shard in one.shards.values()]

    def of(self, collection: CollectionId) -> Mapping[int, Shard]:
        return self._open[collection].shards

    def get(self, collection: CollectionId, shard: int) -> Shard | None:
        there = self._open.get(collection)
        return there.shards.get(shard) if there is not None else None

    def settings_changed(self) -> None:
        for one in self._open.values():
            one.target = target_of(one.info, self._settings().limits())
            for shard in one.shards.values():
                shard.settings = self._shard_settings(one.info)

    async def close(self) -> None:
        if self.replicas is not None:
            await self.replicas.close()
        closing = [shard.close() for shard in self.all()]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                self._log.error("shard.close_failed", exc=outcome)

    # -- what the catalogue asks of its host

    async def make_logs(self, collection: Collection, histories: Mapping[int, int]) -> dict[int, int]:
        async with self._turn:
            for number in histories:
                await self._let_go_of_lost(collection.id, number)
            schema = shard_schema(collection)
            making = [
                Shard.make(
                    _folder(collection.id, number),
                    collection=collection.id,
                    shard=number,
                    schema=schema,
                    ports=self._ports,
                    history=history,
                )
                for number, history in histories.items()
            ]
            # Each waits for a dozen fsyncs, which a disk does together.
            return dict(zip(histories, await _all_of(making), strict=True))

    async def make_logs_at(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        if self.others is None:
            raise Unavailable(f"node {node} cannot be asked: this node's file names no secret_file")
        return await self.others.make_logs_at(node, collection, histories)

    async def make_logs_on(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        """On this node or another."""
        make = self.make_logs if node == self._me else partial(self.make_logs_at, node)
        return await make(collection, histories)

    async def tell_others(self, view: ClusterView, keys: Sequence[str]) -> None:
        if self.others is not None:
            await self.others.tell(view, keys)

    async def close_shard(self, collection: CollectionId, shard: int) -> None:
        if self.replicas is not None:
            await self.replicas.remove(collection, shard)
        await self._open[collection].shards[shard].close()
        self._closed.add((collection, shard))

    async def map_changed(self, old: ClusterView, new: ClusterView) -> None:
        await self.take(new)

    async def take(self, view: ClusterView, *, is_chosen: bool = True) -> None:
        """Close what the map no longer names, open what it does, then publish its epoch.

        `is_chosen`: by the voters, just now; replicas act on nothing less.
        """
        async with self._turn:
            await self._take(view)
            if self.replicas is not None and is_chosen:
                self.replicas.take(view)
            self.view = view
            self._published(view)

    async def _take(self, view: ClusterView) -> None:
        gone = [self._open.pop(id_) for id_ in list(self._open) if id_ not in view.map.collections]
        # First, so that writes hear that the collection is gone, not that its shards are closing.
        known = directory(view.map).items()
        self._by_name = {name: self._open[c.id] for name, c in known if c.id in self._open}
        for one in gone:
            # No checkpoint: nobody opens it again soon, and a full disk, to which this gives room, has none.
            closing = [self._close(one.info.id, number, shard) for number, shard in one.shards.items()]
            await _all_of(closing)
        opening = [
            self._take_collection(info, view.shards[id_].shards) for id_, info in view.map.collections.items()
        ]
        await _all_of(opening)
        self._by_name = {name: self._open[c.id] for name, c in directory(view.map).items()}

    async def _take_collection(self, info: Collection, shards: Sequence[cluster.Shard]) -> None:
        mine = {one.number: one for one in shards if self._me in one.replicas}
        there = self._open.get(info.id)
        if there is None:
            opened = await _all_of([self._open_shard(info, one) for one in mine.values()])
            limits = self._settings().limits()
            self._open[info.id] = Open(info, dict(zip(mine, opened, strict=True)), target_of(info, limits))
            return
        for number, one in mine.items():
            if number not in there.shards or (info.id, number) in self._closed:  # new, or replaced
                there.shards[number] = await self._open_shard(info, one)
                self._closed.discard((info.id, number))
        for number in there.shards.keys() - mine.keys():
            await self._close(info.id, number, there.shards.pop(number))
        if there.info != info:
            await self._change(there, info)

    async def _change(self, there: Open, info: Collection) -> None:
        # Columns of a new index are complete when this returns: then the index may be answered.
        schema = shard_schema(info)
        usable = [shard for shard in there.shards.values() if shard.damage is None]
        await _all_of([shard.set_schema(schema) for shard in usable])
        for shard in there.shards.values():
            # One that is not usable now must not hold up the changes of all others: it opens with it.
            shard.schema = schema
            shard.settings = self._shard_settings(info)
        there.info, there.target = info, target_of(info, self._settings().limits())

    # -- one shard

    async def _open_shard(self, info: Collection, configuration: cluster.Shard) -> Shard:
        shard = await Shard.open(
            _folder(info.id, configuration.number),
            collection=info.id,
            shard=configuration.number,
            schema=shard_schema(info),
            ports=self._ports,
            settings=self._shard_settings(info),
            membership=NO_GROUP if self.replicas is None else Membership(self._me, configuration),
        )
        if self.replicas is not None:
            self.replicas.add(shard)
        return shard

    async def _close(self, collection: CollectionId, number: int, shard: Shard) -> None:
        if self.replicas is not None:
            await self.replicas.remove(collection, number)
        await shard.close(checkpoint=False)

    def _shard_settings(self, info: Collection) -> ShardSettings:
        # indexing_threshold 0 is how clients of this API say that they load in bulk.
        bulk = info.params.optimizers_config.indexing_threshold == 0
        return ShardSettings(tail_rows_max=self._settings().tail_rows_max, bulk=bulk)

    # -- what replicas want

    async def dropped(self, collection: int, number: int) -> None:
        """The leader had this replica deleted: nothing of it stays."""
        async with self._turn:
            there = self._open.get(CollectionId(collection))
            shard = there.shards.pop(number, None) if there is not None else None
            if shard is not None:
                await shard.close(checkpoint=False)
            await asyncio.to_thread(shutil.rmtree, _folder(collection, number), ignore_errors=True)

    async def reopened(self, collection: int, number: int, change: Callable[[], None]) -> None:
        """Close the shard, run `change` in a thread, open what is there then."""
        async with self._turn:
            there = self._open.get(CollectionId(collection))
            if there is None or number not in there.shards:
                return
            await there.shards[number].close(checkpoint=False)
            try:
                await asyncio.to_thread(change)
            finally:
                configuration = self._configuration(there.info.id, number)
                there.shards[number] = await self._open_shard(there.info, configuration)

    async def _let_go_of_lost(self, collection: CollectionId, number: int) -> None:
        """A replica is to be made where one is: right only if that one is in no set any more."""
        folder = _folder(collection, number)
        if self.replicas is None:
            return
        shards = self.view.shards.get(collection)
        for one in shards.shards if shards is not None else ():
            if one.number == number and self._me in one.in_sync:
                raise Conflict(f"node {self._me} has a replica of shard {number} that is in sync")
        there = self._open.get(collection)
        shard = there.shards.pop(number, None) if there is not None else None
        if shard is not None:
            await self._close(collection, number, shard)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _configuration(self, collection: CollectionId, number: int) -> cluster.Shard:
        for one in self.view.shards[collection].shards:
            if one.number == number:
                return one
        raise NotFound(f"the map has no shard {number} of collection {collection}")


async def _all_of(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Each to its end, then the first error: what still opened files could meet its own repetition."""
    done: list[T] = []
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        done.append(outcome)
    return done


def _folder(collection: int, shard: int) -> Path:
    return SHARDS / f"{collection}-{shard}"
