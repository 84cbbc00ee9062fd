"""A collection with replicas on several nodes: made, looked at, its failovers told."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from tests.running.cluster import RunningCluster
from tests.running.load import DIM, Load
from tests.running.waiting import wait_until

NAME = "docs"
SHARDS = 4


def create(
    cluster: RunningCluster,
    name: str = NAME,
    *,
    shards: int = SHARDS,
    replicas: int = 3,
    asked: int | None = None,
) -> None:
    """`asked`: the replication factor, if it is more than the `replicas` that there can be now."""
    rest = cluster.nodes["n1"].rest()
    body = {
        "vectors": {"size": DIM, "distance": "Dot"},
        "shard_number": shards,
        "replication_factor": asked or replicas,
    }
    assert rest.put(f"/collections/{name}", body).result is True
    rest.close()
    cluster.wait_in_sync(name, replicas)


def busiest_primary(cluster: RunningCluster, name: str = NAME) -> tuple[str, list[int]]:
    """The node that is primary of most shards, and which."""
    primaries = cluster.primaries(name)
    ((victim, _),) = Counter(primaries.values()).most_common(1)
    return victim, [number for number, node in primaries.items() if node == victim]


def report(what: str, waited: Sequence[float], load: Load, gaps: Sequence[float] = ()) -> None:
    """One line for people; called when all was checked."""
    told = [
        f"{len(load.acknowledged)} writes acknowledged, 0 lost, {len(load.refused)} calls without an answer"
    ]
    if gaps:
        told.insert(0, f"longest gap of eventual reads {max(gaps):.2f} s")
    if waited:
        p50, longest = statistics.median(waited), max(waited)
        told.insert(0, f"first write after p50 {p50:.2f} s, max {longest:.2f} s ({len(waited)} shards)")
    print(f"\n{what}: {'; '.join(told)}")


def terms(cluster: RunningCluster, name: str = NAME) -> dict[int, int]:
    """Each shard's term: how often it has changed its replicas."""
    return {shard.number: shard.term for shard in cluster.truth.shards(name)}


def wait_replaced(cluster: RunningCluster, node: str, name: str = NAME, within_s: float = 20.0) -> None:
    """Until the node is primary of no shard."""
    wait_until(lambda: node not in cluster.primaries(name).values(), within_s, f"other primaries than {node}")
