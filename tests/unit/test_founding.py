"""Nodes that begin a cluster together: who draws the uuid, crashes in between, who must not begin anew."""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from agent.link import Answer, Header
from agent.metrics import Metrics
from agent.store.acceptor import Acceptor
from agent.store.files import Files
from agent.store.founding import Founding, FoundingPorts
from agent.store.node_identity import NodeIdentity, read_identity, write_identity
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from agent.store.state.port import StateStore
from agent.store.state.quorum import QuorumState
from agent.store.state.remote import RegisterCalls, RemoteVoter
from core.cluster import ClusterMap, NodeId
from core.config import AgentConfig, ClusterConfig, NodeConfig
from core.consensus.register import VoterSet
from core.errors import StartRefused
from net.logs import log_to
from net.peer_link import Identity, Trust

LOG = log_to(sys.stderr, "logfmt", "error")


def node_config(name: str, *, voter: bool = True) -> NodeConfig:
    return NodeConfig(name, f"{name}:6333", f"{name}:6335", f"{name}:6333", voter=voter)


FILE = ClusterConfig(
    name="sample", data_dir="/", nodes=tuple(map(node_config, ("n1", "n2", "n3"))), agent=AgentConfig()
)


class Starting:
    """One node between its start and the cluster's: listener, acceptor, founding."""

    def __init__(self, name: str, folder: Path, addresses: dict[str, Address], config: ClusterConfig) -> None:
        self.name, self.folder, self.map = name, folder, ClusterMap(cluster="")
        self._addresses, self._config = addresses, config

    async def start(self, stack: AsyncExitStack) -> None:
        self.folder.mkdir(exist_ok=True)
        identity = read_identity(self.folder, self.name)
        fresh = identity is None or not identity.begun
        self.acceptor = await Acceptor.open(self.folder / "acceptor", fresh=fresh)
        stack.push_async_callback(self.acceptor.close)
        ports = PeerPorts(
            me=lambda: Identity(self.name, "store", self._cluster()),
            trust=Trust((b"secret",)),
            address_of=self._addresses.get,
            metrics=Metrics(memoryview(bytearray(1 << 12))),
            log=LOG,
        )
        self.peers = Peers(ports)
        self.founding = Founding(
            FoundingPorts(
                folder=self.folder,
                config=self._config,
                me=self._config.node(self.name),
                peers=self.peers,
                state_of=self.state_of,
                map_of=lambda: self.map if self.map.cluster else None,
                now_us=lambda: 1,
                log=LOG,
                files=Files(),
            ),
            identity,
        )
        self._handlers = {**self.founding.handlers(), **RegisterCalls(self.acceptor).handlers()}
        self._handlers["node.knock"] = self._knocked
        server = PeerServer(ports, {"store": self._handlers})
        await server.start(("127.0.0.1", 0))
        self._addresses[self.name] = server.address
        stack.push_async_callback(self.peers.close)
        stack.push_async_callback(server.close)

    async def _knocked(self, header: Header, body: bytes, deadline: float) -> Answer:
        return {}, b""

    def _cluster(self) -> str:
        return self.founding.identity.cluster if self.founding.identity is not None else ""

    def state_of(self, voters: tuple[str, ...]) -> StateStore:
        voting = {v: self.acceptor if v == self.name else RemoteVoter(self.peers.caller(v)) for v in voters}
        return QuorumState(
            VoterSet(1, frozenset(voters)), voting, proposer=secrets.token_hex(8), chance=random.Random()
        )

    async def begun(self) -> NodeIdentity:
        identity = await self.founding.run()
        found = await self.state_of(identity.voters).read("map")
        self.map = msgspec.json.decode(found.value or b"", type=ClusterMap)
        return identity


class Cluster:
    def __init__(self, folder: Path, stack: AsyncExitStack, config: ClusterConfig = FILE) -> None:
        self._folder, self._stack = folder, stack
        self.config = config
        self.addresses: dict[str, Address] = {}

    async def start(self, name: str) -> Starting:
        node = Starting(name, self._folder / name, self.addresses, self.config)
        await node.start(self._stack)
        return node


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        yield Cluster(tmp_path, stack)


