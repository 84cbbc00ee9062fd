"""The store: opens the cluster's map and the shards, serves fronts and builder, publishes, stops cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.acknowledged import Acknowledged
from agent.child import SOCKET, Spec, die_with_parent
from agent.link import Answer, Handler, Header, Server
from agent.metrics import Metrics
from agent.page import NodeFlag, Page, ShardPlaces
from agent.store.beginning import Begun, begin, begin_among
from agent.store.beginning_in_etcd import begin_in_etcd
from agent.store.builds import Builds
from agent.store.catalogue import Catalogue
from agent.store.changes import Changes
from agent.store.deleted import Bounds
from agent.store.forwarding import Forwarding, Host
from agent.store.guards import Guards, room_of
from agent.store.map_calls import MapCalls
from agent.store.network import Network
from agent.store.node_identity import lock_folder
from agent.store.open_shards import OpenShards
from agent.store.parsers import Parsers
from agent.store.replica_adding import Host as AddingHost
from agent.store.replica_adding import ReplicaAdding
from agent.store.replica_reading import ReplicaReading
from agent.store.replicas import Replicas
from agent.store.searched import Searched
from agent.store.settings import SettingsStore
from agent.store.settings_calls import SettingsCalls
from agent.store.shard import ShardPorts
from agent.store.snapshot_calls import SnapshotCalls
from agent.store.snapshots import Snapshots
from agent.store.state_calls import StateCalls
from agent.store.writes import Writes
from core.api.checks import Limits
from core.build_plan import BuildRules
from core.cluster import ClusterView, CollectionId, shards_key, to_json
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


@dataclass(frozen=True, slots=True)
class _Others:
    """What a store has that can have other nodes beside it."""

    network: Network
    calls: MapCalls
    replicas: Replicas


class Store:
    """One node's writer. `run` serves until SIGTERM."""

    def __init__(self, spec: Spec, page: Page, log: Log) -> None:
        self._spec, self._page, self._log = spec, page, log
        self._metrics = Metrics(page.metrics(spec.place))
        self._places = ShardPlaces(page)
        self._acknowledged = Acknowledged(page)
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
        self._shards = OpenShards(spec.node.id, self._ports, lambda: self._settings.current, self._show, log)
        self._parsers = Parsers(log)
        self._flags = NodeFlag(0)
        self._room_is_low = asyncio.Event()

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
            catalogue = await Catalogue.open(Path("."), begun, self._shards, now_us=now_us, log=self._log)
            self._settings = await SettingsStore.open(begun.state, now_us=now_us)
            others = self._know_others(catalogue)
            await self._shards.take(catalogue.view, is_chosen=not catalogue.is_stale)
            snapshots = self._make_snapshots(catalogue)
            snapshot_calls = SnapshotCalls(snapshots, self._log)
            builds = Builds(self._shards.all, self._log, self._metrics, self._rules)
            forwarding = self._forwarding(catalogue)
            handlers = self._handlers(catalogue, forwarding, snapshot_calls, builds, others)
            server = Server({**handlers, **self._adding(begun, catalogue).handlers()}, self._log)
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
            if others is not None:
                self._serve_nodes(others, begun, catalogue, forwarding)
                voting = self._spec.node.id in begun.identity.voters
                follow = others.calls.follow(catalogue, begun.acceptor if voting else None, self)
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
            await self._shards.close()
            await self._parsers.close()
            await begun.close()
            ticking.cancel()
        os.close(lock)

    def _handlers(
        self,
        catalogue: Catalogue,
        forwarding: Forwarding,
        snapshots: SnapshotCalls,
        builds: Builds,
        others: _Others | None,
    ) -> Mapping[str, Handler]:
        return {
            "view.get": self._view,
            **Writes(self._shards.find, forwarding, self._guards, self._metrics, self._parsers).handlers(),
            **Changes(catalogue, self._guards, self._limits).handlers(),
            **snapshots.handlers(),
            **builds.handlers(),
            **SettingsCalls(self._settings, self._settings_changed).handlers(),
            **self._reading(catalogue, others),
        }

    def _adding(self, begun: Begun, catalogue: Catalogue) -> ReplicaAdding:
        async def changed(key: str) -> None:
            await catalogue.take_up([key])
            await self._shards.tell_others(catalogue.view, [key])

        host = AddingHost(begun.state, lambda: catalogue.view, self._shards.make_logs_on, changed)
        return ReplicaAdding(host)

    @staticmethod
    def _reading(catalogue: Catalogue, others: _Others | None) -> Mapping[str, Handler]:
        """Where fronts may make reads that must see all that was acknowledged. Alone: everywhere."""
        if others is None:
            return {}

        async def take_up(collection: CollectionId) -> None:
            await catalogue.take_up([shards_key(collection)])

        links = others.network.peers
        return ReplicaReading(others.replicas, links, lambda: catalogue.view, take_up).handlers()

    def _make_snapshots(self, catalogue: Catalogue) -> Snapshots:
        return Snapshots(
            Path("."),
            catalogue,
            self._shards.of,
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
        begin_there = begin_among if config.state == "voters" else begin_in_etcd
        return await begin_there(Path("."), config, node, self._network, now_us=now_us, log=self._log)

    def _forwarding(self, catalogue: Catalogue) -> Forwarding:
        host = Host(view=lambda: catalogue.view, local=self._shards.get, take_up=catalogue.take_up)
        return Forwarding(host, self._network, self._metrics, self._acknowledged)

    def _know_others(self, catalogue: Catalogue) -> _Others | None:
        """Before the first shard is opened: replicas are born knowing the node that they are on."""
        network, shards = self._network, self._shards
        if network is None:
            return None
        calls = MapCalls(network, shards.make_logs, auto_join=self._spec.config.auto_join, log=self._log)
        replicas = Replicas(
            network.me,
            network.peers,
            self._metrics,
            self._log,
            now_us=now_us,
            schema_wanted=calls.wanted,
            dropped=shards.dropped,
            reopened=shards.reopened,
            check_room=self._guards.admit_copy,
        )
        shards.others, shards.replicas = calls, replicas
        return _Others(network, calls, replicas)

    def _serve_nodes(
        self, others: _Others, begun: Begun, catalogue: Catalogue, forwarding: Forwarding
    ) -> None:
        network, replicas = others.network, others.replicas
        calls = others.calls.handlers(catalogue)
        network.handlers["store"].update({**calls, **forwarding.handlers(), **replicas.handlers("store")})
        for_consoles = {kind: calls[kind] for kind in ("map.changed", "shards.make")}
        network.handlers["console"].update(
            {**StateCalls(begun.state).handlers(), **for_consoles, **replicas.handlers("console")}
        )
        network.epoch = lambda: catalogue.map.epoch
        network.report, network.heard_leader = replicas.report, replicas.heard_leader
        replicas.start()

    # -- settings

    async def _settings_changed(self) -> None:
        """Take changed settings up, here and, by the page, at the fronts."""
        self._shards.settings_changed()
        self._page.write_node(self._page.node()._replace(settings=self._settings.version))

    def is_behind(self, key_version: int) -> bool:
        """Whether the settings have been seen at a later version."""
        return self._settings.is_behind(key_version)

    async def take_up(self) -> None:
        """Settings that another node has changed."""
        if await self._settings.take_up():
            await self._settings_changed()

    def _limits(self) -> Limits:
        return self._settings.current.limits()

    def _rules(self) -> BuildRules:
        return BuildRules(start_rows=self._settings.current.build_start_rows)

    async def _view(self, header: Header, body: bytes, deadline: float) -> Answer:
        return {}, to_json(self._shards.view)

    def _show(self, view: ClusterView) -> None:
        """All that the view names is open: fronts may fetch it."""
        self._page.write_node(self._page.node()._replace(epoch=view.epoch))
        if self._network is not None:
            self._network.learn(view.map)

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
        found = [shard.statistics() for shard in self._shards.all() if shard.damage is None]
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
