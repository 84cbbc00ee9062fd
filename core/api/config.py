"""What a collection is: its vectors, graphs and options, as the map keeps them and `GET` answers them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

Memory = Literal["cold", "cached", "pinned"]
Datatype = Literal["float32", "float16", "uint8", "turbo4"]
GraphDtype = Literal["i8", "bf16", "f16", "f32"]

M_DEFAULT = 16
EF_CONSTRUCT_DEFAULT = 100
S = TypeVar("S", bound=Struct)


class Distance(StrEnum):
    COSINE = "Cosine"
    DOT = "Dot"
    EUCLID = "Euclid"
    MANHATTAN = "Manhattan"

    @property
    def larger_is_better(self) -> bool:
        return self in (Distance.COSINE, Distance.DOT)


class Hnsw(Struct, frozen=True, omit_defaults=True):
    """Graph options; None: not said here, so the level above decides."""

    m: int | None = None
    ef_construct: int | None = None
    full_scan_threshold: int | None = None
    max_indexing_threads: int | None = None
    on_disk: bool | None = None
    memory: Memory | None = None
    payload_m: int | None = None
    inline_storage: bool | None = None
    # Shoal's own, for the whole collection: what the graphs hold. Searches rescore with f32 rows anyway.
    graph_dtype: GraphDtype | None = None


class Scalar(Struct, frozen=True, omit_defaults=True):
    type: Literal["int8"]
    quantile: float | None = None
    always_ram: bool | None = None
    memory: Memory | None = None


class Product(Struct, frozen=True, omit_defaults=True):
    compression: Literal["x4", "x8", "x16", "x32", "x64"]
    always_ram: bool | None = None
    memory: Memory | None = None


class Binary(Struct, frozen=True, omit_defaults=True):
    always_ram: bool | None = None
    memory: Memory | None = None
    encoding: Literal["one_bit", "two_bits", "one_and_half_bits"] | None = None
    query_encoding: Literal["default", "binary", "scalar4bits", "scalar8bits"] | None = None


class Turbo(Struct, frozen=True, omit_defaults=True):
    always_ram: bool | None = None
    memory: Memory | None = None
    bits: Literal["bits1", "bits1_5", "bits2", "bits4"] | None = None


class Quantization(Struct, frozen=True, omit_defaults=True):
    """Exactly one is set. Kept and echoed; only scalar int8 under cosine says anything to Shoal's graphs."""

    scalar: Scalar | None = None
    product: Product | None = None
    binary: Binary | None = None
    turbo: Turbo | None = None


class VectorParams(Struct, frozen=True, omit_defaults=True):
    size: int
    distance: Distance
    hnsw_config: Hnsw | None = None
    quantization_config: Quantization | None = None
    on_disk: bool | None = None
    memory: Memory | None = None
    datatype: Datatype | None = None


class Optimizers(Struct, frozen=True, omit_defaults=True):
    deleted_threshold: float | None = None
    vacuum_min_vector_number: int | None = None
    default_segment_number: int | None = None
    max_segment_size: int | None = None
    memmap_threshold: int | None = None
    indexing_threshold: int | None = None
    flush_interval_sec: int | None = None
    max_optimization_threads: int | Literal["auto"] | None = None
    prevent_unoptimized: bool | None = None


class Wal(Struct, frozen=True, omit_defaults=True):
    wal_capacity_mb: int | None = None
    wal_segments_ahead: int | None = None
    wal_retain_closed: int | None = None


class MaxVectors(Struct, frozen=True, omit_defaults=True):
    max_vectors: int | None = None


class MaxLength(Struct, frozen=True, omit_defaults=True):
    max_length: int | None = None


class StrictMode(Struct, frozen=True, omit_defaults=True):
    enabled: bool | None = None
    max_query_limit: int | None = None
    max_timeout: int | None = None
    unindexed_filtering_retrieve: bool | None = None
    unindexed_filtering_update: bool | None = None
    search_max_hnsw_ef: int | None = None
    search_allow_exact: bool | None = None
    search_max_oversampling: float | None = None
    upsert_max_batchsize: int | None = None
    search_max_batchsize: int | None = None
    max_collection_vector_size_bytes: int | None = None
    read_rate_limit: int | None = None  # a minute
    write_rate_limit: int | None = None  # a minute
    max_collection_payload_size_bytes: int | None = None
    max_points_count: int | None = None
    filter_max_conditions: int | None = None
    condition_max_size: int | None = None
    multivector_config: dict[str, MaxVectors] | None = None
    sparse_config: dict[str, MaxLength] | None = None
    max_payload_index_count: int | None = None
    max_resident_memory_percent: int | None = None


