"""The cluster map: nodes, collections, aliases, and the shards of each collection; lookups and invariants.

Values only: cluster_changes.py makes new ones, a StateStore keeps them (keys `map` and `shards/<id>`).
Names are the users'; what is stored, sent or logged carries the numbers that are drawn here, once each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NewType

import msgspec
from msgspec import Struct

from core.api.config import CollectionParams
from core.errors import InvariantBroken, NotFound

NodeId = NewType("NodeId", str)
CollectionId = NewType("CollectionId", int)

EVENTS_KEPT = 64
HASHES = 1 << 64
FORMAT = 1


class Node(Struct, frozen=True):
    """A member, as the map knows it. `number` is its id for clients, which want a u64."""

    id: NodeId
    number: int
    address: str
    peer_address: str
    zone: str = ""
    weight: float = 1.0
    voter: bool = True
    membership: Literal["joining", "member", "draining", "left"] = "member"


class IndexSchema(Struct, frozen=True, omit_defaults=True):
    """A payload index's type and the options that were given with it, to be echoed. Treat as frozen."""

    type: str
    params: dict[str, Any] | None = None


class PayloadIndex(Struct, frozen=True):
    number: int
    schema: IndexSchema


class Collection(Struct, frozen=True, kw_only=True):
    """`schema_version` grows with each change of the rest. Treat the dicts as frozen."""

    id: CollectionId
    name: str
    params: CollectionParams
    schema_version: int = 1
    vectors: dict[str, int] = {}  # name → number
    indexes: dict[str, PayloadIndex] = {}  # path → index
    next_vector: int = 1
    next_index: int = 1
    created_us: int = 0


class Event(Struct, frozen=True, omit_defaults=True):
    """What the CAS that made an epoch did, and who asked for it."""

    time_us: int
    kind: str
    who: str = ""
    subject: str = ""
    epoch: int = 0


class ClusterMap(Struct, frozen=True, kw_only=True):
    """The value of the key `map`. `epoch` grows by one with each change; `leader_term` is the last stamp."""

    cluster: str
    epoch: int = 0
    leader_term: int = 0
    nodes: dict[NodeId, Node] = {}
    collections: dict[CollectionId, Collection] = {}
    aliases: dict[str, CollectionId] = {}
    next_collection: int = 1
    next_node: int = 1
    events: tuple[Event, ...] = ()
    format: int = FORMAT


class Pending(Struct, frozen=True):
    """The next configuration of a shard, numbered but not yet active."""

    term: int
    primary: NodeId
    in_sync: tuple[NodeId, ...]


class Shard(Struct, frozen=True, kw_only=True):
    """One hash range, both ends included, and who holds it. `replicas`: node → incarnation of its log."""

    number: int
    first_hash: int
    last_hash: int
    term: int = 1
    primary: NodeId
    in_sync: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    pending: Pending | None = None
    replicas: dict[NodeId, int]
    history: int
    frozen: bool = False


class Shards(Struct, frozen=True, kw_only=True):
    """The value of a key `shards/<collection id>`."""

    collection: CollectionId
    leader_term: int = 0
    shards: tuple[Shard, ...]
    events: tuple[Event, ...] = ()
    """What the last CASes of this key did."""


class ClusterView(Struct, frozen=True):
    """Map and shards as one agent last saw them: what it routes by, answers from and keeps on disk."""

    map: ClusterMap
    shards: dict[CollectionId, Shards] = {}
    serial: int = 0
    """Counted by the agent itself: shards change without a new epoch of the map."""

    @property
    def epoch(self) -> int:
        """What a node publishes to its processes: of two views the later has the larger one."""
        return max(self.serial, self.map.epoch)


# -- lookups ------------------------------------------------------------------------------------------------


def find(cluster: ClusterMap, name: str, *, aliases: bool = True) -> Collection | None:
    """The collection of that name or alias, or None. Linear: a reader on the hot path keeps `directory`."""
    for collection in cluster.collections.values():
        if collection.name == name:
            return collection
    return cluster.collections[cluster.aliases[name]] if aliases and name in cluster.aliases else None


def named(cluster: ClusterMap, name: str) -> Collection:
    """The collection of that name or alias. Raises NotFound."""
    collection = find(cluster, name)
    if collection is None:
        raise NotFound.collection(name)
    return collection


def directory(cluster: ClusterMap) -> dict[str, Collection]:
    """Every name and alias → its collection."""
    found = {c.name: c for c in cluster.collections.values()}
    return found | {alias: cluster.collections[id_] for alias, id_ in cluster.aliases.items()}


def aliases_of(cluster: ClusterMap, collection: CollectionId) -> list[str]:
    return sorted(alias for alias, id_ in cluster.aliases.items() if id_ == collection)


SHARDS_PREFIX = "shards/"


def shards_key(collection: CollectionId) -> str:
    return f"{SHARDS_PREFIX}{collection}"


# -- invariants ---------------------------------------------------------------------------------------------


