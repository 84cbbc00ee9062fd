"""How nodes begin a cluster together, and how one that comes later finds it.

Only if all voters of the file answer that they never belonged to a cluster does the one with the lowest id
draw its uuid. Each then keeps it with the voters in node.json, and the keys are written from none. A node
that has a uuid never begins anew; a fresh one that finds a cluster joins that.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from agent.link import Answer, Handler, Header
from agent.store.files import Files
from agent.store.node_identity import NodeIdentity, write_identity
from agent.store.peers import Peers
from agent.store.state.port import StateStore
from core.cluster import ClusterMap, Event, Node, NodeId, to_json
from core.cluster_changes import add_node, stamped
from core.config import ClusterConfig, NodeConfig
from core.consensus.register import VoterSet, encode_voters
from core.errors import Conflict, ShoalError, StartRefused
from net.logs import Log

ASK_S = 1.0
PAUSE_S = 0.2
Standing = Literal["fresh", "drawn", "begun"]


class _Ask(msgspec.Struct, frozen=True):
    """What a node says of itself. `member`: the asked node's map has the asking one."""

    cluster: str
    standing: Standing
    voters: tuple[str, ...]
    member: bool = False
    voter: bool = False


class _Adopt(msgspec.Struct, frozen=True):
    cluster: str
    voters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundingPorts:
    """`state_of` gives the StateStore over these voters; `map_of` the newest map that this node has seen."""

    folder: Path
    config: ClusterConfig
    me: NodeConfig
    peers: Peers
    state_of: Callable[[tuple[str, ...]], StateStore]
    map_of: Callable[[], ClusterMap | None]
    now_us: Callable[[], int]
    log: Log
    files: Files


