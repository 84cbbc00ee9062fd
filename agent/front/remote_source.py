"""A shard on another node, as queries see it; and the answers to such questions, from a shard that is here.

A question names points by key, and each has a look of its own there: a point that has gone since an earlier
answer makes the whole read begin anew, like one that took too long at home.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np

from agent.front import leaf_wire
from agent.front.queries.deadline import Deadline
from agent.front.queries.leaves import Chosen, Hits, Leaf, Nearest
from agent.front.queries.source import LocalSource
from agent.front.view import LookTooOld
from core.errors import BadRequest
from core.filters import Filter
from core.query.facets import FacetCounts
from core.query.scoring import F32, I64, Bits

T = TypeVar("T")
Ask = Callable[[str, bytes], bytes]
"""Blocks until the shard has answered a question of this kind. Raises ShoalError."""


class Begin(Protocol):
    """Has some work done by another thread."""

    def __call__(self, work: Callable[[], T], /) -> Future[T]: ...


class RemoteSource:
    """A `Source` elsewhere. What an answer says beside what was asked is kept for the next question."""

    def __init__(self, ask: Ask, begin: Begin) -> None:
        self._ask, self._begin = ask, begin
        self._seqs: dict[bytes, int] = {}

    def later(self, work: Callable[[], T]) -> Callable[[], T]:
        return self._begin(work).result

    def heed(self, deadline: Deadline) -> None:
        """The deadline travels with each question."""

    def nearest(self, leaf: Nearest, deadline: Deadline) -> list[Hits]:
        deadline.check()
        return [self._kept(one) for one in self._asked("nearest", leaf)]

    def run(self, leaf: Leaf, deadline: Deadline) -> Hits:
        deadline.check()
        return self._kept(self._asked("run", leaf))

    def count(self, where: Filter | None) -> int:
        return int(self._asked("count", where))

    def find(self, keys: Sequence[bytes]) -> Chosen:
        found: Chosen = self._asked("find", list(keys))
        return found

    def facet(self, path: str, where: Filter | None) -> FacetCounts:
        counts: FacetCounts = self._asked("facet", path, where)
        return counts

    def rows(self, v: int, chosen: Chosen) -> F32:
        rows: F32 = self._asked("rows", v, list(chosen.keys))
        return rows

    def has(self, v: int, chosen: Chosen) -> Bits:
        bits: Bits = self._asked("has", v, list(chosen.keys))
        return bits

    def payloads(self, chosen: Chosen) -> list[bytes]:
        payloads: list[bytes] = self._asked("payloads", list(chosen.keys))
        return payloads

    def seqs(self, chosen: Chosen) -> I64:
        if all(key in self._seqs for key in chosen.keys):
            return np.array([self._seqs[key] for key in chosen.keys], np.int64)
        seqs: I64 = self._asked("seqs", list(chosen.keys))
        return seqs

    def values(self, path: str, chosen: Chosen) -> list[list[object]]:
        values: list[list[object]] = self._asked("values", path, list(chosen.keys))
        return values

    def _asked(self, kind: str, *arguments: object) -> Any:
        return leaf_wire.decode(self._ask(kind, leaf_wire.encode(arguments)))

    def _kept(self, answer: tuple[Hits, I64]) -> Hits:
        hits, seqs = answer
        self._seqs.update(zip(hits.keys, seqs.tolist(), strict=True))
        return hits


def answer(source: LocalSource, kind: str, body: bytes, deadline: Deadline) -> bytes:
    """A question of another front, over this node's look at the shard. Raises BadRequest, LookTooOld."""
    work = _ANSWERS.get(kind)
    if work is None:
        raise BadRequest(f"no question about a shard is called {kind[:40]!r}")
    arguments = leaf_wire.decode(body)
    if not isinstance(arguments, tuple):
        raise BadRequest("a question about a shard without arguments")
    source.heed(deadline)
    try:
        found = work(source, deadline, *arguments)
    except (TypeError, AttributeError) as problem:
        raise BadRequest(f"a question {kind} that makes no sense: {problem}") from None
    return leaf_wire.encode(found)


def _nearest(source: LocalSource, deadline: Deadline, leaf: Nearest) -> list[tuple[Hits, I64]]:
    return [_with_seqs(source, hits) for hits in source.nearest(leaf, deadline)]


def _run(source: LocalSource, deadline: Deadline, leaf: Leaf) -> tuple[Hits, I64]:
    return _with_seqs(source, source.run(leaf, deadline))


def _with_seqs(source: LocalSource, hits: Hits) -> tuple[Hits, I64]:
    return hits, source.seqs(Chosen(hits.keys, hits.slots)).astype(np.int64)


def _here(source: LocalSource, keys: Sequence[bytes]) -> Chosen:
    """The points by this look. Raises LookTooOld if one has gone."""
    found = source.find(keys)
    if len(found.keys) < len(keys):
        raise LookTooOld("points that were just found have been deleted since; ask again")
    return found


_ANSWERS: dict[str, Callable[..., object]] = {
    "nearest": _nearest,
    "run": _run,
    "count": lambda source, _, where: source.count(where),
    "find": lambda source, _, keys: source.find(keys),
    "facet": lambda source, _, path, where: dict(source.facet(path, where)),
    "rows": lambda source, _, v, keys: np.ascontiguousarray(source.rows(v, _here(source, keys))),
    "has": lambda source, _, v, keys: source.has(v, _here(source, keys)),
    "payloads": lambda source, _, keys: source.payloads(_here(source, keys)),
    "seqs": lambda source, _, keys: source.seqs(_here(source, keys)).astype(np.int64),
    "values": lambda source, _, path, keys: source.values(path, _here(source, keys)),
}
