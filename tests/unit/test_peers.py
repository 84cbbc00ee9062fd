"""Stores that know each other: the register over real links, who is unheard, whom nobody lets in."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.link import Answer, Header
from agent.metrics import Metrics
from agent.store.acceptor import Acceptor
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from agent.store.state.port import StateStore
from agent.store.state.quorum import QuorumState
from agent.store.state.remote import RegisterCalls, RemoteVoter
from core.consensus.register import VoterSet
from core.errors import BadRequest, Conflict, Unavailable
from net.logs import log_to
from net.peer_link import Identity, Trust
from tests.unit.conformance_state import StateStoreConformance, write

NODES = ("n1", "n2", "n3")
SECRET = b"a secret of thirty-two characters"


async def pong(header: Header, body: bytes, deadline: float) -> Answer:
    return {}, b""


class Node:
    """The register and the links of one store."""

    def __init__(self, name: str, addresses: dict[str, Address], acceptor: Acceptor, cluster: str) -> None:
        self.name, self.acceptor = name, acceptor
        self.metrics = Metrics(memoryview(bytearray(1 << 16)))
        ports = PeerPorts(
            me=lambda: Identity(name, "store", cluster),
            trust=Trust((SECRET,)),
            address_of=addresses.get,
            metrics=self.metrics,
            log=log_to(sys.stderr, "logfmt", "error"),
        )
        self.peers = Peers(ports)
        self.server = PeerServer(ports, {"store": {"ping": pong, **RegisterCalls(acceptor).handlers()}})

    def state(self, nodes: tuple[str, ...] = NODES) -> QuorumState:
        voters = {n: self.acceptor if n == self.name else RemoteVoter(self.peers.caller(n)) for n in nodes}
        return QuorumState(
            VoterSet(1, frozenset(nodes)), voters, proposer=f"at {self.name}", chance=random.Random(1)
        )


class Cluster:
    def __init__(self, tmp_path: Path, stack: AsyncExitStack) -> None:
        self._tmp_path, self._stack = tmp_path, stack
        self.addresses: dict[str, Address] = {}
        self.nodes: dict[str, Node] = {}

    async def add(self, name: str, cluster: str = "one") -> Node:
        acceptor = await Acceptor.open(self._tmp_path / name, fresh=True)
        node = Node(name, self.addresses, acceptor, cluster)
        await node.server.start(("127.0.0.1", 0))
        self.addresses[name] = node.server.address
        self.nodes[name] = node
        self._stack.push_async_callback(acceptor.close)
        self._stack.push_async_callback(node.server.close)
        self._stack.push_async_callback(node.peers.close)
        return node


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        made = Cluster(tmp_path, stack)
        for name in NODES:
            await made.add(name)
        yield made


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


class TestVotersOnThreeNodes(StateStoreConformance):
    @pytest.fixture
    def state(self, cluster: Cluster) -> StateStore:
        return cluster.nodes["n1"].state()


async def test_what_one_node_wrote_another_reads_while_the_third_is_away(cluster: Cluster) -> None:
    await cluster.nodes["n3"].server.close()
    version = await write(cluster.nodes["n1"].state(), "map", 0, b"one")
    found = await cluster.nodes["n2"].state().read("map")
    assert (found.value, found.version) == (b"one", version)


async def test_without_a_majority_nothing_is_answered(cluster: Cluster) -> None:
    for name in ("n2", "n3"):
        await cluster.nodes[name].server.close()
    with pytest.raises(Unavailable):
        await cluster.nodes["n1"].state().read("map")


async def test_a_watched_node_that_ends_is_unheard_until_it_is_back(cluster: Cluster) -> None:
    peers = cluster.nodes["n1"].peers
    peers.watch(["n2", "n3"])
    await until(lambda: peers.caller("n2").is_open and peers.caller("n3").is_open)
    assert peers.unheard() == []
    await cluster.nodes["n3"].server.close()
    await until(lambda: peers.unheard() == ["n3"])
    await cluster.add("n3")
    await until(lambda: peers.unheard() == [])


async def test_a_node_that_is_no_longer_watched_is_not_missed(cluster: Cluster) -> None:
    peers = cluster.nodes["n1"].peers
    peers.watch(["n3"])
    await cluster.nodes["n3"].server.close()
    await until(lambda: peers.unheard() == ["n3"])
    peers.watch([])
    assert peers.unheard() == []


async def test_a_node_of_another_cluster_is_refused_in_words_on_both_sides(cluster: Cluster) -> None:
    stranger = await cluster.add("n4", cluster="two")
    for asked, who in (("n1", stranger), ("n4", cluster.nodes["n1"])):
        with pytest.raises(Conflict, match="another cluster's data folder"):
            await who.peers.caller(asked).call("ping", {}, timeout_s=5)


async def test_an_address_of_another_node_is_named(cluster: Cluster) -> None:
    cluster.addresses["n2"] = cluster.addresses["n3"]
    with pytest.raises(Conflict, match="is node n3, not n2: see its peer_address"):
        await cluster.nodes["n1"].peers.caller("n2").call("ping", {}, timeout_s=5)


@pytest.mark.parametrize(
    ("kind", "header", "body"),
    [
        ("register", {}, b""),
        ("register", {"kind": "prepare"}, b"\xc1"),
        ("register", {"kind": "promise"}, b"\x80"),
        ("register", {"kind": "x" * 5000}, b""),
        ("register.keys", {}, b""),
        ("register.wait", {"key": 1, "after": "x"}, b""),
        ("no.such.call", {}, b""),
    ],
)
async def test_malformed_calls_are_refused_and_change_nothing(
    cluster: Cluster, kind: str, header: Header, body: bytes
) -> None:
    state = cluster.nodes["n1"].state()
    await write(state, "map", 0, b"one")
    with pytest.raises(BadRequest):
        await cluster.nodes["n1"].peers.caller("n2").call(kind, header, body, timeout_s=5)
    assert (await state.read("map")).value == b"one"


async def test_connections_that_prove_nothing_are_bounded_and_block_nobody(cluster: Cluster) -> None:
    silent = [await asyncio.open_connection(*cluster.addresses["n2"]) for _ in range(100)]
    closed = sum([await reader.read() == b"" for reader, _ in silent[64:]])
    assert closed == 36
    for _, writer in silent:
        writer.close()
    await until(lambda: not cluster.nodes["n2"].server._greeting)
    await cluster.nodes["n1"].peers.caller("n2").call("ping", {}, timeout_s=5)
