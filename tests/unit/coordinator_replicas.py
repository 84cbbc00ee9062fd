"""Replicas for a coordinator's tests: core's own, behind real links, with a disk that is a list."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from dataclasses import dataclass, field, replace

import msgspec

from agent.link import Answer, Header
from core.api.config import CollectionParams
from core.cluster import (
    ClusterMap,
    Collection,
    CollectionId,
    Node,
    NodeId,
    Shard,
    Shards,
    shards_key,
    to_json,
)
from core.cluster_changes import add_collection, add_node, first_shards
from core.errors import Unavailable
from core.peer_wire import SHARD
from core.replication import effects as fx
from core.replication import messages as ms
from core.replication.log import Entry, Log
from core.replication.progress import Pace
from core.replication.reconfigure import replica_ids
from core.replication.replica import Replica
from core.wire import Outcome
from tests.unit import coordinator_nodes as nodes

TICK_S = 0.02
PACE = Pace(heartbeat_s=0.1, resend_s=0.05)
ShardId = tuple[int, int]
_ANSWERS: dict[type, tuple[type, ...]] = {
    ms.Promised: (ms.Promise,),
    ms.CaughtUp: (ms.CatchUp,),
    ms.Leveled: (ms.Level,),
    ms.NotCaughtUp: (ms.Level, ms.Activate),
    ms.Activated: (ms.Activate,),
    ms.Deleted: (ms.Delete,),
    ms.Refused: (ms.Promise, ms.CatchUp, ms.Level, ms.Activate, ms.Delete),
}
_runs = itertools.count(1)


@dataclass
class Disk:
    identity: fx.Identity
    entries: list[Entry] = field(default_factory=list)


class Hosted:
    """One replica on one node: performs its effects at once."""

    def __init__(self, host: Host, shard_id: ShardId, disk: Disk) -> None:
        self.host, self.shard_id, self.disk = host, shard_id, disk
        log = Log()
        for entry in disk.entries:
            log.append(entry.position, len(entry.op))
        me = ms.ReplicaId(host.name, disk.identity.incarnation)
        self.replica = Replica(disk.identity, log, me=me, members=(), run=next(_runs), pace=PACE)
        self._effects: deque[fx.Effect] = deque()
        self._asked: list[tuple[ms.Command, asyncio.Future[ms.CommandAnswer]]] = []

    def perform(self, effects: list[fx.Effect]) -> None:
        self._effects.extend(effects)
        if len(self._effects) > len(effects):
            return
        while self._effects:
            self._do(self._effects[0])
            self._effects.popleft()

    def _do(self, effect: fx.Effect) -> None:
        match effect:
            case fx.KeepIdentity(identity):
                self.disk.identity = identity
            case fx.Persist(entries, generation):
                self.disk.entries += entries
                self.perform(self.replica.persisted(entries[-1].seq, generation))
            case fx.Truncate(after_seq):
                del self.disk.entries[after_seq:]
            case fx.Apply(first, last):
                self.perform(self.replica.applied([Outcome(touched=1)] * (last - first + 1), last))
            case fx.Send(message):
                self.host.send(self.shard_id, message)
            case fx.SendEntries(message, last_seq):
                entries = tuple(self.disk.entries[message.previous.seq : last_seq])
                self.host.send(self.shard_id, replace(message, entries=entries))
            case fx.Reply(message):
                self._answer(message)

    async def command(self, message: ms.Command) -> ms.CommandAnswer:
        answer: asyncio.Future[ms.CommandAnswer] = asyncio.get_running_loop().create_future()
        self._asked.append((message, answer))
        self.perform(self.replica.on_message(message, time.monotonic()))
        return await answer

    def _answer(self, message: object) -> None:
        for asked in list(self._asked):
            command, answer = asked
            if type(command) in _ANSWERS.get(type(message), ()) and command.term == message.term:  # type: ignore[attr-defined]
                self._asked.remove(asked)
                if not answer.done():
                    answer.set_result(message)  # type: ignore[arg-type]


class Host:
    """The replicas of one node, and what its store answers about them."""

    def __init__(self, node: nodes.Node) -> None:
        self.node, self.name = node, node.name
        self.disks: dict[ShardId, Disk] = {}
        self.running: dict[ShardId, Hosted] = {}
        self.named: dict[ShardId, int] = {}
        """The incarnations that the map names here, as it was last told."""
        self.deaf_to: set[str] = set()
        """What it also says not to hear."""
        self.asked_while_deaf = False
        self.pings = 0
        self.told: list[list[str]] = []
        self.commands: list[ms.Command] = []
        self.incarnations = itertools.count(10)
        self._ticking: asyncio.Task[None] | None = None
        node.console |= {
            "ping": self._ping,
            "shard.command": self._command,
            "shards.make": self._make,
            "map.changed": self._changed,
        }
        node.store |= {"replica": self._among_replicas}

    def start(self) -> None:
        self.node.peers.watch([n for n in nodes.NODES if n != self.name])
        self.running = {id_: Hosted(self, id_, disk) for id_, disk in self.disks.items()}
        self._ticking = asyncio.create_task(self._tick())

    async def crash(self) -> None:
        await self.stop()
        await self.node.server.close()
        await self.node.peers.close()

    async def stop(self) -> None:
        self.running = {}
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])

    async def restart(self) -> None:
        await self.node.restart()
        self.start()

    def add(self, shard_id: ShardId, incarnation: int, history: int = 7) -> None:
        """An empty replica."""
        disk = self.disks[shard_id] = Disk(fx.Identity(incarnation, history, promised=1))
        self.running[shard_id] = Hosted(self, shard_id, disk)

    async def _tick(self) -> None:
        while True:
            for hosted in list(self.running.values()):
                hosted.perform(hosted.replica.tick(time.monotonic()))
            await asyncio.sleep(TICK_S)

    # -- links --------------------------------------------------------------------------------------------

    def send(self, shard_id: ShardId, message: object) -> None:
        kind, body = SHARD.encode(message)
        header = {"collection": shard_id[0], "shard": shard_id[1], "kind": kind}
        self.node.peers.caller(message.to.node).tell("replica", header, body)  # type: ignore[attr-defined]

    async def _among_replicas(self, header: Header, body: bytes, deadline: float) -> Answer:
        hosted = self.running.get((header["collection"], header["shard"]))
        if hosted is not None:
            message = SHARD.decode(header["kind"], body)
            hosted.perform(hosted.replica.on_message(message, time.monotonic()))
        return {}, b""

    async def _command(self, header: Header, body: bytes, deadline: float) -> Answer:
        message = SHARD.decode(header["kind"], body)
        self.commands.append(message)
        hosted = self.running.get((header["collection"], header["shard"]))
        if hosted is None or message.to != hosted.replica.me:
            raise Unavailable(f"node {self.name} has no such replica")
        async with asyncio.timeout_at(deadline):
            kind, answer = SHARD.encode(await hosted.command(message))
        return {"kind": kind}, answer

    async def _ping(self, header: Header, body: bytes, deadline: float) -> Answer:
        leads = [
            [*id_, h.replica.term, h.replica.log.last.seq, {to.node: n for to, n in h.replica.lags().items()}]
            for id_, h in self.running.items()
            if h.replica.is_primary
        ]
        has = {id_: disk.identity.incarnation for id_, disk in self.disks.items()}
        lost = [[*id_, has.get(id_, 0)] for id_, named in self.named.items() if has.get(id_, 0) != named]
        self.pings += 1
        self.asked_while_deaf = bool(self.deaf_to)
        unheard = sorted({*self.node.peers.unheard(), *self.deaf_to})
        return {"unheard": unheard, "epoch": 0, "shards": leads, "lost": lost}, b""

    async def _changed(self, header: Header, body: bytes, deadline: float) -> Answer:
        self.told.append(header["keys"])
        for key in header["keys"]:
            found = await self.node.state.read(key)
            assert found.value is not None
            shards = msgspec.json.decode(found.value, type=Shards)
            for shard in shards.shards:
                if NodeId(self.name) in shard.replicas:
                    self.named[shards.collection, shard.number] = shard.replicas[NodeId(self.name)]
        return {}, b""

    async def _make(self, header: Header, body: bytes, deadline: float) -> Answer:
        collection = msgspec.json.decode(body, type=Collection)
        made = {}
        for number, history in header["histories"].items():
            made[number] = next(self.incarnations)
            self.add((collection.id, number), made[number], history)
        return {"incarnations": made}, b""


class Shoal:
    """Three nodes with replicas, a map, and one collection `docs`."""

    def __init__(self, cluster: nodes.Cluster) -> None:
        self.cluster = cluster
        self.hosts = {name: Host(node) for name, node in cluster.nodes.items()}
        self.state = cluster.nodes["n1"].state

    async def begin(
        self, places: list[list[str]], params: CollectionParams | None = None, leader_term: int = 0
    ) -> None:
        """Shard i on places[i], all of the first in it active."""
        cluster = ClusterMap(cluster="one", leader_term=leader_term)
        for name, (ip, port) in self.cluster.addresses.items():
            address = f"{ip}:{port}"
            cluster = add_node(cluster, Node(NodeId(name), 0, address=address, peer_address=address))
        chosen = params or CollectionParams(
            vectors={}, replication_factor=max(len(place) for place in places), shard_number=len(places)
        )
        collection = Collection(id=CollectionId(1), name="docs", params=chosen)
        cluster = add_collection(msgspec.structs.replace(cluster, next_collection=2), collection)
        ids = [[NodeId(name) for name in place] for place in places]
        incarnations = {(n, node): 1 for n, place in enumerate(ids) for node in place}
        shards = first_shards(CollectionId(1), ids, incarnations, [7] * len(places))
        for shard in shards.shards:
            for node in shard.replicas:
                self.hosts[node].disks[1, shard.number] = Disk(fx.Identity(1, 7, promised=1))
                self.hosts[node].named[1, shard.number] = 1
        for host in self.hosts.values():
            host.start()
        for shard in shards.shards:
            hosted = self.hosts[shard.primary].running[1, shard.number]
            hosted.perform(hosted.replica.activate(1, replica_ids(shard, shard.in_sync), 0))
        await self.state.compare_and_set(shards_key(CollectionId(1)), 0, to_json(shards))
        await self.state.compare_and_set("map", 0, to_json(cluster))

    async def shards(self) -> Shards:
        for node in self.cluster.nodes.values():
            if self.hosts[node.name].running:
                found = await node.state.read("shards/1")
                assert found.value is not None
                return msgspec.json.decode(found.value, type=Shards)
        raise AssertionError("no node runs")

    async def shard(self, number: int = 0) -> Shard:
        return (await self.shards()).shards[number]

    def primary(self, number: int = 0) -> Hosted | None:
        """The active primary of the highest term."""
        found = [
            h.running[1, number]
            for h in self.hosts.values()
            if (1, number) in h.running and h.running[1, number].replica.is_primary
        ]
        return max(found, key=lambda hosted: hosted.replica.term, default=None)

    def write(self, op: bytes, number: int = 0) -> int:
        """The seq of what an active primary has taken."""
        hosted = self.primary(number)
        assert hosted is not None
        effects = hosted.replica.propose(op, 0)
        assert isinstance(effects[0], fx.Persist)
        hosted.perform(effects)
        return effects[0].entries[0].seq

    async def close(self) -> None:
        for host in self.hosts.values():
            await host.stop()
