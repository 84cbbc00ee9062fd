"""Whether what a snapshot says of its collection is something that this cluster could have made."""

from __future__ import annotations

from agent.store.archive import SavedCollection
from core.api.checks import Limits, at_most
from core.api.collections import check_hnsw, check_optimizers, check_quantization, check_strict_mode
from core.api.config import CollectionParams, Distance
from core.api.indexes import CreateIndex, parse_index
from core.cluster import Collection
from core.errors import BadRequest

_NUMBER_MAX = 1 << 31


def check_saved(saved: SavedCollection, limits: Limits) -> None:
    """A table's hash proves that it is whole, not who wrote it. Raises BadRequest, Unprocessable."""
    collection, params = saved.collection, saved.collection.params
    at_most("snapshot: shards", saved.shard_count, limits.shards_max)
    numbers = [shard.number for shard in saved.shards]
    if len(set(numbers)) != len(numbers) or not all(0 <= n < saved.shard_count for n in numbers):
        raise _bad(f"it has shards {numbers[:10]} of {saved.shard_count}")
    if params.shard_number != saved.shard_count:
        raise _bad(f"it has {saved.shard_count} shards, its collection says {params.shard_number}")
    _check_params(params, limits)
    if collection.vectors.keys() != params.vectors.keys():
        raise _bad("its vectors and their numbers differ")
    _check_numbers("vector", list(collection.vectors.values()), collection.next_vector)
    _check_numbers("index", [i.number for i in collection.indexes.values()], collection.next_index)
    for path, index in collection.indexes.items():
        given = index.schema.params if index.schema.params is not None else index.schema.type
        found = parse_index(CreateIndex(path, given))
        if (found.field, found.type) != (path, index.schema.type):
            raise _bad(f"its index {path[:60]!r} is not one that can be made")


def _check_params(params: CollectionParams, limits: Limits) -> None:
    at_most("snapshot: vectors", len(params.vectors), limits.vectors_max)
    for name, vector in params.vectors.items():
        if not 1 <= vector.size <= limits.vector_size_max or len(name) > 255:
            raise _bad(f"its vector {name[:60]!r} has size {vector.size}")
        check_hnsw(f"snapshot: vectors.{name[:60]}.hnsw_config", vector.hnsw_config)
        check_quantization(f"snapshot: vectors.{name[:60]}", vector.quantization_config)
        if params.hnsw_config.graph_dtype == "i8" and vector.distance is not Distance.COSINE:
            raise _bad(f"its vector {name[:60]!r} has i8 graphs, which work for Cosine only")
    if params.unnamed and set(params.vectors) != {""}:
        raise _bad("its one unnamed vector is not the only one")
    check_hnsw("snapshot: hnsw_config", params.hnsw_config)
    check_quantization("snapshot: quantization_config", params.quantization_config)
    check_optimizers("snapshot: optimizers_config", params.optimizers_config)
    check_strict_mode("snapshot: strict_mode_config", params.strict_mode_config)


def _check_numbers(what: str, numbers: list[int], bound: int) -> None:
    if bound > _NUMBER_MAX or len(set(numbers)) != len(numbers) or not all(0 < n < bound for n in numbers):
        raise _bad(f"its {what} numbers are {numbers[:10]}, the next {bound}")


def check_compatible(saved: Collection, there: Collection) -> None:
    """Whether a snapshot can take the place of what is there, in whole or for a shard."""
    if saved.params.shard_number != there.params.shard_number:
        raise _bad(
            f"it has {saved.params.shard_number} shards, "
            f"collection `{there.name}` has {there.params.shard_number}"
        )
    ours = {name: (v.size, v.distance.value) for name, v in there.params.vectors.items()}
    theirs = {name: (v.size, v.distance.value) for name, v in saved.params.vectors.items()}
    if ours != theirs:
        raise _bad(f"its vectors are {theirs}, those of collection `{there.name}` {ours}")


def _bad(why: str) -> BadRequest:
    return BadRequest(f"Wrong input: the snapshot cannot be used: {why[:300]}")
