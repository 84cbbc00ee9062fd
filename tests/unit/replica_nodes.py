"""Stores of several nodes in one process: real shards, real sockets, and a leader in a few lines."""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.metrics import Metrics
from agent.page import Page, ShardPlaces, ShardRecord
from agent.store.deleted import put_in_place, shard_folder
from agent.store.files import Files
from agent.store.membership import Membership
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from agent.store.replicas import Replicas
from agent.store.shard import Shard, ShardPorts, ShardSettings
from core.cluster import ClusterMap, ClusterView, CollectionId, NodeId, Shards
from core.cluster import Shard as Configuration
from core.errors import ShoalError
from core.peer_wire import SHARD
from core.replication.messages import Command
from core.replication.reconfigure import Change, Failed, Finished, Plan, Reconfiguration, Tell
from core.wire import Op, Outcome
from net.logs import log_to
from net.peer_link import Identity, Trust
from tests.storing.contents import SCHEMA, Points, read_points

COLLECTION, NUMBER = CollectionId(7), 0
SECRET = b"a secret of thirty-two characters"


class Node:
    """One store with its replica of the one shard."""

    def __init__(self, name: str, folder: Path, cluster: ReplicaCluster, files: Files) -> None:
        self.name, self.data = name, folder
        self.folder = shard_folder(folder, COLLECTION, NUMBER)
        self.folder.parent.mkdir(parents=True)
        self.cluster = cluster
        self.logged = io.StringIO()
        self.log = log_to(self.logged)
        self.page = Page.make()
        self.executor = ThreadPoolExecutor(4)
        self.files = files
        self.metrics = Metrics(memoryview(bytearray(1 << 16)))
        self.ports = ShardPorts(self.page, ShardPlaces(self.page), self.executor, self.log, self.files)
        self.incarnation = 0
        self.schemas_wanted: list[int] = []
        self.installs = 0
        self.shard: Shard | None = None
        self.peers: Peers | None = None

    async def make(self, history: int) -> None:
        self.incarnation = await Shard.make(
            self.folder, collection=COLLECTION, shard=NUMBER, schema=SCHEMA, ports=self.ports, history=history
        )

    async def start(self) -> None:
        ports = PeerPorts(
            me=lambda: Identity(self.name, "store", "one"),
            trust=Trust((SECRET,)),
            address_of=self.cluster.address_of,
            metrics=self.metrics,
            log=self.log,
        )
        self.peers = Peers(ports)
        self.replicas = Replicas(
            self.name,
            self.peers,
            self.metrics,
            self.log,
            now_us=self.ports.now_us,
            schema_wanted=lambda _, version: self.schemas_wanted.append(version),
            dropped=self._dropped,
            reopened=self._reopened,
        )
        put_in_place(self.data, COLLECTION, NUMBER, self.incarnation, now_us=1)  # what the catalogue does
        await self._open()
        self.server = PeerServer(ports, {"store": {"ping": _pong, **self.replicas.handlers("store")}})
        address = self.cluster.addresses.get(self.name, ("127.0.0.1", 0))
        await self.server.start(address)
        self.cluster.addresses[self.name] = self.server.address
        self.replicas.start()
        self.peers.watch([name for name in self.cluster.nodes if name != self.name])
        self.learn()

    async def _open(self) -> None:
        self.shard = await Shard.open(
            self.folder,
            collection=COLLECTION,
            shard=NUMBER,
            schema=SCHEMA,
            ports=self.ports,
            settings=self.cluster.settings,
            membership=Membership(self.name, self.cluster.configuration),
        )
        assert self.shard.damage is None
        self.replicas.add(self.shard)

    async def _reopened(self, collection: int, shard: int, change: Callable[[], None]) -> None:
        await self.open_shard.close(checkpoint=False)
        try:
            await asyncio.to_thread(change)
        finally:
            await self._open()
        self.installs += 1

    def learn(self) -> None:
        shards = Shards(collection=COLLECTION, shards=(self.cluster.configuration,))
        self.replicas.take(ClusterView(ClusterMap(cluster="one"), {COLLECTION: shards}))

    async def stop(self, *, checkpoint: bool = False) -> None:
        """Without a checkpoint: as after a crash, all is in the log alone."""
        if self.peers is None:
            return
        await self.peers.close()
        await self.server.close()
        await self.replicas.close()
        if self.shard is not None:
            await self.shard.close(checkpoint=checkpoint)
        self.peers = self.shard = None

    async def _dropped(self, collection: int, shard: int) -> None:
        assert self.shard is not None
        await self.shard.close(checkpoint=False)
        self.shard = None

    @property
    def open_shard(self) -> Shard:
        assert self.shard is not None
        return self.shard

    @property
    def applied(self) -> int:
        return self.open_shard.applied_seq

    @property
    def record(self) -> ShardRecord:
        return self.open_shard.record

    def points(self) -> Points:
        return read_points(self.folder, self.record)

    def close(self) -> None:
        self.executor.shutdown()


async def _pong(header: Any, body: bytes, deadline: float) -> tuple[dict[str, Any], bytes]:
    return {}, b""


