"""A payload index as the store writes it: rows of new slots in bulk, edits in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.columns import words
from agent.columns.codecs import ENCODERS, Encode
from agent.columns.items import Heading, Items
from agent.columns.layout import FORMAT, LAYOUTS, Flag, Head, file_of
from agent.mapped import GrowingFile
from agent.store.files import Files
from agent.store.manifest import ColumnParams
from core.api.indexes import text_options
from core.errors import InvariantBroken
from core.payload import Payload, parse_path, values_at
from core.tokens import tokens_of

I64 = npt.NDArray[np.int64]

_MISSING = object()
_ONE, _EMPTY = int(Flag.ONE), int(Flag.EMPTY)
_NULL = int(Flag.NULL | Flag.EMPTY)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a column is to hold of some slots, ascending; there is room for it."""

    slots: I64
    marks: npt.NDArray[np.uint8]
    values: npt.NDArray[Any] | None
    """By slot; None where the type has none."""
    owners: I64
    items: Sequence[Any] | npt.NDArray[Any]


class ColumnWriter:
    """One column. `put` is for new slots, ascending. Published ones are edited in three steps:

    `prepare` as part of a transaction, `mark` before the page says that an edit is under way and `edit`
    after that, `unmark` when the page says that it is over. What is prepared is edited or `forget` called.
    One thread at a time, except `sync`. Files of slots put twice end as if put once, with the last values.
    """

    def __init__(self, folder: Path, k: int, params: ColumnParams, files: Files) -> None:
        self._kind = params.type
        self._layout = LAYOUTS[params.type]
        self._path = parse_path(params.path)
        self._files: dict[str, GrowingFile] = {}
        for part in ("head", "flags", "values", "owners", "items", "words"):
            if (part == "values" and not self._layout.scalar) or (part == "words" and not self._layout.words):
                continue
            self._files[part] = GrowingFile(file_of(folder / "columns", k, part), files)
        self._head = Heading(self._files["head"])
        self._items = Items(self._files["owners"], self._files["items"], self._head, self._layout)
        self._codes: dict[str, int] = {}
        if self._head[Head.FORMAT] == 0:
            self._begin()
        elif self._head[Head.FORMAT] != FORMAT:
            raise InvariantBroken(f"column {k}: format {self._head[Head.FORMAT]}, expected {FORMAT}")
        self._encode = self._encoder()
        if self._layout.words:
            self._read_words()
        if params.type == "text":
            options = text_options(params.params)
            self._tokens: Callable[[str], Sequence[str]] = lambda text: tokens_of(text, options)

    def _begin(self) -> None:
        if self._layout.words:
            self._files["words"].write(0, words.EMPTY)
            self._head[Head.WORDS_BYTES] = len(words.EMPTY)
        self._head[Head.FORMAT] = FORMAT

    def _read_words(self) -> None:
        data = self._files["words"].read(0, self._head[Head.WORDS_BYTES])
        self._codes = {raw.decode("utf-8", "surrogatepass"): code for raw, code in words.all_words(data)}

    def _encoder(self) -> Encode:
        if not self._layout.words:
            return ENCODERS[self._kind]
        return lambda value: self._codes[value] if type(value) is str else None

    # -- the files -----------------------------------------------------------------------------------------

    def reserve(self, slots: int) -> None:
        """Room for slots 0..slots-1. Raises OSError (ENOSPC)."""
        self._files["flags"].reserve(slots)
        if self._layout.scalar:
            self._files["values"].reserve(slots * self._layout.value_bytes)

    def sync(self) -> None:
        # The head last: what it says is there, is there.
        for part in ("flags", "values", "owners", "items", "words", "head"):
            if part in self._files:
                self._files[part].sync()

    def reset(self) -> None:
        """Forget all, to be filled again from the payloads: after power was lost, nothing in it is sure.

        Not while a manifest calls the column ready.
        """
        if self._files["flags"].size:
            self._files["flags"].bytes()[:] = 0
            self._files["flags"].dirty = True
        self._items.reset()
        self._head[Head.FOREIGN] = 0
        self._codes = {}
        self._begin()

    def punch_below(self, slot: int) -> None:
        """Give back what belongs to slots below, all dead."""
        self._files["flags"].punch_below(slot)
        if self._layout.scalar:
            self._files["values"].punch_below(slot * self._layout.value_bytes)
        self._items.punch_below(slot)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def paths(self) -> Sequence[Path]:
        return [file.path for file in self._files.values()]

    # -- writing -------------------------------------------------------------------------------------------

    def put(self, slots: I64, payloads: Sequence[Payload]) -> None:
        """The values of these payloads, for slots that nobody looks at yet."""
        if len(slots):
            self._place(self._prepared(slots, payloads), 0)

    def prepare(self, slots: I64, payloads: Sequence[Payload]) -> Prepared:
        """Other payloads of published slots, ascending, for `edit`. Raises OSError (ENOSPC)."""
        prepared = self._prepared(slots, payloads)
        self._items.promise(len(prepared.items))
        return prepared

    def forget(self) -> None:
        """Nothing that was prepared will be edited."""
        self._items.break_promises()

    def mark(self, slots: I64) -> None:
        """From when the page says so until `unmark`, readers look at the payloads of these slots."""
        self._files["flags"].bytes()[slots] |= np.uint8(Flag.BUSY)
        self._items.begin_edits()

    def edit(self, prepared: Prepared) -> None:
        """Between `mark` and `unmark`; needs no more room."""
        self._items.keep_promise(len(prepared.items))
        self._place(prepared, int(Flag.BUSY))
        self._items.move_together()

    def unmark(self, slots: I64) -> None:
        self._files["flags"].bytes()[slots] &= np.uint8(~Flag.BUSY & 0xFF)

    def _prepared(self, slots: I64, payloads: Sequence[Payload]) -> Prepared:
        self.reserve(int(slots[-1]) + 1)
        found = self._found(payloads)
        if not self._layout.scalar:
            return self._texts(slots, found)
        plain = self._plain(found)
        if plain is not None:
            return Prepared(slots, np.full(len(slots), _ONE, np.uint8), plain, slots[:0], ())
        return self._mixed(slots, found)

    def _place(self, prepared: Prepared, busy: int) -> None:
        slots, flags = prepared.slots, self._files["flags"].bytes()
        # Of the values before, or left over from a process that was killed before it published these slots.
        stale = slots[(flags[slots] & Flag.MANY) != 0]
        if len(stale):
            self._items.drop(stale)
        if prepared.values is not None:
            self._files["values"].dirty = True
            self._values()[slots] = prepared.values
        self._files["flags"].dirty = True
        flags[slots] = prepared.marks | np.uint8(busy)
        self._items.append(prepared.owners, prepared.items)

    def _values(self) -> npt.NDArray[Any]:
        layout = self._layout
        return self._files["values"].array(layout.dtype, None if layout.width == 1 else layout.width)

    def _found(self, payloads: Sequence[Payload]) -> list[Any]:
        """What each payload has at the path: a value, _MISSING, or for longer paths a _Several."""
        first, *rest = self._path.steps
        if isinstance(first, str) and not rest:
            return [payload.get(first, _MISSING) for payload in payloads]
        return [_Several(values_at(payload, self._path)) for payload in payloads]

    def _plain(self, found: list[Any]) -> npt.NDArray[Any] | None:
        """All values at once, if each row has just one of the column's own type."""
        kinds = set(map(type, found))
        if len(kinds) != 1:
            return None
        (kind,) = kinds
        if kind is str and self._kind == "keyword":
            self._learn(found)
            return np.fromiter(map(self._codes.__getitem__, found), np.uint32, len(found))
        if (kind, self._kind) in ((float, "float"), (bool, "bool")):
            return np.array(found, self._layout.dtype)
        if kind is int and self._kind == "integer":
            try:
                return np.array(found, np.int64)
            except OverflowError:
                return None
        return None

    def _mixed(self, slots: I64, found: list[Any]) -> Prepared:
        """Rows of any kind."""
        fresh = np.zeros((len(slots), self._layout.width), self._layout.dtype)
        if self._kind == "keyword":
            self._learn(_strings(found))
        marks = bytearray(len(found))
        counts = [0] * len(found)
        items: list[Any] = []
        encode = self._encode
        for i, value in enumerate(found):
            if value is _MISSING:
                marks[i] = _EMPTY
            elif value is None:
                marks[i] = _NULL
            elif isinstance(value, (list, _Several)):
                marks[i], encoded = self._several(value)
                if marks[i] & _ONE:
                    fresh[i] = encoded[0]
                elif encoded:
                    counts[i] = len(encoded)
                    items += encoded
            elif (one := encode(value)) is None:
                marks[i] = self._foreign()
            else:
                marks[i] = _ONE
                fresh[i] = one
        values = fresh if self._layout.width > 1 else fresh[:, 0]
        return Prepared(slots, np.frombuffer(marks, np.uint8), values, np.repeat(slots + 1, counts), items)

    def _several(self, value: list[Any] | _Several) -> tuple[int, list[Any]]:
        """Flags and encoded elements of a list, or of a path that leads to several values."""
        flags, elements = _shape_of(value)
        encoded: list[Any] = []
        foreign = False
        for element in elements:
            if element is not None:
                one = self._encode(element)
                if one is None:
                    foreign = True
                else:
                    encoded.append(one)
        if foreign:
            flags |= self._foreign()
        if len(encoded) == 1:
            flags |= _ONE
        elif encoded:
            flags |= Flag.MANY
        if len(encoded) != len(elements):
            flags |= Flag.ODD
        return flags, encoded

    def _texts(self, slots: I64, found: list[Any]) -> Prepared:
        """Text: the tokens of each row, once each."""
        marks = bytearray(len(found))
        counts: list[int] = []
        tokens: list[str] = []
        cut = self._tokens
        for i, value in enumerate(found):
            if type(value) is str:
                marks[i], own = int(Flag.MANY), set(cut(value))
            else:
                flags, elements = (_EMPTY, ()) if value is _MISSING else _shape_of(value)
                strings = [e for e in elements if type(e) is str]
                if len(strings) + sum(e is None for e in elements) < len(elements):
                    flags |= self._foreign()
                if strings:
                    flags |= Flag.MANY if len(strings) == 1 else Flag.MANY | Flag.TEXTS
                if len(strings) != len(elements):
                    flags |= Flag.ODD
                marks[i], own = flags, {token for text in strings for token in cut(text)}
            tokens += own
            counts.append(len(own))
        self._learn(tokens)
        codes = np.fromiter(map(self._codes.__getitem__, tokens), np.uint32, len(tokens))
        return Prepared(slots, np.frombuffer(marks, np.uint8), None, np.repeat(slots + 1, counts), codes)

    def _foreign(self) -> int:
        self._head[Head.FOREIGN] += 1
        return int(Flag.FOREIGN)

    def _learn(self, found: Sequence[str]) -> None:
        """Give codes to words not met before."""
        new = set(found).difference(self._codes)
        if not new:
            return
        at = self._head[Head.WORDS_BYTES]
        ordered = sorted(new)
        raw = [words.encoded(word) for word in ordered]
        self._files["words"].write(at, words.appended(raw))
        code = at - 1  # the separator that the last word ended with
        for word, data in zip(ordered, raw, strict=True):
            self._codes[word] = code
            code += len(data) + 1
        self._head[Head.WORDS_BYTES] = code + 1


class _Several:
    """All values to which a longer path leads; a list among them counts by its elements."""

    __slots__ = ("values",)

    def __init__(self, values: list[Any]) -> None:
        self.values = values


def _shape_of(value: Any) -> tuple[int, Sequence[Any]]:
    """Flags of null, empty and odd, and the elements."""
    values = value.values if isinstance(value, _Several) else [value]
    flags = 0
    if all(v is None or v == [] for v in values):
        flags |= Flag.EMPTY
    if any(v is None for v in values):
        flags |= Flag.NULL
    if len(values) > 1:
        flags |= Flag.ODD
    elements: list[Any] = []
    for v in values:
        if isinstance(v, list):
            elements += v
        else:
            elements.append(v)
    return int(flags), elements


def _strings(found: list[Any]) -> list[str]:
    out: list[str] = []
    for value in found:
        if type(value) is str:
            out.append(value)
        elif isinstance(value, (list, _Several)):
            out += [e for e in _shape_of(value)[1] if type(e) is str]
    return out


def open_column(folder: Path, k: int, params: ColumnParams, files: Files) -> ColumnWriter:
    """The writer of a shard's column `k`; its files are made if they are missing."""
    return ColumnWriter(folder, k, params, files)
