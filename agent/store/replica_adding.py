"""Shard operations that clients ask for: one more replica is made as a learner; the leader takes it in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec
from msgspec.structs import replace

from agent.link import Answer, Handler, Header
from agent.store.state.port import StateStore, VersionConflict
from core.api.cluster import ClusterOperation, DropReplica, Transfer, parse_cluster_operation
from core.api.decode import decode
from core.cluster import (
    ClusterMap,
    ClusterView,
    Collection,
    Node,
    NodeId,
    Shard,
    Shards,
    named,
    shards_key,
    to_json,
)
from core.errors import BadRequest, Conflict, NotFound, NotSupported

TRIES_MAX = 8
"""The leader writes the same key; whoever comes second reads it again."""
_decode = msgspec.json.Decoder(Shards).decode


@dataclass(frozen=True, slots=True)
class Host:
    """What it needs of the store. `make_logs_on` answers shard number → incarnation."""

    state: StateStore
    view: Callable[[], ClusterView]
    make_logs_on: Callable[[NodeId, Collection, Mapping[int, int]], Awaitable[dict[int, int]]]
    changed: Callable[[str], Awaitable[None]]
    """This key has changed: read it, and tell the others."""


class ReplicaAdding:
    """Serves `shards.change`: the body of POST /collections/{c}/cluster."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def handlers(self) -> dict[str, Handler]:
        return {"shards.change": self._change}

    async def _change(self, header: Header, body: bytes, deadline: float) -> Answer:
        cluster = self._host.view().map
        collection = named(cluster, header["collection"])
        asked = parse_cluster_operation(decode(ClusterOperation, body))
        if len(cluster.nodes) < 2:
            raise NotSupported("shard operations need a second node; this cluster has one")
        if not isinstance(asked, Transfer) or asked.kind != "replicate_shard":
            _refuse(asked.kind if isinstance(asked, Transfer) else _name(asked))
        await self._replicate(cluster, collection, asked)
        return {}, b"true"

    async def _replicate(self, cluster: ClusterMap, collection: Collection, asked: Transfer) -> None:
        source = _node(cluster, "replicate_shard.from_peer_id", asked.from_peer)
        target = _node(cluster, "replicate_shard.to_peer_id", asked.to_peer)
        if target.membership != "member":
            raise BadRequest(f"replicate_shard.to_peer_id: node {target.id} is {target.membership}")
        key = shards_key(collection.id)
        incarnation: int | None = None
        for _ in range(TRIES_MAX):
            found = await self._host.state.read(key)
            if found.value is None:
                raise NotFound.collection(collection.name)
            shards = _decode(found.value)
            shard = _shard(shards.shards, asked.shard)
            if source.id not in shard.in_sync:
                raise BadRequest(f"replicate_shard.from_peer_id: node {source.id} has no replica in sync")
            if target.id in shard.replicas:
                raise BadRequest(f"replicate_shard.to_peer_id: node {target.id} has a replica already")
            if incarnation is None:
                made = await self._host.make_logs_on(target.id, collection, {shard.number: shard.history})
                incarnation = made[shard.number]
            new = _with_learner(shards, shard, target.id, incarnation)
            answer = await self._host.state.compare_and_set(key, found.version, to_json(new))
            if not isinstance(answer, VersionConflict):
                await self._host.changed(key)
                return
        raise Conflict(f"shard {asked.shard} is being changed by others; try again")


def _with_learner(shards: Shards, shard: Shard, node: NodeId, incarnation: int) -> Shards:
    """It never counts for a commit, so nobody needs to agree before it is there."""
    grown = replace(shard, learners=(*shard.learners, node), replicas={**shard.replicas, node: incarnation})
    return replace(shards, shards=tuple(grown if one is shard else one for one in shards.shards))


def _node(cluster: ClusterMap, field: str, number: int) -> Node:
    for node in cluster.nodes.values():
        if node.number == number:
            return node
    known = ", ".join(f"{node.number} ({node.id})" for node in cluster.nodes.values())
    raise BadRequest(f"{field}: no peer has the id {number}; there are {known}")


def _shard(shards: Sequence[Shard], number: int) -> Shard:
    for shard in shards:
        if shard.number == number:
            return shard
    raise BadRequest(f"replicate_shard.shard_id: there is no shard {number}, the last is {len(shards) - 1}")


def _name(asked: object) -> str:
    return "drop_replica" if isinstance(asked, DropReplica) else "resharding"


def _refuse(what: str) -> NoReturn:
    raise NotSupported(
        f"{what}: not supported yet; replicate_shard is, and dead replicas are dropped by the coordinator"
    )
