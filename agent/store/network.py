"""What a store has of the other nodes: whom it trusts, where they are, links to them, and its own listener.

A node listens for others as soon as its file names a secret, or a CA of the cluster's own: one node alone
too, so that others can join it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.link import Answer, Handler, Header, whole
from agent.metrics import Metrics
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from core.cluster import ClusterMap
from core.config import ClusterConfig, NodeConfig
from core.config_values import host_port
from core.errors import StartRefused
from net.logs import Log
from net.peer_link import Identity, Role
from net.trust import trust_of


class Network:
    """Links of this node's store. `handlers` by role may be added to before and after `start`.

    `cluster` is this node's uuid once it has one: peers of another are refused from then on.
    """

    def __init__(self, config: ClusterConfig, me: NodeConfig, metrics: Metrics, log: Log) -> None:
        self._me, self._config = me, config
        self.cluster = ""
        self.map: ClusterMap | None = None
        """The newest that this node has seen."""
        self._addresses = {node.id: host_port(node.peer_address) for node in config.nodes}
        self.handlers: dict[Role, dict[str, Handler]] = {
            "store": {"ping": self._ping},
            "console": {"ping": self._ping_of_console},
            "front": {},
        }
        ports = PeerPorts(
            me=lambda: Identity(me.id, "store", self.cluster),
            trust=trust_of(config),
            address_of=self.address_of,
            metrics=metrics,
            log=log,
        )
        self.peers = Peers(ports)
        self._server = PeerServer(ports, self.handlers)
        self.epoch: Callable[[], int] = lambda: 0
        self.report: Callable[[], dict[str, Any]] = dict
        """What a console's ping is told beside; `heard_leader`: of the term that a leader's ping carries."""
        self.heard_leader: Callable[[int], None] = lambda term: None

    @property
    def me(self) -> str:
        return self._me.id

    def address_of(self, node: str) -> Address | None:
        address = self._addresses.get(node)
        return None if address is None else self._config.dialled(self._me.id, node, address)

    async def start(self) -> None:
        """Raises StartRefused if the address can't be listened on."""
        address = host_port(self._me.peer_address)
        try:
            await self._server.start(address)
        except OSError as problem:
            raise StartRefused(
                f"cannot listen for other nodes on {self._me.peer_address}: {problem.strerror}; "
                "is another agent running? (ss -ltnp)"
            ) from None

    def learn(self, cluster: ClusterMap) -> None:
        """The map says who is there and where; the file said where to knock."""
        self.map = cluster
        self._addresses |= {node.id: host_port(node.peer_address) for node in cluster.nodes.values()}
        others = [n.id for n in cluster.nodes.values() if n.id != self._me.id and n.membership != "left"]
        self.peers.watch(others)

    async def close(self) -> None:
        await self.peers.close()
        await self._server.close()

    async def _ping(self, header: Header, body: bytes, deadline: float) -> Answer:
        if "leader_term" in header:
            self.heard_leader(whole(header, "leader_term"))
        return {"unheard": self.peers.unheard(), "epoch": self.epoch()}, b""

    async def _ping_of_console(self, header: Header, body: bytes, deadline: float) -> Answer:
        """Also what a leader must know of all replicas here, which other stores don't ask for."""
        answer, _ = await self._ping(header, body, deadline)
        return {**answer, **self.report()}, b""
