"""The shapes of the API's answers, as the OpenAPI document promises them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from core.api.config import (
    Hnsw,
    Memory,
    Optimizers,
    Quantization,
    StrictMode,
    Wal,
)
from core.hashing import PointId

Vector = list[float] | dict[str, list[float]]
OrderValue = int | float
State = Literal["Active", "Dead", "Partial", "Initializing", "Listener", "Recovery", "Resharding"]


class UpdateResult(Struct):
    status: Literal["acknowledged", "completed", "wait_timeout"]
    operation_id: int | None = None


class Record(Struct):
    id: PointId
    payload: dict[str, Any] | UnsetType | None = UNSET
    vector: Vector | UnsetType | None = UNSET
    order_value: OrderValue | UnsetType | None = UNSET


class ScoredPoint(Struct):
    id: PointId
    version: int
    score: float
    payload: dict[str, Any] | UnsetType | None = UNSET
    vector: Vector | UnsetType | None = UNSET
    order_value: OrderValue | UnsetType | None = UNSET


class QueryAnswer(Struct):
    points: list[ScoredPoint]


class Group(Struct):
    id: str | int
    hits: list[ScoredPoint]
    lookup: Record | UnsetType | None = UNSET


class GroupsAnswer(Struct):
    groups: list[Group]


class ScrollAnswer(Struct):
    points: list[Record]
    next_page_offset: PointId | None = None


class CountAnswer(Struct):
    count: int


class FacetHit(Struct):
    value: str | int | bool
    count: int


class FacetAnswer(Struct):
    hits: list[FacetHit]


class MatrixPair(Struct):
    a: PointId
    b: PointId
    score: float


class MatrixPairsAnswer(Struct):
    pairs: list[MatrixPair]


class MatrixOffsetsAnswer(Struct):
    offsets_row: list[int]
    offsets_col: list[int]
    scores: list[float]
    ids: list[PointId]


class CollectionName(Struct):
    name: str


class CollectionsAnswer(Struct):
    collections: list[CollectionName]


class ParamsAnswer(Struct):
    vectors: Any  # VectorParams, or one by name: the document says so
    shard_number: int = 1
    replication_factor: int = 1
    write_consistency_factor: int = 1
    on_disk_payload: bool = True
    sharding_method: Literal["auto"] | None = None
    memory: Memory | None = None


class ConfigAnswer(Struct):
    params: ParamsAnswer
    hnsw_config: Hnsw
    optimizer_config: Optimizers
    wal_config: Wal | None = None
    quantization_config: Quantization | None = None
    strict_mode_config: StrictMode | None = None
    metadata: dict[str, Any] | None = None


class IndexInfo(Struct):
    data_type: Literal["keyword", "integer", "float", "geo", "text", "bool", "datetime", "uuid"]
    points: int
    params: dict[str, Any] | None = None


class CollectionAnswer(Struct):
    status: Literal["green", "yellow", "grey", "red"]
    optimizer_status: Literal["ok"] | dict[str, str]
    segments_count: int
    config: ConfigAnswer
    payload_schema: dict[str, IndexInfo]
    points_count: int | None = None
    indexed_vectors_count: int | None = None
    warnings: list[dict[str, str]] = []


class ExistsAnswer(Struct):
    exists: bool


class AliasInfo(Struct):
    alias_name: str
    collection_name: str


class AliasesAnswer(Struct):
    aliases: list[AliasInfo]


class SnapshotInfo(Struct):
    name: str
    size: int
    creation_time: str | None = None
    checksum: str | None = None


class LocalShard(Struct):
    shard_id: int
    points_count: int
    state: State


class RemoteShard(Struct):
    shard_id: int
    peer_id: int
    state: State


class CollectionClusterAnswer(Struct):
    peer_id: int
    shard_count: int
    local_shards: list[LocalShard]
    remote_shards: list[RemoteShard]
    shard_transfers: list[dict[str, Any]]


class VersionAnswer(Struct):
    title: str
    version: str
    commit: str | None = None
