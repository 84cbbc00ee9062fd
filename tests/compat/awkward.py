"""Random payloads and filters with values that are hard to tell apart, and ids in all their spellings."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from tests.unit.naive_filters import random_payload

Json = Any
Id = int | str
NOBODY: tuple[Id, ...] = (9_999, str(uuid.UUID(int=9_999)))
TEXTS = ("the Sea", "cafe", "Café", "SS", "")
AWKWARD: tuple[Json, ...] = (
    1, 1.0, True, 0, 0.0, -0.0, False, "1", "true", "", None, [], {}, [[]], [None], [[1]], ["red", ["red"]],
    2**53, 2**53 + 1, float(2**53), -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 1e300,
    "2024-01-01", "2024-01-05T12:00:00+02:00", "Café crème", "I am the sea", "ß",
    "00000000-0000-0000-0000-000000000007", "00000000-0000-0000-0000-00000000000E",
    {"lat": 0, "lon": 0}, {"lat": 5.5, "lon": 180}, [{"lat": 1, "lon": -180.0}, {"lat": -3, "lon": 170}],
)  # fmt: skip
"""Values that are alike and not the same, that are at the end of their range, or that hardly fit anywhere."""


def uuid_of(id_: Id) -> Id:
    """The id as the agent answers it."""
    return id_ if isinstance(id_, int) else str(uuid.UUID(id_))


def in_order(ids: Iterable[Id]) -> list[Id]:
    """Numbers, then UUIDs."""
    return sorted(ids, key=lambda i: (isinstance(i, str), i if isinstance(i, int) else 0, str(i)))


def spelled(rng: random.Random, id_: Id) -> Id:
    """A UUID in one of its spellings."""
    if isinstance(id_, int):
        return id_
    return rng.choice((id_, id_.upper(), id_.replace("-", ""), f"urn:uuid:{id_}", f"{{{id_}}}"))


def stirred_payload(rng: random.Random) -> dict[str, Json]:
    payload = random_payload(rng)
    for name in payload:
        if rng.random() < 0.08:
            payload[name] = deepcopy(rng.choice(AWKWARD))
        elif isinstance(payload[name], list) and rng.random() < 0.08:
            payload[name].append(deepcopy(rng.choice(AWKWARD)))
    for one in payload["l"] if isinstance(payload.get("l"), list) else ():
        if isinstance(one, dict) and rng.random() < 0.2:
            one[rng.choice(("name", "n", "price", "flag", "text", "where"))] = deepcopy(rng.choice(AWKWARD))
    return payload


def stirred_filter(rng: random.Random, node: Json, ids: list[Id]) -> Json:
    """The filter with ids that are there, in any spelling, and now and then an awkward value to match."""
    if isinstance(node, list):
        return [stirred_filter(rng, one, ids) for one in node]
    if not isinstance(node, dict):
        return node
    out = {key: stirred_filter(rng, value, ids) for key, value in node.items()}
    if "has_id" in out and ids:
        given = rng.sample(ids, min(len(ids), rng.randrange(0, 12)))
        out["has_id"] = [spelled(rng, one) for one in given] + [
            rng.choice((9_999, str(uuid.UUID(int=9_999))))
        ]
    match = out.get("match")
    if match is not None and rng.random() < 0.15:
        simple = [v for v in AWKWARD if isinstance(v, (str, int)) and (isinstance(v, str) or abs(v) < 2**63)]
        if "value" in match:
            out["match"] = {"value": rng.choice(simple)}
        elif "any" in match or "except" in match:
            wanted = rng.choice((str, int))
            out["match"] = {next(iter(match)): [v for v in rng.sample(simple, 5) if type(v) is wanted]}
        elif "prefix" not in match:
            out["match"] = {
                rng.choice(("text", "text_any", "phrase")): rng.choice(("the Sea", "cafe", "Café", "SS", ""))
            }
    return out