async def all_begun(nodes: list[Starting]) -> list[NodeIdentity]:
    return list(await asyncio.gather(*(node.begun() for node in nodes)))


async def test_three_empty_nodes_begin_one_cluster_whatever_their_order(cluster: Cluster) -> None:
    nodes = [await cluster.start(name) for name in ("n3", "n1", "n2")]
    identities = await all_begun(nodes)
    assert len({identity.cluster for identity in identities}) == 1
    assert all(i.begun and i.voters == ("n1", "n2", "n3") for i in identities)
    assert all(list(node.map.nodes) == ["n1", "n2", "n3"] for node in nodes)
    kept = read_identity(nodes[0].folder, "n3")
    assert kept is not None
    assert kept.begun
    assert kept.cluster == identities[0].cluster


async def test_two_of_three_wait_for_the_third(cluster: Cluster) -> None:
    nodes = [await cluster.start(name) for name in ("n1", "n2")]
    waiting = asyncio.gather(*(node.begun() for node in nodes))
    done, _ = await asyncio.wait([waiting], timeout=1.5)
    assert not done
    nodes.append(await cluster.start("n3"))
    identities = [*await waiting, await nodes[2].begun()]
    assert len({identity.cluster for identity in identities}) == 1


@pytest.mark.parametrize("told", [("n1",), ("n1", "n2"), ("n1", "n2", "n3")])
async def test_a_beginning_that_a_crash_cut_off_is_finished_with_the_same_uuid(
    cluster: Cluster, tmp_path: Path, told: tuple[str, ...]
) -> None:
    for name in told:
        (tmp_path / name).mkdir()
        drawn = NodeIdentity(node=name, cluster="drawn-before", voters=("n1", "n2", "n3"))
        write_identity(tmp_path / name, drawn, Files())
    nodes = [await cluster.start(name) for name in ("n1", "n2", "n3")]
    assert {identity.cluster for identity in await all_begun(nodes)} == {"drawn-before"}


async def test_a_restart_finds_the_same_cluster(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [await cluster.start(name) for name in ("n1", "n2", "n3")]
    before = await all_begun(nodes)
    async with AsyncExitStack() as stack:
        again = Starting("n3", tmp_path / "n3", cluster.addresses, FILE)
        await nodes[2].acceptor.close()
        await again.start(stack)
        assert (await again.begun()).cluster == before[2].cluster


async def test_a_voter_that_lost_its_disk_is_refused_in_words(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [await cluster.start(name) for name in ("n1", "n2", "n3")]
    await all_begun(nodes)
    shutil.rmtree(tmp_path / "n1")
    empty = await cluster.start("n1")
    with pytest.raises(StartRefused, match="its disk was lost"):
        await empty.begun()


async def test_an_empty_founder_beside_nodes_that_had_a_beginning_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "n2").mkdir()
    drawn = NodeIdentity(node="n2", cluster="elsewhere", voters=("n1", "n2", "n3"))
    write_identity(tmp_path / "n2", drawn, Files())
    nodes = [await cluster.start(name) for name in ("n1", "n2", "n3")]
    with pytest.raises(StartRefused, match="n2 had begun a cluster with it"):
        await nodes[0].begun()


async def test_a_node_that_is_not_in_the_map_joins_once_it_is(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        three = Cluster(tmp_path, stack)
        nodes = [await three.start(name) for name in ("n1", "n2", "n3")]
        await all_begun(nodes)
        four = ClusterConfig(
            name="sample", data_dir="/", nodes=(*FILE.nodes, node_config("n4")), agent=AgentConfig()
        )
        late = Starting("n4", tmp_path / "n4", three.addresses, four)
        await late.start(stack)
        joining = asyncio.create_task(late.begun())
        done, _ = await asyncio.wait([joining], timeout=1.0)
        assert not done
        for node in nodes:
            member = msgspec.structs.replace(node.map.nodes[NodeId("n1")], id=NodeId("n4"), number=9)
            known = {**node.map.nodes, NodeId("n4"): member}
            node.map = msgspec.structs.replace(node.map, nodes=known, next_node=10)
        identity = await joining
        assert identity.voters == ("n1", "n2", "n3")
        assert identity.begun
