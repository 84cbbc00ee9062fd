"""An operation's filter as a test of stored rows, and which slots need it; decided when it is applied."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from agent.columns.reader import ColumnReader
from agent.points_reader import Row
from agent.store.manifest import ShardSchema
from agent.store.vectors import VectorFile
from core.api.filters import FilterBody, parse_filter
from core.api.indexes import text_options
from core.errors import BadRequest
from core.filters import (
    Condition,
    Filter,
    HasId,
    HasVector,
    Nested,
    Slice,
    TextIndexes,
    compile_filter,
)
from core.payload import Path, decode_payload, parse_path

PointTest = Callable[[Row], bool]
SlotsOf = Callable[[Sequence[bytes]], Mapping[bytes, int]]
Bits = npt.NDArray[np.bool_]
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


def possible(
    where: Filter, columns: Mapping[Path, ColumnReader], slots_of: SlotsOf, low: int, high: int
) -> Bits | None:
    """Which of the slots low..high-1 columns and ids do not rule out; None if they rule out nothing.

    What `must_not` and `min_should` demand is left to the test of the rows.
    """
    left = [_possible(c, columns, slots_of, low, high) for c in where.must]
    if where.should:
        either = [_possible(c, columns, slots_of, low, high) for c in where.should]
        known = [bits for bits in either if bits is not None]
        left.append(np.logical_or.reduce(known) if len(known) == len(either) else None)
    said = [bits for bits in left if bits is not None]
    return np.logical_and.reduce(said) if said else None


def _possible(
    condition: Condition, columns: Mapping[Path, ColumnReader], slots_of: SlotsOf, low: int, high: int
) -> Bits | None:
    match condition:
        case Filter():
            return possible(condition, columns, slots_of, low, high)
        case HasId(keys):
            bits = np.zeros(high - low, np.bool_)
            bits[[slot - low for slot in slots_of(list(keys)).values()]] = True
            return bits
        case HasVector() | Slice() | Nested():
            return None
        case _:
            column = columns.get(condition.path)
            return None if column is None else column.mask(condition, low, high)[1]


def compile_where(where: bytes, schema: ShardSchema, vectors: Mapping[int, VectorFile]) -> PointTest:
    """Raises BadRequest for what is no filter."""
    condition = parse_where(where)
    if condition is None or condition.restricts_nothing:
        return lambda row: True
    test = compile_filter(condition, text_indexes(schema))
    names = schema.names
    return lambda row: test(row.id, decode_payload(row.payload), _VectorsOf(row.slot, names, vectors))
