"""The store: opens the cluster's map and the shards, serves fronts and builder, publishes, stops cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from agent.child import SOCKET, Spec, die_with_parent
from agent.link import Answer, Handler, Header, Server
from agent.metrics import Metrics
from agent.page import NodeFlag, Page, ShardPlaces
from agent.store.beginning import Begun, begin, begin_among
from agent.store.builds import Builds
from agent.store.catalogue import Catalogue
from agent.store.changes import Changes
from agent.store.deleted import Bounds
from agent.store.forwarding import Forwarding, Host
from agent.store.guards import Guards, room_of
from agent.store.map_calls import MapCalls
from agent.store.network import Network
from agent.store.node_identity import lock_folder
from agent.store.parsers import Parsers
from agent.store.schemas import shard_schema
from agent.store.searched import Searched
from agent.store.settings import SettingsStore
from agent.store.settings_calls import SettingsCalls
from agent.store.shard import Shard, ShardPorts, ShardSettings
from agent.store.snapshot_calls import SnapshotCalls
from agent.store.snapshots import Snapshots
from agent.store.state_calls import StateCalls
from agent.store.writes import Open, Writes, target_of
from core.api.checks import Limits
from core.build_plan import BuildRules
from core.cluster import ClusterMap, ClusterView, Collection, CollectionId, NodeId, directory, to_json
from core.errors import NotFound, Unavailable
from net.logs import Log
from net.trust import is_networked

TICK_S = 0.1
GUARD_S = 0.5
SWEEP_S = 600.0
PARSERS_S = 5.0
T = TypeVar("T")
THREADS = 16
SHARDS = Path("shards")


def now_us() -> int:
    """Wall time: for labels only, nothing is decided by it."""
    return time.time_ns() // 1000


class Store:
    """One node's writer. `run` serves until SIGTERM."""

    def __init__(self, spec: Spec, page: Page, log: Log) -> None:
        self._spec, self._page, self._log = spec, page, log
        self._metrics = Metrics(page.metrics(spec.place))
        self._places = ShardPlaces(page)
        self._open: dict[CollectionId, Open] = {}
        self._by_name: dict[str, Open] = {}
        agent = spec.config.agent
        self._guards = Guards(
            agent.disk_low_water.of,
            agent.memory_low_water.of(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
            lambda: room_of("."),
        )
        self._ports = ShardPorts(
            page,
            self._places,
            ThreadPoolExecutor(THREADS, thread_name_prefix="shard"),
            log,
            on_sync=self._metrics.histogram("shoal_log_fsync_seconds").observe,
            searched=Searched(page),
        )
        config = spec.config
        self._network = Network(config, spec.node, self._metrics, log) if is_networked(config) else None
        self._others: MapCalls | None = None
        if self._network is not None:
            self._others = MapCalls(self._network, self.make_logs, auto_join=config.auto_join, log=log)
        self._closed: set[tuple[CollectionId, int]] = set()
        self._parsers = Parsers(log)
        self._flags = NodeFlag(0)
        self._room_is_low = asyncio.Event()
        self._published = ClusterView(ClusterMap(cluster=""))
        """What fronts are told: never a map whose shards are not open yet."""

    async def run(self) -> None:
        """Raises ShoalError if this node cannot start."""
        loop = asyncio.get_running_loop()
        die_with_parent(self._spec, loop)
        lock = lock_folder(Path("."))
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(self._tick(), name="tick")
            begun = await self._begin()
            for healed in begun.healed:
                self._log.warning("store.healed", text=healed)
            catalogue = await Catalogue.open(Path("."), begun, self, now_us=now_us, log=self._log)
            self._settings = await SettingsStore.open(begun.state, now_us=now_us)
            await self._take(catalogue.view)
            snapshots = self._make_snapshots(catalogue)
            snapshot_calls = SnapshotCalls(snapshots, self._log)
            builds = Builds(self._shards, self._log, self._metrics, self._rules)
            server = Server(self._handlers(catalogue, snapshot_calls, builds), self._log)
            with suppress(FileNotFoundError):
                os.unlink(SOCKET)  # of a store that was killed; the folder's lock is ours
            await server.start(SOCKET)
            await self._settings_changed()
            self._publish(NodeFlag.READY)
            watching = [
                tasks.create_task(self._guard(), name="guard"),
                tasks.create_task(builds.keep_house(), name="builds"),
                tasks.create_task(self._want_builder(builds), name="builder"),
                tasks.create_task(self._sweep(catalogue), name="sweep"),
                tasks.create_task(self._keep_parsers(), name="parsers"),
            ]
            if self._network is not None and self._others is not None:
                self._serve_nodes(self._network, self._others, begun, catalogue)
                voting = self._spec.node.id in begun.identity.voters
                follow = self._others.follow(catalogue, begun.acceptor if voting else None)
                watching.append(tasks.create_task(follow, name="map"))
            await stop.wait()
            self._publish(self._flags | NodeFlag.STOPPING)
            for task in watching:
                task.cancel()
            await server.close()
            if self._network is not None:
                await self._network.close()
            await snapshot_calls.close()
            await snapshots.close()
            await catalogue.close()
            await self._close_all()
            await self._parsers.close()
            await begun.acceptor.close()
            ticking.cancel()
        os.close(lock)

    def _handlers(
        self, catalogue: Catalogue, snapshots: SnapshotCalls, builds: Builds
    ) -> Mapping[str, Handler]:
        return {
            "view.get": self._view,
            **Writes(
                self._find, self._forwarding(catalogue), self._guards, self._metrics, self._parsers
            ).handlers(),
            **Changes(catalogue, self._guards, self._limits).handlers(),
            **snapshots.handlers(),
            **builds.handlers(),
            **SettingsCalls(self._settings, self._settings_changed).handlers(),
        }

    def _make_snapshots(self, catalogue: Catalogue) -> Snapshots:
        return Snapshots(
            Path("."),
            catalogue,
            lambda id_: list(self._open[id_].shards.values()),
            now_us=now_us,
            check_room=self._guards.admit_copy,
            limits=self._limits,
        )

    # -- other nodes

    async def _begin(self) -> Begun:
        """Belongs to a cluster when it returns. With other nodes it waits for them, as long as it takes."""
        if self._network is None:
            return await begin(Path("."), self._spec.node, now_us=now_us())
        await self._network.start()
        config, node = self._spec.config, self._spec.node
        return await begin_among(Path("."), config, node, self._network, now_us=now_us, log=self._log)

    def _forwarding(self, catalogue: Catalogue) -> Forwarding:
        host = Host(view=lambda: catalogue.view, local=self._replica, take_up=catalogue.take_up)
        return Forwarding(host, self._network, self._metrics)

    def _replica(self, collection: CollectionId, shard: int) -> Shard | None:
        there = self._open.get(collection)
        return there.shards.get(shard) if there is not None else None

    def _serve_nodes(self, network: Network, others: MapCalls, begun: Begun, catalogue: Catalogue) -> None:
        calls = others.handlers(catalogue)
        network.handlers["store"].update({**calls, **self._forwarding(catalogue).handlers()})
        network.handlers["console"].update(StateCalls(begun.state).handlers())
        network.handlers["console"].update({kind: calls[kind] for kind in ("map.changed", "shards.make")})
        network.epoch = lambda: catalogue.map.epoch

    async def make_logs_at(
        self, node: NodeId, collection: Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        if self._others is None:
            raise Unavailable(f"node {node} cannot be asked: this node's file names no secret_file")
        return await self._others.make_logs_at(node, collection, histories)

    async def tell_others(self, view: ClusterView, keys: Sequence[str]) -> None:
        if self._others is not None:
            await self._others.tell(view, keys)

    # -- settings

    async def _settings_changed(self) -> None:
        """Take changed settings up, here and, by the page, at the fronts."""
        for one in self._open.values():
            one.target = target_of(one.info, self._limits())
            for shard in one.shards.values():
                shard.settings = self._shard_settings(one.info)
        self._page.write_node(self._page.node()._replace(settings=self._settings.version))

    def _limits(self) -> Limits:
        return self._settings.current.limits()

    def _rules(self) -> BuildRules:
        return BuildRules(start_rows=self._settings.current.build_start_rows)

    def _shard_settings(self, info: Collection) -> ShardSettings:
        # indexing_threshold 0 is how clients of this API say that they load in bulk.
        bulk = info.params.optimizers_config.indexing_threshold == 0
        return ShardSettings(tail_rows_max=self._settings.current.tail_rows_max, bulk=bulk)

    def _shards(self) -> list[Shard]:
        return [shard for one in self._open.values() for shard in one.shards.values()]

    async def _view(self, header: Header, body: bytes, deadline: float) -> Answer:
        return {}, to_json(self._published)

    def _find(self, name: str) -> Open:
        found = self._by_name.get(name)
        if found is None:
            raise NotFound.collection(name)
        return found

    # -- what the catalogue asks of its host

    async def make_logs(self, collection: Collection, histories: Mapping[int, int]) -> dict[int, int]:
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

    async def close_shard(self, collection: CollectionId, shard: int) -> None:
        await self._open[collection].shards[shard].close()
        self._closed.add((collection, shard))

    async def map_changed(self, old: ClusterView, new: ClusterView) -> None:
        await self._take(new)

    async def _take(self, view: ClusterView) -> None:
        """Close what the map no longer names, open what it does, then publish its epoch."""
        gone = [self._open.pop(id_) for id_ in list(self._open) if id_ not in view.map.collections]
        # First, so that writes hear that the collection is gone, not that its shards are closing.
        known = directory(view.map).items()
        self._by_name = {name: self._open[c.id] for name, c in known if c.id in self._open}
        # No checkpoint: nobody opens it again soon, and a full disk, to which this gives room, has none.
        await _all_of([shard.close(checkpoint=False) for one in gone for shard in one.shards.values()])
        opening = [
            self._take_collection(info, self._mine(view, id_)) for id_, info in view.map.collections.items()
        ]
        await _all_of(opening)
        self._by_name = {name: self._open[c.id] for name, c in directory(view.map).items()}
        self._published = view
        self._page.write_node(self._page.node()._replace(epoch=view.epoch))
        if self._network is not None:
            self._network.learn(view.map)

    def _mine(self, view: ClusterView, collection: CollectionId) -> list[int]:
        """Numbers of the shards that this node has a replica of."""
        return [s.number for s in view.shards[collection].shards if self._spec.node.id in s.replicas]

    async def _take_collection(self, info: Collection, numbers: Sequence[int]) -> None:
        there = self._open.get(info.id)
        if there is None:
            shards = await _all_of([self._open_shard(info, number) for number in numbers])
            opened = dict(zip(numbers, shards, strict=True))
            self._open[info.id] = Open(info, opened, target_of(info, self._limits()))
            return
        for number in numbers:
            if number not in there.shards or (info.id, number) in self._closed:  # new, or replaced
                there.shards[number] = await self._open_shard(info, number)
                self._closed.discard((info.id, number))
        for number in there.shards.keys() - set(numbers):
            await there.shards.pop(number).close(checkpoint=False)
        if there.info != info:
            # Columns of a new index are complete when this returns: then the index may be answered.
            schema = shard_schema(info)
            usable = [shard for shard in there.shards.values() if shard.damage is None]
            await _all_of([shard.set_schema(schema) for shard in usable])
            for shard in there.shards.values():
                # One that is not usable now must not hold up the changes of all others: it opens with it.
                shard.schema = schema
            there.info, there.target = info, target_of(info, self._limits())
            for shard in there.shards.values():
                shard.settings = self._shard_settings(info)

    async def _open_shard(self, info: Collection, number: int) -> Shard:
        return await Shard.open(
            _folder(info.id, number),
            collection=info.id,
            shard=number,
            schema=shard_schema(info),
            ports=self._ports,
            settings=self._shard_settings(info),
        )

    async def _close_all(self) -> None:
        closing = [shard.close() for shard in self._shards()]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                self._log.error("shard.close_failed", exc=outcome)

    # -- what runs beside

    async def _tick(self) -> None:
        while True:
            self._page.tick(self._spec.place)
            await asyncio.sleep(TICK_S)

    async def _guard(self) -> None:
        """Twice a second: room on disk, memory; the page tells the fronts."""
        while True:
            try:
                self._guards.look()
            except OSError as problem:  # out of descriptors, say: what was seen last holds on
                self._log.error("store.guard_failed", text=str(problem))
            if self._guards.disk_low:
                self._room_is_low.set()
            self._gauge()
            flags = self._flags & ~(NodeFlag.DISK_LOW | NodeFlag.MEMORY_LOW)
            if self._guards.disk_low:
                flags |= NodeFlag.DISK_LOW
            if self._guards.memory_low:
                flags |= NodeFlag.MEMORY_LOW
            if flags != self._flags:
                self._log.warning(
                    "store.room_changed",
                    disk_low=self._guards.disk_low,
                    memory_low=self._guards.memory_low,
                    disk_free_bytes=self._guards.room.disk_free,
                )
                self._publish(flags)
            await asyncio.sleep(GUARD_S)

    def _gauge(self) -> None:
        """Sums over all shards; what differs by shard is in the page, for whoever scrapes."""
        self._ports.searched()  # looked at now and then, it can tell a search of now from one of long ago
        found = [shard.statistics() for shard in self._shards() if shard.damage is None]
        for name, value in (
            ("shoal_log_queue_entries", sum(s.queue_entries for s in found)),
            ("shoal_log_queue_bytes", sum(s.queue_bytes for s in found)),
            ("shoal_write_delay_seconds", max((s.delay_s for s in found), default=0.0)),
            ("shoal_dead_rows", sum(s.dead_rows for s in found)),
            ("shoal_log_entries_total", sum(s.entries for s in found)),
            ("shoal_log_groups_total", sum(s.groups for s in found)),
            ("shoal_checkpoints_total", sum(s.checkpoints for s in found)),
            ("shoal_shard_work_died_total", sum(s.deaths for s in found)),
        ):
            sample = self._metrics.counter if name.endswith("_total") else self._metrics.gauge
            sample(name).set(value)

    async def _want_builder(self, builds: Builds) -> None:
        """Tell `main` whether the builder is needed; it ends by itself when it is not."""
        while True:
            wanted = NodeFlag.BUILD_WANTED if builds.wanted else NodeFlag(0)
            if wanted != self._flags & NodeFlag.BUILD_WANTED:
                self._publish(self._flags & ~NodeFlag.BUILD_WANTED | wanted)
            await asyncio.sleep(GUARD_S)

    async def _keep_parsers(self) -> None:
        """Start them, and those that were lost again."""
        while True:
            await self._parsers.start()
            await asyncio.sleep(PARSERS_S)

    async def _sweep(self, catalogue: Catalogue) -> None:
        while True:
            try:
                for name in await catalogue.sweep_deleted(self._kept(), is_low=lambda: self._guards.disk_low):
                    self._log.info("store.deleted_collection_removed", folder=name)
            except OSError as problem:
                self._log.error("store.sweep_failed", text=str(problem))
            self._room_is_low.clear()
            with suppress(TimeoutError):  # of a full disk what is deleted goes at once, else now and then
                async with asyncio.timeout(SWEEP_S):
                    await self._room_is_low.wait()

    def _kept(self) -> Bounds:
        settings = self._settings.current
        return Bounds(settings.deleted_keep_s, settings.deleted_bytes_max, settings.deleted_collections_max)

    def _publish(self, flags: NodeFlag) -> None:
        self._flags = flags
        self._page.write_node(self._page.node()._replace(flags=int(flags)))


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
