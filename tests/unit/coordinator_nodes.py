"""Nodes for a coordinator's tests: real acceptors and the StateStore of each behind real listeners."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from agent.link import Answer, Handler, Header
from agent.metrics import Metrics
from agent.store.acceptor import Acceptor
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from agent.store.state.quorum import QuorumState
from agent.store.state.remote import RegisterCalls, RemoteVoter
from agent.store.state_calls import StateCalls
from console.peers import Links
from console.state_client import StateClient
from core.consensus.register import VoterSet
from net.logs import Log, log_to
from net.peer_link import Identity, Trust

NODES = ("n1", "n2", "n3")
TRUST = Trust((b"a secret of thirty-two characters",))
LOG: Log = log_to(sys.stderr, "logfmt", "error")


async def pong(header: Header, body: bytes, deadline: float) -> Answer:
    return {"unheard": [], "epoch": 0}, b""


class Node:
    """One store as far as a console sees it. `close` is a crash: connections end, the port is refused."""

    def __init__(self, name: str, addresses: dict[str, Address], acceptor: Acceptor) -> None:
        self.name, self.acceptor = name, acceptor
        ports = PeerPorts(
            me=lambda: Identity(name, "store", "one"),
            trust=TRUST,
            address_of=addresses.get,
            metrics=Metrics(memoryview(bytearray(1 << 16))),
            log=LOG,
        )
        self._ports = ports
        self.peers = Peers(ports)
        self.state = self._state()
        self.console: dict[str, Handler] = {"ping": pong, **StateCalls(self.state).handlers()}
        self.store: dict[str, Handler] = {"ping": pong, **RegisterCalls(acceptor).handlers()}
        self.server = self._server()

    async def start(self, address: Address) -> None:
        await self.server.start(address)
        self._address = self.server.address

    async def restart(self) -> None:
        await self.server.close()
        self.state = self._state()
        self.console |= StateCalls(self.state).handlers()
        self.server = self._server()
        await self.server.start(self._address)

    def _server(self) -> PeerServer:
        return PeerServer(self._ports, {"store": self.store, "console": self.console})

    def _state(self) -> QuorumState:
        voters = {n: self.acceptor if n == self.name else RemoteVoter(self.peers.caller(n)) for n in NODES}
        return QuorumState(
            VoterSet(1, frozenset(NODES)), voters, proposer=f"at {self.name}", chance=random.Random()
        )


class Cluster:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.addresses: dict[str, Address] = {}
        self.nodes: dict[str, Node] = {}

    async def add(self, name: str, folder: Path) -> Node:
        acceptor = await Acceptor.open(folder, fresh=True)
        node = Node(name, self.addresses, acceptor)
        await node.start(("127.0.0.1", 0))
        self.addresses[name] = node.server.address
        self.nodes[name] = node
        self._stack.push_async_callback(acceptor.close)
        self._stack.push_async_callback(lambda: node.server.close())
        self._stack.push_async_callback(node.peers.close)
        return node

    def console(self, name: str = "ops") -> tuple[Links, StateClient]:
        """A console's links, closed with the cluster, and its way to the state."""
        links = Links(name, TRUST, self.addresses)
        self._stack.push_async_callback(links.close)
        return links, StateClient(links.caller, lambda: links.nodes)


@asynccontextmanager
async def three_nodes(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        cluster = Cluster(stack)
        for name in NODES:
            await cluster.add(name, tmp_path / name)
        yield cluster


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
