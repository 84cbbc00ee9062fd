"""Merged hits as rows: what their shards know of them, in the order of the hits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from agent.front.queries import merging
from agent.front.queries.leaves import Chosen, Hits
from agent.front.queries.plan import VectorSpec
from agent.front.queries.source import Source, each_with
from core.filters import Condition, Filter, HasVector, TextIndexes, compile_condition, conditions_in
from core.payload import decode_payload
from core.query.scoring import F32, F64, I64, Bits

T = TypeVar("T")


class Candidates:
    """Hits and the shards that gave them; a formula's rows."""

    def __init__(self, sources: Sequence[Source], hits: Hits) -> None:
        self.hits = hits
        self._parts = list(_parts(sources, hits))

    def __len__(self) -> int:
        return len(self.hits)

    def rows(self, vector: VectorSpec) -> F32:
        out = np.zeros((len(self.hits), vector.size), np.float32)
        for at, rows in self._read(lambda source, chosen: source.rows(vector.v, chosen)):
            out[at] = rows
        return out

    def has(self, vector: VectorSpec) -> Bits:
        out = np.zeros(len(self.hits), np.bool_)
        for at, has in self._read(lambda source, chosen: source.has(vector.v, chosen)):
            out[at] = has
        return out

    def seqs(self) -> I64:
        out = np.zeros(len(self.hits), np.int64)
        for at, seqs in self._read(lambda source, chosen: source.seqs(chosen)):
            out[at] = seqs
        return out

    def payloads(self) -> list[bytes]:
        return self._gathered(b"", lambda source, chosen: source.payloads(chosen))

    def values(self, path: str) -> list[list[object]]:
        return self._gathered([], lambda source, chosen: source.values(path, chosen))

    def _gathered(self, nothing: T, read: Callable[[Source, Chosen], Sequence[T]]) -> list[T]:
        if len(self._parts) == 1:
            return list(read(self._parts[0][0], self._parts[0][2]))
        out = [nothing] * len(self.hits)
        for at, values in self._read(read):
            for i, value in zip(at.tolist(), values, strict=True):
                out[i] = value
        return out

    def _read(self, read: Callable[[Source, Chosen], T]) -> Iterator[tuple[I64, T]]:
        """What each shard answers about its part of the hits, and where that is."""
        sources, chosen = [part[0] for part in self._parts], [part[2] for part in self._parts]
        answers = each_with(sources, chosen, read)
        return zip((part[1] for part in self._parts), answers, strict=True)


class FormulaRows(Candidates):
    """Candidates with the scores of the prefetches that found them."""

    def __init__(
        self,
        sources: Sequence[Source],
        hits: Hits,
        found: Sequence[Hits],
        vectors: Mapping[str, VectorSpec],
        texts: TextIndexes,
    ) -> None:
        super().__init__(sources, hits)
        self._found = found
        self._vectors = vectors
        self._texts = texts

    def scores(self, prefetch: int) -> F64:
        out = np.full(len(self), np.nan)
        if prefetch < len(self._found):
            found = self._found[prefetch]
            at = {key: i for i, key in enumerate(self.hits.keys)}
            out[[at[key] for key in found.keys]] = found.scores
        return out

    def holds(self, condition: Condition) -> Bits:
        test = compile_condition(condition, self._texts)
        payloads = [decode_payload(raw) for raw in self.payloads()]
        names = self._names(Filter(must=(condition,)))
        return np.array([test(self.hits.keys[i], payloads[i], names[i]) for i in range(len(self))], np.bool_)

    def _names(self, where: Filter) -> list[set[str]]:
        """The vectors each row has, of those that the filter asks about."""
        asked = {
            each.name
            for each in conditions_in(where)
            if isinstance(each, HasVector) and each.name in self._vectors
        }
        has = {name: self.has(self._vectors[name]).tolist() for name in asked}
        return [{name for name in asked if has[name][i]} for i in range(len(self))]


def _parts(sources: Sequence[Source], hits: Hits) -> Iterator[tuple[Source, I64, Chosen]]:
    if len(sources) == 1:
        yield sources[0], np.arange(len(hits)), Chosen(hits.keys, hits.slots)
        return
    for i, source in enumerate(sources):
        at, chosen = merging.of_source(hits, i)
        if len(at):
            yield source, at, chosen
