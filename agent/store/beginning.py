"""Begins a cluster on an empty node, or finds the one that this node belongs to.

In this order, so that a crash anywhere is followed by the same beginning: node.json with a new uuid;
the register; the keys `voters` and `map`, each from none; node.json again, begun. Several nodes agree on
the uuid first, see founding.py.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent.store.acceptor import Acceptor
from agent.store.files import Files
from agent.store.founding import Founding, FoundingPorts
from agent.store.network import Network
from agent.store.node_identity import NODE_JSON, NodeIdentity, read_identity, write_identity
from agent.store.state.etcd import EtcdState
from agent.store.state.port import StateStore, Versioned
from agent.store.state.quorum import QuorumState
from agent.store.state.remote import RegisterCalls, RemoteVoter
from agent.store.state.rounds import Voter
from core.cluster import ClusterMap, Event, Node, NodeId, to_json
from core.cluster_changes import add_node, stamped
from core.config import ClusterConfig, NodeConfig
from core.consensus.register import VoterSet
from core.errors import Damaged, InvariantBroken, StartRefused
from net.logs import Log

ACCEPTOR = "acceptor"


@dataclass(frozen=True, slots=True)
class Begun:
    """A node that belongs to a cluster, and the way to its truth. `healed`: damage that was repaired.

    Where the truth is on voters this node has an acceptor; where it is in etcd, a connection to that.
    """

    identity: NodeIdentity
    state: StateStore
    acceptor: Acceptor | None
    healed: tuple[str, ...]
    etcd: EtcdState | None = None

    async def close(self) -> None:
        if self.acceptor is not None:
            await self.acceptor.close()
        if self.etcd is not None:
            await self.etcd.__aexit__()


async def begin(folder: Path, node: NodeConfig, *, now_us: int, files: Files | None = None) -> Begun:
    """`folder` is locked by the caller. Raises Damaged, StartRefused."""
    disk = files or Files()
    healed: tuple[str, ...] = ()
    try:
        identity = await asyncio.to_thread(read_identity, folder, node.id)
    except Damaged as e:
        identity, healed = None, (str(e),)
    had_register = any((folder / ACCEPTOR).glob("*.log"))
    if identity is None and had_register:
        healed = healed or (f"{folder / NODE_JSON} is missing",)
    elif identity is None:
        if healed:
            raise Damaged(f"{healed[0]}, and there is no register to make it anew from: restore a snapshot")
        identity = NodeIdentity(node=node.id, cluster=str(uuid.uuid4()), voters=(node.id,))
        await asyncio.to_thread(write_identity, folder, identity, disk)
    acceptor = await Acceptor.open(
        folder / ACCEPTOR, fresh=identity is not None and not identity.begun, files=disk
    )
    try:
        state = _state_on(node.id, acceptor)
        if identity is None or identity.begun:
            known = await _known(folder, state, node.id, identity)
        else:
            known = await _first_values(state, node, identity, now_us)
        if known != identity:
            await asyncio.to_thread(write_identity, folder, known, disk)
    except BaseException:
        await acceptor.close()
        raise
    return Begun(known, state, acceptor, (*healed, *acceptor.damage))


async def begin_among(
    folder: Path,
    config: ClusterConfig,
    node: NodeConfig,
    network: Network,
    *,
    now_us: Callable[[], int],
    log: Log,
    files: Files | None = None,
) -> Begun:
    """The same with other nodes; the network is listening and knows what to answer. Waits for the others.

    Raises Damaged, StartRefused.
    """
    disk = files or Files()
    identity = await asyncio.to_thread(read_identity, folder, node.id)
    if identity is None and any((folder / ACCEPTOR).glob("*.log")):
        raise StartRefused(
            f"{folder / NODE_JSON} is missing, but there is a register: who this node was is not known. "
            "Restore the file, or empty the folder and let the node join again"
        )
    acceptor = await Acceptor.open(
        folder / ACCEPTOR, fresh=identity is None or not identity.begun, files=disk
    )

    def state_of(voters: tuple[str, ...]) -> StateStore:
        return _state_on(node.id, acceptor, voters, network)

    try:
        ports = FoundingPorts(
            folder=folder,
            config=config,
            me=node,
            peers=network.peers,
            state_of=state_of,
            map_of=lambda: network.map,
            now_us=now_us,
            log=log,
            files=disk,
        )
        founding = Founding(ports, identity)
        network.cluster = identity.cluster if identity is not None else ""
        network.handlers["store"] |= {**founding.handlers(), **RegisterCalls(acceptor).handlers()}
        known = await founding.run()
        network.cluster = known.cluster
    except BaseException:
        await acceptor.close()
        raise
    return Begun(known, state_of(known.voters), acceptor, acceptor.damage)


def _state_on(
    node: str, acceptor: Acceptor, voters: tuple[str, ...] = (), network: Network | None = None
) -> QuorumState:
    members = voters or (node,)
    voting: dict[str, Voter] = {
        member: RemoteVoter(network.peers.caller(member))
        for member in members
        if member != node and network is not None
    }
    if node in members:
        voting[node] = acceptor
    # The proposer's name is new at each start: no ballot is ever used twice.
    return QuorumState(
        VoterSet(1, frozenset(members)), voting, proposer=secrets.token_hex(8), chance=random.Random()
    )


async def _first_values(
    state: StateStore, node: NodeConfig, identity: NodeIdentity, now_us: int
) -> NodeIdentity:
    """The keys of a new cluster; those that a beginning before a crash has written stay."""
    voters = VoterSet(1, frozenset({node.id}))
    await state.compare_and_set("voters", 0, msgspec.json.encode(voters))
    empty = ClusterMap(cluster=identity.cluster)
    member = Node(
        id=NodeId(node.id),
        number=0,
        address=node.address,
        peer_address=node.peer_address,
        zone=node.zone,
        weight=node.weight,
        voter=node.voter,
    )
    event = Event(now_us, "cluster.begun", subject=node.id)
    first = stamped(empty, add_node(empty, member), event)
    await state.compare_and_set("map", 0, to_json(first))
    cluster = decode_map(await state.read("map"))
    if cluster.cluster != identity.cluster:
        raise InvariantBroken(f"the map is of cluster {cluster.cluster}, this node began {identity.cluster}")
    return replace(identity, begun=True)


async def _known(folder: Path, state: StateStore, node: str, identity: NodeIdentity | None) -> NodeIdentity:
    """node.json as the register proves it, for one that is lost, too: this node is the only voter."""
    found = await state.read("map")
    if found.value is None:
        raise Damaged(f"{folder / ACCEPTOR}: the register has no map: restore this node from a snapshot")
    cluster = decode_map(found)
    if identity is not None and identity.cluster != cluster.cluster:
        raise StartRefused(
            f"{folder}: {NODE_JSON} is of cluster {identity.cluster}, the register of {cluster.cluster}: "
            "files of two nodes are mixed"
        )
    if NodeId(node) not in cluster.nodes:
        raise StartRefused(f"{folder} belongs to {', '.join(cluster.nodes)}, not to node {node!r}")
    return identity or NodeIdentity(node=node, cluster=cluster.cluster, voters=(node,), begun=True)


def decode_map(found: Versioned) -> ClusterMap:
    try:
        return msgspec.json.decode(found.value or b"", type=ClusterMap)
    except msgspec.DecodeError as e:
        raise Damaged(f"the map in the register, version {found.version}, cannot be read: {e}") from None
