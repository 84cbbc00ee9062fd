"""Reads all of a shard that searches rely on, slowly, and says what does not match its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from agent.mapped import MappedFile
from agent.points_reader import checked_points, connect_readonly, rows_from
from agent.store.manifest import Manifest
from agent.store.points import NAME as POINTS_NAME
from agent.store.segments import damage_of
from agent.store.vectors import ABSENT, row_crc
from core.errors import Damaged
from core.hashing import KEY_BYTES

SLICE_SLOTS = 2_048


class Scrub:
    """One reading of a shard. Each step does some milliseconds of work, in a thread, beside writes.

    It looks as a search does: through mapped files and a connection of its own, at slots that are live,
    and at what `manifest` names at that moment.
    """

    def __init__(self, folder: Path, manifest: Callable[[], Manifest]) -> None:
        self._folder = folder
        self._manifest = manifest
        self._live = MappedFile(folder / "columns" / "live.bin")
        self._ids = MappedFile(folder / "columns" / "ids.bin")
        self.slots = 0
        """How many were looked at."""
        self.bad_graphs: dict[int, str] = {}
        """Vectors whose sealed graphs are damaged, and how: they can be built again."""

    def steps(self, slot_low: int, slot_high: int) -> Iterator[None]:
        """Work to be done between two `next`. Raises Damaged, naming file and offset."""
        yield from self._check_graphs()
        with closing(connect_readonly(self._folder / POINTS_NAME)) as db:
            yield
            checked_points(db)
            for low in range(slot_low, slot_high, SLICE_SLOTS):
                high = min(low + SLICE_SLOTS, slot_high)
                yield
                live = self._live_slots(low, high)
                for name, state in self._manifest().vectors.items():
                    self._check_vectors(name, state.dim, live)
                keys = self._ids.array(np.uint8, high, KEY_BYTES)
                for row in rows_from(db, low, high, high - low):
                    if row.id != keys[row.slot].tobytes() and self._lives(row.slot):
                        raise Damaged(f"{self._ids.path}: the id at offset {row.slot * KEY_BYTES} is another")
                self.slots += len(live)

    def _check_graphs(self) -> Iterator[None]:
        for name, state in self._manifest().vectors.items():
            for segment in state.segments:
                yield
                damage = damage_of(self._folder, segment)
                now = self._manifest().vectors.get(name)
                # One that was replaced meanwhile may be gone.
                if damage is not None and now is not None and segment in now.segments:
                    self.bad_graphs[int(name)] = damage

    def _live_slots(self, low: int, high: int) -> list[int]:
        bits = np.unpackbits(self._live.bits(high)[low >> 3 :], bitorder="little")[low & 7 :][: high - low]
        slots: list[int] = (np.flatnonzero(bits) + low).tolist()
        return slots

    def _lives(self, slot: int) -> bool:
        return bool(self._live.bits(slot + 1)[slot >> 3] >> (slot & 7) & 1)

    def _check_vectors(self, name: str, dim: int, live: list[int]) -> None:
        if not live:
            return
        path = self._folder / "vectors" / f"{name}.f32"
        try:
            rows = MappedFile(path).array("<f4", live[-1] + 1, dim)
            crcs = MappedFile(path.with_suffix(".crc")).array("<u4", live[-1] + 1)
        except FileNotFoundError:
            if name in self._manifest().vectors:
                raise Damaged(f"{path}: missing") from None
            return  # the vector was removed meanwhile
        for slot in live:
            # A row whose slot has died meanwhile may have become a hole.
            if crcs[slot] not in (ABSENT, row_crc(rows[slot].data.cast("B"), slot)) and self._lives(slot):
                raise Damaged(f"{path}: the row at offset {slot * dim * 4} does not match its checksum")
