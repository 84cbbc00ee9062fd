"""Embeddings that need no model: a vector made of a text's words, so like texts lie near each other."""

from __future__ import annotations

import hashlib
import math

DIM = 32


def embed(text: str) -> list[float]:
    """A unit vector; texts that share words have a larger inner product."""
    vector = [0.01] * DIM
    for word in text.lower().split():
        digest = hashlib.sha256(word.encode()).digest()  # DIM bytes, so that no two texts tie
        vector = [x + byte / 127.5 - 1 for x, byte in zip(vector, digest, strict=True)]
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]