def check(view: ClusterView) -> None:
    """Raises InvariantBroken with everything that is wrong: such a value is never written, nor acted on."""
    wrong = [*_map_mistakes(view.map)]
    for id_, shards in view.shards.items():
        wrong += [f"shards/{id_}: {mistake}" for mistake in _shards_mistakes(shards, view.map)]
        if shards.collection != id_:
            wrong.append(f"shards/{id_} says that it is of collection {shards.collection}")
    if wrong:
        raise InvariantBroken(f"cluster map, epoch {view.map.epoch}: {'; '.join(wrong)}")


def check_step(old: ClusterMap, new: ClusterMap) -> None:
    """Raises InvariantBroken if `new` cannot follow `old`."""
    wrong = [
        f"{field} went from {getattr(old, field)} to {getattr(new, field)}"
        for field in ("next_collection", "next_node", "leader_term")
        if getattr(new, field) < getattr(old, field)
    ]
    if new.epoch != old.epoch + 1:
        wrong.append(f"epoch went from {old.epoch} to {new.epoch}")
    if new.cluster != old.cluster:
        wrong.append(f"cluster went from {old.cluster} to {new.cluster}")
    for id_ in new.collections.keys() & old.collections.keys():
        before, after = old.collections[id_], new.collections[id_]
        for field in ("schema_version", "next_vector", "next_index"):
            if getattr(after, field) < getattr(before, field):
                wrong.append(f"collection {id_}: {field} fell to {getattr(after, field)}")
        if before != after and before.schema_version == after.schema_version:
            wrong.append(f"collection {id_} changed without a new schema version")
    if wrong:
        raise InvariantBroken(f"cluster map, epoch {new.epoch}: {'; '.join(wrong)}")


def _map_mistakes(cluster: ClusterMap) -> Iterator[str]:
    names = Counter(c.name for c in cluster.collections.values())
    yield from (f"{n} collections are named {name!r}" for name, n in names.items() if n > 1)
    yield from (f"alias {alias!r} is a collection's name" for alias in cluster.aliases if alias in names)
    for alias, id_ in cluster.aliases.items():
        if id_ not in cluster.collections:
            yield f"alias {alias!r} points to collection {id_}, which is not there"
    for node_id, node in cluster.nodes.items():
        if node.id != node_id or not 0 < node.number < cluster.next_node:
            yield f"node {node_id} has id {node.id} and number {node.number}"
    if len({node.number for node in cluster.nodes.values()}) != len(cluster.nodes):
        yield "two nodes have one number"
    for id_, c in cluster.collections.items():
        yield from (f"collection {id_}: {mistake}" for mistake in _collection_mistakes(id_, c))
        if id_ >= cluster.next_collection:
            yield f"collection {id_} is not below the next id, {cluster.next_collection}"


def _collection_mistakes(id_: CollectionId, c: Collection) -> Iterator[str]:
    if c.id != id_:
        yield f"is kept under another id than its own, {c.id}"
    if c.vectors.keys() != c.params.vectors.keys():
        yield f"vectors {sorted(c.params.vectors)} have numbers for {sorted(c.vectors)}"
    for what, numbers, bound in (
        ("vector", list(c.vectors.values()), c.next_vector),
        ("index", [index.number for index in c.indexes.values()], c.next_index),
    ):
        if len(set(numbers)) != len(numbers) or not all(0 < n < bound for n in numbers):
            yield f"{what} numbers {sorted(numbers)} must differ and be in 1..{bound - 1}"


def _shards_mistakes(shards: Shards, cluster: ClusterMap) -> Iterator[str]:
    expected = 0
    for shard in sorted(shards.shards, key=lambda s: s.first_hash):
        if shard.first_hash != expected or shard.last_hash < shard.first_hash:
            yield f"shard {shard.number} begins at hash {shard.first_hash}, expected {expected}"
        expected = shard.last_hash + 1
        yield from (f"shard {shard.number}: {mistake}" for mistake in _shard_mistakes(shard, cluster))
    if expected != HASHES:
        yield f"the last hash range ends before {expected}"
    if len({s.number for s in shards.shards}) != len(shards.shards):
        yield "two shards have one number"


def _shard_mistakes(shard: Shard, cluster: ClusterMap) -> Iterator[str]:
    if shard.term < 1 or shard.primary not in shard.in_sync:
        yield f"term {shard.term}, primary {shard.primary}, in sync {shard.in_sync}"
    if set(shard.in_sync) & set(shard.learners):
        yield "a replica is both in sync and a learner"
    holders = [*shard.in_sync, *shard.learners]
    if shard.replicas.keys() != set(holders) or len(set(holders)) != len(holders):
        yield f"incarnations of {sorted(shard.replicas)} for replicas on {holders}"
    if strangers := [node for node in holders if node not in cluster.nodes]:
        yield f"replicas on unknown nodes {strangers}"
    if shard.pending is not None and shard.pending.term <= shard.term:
        yield f"pending term {shard.pending.term} is not above {shard.term}"


_json_encoder = msgspec.json.Encoder()


def to_json(value: ClusterMap | ClusterView | Shards) -> bytes:
    """As the keys hold it: readable by people, too, for `recover` on a bad day."""
    return _json_encoder.encode(value)
