"""The derived files of a shard as one: points.db, ids, live bits, vectors and columns, opened for writing."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.columns.writer import ColumnWriter
from agent.mapped import GrowingBits, GrowingFile
from agent.store.files import Files
from agent.store.manifest import BLOCK_BYTES, ColumnParams, ShardSchema, VectorParams
from agent.store.points import NAME as POINTS_NAME
from agent.store.points import PointsDb
from agent.store.vectors import VectorFile
from core.hashing import KEY_BYTES

I64 = npt.NDArray[np.int64]


def column_files(folder: Path, k: int) -> list[Path]:
    """The files of payload index k, in order."""
    return sorted((folder / "columns").glob(f"{k}.*"))


class Contents:
    """Opens what exists and makes what does not. One thread at a time, except `sync`."""

    def __init__(self, folder: Path, schema: ShardSchema, files: Files) -> None:
        for name in ("columns", "vectors", "segments"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.files = files
        self.points = PointsDb(folder / POINTS_NAME, files)
        self.ids = GrowingFile(folder / "columns" / "ids.bin", files)
        self.live = GrowingBits(folder / "columns" / "live.bin", files)
        self._has_new_names = True
        self._syncing = threading.Lock()
        self.vectors: dict[int, VectorFile] = {}
        self.columns: dict[int, ColumnWriter] = {}
        for v, vector in schema.vectors.items():
            self.add_vector(v, vector)
        for k, column in schema.columns.items():
            self.add_column(k, column)

    def add_vector(self, v: int, params: VectorParams) -> None:
        vector = VectorFile(self.folder, v, params.dim, self.files)
        vector.reserve(self.points.meta.slot_high)
        self.vectors[v] = vector
        self._has_new_names = True

    def remove_vector(self, v: int) -> None:
        """Drop its files; who has them mapped keeps them until he lets go."""
        vector = self.vectors.pop(v)
        vector.close()
        for file in (vector.rows_file, vector.crcs_file, vector.has.file):
            self.files.unlink(file.path)

    def add_column(self, k: int, params: ColumnParams) -> None:
        column = ColumnWriter(self.folder, k, params, self.files)
        column.reserve(self.points.meta.slot_high)
        self.columns[k] = column
        self._has_new_names = True

    def remove_column(self, k: int) -> None:
        self.columns.pop(k).close()
        for path in column_files(self.folder, k):
            self.files.unlink(path)

    def reserve(self, slots: int) -> None:
        """Room for slots 0..slots-1 in every file, before anything is written. Raises OSError (ENOSPC)."""
        self.ids.reserve(slots * KEY_BYTES)
        self.live.reserve(slots)
        for vector in self.vectors.values():
            vector.reserve(slots)
        for column in self.columns.values():
            column.reserve(slots)

    def forget_from(self, slot: int) -> None:
        """What was written for slots that are not taken after all is as if it had not been."""
        beyond = np.arange(slot, self.live.file.size << 3)
        self.live.clear(beyond)
        for vector in self.vectors.values():
            vector.forget_from(slot)

    def sync(self) -> None:
        """Make all but points.db durable, before this returns: also what another thread's sync is at."""
        with self._syncing:
            self._sync()

    def _sync(self) -> None:
        if self._has_new_names:
            self._has_new_names = False
            for name in ("columns", "vectors"):
                self.files.sync_folder(self.folder / name)
        for vector in self.vectors.values():
            vector.sync()
        self.ids.sync()
        self.live.file.sync()
        for column in self.columns.values():
            column.sync()

    def punch_below(self, slot: int) -> None:
        """Give back the space of the slots below, none of which is looked at any more."""
        for vector in self.vectors.values():
            vector.punch_below(slot)
        self.ids.punch_below(slot * KEY_BYTES, unit=BLOCK_BYTES)
        self.live.file.punch_below(slot >> 3)
        for column in self.columns.values():
            column.punch_below(slot)

    def close(self) -> None:
        for vector in self.vectors.values():
            vector.close()
        for column in self.columns.values():
            column.close()
        self.ids.close()
        self.live.file.close()
        self.points.close()
