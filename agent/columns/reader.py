"""A payload index as searches read it: the slots of a range that meet a condition, and those that might."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.columns import words
from agent.columns.conditions import Verdict, verdict
from agent.columns.dictionary import Dictionary
from agent.columns.layout import HEAD_BYTES, LAYOUTS, Flag, Head, file_of
from agent.mapped import MappedFile
from agent.store.manifest import ColumnParams
from core.api.indexes import text_options
from core.errors import Unavailable
from core.filters import (
    FieldCondition,
    IsEmpty,
    IsNull,
    MatchAny,
    MatchExcept,
    MatchPhrase,
    MatchPrefix,
    MatchText,
    MatchTextAny,
    MatchValue,
    ValuesCount,
)
from core.tokens import query_tokens_of, tokens_of

Bits = npt.NDArray[np.bool_]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
_TRIES = 1_000_000
YesMaybe = tuple[Bits, Bits]
"""Which slots match for sure, and which may: the same array when nothing is in doubt."""


class ColumnReader:
    """One column, mapped. Its answers are those of core/filters.py, as far as they are sure, if the number of
    edits in the page was the same before and after."""

    def __init__(self, folder: Path, k: int, params: ColumnParams) -> None:
        """`folder` is the shard's columns folder."""
        self._kind = params.type
        self._layout = LAYOUTS[params.type]
        self._text = text_options(params.params) if params.type == "text" else None
        self._head_file = MappedFile(file_of(folder, k, "head"))
        self._flags = MappedFile(file_of(folder, k, "flags"))
        self._values = MappedFile(file_of(folder, k, "values"))
        self._owners = MappedFile(file_of(folder, k, "owners"))
        self._items = MappedFile(file_of(folder, k, "items"))
        self._words = Dictionary(file_of(folder, k, "words"))

    def filled(self, low: int, high: int) -> Bits:
        """Which slots of the range have a value that the column holds."""
        filled: Bits = (self._flags_of(low, high) & (Flag.ONE | Flag.MANY)) != 0
        return filled

    def mask(self, condition: FieldCondition, low: int, high: int, *, editing: bool = False) -> YesMaybe:
        """The condition over slots low..high-1. `editing`: the page says that an edit is under way."""
        flags = self._flags_of(low, high)
        yes, maybe = self._mask(condition, flags, low, high)
        if not editing:
            return yes, maybe
        busy = (flags & Flag.BUSY) != 0
        return yes & ~busy, maybe | busy

    def _mask(self, condition: FieldCondition, flags: U8, low: int, high: int) -> YesMaybe:
        match condition:
            case IsEmpty():
                return _certain((flags & Flag.EMPTY) != 0)
            case IsNull():
                return _certain((flags & Flag.NULL) != 0)
            case ValuesCount():
                return self._counted(condition, flags)
        if self._text is not None:
            return self._text_mask(condition, flags, low, high)
        judged = verdict(self._kind, condition, self._codes)
        return self._judged(judged, flags, low, high)

    # -- parts ---------------------------------------------------------------------------------------------

    def _head(self) -> npt.NDArray[np.uint64]:
        return self._head_file.array(np.uint64, HEAD_BYTES // 8)

    def _flags_of(self, low: int, high: int) -> U8:
        return self._flags.bytes(high)[low:high]

    def _values_of(self, low: int, high: int) -> npt.NDArray[Any]:
        layout = self._layout
        return self._values.array(layout.dtype, high, None if layout.width == 1 else layout.width)[low:high]

    def _items_now(self) -> tuple[I64, npt.NDArray[Any]]:
        """Owners (slot + 1) and values of all list elements."""
        layout = self._layout
        low, high = self._items_range()
        if high == low:
            return np.empty(0, np.int64), layout.shaped(np.empty(0, layout.dtype))
        items = self._items.array(layout.dtype, high, None if layout.width == 1 else layout.width)
        return self._owners.array(np.int64, high)[low:], items[low:]

    def _items_range(self) -> tuple[int, int]:
        """Where the items are. They may be moved at any time: both numbers change, the high one first."""
        head = self._head()
        for _ in range(_TRIES):
            low, high = int(head[Head.ITEMS_LOW]), int(head[Head.ITEMS_HIGH])
            if low <= high and low == int(head[Head.ITEMS_LOW]):
                return low, high
        raise Unavailable("the items of a column are being moved, and that does not end; retry")

    def _judged(self, judged: Verdict, flags: U8, low: int, high: int) -> YesMaybe:
        one = (flags & np.uint8(Flag.ONE)).view(np.bool_)
        values = self._values_of(low, high)
        owners, items = self._items_now()
        yes = judged.yes(values)
        yes &= one
        _mark(yes, owners, judged.yes(items), low, high)
        foreign = judged.foreign and self._head()[Head.FOREIGN] > 0
        if judged.maybe is None and not foreign:
            return yes, yes
        if judged.maybe is None:
            maybe = yes.copy()
        else:
            maybe = judged.maybe(values)
            maybe &= one
            _mark(maybe, owners, judged.maybe(items), low, high)
        if foreign:
            maybe |= (flags & Flag.FOREIGN) != 0
        return yes, maybe

    def _counted(self, condition: ValuesCount, flags: U8) -> YesMaybe:
        """Of a single value, and of none, the number is known."""
        plain = (flags & (Flag.MANY | Flag.FOREIGN | Flag.ODD)) == 0
        holds = [_within(condition, 0), _within(condition, 1)]
        yes = plain & np.where((flags & Flag.ONE) != 0, holds[1], holds[0])
        return yes, yes | ~plain

    def _codes(self, condition: FieldCondition) -> Sequence[int]:
        """Codes of the keywords that meet a string condition (of those that one excludes)."""
        size = int(self._head()[Head.WORDS_BYTES])
        data, code_of = self._words.data(size), self._words.code_of
        match condition:
            case MatchValue(_, str(value)):
                return _known([code_of(value, size)])
            case MatchAny(_, values) | MatchExcept(_, values):
                return _known([code_of(v, size) for v in values if isinstance(v, str)])
            case MatchPrefix(_, text):
                return words.codes_starting(data, text, size)
            case MatchText(_, text) | MatchPhrase(_, text):
                return words.codes_containing(data, text, size)
            case MatchTextAny(_, text):
                found = (words.codes_containing(data, part, size) for part in text.split())
                return sorted({code for codes in found for code in codes})
            case _:
                return []

    # -- text ----------------------------------------------------------------------------------------------

    def _text_mask(self, condition: FieldCondition, flags: U8, low: int, high: int) -> YesMaybe:
        strings = (flags & Flag.MANY) != 0
        several = (flags & Flag.TEXTS) != 0
        foreign = (flags & Flag.FOREIGN) != 0
        nothing = np.zeros(high - low, np.bool_)
        assert self._text is not None
        match condition:
            case MatchTextAny(_, text):
                return _certain(self._with_tokens(query_tokens_of(text, self._text), low, high, every=False))
            case MatchText(_, text):
                found = self._with_tokens(query_tokens_of(text, self._text), low, high, every=True)
                # Tokens of different strings do not add up.
                return found & ~several, found
            case MatchPhrase(_, text):
                return nothing, self._with_phrase(text, low, high)
            case MatchValue(_, str(value)):
                return nothing, strings & self._could_equal(value, low, high)
            case MatchAny(_, values) if values and all(isinstance(v, str) for v in values):
                return nothing, strings
            case MatchValue() | MatchAny():
                return nothing, foreign
            case MatchPrefix():
                return nothing, strings
            case _:
                return nothing, strings | foreign

    def _with_phrase(self, text: str, low: int, high: int) -> Bits:
        assert self._text is not None
        wanted = query_tokens_of(text, self._text)
        return self._with_tokens(wanted, low, high, every=True)

    def _could_equal(self, value: str, low: int, high: int) -> Bits:
        """Slots with all the tokens of that text."""
        assert self._text is not None
        tokens = tokens_of(value, self._text)
        return self._with_tokens(tokens, low, high, every=True) if tokens else np.ones(high - low, np.bool_)

    def _with_tokens(self, tokens: Sequence[str], low: int, high: int, *, every: bool) -> Bits:
        """Slots with all (or any) of the tokens; without tokens none."""
        size = int(self._head()[Head.WORDS_BYTES])
        owners, items = self._items_now()
        out: Bits | None = None
        for token in sorted(set(tokens)):
            bits = np.zeros(high - low, np.bool_)
            code = self._words.code_of(token, size)
            if code:
                _mark(bits, owners, items == np.uint32(code), low, high)
            out = bits if out is None else out & bits if every else out | bits
        return np.zeros(high - low, np.bool_) if out is None else out


def _certain(bits: Bits) -> YesMaybe:
    return bits, bits


def _known(codes: list[int]) -> list[int]:
    return [code for code in codes if code]


def _mark(bits: Bits, owners: I64, chosen: Bits, low: int, high: int) -> None:
    """Set the bits of the owners of the chosen items, if they are in the range."""
    if not len(owners):
        return
    slots = owners[chosen] - 1
    slots = slots[(slots >= low) & (slots < high)]
    bits[slots - low] = True


def _within(condition: ValuesCount, count: int) -> bool:
    return (
        (condition.lt is None or count < condition.lt)
        and (condition.lte is None or count <= condition.lte)
        and (condition.gt is None or count > condition.gt)
        and (condition.gte is None or count >= condition.gte)
    )
