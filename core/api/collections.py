"""Requests about collections: create, patch, aliases, payload indexes, named vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from core.api.checks import (
    DEFAULT_LIMITS,
    Limits,
    at_least,
    at_most,
    check_name,
    invalid,
    refuse,
    within,
)
from core.api.config import (
    CollectionParams,
    Datatype,
    Distance,
    Hnsw,
    Memory,
    Optimizers,
    PayloadStorage,
    Quantization,
    StrictMode,
    VectorParams,
    Wal,
    merged,
    merged_map,
)
from core.api.decode import convert
from core.errors import BadRequest, NotSupported
from core.payload import DEPTH_MAX, depth_of


class CreateCollection(Struct, frozen=True):
    vectors: dict[str, Any] | None = None
    shard_number: int | None = None
    sharding_method: Literal["auto", "custom"] | None = None
    replication_factor: int | None = None
    write_consistency_factor: int | None = None
    on_disk_payload: bool | None = None
    payload: PayloadStorage | None = None
    hnsw_config: Hnsw | None = None
    wal_config: Wal | None = None
    optimizers_config: Optimizers | None = None
    quantization_config: Quantization | None = None
    sparse_vectors: dict[str, Any] | None = None
    strict_mode_config: StrictMode | None = None
    metadata: dict[str, Any] | None = None
    init_from: Any = None


class VectorBody(Struct, frozen=True):
    """One vector of a new collection."""

    size: int
    distance: Distance
    hnsw_config: Hnsw | None = None
    quantization_config: Quantization | None = None
    on_disk: bool | None = None
    memory: Memory | None = None
    datatype: Datatype | None = None
    multivector_config: Any = None


class VectorDiff(Struct, frozen=True):
    hnsw_config: Hnsw | None = None
    quantization_config: Quantization | Literal["Disabled"] | None = None
    on_disk: bool | None = None
    memory: Memory | None = None


class ParamsDiff(Struct, frozen=True):
    replication_factor: int | None = None
    write_consistency_factor: int | None = None
    read_fan_out_factor: int | None = None
    read_fan_out_delay_ms: int | None = None
    on_disk_payload: bool | None = None
    payload: PayloadStorage | None = None


class UpdateCollection(Struct, frozen=True):
    vectors: dict[str, VectorDiff] | None = None
    optimizers_config: Optimizers | None = None
    params: ParamsDiff | None = None
    hnsw_config: Hnsw | None = None
    quantization_config: Quantization | Literal["Disabled"] | None = None
    sparse_vectors: dict[str, Any] | None = None
    strict_mode_config: StrictMode | None = None
    metadata: dict[str, Any] | None = None


METADATA_BYTES_MAX = 1 << 20
"""As JSON. Metadata is in the cluster's map, which every change of it writes anew."""


def parse_create(body: CreateCollection, limits: Limits = DEFAULT_LIMITS) -> CollectionParams:
    """The configuration of a new collection. Raises BadRequest, NotSupported, Unprocessable."""
    refuse("init_from", body.init_from, "copying another collection is")
    if body.sharding_method == "custom":
        raise NotSupported("sharding_method: custom sharding is not supported, only auto")
    if body.sparse_vectors:
        raise NotSupported("sparse_vectors: sparse vectors are not supported")
    for field in ("shard_number", "replication_factor", "write_consistency_factor"):
        at_least(field, getattr(body, field), 1)
    at_most("shard_number", body.shard_number, limits.shards_max)
    _check_options(body)
    vectors, unnamed = _parse_vectors(body.vectors or {}, limits)
    config = CollectionParams(
        vectors=vectors,
        unnamed=unnamed,
        shard_number=body.shard_number or 1,
        replication_factor=body.replication_factor or 1,
        write_consistency_factor=body.write_consistency_factor or 1,
        on_disk_payload=True if body.on_disk_payload is None else body.on_disk_payload,
        sharding_method=body.sharding_method,
        payload=body.payload,
        hnsw_config=body.hnsw_config or Hnsw(),
        optimizers_config=body.optimizers_config or Optimizers(),
        wal_config=body.wal_config or Wal(),
        quantization_config=body.quantization_config,
        strict_mode_config=body.strict_mode_config,
        metadata=_metadata(None, body.metadata),
    )
    _check_graph_dtype(config)
    return config


