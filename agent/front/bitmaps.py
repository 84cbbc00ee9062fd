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
from agent.front.evaluation import Answer, Evaluation
from agent.front.rows import StoredRows
from agent.metrics import Metrics
from agent.points_reader import Row
from agent.store.manifest import ColumnState
from core.filters import Filter, HasId, TextIndexes, compile_filter, conditions_in, joined
from core.payload import Path as PayloadPath
from core.payload import decode_payload, parse_path

if TYPE_CHECKING:
    from agent.front.view import Look

Bits = NDArray[np.bool_]
I64 = NDArray[np.int64]

_CACHE_BYTES = 16 << 20
_CACHE_FILTERS = 512
_ROWS_AT_ONCE = 1024
_TESTS_AT_ONCE = 1 << 18
"""Of rows by conditions, between two looks at the clock: some tenths of a second."""
_TRIES = 8


@dataclass(slots=True)
class _Known:
    """What matches a filter among the slots base..base+len(bits)-1, as of `edits`.

    Of some only what the payload of those in `live` said; None if columns knew all.
    """

    edits: int
    base: int
    bits: Bits
    live: Bits | None

    @property
    def size_bytes(self) -> int:
        return len(self.bits) * (1 if self.live is None else 2)

    def serves(self, look: Look) -> bool:
        """Whether it says all of the look's points: an older look sees some that had died for this one."""
        if self.base > look.base:
            return False
        if self.live is None:
            return True
        both = min(look.high, self.base + len(self.live)) - look.base
        asked = look.live()[: max(0, both)]
        return not (asked & ~self.live[look.base - self.base :][: len(asked)]).any()


class Bitmaps:
    """Bitmaps of one shard; recent ones are kept, since a slot's contents change by edits alone."""

    def __init__(self, folder: Path, rows: StoredRows, metrics: Metrics | None) -> None:
        self._folder, self._rows, self._metrics = folder, rows, metrics
        self._texts: TextIndexes = {}
        self._names: Mapping[str, int] = {}
        self._columns: dict[PayloadPath, ColumnReader] = {}
        self._by_number: dict[int, ColumnReader] = {}
        self._states: Mapping[str, ColumnState] = {}
        self._recent: OrderedDict[Filter, _Known] = OrderedDict()
        self._kept_bytes = 0
        self._generation = 0
        """Grows whenever filters may mean something else, or columns come and go."""
        self._lock = threading.Lock()

    def set_schema(self, texts: TextIndexes, names: Mapping[str, int]) -> None:
        """What the map says: how text is cut, by path, and the numbers of the vectors."""
        if texts != self._texts or names != self._names:
            self._texts, self._names = texts, dict(names)
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
            self._generation += 1
            self._recent.clear()
            self._kept_bytes = 0

    def mask(self, look: Look, where: Filter) -> Bits:
        """Which of the slots look.base..look.high-1 match; only what is said of live slots counts.

        Of a point that is edited meanwhile its state before or after: columns answer only if no edit began
        or ended while they were asked (and not for the points under edit), rows are read whole.
        """
        where = joined(where)
        generation, columns, texts = self._generation, self._columns, self._texts
        keepable = not any(isinstance(c, HasId) for c in conditions_in(where))
        edits = look.edits_now()
        for _ in range(_TRIES):
            known = self._known(where, edits, look) if keepable else None
            end = 0 if known is None else known.base + len(known.bits)
            start = max(look.base, min(look.high, end))
            answer = Evaluation(
                look, columns, start, look.high, editing=bool(edits & 1), check=look.check
            ).filter(where)
            before, edits = edits, look.edits_now()
            if edits == before:
                break
        else:
            known, start = None, look.base
            answer = Evaluation(look, {}, start, look.high).filter(where)
        bits = self._decided(look, where, answer, start, texts)
        certain = answer.yes is answer.maybe
        if known is not None:
            bits = np.concatenate((known.bits[look.base - known.base :][: start - look.base], bits))
            certain = certain and known.live is None
        if keepable and start < look.steady_high and not edits & 1 and look.edits_now() == edits:
            count = look.steady_high - look.base
            live = None if certain else look.live()[:count]
            self._keep(where, _Known(edits, look.base, bits[:count], live), generation)
        return bits

    def _known(self, where: Filter, edits: int, look: Look) -> _Known | None:
        with self._lock:
            known = self._recent.get(where)
            if known is None or known.edits != edits:
                return None
            self._recent.move_to_end(where)
        return known if known.serves(look) else None

    def _keep(self, where: Filter, known: _Known, generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                return  # found by columns or meanings that are not those of now
            old = self._recent.pop(where, None)
            self._recent[where] = known
            self._kept_bytes += known.size_bytes - (0 if old is None else old.size_bytes)
            while len(self._recent) > _CACHE_FILTERS or self._kept_bytes > _CACHE_BYTES:
                self._kept_bytes -= self._recent.popitem(last=False)[1].size_bytes

    def _decided(self, look: Look, where: Filter, answer: Answer, low: int, texts: TextIndexes) -> Bits:
        """The answer for slots low..look.high-1, with what is in doubt looked up."""
        if answer.yes is answer.maybe:
            return answer.yes
        doubtful = answer.maybe & ~answer.yes
        doubtful &= look.live()[low - look.base :]
        slots = np.flatnonzero(doubtful) + low
        if not len(slots):
            return answer.yes
        bits = answer.yes.copy()
        bits[slots[self._tested(look, where, slots, texts)] - low] = True
        return bits

    def _tested(self, look: Look, where: Filter, slots: I64, texts: TextIndexes) -> Bits:
        """Which of the slots match by their stored payloads."""
        if self._metrics is not None:
            self._metrics.counter("shoal_filter_payloads_read_total").add(len(slots))
            self._metrics.counter("shoal_filter_scans_total").add()
        test = compile_filter(where, texts)
        found = np.zeros(len(slots), np.bool_)
        conditions = sum(1 for _ in conditions_in(where))
        size = max(1, min(_ROWS_AT_ONCE, _TESTS_AT_ONCE // max(1, conditions)))
        for at in range(0, len(slots), size):
            look.check()
            part = slots[at : at + size]
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
