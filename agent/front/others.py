"""Other nodes' fronts: asked about shards that this node does not hold, answered about those that it does.

Fronts listen for each other beside the store, one port above its own, so that replication and heartbeats
never wait behind searches.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import msgspec

from agent.front.queries.deadline import Deadline
from agent.front.queries.source import LocalSource
from agent.front.remote_source import RemoteSource, answer
from agent.front.shard_state import ShardState
from agent.link import Answer, Header
from agent.metrics import Metrics
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from core.balancer import Balancer, Standing, Strategy
from core.cluster import ClusterMap, NodeId
from core.config import ClusterConfig, NodeConfig
from core.config_values import host_port
from core.errors import DeadlineExceeded, NotFound, Unavailable
from net.logs import Log
from net.peer_link import Identity
from net.trust import trust_of

THREADS = 2
"""For other fronts' questions: like those of clients, they share the cores with the loop."""
PORT_ABOVE_STORE = 1

StateOf = Callable[[int, int], ShardState]
LookAt = Callable[[int, int], AbstractContextManager[LocalSource]]
"""(collection id, shard number) → a context manager of this node's LocalSource. Raises NotFound."""


_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(ShardState).decode


class _Read(msgspec.Struct, frozen=True):
    collection: int
    shard: int
    kind: str


class Others:
    """This front's links. `learn` the map first; `source` gives a shard that lives elsewhere."""

    def __init__(
        self,
        config: ClusterConfig,
        me: NodeConfig,
        *,
        current: Callable[[], Awaitable[None]],
        look_at: LookAt,
        state_of: StateOf,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._config, self._me, self._current = config, me, current
        self._look_at, self._state_of = look_at, state_of
        self._cluster = ""
        self._addresses: dict[str, Address] = {}
        ports = PeerPorts(
            me=lambda: Identity(me.id, "front", self._cluster),
            trust=trust_of(config),
            address_of=self._addresses.get,
            metrics=metrics,
            log=log,
        )
        self._peers = Peers(ports)
        self._server = PeerServer(ports, {"front": {"shard.read": self._answer, "shard.state": self._tell}})
        self._balancer = Balancer(NodeId(me.id), me.zone, random.Random(), strategy=Strategy.ADAPTIVE)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="others")
        self._asked = metrics.histogram("shoal_remote_read_seconds")
        self._retried = metrics.counter("shoal_remote_read_retries_total")
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Raises OSError if the port can't be had."""
        host, port = host_port(self._me.peer_address)
        await self._server.start((host, port + PORT_ABOVE_STORE), reuse_port=True)

    async def close(self) -> None:
        await self._peers.close()
        await self._server.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def learn(self, cluster: ClusterMap) -> None:
        self._cluster = cluster.cluster
        for node in cluster.nodes.values():
            host, port = self._config.dialled(self._me.id, node.id, host_port(node.peer_address))
            self._addresses[node.id] = host, port + PORT_ABOVE_STORE
        standings = {n.id: Standing(zone=n.zone) for n in cluster.nodes.values()}
        self._balancer.observe(standings, time.monotonic())

    def source(self, collection: int, shard: int, nodes: Sequence[NodeId], deadline_s: float) -> RemoteSource:
        """A shard that these nodes hold in sync. To be used in a thread, never on the loop."""

        def ask(kind: str, body: bytes) -> bytes:
            read = _Read(collection, shard, kind)
            asking = self._ask("shard.read", read, body, nodes, deadline_s)
            return asyncio.run_coroutine_threadsafe(asking, self._loop).result()

        return RemoteSource(ask)

    async def state(
        self, collection: int, shard: int, nodes: Sequence[NodeId], timeout_s: float
    ) -> ShardState:
        """What the shard says of itself."""
        until_s = time.monotonic() + timeout_s
        told = await self._ask("shard.state", _Read(collection, shard, ""), b"", nodes, until_s)
        return _decode_state(told)

    async def _ask(
        self, call: str, read: _Read, body: bytes, nodes: Sequence[NodeId], deadline_s: float
    ) -> bytes:
        """One of the nodes answers; while there is time another is asked if one can't."""
        left = list(nodes)
        header = msgspec.to_builtins(read)
        while True:
            now_s = time.monotonic()
            node = self._balancer.pick(left, now_s)
            if now_s >= deadline_s:
                raise DeadlineExceeded(f"shard {read.shard} did not answer in time")
            self._balancer.began(node)
            ok = False
            try:
                caller = self._peers.caller(node)
                _, found = await caller.call(call, header, body, timeout_s=deadline_s - now_s)
                ok = True
                return found
            except (Unavailable, NotFound) as problem:
                left.remove(node)
                if not left:
                    raise Unavailable(f"shard {read.shard}: {problem}") from None
                self._retried.add()
            finally:
                took_s = time.monotonic() - now_s
                self._asked.observe(took_s)
                self._balancer.finished(node, took_s, time.monotonic(), ok=ok)

    # -- asked by others

    async def _tell(self, header: Header, body: bytes, deadline: float) -> Answer:
        read = msgspec.convert(header, _Read)
        await self._current()
        return {}, _encode(self._state_of(read.collection, read.shard))

    async def _answer(self, header: Header, body: bytes, deadline: float) -> Answer:
        read = msgspec.convert(header, _Read)
        await self._current()
        until = Deadline(deadline, time.monotonic)

        def work() -> bytes:
            with self._look_at(read.collection, read.shard) as source:
                return answer(source, read.kind, body, until)

        return {}, await self._loop.run_in_executor(self._threads, work)