def parse_update(body: UpdateCollection, config: CollectionParams) -> CollectionParams:
    """The configuration after a PATCH: what the body gives is merged into what there is."""
    if body.sparse_vectors:
        raise NotSupported("sparse_vectors: sparse vectors are not supported")
    _check_options(body)
    params = body.params or ParamsDiff()
    at_least("params.replication_factor", params.replication_factor, 1)
    at_least("params.write_consistency_factor", params.write_consistency_factor, 1)
    at_least("params.read_fan_out_factor", params.read_fan_out_factor, 0)
    at_least("params.read_fan_out_delay_ms", params.read_fan_out_delay_ms, 0)
    strict = config.strict_mode_config
    if body.strict_mode_config is not None:
        strict = merged(strict or StrictMode(), body.strict_mode_config)
    changed = msgspec.structs.replace(
        config,
        vectors=_patched_vectors(config.vectors, body.vectors or {}),
        optimizers_config=merged(config.optimizers_config, body.optimizers_config),
        hnsw_config=merged(config.hnsw_config, body.hnsw_config),
        quantization_config=_patched(config.quantization_config, body.quantization_config),
        strict_mode_config=strict,
        metadata=_metadata(config.metadata, body.metadata),
        **{name: value for name in params.__struct_fields__ if (value := getattr(params, name)) is not None},
    )
    _check_graph_dtype(changed)
    return changed


