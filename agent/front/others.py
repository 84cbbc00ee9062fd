"""Other nodes' fronts: asked about shards that this node does not hold, answered about those that it does.

Fronts listen for each other beside the store, one port above its own, so that replication and heartbeats
never wait behind searches.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import msgspec

from agent.acknowledged import AcknowledgedHere
from agent.front.asking import Asking, NotYet, Where
from agent.front.places import LOOK_S, OWN_WRITES_S, Held, Places, Terms
from agent.front.queries.deadline import Deadline
from agent.front.queries.source import LocalSource
from agent.front.remote_source import RemoteSource, answer
from agent.front.shard_state import ShardState
from agent.link import Answer, Client, Header
from agent.metrics import Metrics
from agent.page import Page
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from core.balancer import Balancer, Standing, Strategy
from core.cluster import ClusterMap, Node, NodeId
from core.config import ClusterConfig, NodeConfig
from core.config_values import host_port
from core.detector import Health
from core.settings import Settings
from net.logs import Log
from net.peer_link import Identity
from net.trust import trust_of

THREADS = 2
"""For other fronts' questions: like those of clients, they share the cores with the loop."""
ASKERS = 64
"""Threads that wait for other nodes' answers, of all reads together: those of one read are asked at once."""
WATCH_S = 0.25
PORT_ABOVE_STORE = 1

StateOf = Callable[[int, int], ShardState]
AppliedAt = Callable[[int, int], int]
LookAt = Callable[[int, int], AbstractContextManager[LocalSource]]
"""(collection id, shard number) → a context manager of this node's LocalSource. Raises NotFound."""


_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(ShardState).decode


class _Read(msgspec.Struct, frozen=True):
    collection: int
    shard: int
    kind: str
    at_least: int = 0
    at_any_rate: bool = False
    """Answer also if `at_least` has not been applied after a while: nobody knows more."""


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
        applied_at: AppliedAt,
        page: Page,
        link: Client,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._config, self._me, self._current = config, me, current
        self._look_at, self._state_of, self._applied = look_at, state_of, applied_at
        self._own = NodeId(me.id)
        self._cluster = ""
        self._addresses: dict[str, Address] = {}
        self._nodes: Mapping[NodeId, Node] = {}
        self._weights: Mapping[str, float] = {}
        ports = PeerPorts(
            me=lambda: Identity(me.id, "front", self._cluster),
            trust=trust_of(config),
            address_of=self._addresses.get,
            metrics=metrics,
            log=log,
        )
        self._peers = Peers(ports)
        answers = {"shard.read": self._answer, "shard.state": self._tell, "ping": self._pong}
        self._server = PeerServer(ports, {"front": answers})
        self._balancer = Balancer(NodeId(me.id), me.zone, random.Random(), strategy=Strategy.ADAPTIVE)
        self._asking = Asking(self._peers.caller, self._balancer, metrics, silent=self._peers.unheard)
        self.places = Places(NodeId(me.id), link, self._balancer, AcknowledgedHere(page))
        self._points: dict[tuple[int, int], int] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="others")
        self._askers = ThreadPoolExecutor(ASKERS, thread_name_prefix="ask")
        self._standings: dict[NodeId, Standing] = {}
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError if the port can't be had."""
        host, port = host_port(self._me.peer_address)
        await self._server.start((host, port + PORT_ABOVE_STORE), reuse_port=True)
        self._watching = asyncio.create_task(self._watch(), name="others.watch")

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._peers.close()
        await self._server.close()
        for threads in (self._threads, self._askers):
            threads.shutdown(wait=False, cancel_futures=True)

    def learn(self, cluster: ClusterMap) -> None:
        self._cluster, self._nodes = cluster.cluster, cluster.nodes
        for node in cluster.nodes.values():
            host, port = self._config.dialled(self._me.id, node.id, host_port(node.peer_address))
            self._addresses[node.id] = host, port + PORT_ABOVE_STORE
        self._peers.watch([n.id for n in cluster.nodes.values() if n.id != self._me.id])
        self._observe()

    def prefer(self, settings: Settings) -> None:
        """How reads are spread, from now on."""
        self._balancer.strategy = Strategy(settings.read_strategy)
        self._weights = settings.read_weights
        self._observe()

    def source(self, where: Where, deadline_s: float) -> RemoteSource:
        """A shard that these nodes hold in sync. To be used in a thread, never on the loop."""

        def ask(kind: str, body: bytes) -> bytes:
            asking = self._asking.ask("shard.read", where, kind, body, deadline_s)
            header, found = asyncio.run_coroutine_threadsafe(asking, self._loop).result()
            self._points[where.collection, where.shard] = header["points"]
            return found

        return RemoteSource(ask, self._askers.submit)

    async def state(self, where: Where, timeout_s: float) -> ShardState:
        """What the shard says of itself."""
        until_s = time.monotonic() + timeout_s
        _, told = await self._asking.ask("shard.state", where, "", b"", until_s)
        state = _decode_state(told)
        self._points[where.collection, where.shard] = state.points
        return state

    def points(self, collection: int, shard: int) -> int | None:
        """How many points a shard elsewhere had when it last answered; None if it never did."""
        return self._points.get((collection, shard))

    def find(
        self, held: Held, terms: Terms, *, here: frozenset[int], without: frozenset[int]
    ) -> Mapping[int, Where]:
        """Places.find, for threads."""
        finding = self.places.find(held, terms, here=here, without=without)
        return asyncio.run_coroutine_threadsafe(finding, self._loop).result()

    def served_here(self, took_s: float) -> None:
        """This node has served a read by itself."""
        self._balancer.served(self._own, took_s, time.monotonic())

    async def _watch(self) -> None:
        """Who falls silent, or fails again and again, is asked no more; runs until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._observe()

    def _observe(self) -> None:
        silent = set(self._peers.unheard())
        standings: dict[NodeId, Standing] = {}
        for node in self._nodes.values():
            is_dead = node.id in silent or self._asking.is_broken(node.id)
            health: Health = "dead" if is_dead else "healthy"
            standings[node.id] = Standing(
                node.zone, read_weight=self._weights.get(node.id, 1.0), health=health
            )
        if standings != self._standings:
            self._standings = standings
            self._balancer.observe(standings, time.monotonic())

    # -- asked by others

    async def _pong(self, header: Header, body: bytes, deadline: float) -> Answer:
        return {}, b""

    async def _tell(self, header: Header, body: bytes, deadline: float) -> Answer:
        read = msgspec.convert(header, _Read)
        await self._current()
        return {}, _encode(self._state_of(read.collection, read.shard))

    async def _answer(self, header: Header, body: bytes, deadline: float) -> Answer:
        read = msgspec.convert(header, _Read)
        await self._current()
        await self._wait_for(read, min(deadline, time.monotonic() + OWN_WRITES_S))
        until = Deadline(deadline, time.monotonic)

        def work() -> bytes:
            with self._look_at(read.collection, read.shard) as source:
                return answer(source, read.kind, body, until)

        found = await self._loop.run_in_executor(self._threads, work)
        return {"points": self._state_of(read.collection, read.shard).points}, found

    async def _wait_for(self, read: _Read, until_s: float) -> None:
        """Raises NotYet if this replica has not applied what the read must see."""
        while self._applied(read.collection, read.shard) < read.at_least:
            if time.monotonic() >= until_s:
                if read.at_any_rate:
                    return
                raise NotYet(f"shard {read.shard} is not at {read.at_least} yet on this node")
            await asyncio.sleep(LOOK_S)
