"""Requests that move shards and bring snapshots back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from core.api.checks import at_least, refuse
from core.errors import BadRequest, NotSupported

Method = Literal["stream_records", "snapshot", "wal_delta", "resharding_stream_records"]
Priority = Literal["no_sync", "snapshot", "replica"]


class TransferBody(Struct, frozen=True):
    """move_shard, replicate_shard, abort_transfer and restart_transfer."""

    shard_id: int
    from_peer_id: int
    to_peer_id: int
    method: Method | None = None
    to_shard_id: int | None = None


class ReplicaBody(Struct, frozen=True):
    shard_id: int
    peer_id: int


class ReshardBody(Struct, frozen=True):
    direction: Literal["up", "down"]
    peer_id: int | None = None
    shard_key: Any = None


class ClusterOperation(Struct, frozen=True):
    """Exactly one is set."""

    move_shard: TransferBody | None = None
    replicate_shard: TransferBody | None = None
    abort_transfer: TransferBody | None = None
    drop_replica: ReplicaBody | None = None
    restart_transfer: TransferBody | None = None
    start_resharding: ReshardBody | None = None
    abort_resharding: dict[str, Any] | None = None
    create_sharding_key: Any = None
    drop_sharding_key: Any = None
    replicate_points: Any = None


@dataclass(frozen=True, slots=True)
class Transfer:
    kind: Literal["move_shard", "replicate_shard", "abort_transfer", "restart_transfer"]
    shard: int
    from_peer: int
    to_peer: int
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class DropReplica:
    shard: int
    peer: int


@dataclass(frozen=True, slots=True)
class StartResharding:
    direction: Literal["up", "down"]
    peer: int | None = None


@dataclass(frozen=True, slots=True)
class AbortResharding:
    pass


ClusterChange = Transfer | DropReplica | StartResharding | AbortResharding
_REFUSED = ("create_sharding_key", "drop_sharding_key", "replicate_points")
_KINDS = tuple(kind for kind in ClusterOperation.__struct_fields__ if kind not in _REFUSED)
_TRANSFERS: tuple[Literal["move_shard", "replicate_shard", "abort_transfer", "restart_transfer"], ...] = (
    "move_shard", "replicate_shard", "abort_transfer", "restart_transfer",
)  # fmt: skip


def parse_cluster_operation(body: ClusterOperation) -> ClusterChange:
    for kind in _REFUSED:
        refuse(kind, getattr(body, kind), "custom sharding is")
    given = [kind for kind in _KINDS if getattr(body, kind) is not None]
    if len(given) != 1:
        raise BadRequest(
            f"Wrong input: expected one of {', '.join(_KINDS)}, got {' and '.join(given) or 'none'}"
        )
    for transfer in _TRANSFERS:
        one: TransferBody | None = getattr(body, transfer)
        if one is not None:
            _check_numbers(transfer, one)
            return Transfer(transfer, one.shard_id, one.from_peer_id, one.to_peer_id, one.method)
    if body.drop_replica is not None:
        _check_numbers("drop_replica", body.drop_replica)
        return DropReplica(body.drop_replica.shard_id, body.drop_replica.peer_id)
    if body.start_resharding is not None:
        refuse("start_resharding.shard_key", body.start_resharding.shard_key, "custom sharding is")
        return StartResharding(body.start_resharding.direction, body.start_resharding.peer_id)
    return AbortResharding()


def _check_numbers(where: str, body: TransferBody | ReplicaBody) -> None:
    for field in body.__struct_fields__:
        value = getattr(body, field)
        if isinstance(value, int):
            at_least(f"{where}.{field}", value, 0)


class RecoverSnapshot(Struct, frozen=True):
    """`priority` chooses between the snapshot and what the node has; `api_key` is for a remote location."""

    location: str
    priority: Priority | None = None
    checksum: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Recover:
    """`file` is a snapshot of this node."""

    file: str
    checksum: str | None = None
    priority: Priority = "replica"


def parse_recover(body: RecoverSnapshot) -> Recover:
    """Only a snapshot that this node has: fetching what a client names would let it reach our network."""
    location = body.location.removeprefix("file://")
    name = location.rpartition("/")[2]
    if "://" in location or not name or name in (".", ".."):
        raise NotSupported(
            "location: only snapshots that this node lists; upload others with POST …/snapshots/upload"
        )
    return Recover(name, body.checksum, body.priority or "replica")
