"""How nodes keep each other's maps new: who changed it tells those concerned, and each looks for itself, too.

Also what a change of the map needs of other nodes: empty logs for a new collection's replicas there, and
nodes that knock because the map does not know them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from agent.link import Answer, Handler, Header
from agent.store.acceptor import Acceptor
from agent.store.catalogue import Catalogue
from agent.store.network import Network
from agent.store.settings import KEY as SETTINGS
from core import cluster
from core.cluster import SHARDS_PREFIX, ClusterView, Node, NodeId
from core.errors import BadRequest, ShoalError, Unavailable
from net.logs import Log

TELL_S = 2.0
MAKE_S = 30.0
LOOK_S = 0.1
RETRY_S = 1.0

MakeLogs = Callable[[cluster.Collection, Mapping[int, int]], Awaitable[dict[int, int]]]


class Follower(Protocol):
    """The settings, as they are kept up to date with those of the cluster."""

    def is_behind(self, key_version: int) -> bool: ...

    async def take_up(self) -> None: ...


class _Changed(msgspec.Struct, frozen=True):
    """`keys`: those under `shards/` that changed with it; None: any may have."""

    epoch: int
    keys: tuple[str, ...] | None = None


class _Make(msgspec.Struct, frozen=True):
    histories: dict[int, int]


class _Made(msgspec.Struct, frozen=True):
    incarnations: dict[int, int]


class _Knock(msgspec.Struct, frozen=True):
    node: Node


class MapCalls:
    """This node's side of it. `auto_join`: who knocks with the secret is taken in at once."""

    def __init__(self, network: Network, make_logs: MakeLogs, *, auto_join: bool, log: Log) -> None:
        self._network, self._make_logs, self._auto_join, self._log = network, make_logs, auto_join, log
        self._wanted = asyncio.Event()

    # -- asked of others

    async def make_logs_at(
        self, node: NodeId, collection: cluster.Collection, histories: Mapping[int, int]
    ) -> dict[int, int]:
        """Raises what the other node raises, Unavailable if it can't be reached."""
        header, _ = await self._network.peers.caller(node).call(
            "shards.make", {"histories": dict(histories)}, msgspec.json.encode(collection), timeout_s=MAKE_S
        )
        return msgspec.convert(header, _Made).incarnations

    async def tell(self, view: ClusterView, keys: Collection[str]) -> None:
        """All other nodes, at once, for a moment: they look for themselves later if this is lost."""
        unheard = self._network.peers.unheard()
        told = {"epoch": view.map.epoch, "keys": list(keys)}
        nodes = [n for n in view.map.nodes if n != self._network.me and n not in unheard]
        await asyncio.gather(*(self._tell_one(node, told) for node in nodes))

    async def _tell_one(self, node: NodeId, told: Header) -> None:
        try:
            await self._network.peers.caller(node).call("map.changed", told, timeout_s=TELL_S)
        except ShoalError as problem:
            self._log.debug("map.not_told", peer=node, text=str(problem))

    # -- asked by others

    def handlers(self, catalogue: Catalogue) -> Mapping[str, Handler]:
        async def changed(header: Header, body: bytes, deadline: float) -> Answer:
            told = msgspec.convert(header, _Changed)
            await catalogue.take_up(told.keys)
            return {"epoch": catalogue.map.epoch}, b""

        async def make(header: Header, body: bytes, deadline: float) -> Answer:
            collection = msgspec.json.decode(body, type=cluster.Collection)
            made = await self._make_logs(collection, msgspec.convert(header, _Make).histories)
            return {"incarnations": made}, b""

        async def knock(header: Header, body: bytes, deadline: float) -> Answer:
            node = msgspec.convert(header, _Knock).node
            if node.membership != "member":
                raise BadRequest(f"node {node.id} knocks as {node.membership}")
            membership = node.membership if self._auto_join else "joining"
            await catalogue.add_node(replace(node, membership=membership), who=f"node {node.id}")
            return {}, b""

        return {"map.changed": changed, "shards.make": make, "node.knock": knock}

    # -- looking for itself

    def wanted(self, collection: int, version: int) -> None:
        """A replica has an entry that was checked against a later schema than this node knows."""
        self._wanted.set()

    async def follow(self, catalogue: Catalogue, acceptor: Acceptor | None, settings: Follower) -> None:
        """Never ends. A voter sees in its own memory what was accepted; others watch the key `map`."""
        told = ""
        while True:
            try:
                if acceptor is not None:
                    await self._look(catalogue, acceptor, settings)
                else:
                    await catalogue.watch_map()
                    await catalogue.take_up()
                    await settings.take_up()
            except Unavailable as problem:
                if str(problem) != told:
                    told = str(problem)
                    self._log.warning("map.not_read", text=told)
                await asyncio.sleep(RETRY_S)
            else:
                told = ""

    async def _look(self, catalogue: Catalogue, acceptor: Acceptor, settings: Follower) -> None:
        while True:
            keys = ["map", *await acceptor.keys(SHARDS_PREFIX)]
            newer = [k for k in keys if catalogue.is_behind(k, acceptor.cell(k).value.version)]
            if newer or self._wanted.is_set():
                self._wanted.clear()
                await catalogue.take_up(newer)
            if settings.is_behind(acceptor.cell(SETTINGS).value.version):
                await settings.take_up()
            await asyncio.sleep(LOOK_S)
