"""The leader's eyes: pings every store of the map, keeps what they told. Drives core/detector.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from console.peers import Links, was_refused
from core.cluster import CollectionId, NodeId
from core.detector import Detector, Ping, Rules, Verdict
from core.errors import DeadlineExceeded, ShoalError
from net.frames import Header
from net.logs import Log

LOOK_S = 0.05
ShardId = tuple[CollectionId, int]


class Leads(msgspec.Struct, frozen=True, array_like=True):
    """A shard of which this store's replica is the active primary."""

    collection: CollectionId
    shard: int
    term: int
    last_seq: int
    lags: dict[NodeId, int]


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """A replica that the map names there, and that is not. `incarnation`: of the one in its place, or 0."""

    collection: CollectionId
    shard: int
    incarnation: int


class _Pong(msgspec.Struct, frozen=True):
    unheard: tuple[NodeId, ...] = ()
    epoch: int = 0
    shards: tuple[Leads, ...] | None = None
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What one store said of its replicas, the last time it answered."""

    at_s: float
    """When it was asked."""
    leads: dict[ShardId, Leads] | None
    """None: it does not say."""
    lost: dict[ShardId, int]


@dataclass(eq=False, slots=True)
class _Watching:
    told: Told | None = None
    pings: set[asyncio.Task[None]] = field(default_factory=set)


class Stores:
    """`run` until cancelled. `changed` is set when something was told, or a node's health is another."""

    def __init__(self, links: Links, leader_term: int, log: Log, rules: Rules | None = None) -> None:
        self._links, self._log = links, log
        self._leader_term = leader_term
        self._detector = Detector(rules)
        self._watching: dict[NodeId, _Watching] = {}
        self._health: dict[NodeId, str] = {}
        self.changed = asyncio.Event()

    def watch(self, nodes: Iterable[NodeId]) -> None:
        """The nodes of the map."""
        wanted = set(nodes)
        self._detector.watch(wanted, time.monotonic())
        for gone in self._watching.keys() - wanted:
            for ping in self._watching.pop(gone).pings:
                ping.cancel()
        for node in wanted - self._watching.keys():
            self._watching[node] = _Watching()

    def verdict(self) -> Verdict:
        return self._detector.verdict(time.monotonic())

    def told(self, node: NodeId) -> Told | None:
        watching = self._watching.get(node)
        return watching.told if watching is not None else None

    async def run(self) -> None:
        self._links.on_lost = self._on_lost
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    for ping in self._detector.due(time.monotonic()):
                        self._begin(ping, group)
                    self._note_health()
                    await asyncio.sleep(LOOK_S)
        finally:
            self._links.on_lost = lambda node: None

    def _begin(self, ping: Ping, group: asyncio.TaskGroup) -> None:
        pings = self._watching[ping.node].pings
        task = group.create_task(self._ping(ping.node), name=f"ping.{ping.node}")
        pings.add(task)
        task.add_done_callback(pings.discard)

    async def _ping(self, node: NodeId) -> None:
        sent_s = time.monotonic()
        try:
            header, _ = await self._links.caller(node).call(
                "ping", {"leader_term": self._leader_term}, timeout_s=self._detector.silent_s
            )
        except DeadlineExceeded:
            # A cut leaves a connection that is dead without a word, for minutes: the next ping opens another.
            self._links.drop([node])
        except ShoalError as problem:
            if was_refused(problem):
                self._detector.on_closed(node, time.monotonic())
            else:
                # Lost: `on_lost` has told of it. Else it can't be talked to, which silence will show.
                self._log.debug("store.no_answer", peer=node, text=str(problem))
        else:
            self._keep(node, sent_s, header)
        self._note_health()

    def _keep(self, node: NodeId, sent_s: float, header: Header) -> None:
        try:
            pong = msgspec.convert(header, _Pong)
        except msgspec.ValidationError as problem:
            # It lives, whatever it says: a failover because of a word would be worse.
            self._log.warning("store.not_understood", peer=node, text=str(problem))
            pong = _Pong()
        self._detector.on_answer(node, sent_s, pong.unheard)
        watching = self._watching.get(node)
        if watching is None or (watching.told is not None and watching.told.at_s > sent_s):
            return
        leads = None if pong.shards is None else {(s.collection, s.shard): s for s in pong.shards}
        watching.told = Told(sent_s, leads, {(r.collection, r.shard): r.incarnation for r in pong.lost})
        self.changed.set()

    def _on_lost(self, node: str) -> None:
        self._detector.on_closed(NodeId(node), time.monotonic())
        self._note_health()

    def _note_health(self) -> None:
        verdict = self.verdict()
        for node, health in verdict.health.items():
            before = self._health.get(node, "unknown")
            if health == before:
                continue
            self.changed.set()
            if health == "dead":
                self._log.warning("node.dead", peer=node, text=verdict.dead[node].why)
            elif before == "dead":
                self._log.info("node.alive_again", peer=node, health=health)
        self._health = dict(verdict.health)