class PayloadStorage(Struct, frozen=True, omit_defaults=True):
    memory: Memory | None = None


class CollectionParams(Struct, frozen=True, omit_defaults=True):
    """A collection's whole configuration. The dicts inside are frozen, too: a change makes a new value."""

    vectors: dict[str, VectorParams] = {}
    unnamed: bool = False  # the one vector "" was given, and is echoed, without a name
    shard_number: int = 1
    replication_factor: int = 1
    write_consistency_factor: int = 1
    on_disk_payload: bool = True
    sharding_method: Literal["auto"] | None = None
    read_fan_out_factor: int | None = None
    read_fan_out_delay_ms: int | None = None
    payload: PayloadStorage | None = None
    hnsw_config: Hnsw = Hnsw()
    optimizers_config: Optimizers = Optimizers()
    wal_config: Wal = Wal()
    quantization_config: Quantization | None = None
    strict_mode_config: StrictMode | None = None
    metadata: dict[str, Any] | None = None


class GraphParams(Struct, frozen=True):
    """What the builder needs to know of one vector's graphs."""

    m: int
    ef_construct: int
    dtype: GraphDtype


def graph_params(config: CollectionParams, vector: str) -> GraphParams:
    params = config.vectors[vector]
    hnsw = merged(config.hnsw_config, params.hnsw_config)
    dtype = config.hnsw_config.graph_dtype
    if dtype is None:
        # i8 keeps a vector's direction alone, so it suits cosine only (storage.md).
        dtype = "i8" if params.distance is Distance.COSINE else "bf16"
    return GraphParams(
        m=M_DEFAULT if hnsw.m is None else hnsw.m,
        ef_construct=EF_CONSTRUCT_DEFAULT if hnsw.ef_construct is None else hnsw.ef_construct,
        dtype=dtype,
    )


def merged(old: S, new: S | None) -> S:
    """`old` with the fields that `new` gives; None in `new` says nothing."""
    if new is None:
        return old
    given = {name: value for name in new.__struct_fields__ if (value := getattr(new, name)) is not None}
    return msgspec.structs.replace(old, **given)


def merged_map(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Maps merge by key; a null removes its key."""
    if new is None:
        return None if old is None else dict(old)
    out = dict(old or {})
    for key, value in new.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = value
    return out


def config_answer(config: CollectionParams) -> dict[str, Any]:
    """`config` of GET /collections/{c}: what was given, with defaults for what clients insist on."""
    params: dict[str, Any] = {
        "vectors": config.vectors[""] if config.unnamed else config.vectors,
        "shard_number": config.shard_number,
        "replication_factor": config.replication_factor,
        "write_consistency_factor": config.write_consistency_factor,
        "on_disk_payload": config.on_disk_payload,
    }
    for name in ("sharding_method", "read_fan_out_factor", "read_fan_out_delay_ms", "payload"):
        if (value := getattr(config, name)) is not None:
            params[name] = value
    answer: dict[str, Any] = {
        "params": params,
        "hnsw_config": _filled(config.hnsw_config, _HNSW_ANSWER),
        "optimizer_config": _filled(config.optimizers_config, _OPTIMIZERS_ANSWER),
        "wal_config": _filled(config.wal_config, _WAL_ANSWER),
        "quantization_config": config.quantization_config,
    }
    if config.strict_mode_config is not None:
        answer["strict_mode_config"] = {"enabled": False, **_given(config.strict_mode_config)}
    if config.metadata is not None:
        answer["metadata"] = config.metadata
    return answer


_HNSW_ANSWER: dict[str, Any] = {
    "m": M_DEFAULT,
    "ef_construct": EF_CONSTRUCT_DEFAULT,
    "full_scan_threshold": 10_000,
    "max_indexing_threads": 0,
    "on_disk": False,
}
_OPTIMIZERS_ANSWER: dict[str, Any] = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1_000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10_000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}
_WAL_ANSWER: dict[str, Any] = {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}


def _given(struct: Struct) -> dict[str, Any]:
    return {name: value for name in struct.__struct_fields__ if (value := getattr(struct, name)) is not None}


def _filled(struct: Struct, defaults: dict[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **_given(struct)}
    if filled.get("max_optimization_threads") == "auto":
        filled["max_optimization_threads"] = None
    return filled
