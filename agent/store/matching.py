"""An operation's filter as a test of stored rows; decided when the operation is applied."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import msgspec
import numpy as np

from agent.points_reader import Row
from agent.store.manifest import ShardSchema
from agent.store.vectors import VectorFile
from core.api.filters import FilterBody, parse_filter
from core.api.indexes import text_options
from core.errors import BadRequest
from core.filters import Filter, TextIndexes, compile_filter
from core.payload import decode_payload, parse_path

PointTest = Callable[[Row], bool]
_decoder = msgspec.json.Decoder(FilterBody)


class _VectorsOf(Container[str]):
    """The names of the vectors that a slot has, looked up only if the filter asks."""

    def __init__(self, slot: int, names: Mapping[str, int], vectors: Mapping[int, VectorFile]) -> None:
        self._slot = slot
        self._names = names
        self._vectors = vectors

    def __contains__(self, name: object) -> bool:
        vector = self._vectors.get(self._names.get(str(name), -1))
        return vector is not None and bool(vector.has_it(np.array([self._slot]))[0])


def text_indexes(schema: ShardSchema) -> TextIndexes:
    """On which paths `text` conditions compare tokens, and how they are cut."""
    return {
        parse_path(column.path): text_options(column.params)
        for column in schema.columns.values()
        if column.type == "text"
    }


def parse_where(where: bytes) -> Filter | None:
    """Raises BadRequest for what is no filter."""
    try:
        return parse_filter(_decoder.decode(where))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"filter: {error}") from None


def compile_where(where: bytes, schema: ShardSchema, vectors: Mapping[int, VectorFile]) -> PointTest:
    """Raises BadRequest for what is no filter."""
    condition = parse_where(where)
    if condition is None or condition.restricts_nothing:
        return lambda row: True
    test = compile_filter(condition, text_indexes(schema))
    names = schema.names
    return lambda row: test(row.id, decode_payload(row.payload), _VectorsOf(row.slot, names, vectors))
