"""A collection in the map, as its shards must know it: numbers, sizes, graphs, columns."""

from __future__ import annotations

from agent.store.manifest import ColumnParams, ShardSchema, VectorParams
from core.api.config import Distance, graph_params
from core.cluster import Collection


def shard_schema(collection: Collection) -> ShardSchema:
    """The schema of every shard of the collection."""
    return ShardSchema(
        version=collection.schema_version,
        vectors={v: _vector(collection, name) for name, v in collection.vectors.items()},
        columns={
            index.number: ColumnParams(path, index.schema.type, dict(index.schema.params or {}))
            for path, index in collection.indexes.items()
        },
        names=dict(collection.vectors),
    )


def _vector(collection: Collection, name: str) -> VectorParams:
    params, graph = collection.params.vectors[name], graph_params(collection.params, name)
    # Graphs know no Manhattan distance: it is searched exactly, as is what asks for m = 0.
    exact = params.distance is Distance.MANHATTAN or graph.m == 0
    return VectorParams(
        dim=params.size,
        distance=params.distance,
        graph="none" if exact else graph.dtype,
        m=graph.m,
        ef_construct=graph.ef_construct,
    )