class Founding:
    """This node's part. `run` returns its identity once it belongs to a cluster that has begun."""

    def __init__(self, ports: FoundingPorts, identity: NodeIdentity | None) -> None:
        self._ports = ports
        self.identity = identity
        self._writing = asyncio.Lock()
        self._said = ""
        self._chance = random.Random()

    def handlers(self) -> Mapping[str, Handler]:
        return {"begin.ask": self._answer_ask, "begin.adopt": self._answer_adopt}

    @property
    def standing(self) -> Standing:
        if self.identity is None:
            return "fresh"
        return "begun" if self.identity.begun else "drawn"

    async def run(self) -> NodeIdentity:
        """Waits as long as it takes: others may not be started yet. Raises StartRefused, OSError."""
        while True:
            waits_for = await self._step()
            if self.identity is not None and self.identity.begun:
                return self.identity
            if waits_for != self._said:
                self._said = waits_for
                self._ports.log.info("store.waits", text=waits_for)
            # At random, or those that wait for each other would ask in step.
            await asyncio.sleep(PAUSE_S * self._chance.uniform(0.5, 1.0))

    # -- one look around, one step ----------------------------------------------------------------------

    async def _step(self) -> str:
        """Do what can be done now; returns what is still waited for."""
        if self.identity is None:
            return await self._step_fresh()
        if self._founder(self.identity.voters) == self._ports.me.id:
            return await self._found(self.identity)
        return await self._see_begun(self.identity)

    async def _step_fresh(self) -> str:
        answers = await self._ask_all()
        begun = {node: told for node, told in answers.items() if told.standing == "begun"}
        if begun:
            return await self._join(begun)
        voters = tuple(sorted(node.id for node in self._ports.config.nodes if node.voter))
        if self._founder(voters) != self._ports.me.id:
            return f"for node {self._founder(voters)}, the first of the voters, to begin the cluster"
        silent = [node for node in voters if node != self._ports.me.id and node not in answers]
        if silent:
            return f"for {', '.join(silent)}: all voters must say that they never belonged to a cluster"
        drawn = [node for node, told in answers.items() if told.standing == "drawn"]
        if drawn:
            raise StartRefused(
                f"this node is empty, but {', '.join(drawn)} had begun a cluster with it: if no data was "
                "written yet, empty the data folders of all nodes and start them again"
            )
        await self._keep(NodeIdentity(node=self._ports.me.id, cluster=str(uuid.uuid4()), voters=voters))
        return "for the other voters to keep the cluster's uuid"

    async def _found(self, identity: NodeIdentity) -> str:
        adopt = {"cluster": identity.cluster, "voters": list(identity.voters)}
        others = [node for node in identity.voters if node != self._ports.me.id]
        for node in others:
            try:
                await self._ports.peers.caller(node).call("begin.adopt", adopt, timeout_s=ASK_S)
            except Conflict as problem:
                raise StartRefused(str(problem)) from None
            except ShoalError as problem:
                return f"for {node} to keep the cluster's uuid: {problem}"
        state = self._ports.state_of(identity.voters)
        voters = encode_voters(VoterSet(1, frozenset(identity.voters)))
        first = first_map(identity.cluster, self._ports.config, self._ports.me.id, self._ports.now_us())
        try:
            # A conflict means that an earlier try has written it.
            await state.compare_and_set("voters", 0, voters)
            await state.compare_and_set("map", 0, to_json(first))
        except ShoalError as problem:
            return f"for a majority of the voters: {problem}"
        return await self._see_begun(identity)

    async def _see_begun(self, identity: NodeIdentity) -> str:
        """The map is there: by its own voters' word the cluster has begun."""
        try:
            found = await self._ports.state_of(identity.voters).read("map")
        except ShoalError as problem:
            return f"for a majority of the voters: {problem}"
        if found.value is None:
            return f"for node {self._founder(identity.voters)} to write the first map"
        cluster = msgspec.json.decode(found.value, type=ClusterMap)
        if cluster.cluster != identity.cluster:
            raise StartRefused(
                f"{self._ports.folder}: node.json is of cluster {identity.cluster}, the voters hold the map "
                f"of {cluster.cluster}: this data folder belongs to another cluster"
            )
        await self._keep(replace(identity, begun=True))
        return ""

    async def _join(self, begun: Mapping[str, _Ask]) -> str:
        clusters = {told.cluster for told in begun.values()}
        if len(clusters) > 1:
            of = ", ".join(f"{node} is of {told.cluster}" for node, told in sorted(begun.items()))
            raise StartRefused(f"the nodes of the file belong to different clusters: {of}")
        node, told = min(begun.items())
        if told.member and told.voter:
            raise StartRefused(
                f"this node's data folder is empty, but cluster {told.cluster} knows it as a voter: its disk "
                "was lost. Take it out of the voters first, then start it again"
            )
        if not told.member:
            knock = {"node": msgspec.to_builtins(as_node(self._ports.me))}
            with suppress(ShoalError):  # asked again below, and told why
                await self._ports.peers.caller(node).call("node.knock", knock, timeout_s=2 * ASK_S)
            told = (await self._ask_all()).get(node, told)
            if not told.member:
                return f"to be taken into the cluster of {node}: shoal node add {self._ports.me.id}"
        await self._keep(
            NodeIdentity(node=self._ports.me.id, cluster=told.cluster, voters=told.voters, begun=True)
        )
        return ""

    async def _ask_all(self) -> dict[str, _Ask]:
        """What the other nodes of the file say, as far as they answer."""
        others = [node.id for node in self._ports.config.nodes if node.id != self._ports.me.id]
        asked = await asyncio.gather(*(self._ask(node) for node in others))
        return {node: told for node, told in zip(others, asked, strict=True) if told is not None}

    async def _ask(self, node: str) -> _Ask | None:
        try:
            me = {"node": self._ports.me.id}
            header, _ = await self._ports.peers.caller(node).call("begin.ask", me, timeout_s=ASK_S)
            return msgspec.convert(header, _Ask)
        except (ShoalError, msgspec.ValidationError) as problem:
            self._ports.log.debug("store.not_answered", peer=node, text=str(problem))
            return None

    def _founder(self, voters: tuple[str, ...]) -> str:
        return min(voters)

    async def _keep(self, identity: NodeIdentity) -> None:
        async with self._writing:
            if self.identity is not None and self.identity.cluster != identity.cluster:
                raise StartRefused(f"this node has just been taken into cluster {self.identity.cluster}")
            await asyncio.to_thread(write_identity, self._ports.folder, identity, self._ports.files)
            self.identity = identity

    # -- what others ask --------------------------------------------------------------------------------

    async def _answer_ask(self, header: Header, body: bytes, deadline: float) -> Answer:
        asking = NodeId(str(header.get("node")))
        cluster = self._ports.map_of()
        known = cluster.nodes.get(asking) if cluster is not None else None
        mine = self.identity
        told = _Ask(
            cluster=mine.cluster if mine is not None else "",
            standing=self.standing,
            voters=mine.voters if mine is not None else (),
            member=known is not None and known.membership in ("member", "draining"),
            voter=mine is not None and asking in mine.voters,
        )
        return msgspec.to_builtins(told), b""

    async def _answer_adopt(self, header: Header, body: bytes, deadline: float) -> Answer:
        asked = msgspec.convert(header, _Adopt)
        me = self._ports.me.id
        if me not in asked.voters:
            raise Conflict(
                f"node {me} is not among the voters {', '.join(asked.voters)}: do the files differ?"
            )
        mine = self.identity
        if mine is None:
            await self._keep(NodeIdentity(node=me, cluster=asked.cluster, voters=asked.voters))
        elif (mine.cluster, mine.voters) != (asked.cluster, asked.voters):
            raise Conflict(f"node {me} belongs to cluster {mine.cluster}, not to {asked.cluster}")
        return {}, b""


def first_map(cluster: str, config: ClusterConfig, founder: str, now_us: int) -> ClusterMap:
    """All nodes of the file are members from the beginning."""
    first = ClusterMap(cluster=cluster)
    for node in config.nodes:
        first = add_node(first, as_node(node))
    event = Event(now_us, "cluster.begun", subject=founder)
    return stamped(ClusterMap(cluster=cluster), first, event)


def as_node(node: NodeConfig) -> Node:
    return Node(
        id=NodeId(node.id),
        number=0,
        address=node.address,
        peer_address=node.peer_address,
        zone=node.zone,
        weight=node.weight,
        voter=node.voter,
    )
