"""Which slots match a filter: from columns where there are some, from the stored payloads where not."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent.columns.reader import ColumnReader
from agent.front.evaluation import Evaluation
from agent.front.rows import StoredRows
from agent.metrics import Metrics
from agent.points_reader import Row
from agent.store.manifest import ColumnState
from core.filters import Filter, HasId, TextIndexes, compile_filter, conditions_in
from core.payload import Path as PayloadPath
from core.payload import decode_payload, parse_path

if TYPE_CHECKING:
    from agent.front.view import Look

Bits = NDArray[np.bool_]
I64 = NDArray[np.int64]

_CACHE_BYTES = 16 << 20
_ROWS_AT_ONCE = 1024
_TRIES = 8


@dataclass(slots=True)
class _Known:
    """What matches a filter among the slots base..base+len(bits)-1, as of `edits`."""

    edits: int
    base: int
    bits: Bits


class Bitmaps:
    """Bitmaps of one shard; recent ones are kept, since a slot's contents change by edits alone."""

    def __init__(self, folder: Path, rows: StoredRows, metrics: Metrics | None) -> None:
        self._folder, self._rows, self._metrics = folder, rows, metrics
        self._texts: TextIndexes = {}
        self._columns: dict[PayloadPath, ColumnReader] = {}
        self._by_number: dict[int, ColumnReader] = {}
        self._states: Mapping[str, ColumnState] = {}
        self._recent: OrderedDict[Filter, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def set_text_indexes(self, texts: TextIndexes) -> None:
        if texts != self._texts:
            self._texts = texts
            self._forget()

    def take_columns(self, states: Mapping[str, ColumnState]) -> None:
        """Use the columns that a manifest calls ready."""
        if states == self._states:
            return
        kept = {
            k: column for k, column in self._by_number.items() if self._states[str(k)] == states.get(str(k))
        }
        for number, state in states.items():
            k = int(number)
            if state.ready and k not in kept:
                kept[k] = ColumnReader(self._folder / "columns", k, state)
        self._states, self._by_number = states, kept
        self._columns = {parse_path(states[str(k)].path): column for k, column in kept.items()}
        self._forget()

    def points_in(self, number: int, look: Look) -> int:
        """How many live points have a value that the column holds."""
        column = self._by_number.get(number)
        if column is None:
            return 0
        return int(np.count_nonzero(column.filled(look.base, look.high) & look.live()))

    def _forget(self) -> None:
        with self._lock:
            self._recent.clear()

    def mask(self, look: Look, where: Filter) -> Bits:
        """Which of the slots look.base..look.high-1 match; only what is said of live slots counts."""
        edits = look.record.edits
        keepable = not any(isinstance(c, HasId) for c in conditions_in(where))
        bits = np.zeros(look.high - look.base, np.bool_)
        start = look.base
        for _ in range(_TRIES):
            known = self._known(where, edits, look.base) if keepable else None
            bits = np.zeros(look.high - look.base, np.bool_)
            start = look.base
            if known is not None:
                have = known.bits[look.base - known.base :][: len(bits)]
                bits[: len(have)] = have
                start += len(have)
            if start < look.high:
                bits[start - look.base :] = self._matching(look, where, start, look.high)
            now = look.edits_now()
            if now == edits and not edits & 1:
                break
            edits = now
        else:
            return bits  # edits without a pause: of each point its state before or after one
        if keepable and start < look.steady_high:
            self._keep(where, _Known(edits, look.base, bits[: look.steady_high - look.base]))
        return bits

    def _known(self, where: Filter, edits: int, base: int) -> _Known | None:
        with self._lock:
            known = self._recent.get(where)
            if known is None or known.edits != edits or known.base > base:
                return None
            self._recent.move_to_end(where)
            return known

    def _keep(self, where: Filter, known: _Known) -> None:
        with self._lock:
            self._recent[where] = known
            self._recent.move_to_end(where)
            room = _CACHE_BYTES
            for key in reversed(list(self._recent)):
                room -= len(self._recent[key].bits)
                if room < 0:
                    del self._recent[key]

    def _matching(self, look: Look, where: Filter, low: int, high: int) -> Bits:
        answer = Evaluation(look, self._columns, low, high).filter(where)
        doubtful = answer.maybe & ~answer.yes
        doubtful &= look.live()[low - look.base : high - look.base]
        slots = np.flatnonzero(doubtful) + low
        if len(slots):
            bits = answer.yes.copy()
            bits[slots[self._tested(look, where, slots)] - low] = True
            return bits
        return answer.yes

    def _tested(self, look: Look, where: Filter, slots: I64) -> Bits:
        """Which of the slots match by their stored payloads."""
        if self._metrics is not None:
            self._metrics.counter("shoal_filter_payloads_read_total").add(len(slots))
            self._metrics.counter("shoal_filter_scans_total").add()
        test = compile_filter(where, self._texts)
        found = np.zeros(len(slots), np.bool_)
        for at in range(0, len(slots), _ROWS_AT_ONCE):
            part = slots[at : at + _ROWS_AT_ONCE]
            rows = self._read(part)
            for i, slot in enumerate(part.tolist(), at):
                row = rows.get(slot)
                # A row that is gone died since the look began, long enough ago to be purged.
                found[i] = row is not None and test(row.id, decode_payload(row.payload), Has(look, slot))
        return found

    def _read(self, slots: I64) -> dict[int, Row]:
        low, high = int(slots[0]), int(slots[-1]) + 1
        if high - low <= 2 * len(slots):
            return {row.slot: row for row in self._rows.between(low, high, high - low)}
        return self._rows.by_slots(slots.tolist())


class Has:
    """The names of the vectors that a slot has."""

    __slots__ = ("_look", "_slot")

    def __init__(self, look: Look, slot: int) -> None:
        self._look, self._slot = look, slot

    def __contains__(self, name: object) -> bool:
        v = self._look.reader.names.get(str(name))
        return v is not None and bool(self._look.has(v, np.array([self._slot]))[0])
