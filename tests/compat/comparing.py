"""One call to two clients, qdrant-client's local mode and a running agent: the answers must be the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

# Both compute in f32, in another order.
RELATIVE, ABSOLUTE = 2e-4, 2e-5


class Pair:
    """`compare` makes the call at both. `seed` is told when they differ."""

    def __init__(self, local: QdrantClient, remote: QdrantClient, collection: str, seed: int = 0) -> None:
        self.local, self.remote, self.collection, self.seed = local, remote, collection, seed

    def both(self, method: str, **arguments: Any) -> tuple[Any, Any]:
        """The call at both, on their own collection; neither may fail."""
        local = getattr(self.local, method)(self.collection, **arguments)
        return local, getattr(self.remote, method)(self.collection, **arguments)

    def compare(self, method: str, **arguments: Any) -> Any:
        """The call at both; what local mode refuses, the agent must refuse with a 4xx.

        Returns local mode's answer, None if it refused.
        """
        told = f"seed {self.seed}: {method}({arguments})"
        refused: Exception | None = None
        local: Any = None
        try:
            local = getattr(self.local, method)(self.collection, **arguments)
        except Exception as error:  # noqa: BLE001  (local mode has no error type of its own)
            refused = error
        try:
            remote = getattr(self.remote, method)(self.collection, **arguments)
        except UnexpectedResponse as error:
            if refused is not None and 400 <= (error.status_code or 500) < 500:
                return None
            raise AssertionError(f"{told}\nlocal: {refused or local!r}\nagent: {error}") from error
        assert refused is None, f"{told}\nlocal mode refuses: {refused!r}; the agent answers {remote}"
        difference = different(local, remote)
        assert difference is None, f"{told}\n{difference}\nlocal: {local}\nagent: {remote}"
        return local


def different(local: Any, remote: Any) -> str | None:
    """None if they are the same answer, else what differs."""
    if hasattr(local, "groups"):
        return _first(
            [
                _value([g.id for g in local.groups], [g.id for g in remote.groups], "groups"),
                *(_scored(a.hits, b.hits) for a, b in zip(local.groups, remote.groups)),
                *(_lookup(a.lookup, b.lookup) for a, b in zip(local.groups, remote.groups)),
            ]
        )
    if hasattr(local, "points"):
        return _scored(local.points, remote.points)
    if isinstance(local, tuple):  # scroll
        return _records(local[0], remote[0]) or _value(local[1], remote[1], "next offset")
    if isinstance(local, list) and local and hasattr(local[0], "points"):
        return _value(len(local), len(remote), "answers") or _first(
            [different(a, b) for a, b in zip(local, remote, strict=True)]
        )
    if isinstance(local, list) and local and hasattr(local[0], "payload"):
        return _records(local, remote)
    return _value(_plain(local), _plain(remote), "answer")


def _first(found: Sequence[str | None]) -> str | None:
    return next((difference for difference in found if difference), None)


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _scored(local: Sequence[Any], remote: Sequence[Any]) -> str | None:
    """Ties may come in any order, and any of those that tie with an end of the list may be cut off there."""
    if len(local) != len(remote):
        return f"{len(local)} points, not {len(remote)}"
    for place, (a, b) in enumerate(zip(local, remote, strict=True)):
        if not close(a.score, b.score):
            return f"score {a.score} at {place}, not {b.score} (ids {a.id}, {b.id})"
    by_id = {point.id: point for point in remote}
    for point in local:
        if point.id not in by_id:
            ends = (local[0].score, local[-1].score)  # the first one too: an offset cuts there
            if not any(close(point.score, end) for end in ends) and point.order_value is None:
                return f"{point.id} is missing"
            continue
        twin = by_id[point.id]
        if not close(point.score, twin.score):
            return f"{point.id} has score {point.score}, not {twin.score}"
        if difference := _record(point, twin):
            return difference
    return _values_in_order(local, remote)


def _values_in_order(local: Sequence[Any], remote: Sequence[Any]) -> str | None:
    return _value([p.order_value for p in local], [p.order_value for p in remote], "order values")


def _records(local: Sequence[Any], remote: Sequence[Any]) -> str | None:
    if any(record.order_value is not None for record in local):
        by_id = {record.id: record for record in remote}
        return _values_in_order(local, remote) or _first(
            [_record(a, by_id[a.id]) for a in local if a.id in by_id]
        )
    return _value([r.id for r in local], [r.id for r in remote], "ids") or _first(
        [_record(a, b) for a, b in zip(local, remote)]
    )


def _lookup(local: Any, remote: Any) -> str | None:
    if local is None or remote is None:
        return _value(local, remote, "lookup")
    return _value(local.id, remote.id, "lookup") or _record(local, remote)


def _record(local: Any, remote: Any) -> str | None:
    return _value(local.payload, remote.payload, f"payload of {local.id}") or _value(
        local.vector, remote.vector, f"vector of {local.id}"
    )


def _value(local: Any, remote: Any, what: str) -> str | None:
    return None if same(local, remote) else f"{what}: {local!r}, not {remote!r}"


def same(a: Any, b: Any) -> bool:
    """Equal in depth; floats within the tolerance, numbers of one type."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return close(a, b)
    return type(a) is type(b) and bool(a == b)
