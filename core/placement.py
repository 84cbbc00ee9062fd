"""Where the replicas of new shards go: members only, apart from each other, each node by its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from core.cluster import ClusterMap, Node, NodeId, Shards
from core.errors import Unavailable
from core.hashing import splitmix64


def place(
    cluster: ClusterMap, existing: Iterable[Shards], *, shard_count: int, replication_factor: int
) -> list[list[NodeId]]:
    """For each new shard its nodes, the primary first: fewer than the factor if there are not enough nodes.

    Replicas of a shard go to different nodes, and to different zones while there are any left; of those
    equally good the one with the least for its weight. The same map gives the same places.
    """
    nodes = [n for n in cluster.nodes.values() if n.membership == "member" and n.weight > 0]
    if not nodes:
        raise Unavailable(
            "no member of the cluster can take a shard: all are joining, draining or of weight 0"
        )
    replicas: Counter[NodeId] = Counter()
    primaries: Counter[NodeId] = Counter()
    for shards in existing:
        for shard in shards.shards:
            replicas.update((*shard.in_sync, *shard.learners))
            primaries[shard.primary] += 1
    places = []
    for number in range(shard_count):
        chosen = _spread(nodes, min(replication_factor, len(nodes)), replicas, number)
        chosen.sort(key=lambda n: (primaries[n.id] / n.weight, _tie(n, number)))
        replicas.update(n.id for n in chosen)
        primaries[chosen[0].id] += 1
        places.append([n.id for n in chosen])
    return places


def _spread(nodes: list[Node], count: int, replicas: Counter[NodeId], number: int) -> list[Node]:
    chosen: list[Node] = []
    zones: Counter[str] = Counter()
    for _ in range(count):
        free = [n for n in nodes if n not in chosen]
        best = min(free, key=lambda n: (zones[n.zone], (replicas[n.id] + 1) / n.weight, _tie(n, number)))
        chosen.append(best)
        zones[best.zone] += 1
    return chosen


def _tie(node: Node, number: int) -> int:
    # Not the lowest name each time: or small collections would all share their first node.
    return splitmix64(node.number << 32 ^ number)
