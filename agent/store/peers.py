"""Links of this store with the stores of other nodes: one kept connection to each, and one listener for all.

A connection is opened at once, pinged while it lasts and opened again when it is lost. `unheard` says whom
this store has not reached for two seconds: a cut between two followers shows nowhere else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from agent.link import Handler, Server
from agent.metrics import Metrics
from core.errors import Conflict, ShoalError, Unauthorized, Unavailable
from net.frames import Caller, Framing
from net.logs import Log
from net.peer_link import GREETING_S, Identity, Proved, Role, Trust, dial, greet

PING_S = 0.5
UNHEARD_S = 2.0
BACKOFF_S_MAX = 2.0
GREETINGS_MAX = 64
"""Connections that have not proved themselves yet; more are closed at once."""

Address = tuple[str, int]


@dataclass(eq=False, slots=True)
class _Peer:
    caller: Caller
    heard_s: float
    keeping: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class PeerPorts:
    """What links need of the store. `address_of` may change with the map; None: nobody knows the node."""

    me: Callable[[], Identity]
    trust: Trust
    address_of: Callable[[str], Address | None]
    metrics: Metrics
    log: Log
    source: str | None = None
    """The local address to connect from; tests cut links by it."""
    chance: random.Random = field(default_factory=random.Random)


class Peers:
    """This store's connections to others. `watch` names those that are kept open; `close` ends them all."""

    def __init__(self, ports: PeerPorts) -> None:
        self._ports = ports
        self._peers: dict[str, _Peer] = {}
        self._lost = ports.metrics.counter("shoal_peer_connections_lost_total")

    def caller(self, node: str) -> Caller:
        """The link to that node's store, made when it is first asked for."""
        peer = self._peers.get(node)
        if peer is None:
            caller = Caller(lambda: self._dial(node), f"node {node}")
            peer = self._peers[node] = _Peer(caller, time.monotonic())
        return peer.caller

    def watch(self, nodes: Collection[str]) -> None:
        """Keep a connection to each of these; let go of those to others."""
        for node in nodes:
            self.caller(node)
            peer = self._peers[node]
            if peer.keeping is None:
                peer.heard_s = time.monotonic()
                peer.keeping = asyncio.create_task(self._keep(node, peer), name=f"peer.{node}")
        for node, peer in self._peers.items():
            if node not in nodes and peer.keeping is not None:
                peer.keeping.cancel()
                peer.keeping = None

    def unheard(self) -> list[str]:
        """Watched nodes without an answer for two seconds."""
        now_s = time.monotonic()
        return sorted(
            node
            for node, peer in self._peers.items()
            if peer.keeping is not None and now_s - peer.heard_s > UNHEARD_S
        )

    async def close(self) -> None:
        keeping = [peer.keeping for peer in self._peers.values() if peer.keeping is not None]
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        for peer in self._peers.values():
            await peer.caller.close()
        self._peers.clear()

    async def _keep(self, node: str, peer: _Peer) -> None:
        pause_s = PING_S
        problem = ""
        while True:
            sent_s = time.monotonic()
            try:
                await peer.caller.call("ping", {}, timeout_s=UNHEARD_S)
            except ShoalError as error:
                if str(error) != problem:  # once, not twice a second
                    problem = str(error)
                    self._lost.add()
                    self._ports.log.warning("peer.unreachable", peer=node, text=problem)
                pause_s = min(BACKOFF_S_MAX, 2 * pause_s)
            else:
                peer.heard_s = max(peer.heard_s, sent_s)
                if problem:
                    self._ports.log.info("peer.reached_again", peer=node)
                problem, pause_s = "", PING_S
            # Not all at once: when a node returns, everybody would knock in the same instant.
            await asyncio.sleep(pause_s * self._ports.chance.uniform(0.75, 1.0))

    async def _dial(self, node: str) -> Framing:
        address = self._ports.address_of(node)
        if address is None:
            raise Unavailable(f"nobody knows an address of node {node}")
        me = self._ports.me()
        async with asyncio.timeout(GREETING_S):
            framing = await dial(address, me, self._ports.trust, source=self._ports.source)
        try:
            _check_reached(node, address, me, framing.peer)
        except ShoalError:
            framing.close()
            raise
        return framing


def _check_reached(node: str, address: Address, me: Identity, peer: Identity) -> None:
    if peer.node != node:
        raise Conflict(f"{address[0]}:{address[1]} is node {peer.node}, not {node}: see its peer_address")
    _check_cluster(me, peer)


def _check_cluster(me: Identity, peer: Identity) -> None:
    if me.cluster and peer.cluster and me.cluster != peer.cluster:
        raise Conflict(
            f"node {peer.node} belongs to cluster {peer.cluster}, node {me.node} to {me.cluster}: "
            "one of them has another cluster's data folder"
        )


class PeerServer:
    """Listens on `peer_address`. `handlers` by the role of who calls: what is not there is not served."""

    def __init__(self, ports: PeerPorts, handlers: Mapping[Role, Mapping[str, Handler]]) -> None:
        self._ports = ports
        self._handlers = handlers
        self._links = Server({}, ports.log, self._note_malformed)
        self._listener: asyncio.Server | None = None
        self._greeting: set[asyncio.Task[None]] = set()
        self._refused = ports.metrics.counter("shoal_peer_refusals_total")

    async def start(self, address: Address, *, reuse_port: bool = False) -> None:
        """Raises OSError if the address can't be bound. `reuse_port`: several processes share it."""
        self._listener = await asyncio.start_server(
            self._accept,
            *address,
            ssl=self._ports.trust.server_tls,
            reuse_address=True,
            reuse_port=reuse_port,
        )

    @property
    def address(self) -> Address:
        assert self._listener is not None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return host, port

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in list(self._greeting):
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)
        await self._links.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._greeting) >= GREETINGS_MAX:
            self._refuse(writer, f"{GREETINGS_MAX} connections have not proved themselves yet")
            return
        framing = await self._proved(reader, writer)
        if framing is not None:
            await self._links.serve(framing, self._handlers.get(framing.peer.role, {}))

    async def _proved(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Proved | None:
        task = asyncio.current_task()
        assert task is not None
        self._greeting.add(task)
        try:
            me = self._ports.me()
            return await greet(reader, writer, me, self._ports.trust, lambda peer: _check_cluster(me, peer))
        except Unauthorized as problem:
            self._refuse(writer, str(problem))
        except (ShoalError, OSError, EOFError) as problem:
            self._refuse(writer, f"{type(problem).__name__}: {problem}")
        except asyncio.CancelledError:  # by `close`; asyncio's stream server awaits nobody here
            writer.close()
        finally:
            self._greeting.discard(task)
        return None

    def _note_malformed(self, why: str) -> None:
        """From a peer that has proved itself: a bug, or somebody in between."""
        self._refused.add()
        self._ports.log.warning("peer.malformed", text=why)

    def _refuse(self, writer: asyncio.StreamWriter, why: str) -> None:
        self._refused.add()
        peer = writer.get_extra_info("peername")
        self._ports.log.warning("peer.refused", address=str(peer), text=why)
        writer.close()
