"""Point ids as keys, and keys as shards: id → 17 bytes → 64-bit hash → hash range.

The hash decides where every point lives, for ever: its test vectors must never change.
"""

from __future__ import annotations

import re
import uuid
from typing import NewType

from core.errors import BadRequest

PointId = int | str
IdKey = NewType("IdKey", bytes)
"""17 bytes: kind (0 number, 1 UUID), then 16 bytes big-endian. Byte order is the API's order."""

KEY_BYTES = 17
_MASK = (1 << 64) - 1
_HYPHENATED = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = re.compile(rf"[0-9a-fA-F]{{32}}|(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}")


def splitmix64(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) over one 64-bit step from `x`."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def id_key(point_id: PointId) -> IdKey:
    """The key of a number in 0..2^64-1, or of a UUID in any of its spellings. Raises BadRequest."""
    if isinstance(point_id, int):
        if not 0 <= point_id <= _MASK:
            raise BadRequest(f"point id {str(point_id)[:40]} is not in 0..2^64-1")
        return IdKey(b"\x00" + point_id.to_bytes(16, "big"))
    # uuid.UUID also takes hyphens and braces anywhere, and digits of other scripts.
    if _UUID.fullmatch(point_id) is None:
        raise BadRequest(
            f"value {point_id[:64]!r} is not a valid point ID, "
            "valid values are either an unsigned integer or a UUID"
        )
    return IdKey(b"\x01" + bytes.fromhex(point_id.removeprefix("urn:uuid:").strip("{}").replace("-", "")))


def point_id(key: bytes) -> PointId:
    """The id as the API answers it: a number, or a lower-case UUID with hyphens."""
    if key[0] == 0:
        return int.from_bytes(key[1:], "big")
    return str(uuid.UUID(bytes=bytes(key[1:])))


def hash64(key: bytes) -> int:
    """Uniform 64-bit hash of a key: splitmix64(n), or splitmix64(high ^ splitmix64(low))."""
    low = int.from_bytes(key[9:], "big")
    if key[0] == 0:
        return splitmix64(low)
    return splitmix64(int.from_bytes(key[1:9], "big") ^ splitmix64(low))


def shard_of(key: bytes, shard_count: int) -> int:
    """Which of n equal hash ranges holds the key: shard i owns [⌈i·2^64/n⌉, ⌈(i+1)·2^64/n⌉)."""
    return (hash64(key) * shard_count) >> 64


def shard_range(shard: int, shard_count: int) -> tuple[int, int]:
    """The half-open hash range of a shard."""
    return -((-shard << 64) // shard_count), -((-(shard + 1) << 64) // shard_count)
