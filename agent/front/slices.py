"""Which slice of all points many ids are in: core/siphash.py over arrays of keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def slices_of(keys: U8, total: int) -> I64:
    """keys (n, 17) → the slice of each; the same as core.siphash.slice_of."""
    out = np.zeros(len(keys), np.int64)
    numbers = keys[:, 0] == 0
    # A number is hashed as 8 bytes little endian, a UUID as its 16 bytes.
    low = np.ascontiguousarray(keys[numbers, 9:]).view(">u8").reshape(-1).astype(np.uint64)
    out[numbers] = _siphash([low], 8) % np.uint64(total)
    halves = np.ascontiguousarray(keys[~numbers, 1:]).view("<u8").reshape(-1, 2)
    out[~numbers] = _siphash([halves[:, 0].copy(), halves[:, 1].copy()], 16) % np.uint64(total)
    return out


def _siphash(words: list[U64], size: int) -> U64:
    v = [np.full(len(words[0]), word, np.uint64) for word in _START]
    for word in [*words, np.full(len(words[0]), size << 56, np.uint64)]:
        v[3] = v[3] ^ word
        _round(v)
        _round(v)
        v[0] = v[0] ^ word
    v[2] = v[2] ^ np.uint64(0xFF)
    for _ in range(4):
        _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _rotl(x: U64, by: int) -> U64:
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


def _round(v: list[U64]) -> None:
    v[0] = v[0] + v[1]
    v[2] = v[2] + v[3]
    v[1] = _rotl(v[1], 13) ^ v[0]
    v[3] = _rotl(v[3], 16) ^ v[2]
    v[0] = _rotl(v[0], 32)
    v[2] = v[2] + v[1]
    v[0] = v[0] + v[3]
    v[1] = _rotl(v[1], 17) ^ v[2]
    v[3] = _rotl(v[3], 21) ^ v[0]
    v[2] = _rotl(v[2], 32)
