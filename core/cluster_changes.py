"""What can be done to the cluster map: each change takes a map and gives the next, or says why not.

A change that changes nothing gives back the very map that it was given. `stamped` then makes the next epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from core.api.checks import check_name
from core.api.collections import (
    AliasChange,
    CreateAlias,
    DeleteAlias,
    RenameAlias,
    UpdateCollection,
    parse_update,
)
from core.api.config import CollectionParams, VectorParams
from core.api.indexes import FieldIndex
from core.api.strict import check_index_count, strict_mode
from core.cluster import (
    EVENTS_KEPT,
    ClusterMap,
    Collection,
    CollectionId,
    Event,
    IndexSchema,
    Node,
    NodeId,
    PayloadIndex,
    Shard,
    Shards,
    find,
    named,
)
from core.errors import BadRequest, Conflict, NotFound
from core.hashing import shard_range


def stamped(old: ClusterMap, new: ClusterMap, event: Event | None) -> ClusterMap:
    """`new` as the epoch after `old`, with what happened in it."""
    epoch = old.epoch + 1
    events = old.events if event is None else (*old.events, replace(event, epoch=epoch))[-EVENTS_KEPT:]
    return replace(new, epoch=epoch, events=events)


def add_node(cluster: ClusterMap, node: Node) -> ClusterMap:
    """The node under the next number; the number that it came with is ignored."""
    if node.id in cluster.nodes:
        raise Conflict(f"node {node.id} already exists")
    numbered = replace(node, number=cluster.next_node)
    return replace(cluster, nodes={**cluster.nodes, node.id: numbered}, next_node=cluster.next_node + 1)


# -- collections --------------------------------------------------------------------------------------------


def check_new_name(cluster: ClusterMap, name: str) -> None:
    """Whether a collection could have that name now. Raises Unprocessable, Conflict, BadRequest."""
    check_name("collection", name)
    if find(cluster, name, aliases=False) is not None:
        raise Conflict(f"Wrong input: Collection `{name}` already exists!")
    if name in cluster.aliases:
        raise BadRequest(
            f"Wrong input: Can't create collection with name {name}. Alias with the same name already exists"
        )


def reserve_collection(cluster: ClusterMap) -> tuple[ClusterMap, CollectionId]:
    """Draws an id. It is never drawn again, whatever becomes of the collection."""
    drawn = CollectionId(cluster.next_collection)
    return replace(cluster, next_collection=cluster.next_collection + 1), drawn


def new_collection(id_: CollectionId, name: str, params: CollectionParams, *, created_us: int) -> Collection:
    vectors = {vector: number for number, vector in enumerate(params.vectors, 1)}
    return Collection(
        id=id_, name=name, params=params, vectors=vectors, next_vector=len(vectors) + 1, created_us=created_us
    )


def add_collection(cluster: ClusterMap, collection: Collection) -> ClusterMap:
    check_new_name(cluster, collection.name)
    return replace(cluster, collections={**cluster.collections, collection.id: collection})


def delete_collection(cluster: ClusterMap, name: str) -> ClusterMap:
    """Without the collection and its aliases. An alias deletes nothing: too much hangs on which it means."""
    collection = find(cluster, name, aliases=False)
    if collection is None:
        return cluster
    return replace(
        cluster,
        collections={id_: c for id_, c in cluster.collections.items() if id_ != collection.id},
        aliases={alias: id_ for alias, id_ in cluster.aliases.items() if id_ != collection.id},
    )


def update_collection(cluster: ClusterMap, name: str, body: UpdateCollection) -> ClusterMap:
    collection = named(cluster, name)
    return _changed(cluster, collection, params=parse_update(body, collection.params))


def replace_collection(cluster: ClusterMap, collection: Collection) -> ClusterMap:
    """Another collection under the name of one that is there: a recovered snapshot takes over.

    The old one leaves the map with its shards; its aliases stay with the name.
    """
    old = find(cluster, collection.name, aliases=False)
    if old is None:
        return add_collection(cluster, collection)
    kept = {id_: c for id_, c in cluster.collections.items() if id_ != old.id}
    aliases = {a: (collection.id if id_ == old.id else id_) for a, id_ in cluster.aliases.items()}
    return replace(cluster, collections={**kept, collection.id: collection}, aliases=aliases)


def _changed(cluster: ClusterMap, old: Collection, **fields: Any) -> ClusterMap:
    """The map with a changed collection, whose schema version grows if anything differs."""
    new = replace(old, **fields)
    if new == old:
        return cluster
    new = replace(new, schema_version=old.schema_version + 1)
    return replace(cluster, collections={**cluster.collections, old.id: new})


# -- aliases ------------------------------------------------------------------------------------------------


def set_aliases(cluster: ClusterMap, actions: Iterable[AliasChange]) -> ClusterMap:
    """All actions, in order, or none of them."""
    changed = cluster
    for action in actions:
        match action:
            case CreateAlias(alias, collection):
                target = named(changed, collection).id
                _check_alias(changed, alias)
                changed = replace(changed, aliases={**changed.aliases, alias: target})
            case DeleteAlias(alias):
                changed = replace(changed, aliases=_without(changed.aliases, alias))
            case RenameAlias(old, new):
                if old not in changed.aliases:
                    raise NotFound(f"Not found: Alias {old} does not exist!")
                _check_alias(changed, new)
                moved = {**_without(changed.aliases, old), new: changed.aliases[old]}
                changed = replace(changed, aliases=moved)
    return cluster if changed.aliases == cluster.aliases else changed


def _check_alias(cluster: ClusterMap, alias: str) -> None:
    check_name("alias", alias)
    if find(cluster, alias, aliases=False) is not None:
        raise Conflict(f"Wrong input: Collection `{alias}` already exists!")


def _without(aliases: Mapping[str, CollectionId], alias: str) -> dict[str, CollectionId]:
    return {name: id_ for name, id_ in aliases.items() if name != alias}


# -- payload indexes and vectors ----------------------------------------------------------------------------


def put_index(cluster: ClusterMap, name: str, index: FieldIndex) -> ClusterMap:
    """Another type or options for a field that has an index make a new index, under a new number."""
    collection = named(cluster, name)
    schema = IndexSchema(index.type, index.params)
    there = collection.indexes.get(index.field)
    if there is not None and there.schema == schema:
        return cluster
    indexes = {**collection.indexes, index.field: PayloadIndex(collection.next_index, schema)}
    if there is None:
        check_index_count(strict_mode(collection.params), len(indexes))
    return _changed(cluster, collection, indexes=indexes, next_index=collection.next_index + 1)


def delete_index(cluster: ClusterMap, name: str, path: str) -> ClusterMap:
    collection = named(cluster, name)
    return _changed(
        cluster, collection, indexes={p: index for p, index in collection.indexes.items() if p != path}
    )


def put_vector(cluster: ClusterMap, name: str, vector: str, params: VectorParams) -> ClusterMap:
    collection = named(cluster, name)
    there = collection.params.vectors.get(vector)
    if there == params:
        return cluster
    if there is not None:
        raise Conflict(
            f"Wrong input: vector {vector!r} already exists with other parameters: delete it first"
        )
    if collection.params.unnamed and vector:
        raise BadRequest(
            f"Wrong input: vector {vector!r}: this collection has one unnamed vector; "
            "named ones can be added to collections that were created with names"
        )
    return _changed(
        cluster,
        collection,
        params=replace(collection.params, vectors={**collection.params.vectors, vector: params}),
        vectors={**collection.vectors, vector: collection.next_vector},
        next_vector=collection.next_vector + 1,
    )


def delete_vector(cluster: ClusterMap, name: str, vector: str) -> ClusterMap:
    collection = named(cluster, name)
    if vector not in collection.vectors:
        raise BadRequest(f"Wrong input: Not existing vector name error: {vector[:80]}")
    left = {v: p for v, p in collection.params.vectors.items() if v != vector}
    return _changed(
        cluster,
        collection,
        params=replace(collection.params, vectors=left, unnamed=collection.params.unnamed and bool(vector)),
        vectors={v: number for v, number in collection.vectors.items() if v != vector},
    )


# -- shards -------------------------------------------------------------------------------------------------


def first_shards(
    collection: CollectionId,
    places: Sequence[Sequence[NodeId]],
    replicas: Mapping[tuple[int, NodeId], int],
    histories: Sequence[int],
) -> Shards:
    """Shards of a new collection, active at term 1: shard i on places[i], its first node the primary.

    `replicas`: (shard, node) → the incarnation that the node answered when it made the empty log.
    """
    shards = []
    for number, nodes in enumerate(places):
        first, end = shard_range(number, len(places))
        shards.append(
            Shard(
                number=number,
                first_hash=first,
                last_hash=end - 1,
                primary=nodes[0],
                in_sync=tuple(nodes),
                replicas={node: replicas[number, node] for node in nodes},
                history=histories[number],
            )
        )
    return Shards(collection=collection, shards=tuple(shards))