def _metadata(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> dict[str, Any] | None:
    found = merged_map(old, new)
    if new:
        if depth_of(found) > DEPTH_MAX:
            raise BadRequest(f"metadata: nested over {DEPTH_MAX} levels deep")
        size = len(msgspec.json.encode(found))
        if size > METADATA_BYTES_MAX:
            raise BadRequest(f"metadata: {size} bytes as JSON, at most {METADATA_BYTES_MAX} are kept")
    return found


def _parse_vectors(given: dict[str, Any], limits: Limits) -> tuple[dict[str, VectorParams], bool]:
    """The vectors by name, and whether the one vector was given without a name."""
    unnamed = "size" in given and not isinstance(given["size"], dict)
    named = {"": given} if unnamed else given
    at_most("vectors", len(named), limits.vectors_max)
    vectors: dict[str, VectorParams] = {}
    for name, value in named.items():
        where = "vectors" if unnamed else f"vectors.{name[:60]}"
        if len(name) > 255:
            raise invalid("vectors", "a vector's name is at most 255 characters long")
        vectors[name] = vector_params(convert(VectorBody, value, where), where, limits)
    return vectors, unnamed


def vector_params(body: VectorBody, where: str, limits: Limits = DEFAULT_LIMITS) -> VectorParams:
    refuse(f"{where}.multivector_config", body.multivector_config, "multivectors are")
    within(f"{where}.size", body.size, 1, limits.vector_size_max)
    check_hnsw(f"{where}.hnsw_config", body.hnsw_config)
    if body.hnsw_config is not None and body.hnsw_config.graph_dtype is not None:
        raise BadRequest(
            f"{where}.hnsw_config.graph_dtype: is set in the collection's hnsw_config, for all vectors"
        )
    check_quantization(f"{where}.quantization_config", body.quantization_config)
    return VectorParams(
        size=body.size,
        distance=body.distance,
        hnsw_config=body.hnsw_config,
        quantization_config=body.quantization_config,
        on_disk=body.on_disk,
        memory=body.memory,
        datatype=body.datatype,
    )


def _patched_vectors(
    old: Mapping[str, VectorParams], diffs: Mapping[str, VectorDiff]
) -> dict[str, VectorParams]:
    vectors = dict(old)
    for name, diff in diffs.items():
        if name not in vectors:
            raise BadRequest(f"Wrong input: Not existing vector name error: {name[:80]}")
        where = f"vectors.{name[:60]}"
        check_hnsw(f"{where}.hnsw_config", diff.hnsw_config)
        check_quantization(f"{where}.quantization_config", diff.quantization_config)
        params = vectors[name]
        hnsw = params.hnsw_config
        if diff.hnsw_config is not None:
            hnsw = merged(hnsw or Hnsw(), diff.hnsw_config)
        vectors[name] = msgspec.structs.replace(
            params,
            hnsw_config=hnsw,
            quantization_config=_patched(params.quantization_config, diff.quantization_config),
            on_disk=params.on_disk if diff.on_disk is None else diff.on_disk,
            memory=params.memory if diff.memory is None else diff.memory,
        )
    return vectors


def _patched(old: Quantization | None, new: Quantization | str | None) -> Quantization | None:
    if new is None:
        return old
    return new if isinstance(new, Quantization) else None


def _check_graph_dtype(config: CollectionParams) -> None:
    if config.hnsw_config.graph_dtype != "i8":
        return
    for name, params in config.vectors.items():
        if params.distance is not Distance.COSINE:
            raise BadRequest(
                f"hnsw_config.graph_dtype: i8 is for Cosine only, vector {name!r} is {params.distance.value}"
            )


def _check_options(body: CreateCollection | UpdateCollection) -> None:
    check_hnsw("hnsw_config", body.hnsw_config)
    check_quantization("quantization_config", body.quantization_config)
    check_optimizers("optimizers_config", body.optimizers_config)
    check_strict_mode("strict_mode_config", body.strict_mode_config)
    if isinstance(body, CreateCollection) and body.wal_config is not None:
        at_least("wal_config.wal_capacity_mb", body.wal_config.wal_capacity_mb, 1)
        at_least("wal_config.wal_segments_ahead", body.wal_config.wal_segments_ahead, 0)
        at_least("wal_config.wal_retain_closed", body.wal_config.wal_retain_closed, 0)


def check_hnsw(where: str, hnsw: Hnsw | None) -> None:
    if hnsw is None:
        return
    for field, lowest in (
        ("m", 0), ("ef_construct", 4), ("full_scan_threshold", 10), ("max_indexing_threads", 0),
        ("payload_m", 0),
    ):  # fmt: skip
        at_least(f"{where}.{field}", getattr(hnsw, field), lowest)
    # A graph with more links or candidates than this would take the machine's memory, not find more.
    at_most(f"{where}.m", hnsw.m, 512)
    at_most(f"{where}.ef_construct", hnsw.ef_construct, 10_000)


def check_quantization(where: str, given: Quantization | str | None) -> None:
    if given is None or isinstance(given, str):
        return
    kinds = [kind for kind in given.__struct_fields__ if getattr(given, kind) is not None]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise BadRequest(f"Wrong input: {where}: expected one of scalar, product, binary, turbo, got {found}")
    if given.scalar is not None:
        within(f"{where}.scalar.quantile", given.scalar.quantile, 0.5, 1.0)


def check_optimizers(where: str, given: Optimizers | None) -> None:
    if given is None:
        return
    within(f"{where}.deleted_threshold", given.deleted_threshold, 0.0, 1.0)
    for field, lowest in (
        ("vacuum_min_vector_number", 100), ("default_segment_number", 0), ("max_segment_size", 1),
        ("memmap_threshold", 0), ("indexing_threshold", 0), ("flush_interval_sec", 0),
    ):  # fmt: skip
        at_least(f"{where}.{field}", getattr(given, field), lowest)
    if isinstance(given.max_optimization_threads, int):
        at_least(f"{where}.max_optimization_threads", given.max_optimization_threads, 0)


_STRICT_FROM_ONE = (
    "max_query_limit",
    "max_timeout",
    "read_rate_limit",
    "write_rate_limit",
    "max_points_count",
)


def check_strict_mode(where: str, given: StrictMode | None) -> None:
    if given is None:
        return
    for field in given.__struct_fields__:
        value = getattr(given, field)
        if isinstance(value, int) and not isinstance(value, bool):
            at_least(f"{where}.{field}", value, 1 if field in _STRICT_FROM_ONE else 0)
    within(f"{where}.max_resident_memory_percent", given.max_resident_memory_percent, 1, 100)


# -- aliases ------------------------------------------------------------------------------------------------


class CreateAliasBody(Struct, frozen=True):
    collection_name: str
    alias_name: str


class DeleteAliasBody(Struct, frozen=True):
    alias_name: str


class RenameAliasBody(Struct, frozen=True):
    old_alias_name: str
    new_alias_name: str


class AliasAction(Struct, frozen=True):
    create_alias: CreateAliasBody | None = None
    delete_alias: DeleteAliasBody | None = None
    rename_alias: RenameAliasBody | None = None


class ChangeAliases(Struct, frozen=True):
    actions: list[AliasAction]


@dataclass(frozen=True, slots=True)
class CreateAlias:
    alias: str
    collection: str


@dataclass(frozen=True, slots=True)
class DeleteAlias:
    alias: str


@dataclass(frozen=True, slots=True)
class RenameAlias:
    old: str
    new: str


AliasChange = CreateAlias | DeleteAlias | RenameAlias


def parse_aliases(body: ChangeAliases, limits: Limits = DEFAULT_LIMITS) -> tuple[AliasChange, ...]:
    at_most("actions", len(body.actions), limits.batch_max)
    return tuple(_parse_alias(f"actions[{i}]", action) for i, action in enumerate(body.actions))


def _parse_alias(where: str, action: AliasAction) -> AliasChange:
    create, delete, rename = action.create_alias, action.delete_alias, action.rename_alias
    if (create is not None) + (delete is not None) + (rename is not None) != 1:
        raise BadRequest(f"Wrong input: {where}: expected one of create_alias, delete_alias, rename_alias")
    if create is not None:
        return CreateAlias(check_name("alias", create.alias_name), create.collection_name)
    if delete is not None:
        return DeleteAlias(delete.alias_name)
    assert rename is not None
    return RenameAlias(rename.old_alias_name, check_name("alias", rename.new_alias_name))
