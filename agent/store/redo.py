"""Vectors written again from the log, for entries that points.db has but whose rows may be lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from agent.store.apply import chosen_rows, split_keys
from agent.store.contents import Contents
from core.replication.log import Entry
from core.wire import DeleteVectors, Rows, UpdateVectors, Upsert, decode_op

I64 = npt.NDArray[np.int64]


class Redo:
    """`low`: slots below it were durable at the checkpoint after which the entries come."""

    def __init__(self, contents: Contents, low: int) -> None:
        self._contents = contents
        self._born: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        seen: set[tuple[int, bytes]] = set()
        for slot, key, born in contents.points.births(low):
            # Of several slots that one entry made for a point, all but the first are copies made by
            # relocation: they were on disk before points.db named them.
            if (born, key) not in seen:
                seen.add((born, key))
                self._born[born].append((slot, key))
        self._slots_of: dict[bytes, list[int]] | None = None

    def redo(self, entries: Iterable[Entry]) -> int:
        """Write the vectors of these entries, in order, and return of how many slots."""
        count = 0
        for entry in entries:
            slots = self._born.get(entry.seq)
            if slots:
                self._redo_entry(entry, np.array([s for s, _ in slots]), [key for _, key in slots])
                count += len(slots)
        return count

    def _redo_entry(self, entry: Entry, slots: I64, keys: list[bytes]) -> None:
        op = decode_op(entry.op)
        match op:
            case Upsert():
                self._clear(slots, self._contents.vectors)
                self._put(slots, keys, op.ids, op.rows)
            case UpdateVectors() | DeleteVectors():
                removed = op.vs if isinstance(op, DeleteVectors) else ()
                sources = np.array([self._slot_before(key, int(slot)) for key, slot in zip(keys, slots)])
                # No source: its row was purged, so a later checkpoint than the known one has this slot.
                known = sources >= 0
                slots, sources = slots[known], sources[known]
                keys = [key for key, found in zip(keys, known) if found]
                self._clear(slots, self._contents.vectors)
                for v, vector in self._contents.vectors.items():
                    if v not in removed:
                        vector.copy(sources, slots)
                if isinstance(op, UpdateVectors):
                    self._put(slots, keys, op.ids, op.rows)
            case _:
                pass  # makes no slots

    def _clear(self, slots: I64, vs: Iterable[int]) -> None:
        """An absent vector must be so on the disk too: what a crash left in the slot could look like one."""
        for v in vs:
            self._contents.vectors[v].clear(slots)

    def _put(self, slots: I64, keys: list[bytes], ids: bytes, rows: Sequence[Rows]) -> None:
        positions = {key: i for i, key in enumerate(split_keys(ids))}
        named = np.array([key in positions for key in keys], bool)
        chosen = [positions[key] for key in keys if key in positions]
        for part in rows:
            vector = self._contents.vectors.get(part.v)
            if vector is not None and chosen:
                present, matrix = chosen_rows(part, chosen)
                vector.put_scattered(slots[named][present], matrix)

    def _slot_before(self, key: bytes, slot: int) -> int:
        """The slot that the point had before, or -1."""
        if self._slots_of is None:
            self._slots_of = defaultdict(list)
            for found, found_key in self._contents.points.keys_between(
                0, self._contents.points.meta.slot_high
            ):
                self._slots_of[found_key].append(found)
        return max((s for s in self._slots_of[key] if s < slot), default=-1)
