"""Id keys in bulk: from rows of ids.bin to bytes, and to numbers that can be compared at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.hashing import KEY_BYTES

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


def split(keys: U8) -> list[bytes]:
    """(n, 17) → the keys as bytes."""
    raw = keys.tobytes()
    return [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]


def tags(keys: U8) -> U64:
    """A number for each key (n, 17) by which different keys differ almost always."""
    halves = np.ascontiguousarray(keys[:, 1:]).view(np.uint64).reshape(-1, 2)
    mixed: U64 = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1]
    return mixed
