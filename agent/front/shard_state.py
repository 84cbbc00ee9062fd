"""What a shard says of itself when its collection is described, here or on another node."""

from __future__ import annotations

import msgspec


class ShardState(msgspec.Struct, frozen=True):
    """Counts of slots and points; `index_points` by the payload index's number."""

    number: int
    points: int
    indexed: int
    segments: int
    index_points: dict[int, int]
    building: bool
    damaged: bool
    slots: int
    tail: int
