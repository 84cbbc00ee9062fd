"""Embeddings that need no model: a vector made of a text's words, so like texts lie near each other."""

from __future__ import annotations

import hashlib
import math

DIM = 32


def embed(text: str) -> list[float]:
    """A unit vector; texts that share words have a larger inner product."""
    vector = [0.01] * DIM
    for word in text.lower().split():
        digest = hashlib.sha256(word.encode()).digest()
        for place in range(4):
            vector[digest[place] % DIM] += 1.0 if digest[place + 8] % 2 else -1.0
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]
