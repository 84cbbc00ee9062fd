"""Operations drawn at random, of every kind."""

from __future__ import annotations

import json
import random

from core.wire import (
    ClearPayload,
    Delete,
    DeletePayload,
    DeleteVectors,
    Op,
    OverwritePayload,
    SetPayload,
    UpdateVectors,
)
from tests.storing.contents import keys, rows, upsert


def some_op(rng: random.Random, n: int, *, first_id: int = 0) -> Op:
    """One of any kind, on up to six of twelve ids; `n` shows in what it writes."""
    ids = [first_id + i for i in rng.sample(range(12), rng.randint(1, 6))]
    match rng.randrange(8):
        case 0 | 1:
            return upsert(ids, n, other=bool(n % 2))
        case 2:
            return Delete(keys(ids[:2]))
        case 3:
            return SetPayload(keys(ids), None, json.dumps({f"k{n % 3}": n}).encode())
        case 4:
            return OverwritePayload(keys(ids), None, json.dumps({"n": n}).encode())
        case 5:
            return DeletePayload(keys(ids), None, ("tag", "k1"))
        case 6:
            return UpdateVectors(keys(ids), (rows(2, [(n, 0.0, 1.0) if i % 2 else None for i in ids]),))
        case _:
            return DeleteVectors(keys(ids[:2]), None, (1,)) if n % 2 else ClearPayload(keys(ids[:1]))