class ReplicaCluster:
    """Three nodes by default; `configuration` is what the map says of the shard."""

    def __init__(
        self, folder: Path, names: Sequence[str], disks: Mapping[str, Files], **settings: Any
    ) -> None:
        self.addresses: dict[str, Address] = {}
        self.settings = ShardSettings(**{"purge_after_s": 0.0, "checkpoint_every_s": 3600.0, **settings})
        self.nodes: dict[str, Node] = {}
        for name in names:
            self.nodes[name] = Node(name, folder / name, self, disks.get(name) or Files())
        self.leader_term = 1
        self._away: set[str] = set()
        log = log_to(io.StringIO())
        self._peers = Peers(
            PeerPorts(
                me=lambda: Identity("leader", "store", "one"),
                trust=Trust((SECRET,)),
                address_of=self.addresses.get,
                metrics=Metrics(memoryview(bytearray(1 << 16))),
                log=log,
            )
        )

    def address_of(self, name: str) -> Address | None:
        return self.addresses.get(name)

    async def begin(self, in_sync: Sequence[str], learners: Sequence[str] = ()) -> None:
        history = secrets.randbits(63)
        for name in (*in_sync, *learners):
            await self.nodes[name].make(history)
        self.configuration = Configuration(
            number=NUMBER,
            first_hash=0,
            last_hash=(1 << 64) - 1,
            primary=NodeId(in_sync[0]),
            in_sync=tuple(map(NodeId, in_sync)),
            learners=tuple(map(NodeId, learners)),
            replicas={NodeId(name): self.nodes[name].incarnation for name in (*in_sync, *learners)},
            history=history,
        )
        for name in (*in_sync, *learners):
            await self.nodes[name].start()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def primary(self) -> Node:
        return self.nodes[self.configuration.primary]

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.shard is not None]

    def change(self, **fields: Any) -> None:
        """The map changes, and all who run learn it."""
        self.configuration = replace(self.configuration, **fields)
        for node in self.running:
            node.learn()

    async def call(
        self, name: str, kind: str, header: dict[str, Any], body: bytes = b"", timeout_s: float = 5
    ) -> tuple[dict[str, Any], bytes]:
        return await self._peers.caller(name).call(kind, header, body, timeout_s=timeout_s)

    async def command(self, message: Command, timeout_s: float = 5) -> Any:
        kind, data = SHARD.encode(message)
        header = {"collection": COLLECTION, "shard": NUMBER, "kind": kind}
        answer, body = await self.call(message.to.node, "shard.command", header, data, timeout_s)
        return SHARD.decode(answer["kind"], body)

    async def reconfigure(self, primary: str, in_sync: Sequence[str]) -> str | None:
        """As a leader does it. Why it failed, or None."""
        plan = Plan(NodeId(primary), tuple(map(NodeId, in_sync)))
        work = Reconfiguration(self.configuration, plan, self.leader_term)
        loop = asyncio.get_running_loop()
        effects = list(work.begin(loop.time()))
        told: set[asyncio.Task[None]] = set()
        answers: asyncio.Queue[Any] = asyncio.Queue()
        try:
            while True:
                for effect in effects:
                    match effect:
                        case Change(new=new):
                            self.configuration = new
                            answers.put_nowait(new)
                        case Tell(message=message):
                            told.add(asyncio.create_task(self._tell(message, answers)))
                        case Finished():
                            await asyncio.gather(*[t for t in told if not t.done()], return_exceptions=True)
                            for e in effects:
                                if isinstance(e, Tell):
                                    await self.command(e.message)
                            for node in self.running:
                                node.learn()
                            return None
                        case Failed(reason=reason):
                            return reason
                effects = []
                try:
                    async with asyncio.timeout(0.05):
                        answer = await answers.get()
                except TimeoutError:
                    effects = list(work.tick(loop.time()))
                    continue
                if isinstance(answer, Configuration):
                    effects = list(work.on_changed(loop.time()))
                elif isinstance(answer, str):
                    effects = list(work.on_unreachable(NodeId(answer), loop.time()))
                else:
                    effects = list(work.on_answer(answer, loop.time()))
        finally:
            for task in told:
                task.cancel()
            await asyncio.gather(*told, return_exceptions=True)

    async def _tell(self, message: Command, answers: asyncio.Queue[Any]) -> None:
        try:
            answers.put_nowait(await self.command(message))
        except ShoalError:
            answers.put_nowait(message.to.node)

    async def close(self) -> None:
        await self._peers.close()
        for node in self.nodes.values():
            await node.stop()
            node.close()


@asynccontextmanager
async def replica_cluster(
    folder: Path,
    names: Sequence[str] = ("n1", "n2", "n3"),
    *,
    disks: Mapping[str, Files] | None = None,
    **settings: Any,
) -> AsyncIterator[ReplicaCluster]:
    cluster = ReplicaCluster(folder, names, disks or {}, **settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        yield cluster


async def write(node: Node, op: Op, *, within_s: float = 10, **options: Any) -> Outcome:
    deadline_s = asyncio.get_running_loop().time() + within_s
    return await node.open_shard.write(op, deadline_s=deadline_s, **options)


async def until(condition: Callable[[], bool], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
