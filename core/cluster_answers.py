"""What the API answers straight from the map: collections, aliases, cluster. Counts come from the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.api.config import config_answer
from core.api.indexes import text_options
from core.cluster import ClusterView, Collection, NodeId, aliases_of, named
from core.errors import NotFound
from core.payload import Path, parse_path
from core.tokens import TextOptions

Json = dict[str, Any]
_DAMAGED = "files of a shard are damaged; the store's log names them"


def collections_answer(view: ClusterView) -> Json:
    """GET /collections."""
    return {"collections": [{"name": name} for name in sorted(c.name for c in view.map.collections.values())]}


def collection_answer(
    collection: Collection,
    *,
    points: int,
    indexed: int,
    segments: int,
    index_points: Mapping[str, int],
    building: bool,
    damaged: bool,
    progress: Sequence[Json],
    placed: int,
) -> Json:
    """GET /collections/{c}. `index_points`: path → points in its index; `progress`: shown while building;
    `placed`: replicas of the shard that has the fewest."""
    answer: Json = {
        "status": "red" if damaged else "yellow" if building else "green",
        "optimizer_status": {"error": _DAMAGED} if damaged else "ok",
        "indexed_vectors_count": indexed,
        "points_count": points,
        "segments_count": segments,
        "config": config_answer(collection.params),
        "payload_schema": {
            path: {
                "data_type": index.schema.type,
                **({"params": index.schema.params} if index.schema.params is not None else {}),
                "points": index_points.get(path, 0),
            }
            for path, index in sorted(collection.indexes.items())
        },
    }
    wanted = collection.params.replication_factor
    if placed < wanted:
        what_next = "add nodes, then POST …/cluster replicate_shard"
        answer["warnings"] = [{"message": f"placed {placed} of {wanted} replicas: {what_next}"}]
    if building:
        answer["progress"] = list(progress)
    return answer


def text_indexes(collection: Collection) -> dict[Path, TextOptions]:
    """How filters on text cut it, by path."""
    return {
        parse_path(path): text_options(index.schema.params)
        for path, index in collection.indexes.items()
        if index.schema.type == "text"
    }


def aliases_answer(view: ClusterView, name: str | None = None) -> Json:
    """GET /aliases, or GET /collections/{c}/aliases. Raises NotFound."""
    chosen = view.map.collections.values() if name is None else [named(view.map, name)]
    pairs = sorted((alias, c.name) for c in chosen for alias in aliases_of(view.map, c.id))
    return {"aliases": [{"alias_name": alias, "collection_name": of} for alias, of in pairs]}


def cluster_answer(view: ClusterView, me: NodeId, *, scheme: str, now: str) -> Json:
    """GET /cluster as the node `me` sees it. `now`: RFC 3339; with one voter, that one leads."""
    nodes = view.map.nodes
    voters = [node for node in nodes.values() if node.voter]
    leader = voters[0].number if len(voters) == 1 else None
    return {
        "status": "enabled",
        "peer_id": nodes[me].number,
        "peers": {str(node.number): {"uri": f"{scheme}://{node.peer_address}/"} for node in nodes.values()},
        "raft_info": {
            "term": view.map.leader_term,
            "commit": view.map.epoch,
            "pending_operations": 0,
            "leader": leader,
            "role": "Leader" if nodes[me].number == leader else "Follower",
            "is_voter": nodes[me].voter,
        },
        "consensus_thread_status": {"consensus_thread_status": "working", "last_update": now},
        "message_send_failures": {},
    }


def collection_cluster_answer(view: ClusterView, name: str, me: NodeId, points: Mapping[int, int]) -> Json:
    """GET /collections/{c}/cluster. `points`: number of a local shard → its live points. Raises NotFound."""
    collection = named(view.map, name)
    shards = view.shards.get(collection.id)
    if shards is None:
        raise NotFound.collection(name)
    local: list[Json] = []
    remote: list[Json] = []
    for shard in shards.shards:
        for node in (*shard.in_sync, *shard.learners):
            state = "Active" if node in shard.in_sync else "Partial"
            if node == me:
                count = points.get(shard.number, 0)
                local.append({"shard_id": shard.number, "points_count": count, "state": state})
            else:
                peer = view.map.nodes[node].number
                remote.append({"shard_id": shard.number, "peer_id": peer, "state": state})
    return {
        "peer_id": view.map.nodes[me].number,
        "shard_count": len(shards.shards),
        "local_shards": local,
        "remote_shards": remote,
        "shard_transfers": [],
    }
